package main

import (
	"context"
	"errors"

	"github.com/openbao/openbao/api/v2"
)

// openBao is the client of the fork; it reads the VAULT_ variables as well.
type openBao struct{ *api.Client }

func newOpenBao(r *recorder) (client, error) {
	config := api.DefaultConfig()
	c, err := api.NewClient(config)
	if err != nil {
		return nil, err
	}
	r.wrap(config.HttpClient)
	return openBao{c}, nil
}

func (c openBao) health() (string, error) {
	health, err := c.Sys().Health()
	if err != nil {
		return "", err
	}
	if !health.Initialized || health.Sealed || health.Standby {
		return "", errors.New("not initialised, sealed or standby")
	}
	return health.Version, nil
}

func (c openBao) self() (map[string]any, error) {
	token, err := c.Auth().Token().LookupSelf()
	if err != nil {
		return nil, err
	}
	return token.Data, nil
}

func (c openBao) kv1(path string) (map[string]any, error) {
	found, err := c.KVv1("kv").Get(context.Background(), path)
	if err != nil {
		return nil, err
	}
	return found.Data, nil
}

func (c openBao) kv2(path string, version int) (map[string]any, int, error) {
	kv := c.KVv2("secret")
	var found *api.KVSecret
	var err error
	if version == 0 {
		found, err = kv.Get(context.Background(), path)
	} else {
		found, err = kv.GetVersion(context.Background(), path, version)
	}
	if err != nil {
		return nil, 0, err
	}
	return found.Data, found.VersionMetadata.Version, nil
}

func (c openBao) read(path string) (*secret, error) {
	return fromOpenBao(c.Logical().Read(path))
}

func (c openBao) write(path string) error {
	_, err := c.Logical().Write(path, map[string]any{"colour": "black"})
	return err
}

func (c openBao) lookup(id string) (*secret, error) { return fromOpenBao(c.Sys().Lookup(id)) }
func (c openBao) renew(id string) (*secret, error)  { return fromOpenBao(c.Sys().Renew(id, 0)) }
func (c openBao) revoke(id string) error            { return c.Sys().Revoke(id) }

func (c openBao) watch(ctx context.Context, of *secret) ([]int, error) {
	watcher, err := c.NewLifetimeWatcher(&api.LifetimeWatcherInput{Secret: &api.Secret{
		LeaseID: of.leaseID, LeaseDuration: of.duration, Renewable: of.renewable,
	}})
	if err != nil {
		return nil, err
	}
	go watcher.Start()
	defer watcher.Stop()
	var durations []int
	for {
		select {
		case renewal := <-watcher.RenewCh():
			durations = append(durations, renewal.Secret.LeaseDuration)
		case err := <-watcher.DoneCh():
			return durations, err
		case <-ctx.Done():
			return durations, nil
		}
	}
}

func (openBao) isNotFound(err error) bool { return errors.Is(err, api.ErrSecretNotFound) }

func (openBao) status(err error) int {
	var response *api.ResponseError
	if errors.As(err, &response) {
		return response.StatusCode
	}
	return 0
}

func fromOpenBao(s *api.Secret, err error) (*secret, error) {
	if s == nil || err != nil {
		return nil, err
	}
	return &secret{s.LeaseID, s.LeaseDuration, s.Renewable, s.Data}, nil
}
