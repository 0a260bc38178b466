// Command vault serves the real Vault core for tests: the engines the broker
// talks to, one unseal key, an audit log, and nothing of the full binary's
// command line or plugin zoo.
package main

import (
	"context"
	"encoding/hex"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"net"
	"net/http"
	"os"
	"os/signal"
	"syscall"
	"time"

	"github.com/hashicorp/go-hclog"
	"github.com/hashicorp/vault/helper/namespace"
	vaulthttp "github.com/hashicorp/vault/http"
	"github.com/hashicorp/vault/internalshared/configutil"
	"github.com/hashicorp/vault/sdk/logical"
	"github.com/hashicorp/vault/vault"
)

type options struct {
	listen, storage, audit, tlsCert, tlsKey, unsealKey string
}

// ready is the one line a test reads from standard output. The root token is
// known only to the start that initialised the storage.
type ready struct {
	Address   string `json:"address"`
	RootToken string `json:"root_token"`
	UnsealKey string `json:"unseal_key"`
}

func main() {
	var o options
	flag.StringVar(&o.listen, "listen", "127.0.0.1:0", "address to serve on; port 0 picks a free one")
	flag.StringVar(&o.storage, "storage", "inmem", "directory that survives a restart, or inmem")
	flag.StringVar(&o.audit, "audit", "", "audit log file, enabled when the storage is initialised")
	flag.StringVar(&o.tlsCert, "tls-cert", "", "PEM certificate chain; serves HTTPS")
	flag.StringVar(&o.tlsKey, "tls-key", "", "PEM key of --tls-cert")
	flag.StringVar(&o.unsealKey, "unseal-key", "", "key printed by the start that initialised the storage")
	flag.Parse()
	if err := run(o); err != nil {
		fmt.Fprintln(os.Stderr, "vault:", err)
		os.Exit(1)
	}
}

func run(o options) error {
	stop, cancel := signal.NotifyContext(context.Background(), syscall.SIGTERM, syscall.SIGINT)
	defer cancel()

	listener, err := net.Listen("tcp", o.listen)
	if err != nil {
		return err
	}
	scheme := "http"
	if o.tlsCert != "" {
		scheme = "https"
	}
	address := scheme + "://" + listener.Addr().String()

	logger := hclog.New(&hclog.LoggerOptions{Output: os.Stderr, Level: hclog.Info})
	core, err := newCore(o.storage, address, logger)
	if err != nil {
		return err
	}
	line, err := open(core, o)
	if err != nil {
		return err
	}
	line.Address = address

	server := &http.Server{
		Handler: vaulthttp.Handler.Handler(&vault.HandlerProperties{Core: core, ListenerConfig: &configutil.Listener{}}),
		// As long as Vault's own listener waits.
		ReadHeaderTimeout: 10 * time.Second,
		IdleTimeout:       5 * time.Minute,
	}
	failed := make(chan error, 1)
	go func() {
		if o.tlsCert != "" {
			failed <- server.ServeTLS(listener, o.tlsCert, o.tlsKey)
			return
		}
		failed <- server.Serve(listener)
	}()
	if err := json.NewEncoder(os.Stdout).Encode(line); err != nil {
		return err
	}

	select {
	case err := <-failed:
		return err
	case <-stop.Done():
	}
	// Connections first: a request in flight must not meet a sealed core.
	drain, done := context.WithTimeout(context.Background(), 2*time.Second)
	defer done()
	if err := server.Shutdown(drain); err != nil && !errors.Is(err, context.DeadlineExceeded) {
		return err
	}
	return core.Shutdown()
}

// open initialises new storage or reuses what is there, and unseals it.
func open(core *vault.Core, o options) (ready, error) {
	ctx := namespace.RootContext(context.Background())
	initialised, err := core.Initialized(ctx)
	if err != nil {
		return ready{}, err
	}
	if initialised {
		if o.unsealKey == "" {
			return ready{}, errors.New("the storage is initialised already: give --unseal-key")
		}
		return ready{UnsealKey: o.unsealKey}, unseal(core, o.unsealKey)
	}

	oneKey := &vault.SealConfig{SecretShares: 1, SecretThreshold: 1}
	result, err := core.Initialize(ctx, &vault.InitParams{BarrierConfig: oneKey, RecoveryConfig: &vault.SealConfig{}})
	if err != nil {
		return ready{}, fmt.Errorf("initialise: %w", err)
	}
	line := ready{RootToken: result.RootToken, UnsealKey: hex.EncodeToString(result.SecretShares[0])}
	if err := unseal(core, line.UnsealKey); err != nil {
		return ready{}, err
	}
	if o.audit != "" {
		if err := enableAudit(ctx, core, result.RootToken, o.audit); err != nil {
			return ready{}, fmt.Errorf("enable the audit log: %w", err)
		}
	}
	return line, nil
}

func unseal(core *vault.Core, key string) error {
	share, err := hex.DecodeString(key)
	if err != nil {
		return fmt.Errorf("unseal key: %w", err)
	}
	opened, err := core.Unseal(share)
	if err == nil && !opened {
		err = errors.New("one key was not enough")
	}
	if err != nil {
		return fmt.Errorf("unseal: %w", err)
	}
	return nil
}

func enableAudit(ctx context.Context, core *vault.Core, token, file string) error {
	response, err := core.HandleRequest(ctx, &logical.Request{
		Operation:   logical.UpdateOperation,
		Path:        "sys/audit/file",
		ClientToken: token,
		Data: map[string]any{
			"type":    "file",
			"options": map[string]any{"file_path": file},
		},
	})
	if err == nil && response != nil && response.IsError() {
		err = response.Error()
	}
	return err
}
