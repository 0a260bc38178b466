//! The broker's task around its core: what a stop does to those who hold subscriptions, and its
//! caps.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use futures_util::FutureExt;
use secrets_broker::audit::{Audit, AuditConfig, AuditWriter, Output};
use secrets_broker::broker::settings::Settings;
use secrets_broker::broker::task::BrokerTask;
use secrets_broker::broker::{Broker, ReadError};
use secrets_broker::clock::BootInstant;
use secrets_broker::domain::{
    EngineKind, LeaseId, LoginIdentity, Mount, PathKind, SecretBytes, SecretPath, SecretRef, Token,
};
use secrets_broker::identity::{Identity, ProofStrength};
use secrets_broker::policy::{
    Authorized, CompiledPolicy, Effect, GrantConfig, GrantLogin, Policy, PolicyConfig, Share, Who,
};
use secrets_broker::source::{
    ConfiguredMount, Fetched, LeaseTerms, Login, SharedSource, Source, SourceDescription,
    SourceError, TokenGrant, TokenKind,
};
use secrets_broker::telemetry::{Limit, Metrics};
use tokio_util::sync::CancellationToken;

const HOUR: Duration = Duration::from_secs(3600);

/// A source of one database whose sessions are counted as they end.
#[derive(Default)]
struct Database {
    ended: AtomicUsize,
}

#[async_trait]
impl Source for Database {
    fn description(&self) -> SourceDescription {
        SourceDescription {
            kind: "vault",
            address: String::new(),
            namespace: None,
            generated: false,
        }
    }

    fn mount_of(&self, _: &SecretPath) -> Option<ConfiguredMount> {
        let kind = Some(EngineKind::Database);
        Some(ConfiguredMount { path: "database".parse().unwrap(), kind })
    }

    async fn login(&self, _: &LoginIdentity, _: Option<&Token>) -> Result<Login, SourceError> {
        let token = Token::new(b"token".to_vec()).unwrap();
        let terms = TokenGrant { ttl: HOUR, renewable: true };
        Ok(Login { token, terms, kind: TokenKind::Service })
    }

    async fn renew_token(&self, _: &Token, _: Duration) -> Result<TokenGrant, SourceError> {
        unreachable!("an hour has not passed")
    }

    async fn end_session(&self, _: &Token) -> Result<(), SourceError> {
        self.ended.fetch_add(1, Ordering::SeqCst);
        Ok(())
    }

    async fn probe_mount(&self, _: &Token, _: &SecretPath) -> Result<Mount, SourceError> {
        unreachable!("the mount's kind is known")
    }

    async fn fetch(
        &self,
        _: &Token,
        secret: &SecretRef,
        _: PathKind,
    ) -> Result<Fetched, SourceError> {
        let lease = LeaseId::new(format!("{}/1", secret.path));
        Ok(Fetched {
            data: SecretBytes::new(br#"{"username":"u","password":"p"}"#.to_vec()),
            lease: Some((lease, LeaseTerms { duration: HOUR, renewable: true })),
            lease_duration_hint: 0,
            rotates_in: None,
            version: None,
            request_id: String::new(),
        })
    }

    async fn renew_lease(
        &self,
        _: &Token,
        _: &LeaseId,
        _: Duration,
    ) -> Result<LeaseTerms, SourceError> {
        unreachable!("an hour has not passed")
    }

    async fn revoke_lease(&self, _: &Token, _: &LeaseId) -> Result<(), SourceError> {
        self.ended.fetch_add(1, Ordering::SeqCst);
        Ok(())
    }
}

/// A volume's right to the credential.
fn authorized() -> Authorized {
    let grant = GrantConfig {
        name: "files".parse().unwrap(),
        effect: Effect::Permit,
        who: Who::Volume("shop".parse().unwrap()),
        source: "vault".parse().unwrap(),
        paths: vec!["database/creds/shop".parse().unwrap()],
        share: Share::Consumer,
        login: GrantLogin::ServiceAccount,
        min_proof: ProofStrength::PeerCred,
        when: None,
    };
    let config = PolicyConfig { grants: vec![grant], ..PolicyConfig::default() };
    let policy = Policy::new(CompiledPolicy::compile(&config).unwrap());
    let secret = SecretRef {
        source: "vault".parse().unwrap(),
        path: "database/creds/shop".parse().unwrap(),
        version: None,
    };
    let volume = Identity::declared_volume("shop".parse().unwrap());
    policy.authorize(&volume, &secret, BootInstant::now()).unwrap()
}

/// A broker before the database. It needs its audit log's writer to be there.
fn broker(settings: Settings, database: Arc<Database>) -> (Broker, BrokerTask, AuditWriter) {
    let dir = tempfile::tempdir().unwrap();
    let output = Output::File(dir.path().join("audit.log"));
    let (audit, writer) = Audit::open(AuditConfig { output, ..AuditConfig::default() }).unwrap();
    let source: SharedSource = database;
    let sources = BTreeMap::from([("vault".parse().unwrap(), source)]);
    let (broker, task) = BrokerTask::new(settings, sources, audit).unwrap();
    (broker, task, writer)
}

/// Subscribes, waits for the credential, then drops the subscription, before or while it stops.
async fn ended_sessions(stops: bool) -> usize {
    let database = Arc::new(Database::default());
    let (broker, task, _writer) = broker(Settings::default(), database.clone());
    let work = CancellationToken::new();
    let running = tokio::spawn(task.run(work.clone()));

    let mut subscription = broker.subscribe(authorized()).await.unwrap();
    subscription.updates().wait_for(|update| update.entry.is_some()).await.unwrap();
    if stops {
        // On one thread the task sees both at the same time, as it does when volumes end with it.
        work.cancel();
    }
    drop(subscription);
    if !stops {
        while database.ended.load(Ordering::SeqCst) == 0 {
            tokio::task::yield_now().await;
        }
        work.cancel();
    }
    running.await.unwrap().unwrap();
    database.ended.load(Ordering::SeqCst)
}

#[tokio::test]
async fn a_dropped_subscription_ends_its_session() {
    assert_eq!(ended_sessions(false).await, 1);
}

#[tokio::test]
async fn a_stop_drops_subscriptions_and_ends_no_session() {
    // The task takes what is ready in random order; once would prove little.
    for round in 0..40 {
        assert_eq!(ended_sessions(true).await, 0, "round {round}");
    }
}

fn limit(metrics: &Metrics, name: &str) -> Limit {
    metrics.limits().into_iter().find(|limit| limit.name == name).unwrap()
}

#[tokio::test]
async fn a_full_queue_is_an_answer_and_counted() {
    let (broker, _task, _writer) = broker(Settings::default(), Arc::default());
    let metrics = Metrics::new();
    broker.watch_limits(&metrics);
    // The task does not run, so what was asked waits although nobody waits for the answer.
    for _ in 0..1024 {
        assert!(broker.report().now_or_never().is_none(), "answered without a task");
    }
    assert_eq!(limit(&metrics, "broker_queue"), Limit::shared("broker_queue", 1024, 1024, 0));
    assert!(matches!(broker.report().now_or_never(), Some(Err(ReadError::Busy))));
    assert_eq!(limit(&metrics, "broker_queue"), Limit::shared("broker_queue", 1024, 1024, 1));
}

#[tokio::test]
async fn a_value_that_is_too_long_is_refused_and_counted() {
    let mut settings = Settings::default();
    settings.limits.value_bytes = 4;
    let (broker, task, _writer) = broker(settings, Arc::default());
    let metrics = Metrics::new();
    broker.watch_limits(&metrics);
    let work = CancellationToken::new();
    let running = tokio::spawn(task.run(work.clone()));
    let mut subscription = broker.subscribe(authorized()).await.unwrap();
    let told = subscription.updates().wait_for(|update| update.problem.is_some()).await.unwrap();
    let message = told.problem.as_ref().unwrap().message.clone();
    drop(told);
    assert!(message.contains("limits.value_bytes = 4"), "{message}");
    assert_eq!(limit(&metrics, "value_bytes"), Limit::each("value_bytes", 4, 1));
    work.cancel();
    running.await.unwrap().unwrap();
}
