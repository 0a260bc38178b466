//! The corpus: every shape of a cgroup path that runtimes make or forgers try, with its answer.

use proptest::prelude::*;

use super::*;
use crate::identity::cgroup::{Placement, placement};

const ID: &str = "4f3c0e6c2f7b8d9e0a1b2c3d4e5f60718293a4b5c6d7e8f90123456789abcdef";
const CORPUS: &str = include_str!("../../tests/identity/corpus.toml");

#[derive(serde::Deserialize)]
#[serde(deny_unknown_fields)]
struct Corpus {
    pod: String,
    other: String,
    container: String,
    case: Vec<Case>,
}

#[derive(serde::Deserialize)]
#[serde(deny_unknown_fields)]
struct Case {
    name: String,
    root: Option<String>,
    /// The agent's own cgroup file, to learn the root from.
    own: Option<String>,
    /// Process 1's, where the agent has a cgroup namespace of its own.
    init: Option<String>,
    text: Vec<String>,
    /// `pod`, `other`, `host` or `nothing`.
    is: String,
}

impl Corpus {
    fn filled(&self, text: &str) -> String {
        let underscored = |uid: &str| uid.replace('-', "_");
        text.replace("{POD_}", &underscored(&self.pod))
            .replace("{OTHER_}", &underscored(&self.other))
            .replace("{POD}", &self.pod)
            .replace("{OTHER}", &self.other)
            .replace("{HEX32}", &self.pod.replace('-', ""))
            .replace("{ID}", &self.container)
    }

    fn kubelet(&self, case: &Case) -> Option<KubeletCgroup> {
        let other: PodUid = self.other.parse().unwrap();
        let learned = |own: &String| KubeletCgroup::learned(&self.filled(own), &other).unwrap();
        let configured = |root: &String| KubeletCgroup::configured(root).unwrap();
        let kubelet = case.own.as_ref().map(learned).or(case.root.as_ref().map(configured))?;
        match &case.init {
            Some(init) => Some(kubelet.seen_from(init, other)),
            None => Some(kubelet),
        }
    }
}

#[test]
fn every_shape_of_the_corpus_has_its_answer() {
    let corpus: Corpus = toml::from_str(CORPUS).unwrap();
    let mut wrong = Vec::new();
    for case in &corpus.case {
        let kubelet = corpus.kubelet(case);
        for text in &case.text {
            let text = corpus.filled(text);
            let found = match placement(&text, kubelet.as_ref()) {
                Placement::Pod { uid, .. } if uid.as_str() == corpus.pod => "pod",
                Placement::Pod { uid, .. } if uid.as_str() == corpus.other => "other",
                Placement::Pod { .. } => "a third pod",
                Placement::Host => "host",
                Placement::Container { .. } => "nothing",
            };
            if found != case.is {
                wrong.push(format!("{}: {text:?} is {found}, not {}", case.name, case.is));
            }
        }
    }
    assert!(wrong.is_empty(), "\n{}", wrong.join("\n"));
    assert!(corpus.case.iter().filter(|case| case.is == "pod").count() >= 12, "genuine shapes");
}

#[test]
fn a_root_is_learned_from_the_agents_own_pod_or_not_at_all() {
    let own: PodUid = "7d2c5a0e-3f1b-4c8d-9e6f-0a1b2c3d4e5f".parse().unwrap();
    let own_ = slice_uid(&own);
    let learned = |text: String| KubeletCgroup::learned(&text, &own);
    let roots = [
        ("/kubepods", format!("0::/kubepods/besteffort/pod{own}/{ID}\n")),
        ("/a/kubepods", format!("3:cpu:/\n2:pids:/a/kubepods/pod{own}/{ID}\n")),
        (
            "/kubepods.slice",
            format!("0::/kubepods.slice/kubepods-pod{own_}.slice/crio-{ID}.scope\n"),
        ),
    ];
    for (root, text) in roots {
        let kubelet = learned(text).unwrap();
        assert_eq!(kubelet.root, root);
        assert_eq!(kubelet.hierarchies.len(), 1);
    }
    assert_eq!(learned("0::/\n".to_owned()), Err(KubeletCgroupError::PrivateNamespace));
    let disagreeing =
        format!("2:pids:/a/kubepods/pod{own}/{ID}\n1:cpu:/b/kubepods/pod{own}/{ID}\n");
    let beside = format!("0::/kubepods/pod{}/{ID}\n", own.as_str().replace('7', "8"));
    let elsewhere = format!("0::/docker/{ID}/pod{own}\n");
    for text in [disagreeing, beside, elsewhere, "nonsense".to_owned()] {
        assert!(matches!(learned(text.clone()), Err(KubeletCgroupError::NotOwnPod(_))), "{text}");
    }
}

#[test]
fn only_a_kubelets_directory_can_be_configured() {
    for good in ["/kubepods", "/kubelet/kubepods", "/kubepods.slice", "/k.slice/k-kubepods.slice"] {
        assert!(KubeletCgroup::configured(good).is_ok(), "{good}");
    }
    for bad in ["", "/", "kubepods", "/kubepods/", "/a/../kubepods", "/x", "/xkubepods.slice"] {
        assert_eq!(KubeletCgroup::configured(bad), Err(KubeletCgroupError::NotARoot), "{bad}");
    }
}

proptest! {
    /// Whatever an attacker makes inside its container, it stays its own pod or becomes nothing.
    #[test]
    fn nothing_below_a_pod_makes_it_another(
        deeper in "(/(kubepods(\\.slice)?|burstable|pod|container|[a-z0-9:._-]{1,20})){0,6}",
        victim in "[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}",
    ) {
        let kubelet = KubeletCgroup::configured("/kubepods").unwrap();
        let attacker = "00000000-3f1b-4c8d-9e6f-0a1b2c3d4e5f";
        let deeper = deeper.replace("pod/", &format!("pod{victim}/"));
        let text = format!("0::/kubepods/pod{attacker}/{ID}{deeper}\n");
        match placement(&text, Some(&kubelet)) {
            Placement::Pod { uid, .. } => prop_assert_eq!(uid.as_str(), attacker),
            Placement::Container { .. } => {}
            Placement::Host => prop_assert!(false, "the host"),
        }
    }

    /// Nothing outside of the kubelet's root is ever a pod.
    #[test]
    fn nothing_outside_the_root_is_a_pod(
        above in "/[a-z]{1,8}(\\.slice)?",
        qos in "(/burstable|/besteffort)?",
    ) {
        prop_assume!(above != "/kubepods");
        let kubelet = KubeletCgroup::configured("/kubepods").unwrap();
        let pod = "7d2c5a0e-3f1b-4c8d-9e6f-0a1b2c3d4e5f";
        for middle in ["", "/kubepods"] {
            let text = format!("0::{above}{middle}{qos}/pod{pod}/{ID}\n");
            let placed = matches!(placement(&text, Some(&kubelet)), Placement::Pod { .. });
            prop_assert!(!placed);
        }
    }
}

#[test]
fn nothing_that_was_placed_before_holds_in_another_namespace() {
    let kubelet = KubeletCgroup::configured("/kubepods").unwrap();
    let is_judged = |kubelet: &KubeletCgroup| {
        let mut judged = false;
        kubelet.placed().or_judge("0::/\n", || {
            judged = true;
            Placement::Host
        });
        judged
    };
    assert!(is_judged(&kubelet) && !is_judged(&kubelet));
    let pod = "7d2c5a0e-3f1b-4c8d-9e6f-0a1b2c3d4e5f".parse().unwrap();
    assert!(is_judged(&kubelet.seen_from("0::/../../..\n", pod)));
}
