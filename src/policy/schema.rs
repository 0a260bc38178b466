//! What Cedar is told about the world: the schema, and a caller, secret and moment in its terms.
//!
//! | entity | id | attributes | parents |
//! |---|---|---|---|
//! | `HostUser` | uid | `uid`, `gids` | its `Group`s |
//! | `Volume` | name | `name` | |
//! | `Pod` | uid | `name`, `namespace`, `service_account(_uid)`, `labels_known` | its account |
//! | `ServiceAccount` | `namespace/name` | | its `Namespace` |
//! | `Secret` | `source:path` | `source`, `path` | the `PathSet`s that match it |
//!
//! A pod's labels are its tags. A `PathSet` has the name of a grant. Which ones match is computed
//! here, segment by segment: Cedar's own `like` lets `*` cross a `/`.

use std::collections::{HashMap, HashSet};

use cedar_policy::{
    Context, Entities, Entity, EntityId, EntityTypeName, EntityUid, Request, RestrictedExpression,
    Schema,
};
use jiff::Timestamp;
use jiff::tz::TimeZone;

use crate::domain::{NodeName, Pod, RuleName, SecretRef};
use crate::identity::pods::Labels;
use crate::identity::{Identity, ProofStrength, Subject};

const ENTITIES: &str = r#"
entity Group;
entity HostUser in [Group] = { "uid": Long, "gids": Set<Long> };
entity Volume = { "name": String };
entity Namespace;
entity ServiceAccount in [Namespace];
entity Pod in [ServiceAccount] = {
    "name": String,
    "namespace": String,
    "service_account": String,
    "service_account_uid": String,
    "labels_known": Bool,
} tags String;
entity Secret in [PathSet] = { "source": String, "path": String };
action "read" appliesTo {
    principal: [HostUser, Volume, Pod],
    resource: [Secret],
    context: {
        "now": datetime,
        "hour": Long,
        "weekday": Long,
        "listener": String,
        "node": String,
        "proof": String,
        "proofs": Set<String>,
    },
};
"#;

/// Every proof, weakest first: a caller has `proofs` up to and including its own.
const PROOFS: [ProofStrength; 5] = [
    ProofStrength::SocketOnly,
    ProofStrength::PeerCred,
    ProofStrength::PidFd,
    ProofStrength::Token,
    ProofStrength::Declared,
];

/// Who asks, with what is known beside the proof.
#[derive(Clone, Copy)]
pub(super) struct Caller<'a> {
    pub(super) identity: &'a Identity,
    /// A pod's; `None` when they are not known.
    pub(super) labels: Option<&'a Labels>,
}

/// Why Cedar could not be given something; always a defect of ours, and always a denial.
pub(super) type CedarError = Box<dyn std::error::Error + Send + Sync>;

/// The schema and the ids that every request needs, parsed once.
pub(super) struct Vocabulary {
    schema: Schema,
    /// This node's name, or nothing where the agent has none.
    node: String,
    read: EntityUid,
    group: EntityTypeName,
    host_user: EntityTypeName,
    volume: EntityTypeName,
    pod: EntityTypeName,
    service_account: EntityTypeName,
    namespace: EntityTypeName,
    secret: EntityTypeName,
    path_set: EntityTypeName,
}

impl Vocabulary {
    /// The schema in which exactly the path sets of `grants` exist, so that a misspelt one in a
    /// Cedar file is refused at load.
    pub(super) fn new<'a>(
        grants: impl Iterator<Item = &'a RuleName>,
        node: Option<&NodeName>,
    ) -> Result<Self, CedarError> {
        let names: Vec<String> = grants.map(|name| format!("\"{name}\"")).collect();
        let path_set = match names.as_slice() {
            [] => "entity PathSet;".to_owned(),
            names => format!("entity PathSet enum [{}];", names.join(", ")),
        };
        let (schema, _) = Schema::from_cedarschema_str(&format!("{path_set}{ENTITIES}"))?;
        Ok(Self {
            schema,
            node: node.map(ToString::to_string).unwrap_or_default(),
            read: "Action::\"read\"".parse()?,
            group: "Group".parse()?,
            host_user: "HostUser".parse()?,
            volume: "Volume".parse()?,
            pod: "Pod".parse()?,
            service_account: "ServiceAccount".parse()?,
            namespace: "Namespace".parse()?,
            secret: "Secret".parse()?,
            path_set: "PathSet".parse()?,
        })
    }

    /// The schema policies are validated against.
    pub(super) fn schema(&self) -> &Schema {
        &self.schema
    }

    /// Puts one question: may `caller` read `secret`, which lies in `path_sets`, at this moment?
    pub(super) fn question<'a>(
        &self,
        caller: Caller<'_>,
        secret: &SecretRef,
        path_sets: impl Iterator<Item = &'a RuleName>,
        at: Timestamp,
    ) -> Result<(Request, Entities), CedarError> {
        let (principal, above) = self.principal(caller)?;
        let resource = self.resource(secret, path_sets)?;
        let request = Request::new(
            principal.uid(),
            self.read.clone(),
            resource.uid(),
            self.context(caller.identity, at)?,
            Some(&self.schema),
        )?;
        let all = [principal, resource].into_iter().chain(above);
        let entities = Entities::from_entities(all, Some(&self.schema))?;
        Ok((request, entities))
    }

    /// The caller, and the entities it is in by way of others.
    fn principal(&self, caller: Caller<'_>) -> Result<(Entity, Vec<Entity>), CedarError> {
        let entity = match caller.identity.subject() {
            Subject::HostUser { uid, gids } => {
                let long = |id: u32| RestrictedExpression::new_long(i64::from(id));
                let groups = gids.iter().map(|gid| self.uid(&self.group, &gid.to_string()));
                let attributes = HashMap::from([
                    ("uid".to_owned(), long(*uid)),
                    (
                        "gids".to_owned(),
                        RestrictedExpression::new_set(gids.iter().map(|gid| long(*gid))),
                    ),
                ]);
                let id = self.uid(&self.host_user, &uid.to_string());
                Entity::new(id, attributes, groups.collect())?
            }
            Subject::Volume(name) => {
                let attributes = HashMap::from([("name".to_owned(), text(name.as_str()))]);
                Entity::new(self.uid(&self.volume, name.as_str()), attributes, HashSet::new())?
            }
            Subject::Pod(pod) => return self.pod(pod, caller.labels),
        };
        Ok((entity, Vec::new()))
    }

    fn pod(&self, pod: &Pod, labels: Option<&Labels>) -> Result<(Entity, Vec<Entity>), CedarError> {
        let account = &pod.account;
        let namespace = self.uid(&self.namespace, account.namespace.as_str());
        let service_account = self.uid(&self.service_account, &account.to_string());
        let attributes = [
            ("name", pod.name.as_str()),
            ("namespace", account.namespace.as_str()),
            ("service_account", account.name.as_str()),
            ("service_account_uid", account.uid.as_str()),
        ];
        let known = RestrictedExpression::new_bool(labels.is_some());
        let attributes = attributes.map(|(key, value)| (key.to_owned(), text(value)));
        let attributes = attributes.into_iter().chain([("labels_known".to_owned(), known)]);
        let tags = labels.into_iter().flatten().map(|(key, value)| (key.clone(), text(value)));
        let id = self.uid(&self.pod, pod.uid.as_str());
        let pod = Entity::new_with_tags(id, attributes, [service_account.clone()], tags)?;
        let service_account = Entity::new_no_attrs(service_account, HashSet::from([namespace]));
        Ok((pod, vec![service_account]))
    }

    fn resource<'a>(
        &self,
        secret: &SecretRef,
        path_sets: impl Iterator<Item = &'a RuleName>,
    ) -> Result<Entity, CedarError> {
        let id = format!("{}:{}", secret.source, secret.path);
        let attributes = HashMap::from([
            ("source".to_owned(), text(secret.source.as_str())),
            ("path".to_owned(), text(secret.path.as_str())),
        ]);
        let parents = path_sets.map(|name| self.uid(&self.path_set, name.as_str())).collect();
        Ok(Entity::new(self.uid(&self.secret, &id), attributes, parents)?)
    }

    fn context(&self, identity: &Identity, at: Timestamp) -> Result<Context, CedarError> {
        let utc = at.to_zoned(TimeZone::UTC);
        let proofs = PROOFS.into_iter().filter(|proof| *proof <= identity.strength());
        let pairs = [
            ("now", RestrictedExpression::new_datetime(format!("{at:.3}"))),
            ("hour", RestrictedExpression::new_long(i64::from(utc.hour()))),
            // ISO 8601: Monday is 1, Sunday is 7.
            (
                "weekday",
                RestrictedExpression::new_long(i64::from(utc.weekday().to_monday_one_offset())),
            ),
            ("listener", text(&identity.listener().to_string())),
            ("node", text(&self.node)),
            ("proof", text(&identity.strength().to_string())),
            ("proofs", RestrictedExpression::new_set(proofs.map(|proof| text(&proof.to_string())))),
        ];
        Ok(Context::from_pairs(pairs.map(|(key, value)| (key.to_owned(), value)))?)
    }

    fn uid(&self, kind: &EntityTypeName, id: &str) -> EntityUid {
        EntityUid::from_type_name_and_id(kind.clone(), EntityId::new(id))
    }
}

fn text(value: &str) -> RestrictedExpression {
    RestrictedExpression::new_string(value.to_owned())
}
