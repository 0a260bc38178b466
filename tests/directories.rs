//! The directories the agent makes on the way to files and sockets: its umask closes none of them.

mod support;

use std::os::unix::fs::PermissionsExt;
use std::time::Duration;

use support::agent::Agent;
use support::process::eventually;

const CONFIG: &str = r#"
[agent]
runtime_dir = "{dir}/run"
[sources.local]
kind = "local"
file = "{dir}/secrets.toml"
[[grants]]
name = "volume"
who = { volume = "web" }
paths = ["secret/data/**"]
[[volumes]]
name = "web"
path = "{dir}/run/volumes/below/web"
tmpfs = "existing"
[[volumes.items]]
secret = "secret/web"
"#;

#[test]
fn other_users_get_through_every_directory_on_the_way_except_the_operators_one() {
    let dir = tempfile::tempdir_in("/dev/shm").expect("a directory on tmpfs");
    let secrets = "[mounts.secret.secrets]\nweb = { token = \"t\" }\n";
    std::fs::write(dir.path().join("secrets.toml"), secrets).expect("write the source");
    let _agent = Agent::start(dir.path(), CONFIG);
    let token = dir.path().join("run/volumes/below/web/token");
    eventually(Duration::from_secs(10), "the file is there", || token.exists());
    let mode = |made: &str| {
        let metadata = dir.path().join(made).metadata().expect("it is there");
        metadata.permissions().mode() & 0o777
    };
    for made in ["run", "run/volumes", "run/volumes/below", "run/volumes/below/web"] {
        assert_eq!(mode(made), 0o755, "{made}");
    }
    assert_eq!(mode("run/operator"), 0o700);
}
