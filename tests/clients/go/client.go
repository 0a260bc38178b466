package main

import (
	"context"
	"net/http"
	"net/http/httputil"
	"os"
	"sync"
)

// client is what both Go clients can do; their types differ, so each has an adapter.
type client interface {
	health() (version string, err error)
	// self is the data of the token's lookup.
	self() (map[string]any, error)
	// kv1 and kv2 use the client's own KV helpers; version 0 is the newest.
	kv1(path string) (map[string]any, error)
	kv2(path string, version int) (data map[string]any, got int, err error)
	// read is a plain logical read; it returns nil for a plain 404.
	read(path string) (*secret, error)
	write(path string) error
	lookup(leaseID string) (*secret, error)
	renew(leaseID string) (*secret, error)
	revoke(leaseID string) error
	// watch runs the client's LifetimeWatcher until it gives up on the lease or ctx ends, and
	// tells the lease duration of every renewal.
	watch(ctx context.Context, of *secret) (durations []int, err error)
	// isNotFound recognises the KV helpers' own error.
	isNotFound(err error) bool
	// status is that of the client's own error type, or 0.
	status(err error) int
}

// secret is the part of both clients' Secret that matters here.
type secret struct {
	leaseID   string
	duration  int
	renewable bool
	data      map[string]any
}

func (s *secret) text(key string) string {
	text, _ := s.data[key].(string)
	return text
}

// recorder keeps every reply as it came, headers included.
type recorder struct {
	inner   http.RoundTripper
	mutex   sync.Mutex
	replies *os.File
}

// wrap puts the recorder between an HTTP client and its transport.
func (r *recorder) wrap(client *http.Client) {
	r.inner = client.Transport
	client.Transport = r
}

func (r *recorder) RoundTrip(request *http.Request) (*http.Response, error) {
	reply, err := r.inner.RoundTrip(request)
	if err != nil {
		return nil, err
	}
	dump, err := httputil.DumpResponse(reply, true)
	if err != nil {
		return nil, err
	}
	r.mutex.Lock()
	defer r.mutex.Unlock()
	_, err = r.replies.Write(dump)
	return reply, err
}
