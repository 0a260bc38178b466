// Command clients takes an official Go client through what an application does with a Vault,
// against the socket that VAULT_ADDR names.
//
//	clients vault|openbao
//
// Every check is one line, "ok NAME" or "FAILED NAME: reason". All replies are appended to the
// file REPLIES; PostgreSQL is asked on port PGPORT.
package main

import (
	"fmt"
	"os"
)

func main() {
	if len(os.Args) != 2 {
		fail("usage: clients vault|openbao")
	}
	connect, known := map[string]func(*recorder) (client, error){
		"vault":   newVault,
		"openbao": newOpenBao,
	}[os.Args[1]]
	if !known {
		fail("no client " + os.Args[1])
	}
	replies, err := os.OpenFile(os.Getenv("REPLIES"), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		fail(err.Error())
	}
	c, err := connect(&recorder{replies: replies})
	if err != nil {
		fail(err.Error())
	}
	if !run(&application{client: c}) {
		os.Exit(1)
	}
}

// run does all checks, also after a failed one.
func run(a *application) bool {
	good := true
	for _, check := range checks {
		if err := check.run(a); err != nil {
			fmt.Printf("FAILED %s: %v\n", check.name, err)
			good = false
			continue
		}
		fmt.Printf("ok %s\n", check.name)
	}
	return good
}

func fail(why string) {
	fmt.Fprintln(os.Stderr, "clients:", why)
	os.Exit(2)
}
