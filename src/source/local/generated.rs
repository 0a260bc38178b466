//! Credentials that no server honours, and a ledger that ends their leases as Vault would.
//!
//! For development: renewal, rotation and expiry can be watched without Vault and a database.

use std::collections::{BTreeMap, BTreeSet};
use std::str::FromStr;
use std::time::Duration;

use zeroize::Zeroizing;

use crate::clock::BootInstant;
use crate::domain::{LeaseId, SecretBytes, SecretPath, Token};
use crate::source::{ErrorClass, LeaseTerms, SourceError};

/// Leases and sessions that may be live at once, each; a loop that mints must not eat all memory.
const LIVE_MAX: usize = 10_000;
/// Random characters at the end of a user name.
const USERNAME_RANDOM: usize = 10;

/// A role of a generated mount.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Role {
    pub(super) ttl: Duration,
    pub(super) max_ttl: Duration,
    /// Characters of a password.
    pub(super) length: usize,
    pub(super) alphabet: Alphabet,
    pub(super) username_prefix: String,
}

impl Role {
    /// Password lengths that make sense.
    pub(super) const LENGTHS: std::ops::RangeInclusive<usize> = 8..=256;

    /// Makes a user name and a password, as the JSON object of Vault's reply.
    pub(super) fn generate(&self, path: &SecretPath) -> Result<SecretBytes, SourceError> {
        let role = path.segments().last().unwrap_or_default();
        let suffix = Alphabet::alphanumeric().draw(USERNAME_RANDOM)?;
        let username = format!("{}{role}-{}", self.username_prefix, suffix.as_str());
        let password = self.alphabet.draw(self.length)?;
        // JSON needs two bytes for a character of these alphabets at most; the prefix may need six.
        let mut json = Vec::with_capacity(64 + 6 * username.len() + 2 * password.len());
        let written: serde_json::Result<()> = (|| {
            json.extend_from_slice(b"{\"password\":");
            serde_json::to_writer(&mut json, password.as_str())?;
            json.extend_from_slice(b",\"username\":");
            serde_json::to_writer(&mut json, &username)?;
            json.push(b'}');
            Ok(())
        })();
        written.expect("strings are written to memory");
        Ok(SecretBytes::new(json))
    }
}

impl Default for Role {
    fn default() -> Self {
        Self {
            ttl: Duration::from_secs(3600),
            max_ttl: Duration::from_secs(24 * 3600),
            length: 24,
            alphabet: Alphabet::alphanumeric(),
            username_prefix: "v-local-".to_owned(),
        }
    }
}

/// The characters a password is drawn from: visible ASCII, each once, at least two.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Alphabet(Vec<u8>);

/// Why an alphabet was refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error(
    "must be \"alphanumeric\", \"hex\", or at least two different visible ASCII characters, \
     each once"
)]
pub(super) struct AlphabetError;

impl FromStr for Alphabet {
    type Err = AlphabetError;

    fn from_str(text: &str) -> Result<Self, AlphabetError> {
        match text {
            "alphanumeric" => return Ok(Self::alphanumeric()),
            "hex" => return Ok(Self(b"0123456789abcdef".to_vec())),
            _ => {}
        }
        let different: BTreeSet<u8> = text.bytes().collect();
        let visible = text.bytes().all(|byte| byte.is_ascii_graphic());
        if !visible || different.len() != text.len() || different.len() < 2 {
            return Err(AlphabetError);
        }
        Ok(Self(text.bytes().collect()))
    }
}

impl Alphabet {
    fn alphanumeric() -> Self {
        Self((b'0'..=b'9').chain(b'A'..=b'Z').chain(b'a'..=b'z').collect())
    }

    /// Draws characters from the operating system's random bytes, each equally likely.
    fn draw(&self, length: usize) -> Result<Zeroizing<String>, SourceError> {
        // Bytes beyond the last full multiple would favour the first characters.
        let multiple = 256 - 256 % self.0.len();
        let mut drawn = Zeroizing::new(String::with_capacity(length));
        let mut random = Zeroizing::new([0; 64]);
        while drawn.len() < length {
            getrandom::fill(random.as_mut()).map_err(no_random)?;
            let usable = random.iter().map(|byte| usize::from(*byte)).filter(|n| *n < multiple);
            for number in usable.take(length - drawn.len()) {
                drawn.push(char::from(self.0[number % self.0.len()]));
            }
        }
        Ok(drawn)
    }
}

fn no_random(error: getrandom::Error) -> SourceError {
    let message = format!("the operating system gave no random bytes: {error}");
    SourceError::new(ErrorClass::Unreachable, message)
}

fn random_id() -> Result<u128, SourceError> {
    let mut bytes = [0; 16];
    getrandom::fill(&mut bytes).map_err(no_random)?;
    Ok(u128::from_ne_bytes(bytes))
}

/// The random end of a token or lease id, if it has the shape we give them.
fn parse_id(text: &str, separator: char) -> Option<(&str, u128)> {
    let (front, random) = text.rsplit_once(separator)?;
    let random = u128::from_str_radix(random, 16).ok()?;
    Some((front, random))
}

/// Sessions and leases of one source. They live in memory only: a restart ends them all.
#[derive(Default)]
pub(super) struct Ledger {
    sessions: BTreeSet<u128>,
    leases: BTreeMap<u128, Lease>,
}

/// A session known to be live.
#[derive(Clone, Copy)]
pub(super) struct Session(u128);

struct Lease {
    session: u128,
    path: SecretPath,
    issued_at: BootInstant,
    expires_at: BootInstant,
}

impl Ledger {
    /// Opens a session; its token works until [`Ledger::end_session`].
    pub(super) fn open_session(&mut self) -> Result<Token, SourceError> {
        if self.sessions.len() >= LIVE_MAX {
            return Err(full("sessions"));
        }
        let id = random_id()?;
        self.sessions.insert(id);
        Ok(Token::new(format!("local.{id:032x}").into_bytes())
            .expect("a dot, letters and digits are printable ASCII"))
    }

    /// Whether a token is of a live session, and which.
    pub(super) fn session(&self, token: &Token) -> Result<Session, SourceError> {
        parse_id(token.expose(), '.')
            .filter(|(front, id)| *front == "local" && self.sessions.contains(id))
            .map(|(_, id)| Session(id))
            .ok_or_else(|| {
                SourceError::new(
                    ErrorClass::TokenEnded,
                    "this session of the local source has ended",
                )
            })
    }

    /// Ends a session and all its leases.
    pub(super) fn end_session(&mut self, session: Session) {
        self.sessions.remove(&session.0);
        self.leases.retain(|_, lease| lease.session != session.0);
    }

    /// Gives a lease on new credentials.
    pub(super) fn issue(
        &mut self,
        session: Session,
        path: &SecretPath,
        role: &Role,
        now: BootInstant,
    ) -> Result<(LeaseId, LeaseTerms), SourceError> {
        if self.leases.len() >= LIVE_MAX {
            self.leases.retain(|_, lease| lease.expires_at > now);
        }
        if self.leases.len() >= LIVE_MAX {
            return Err(full("leases"));
        }
        let id = random_id()?;
        let lease = Lease {
            session: session.0,
            path: path.clone(),
            issued_at: now,
            expires_at: now + role.ttl,
        };
        self.leases.insert(id, lease);
        let terms = LeaseTerms { duration: role.ttl, renewable: true };
        Ok((LeaseId::new(format!("{path}/{id:032x}")), terms))
    }

    /// The path a live lease was given for.
    pub(super) fn path_of(
        &self,
        lease: &LeaseId,
        now: BootInstant,
    ) -> Result<SecretPath, SourceError> {
        let (_, lease) = self.live(lease, now).ok_or_else(lease_not_found)?;
        Ok(lease.path.clone())
    }

    /// Renews a live lease: `increment` (the role's `ttl` if zero) from now, cut at the role's
    /// `max_ttl` since it was issued.
    pub(super) fn renew(
        &mut self,
        lease: &LeaseId,
        role: &Role,
        increment: Duration,
        now: BootInstant,
    ) -> Result<LeaseTerms, SourceError> {
        let (id, live) = self.live(lease, now).ok_or_else(lease_not_found)?;
        let asked = if increment.is_zero() { role.ttl } else { increment };
        let left = now.until(live.issued_at + role.max_ttl);
        if left.is_zero() {
            let message = "past the max TTL, cannot renew";
            return Err(SourceError::new(ErrorClass::LeaseEnded, message));
        }
        let duration = asked.min(left);
        if let Some(lease) = self.leases.get_mut(&id) {
            lease.expires_at = now + duration;
        }
        Ok(LeaseTerms { duration, renewable: true })
    }

    /// Ends a lease. One that is over already is no error, as with Vault.
    pub(super) fn revoke(&mut self, lease: &LeaseId, now: BootInstant) {
        if let Some((id, _)) = self.live(lease, now) {
            self.leases.remove(&id);
        }
    }

    fn live(&self, lease: &LeaseId, now: BootInstant) -> Option<(u128, &Lease)> {
        let (path, id) = parse_id(lease.expose(), '/')?;
        let lease = self.leases.get(&id)?;
        (lease.path.as_str() == path && lease.expires_at > now).then_some((id, lease))
    }
}

fn lease_not_found() -> SourceError {
    SourceError::new(ErrorClass::LeaseEnded, "lease not found")
}

fn full(what: &str) -> SourceError {
    let message = format!("the local source has {LIVE_MAX} live {what}, its bound");
    SourceError::new(ErrorClass::InvalidRequest, message)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::Value;

    const START: BootInstant = BootInstant::from_nanos(1_000_000_000_000);

    fn seconds(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
    }

    fn role() -> Role {
        Role { ttl: seconds(20), max_ttl: seconds(60), ..Role::default() }
    }

    fn path() -> SecretPath {
        "database/creds/shop".parse().unwrap()
    }

    /// A ledger with one lease given at [`START`].
    fn ledger() -> (Ledger, Session, LeaseId) {
        let mut ledger = Ledger::default();
        let token = ledger.open_session().unwrap();
        let session = ledger.session(&token).unwrap();
        let (lease, terms) = ledger.issue(session, &path(), &role(), START).unwrap();
        assert_eq!(terms, LeaseTerms { duration: seconds(20), renewable: true });
        (ledger, session, lease)
    }

    fn lease_ended(outcome: Result<LeaseTerms, SourceError>) -> bool {
        outcome.is_err_and(|error| error.class == ErrorClass::LeaseEnded)
    }

    #[test]
    fn a_renewal_grants_the_increment_from_now_up_to_max_ttl_since_issue() {
        let (mut ledger, _, lease) = ledger();
        for (at, increment, granted) in
            [(15, 20, 20), (30, 0, 20), (45, 5, 5), (49, 300, 11), (59, 20, 1)]
        {
            let now = START + seconds(at);
            let terms = ledger.renew(&lease, &role(), seconds(increment), now).unwrap();
            assert_eq!(terms.duration, seconds(granted), "at {at} s asking {increment} s");
        }
        assert!(lease_ended(ledger.renew(&lease, &role(), seconds(20), START + seconds(60))));
    }

    #[test]
    fn a_lease_ends_when_its_time_is_over_and_not_earlier() {
        let (mut ledger, _, lease) = ledger();
        let last = START + seconds(20) - Duration::from_nanos(1);
        assert_eq!(ledger.path_of(&lease, last).unwrap(), path());
        assert!(lease_ended(ledger.renew(&lease, &role(), seconds(20), START + seconds(20))));
        let shrunk = Role { max_ttl: seconds(20), ..role() };
        ledger.renew(&lease, &role(), seconds(20), START + seconds(19)).unwrap();
        let past = ledger.renew(&lease, &shrunk, seconds(20), START + seconds(25));
        assert_eq!(past.clone().unwrap_err().message, "past the max TTL, cannot renew");
        assert!(lease_ended(past));
    }

    #[test]
    fn revoking_ends_one_lease_and_the_end_of_a_session_all_of_its_own() {
        let (mut ledger, session, first) = ledger();
        let (second, _) = ledger.issue(session, &path(), &role(), START).unwrap();
        let other = ledger.open_session().unwrap();
        let other = ledger.session(&other).unwrap();
        let (foreign, _) = ledger.issue(other, &path(), &role(), START).unwrap();
        ledger.revoke(&first, START);
        ledger.revoke(&first, START);
        let lives = |ledger: &Ledger, lease| ledger.path_of(lease, START).is_ok();
        assert!(!lives(&ledger, &first) && lives(&ledger, &second));
        ledger.end_session(session);
        assert!(!lives(&ledger, &second) && lives(&ledger, &foreign));
    }

    #[test]
    fn ids_and_tokens_that_were_never_given_match_nothing() {
        let (mut ledger, session, lease) = ledger();
        let random = lease.expose().rsplit_once('/').unwrap().1.to_owned();
        for id in ["", "/", "database/creds/shop/", &format!("database/creds/other/{random}")] {
            assert!(ledger.path_of(&LeaseId::new(id.to_owned()), START).is_err(), "{id}");
        }
        let token = ledger.open_session().unwrap();
        let (_, random) = token.expose().split_once('.').unwrap();
        for wrong in [format!("hvs.{random}"), format!("local.{:032x}", 7)] {
            let refused = ledger.session(&Token::new(wrong.into_bytes()).unwrap());
            assert!(refused.is_err_and(|error| error.class == ErrorClass::TokenEnded));
        }
        ledger.end_session(session);
        assert!(ledger.session(&token).is_ok(), "another session's end is not ours");
    }

    #[test]
    fn the_ledger_is_bounded_and_expired_leases_make_room() {
        let (mut ledger, session, _) = ledger();
        for _ in 1..LIVE_MAX {
            ledger.issue(session, &path(), &role(), START).unwrap();
        }
        let refused = ledger.issue(session, &path(), &role(), START + seconds(19)).err().unwrap();
        assert_eq!(refused.class, ErrorClass::InvalidRequest);
        assert!(ledger.issue(session, &path(), &role(), START + seconds(20)).is_ok());
        assert_eq!(ledger.leases.len(), 1);
    }

    #[test]
    fn credentials_have_the_roles_length_alphabet_and_prefix_and_never_repeat() {
        let alphabet: Alphabet = "\"\\aZ".parse().unwrap();
        let role = Role { length: 200, alphabet, username_prefix: "p\"".to_owned(), ..role() };
        let generate = || role.generate(&path()).unwrap();
        let (first, second) = (generate(), generate());
        assert_ne!(first.expose(), second.expose());
        let value: Value = serde_json::from_slice(first.expose()).unwrap();
        let password = value["password"].as_str().unwrap();
        assert_eq!(password.len(), 200);
        assert!(password.chars().all(|c| "\"\\aZ".contains(c)));
        assert!("\"\\aZ".chars().all(|c| password.contains(c)), "every character is drawn");
        let username = value["username"].as_str().unwrap();
        assert!(username.starts_with("p\"shop-") && username.len() == 17, "{username}");
    }

    #[test]
    fn an_alphabet_that_would_weaken_or_break_a_password_is_refused() {
        for bad in ["", "a", "aa", "aba", "a b", "aé", "a\n"] {
            assert!(bad.parse::<Alphabet>().is_err(), "{bad:?}");
        }
        assert_eq!("hex".parse::<Alphabet>().unwrap().0.len(), 16);
        assert_eq!("alphanumeric".parse::<Alphabet>().unwrap().0.len(), 62);
    }
}
