package yggdrasil

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"slices"
	"sync"
	"time"

	"github.com/veilor/veilor-os/internal/edge"
	"github.com/veilor/veilor-os/internal/flows"
	"github.com/veilor/veilor-os/internal/listen"
	"github.com/veilor/veilor-os/internal/site"
)

const (
	// controlTimeout is for one order to arrive.
	controlTimeout = 5 * time.Second
	// maxOrder bounds one: a name and a tier.
	maxOrder = 4 << 10
	// controlMode lets root and the group of the daemon give orders; the kernel
	// looks at it when somebody connects (unix(7)).
	controlMode = 0o660
)

// keeper carries out orders about who is admitted. Everybody else's links and
// flows are left alone: nothing is restarted, and only what the one key has is
// closed.
type keeper struct {
	roster *roster
	walls  *walls
	door   *door
	flows  func(...netip.Addr) (flows.Closed, error)
	log    *slog.Logger

	one sync.Mutex // order at a time
}

// errRefused is an order that cannot be carried out as it is.
type errRefused struct {
	status int
	err    error
}

func (e errRefused) Error() string { return e.err.Error() }

// admit lets a node in. It is on disk and in force when admit returns.
func (k *keeper) admit(n edge.Node) error {
	k.one.Lock()
	defer k.one.Unlock()
	if k.roster.isRevoked(n.Key) {
		return errRefused{http.StatusConflict, errRevoked}
	}
	// What cannot be compiled must not be written down either.
	nodes, revoked := k.roster.list()
	nodes = append(slices.DeleteFunc(nodes, func(o edge.Node) bool { return o.Key == n.Key }), n)
	if _, _, err := k.walls.compile(nodes, revoked); err != nil {
		return errRefused{http.StatusBadRequest, err}
	}
	undo, err := k.roster.add(n)
	if err != nil {
		return err
	}
	// Also when nothing changed: somebody else may have changed the filter.
	if err := k.walls.raise(nodes, revoked); err != nil {
		if undo != nil {
			err = errors.Join(err, undo())
		}
		return err
	}
	if undo != nil {
		k.log.Info("admitted", "name", n.Name, "tier", n.Tier)
	}
	return nil
}

// revoke takes a key off for ever. Each step is tried even if one before it
// failed; whoever ordered it tries again until there is no error.
func (k *keeper) revoke(key site.Key) (edge.Closed, error) {
	k.one.Lock()
	defer k.one.Unlock()
	done := edge.Closed{Key: key}
	known := k.roster.isRevoked(key)
	errs := []error{k.roster.revoke(key)}
	errs = append(errs, k.walls.raise(k.roster.list()))
	done.Links = k.door.turn(key)
	closed, err := k.flows(addressOf(key))
	done.Flows = closed.Sockets
	if err := errors.Join(append(errs, err)...); err != nil {
		return done, err
	}
	if !known {
		k.log.Info("revoked", "links", done.Links, "flows", done.Flows)
	}
	return done, nil
}

// closeFlows ends the flows of this machine with the addresses.
func closeFlows(addrs ...netip.Addr) (flows.Closed, error) { return flows.Close(0, addrs...) }

// listenControl opens the socket for orders.
func listenControl(ctx context.Context, path string) (net.Listener, error) {
	return listen.Unix(ctx, path, controlMode, "the control socket", "veilor-ygg")
}

// serveControl answers until ctx ends.
func (k *keeper) serveControl(ctx context.Context, l net.Listener) error {
	s := &http.Server{
		Handler: k.handler(), ReadTimeout: controlTimeout, IdleTimeout: controlTimeout,
		ErrorLog: slog.NewLogLogger(k.log.Handler(), slog.LevelDebug),
	}
	stop := context.AfterFunc(ctx, func() { s.Close() })
	defer stop()
	if err := s.Serve(l); !errors.Is(err, http.ErrServerClosed) || ctx.Err() == nil {
		return fmt.Errorf("serving the control socket: %w", err)
	}
	return nil
}

func (k *keeper) handler() http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("GET "+edge.NodesPath, func(w http.ResponseWriter, r *http.Request) {
		nodes, revoked := k.roster.list()
		reply(w, edge.List{Nodes: append([]edge.Node{}, nodes...), Revoked: append([]site.Key{}, revoked...), Links: k.door.links()}, nil)
	})
	mux.HandleFunc("PUT "+edge.NodesPath+"/{key}", func(w http.ResponseWriter, r *http.Request) {
		n, err := readOrder(r)
		if err == nil {
			err = k.admit(n)
		}
		reply(w, n, err)
	})
	mux.HandleFunc("DELETE "+edge.NodesPath+"/{key}", func(w http.ResponseWriter, r *http.Request) {
		key, err := edge.ParseKey(r.PathValue("key"))
		if err != nil {
			reply(w, nil, errRefused{http.StatusBadRequest, err})
			return
		}
		done, err := k.revoke(key)
		reply(w, done, err)
	})
	return mux
}

// readOrder reads the request that admits a node.
func readOrder(r *http.Request) (edge.Node, error) {
	bad := func(err error) (edge.Node, error) { return edge.Node{}, errRefused{http.StatusBadRequest, err} }
	key, err := edge.ParseKey(r.PathValue("key"))
	if err != nil {
		return bad(err)
	}
	data, err := io.ReadAll(io.LimitReader(r.Body, maxOrder+1))
	if err != nil || len(data) > maxOrder {
		return bad(fmt.Errorf("the order did not come whole, or has more than %d bytes", maxOrder))
	}
	n, err := parseOrder(key, data)
	if err != nil {
		return bad(err)
	}
	return n, nil
}

func parseOrder(key site.Key, data []byte) (edge.Node, error) {
	d := json.NewDecoder(bytes.NewReader(data))
	d.DisallowUnknownFields()
	var o edge.Order
	if err := d.Decode(&o); err != nil {
		return edge.Node{}, fmt.Errorf(`reading the order: %w; write {"name": "anna", "tier": "guest"}`, err)
	}
	if _, err := d.Token(); !errors.Is(err, io.EOF) {
		return edge.Node{}, errors.New("reading the order: something follows it; remove that")
	}
	if err := o.Check(); err != nil {
		return edge.Node{}, err
	}
	return edge.Node{Key: key, Name: o.Name, Tier: o.Tier}, nil
}

func reply(w http.ResponseWriter, answer any, err error) {
	w.Header().Set("Content-Type", "application/json")
	if err != nil {
		status := http.StatusInternalServerError
		var refused errRefused
		if errors.As(err, &refused) {
			status = refused.status
		}
		w.WriteHeader(status)
		answer = edge.Refusal{Error: err.Error()}
	}
	json.NewEncoder(w).Encode(answer)
}
