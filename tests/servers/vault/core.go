package main

import (
	"slices"

	"github.com/hashicorp/go-hclog"
	jwt "github.com/hashicorp/vault-plugin-auth-jwt"
	kubernetes "github.com/hashicorp/vault-plugin-auth-kubernetes"
	kv "github.com/hashicorp/vault-plugin-secrets-kv"
	"github.com/hashicorp/vault/audit"
	"github.com/hashicorp/vault/builtin/credential/approle"
	"github.com/hashicorp/vault/builtin/credential/userpass"
	"github.com/hashicorp/vault/builtin/logical/database"
	"github.com/hashicorp/vault/plugins/database/postgresql"
	"github.com/hashicorp/vault/sdk/helper/consts"
	"github.com/hashicorp/vault/sdk/logical"
	"github.com/hashicorp/vault/sdk/physical"
	"github.com/hashicorp/vault/sdk/physical/file"
	"github.com/hashicorp/vault/sdk/physical/inmem"
	"github.com/hashicorp/vault/vault"
)

func newCore(storage, address string, logger hclog.Logger) (*vault.Core, error) {
	backend, kind, err := newStorage(storage, logger)
	if err != nil {
		return nil, err
	}
	return vault.NewCore(&vault.CoreConfig{
		Physical:        backend,
		StorageType:     kind,
		Logger:          logger,
		RedirectAddr:    address,
		DisableMlock:    true,
		BuiltinRegistry: databasePlugins{"postgresql-database-plugin": postgresql.New},
		AuditBackends:   map[string]audit.Factory{"file": audit.NewFileBackend},
		LogicalBackends: map[string]logical.Factory{
			"kv":       kv.Factory,
			"database": database.Factory,
		},
		CredentialBackends: map[string]logical.Factory{
			"approle":    approle.Factory,
			"jwt":        jwt.Factory,
			"kubernetes": kubernetes.Factory,
			"userpass":   userpass.Factory,
		},
	})
}

func newStorage(storage string, logger hclog.Logger) (physical.Backend, string, error) {
	if storage == "inmem" {
		backend, err := inmem.NewInmem(nil, logger)
		return backend, "inmem", err
	}
	backend, err := file.NewFileBackend(map[string]string{"path": storage}, logger)
	return backend, "file", err
}

// databasePlugins is the whole plugin catalogue: database engines by name.
type databasePlugins map[string]func() (any, error)

func (p databasePlugins) Contains(name string, kind consts.PluginType) bool {
	return slices.Contains(p.Keys(kind), name)
}

func (p databasePlugins) Get(name string, kind consts.PluginType) (func() (any, error), bool) {
	if !p.Contains(name, kind) {
		return nil, false
	}
	return p[name], true
}

func (p databasePlugins) Keys(kind consts.PluginType) []string {
	if kind != consts.PluginTypeDatabase {
		return nil
	}
	names := make([]string, 0, len(p))
	for name := range p {
		names = append(names, name)
	}
	return names
}

func (p databasePlugins) DeprecationStatus(name string, kind consts.PluginType) (consts.DeprecationStatus, bool) {
	return consts.Supported, p.Contains(name, kind)
}

func (p databasePlugins) IsBuiltinEntPlugin(string, consts.PluginType) bool { return false }
