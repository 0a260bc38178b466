package main

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"os"
	"strings"
	"time"

	_ "github.com/lib/pq"
)

const (
	// leaseSeconds is the Vault lease's duration: no local lease may be longer.
	leaseSeconds = 20
	// watched is longer than a lease, so somebody must have renewed it.
	watched = 30 * time.Second
	// soon bounds what takes the agent, Vault and PostgreSQL a moment.
	soon = 10 * time.Second
)

// application is a client and the credential it holds.
type application struct {
	client
	credential *secret
}

var checks = []struct {
	name string
	run  func(*application) error
}{
	{"health: initialised, unsealed, active", (*application).seesHealth},
	{"token lookup-self names the caller and no token", (*application).seesItself},
	{"KV 1 through the client's helper", (*application).readsKV1},
	{"KV 2, newest and pinned version, through the client's helper", (*application).readsKV2},
	{"404 is the client's own not-found error", (*application).missesSecrets},
	{"403 is the client's own response error", (*application).isDenied},
	{"a write is refused with 405", (*application).cannotWrite},
	{"a database credential logs in to PostgreSQL", (*application).readsCredential},
	{"a repeated read returns the same credential", (*application).readsItAgain},
	{"lookup and renewal of the local lease", (*application).renewsLease},
	{"an unknown lease is refused with 400", (*application).knowsNoOtherLease},
	{"revocation of the local lease removes the PostgreSQL role", (*application).revokesLease},
	{"LifetimeWatcher keeps one credential for longer than its lease", (*application).watches},
}

func (a *application) seesHealth() error {
	version, err := a.health()
	return errors.Join(err, want("a version", version != "", version))
}

func (a *application) seesItself() error {
	self, err := a.self()
	if err != nil {
		return err
	}
	name, _ := self["display_name"].(string)
	return errors.Join(
		want("display_name uid:…", strings.HasPrefix(name, "uid:"), name),
		want("no token", self["id"] == "" && self["accessor"] == "", "one"),
	)
}

func (a *application) readsKV1() error {
	data, err := a.kv1("shop/web")
	return errors.Join(err, want("blue", data["colour"] == "blue", data))
}

func (a *application) readsKV2() error {
	for version, colour := range map[int]string{0: "green", 1: "red", 2: "green"} {
		data, got, err := a.kv2("shop/web", version)
		if err != nil {
			return err
		}
		if data["colour"] != colour || (got != version && version != 0) {
			return fmt.Errorf("version %d: got %v of version %d", version, data, got)
		}
	}
	return nil
}

func (a *application) missesSecrets() error {
	_, kv1 := a.kv1("shop/missing")
	_, _, kv2 := a.kv2("shop/missing", 0)
	_, _, version := a.kv2("shop/web", 9)
	for _, err := range []error{kv1, kv2, version} {
		if !a.isNotFound(err) {
			return fmt.Errorf("got %v", err)
		}
	}
	plain, err := a.read("kv/shop/missing")
	return errors.Join(err, want("nothing", plain == nil, plain))
}

func (a *application) isDenied() error {
	_, kv1 := a.kv1("private/web")
	_, _, kv2 := a.kv2("private/web", 0)
	_, creds := a.read("database/creds/private")
	_, sys := a.read("sys/mounts")
	for _, err := range []error{kv1, kv2, creds, sys} {
		denied := err != nil && strings.Contains(err.Error(), "permission denied")
		if a.status(err) != 403 || !denied {
			return fmt.Errorf("got %v", err)
		}
	}
	return nil
}

func (a *application) cannotWrite() error {
	err := a.write("kv/shop/web")
	return want("405", a.status(err) == 405, err)
}

func (a *application) readsCredential() error {
	credential, err := a.read("database/creds/shop")
	if err != nil {
		return err
	}
	a.credential = credential
	return errors.Join(
		want("a lease id", strings.HasPrefix(credential.leaseID, "database/creds/shop/"), credential.leaseID),
		want("a bounded, renewable lease", lives(credential) && credential.renewable, credential.duration),
		logIn(credential),
	)
}

func (a *application) readsItAgain() error {
	again, err := a.read("database/creds/shop")
	if err != nil {
		return err
	}
	return want("the same credential and lease", same(again, a.credential), again.leaseID)
}

func (a *application) renewsLease() error {
	found, err := a.lookup(a.credential.leaseID)
	if err != nil {
		return err
	}
	renewed, err := a.renew(a.credential.leaseID)
	if err != nil {
		return err
	}
	return errors.Join(
		want("its id", found.text("id") == a.credential.leaseID, found.data),
		want("an issue time", found.text("issue_time") != "", found.data),
		want("the lease renewed", renewed.leaseID == a.credential.leaseID, renewed.leaseID),
		want("a bounded, renewable lease", lives(renewed) && renewed.renewable, renewed.duration),
	)
}

func (a *application) knowsNoOtherLease() error {
	const other = "database/creds/shop/0123456789abcdef"
	_, lookup := a.lookup(other)
	_, renew := a.renew(other)
	for _, err := range []error{lookup, renew} {
		if a.status(err) != 400 {
			return fmt.Errorf("got %v", err)
		}
	}
	return nil
}

func (a *application) revokesLease() error {
	if err := a.revoke(a.credential.leaseID); err != nil {
		return err
	}
	_, err := a.lookup(a.credential.leaseID)
	return errors.Join(want("no lease left", a.status(err) == 400, err), isGone(a.credential))
}

// watches does what the watcher's documentation asks for: when it gives up, read again.
func (a *application) watches() error {
	first, err := a.read("database/creds/watched")
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(context.Background(), watched)
	defer cancel()
	held, renewals, gaveUp := first, 0, 0
	for ctx.Err() == nil {
		durations, err := a.watch(ctx, held)
		if err != nil {
			return err
		}
		renewals += len(durations)
		if ctx.Err() != nil {
			break
		}
		gaveUp++
		if held, err = a.read("database/creds/watched"); err != nil {
			return err
		}
		if !same(held, first) {
			return errors.New("the credential was replaced")
		}
	}
	fmt.Printf("note %d renewals by the watcher in %v; it gave up %d times and read again\n",
		renewals, watched, gaveUp)
	return errors.Join(
		want("the first renewal and one a period later", renewals >= 2, renewals),
		// A renewal that only told the rest of the lease would end the watcher.
		want("a watcher that never gives up", gaveUp == 0, gaveUp),
		logIn(first),
		a.revoke(held.leaseID),
		isGone(first),
	)
}

func want(what string, holds bool, got any) error {
	if holds {
		return nil
	}
	return fmt.Errorf("want %s, got %v", what, got)
}

func lives(s *secret) bool { return s.duration > 0 && s.duration <= leaseSeconds }

func same(left, right *secret) bool {
	return left.leaseID == right.leaseID && left.text("username") == right.text("username") &&
		left.text("password") == right.text("password")
}

// logIn opens a connection with the credential.
func logIn(credential *secret) error {
	source := fmt.Sprintf("host=127.0.0.1 port=%s dbname=postgres sslmode=disable user='%s' password='%s'",
		os.Getenv("PGPORT"), credential.text("username"), credential.text("password"))
	database, err := sql.Open("postgres", source)
	if err != nil {
		return err
	}
	defer database.Close()
	return database.Ping()
}

func isGone(credential *secret) error {
	for deadline := time.Now().Add(soon); time.Now().Before(deadline); time.Sleep(50 * time.Millisecond) {
		if logIn(credential) != nil {
			return nil
		}
	}
	return fmt.Errorf("the PostgreSQL role still logs in after %v", soon)
}
