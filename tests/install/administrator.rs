//! Who installs the product: a directory with what the README takes for granted.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::Path;
use std::process::Command;

use tempfile::TempDir;

use crate::support::kubernetes::User;
use crate::support::node::{ADDRESS, Node, SOON};
use crate::support::server_program;
use crate::support::vault::Vault;

/// A shell in a checkout, with `kubectl`, `helm` and `vault` set up for administrators.
pub struct Administrator {
    dir: TempDir,
    variables: Vec<(&'static str, String)>,
}

impl Administrator {
    pub fn new(node: &Node, vault: &Vault) -> Administrator {
        let dir = TempDir::with_prefix("administrator-").expect("create a directory");
        let bin = dir.path().join("bin");
        fs::create_dir(&bin).expect("create a directory");
        let link = |name: &str, to: &Path| symlink(to, bin.join(name)).expect("link a program");
        for (name, program) in [("kubectl", "kubectl"), ("helm", "helm"), ("vault", "vault-cli")] {
            link(name, &server_program(program));
        }
        link("secrets-broker", Path::new(env!("CARGO_BIN_EXE_secrets-broker")));
        let deploy = concat!(env!("CARGO_MANIFEST_DIR"), "/deploy");
        symlink(deploy, dir.path().join("deploy")).expect("link the checkout's directory");
        fs::copy(vault.ca_file(), dir.path().join("vault-ca.pem")).expect("copy Vault's CA");
        let text = |path: &Path| path.to_str().expect("a readable path").to_owned();
        let variables = vec![
            ("PATH", format!("{}:/usr/bin:/bin", text(&bin))),
            ("HOME", text(dir.path())),
            ("KUBECONFIG", text(&node.kubernetes.kubeconfig(User::Admin))),
            ("VAULT_ADDR", format!("https://{ADDRESS}:8200")),
            ("VAULT_CACERT", "vault-ca.pem".to_owned()),
            ("VAULT_TOKEN", vault.root_token.clone()),
        ];
        Administrator { dir, variables }
    }

    pub fn write(&self, name: &str, text: &str) {
        fs::write(self.dir.path().join(name), text).expect("write a file");
    }

    /// Runs lines as if they were pasted, returns what they print, and panics with all of it when
    /// one fails.
    pub fn paste(&self, lines: &str) -> String {
        // Some lines wait until something is there.
        let limit = SOON.as_secs().to_string();
        let mut shell = Command::new("timeout");
        shell
            .args([&limit, "bash", "-euo", "pipefail", "-c", lines])
            .current_dir(self.dir.path())
            .env_clear();
        shell.envs(self.variables.iter().map(|(name, value)| (name, value)));
        let output = shell.output().expect("run bash");
        let [said, complained] = [output.stdout, output.stderr]
            .map(|bytes| String::from_utf8_lossy(&bytes).into_owned());
        assert!(output.status.success(), "{lines}\n{}\n{said}{complained}", output.status);
        said
    }
}
