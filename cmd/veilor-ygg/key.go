package main

import (
	"context"
	"crypto/ed25519"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"regexp"
	"time"

	"github.com/spf13/cobra"

	"github.com/veilor/veilor-os/internal/cli"
	"github.com/veilor/veilor-os/internal/yggdrasil"
)

const (
	defaultSocket = "/run/veilor-ygg/admin.sock"
	// askTimeout is for a node on the same machine.
	askTimeout = 2 * time.Second
)

// identity is who a node is.
type identity struct {
	Address string `json:"address"`
	Key     string `json:"key"`
}

func identify(key ed25519.PublicKey) identity {
	return identity{Address: yggdrasil.Address(key).String(), Key: hex.EncodeToString(key)}
}

func (id identity) print(w io.Writer, asJSON bool) error {
	if asJSON {
		return json.NewEncoder(w).Encode(id)
	}
	_, err := fmt.Fprintf(w, "key      %s\naddress  %s\n", id.Key, id.Address)
	return err
}

func genkeyCommand() *cobra.Command {
	var out string
	var asJSON bool
	cmd := &cobra.Command{
		Use:   "genkey --out FILE",
		Short: "Make a node's key and print its public key and address",
		Long: `Make a node's key, 0600, in the form that Yggdrasil reads as PrivateKeyPath
(PKCS#8 PEM), and print its public key and address. A file that exists is never
replaced. A node makes its own key on its first start; this is for one whose
public key must be known before.`,
		Example: "  veilor-ygg genkey --out key.pem",
		Args:    cli.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if out == "" {
				return cli.Usagef("--out is missing; write for example --out key.pem")
			}
			key, err := yggdrasil.MakeKey(out)
			if errors.Is(err, fs.ErrExist) {
				return fmt.Errorf("making a key: %s exists and is not replaced: whoever has its address would lose it; see `veilor-ygg address --key %s`, or write another --out", out, out)
			}
			if err != nil {
				return err
			}
			return identify(key.Public().(ed25519.PublicKey)).print(cmd.OutOrStdout(), asJSON)
		},
	}
	cmd.Flags().StringVar(&out, "out", "", "write the key to `FILE`")
	cmd.Flags().BoolVar(&asJSON, "json", false, "print JSON")
	return cmd
}

var publicHex = regexp.MustCompile(`^[0-9a-fA-F]{64}$`)

func addressCommand() *cobra.Command {
	var from, socket string
	var asJSON bool
	cmd := &cobra.Command{
		Use:   "address [--key FILE|KEY]",
		Short: "Print the public key and address of a node",
		Long: `Print the public key and the address of a node: of this machine's running one,
or of the one whose key file or public key (64 hex digits) is given. An address
follows from the key and cannot be chosen.`,
		Example: `  veilor-ygg address
  veilor-ygg address --key /var/lib/veilor-ygg/key.pem --json`,
		Args: cli.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			id, err := find(cmd.Context(), from, socket)
			if err != nil {
				return err
			}
			return id.print(cmd.OutOrStdout(), asJSON)
		},
	}
	cmd.Flags().StringVar(&from, "key", "", "a key `FILE`, or a public key of 64 hex digits")
	cmd.Flags().StringVar(&socket, "socket", defaultSocket, "admin socket of the running node")
	cmd.Flags().MarkHidden("socket")
	cmd.Flags().BoolVar(&asJSON, "json", false, "print JSON")
	return cmd
}

func find(ctx context.Context, from, socket string) (identity, error) {
	if publicHex.MatchString(from) {
		key, err := hex.DecodeString(from)
		if err != nil {
			return identity{}, err
		}
		return identify(key), nil
	}
	if from != "" {
		key, err := yggdrasil.ReadKey(from)
		if errors.Is(err, fs.ErrNotExist) {
			return identity{}, fmt.Errorf("%q is neither a file nor a public key of 64 hex digits", from)
		}
		if err != nil {
			return identity{}, err
		}
		return identify(key.Public().(ed25519.PublicKey)), nil
	}
	ctx, cancel := context.WithTimeout(ctx, askTimeout)
	defer cancel()
	s, err := yggdrasil.Query(ctx, socket)
	if err == nil {
		return identity{Address: s.Address, Key: s.Key}, nil
	}
	if key, kerr := yggdrasil.ReadKey(defaultKey); kerr == nil {
		return identify(key.Public().(ed25519.PublicKey)), nil
	}
	return identity{}, fmt.Errorf("%w; or name a key with --key", err)
}
