//! Turns grants and the Cedar file into one strictly validated policy set, all problems at once.

use std::collections::HashSet;

use cedar_policy::ffi::DetailedError;
use cedar_policy::{Expression, Policy, PolicyId, PolicySet, ValidationMode, Validator};

use super::engine::OWN_IDENTITY;
use super::grants::{CedarFile, Effect, GrantConfig, GrantLogin, PolicyConfig, Share, Who};
use super::labels::LabelUse;
use super::schema::Vocabulary;
use super::scope::Scope;
use crate::domain::{IdError, PathPattern, RuleName, SecretRef, SourceName};
use crate::identity::Subject;

/// A problem in the configured policy. Nothing is put in force while there is one.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PolicyError {
    /// A grant that can match nothing.
    #[error("grant '{0}' has no paths; list at least one, for example \"secret/data/shop/*\"")]
    NoPaths(RuleName),
    /// Two rules of one name.
    #[error("rule name '{0}' is used twice; give every grant and Cedar policy its own name")]
    Duplicate(RuleName),
    /// `when` is not exactly one expression.
    #[error(
        "grant '{rule}': `when` must be one Cedar expression such as context.hour >= 8: {detail}"
    )]
    Condition {
        /// The grant.
        rule: RuleName,
        /// What the parser says.
        detail: String,
    },
    /// Does not fit the schema.
    #[error("rule '{rule}' does not fit the policy schema: {detail}")]
    Invalid {
        /// The rule.
        rule: RuleName,
        /// What the validator says.
        detail: String,
    },
    /// The Cedar file does not parse.
    #[error("{file}: {detail}")]
    Syntax {
        /// The file.
        file: String,
        /// Where and what.
        detail: String,
    },
    /// A Cedar policy without a name.
    #[error("{file}: the policy starting '{start}' has no name; put @id(\"name\") before it")]
    MissingId {
        /// The file.
        file: String,
        /// Its first line.
        start: String,
    },
    /// A Cedar policy whose name is no rule name.
    #[error("{file}: @id(\"{id}\") is not a rule name: {problem}")]
    BadId {
        /// The file.
        file: String,
        /// The name as written.
        id: String,
        /// What is wrong with it.
        problem: IdError,
    },
    /// A Cedar template, which nothing would ever link.
    #[error("{file}: templates (?principal, ?resource) are not supported; write a policy instead")]
    Template {
        /// The file.
        file: String,
    },
    /// Labels that nobody could know.
    #[error(
        "rule '{0}' asks for the labels of pods, which are not known; set [pods] directory = \
         \"apiserver\""
    )]
    NoDirectory(RuleName),
    /// Labels that whoever creates a pod anywhere may give it.
    #[error(
        "rule '{0}' permits by a label in every namespace, and whoever may create a pod chooses \
         its labels; add the namespace: who = {{ namespace = \"…\", labels = … }}, or in Cedar \
         principal is Pod in Namespace::\"…\""
    )]
    LabelsWithoutNamespace(RuleName),
    /// The engine does not work on this machine or thread.
    #[error("the policy engine failed its self-test: {0}; this is a defect, please report it")]
    Engine(String),
}

/// What is known about a rule beside its Cedar text.
pub(super) struct Rule {
    pub(super) name: RuleName,
    pub(super) share: Share,
    pub(super) login: GrantLogin,
    pub(super) labels: LabelUse,
    scope: Scope,
    effect: Effect,
    /// The grant's path set; `None` for a policy from the Cedar file.
    paths: Option<(SourceName, Vec<PathPattern>)>,
}

impl Rule {
    /// What Cedar permits is never shared, and a pod reads it as itself: both are decisions that a
    /// grant spells out.
    fn of_cedar(name: RuleName, policy: &Policy) -> Self {
        let effect = match policy.effect() {
            cedar_policy::Effect::Permit => Effect::Permit,
            cedar_policy::Effect::Forbid => Effect::Forbid,
        };
        let (share, login) = (Share::Consumer, GrantLogin::ServiceAccount);
        let (labels, scope) = (LabelUse::of(policy), Scope::of(policy));
        Self { name, share, login, labels, scope, effect, paths: None }
    }

    /// Whether it forbids by a label and says nothing of pods whose labels are not known.
    pub(super) fn forbids_blindly(&self) -> bool {
        self.effect == Effect::Forbid && self.labels.asks && !self.labels.minds_unknown
    }

    /// Whether it may permit by a label.
    pub(super) fn permits_by_label(&self) -> bool {
        self.effect == Effect::Permit && self.labels.asks
    }

    /// Whether it permits by a label and says nothing of pods whose labels are not known.
    pub(super) fn permits_blindly(&self) -> bool {
        self.permits_by_label() && !self.labels.minds_unknown
    }

    /// Whether it may be about this caller and the secret: a rule from the Cedar file says in its
    /// own terms which one.
    pub(super) fn may_be_about(&self, secret: &SecretRef, subject: &Subject) -> bool {
        self.scope.may_hold(subject) && (self.paths.is_none() || self.covers(secret, subject))
    }

    /// Whether the secret lies in this grant's path set, as it is for this caller.
    pub(super) fn covers(&self, secret: &SecretRef, subject: &Subject) -> bool {
        let account = match subject {
            Subject::Pod(pod) => Some(&pod.account),
            Subject::HostUser { .. } | Subject::Volume(_) => None,
        };
        self.paths.as_ref().is_some_and(|(source, patterns)| {
            let matches = |pattern: &PathPattern| pattern.matches(&secret.path, account);
            *source == secret.source && patterns.iter().any(matches)
        })
    }
}

/// The rules in the order they are named in, and their policies with the rule names as ids.
pub(super) struct RuleBook {
    pub(super) rules: Vec<Rule>,
    pub(super) policies: PolicySet,
    pub(super) vocabulary: Vocabulary,
}

impl RuleBook {
    /// Parses and validates everything.
    pub(super) fn build(config: &PolicyConfig) -> Result<Self, Vec<PolicyError>> {
        let mut draft = Draft { knows_labels: config.knows_labels, ..Draft::default() };
        for grant in &config.grants {
            draft.add_grant(grant);
        }
        if let Some(file) = &config.cedar {
            draft.add_file(file);
        }
        let path_sets = draft.rules.iter().filter(|rule| rule.paths.is_some());
        let vocabulary = Vocabulary::new(path_sets.map(|rule| &rule.name), config.node.as_ref())
            .map_err(|error| vec![PolicyError::Engine(error.to_string())])?;
        draft.validate(&vocabulary);
        if draft.problems.is_empty() {
            Ok(Self { rules: draft.rules, policies: draft.policies, vocabulary })
        } else {
            Err(draft.problems)
        }
    }
}

#[derive(Default)]
struct Draft {
    rules: Vec<Rule>,
    names: HashSet<RuleName>,
    policies: PolicySet,
    problems: Vec<PolicyError>,
    knows_labels: bool,
}

impl Draft {
    fn add_grant(&mut self, grant: &GrantConfig) {
        if grant.paths.is_empty() {
            self.problems.push(PolicyError::NoPaths(grant.name.clone()));
        }
        match policy_of(grant) {
            Ok(policy) => {
                let paths = Some((grant.source.clone(), grant.paths.clone()));
                let GrantConfig { share, login, effect, .. } = *grant;
                let (labels, scope) = (LabelUse::of(&policy), Scope::of(&policy));
                let name = grant.name.clone();
                let rule = Rule { name, share, login, labels, scope, effect, paths };
                self.add(rule, &policy);
            }
            Err(problem) => self.problems.push(problem),
        }
    }

    fn add_file(&mut self, file: &CedarFile) {
        let set: PolicySet = match file.text.parse() {
            Ok(set) => set,
            Err(error) => {
                let detail = describe(&DetailedError::from(&error), Some(&file.text));
                return self.problems.push(PolicyError::Syntax { file: file.name.clone(), detail });
            }
        };
        if set.templates().next().is_some() {
            self.problems.push(PolicyError::Template { file: file.name.clone() });
        }
        let mut policies: Vec<&Policy> = set.policies().collect();
        // Cedar names them policy0, policy1, … as they stand in the file.
        policies.sort_by_key(|policy| position(policy.id()));
        for policy in policies {
            match name_of(policy, &file.name) {
                Ok(name) => self.add(Rule::of_cedar(name, policy), policy),
                Err(problem) => self.problems.push(problem),
            }
        }
    }

    fn add(&mut self, rule: Rule, policy: &Policy) {
        let policy = policy.new_id(PolicyId::new(rule.name.as_str()));
        let taken = rule.name.as_str() == OWN_IDENTITY;
        let unique = !taken && self.names.insert(rule.name.clone());
        if !unique || self.policies.add(policy).is_err() {
            return self.problems.push(PolicyError::Duplicate(rule.name));
        }
        if rule.labels.asks && !self.knows_labels {
            self.problems.push(PolicyError::NoDirectory(rule.name.clone()));
        }
        if rule.labels.asks && rule.effect == Effect::Permit && !rule.labels.names_namespace {
            self.problems.push(PolicyError::LabelsWithoutNamespace(rule.name.clone()));
        }
        self.rules.push(rule);
    }

    /// Strict validation; a warning (a rule that can never apply, look-alike characters) counts
    /// as a problem, because a rule that silently does nothing protects nobody.
    fn validate(&mut self, vocabulary: &Vocabulary) {
        let validator = Validator::new(vocabulary.schema().clone());
        let result = validator.validate(&self.policies, ValidationMode::Strict);
        let errors = result
            .validation_errors()
            .map(|error| (error.policy_id(), describe(&DetailedError::from(error), None)));
        let warnings = result
            .validation_warnings()
            .map(|warning| (warning.policy_id(), describe(&DetailedError::from(warning), None)));
        for (id, detail) in errors.chain(warnings) {
            let id: &str = id.as_ref();
            self.problems.push(match id.parse() {
                Ok(rule) => PolicyError::Invalid { rule, detail },
                Err(_) => PolicyError::Engine(format!("unknown policy '{id}': {detail}")),
            });
        }
    }
}

/// The Cedar policy of one grant. Its condition is parsed alone first, so it cannot close the
/// braces it is put into, and the result is checked to be one policy of the right effect.
fn policy_of(grant: &GrantConfig) -> Result<Policy, PolicyError> {
    let refuse = |detail: String| PolicyError::Condition { rule: grant.name.clone(), detail };
    if let Some(when) = &grant.when {
        let parsed: Result<Expression, _> = when.parse();
        if let Err(error) = parsed {
            return Err(refuse(describe(&DetailedError::from(&error), Some(when))));
        }
    }
    let set: PolicySet = cedar_text(grant)
        .parse()
        .map_err(|error| refuse(describe(&DetailedError::from(&error), None)))?;
    let expected = match grant.effect {
        Effect::Permit => cedar_policy::Effect::Permit,
        Effect::Forbid => cedar_policy::Effect::Forbid,
    };
    let mut policies = set.policies();
    match (policies.next(), policies.next(), set.templates().next()) {
        (Some(policy), None, None) if policy.effect() == expected => Ok(policy.clone()),
        _ => Err(refuse("it changes the rule around it".to_owned())),
    }
}

fn cedar_text(grant: &GrantConfig) -> String {
    let effect = match grant.effect {
        Effect::Permit => "permit",
        Effect::Forbid => "forbid",
    };
    let principal = match &grant.who {
        Who::User { uid } => format!("principal == HostUser::\"{uid}\""),
        Who::Group { gid } => format!("principal is HostUser in Group::\"{gid}\""),
        Who::Volume(name) => format!("principal == Volume::\"{name}\""),
        Who::AnyHostUser => "principal is HostUser".to_owned(),
        Who::Pods { namespace, service_account: None, .. } => {
            format!("principal is Pod in Namespace::\"{namespace}\"")
        }
        Who::Pods { namespace, service_account: Some(account), .. } => {
            format!("principal is Pod in ServiceAccount::\"{namespace}/{account}\"")
        }
        Who::AnyPod => "principal is Pod".to_owned(),
    };
    let name = &grant.name;
    let mut text = format!(
        "{effect} ({principal}, action == Action::\"read\", resource in PathSet::\"{name}\")"
    );
    if grant.effect == Effect::Permit {
        let proof = grant.min_proof;
        text.push_str(&format!("\nwhen {{ context.proofs.contains(\"{proof}\") }}"));
    }
    if let Who::Pods { labels, .. } = &grant.who
        && !labels.is_empty()
    {
        let label = |(key, value)| {
            format!("principal.hasTag(\"{key}\") && principal.getTag(\"{key}\") == \"{value}\"")
        };
        let all = labels.iter().map(label).collect::<Vec<_>>().join(" && ");
        // What is not known must neither permit nor slip past what forbids.
        text.push_str(&match grant.effect {
            Effect::Permit => format!("\nwhen {{ {all} }}"),
            Effect::Forbid => format!("\nwhen {{ !principal.labels_known || ({all}) }}"),
        });
    }
    if let Some(when) = &grant.when {
        // The line end closes a comment at the end of the condition.
        text.push_str(&format!("\nwhen {{ {when}\n}}"));
    }
    text + ";"
}

fn name_of(policy: &Policy, file: &str) -> Result<RuleName, PolicyError> {
    let Some(id) = policy.annotation("id") else {
        let text = policy.to_string();
        let start = text.lines().next().unwrap_or_default().trim().to_owned();
        return Err(PolicyError::MissingId { file: file.to_owned(), start });
    };
    id.parse().map_err(|problem| {
        let id = id.escape_debug().to_string();
        PolicyError::BadId { file: file.to_owned(), id, problem }
    })
}

fn position(id: &PolicyId) -> usize {
    let id: &str = id.as_ref();
    id.strip_prefix("policy").and_then(|number| number.parse().ok()).unwrap_or(usize::MAX)
}

/// One line: where (if the text the positions refer to is at hand), what, and Cedar's own advice.
fn describe(error: &DetailedError, text: Option<&str>) -> String {
    let place = text.zip(error.source_locations.first()).and_then(|(text, label)| {
        let before = text.get(..label.loc.start)?;
        let line = before.matches('\n').count() + 1;
        let column = before.rsplit('\n').next().map_or(0, |rest| rest.chars().count()) + 1;
        Some(format!("line {line}, column {column}: "))
    });
    let help = error.help.as_ref().map(|help| format!(" ({help})"));
    format!("{}{}{}", place.unwrap_or_default(), error.message, help.unwrap_or_default())
}
