//! The core's vocabulary: ids, events in, effects out. Nothing here holds a secret byte.
//!
//! | effect | comes back as |
//! |---|---|
//! | [`Effect::Call`] | [`Event::Completed`] once: done, failed or ambiguous |
//! | [`Effect::Persist`] | [`Event::Persisted`] once |
//! | [`Effect::ReviewInterest`] | [`Event::Interest`] once |
//! | everything else | nothing: it cannot fail |

use std::time::Duration;

pub use crate::broker::ids::{
    CacheKey, EffectId, EntryId, LocalKey, SessionId, SubscriptionId, TokenId, ValueId, WaiterId,
};
use crate::broker::{Freshness, LocalLeaseError, Problem, ReadError};
use crate::clock::BootInstant;
use crate::domain::{
    ConsumerId, LoginIdentity, Mount, PathKind, SecretPath, SecretRef, SourceName,
};
use crate::source::{ConfiguredMount, LeaseTerms, SourceError, TokenGrant, TokenKind};

/// What is asked for and by whom, after policy allowed it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Want {
    /// The secret.
    pub secret: SecretRef,
    /// The configured mount it lies below.
    pub mount: ConfiguredMount,
    /// Whose identity is used upstream.
    pub login: LoginIdentity,
    /// Who asks.
    pub consumer: ConsumerId,
    /// Whose a dynamic credential is: the consumer's own, or all that share it; `None` is everybody
    /// of the login identity.
    pub owner: Option<ConsumerId>,
    /// Whether a credential may be made for it; otherwise only what there is is read.
    pub may_mint: bool,
}

/// What happened.
#[derive(Debug)]
pub enum Event {
    /// A socket caller reads; leased secrets get a local lease.
    Read {
        /// Who waits.
        waiter: WaiterId,
        /// For what.
        want: Want,
    },
    /// A volume subscribes; the answer is its first [`Effect::Notify`].
    Subscribe {
        /// The new interest.
        subscription: SubscriptionId,
        /// In what.
        want: Want,
    },
    /// A subscription ended.
    Unsubscribe {
        /// Which.
        subscription: SubscriptionId,
    },
    /// Somebody wants to know what kind of mount a path lies below.
    Resolve {
        /// Who waits.
        waiter: WaiterId,
        /// The source.
        source: SourceName,
        /// Whose identity is used upstream.
        login: LoginIdentity,
        /// The mount as configured.
        mount: ConfiguredMount,
        /// A path below it.
        path: SecretPath,
    },
    /// An operator or owner wants a secret fetched again, or its lease renewed, now.
    Refresh {
        /// Who waits for the number of entries concerned.
        waiter: WaiterId,
        /// Which secret.
        secret: SecretRef,
        /// Only what was read with this identity; `None` is whoever's.
        login: Option<LoginIdentity>,
    },
    /// A consumer is gone for good: nobody will end its local leases.
    Gone {
        /// Which.
        consumer: ConsumerId,
    },
    /// A source noticed by itself that its content changed.
    SourceChanged {
        /// Which.
        source: SourceName,
    },
    /// A holder asks about, renews or ends its local lease.
    Local {
        /// Who waits.
        waiter: WaiterId,
        /// Whose it must be.
        consumer: ConsumerId,
        /// Which.
        local: LocalKey,
        /// What to do.
        operation: LocalOperation,
    },
    /// Until when the holder of a local lease was last told it lives.
    Interest {
        /// Which.
        local: LocalKey,
        /// Until when.
        until: BootInstant,
    },
    /// A call came back.
    Completed {
        /// Which.
        effect: EffectId,
        /// When its request left: lifetimes count from here.
        left_at: BootInstant,
        /// With what.
        outcome: Result<Done, SourceError>,
    },
    /// A record is safe.
    Persisted {
        /// Which.
        effect: EffectId,
    },
    /// The deadline that [`super::state::State::next_deadline`] named has come.
    Tick,
}

/// What a holder may do with a local lease.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LocalOperation {
    /// Ask.
    Lookup,
    /// Keep the interest for as long as the real lease now lives.
    Renew,
    /// End the interest.
    Revoke,
}

/// A call that worked.
#[derive(Debug)]
pub enum Done {
    /// Logged in.
    LoggedIn {
        /// The new token.
        token: TokenId,
        /// Its lifetime.
        terms: TokenGrant,
        /// Its kind.
        kind: TokenKind,
    },
    /// A token was renewed.
    TokenRenewed(TokenGrant),
    /// A mount was found.
    Probed(Mount),
    /// A secret was read.
    Fetched(FetchedValue),
    /// A lease was renewed.
    LeaseRenewed(LeaseTerms),
    /// A lease was revoked, or a session ended.
    Ended,
}

/// A read value, its bytes left in the store.
#[derive(Debug, Clone, Copy)]
pub struct FetchedValue {
    /// The bytes' stand-in; a lease id, if there is one, is stored beside them.
    pub value: ValueId,
    /// The lease's terms.
    pub lease: Option<LeaseTerms>,
    /// Time to the next rotation of a static credential.
    pub rotates_in: Option<Duration>,
    /// KV 2's version.
    pub version: Option<u64>,
}

/// What the task is to do.
#[derive(Debug, Clone, PartialEq)]
pub enum Effect {
    /// Call upstream.
    Call {
        /// Its id.
        id: EffectId,
        /// Where.
        source: SourceName,
        /// What.
        call: Call,
    },
    /// Write a record to the journal; what depends on it waits for the acknowledgement.
    Persist {
        /// Its id.
        id: EffectId,
        /// What to remember.
        record: Record,
    },
    /// Ask until when the holder of a local lease was told it lives.
    ReviewInterest {
        /// Which.
        local: LocalKey,
    },
    /// Put a value into the snapshot, or replace the times of the one that is there.
    Publish {
        /// The entry.
        entry: EntryId,
        /// Where readers find it; `None` keeps it out of readers' sight.
        key: Option<CacheKey>,
        /// The value.
        value: ValueId,
        /// Its times and kind.
        times: PublishedTimes,
        /// The local lease that hits extend.
        interest: Option<LocalKey>,
    },
    /// Take a value out of the snapshot. Subscribers keep what they hold.
    Retract {
        /// The entry.
        entry: EntryId,
        /// Its key.
        key: CacheKey,
    },
    /// Let go of bytes and lease id.
    DropValue(ValueId),
    /// Let go of a token.
    DropToken(TokenId),
    /// Make a local lease known under an id of its own.
    OpenLocal {
        /// Which.
        local: LocalKey,
        /// For what path.
        path: SecretPath,
        /// Until when its holder is told it lives.
        until: BootInstant,
    },
    /// Forget a local lease.
    CloseLocal(LocalKey),
    /// Answer somebody.
    Answer {
        /// Whom.
        waiter: WaiterId,
        /// With what.
        answer: Answer,
    },
    /// A subscription could not be kept: after its last level its holder may subscribe anew.
    EndSubscription(SubscriptionId),
    /// Tell a subscriber the current level.
    Notify {
        /// Whom.
        subscription: SubscriptionId,
        /// The entry whose published value it is to have; `None` leaves what it has.
        entry: Option<EntryId>,
        /// What is wrong.
        problem: Option<Problem>,
    },
}

/// A call to a source.
#[derive(Debug, Clone, PartialEq)]
pub enum Call {
    /// Log in.
    Login(LoginIdentity),
    /// Renew a token.
    RenewToken {
        /// Which.
        token: TokenId,
        /// The first grant's duration.
        increment: Duration,
    },
    /// Revoke a token with everything made under it.
    EndSession {
        /// Which.
        token: TokenId,
    },
    /// Ask for a mount's kind.
    Probe {
        /// With which token.
        token: TokenId,
        /// A path below the mount.
        path: SecretPath,
    },
    /// Read a secret.
    Fetch {
        /// With which token.
        token: TokenId,
        /// Which.
        secret: SecretRef,
        /// What reading it does.
        kind: PathKind,
    },
    /// Renew the lease stored beside a value.
    RenewLease {
        /// With which token.
        token: TokenId,
        /// Whose lease.
        value: ValueId,
        /// The first grant's duration.
        increment: Duration,
        /// For the audit log.
        secret: SecretRef,
    },
    /// Revoke the lease stored beside a value.
    RevokeLease {
        /// With which token.
        token: TokenId,
        /// Whose lease.
        value: ValueId,
        /// For the audit log.
        secret: SecretRef,
    },
}

/// What a successor would need to know.
#[derive(Debug, Clone, PartialEq)]
pub enum Record {
    /// A session exists from now on; written before anything is minted under it.
    SessionStarted {
        /// Its token.
        token: TokenId,
    },
    /// A lease exists; written before its value is published.
    LeaseGranted {
        /// The value with its lease id.
        value: ValueId,
        /// When it ends.
        expires_at: BootInstant,
    },
}

/// Times and kind of a published value.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PublishedTimes {
    /// What kind of path it came from.
    pub kind: PathKind,
    /// When the request left.
    pub fetched_at: BootInstant,
    /// Served without asking until here.
    pub fresh_until: BootInstant,
    /// Not served from here.
    pub dead_at: BootInstant,
    /// KV 2's version.
    pub version: Option<u64>,
}

/// An answer to a waiter.
#[derive(Debug, Clone, PartialEq)]
pub enum Answer {
    /// A value: the entry's published one, at this moment.
    Value {
        /// Which entry.
        entry: EntryId,
        /// How it was come by.
        freshness: Freshness,
        /// The caller's local lease.
        local: Option<LocalTerms>,
    },
    /// No value.
    Refused(ReadError),
    /// A mount.
    Mount(Mount),
    /// How many entries a refresh concerned.
    Refreshed(usize),
    /// A local lease.
    Local(Result<LocalTerms, LocalLeaseError>),
}

/// A local lease as it is told.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LocalTerms {
    /// Which.
    pub local: LocalKey,
    /// For what path.
    pub path: SecretPath,
    /// When it was opened.
    pub issued_at: BootInstant,
    /// What remains.
    pub duration: Duration,
    /// False once its credential was replaced.
    pub renewable: bool,
}
