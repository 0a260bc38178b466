//! The compiled policy: Cedar asked about one caller and one secret at one moment.
//!
//! Cedar skips a policy whose evaluation fails, so a failing `forbid` would stop forbidding: any
//! evaluation error is a denial here. Its evaluator refuses to work on less than 100 KiB of stack,
//! and on a musl main thread it believes there is less; every entry point therefore makes sure of
//! its stack first, and a self-test at load proves that a permit permits.

use std::collections::BTreeSet;
use std::time::Duration;

use cedar_policy::{Authorizer, Decision, PolicySet, Response};
use jiff::Timestamp;

use super::grants::{GrantLogin, PolicyConfig, Share};
use super::rules::{PolicyError, Rule, RuleBook};
use super::schema::{Caller, CedarError};
use super::{Denied, Permit};
use crate::domain::{IdError, LoginIdentity, RuleName, SecretRef, SourceName};
use crate::identity::pods::Labels;
use crate::identity::{Identity, Listener, ProofStrength, Subject};

/// Below this much stack the evaluator gets a new one: over twice what Cedar asks for.
const STACK_BYTES_MIN: usize = 256 * 1024;
/// Size of that new stack: enough for parsing, validating and evaluating.
const STACK_BYTES_NEW: usize = 2 * 1024 * 1024;
/// What permits a pod to read as itself where the source decides; no configured rule has the name.
pub(super) const OWN_IDENTITY: &str = "own-identity";
/// The weakest proof for that, the same as a grant's that names none.
const OWN_IDENTITY_PROOF_MIN: ProofStrength = ProofStrength::PeerCred;
/// Why no label matches.
const UNKNOWN: &str = "the pod is not known in the pod directory (yet), so its labels are not";
/// Permits whoever asks, and touches every kind of value a request carries.
const SELF_TEST: &str = r#"
@id("self-test")
permit (principal is Volume, action == Action::"read", resource is Secret)
when { context.now > datetime("1970-01-01") && context.hour >= 0 && context.weekday <= 7 }
when { context.proofs.contains(context.proof) && resource.path like "*" && principal.name != "" };
"#;

/// A policy that parsed, validated strictly and passed its self-test.
pub struct CompiledPolicy {
    book: RuleBook,
    recheck: Duration,
    own_identity: BTreeSet<SourceName>,
    own_identity_rule: RuleName,
}

impl CompiledPolicy {
    /// Compiles the configured policy; on failure returns every problem there is.
    ///
    /// An empty configuration compiles and denies everything.
    pub fn compile(config: &PolicyConfig) -> Result<Self, Vec<PolicyError>> {
        with_stack(|| {
            let own_identity_rule = OWN_IDENTITY
                .parse()
                .map_err(|error: IdError| vec![PolicyError::Engine(error.to_string())])?;
            let compiled = Self {
                book: RuleBook::build(config)?,
                recheck: config.recheck,
                own_identity: config.own_identity.clone(),
                own_identity_rule,
            };
            compiled.self_test().map_err(|problem| vec![problem])?;
            Ok(compiled)
        })
    }

    /// Decides one question that must be allowed, with the schema and on the stack that real
    /// decisions use. Runs at load, so an engine that denies everything is noticed there.
    pub fn self_test(&self) -> Result<(), PolicyError> {
        with_stack(|| self.probe()).map_err(|error| PolicyError::Engine(error.to_string()))
    }

    fn probe(&self) -> Result<(), CedarError> {
        let identity = Identity::declared_volume("self-test".parse()?);
        let (source, path) = ("self-test".parse()?, "self/test".parse()?);
        let secret = SecretRef { source, path, version: None };
        let response = self.ask(&SELF_TEST.parse()?, &identity, &secret, None, Timestamp::now())?;
        if let Some(error) = response.diagnostics().errors().next() {
            return Err(error.clone().into());
        }
        match response.decision() {
            Decision::Allow => Ok(()),
            Decision::Deny => Err("a policy that permits everybody denied".into()),
        }
    }

    /// Whether any rule asks for pods' labels.
    pub(super) fn uses_labels(&self) -> bool {
        self.book.rules.iter().any(|rule| rule.labels.asks)
    }

    /// How long a decision may be relied on.
    pub(super) fn recheck(&self) -> Duration {
        self.recheck
    }

    pub(super) fn probing_login(&self, identity: &Identity, source: &SourceName) -> LoginIdentity {
        let own = self.own_identity.contains(source) && may_log_in(identity);
        login_of(identity, if own { GrantLogin::ServiceAccount } else { GrantLogin::Agent })
    }

    /// Decides, at a wall-clock moment. Default deny, forbid wins, an evaluation error denies.
    /// `labels` are the pod's; without them no rule permits anything because of a label.
    pub(super) fn decide(
        &self,
        identity: &Identity,
        secret: &SecretRef,
        labels: Option<&Labels>,
        at: Timestamp,
    ) -> Result<Permit, Denied> {
        self.check_account(identity, secret)?;
        if labels.is_none() {
            self.check_blind_forbids(identity, secret)?;
        }
        let response = with_stack(|| self.ask(&self.book.policies, identity, secret, labels, at));
        match response {
            Ok(response) => self.judge(&response, identity, secret, labels.is_some()),
            Err(error) => Err(denied(
                None,
                format!("the question could not be put to the policy engine: {error}"),
            )),
        }
    }

    fn ask(
        &self,
        policies: &PolicySet,
        identity: &Identity,
        secret: &SecretRef,
        labels: Option<&Labels>,
        at: Timestamp,
    ) -> Result<Response, CedarError> {
        let covering = self.covering(secret, identity).map(|rule| &rule.name);
        let caller = Caller { identity, labels };
        let (request, entities) = self.book.vocabulary.question(caller, secret, covering, at)?;
        Ok(Authorizer::new().is_authorized(&request, policies, &entities))
    }

    /// Whoever leaves the token out must not get past a rule about one account of a name, be it
    /// that it forbids that one or permits all others.
    fn check_account(&self, identity: &Identity, secret: &SecretRef) -> Result<(), Denied> {
        if identity.is_account_proved() {
            return Ok(());
        }
        let mut asking = self.book.rules.iter().filter(|rule| rule.labels.asks_account_uid);
        match asking.find(|rule| rule.may_be_about(secret, identity.subject())) {
            None => Ok(()),
            Some(rule) => {
                let name = &rule.name;
                let reason = format!(
                    "rule '{name}' asks for the uid of the service account of {identity}, which is \
                     not proved without a token"
                );
                Err(denied(Some(name.clone()), reason))
            }
        }
    }

    /// A rule that people wrote to forbid by label would let a pod pass whose labels are not known.
    fn check_blind_forbids(&self, identity: &Identity, secret: &SecretRef) -> Result<(), Denied> {
        let Subject::Pod(_) = identity.subject() else { return Ok(()) };
        let mut blind = self.book.rules.iter().filter(|rule| rule.forbids_blindly());
        match blind.find(|rule| rule.may_be_about(secret, identity.subject())) {
            None => Ok(()),
            Some(rule) => {
                let name = &rule.name;
                let reason = format!("rule '{name}' may forbid {identity} by a label: {UNKNOWN}");
                Err(Denied { rule: Some(name.clone()), reason, labels_unknown: true })
            }
        }
    }

    fn judge(
        &self,
        response: &Response,
        identity: &Identity,
        secret: &SecretRef,
        knows_labels: bool,
    ) -> Result<Permit, Denied> {
        let diagnostics = response.diagnostics();
        if let Some(error) = diagnostics.errors().next() {
            let cedar_policy::AuthorizationError::PolicyEvaluationError(error) = error;
            let rule = self.rule(error.policy_id()).map(|rule| rule.name.clone());
            let reason = format!("a rule could not be evaluated: {}", error.inner());
            return Err(denied(rule, reason));
        }
        let mut determining = self.determining(response);
        // A permit that asks for the absence of a label would hold for whoever is not known.
        determining.retain(|rule| knows_labels || !rule.permits_blindly());
        if response.decision() == Decision::Allow && !may_log_in(identity) {
            determining.retain(|rule| rule.login == GrantLogin::Agent);
        }
        match (response.decision(), determining.first()) {
            (Decision::Allow, Some(first)) => {
                let shared = determining.iter().all(|rule| rule.share == first.share);
                let share = if shared { first.share } else { Share::Consumer };
                let login = login_of(identity, first.login);
                Ok(Permit { rule: first.name.clone(), share, login })
            }
            (Decision::Deny, Some(forbid)) => {
                let labels_unknown = forbid.labels.asks && !knows_labels;
                let unknown = if labels_unknown { format!(": {UNKNOWN}") } else { String::new() };
                let name = &forbid.name;
                let reason = format!("rule '{name}' forbids {identity} to read {secret}{unknown}");
                Err(Denied { rule: Some(name.clone()), reason, labels_unknown })
            }
            (_, None) => self.unruled(identity, secret, knows_labels),
        }
    }

    /// No rule permits or forbids it.
    fn unruled(
        &self,
        identity: &Identity,
        secret: &SecretRef,
        knows_labels: bool,
    ) -> Result<Permit, Denied> {
        let is_pod = matches!(identity.subject(), Subject::Pod(_));
        let rules: Vec<&Rule> = self.covering(secret, identity).collect();
        // What a label might permit with another login is not read with the pod's own meanwhile.
        let may_permit =
            |rule: &&Rule| rule.permits_by_label() && rule.may_be_about(secret, identity.subject());
        let labels_unknown = is_pod && !knows_labels && rules.iter().any(may_permit);
        let proved = identity.strength() >= OWN_IDENTITY_PROOF_MIN;
        let own = is_pod && proved && self.own_identity.contains(&secret.source);
        let own = own && may_log_in(identity);
        if own && !labels_unknown {
            // The source will decide, asked with the pod's own service account.
            return Ok(Permit {
                rule: self.own_identity_rule.clone(),
                share: Share::Consumer,
                login: login_of(identity, GrantLogin::ServiceAccount),
            });
        }
        let covering: Vec<&str> = rules.iter().map(|rule| rule.name.as_str()).collect();
        let hint = if covering.is_empty() {
            "no grant covers the path".to_owned()
        } else if labels_unknown {
            format!("covered by {}, but {UNKNOWN}", covering.join(", "))
        } else if !may_log_in(identity) {
            let proof = identity.strength();
            format!(
                "covered by {}, but who, condition or proof ({proof}) did not match, or it lacks \
                 login = \"agent\", which the node socket needs",
                covering.join(", ")
            )
        } else {
            let proof = identity.strength();
            format!(
                "covered by {}, but who, condition or proof ({proof}) did not match",
                covering.join(", ")
            )
        };
        let reason = format!("no rule permits {identity} to read {secret}: {hint}");
        Err(Denied { rule: None, reason, labels_unknown })
    }

    fn covering<'a>(
        &'a self,
        secret: &'a SecretRef,
        identity: &'a Identity,
    ) -> impl Iterator<Item = &'a Rule> {
        self.book.rules.iter().filter(|rule| rule.covers(secret, identity.subject()))
    }

    /// The rules that decided, in the order of the configuration.
    fn determining(&self, response: &Response) -> Vec<&Rule> {
        let ids: Vec<&str> = response.diagnostics().reason().map(AsRef::as_ref).collect();
        self.book.rules.iter().filter(|rule| ids.contains(&rule.name.as_str())).collect()
    }

    fn rule(&self, id: &cedar_policy::PolicyId) -> Option<&Rule> {
        let id: &str = id.as_ref();
        let name: RuleName = id.parse().ok()?;
        self.book.rules.iter().find(|rule| rule.name == name)
    }
}

/// A refusal that labels have nothing to do with.
fn denied(rule: Option<RuleName>, reason: String) -> Denied {
    Denied { rule, reason, labels_unknown: false }
}

/// Whether a pod may read with its own service account through this door: on the node's socket the
/// agent has no token of the pod's that Vault would take.
fn may_log_in(identity: &Identity) -> bool {
    identity.listener() != Listener::Node
}

/// Whose identity is used upstream: only a pod has another one to read with than the agent's.
fn login_of(identity: &Identity, wanted: GrantLogin) -> LoginIdentity {
    match (identity.subject(), wanted) {
        (Subject::Pod(pod), GrantLogin::ServiceAccount) => {
            LoginIdentity::service_account(pod.account.clone(), identity.role().cloned())
        }
        (Subject::Pod(_), GrantLogin::Agent)
        | (Subject::HostUser { .. } | Subject::Volume(_), _) => LoginIdentity::Agent,
    }
}

fn with_stack<R>(work: impl FnOnce() -> R) -> R {
    stacker::maybe_grow(STACK_BYTES_MIN, STACK_BYTES_NEW, work)
}
