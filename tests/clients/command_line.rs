//! `vault` and `bao` on the socket, as a person types them.

use std::cell::RefCell;
use std::process::Output;
use std::time::Duration;

use serde_json::Value;

use crate::report::Report;
use crate::rig::Rig;
use crate::support::process::eventually;

const SOON: Duration = Duration::from_secs(10);

/// Every command of one program, and all it printed.
struct Shell<'a> {
    rig: &'a Rig,
    program: &'a str,
    printed: RefCell<String>,
}

/// Runs all checks of one program.
pub(crate) fn run(rig: &Rig, report: &mut Report, program: &str) -> String {
    let shell = Shell { rig, program, printed: RefCell::default() };
    report.check("status and token lookup", || {
        assert_eq!(shell.json("status -format=json")["sealed"], false);
        let name = &shell.json("token lookup -format=json")["data"]["display_name"];
        assert!(name.as_str().is_some_and(|name| name.starts_with("uid:")), "{name}");
    });
    report.check("kv get of KV 2: path, -mount, -version, -field", || shell.kv2());
    report.check("kv get of KV 1: path and -mount", || {
        for arguments in ["kv/shop/web", "-mount=kv shop/web", "-mount=kv/ shop/web"] {
            let read = shell.json(&format!("kv get -format=json {arguments}"));
            assert_eq!(read["data"]["colour"], "blue", "{arguments}: {read}");
        }
    });
    report.check("read of an API path", || {
        let read = shell.json("read -format=json secret/data/shop/web");
        assert_eq!(read["data"]["data"]["colour"], "green");
    });
    report.check("a missing secret is 'No value found', exit code 2", || {
        for path in ["kv get secret/shop/missing", "kv get -mount=kv shop/missing"] {
            shell.refused(path, "No value found at");
        }
    });
    report.check("a denied secret is 'Code: 403', exit code 2", || {
        for path in [
            "kv get secret/private/web",
            "kv get -mount=secret private/web",
            "kv get kv/private/web",
            "read database/creds/private",
            "secrets list",
        ] {
            let said = shell.refused(path, "permission denied");
            // The preflight puts Vault's answer into words of its own.
            assert!(said.contains("Code: 403") || said.contains("preflight"), "{path}: {said}");
        }
    });
    report.check("a write is refused", || {
        shell.refused("write kv/shop/web colour=black", "Code: 405");
    });
    report.check("a database credential: read twice, lookup, renew, revoke", || shell.lease());
    shell.printed.into_inner()
}

impl Shell<'_> {
    fn kv2(&self) {
        for (arguments, colour) in [
            ("secret/shop/web", "green"),
            ("-mount=secret shop/web", "green"),
            ("-mount=secret -version=1 shop/web", "red"),
            ("-version=2 secret/shop/web", "green"),
        ] {
            let read = self.json(&format!("kv get -format=json {arguments}"));
            assert_eq!(read["data"]["data"]["colour"], colour, "{arguments}: {read}");
        }
        let field = self.done("kv get -field=colour secret/shop/web");
        assert_eq!(field.trim_end(), "green");
    }

    fn lease(&self) {
        let read = || self.json("read -format=json database/creds/shop");
        let credential = read();
        let text = |value: &Value| value.as_str().expect("a text").to_owned();
        let user = text(&credential["data"]["username"]);
        let password = text(&credential["data"]["password"]);
        let lease = text(&credential["lease_id"]);
        self.rig.bed.postgres.login(&user, &password).expect("the credential works");

        let again = read();
        assert_eq!((&again["data"], &again["lease_id"]), (&credential["data"], &lease.into()));
        let lease = text(&credential["lease_id"]);

        let found = self.json(&format!("lease lookup -format=json {lease}"));
        assert_eq!(found["data"]["id"], *lease);
        let renewed = self.json(&format!("lease renew -format=json -increment=3600 {lease}"));
        assert_eq!(renewed["lease_id"], *lease);
        assert!(renewed["lease_duration"].as_u64().is_some_and(|left| (1..=20).contains(&left)));

        self.done(&format!("lease revoke {lease}"));
        self.refused(&format!("lease lookup {lease}"), "invalid lease");
        eventually(SOON, "the PostgreSQL role is gone", || {
            self.rig.bed.postgres.login(&user, &password).is_err()
        });
    }

    fn json(&self, arguments: &str) -> Value {
        let printed = self.done(arguments);
        serde_json::from_str(&printed)
            .unwrap_or_else(|error| panic!("{arguments}: {error}: {printed}"))
    }

    /// What a command that succeeds prints.
    fn done(&self, arguments: &str) -> String {
        let output = self.output(arguments);
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{arguments}: {}: {said}", output.status);
        String::from_utf8_lossy(&output.stdout).into_owned()
    }

    /// What a command that ends with code 2 says, `why` among it.
    fn refused(&self, arguments: &str, why: &str) -> String {
        let output = self.output(arguments);
        let said = String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned();
        assert_eq!(output.status.code(), Some(2), "{arguments}: {said}");
        assert!(said.contains(why), "{arguments}: {said}");
        said
    }

    fn output(&self, arguments: &str) -> Output {
        let mut command = self.rig.client(self.program);
        let output = command.args(arguments.split(' ')).output().expect("run the command line");
        let text = [output.stdout.as_slice(), &output.stderr].concat();
        self.printed.borrow_mut().push_str(&String::from_utf8_lossy(&text));
        output
    }
}
