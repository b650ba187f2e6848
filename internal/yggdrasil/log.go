package yggdrasil

import (
	"context"
	"fmt"
	"log/slog"
	"strings"
	"sync/atomic"
)

// logger lets the library write to slog. It implements core.Logger, which is
// the interface of github.com/gologme/log.
type logger struct {
	to *slog.Logger
	// stopping turns errors into details: a reader whose TUN we close complains.
	stopping atomic.Bool
}

func (l *logger) write(level slog.Level, text string) {
	text = strings.TrimSpace(text)
	// The library tells why a peering was refused (a wrong key) only at debug
	// level; to the person who entered that key it is the one line that counts.
	if level == slog.LevelDebug && strings.HasPrefix(text, "Link ") && strings.Contains(text, " error: ") {
		level = slog.LevelWarn
	}
	if l.stopping.Load() {
		level = slog.LevelDebug
	}
	l.to.Log(context.Background(), level, text)
}

func (l *logger) Printf(f string, a ...any) { l.write(slog.LevelInfo, fmt.Sprintf(f, a...)) }
func (l *logger) Println(a ...any)          { l.write(slog.LevelInfo, fmt.Sprintln(a...)) }
func (l *logger) Infof(f string, a ...any)  { l.write(slog.LevelInfo, fmt.Sprintf(f, a...)) }
func (l *logger) Infoln(a ...any)           { l.write(slog.LevelInfo, fmt.Sprintln(a...)) }
func (l *logger) Warnf(f string, a ...any)  { l.write(slog.LevelWarn, fmt.Sprintf(f, a...)) }
func (l *logger) Warnln(a ...any)           { l.write(slog.LevelWarn, fmt.Sprintln(a...)) }
func (l *logger) Errorf(f string, a ...any) { l.write(slog.LevelError, fmt.Sprintf(f, a...)) }
func (l *logger) Errorln(a ...any)          { l.write(slog.LevelError, fmt.Sprintln(a...)) }
func (l *logger) Debugf(f string, a ...any) { l.write(slog.LevelDebug, fmt.Sprintf(f, a...)) }
func (l *logger) Debugln(a ...any)          { l.write(slog.LevelDebug, fmt.Sprintln(a...)) }

// Traceln is a line per packet; nobody reads that.
func (l *logger) Traceln(...any) {}
