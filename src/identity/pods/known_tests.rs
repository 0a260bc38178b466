//! When a pod is known, leaving and gone, and what of that anybody notices.

use std::cell::Cell;

use super::*;
use crate::identity::pods::tests::{pod, uid};

fn at(seconds: u64) -> BootInstant {
    BootInstant::default() + Duration::from_secs(seconds)
}

fn listed(number: u8) -> Listed {
    Listed::Pod(pod(number, &[("app", "shop")]))
}

/// A directory that was told of these pods.
fn known(numbers: std::ops::Range<u8>) -> Known {
    let mut known = Known::default();
    assert!(known.list(numbers.map(listed).collect(), at(0)));
    known
}

fn leaving(known: &Known, number: u8) -> Option<bool> {
    match known.find(&uid(number)) {
        Some(Found::Pod(pod)) => Some(pod.leaving),
        _ => None,
    }
}

#[test]
fn only_what_somebody_could_notice_is_a_change() {
    let mut known = known(0..2);
    assert!(!known.list(vec![listed(0), listed(1)], at(1)), "the same list");
    assert!(!known.apply(listed(0)), "the same pod");
    assert!(known.apply(Listed::Pod(pod(0, &[("app", "web")]))), "another label");
    assert!(known.apply(listed(2)), "a new pod");
    assert!(known.apply(Listed::Pod(DirectoryPod { leaving: true, ..pod(1, &[("app", "shop")]) })));
    assert!(!known.delete(&uid(1), at(1)), "it was leaving already");
    assert!(!known.delete(&uid(9), at(1)), "nobody knew it");
    assert!(Known::default().list(Vec::new(), at(0)), "waiters learn that the list has come");
}

#[test]
fn a_deleted_pod_leaves_at_once_and_is_gone_when_the_node_says_so_too() {
    let table = [
        (Presence::Absent, 0, true),
        (Presence::Present, 0, false),
        (Presence::Present, LINGER.as_secs() + 1, false),
        (Presence::Unknown, LINGER.as_secs() - 1, false),
        (Presence::Unknown, LINGER.as_secs(), true),
    ];
    for (presence, after, gone) in table {
        let mut known = known(0..2);
        assert!(known.delete(&uid(0), at(10)));
        assert_eq!(leaving(&known, 0), Some(true));
        assert!(known.labels(&uid(0)).is_some(), "it keeps its labels while it may run");
        let changed = known.confirm(&|_| presence, at(10 + after));
        assert_eq!(changed, gone, "{presence:?} {after}");
        assert_eq!(known.find(&uid(0)) == Some(Found::Gone), gone, "{presence:?} {after}");
        assert_eq!(known.doubtful().is_empty(), gone);
        assert_eq!(leaving(&known, 1), Some(false), "the other one is not concerned");
    }
}

#[test]
fn a_deletion_that_is_told_again_does_not_start_its_time_anew() {
    let mut known = known(0..1);
    known.delete(&uid(0), at(0));
    known.delete(&uid(0), at(200));
    assert!(known.confirm(&|_| Presence::Unknown, at(LINGER.as_secs())));
}

#[test]
fn a_list_without_a_few_pods_deletes_them_and_one_without_most_waits_for_the_node() {
    // (known, still listed, whether the missing ones are doubted)
    let table =
        [(5, 4, false), (5, 3, false), (2, 0, false), (3, 0, true), (6, 3, false), (5, 2, true)];
    for (before, after, doubted) in table {
        let mut known = known(0..before);
        let changed = known.list((0..after).map(listed).collect(), at(1));
        assert_eq!(changed, !doubted, "{before} {after}");
        for number in after..before {
            assert_eq!(leaving(&known, number), Some(!doubted), "{before} {after}");
        }
        let later = at(2 * LINGER.as_secs());
        assert_eq!(known.confirm(&|_| Presence::Unknown, later), !doubted, "{before} {after}");
        if doubted {
            assert!(!known.confirm(&|_| Presence::Absent, later), "one look");
            assert!(!known.confirm(&|_| Presence::Present, later + ABSENT_FOR), "it came back");
            let again = later + 2 * ABSENT_FOR;
            assert!(!known.confirm(&|_| Presence::Absent, again));
            assert!(known.confirm(&|_| Presence::Absent, again + ABSENT_FOR));
        }
        assert_eq!(known.count(), usize::from(after));
    }
}

#[test]
fn pods_that_were_doubted_stay_so_in_the_next_short_list_and_come_back_unharmed() {
    let mut known = known(0..6);
    assert!(!known.list(vec![listed(0)], at(1)));
    assert!(!known.list(vec![listed(0)], at(2)), "not a few missing ones all of a sudden");
    assert!(!known.list((0..6).map(listed).collect(), at(3)));
    assert!(known.doubtful().is_empty());
    assert_eq!(leaving(&known, 5), Some(false));
}

#[test]
fn the_node_is_asked_about_pods_in_doubt_only() {
    let mut known = known(0..3);
    let asked = Cell::new(0);
    let ask = |asked_about: &PodUid| {
        assert_eq!(*asked_about, uid(1));
        asked.set(asked.get() + 1);
        Presence::Present
    };
    assert!(!known.confirm(&ask, at(1)));
    known.delete(&uid(1), at(1));
    assert!(!known.confirm(&ask, at(2)));
    assert_eq!(asked.get(), 1);
}

#[test]
fn the_kubelet_takes_a_pods_last_volume_away_when_nothing_of_it_runs() {
    let unknown = |_: &PodUid| Presence::Unknown;
    let mut known = known(0..1);
    for volume in ["a", "b"] {
        assert!(!known.published(&uid(0), volume));
    }
    known.delete(&uid(0), at(1));
    assert!(!known.confirm(&unknown, at(1)), "published volumes are no statement");
    known.unpublished(&uid(0), "a");
    known.unpublished(&uid(0), "never heard of");
    assert!(!known.confirm(&unknown, at(1)), "one volume is left");
    known.unpublished(&uid(0), "b");
    assert!(!known.confirm(&|_| Presence::Present, at(1)), "somebody sees it");
    assert!(known.confirm(&unknown, at(1)));
    assert_eq!(known.find(&uid(0)), Some(Found::Gone));
    assert!(known.published(&uid(0), "a"), "the kubelet would not publish for a pod that is gone");
    assert_eq!(known.find(&uid(0)), None);
}

#[test]
fn a_volume_that_is_published_again_takes_back_that_the_last_one_went() {
    let mut known = known(0..1);
    known.published(&uid(0), "a");
    known.unpublished(&uid(0), "a");
    known.published(&uid(0), "a");
    known.delete(&uid(0), at(1));
    assert!(!known.confirm(&|_| Presence::Unknown, at(1)));
}

#[test]
fn a_mass_disappearance_is_settled_pod_by_pod() {
    let mut known = known(0..4);
    for number in [1, 2] {
        known.published(&uid(number), "a");
        known.unpublished(&uid(number), "a");
    }
    assert!(!known.list(Vec::new(), at(1)), "doubted");
    let seen = |pod: &PodUid| if *pod == uid(2) { Presence::Present } else { Presence::Unknown };
    assert!(!known.confirm(&seen, at(1)));
    assert!(known.confirm(&seen, at(1) + ABSENT_FOR));
    let standing: Vec<_> = (0..4).map(|number| leaving(&known, number)).collect();
    assert_eq!(standing, [Some(false), None, Some(false), Some(false)]);
}

#[test]
fn a_pod_that_is_listed_again_is_back() {
    let mut known = known(0..1);
    known.delete(&uid(0), at(1));
    assert!(known.apply(listed(0)));
    assert_eq!(leaving(&known, 0), Some(false));
    known.delete(&uid(0), at(2));
    known.confirm(&|_| Presence::Absent, at(2));
    assert!(known.apply(listed(0)));
    assert_eq!(leaving(&known, 0), Some(false));
}

#[test]
fn static_pods_are_known_as_such_and_have_no_labels() {
    let mut known = Known::default();
    known.list(vec![Listed::Static(uid(0)), listed(1)], at(0));
    assert_eq!(known.find(&uid(0)), Some(Found::Static));
    assert_eq!(known.labels(&uid(0)), None);
    assert!(!known.delete(&uid(0), at(1)));
    assert!(known.confirm(&|_| Presence::Absent, at(1)));
}

#[test]
fn the_memory_of_gone_pods_is_bounded() {
    let mut known = Known::default();
    let uids: Vec<PodUid> =
        (0..=REMEMBERED_MAX).map(|number| format!("{number:08}").parse().unwrap()).collect();
    for uid in &uids {
        known.apply(Listed::Pod(DirectoryPod { uid: uid.clone(), ..pod(0, &[]) }));
        known.delete(uid, at(0));
        known.confirm(&|_| Presence::Absent, at(0));
    }
    assert_eq!(known.find(&uids[0]), None);
    assert_eq!(known.find(&uids[1]), Some(Found::Gone));
    assert_eq!(known.find(&uids[REMEMBERED_MAX]), Some(Found::Gone));
}
