//! Tokens of real pods, issued and judged by a real kube-apiserver.

mod support;

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::time::{Duration, SystemTime};

use secrets_broker::domain::Token;
use secrets_broker::identity::token::{
    Algorithm, ApiServer, ApiServerError, Expectations, KeySource, KeysError, PodInfo,
    TokenRefused, Verification, Verifier,
};
use support::kubernetes::Kubernetes;
use tempfile::TempDir;

const AUDIENCE: &str = "vault";
const ACCOUNT: (&str, &str) = ("shop", "web");
const LIFETIME: Duration = Duration::from_secs(600);

/// A cluster with one pod of `shop/web` on `node-1`, and the agent's account beside it.
struct Cluster {
    kubernetes: Kubernetes,
    pod_uid: String,
    account_uid: String,
    files: TempDir,
}

impl Cluster {
    fn start() -> Cluster {
        let kubernetes = Kubernetes::start();
        kubernetes.create_namespace("shop");
        kubernetes.create_namespace("agents");
        kubernetes.create_service_account("agents", "agent");
        let account_uid = kubernetes.create_service_account("shop", "web");
        kubernetes.create_node("node-1");
        let pod_uid = kubernetes.create_pod("shop", "web-0", "web", "node-1");
        let files = TempDir::with_prefix("tokens-").expect("create a directory");
        let cluster = Cluster { kubernetes, pod_uid, account_uid, files };
        cluster.write_agents_token();
        cluster
    }

    fn write_agents_token(&self) {
        let token = self.kubernetes.token("agents", "agent", None, LIFETIME);
        fs::write(self.files.path().join("token"), token).expect("write the token file");
    }

    fn api_server(&self) -> ApiServer {
        ApiServer::At {
            address: self.kubernetes.address.clone(),
            ca_file: self.kubernetes.ca_file.clone(),
            token_file: self.files.path().join("token"),
        }
    }

    fn keys_in(&self, directory: &str) -> Verification {
        let directory = self.files.path().join(directory);
        Verification::Keys(KeySource::ApiServer { server: self.api_server(), directory })
    }

    fn copy(&self) -> PathBuf {
        self.files.path().join("keys/cluster-keys.json")
    }

    fn token(&self, audience: &str) -> String {
        self.kubernetes.pod_token(ACCOUNT, ("web-0", &self.pod_uid), audience)
    }

    fn info(&self) -> PodInfo {
        PodInfo {
            namespace: "shop".parse().expect("a name"),
            pod: "web-0".parse().expect("a name"),
            uid: self.pod_uid.parse().expect("a uid"),
            service_account: "web".parse().expect("a name"),
            account_uid_before: Some(self.account_uid.parse().expect("a uid")),
        }
    }

    /// Judges the token against what a kubelet would say of the pod.
    async fn judge(&self, verifier: &Verifier, token: &str) -> Result<(), TokenRefused> {
        let token = Token::new(token.as_bytes().to_vec()).expect("a token");
        let claims = verifier.verify(&token, SystemTime::now()).await?;
        let ends_in = claims.expires_at().duration_since(SystemTime::now()).expect("in the future");
        assert!(ends_in <= LIFETIME && ends_in > LIFETIME / 2, "{ends_in:?}");
        assert_eq!(claims.node().as_str(), "node-1");
        claims.matches(&self.info())
    }
}

/// No issuer is configured: it comes from the API server.
fn expectations() -> Expectations {
    Expectations {
        issuers: Vec::new(),
        audience: AUDIENCE.to_owned(),
        algorithms: Algorithm::ALL.to_vec(),
        node: "node-1".parse().expect("a name"),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_clusters_own_keys_prove_a_pod_also_in_an_outage_and_after_a_rotation() {
    let cluster = Cluster::start();
    let verifier = Verifier::open(expectations(), cluster.keys_in("keys")).await;
    let token = cluster.token(AUDIENCE);
    cluster.judge(&verifier, &token).await.expect("the pod's token proves the pod");
    let mode = fs::metadata(cluster.copy()).expect("a copy").permissions().mode() & 0o777;
    assert_eq!(mode, 0o600);

    let other = cluster.token("other");
    let refused = cluster.judge(&verifier, &other).await;
    assert!(matches!(refused, Err(TokenRefused::Audience(_))), "{refused:?}");
    let unbound = cluster.kubernetes.token("shop", "web", Some(AUDIENCE), LIFETIME);
    let refused = cluster.judge(&verifier, &unbound).await;
    assert!(matches!(refused, Err(TokenRefused::Claims(_))), "{refused:?}");
    let elsewhere = cluster.kubernetes.create_pod("shop", "web-1", "web", "node-2");
    let elsewhere = cluster.kubernetes.pod_token(ACCOUNT, ("web-1", &elsewhere), AUDIENCE);
    let refused = cluster.judge(&verifier, &elsewhere).await;
    assert!(matches!(refused, Err(TokenRefused::Node { .. })), "{refused:?}");
    let neighbour = cluster.kubernetes.create_pod("shop", "web-2", "web", "node-1");
    let neighbour = cluster.kubernetes.pod_token(ACCOUNT, ("web-2", &neighbour), AUDIENCE);
    let refused = cluster.judge(&verifier, &neighbour).await;
    let is_pod_name = matches!(refused, Err(TokenRefused::Differs { field: "pod name", .. }));
    assert!(is_pod_name, "{refused:?}");

    cluster.kubernetes.stop();
    cluster.judge(&verifier, &token).await.expect("keys in memory outlive the API server");
    let restarted = Verifier::open(expectations(), cluster.keys_in("keys")).await;
    cluster.judge(&restarted, &token).await.expect("the copy on disk does too");
    let without = Verifier::open(expectations(), cluster.keys_in("none")).await;
    let refused = cluster.judge(&without, &token).await;
    assert!(matches!(refused, Err(TokenRefused::Keys(KeysError::ApiServer(_)))), "{refused:?}");

    cluster.kubernetes.start_with_another_key();
    cluster.write_agents_token();
    let rotated = cluster.token(AUDIENCE);
    cluster.judge(&restarted, &rotated).await.expect("the new key is fetched");
    let refused = cluster.judge(&restarted, &token).await;
    let paused = matches!(refused, Err(TokenRefused::Keys(KeysError::Paused(_))));
    assert!(paused, "the old key is gone, and was asked for just now: {refused:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_token_review_proves_a_pod_until_the_pod_or_its_account_is_deleted() {
    let cluster = Cluster::start();
    let review = || Verification::TokenReview(cluster.api_server());
    let verifier = Verifier::open(expectations(), review()).await;
    let token = cluster.token(AUDIENCE);
    let refused = cluster.judge(&verifier, &token).await;
    let Err(TokenRefused::Review(KeysError::ApiServer(ApiServerError::Status { status, .. }))) =
        refused
    else {
        panic!("without the right to create tokenreviews: {refused:?}");
    };
    assert_eq!(status, 403);

    cluster.kubernetes.let_review_tokens("agents", "agent");
    let keys = Verifier::open(expectations(), cluster.keys_in("keys")).await;
    // RBAC reaches the API server's own cache a moment later.
    let granted = || async { cluster.judge(&verifier, &token).await.is_ok() };
    let deadline = SystemTime::now() + Duration::from_secs(10);
    while !granted().await {
        assert!(SystemTime::now() < deadline, "the right to create tokenreviews is not granted");
    }
    let other = cluster.token("other");
    let refused = cluster.judge(&verifier, &other).await;
    assert!(matches!(refused, Err(TokenRefused::NotAuthenticated)), "{refused:?}");

    let second = cluster.kubernetes.create_pod("shop", "web-1", "web", "node-1");
    let second = cluster.kubernetes.pod_token(ACCOUNT, ("web-1", &second), AUDIENCE);
    let refused = cluster.judge(&verifier, &second).await;
    assert!(matches!(refused, Err(TokenRefused::Differs { .. })), "{refused:?}");
    cluster.kubernetes.delete_pod("shop", "web-1");
    refused_soon(&cluster, &verifier, &second, "the pod is deleted").await;

    cluster.kubernetes.delete_service_account("shop", "web");
    refused_soon(&cluster, &verifier, &token, "the account is deleted").await;
    cluster.judge(&keys, &token).await.expect("a signature does not know of deletions");

    cluster.kubernetes.stop();
    let refused = cluster.judge(&verifier, &token).await;
    assert!(matches!(refused, Err(TokenRefused::Review(_))), "{refused:?}");
}

/// The API server remembers what it authenticated for ten seconds.
async fn refused_soon(cluster: &Cluster, verifier: &Verifier, token: &str, why: &str) {
    let deadline = SystemTime::now() + Duration::from_secs(20);
    loop {
        let judged = cluster.judge(verifier, token).await;
        if matches!(judged, Err(TokenRefused::NotAuthenticated)) {
            return;
        }
        assert!(SystemTime::now() < deadline, "{why}: {judged:?}");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}
