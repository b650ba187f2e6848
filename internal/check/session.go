package check

import (
	"context"
	"path"
	"regexp"
	"slices"
	"strings"
)

var sessionRules = []Rule{{
	ID:     "session-units",
	What:   "what runs in a person's session is shut in without a namespace, and for people only",
	Why:    "secureblue denies user namespaces to a session, so that a unit which wants one never starts; and the login screen has a session too",
	Source: "systemd.exec(5), PrivateUsers=; secureblue's SELinux module harden_userns",
	Fix:    "write what seccomp and rlimits can do, leave out what needs a mount, network or user namespace, and ConditionUser=!@system",
	check:  sessionUnits,
}}

// sessionWants are settings of a unit in a session that need no right, and shut it
// in.
var sessionWants = []string{
	"NoNewPrivileges=yes",
	"LockPersonality=yes",
	"MemoryDenyWriteExecute=yes",
	"RestrictNamespaces=yes",
	"RestrictRealtime=yes",
	"RestrictSUIDSGID=yes",
	"SystemCallArchitectures=native",
	"SystemCallFilter=@system-service",
	"ConditionUser=!@system",
}

// needsNamespace matches settings for which a manager without rights makes a user
// namespace, or which it cannot do at all (systemd.exec(5),
// systemd.resource-control(5)).
var needsNamespace = regexp.MustCompile(`(?m)^(Private\w+|Protect\w+|ProcSubset|(ReadWrite|ReadOnly|Inaccessible|Exec|NoExec)Paths|TemporaryFileSystem|Bind\w*Paths|Mount\w+|Root\w+|ExtensionImages|DynamicUser|User|Group|SupplementaryGroups|AmbientCapabilities|CapabilityBoundingSet|SecureBits|DevicePolicy|DeviceAllow|IPAddress\w+|SocketBind\w+|RestrictFileSystems|RestrictNetworkInterfaces|NetworkNamespacePath|IPCNamespacePath|RemoveIPC)=`)

// sessionTargets are what a unit of a session may be wanted by.
var sessionTargets = []string{"graphical-session.target", "default.target", "timers.target", "sockets.target", "paths.target"}

func sessionUnits(_ context.Context, s *Subject) error {
	if err := s.need("overlay"); err != nil {
		return err
	}
	var p problems
	for _, e := range s.units() {
		if scopeOf(e.Path) != "user" {
			continue
		}
		text := uncommented(string(e.Data))
		for _, m := range regexp.MustCompile(`(?m)^WantedBy=(.*)$`).FindAllStringSubmatch(text, -1) {
			for _, t := range strings.Fields(m[1]) {
				if !slices.Contains(sessionTargets, t) {
					p.addf("/%s: a session has no %s to want it; use %s", e.Path, t, sessionTargets[0])
				}
			}
		}
		if path.Ext(e.Path) != ".service" {
			continue
		}
		lines := strings.Split(text, "\n")
		for _, want := range sessionWants {
			if !slices.ContainsFunc(lines, func(l string) bool { return strings.TrimSpace(l) == want }) {
				p.addf("/%s lacks %s", e.Path, want)
			}
		}
		if !strings.Contains("\n"+text, "\nRestrictAddressFamilies=") {
			p.addf("/%s: RestrictAddressFamilies= does not say what it may talk to", e.Path)
		}
		for _, m := range needsNamespace.FindAllString(text, -1) {
			p.addf("/%s: %s needs a user namespace or rights that a session does not have", e.Path, m)
		}
	}
	return p.err()
}
