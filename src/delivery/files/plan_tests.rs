//! Every case of the plan, without a disk.

use zeroize::Zeroizing;

use super::*;
use crate::delivery::files::config::ItemContent;
use crate::delivery::files::testing::own_files;

fn item(secret: &str, file: Option<&str>) -> ItemConfig {
    let secret = secret.parse().unwrap();
    let content = match file {
        Some(file) => ItemContent::Value { secret, file: file.parse().unwrap() },
        None => ItemContent::EveryKey { secret },
    };
    ItemConfig { source: "vault".parse().unwrap(), content, ownership: own_files(0o440) }
}

/// Item 1 writes `a`, item 2 one file per key.
fn items() -> [ItemConfig; 2] {
    [item("secret/a#x", Some("a")), item("secret/b", None)]
}

fn files(files: &[(&str, &str)]) -> Vec<RenderedFile> {
    let file = |(name, content): &(&str, &str)| RenderedFile {
        name: name.parse().unwrap(),
        content: Zeroizing::new(content.as_bytes().to_vec()),
        ownership: own_files(0o440),
    };
    files.iter().map(file).collect()
}

fn failed() -> Wanted {
    Wanted::Failed(RenderError::Missing("secret/b".parse().unwrap()))
}

/// What an earlier process left: `a`, and `k1` and `k2` from the second item.
fn present(prints: &Prints) -> Present {
    let files: BTreeMap<_, _> = files(&[("a", "1"), ("k1", "2"), ("k2", "3")])
        .into_iter()
        .map(|file| (file.name, prints.of(&file.content, file.ownership)))
        .collect();
    let owned = adopt_owned(&items(), files.keys());
    Present {
        revision: RevisionName::recognise("..2026_05_01_10_00_00.00000001").unwrap(),
        files,
        owned,
    }
}

/// The plan as text: `wait`, `unchanged`, or `+written =carried`; and whether it alarms.
fn check(wanted: [Wanted; 2], on_volume: bool, expected: &str, alarms: bool) {
    let prints = Prints::default();
    let present = on_volume.then(|| present(&prints));
    let plan = plan(&items(), wanted.into(), present.as_ref(), &prints);
    let text = match plan.step {
        Step::Wait => "wait".to_owned(),
        Step::Unchanged { .. } => "unchanged".to_owned(),
        Step::Publish { files, prints, .. } => {
            assert_eq!(files.len(), prints.len());
            let one = |file: &PlannedFile| match file {
                PlannedFile::Write(file) => format!("+{}", file.name),
                PlannedFile::Carry(name) => format!("={name}"),
            };
            files.iter().map(one).collect::<Vec<_>>().join(" ")
        }
    };
    assert_eq!((text.as_str(), plan.alarm.is_some()), (expected, alarms), "{:?}", plan.alarm);
}

#[test]
fn a_first_revision_is_complete_or_not_there() {
    let a = || Wanted::Show(files(&[("a", "1")]));
    let b = || Wanted::Show(files(&[("k1", "2")]));
    check([a(), b()], false, "+a +k1", false);
    check([a(), Wanted::Carry], false, "wait", false);
    check([a(), Wanted::Keep(files(&[("k1", "2")]))], false, "wait", false);
    check([a(), Wanted::Remove], false, "wait", false);
    check([a(), failed()], false, "wait", true);
}

#[test]
fn equal_content_and_ownership_mean_no_new_revision() {
    let same = Wanted::Show(files(&[("k1", "2"), ("k2", "3")]));
    check([Wanted::Keep(files(&[("a", "1")])), same], true, "unchanged", false);
    check([Wanted::Carry, Wanted::Carry], true, "unchanged", false);
    let mut other_mode = files(&[("a", "1")]);
    other_mode[0].ownership.mode = 0o400;
    check([Wanted::Show(other_mode), Wanted::Carry], true, "+a =k1 =k2", false);
}

#[test]
fn an_item_without_a_value_keeps_its_files_while_others_move_on() {
    check([Wanted::Show(files(&[("a", "9")])), Wanted::Carry], true, "+a =k1 =k2", false);
    check([Wanted::Carry, Wanted::Show(files(&[("k1", "9")]))], true, "=a +k1", false);
}

#[test]
fn a_removed_item_takes_only_its_own_files_along() {
    check([Wanted::Carry, Wanted::Remove], true, "=a", false);
    check([Wanted::Remove, Wanted::Carry], true, "=k1 =k2", false);
    check([Wanted::Remove, Wanted::Remove], true, "", false);
}

#[test]
fn a_set_that_cannot_be_rendered_stays_as_it_is_but_removals_happen() {
    check([Wanted::Show(files(&[("a", "9")])), failed()], true, "unchanged", true);
    check([Wanted::Remove, failed()], true, "=k1 =k2", true);
}

#[test]
fn two_items_with_one_name_hold_the_set_and_are_both_named() {
    let prints = Prints::default();
    let present = present(&prints);
    for name in ["a", "a/b"] {
        let wanted = vec![Wanted::Show(files(&[("a", "9")])), Wanted::Show(files(&[(name, "8")]))];
        let plan = plan(&items(), wanted, Some(&present), &prints);
        assert!(matches!(plan.step, Step::Unchanged { .. }), "{name}");
        let alarm = plan.alarm.unwrap();
        assert!(alarm.contains("'a'") && alarm.contains("every key of 'secret/b'"), "{alarm}");
    }
}
