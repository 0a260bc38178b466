//! Ordinary work in line for budget: who has some takes turns, one piece of work each; what one has
//! is done in its order.

use std::collections::BTreeMap;

use crate::domain::{ConsumerId, LoginIdentity};

/// In whose turn work is done.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Party {
    /// A consumer's own: what it reads, and what it has made upstream.
    Consumer(ConsumerId),
    /// What a login identity's consumers need in common: its session, kinds of mounts.
    Login(LoginIdentity),
}

/// A place in the line: the round in which it is served, and when it was given.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Place {
    round: u64,
    number: u64,
}

/// The line. In each round each party is served once; who comes anew is served in the next one.
pub(super) struct Turns<T> {
    /// The round of what was served last.
    round: u64,
    next_number: u64,
    line: BTreeMap<Place, (Party, T)>,
    /// Who has work in the line.
    parties: BTreeMap<Party, Share>,
}

/// What one party has in the line.
#[derive(Debug, Clone, Copy)]
struct Share {
    last_round: u64,
    count: usize,
}

impl<T> Turns<T> {
    pub(super) fn new() -> Self {
        Self { round: 0, next_number: 0, line: BTreeMap::new(), parties: BTreeMap::new() }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.line.is_empty()
    }

    /// Puts work at the end of its party's.
    pub(super) fn push(&mut self, party: Party, work: T) -> Place {
        let round = self.next_round(&party);
        self.put(round, party, work)
    }

    /// Another party wants the same work: it is done in the earlier of both turns.
    pub(super) fn also_for(&mut self, place: Place, party: &Party) -> Place {
        let round = self.next_round(party);
        if round >= place.round {
            return place;
        }
        match self.take(place) {
            Some(work) => self.put(round, party.clone(), work),
            None => place,
        }
    }

    /// Of several parties the one whose turn comes first; the first named of equals.
    pub(super) fn soonest(&self, parties: impl Iterator<Item = Party>) -> Option<Party> {
        let mut best: Option<(u64, Party)> = None;
        for party in parties {
            let round = self.next_round(&party);
            if best.as_ref().is_none_or(|(least, _)| round < *least) {
                best = Some((round, party));
            }
            if round == self.round + 1 {
                break;
            }
        }
        best.map(|(_, party)| party)
    }

    /// The work whose turn it is.
    pub(super) fn front(&self) -> Option<&T> {
        self.line.first_key_value().map(|(_, (_, work))| work)
    }

    /// Its place.
    pub(super) fn front_place(&self) -> Option<Place> {
        self.line.first_key_value().map(|(place, _)| *place)
    }

    /// Takes the work whose turn it is.
    pub(super) fn pop(&mut self) -> Option<T> {
        let place = *self.line.first_key_value()?.0;
        self.round = place.round;
        self.take(place)
    }

    /// Takes work out of turn.
    pub(super) fn take(&mut self, place: Place) -> Option<T> {
        let (party, work) = self.line.remove(&place)?;
        if let Some(share) = self.parties.get_mut(&party) {
            share.count -= 1;
            if share.count == 0 {
                self.parties.remove(&party);
            }
        }
        Some(work)
    }

    /// All of the line, in turn.
    pub(super) fn iter(&self) -> impl Iterator<Item = (Place, &T)> {
        self.line.iter().map(|(place, (_, work))| (*place, work))
    }

    /// The round in which a party's next work is served.
    fn next_round(&self, party: &Party) -> u64 {
        self.parties.get(party).map_or(self.round, |share| share.last_round.max(self.round)) + 1
    }

    fn put(&mut self, round: u64, party: Party, work: T) -> Place {
        let place = Place { round, number: self.next_number };
        self.next_number += 1;
        let share = self.parties.entry(party.clone()).or_insert(Share { last_round: 0, count: 0 });
        share.last_round = round;
        share.count += 1;
        self.line.insert(place, (party, work));
        place
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn party(uid: u32) -> Party {
        Party::Consumer(ConsumerId::host_user(uid))
    }

    fn drain(turns: &mut Turns<&'static str>) -> Vec<&'static str> {
        std::iter::from_fn(|| turns.pop()).collect()
    }

    #[test]
    fn parties_take_turns_and_each_is_served_in_its_own_order() {
        let mut turns = Turns::new();
        for work in ["a1", "a2", "a3", "a4"] {
            turns.push(party(1), work);
        }
        turns.push(party(2), "b1");
        turns.push(party(2), "b2");
        assert_eq!(turns.pop(), Some("a1"));
        // Who comes anew waits for one round, however long the others' lines are.
        turns.push(party(3), "c1");
        assert_eq!(drain(&mut turns), ["b1", "a2", "b2", "c1", "a3", "a4"]);
        assert!(turns.is_empty() && turns.parties.is_empty());
    }

    #[test]
    fn who_asks_again_and_again_for_one_thing_gets_no_more_than_a_turn_each_round() {
        let mut turns = Turns::new();
        for work in ["a1", "a2", "a3"] {
            turns.push(party(1), work);
        }
        let mut served = Vec::new();
        for _ in 0..4 {
            turns.push(party(2), "b");
            served.extend([turns.pop().unwrap(), turns.pop().unwrap_or_default()]);
        }
        assert_eq!(served, ["a1", "b", "a2", "b", "a3", "b", "b", ""]);
    }

    #[test]
    fn work_for_two_parties_is_done_once_in_the_earlier_turn() {
        let mut turns = Turns::new();
        let places: Vec<_> = ["a1", "a2", "a3"].map(|work| turns.push(party(1), work)).into();
        let moved = turns.also_for(places[2], &party(2));
        assert!(moved < places[1]);
        // Asked for again, and by one whose turn comes later: it stays.
        assert_eq!(turns.also_for(moved, &party(2)), moved);
        assert_eq!(turns.also_for(places[0], &party(1)), places[0]);
        assert_eq!(drain(&mut turns), ["a1", "a3", "a2"]);
        assert!(turns.parties.is_empty());
    }

    #[test]
    fn the_party_with_the_shortest_line_is_the_soonest() {
        let mut turns = Turns::new();
        assert_eq!(turns.soonest(std::iter::empty()), None);
        for (uid, work) in [(1, "a1"), (1, "a2"), (2, "b1")] {
            turns.push(party(uid), work);
        }
        assert_eq!(turns.soonest([1, 2].map(party).into_iter()), Some(party(2)));
        assert_eq!(turns.soonest([1, 3, 2].map(party).into_iter()), Some(party(3)));
    }
}
