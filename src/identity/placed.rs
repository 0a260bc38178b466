//! Placements by the text that they were worked out of. The text is read anew for every connection;
//! only taking the same text apart again is saved, which costs as much as reading it.

use std::sync::{Mutex, PoisonError};

use hashbrown::HashMap;

use super::cgroup::Placement;

/// Texts remembered before all are forgotten: more than a node has containers.
const TEXTS_MAX: usize = 512;
/// Longest text remembered: that of a pod in 14 hierarchies has up to 3.4 KiB.
const TEXT_BYTES_MAX: usize = 4096;

/// What was worked out for one kubelet.
#[derive(Debug, Default)]
pub(super) struct Placed(Mutex<HashMap<Box<str>, Placement>>);

impl Placed {
    /// The placement that `text` has by `judge`, which must depend on nothing else.
    pub(super) fn or_judge(&self, text: &str, judge: impl FnOnce() -> Placement) -> Placement {
        if text.len() > TEXT_BYTES_MAX {
            return judge();
        }
        let known = || self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(placement) = known().get(text) {
            return placement.clone();
        }
        let placement = judge();
        let mut known = known();
        if known.len() >= TEXTS_MAX {
            known.clear();
        }
        known.insert(text.into(), placement.clone());
        placement
    }
}

/// A copy begins with nothing: what is in it can be worked out again.
impl Clone for Placed {
    fn clone(&self) -> Self {
        Self::default()
    }
}

/// What is remembered makes no difference.
impl PartialEq for Placed {
    fn eq(&self, _: &Self) -> bool {
        true
    }
}

impl Eq for Placed {}

#[cfg(test)]
mod tests {
    use super::*;

    fn judged(placed: &Placed, text: &str) -> bool {
        let mut judged = false;
        let placement = placed.or_judge(text, || {
            judged = true;
            Placement::Host
        });
        assert_eq!(placement, Placement::Host);
        judged
    }

    #[test]
    fn the_very_same_text_is_judged_once() {
        let placed = Placed::default();
        assert!(judged(&placed, "0::/kubepods/pod1\n"));
        assert!(!judged(&placed, "0::/kubepods/pod1\n"));
        for other in ["0::/kubepods/pod1", "0::/kubepods/pod1\n\n", "0::/kubepods/pod2\n", ""] {
            assert!(judged(&placed, other), "{other:?}");
        }
        assert!(judged(&placed.clone(), "0::/kubepods/pod1\n"));
    }

    #[test]
    fn what_is_remembered_is_bounded() {
        let placed = Placed::default();
        let longest = "x".repeat(TEXT_BYTES_MAX);
        assert!(judged(&placed, &longest) && !judged(&placed, &longest));
        let longer = "x".repeat(TEXT_BYTES_MAX + 1);
        assert!(judged(&placed, &longer) && judged(&placed, &longer));
        for number in 0..2 * TEXTS_MAX {
            judged(&placed, &number.to_string());
            assert!(placed.0.lock().unwrap().len() <= TEXTS_MAX);
        }
    }
}
