//! A node full of pods, each of which asks for everybody's secrets: nobody gets another's, by no
//! way, and nothing that opens Vault is in any answer, file, error, log or view.
//!
//! Agent and mounter are real, and so are the calls, the mounts and the tokens' signatures. Callers
//! run in cgroups as containers of their pods, so the kernel proves them as it does on a node; they
//! are in the host's mount namespace, so each reaches everybody's socket. Vault is a model that
//! knows what it handed out.

use std::collections::BTreeMap;
use std::sync::Mutex;

use futures_util::StreamExt;

use crate::callers::{Reply, ask};
use crate::cluster::Pod;
use crate::csi_driver::{CsiDriver, Refused};
use crate::leaks::{Viewer, leaks, names};
use crate::pod_cgroups::{container, placing};
use crate::pod_node::{PodNode, VAULT, files};
use crate::runtime;
use crate::upstream::Upstream;

const PODS: usize = 200;
/// To the next pod, in the next namespace where the number ends with 9.
const NEIGHBOUR: usize = 1;
/// To the pod of the same name, and with an account of the same name, in the next namespace.
const NAMESAKE: usize = 10;
/// To the pods whose secrets each pod asks for as files. All of them would take five minutes.
const FILES_OF: [usize; 10] = [NEIGHBOUR, 2, 7, NAMESAKE, 20, 33, 64, 100, 150, 199];
/// As many as the kubelet's calls at once, and pods that ask at once.
const AT_ONCE: usize = 8;
const CONFIG: &str = r#"
[limits]
requests_per_second_per_user = 1000000
upstream_per_second = 1000000
[audit]
lines_per_second_per_caller = 1000000
"#;
/// What a careless operator might write.
const EVERYTHING_TO_EVERYBODY: &str = r#"
[[grants]]
name = "careless"
who = { any_pod = true }
paths = ["secret/data/**"]
login = "agent"
"#;
/// gRPC's numbers.
const PERMISSION_DENIED: u32 = 7;
const UNAUTHENTICATED: u32 = 16;

struct Matrix {
    node: PodNode,
    upstream: Upstream,
    pods: Vec<Pod>,
    runtime: tokio::runtime::Runtime,
    seen: Mutex<Vec<Seen>>,
}

/// Something that somebody got to see.
struct Seen {
    owner: Option<usize>,
    names: Option<Vec<usize>>,
    way: &'static str,
    text: String,
}

impl Matrix {
    /// Ten accounts of the same names, and pods of the same names, in each namespace.
    fn start(pods: usize, grants: &str) -> Matrix {
        let all: Vec<[String; 3]> = (0..pods).map(names).collect();
        let accounts: Vec<_> = all.iter().map(|[n, account, _]| (&**n, &**account)).collect();
        let upstream = Upstream::start(&accounts);
        let pods = all.iter().map(|[namespace, account, pod]| Pod::new(namespace, pod, account));
        let config = [VAULT, CONFIG].concat().replace("{vault}", &upstream.vault.url());
        let node = PodNode::start("debug", &format!("{config}{grants}"));
        let (runtime, pods) = (runtime(), pods.collect());
        Matrix { node, upstream, pods, runtime, seen: Mutex::default() }
    }

    fn saw(&self, owner: Option<usize>, names: Option<&[usize]>, way: &'static str, text: &str) {
        let (names, text) = (names.map(<[usize]>::to_vec), text.to_owned());
        self.seen.lock().expect("what was seen").push(Seen { owner, names, way, text });
    }

    /// What leaked, of all that was seen.
    fn leaks(&self) -> Vec<String> {
        let (seen, owners) = (self.seen.lock().expect("what was seen"), self.upstream.owners());
        let found = seen.iter().flat_map(|Seen { owner, names, way, text }| {
            let viewer = Viewer { owner: *owner, names: names.as_deref() };
            let leaks = leaks(text, &owners, &viewer).into_iter();
            leaks.map(move |leak| format!("{way}, seen by {owner:?}: {leak}"))
        });
        found.collect()
    }

    /// How many texts were seen in each way.
    fn counts(&self) -> BTreeMap<&'static str, usize> {
        let mut counts = BTreeMap::new();
        for seen in self.seen.lock().expect("what was seen").iter() {
            *counts.entry(seen.way).or_default() += 1;
        }
        counts
    }

    fn neighbour(&self, number: usize) -> usize {
        self.further(number, NEIGHBOUR)
    }

    fn namesake(&self, number: usize) -> usize {
        self.further(number, NAMESAKE)
    }

    fn further(&self, number: usize, steps: usize) -> usize {
        (number + steps) % self.pods.len()
    }

    /// Makes calls for all pods, as many at once as a busy kubelet.
    fn call(&self, of: impl AsyncFn(CsiDriver, usize)) {
        self.runtime.block_on(async {
            let driver = self.node.driver().await;
            let calls = (0..self.pods.len()).map(|number| of(driver.clone(), number));
            futures_util::stream::iter(calls).buffer_unordered(AT_ONCE).collect::<()>().await;
        });
    }

    fn publish(&self) {
        self.call(async |driver, number| {
            let (pod, secrets) = (&self.pods[number], items(number));
            let files = driver.publish(pod, "files", &[("items", &secrets)]).await;
            files.expect("its own secrets");
            driver.publish(pod, "socket", &[("deliver", "socket")]).await.expect("a socket");
        });
        for (number, pod) in self.pods.iter().enumerate() {
            for (path, content) in files(&self.node.target(pod, "files")) {
                let text = format!("{}\n{}", path.display(), String::from_utf8_lossy(&content));
                self.saw(Some(number), Some(&[number]), "file", &text);
            }
        }
    }

    /// Volumes with another pod's secret, and with another pod's token; their error texts.
    fn refused(&self) -> BTreeMap<u32, usize> {
        let codes = Mutex::new(BTreeMap::new());
        let refused = |number: usize, other: usize, outcome: Result<(), Refused>| {
            let refused = outcome.expect_err("not its own");
            *codes.lock().expect("codes").entry(refused.code).or_default() += 1;
            self.saw(Some(number), Some(&[number, other]), "gRPC error", &refused.message);
        };
        self.call(async |driver, number| {
            let pod = &self.pods[number];
            for other in FILES_OF.map(|steps| self.further(number, steps)) {
                let theirs = items(other);
                let outcome = driver.publish(pod, "theirs", &[("items", &theirs)]).await;
                refused(number, other, outcome);
            }
            for other in [self.neighbour(number), self.namesake(number)] {
                let (ours, tokens) = (items(number), self.pods[other].tokens());
                let ours = [("items", &*ours)];
                refused(number, other, driver.publish_with(pod, "stolen", &ours, tokens).await);
            }
        });
        codes.into_inner().expect("codes")
    }

    /// Every pod asks on its own socket, and at its neighbour's; statuses of the former.
    fn ask_all(&self) -> BTreeMap<(&'static str, u16), usize> {
        let statuses = Mutex::new(BTreeMap::new());
        let numbers: Vec<usize> = (0..self.pods.len()).collect();
        let (numbers, statuses_) = (numbers.as_slice(), &statuses);
        std::thread::scope(|scope| {
            for first in 0..AT_ONCE {
                scope.spawn(move || {
                    for number in numbers.iter().skip(first).step_by(AT_ONCE) {
                        for (way, status) in self.ask_as(*number) {
                            *statuses_.lock().unwrap().entry((way, status)).or_default() += 1;
                        }
                    }
                });
            }
        });
        statuses.into_inner().expect("statuses")
    }

    fn ask_as(&self, number: usize) -> Vec<(&'static str, u16)> {
        let (neighbour, namesake) = (self.neighbour(number), self.namesake(number));
        let mut asked = Vec::new();
        for other in 0..self.pods.len() {
            let way = if other == number { "own secret" } else { "secret" };
            asked.push((way, other, format!("/v1/{}", secret(other))));
        }
        // Again, from the memory of what was decided.
        asked.push(("own secret", number, format!("/v1/{}", secret(number))));
        asked.push(("secret", neighbour, format!("/v1/{}", secret(neighbour))));
        asked.push(("own lease", number, format!("/v1/{}", database(number))));
        asked.push(("lease", neighbour, format!("/v1/{}", database(neighbour))));
        asked.push(("lease", namesake, format!("/v1/{}", database(namesake))));
        for path in VIEWS {
            asked.push(("view", number, (*path).to_owned()));
        }
        for other in [number, neighbour, namesake] {
            let path = format!("/agent/v1/explain?path={}", secret(other));
            asked.push(("explain", other, path));
            asked.push(("mounts", other, format!("/v1/sys/internal/ui/mounts/{}", secret(other))));
        }
        let paths: Vec<String> = asked.iter().map(|(_, _, path)| path.clone()).collect();
        let replies = self.reach(number, number, &paths);
        let mut seen = Vec::new();
        for ((way, other, _), Reply { status, text }) in asked.into_iter().zip(replies) {
            seen.push((way, status));
            self.saw(Some(number), Some(&[number, other]), way, &text);
        }
        // At a door that is another pod's nobody gets anything.
        let paths = [secret(number), secret(neighbour)].map(|path| format!("/v1/{path}"));
        for Reply { status, text } in self.reach(number, neighbour, &paths) {
            seen.push(("other door", status));
            self.saw(None, Some(&[number, neighbour]), "other door", &text);
        }
        seen
    }

    /// Asks as one pod on the socket of one.
    fn reach(&self, number: usize, door: usize, paths: &[String]) -> Vec<Reply> {
        let cgroup = container(&placing(), &self.pods[number].uid);
        ask(cgroup, &self.node.target(&self.pods[door], "socket"), paths)
    }

    /// What operators see, and what is written down: logs, audit lines, records of volumes.
    fn look_around(&self) {
        let own = secret(0);
        for path in VIEWS {
            let answer = self.node.agent.operator("GET", path, None);
            self.saw(None, None, "operator", &format!("{:?} {}", answer.headers, answer.body));
        }
        self.saw(None, None, "operator", &self.node.agent.explain(&own).to_string());
        for process in [&self.node.agent.process, &self.node.mounter] {
            self.saw(None, None, "log", &process.stdout());
            self.saw(None, None, "log", &process.stderr());
        }
        for (path, content) in files(&self.node.dir.path().join("run")) {
            let text = format!("{}\n{}", path.display(), String::from_utf8_lossy(&content));
            self.saw(None, None, "record", &text);
        }
    }

    /// The fewest of its own values that a pod has seen: fewer than it read, and the test is blind.
    /// There may be more of them: after a denial the agent logs in beside, to see whether the role
    /// has changed, and replaces leases of the session before it in time.
    fn seen_by_least(&self) -> usize {
        let seen = self.seen.lock().expect("what was seen");
        let mut values = vec![0; self.pods.len()];
        for (value, owner) in self.upstream.owners() {
            let mut own = seen.iter().filter(|seen| seen.owner == Some(owner));
            values[owner] += usize::from(own.any(|seen| seen.text.contains(&value)));
        }
        values.into_iter().min().unwrap_or(0)
    }
}

/// What workloads may ask about themselves.
const VIEWS: [&str; 7] = [
    "/agent/v1/status",
    "/agent/v1/leases",
    "/agent/v1/events",
    "/agent/v1/metrics",
    "/agent/v1/health/ready",
    "/v1/auth/token/lookup-self",
    "/v1/sys/health",
];

fn secret(number: usize) -> String {
    let [namespace, account, _] = names(number);
    format!("secret/data/{namespace}/{account}")
}

fn database(number: usize) -> String {
    let [namespace, account, _] = names(number);
    format!("database/creds/{namespace}-{account}")
}

fn items(number: usize) -> String {
    let path = secret(number).replace("/data/", "/");
    format!("- secret: {path}\n- secret: {}\n  path: database.json\n", database(number))
}

#[test]
fn two_hundred_pods_ask_for_two_hundred_secrets_and_each_gets_its_own() {
    let matrix = Matrix::start(PODS, "");
    matrix.publish();
    let codes = matrix.refused();
    assert_eq!(
        codes,
        [(PERMISSION_DENIED, FILES_OF.len() * PODS), (UNAUTHENTICATED, 2 * PODS)].into()
    );
    let statuses = matrix.ask_all();
    matrix.look_around();
    println!("{:?}\n{statuses:?}", matrix.counts());

    assert_eq!(matrix.leaks(), Vec::<String>::new());
    // Its secret, and a user with a password in the files and on the socket.
    assert!(matrix.seen_by_least() >= 5);
    let of = |way| -> Vec<_> { statuses.iter().filter(|((w, _), _)| *w == way).collect() };
    assert_eq!(of("own secret"), [(&("own secret", 200), &(2 * PODS))]);
    assert_eq!(of("own lease"), [(&("own lease", 200), &PODS)]);
    assert_eq!(of("secret"), [(&("secret", 403), &(PODS * PODS))]);
    assert_eq!(of("lease"), [(&("lease", 403), &(2 * PODS))]);
    assert_eq!(of("other door"), [(&("other door", 403), &(2 * PODS))]);
}

#[test]
fn a_policy_that_gives_everything_to_everybody_is_seen_to_leak() {
    const FEW: usize = 6;
    let matrix = Matrix::start(FEW, EVERYTHING_TO_EVERYBODY);
    matrix.publish();
    matrix.ask_all();
    let leaks = matrix.leaks();
    let of = |way: &str| leaks.iter().filter(|leak| leak.starts_with(way)).count();
    assert_eq!(of("secret, seen by"), FEW * FEW, "{leaks:#?}");
}
