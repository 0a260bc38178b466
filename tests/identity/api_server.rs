//! An API server that knows the pods of the node and nothing else: a list, and a watch in which
//! nothing happens.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::Path;
use std::sync::Arc;
use std::thread;

use rcgen::{CertificateParams, CertifiedIssuer, KeyPair};
use rustls::pki_types::PrivatePkcs8KeyDer;
use rustls::{ServerConfig, ServerConnection, StreamOwned};
use secrets_broker::domain::Pod;
use secrets_broker::identity::token::ApiServer;
use serde_json::{Value, json};

use crate::place::NODE;

type Connection = StreamOwned<ServerConnection, TcpStream>;

/// Starts one that serves until the test ends; what it takes to reach it is put into `directory`.
pub(crate) fn start(directory: &Path, pods: &[Arc<Pod>]) -> ApiServer {
    let key = KeyPair::generate().unwrap();
    let params = CertificateParams::new(vec!["127.0.0.1".to_owned()]).unwrap();
    let certificate = CertifiedIssuer::self_signed(params, key).unwrap();
    let tls = tls(&certificate);
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address: SocketAddr = listener.local_addr().unwrap();
    let list = list(pods).to_string();
    thread::spawn(move || {
        for stream in listener.incoming() {
            let session = ServerConnection::new(Arc::clone(&tls)).unwrap();
            let (connection, list) = (StreamOwned::new(session, stream.unwrap()), list.clone());
            thread::spawn(move || serve(connection, &list));
        }
    });
    let (ca_file, token_file) = (directory.join("ca.pem"), directory.join("api-token"));
    std::fs::write(&ca_file, certificate.pem()).unwrap();
    std::fs::write(&token_file, "the agent's own").unwrap();
    ApiServer::At { address: format!("https://{address}"), ca_file, token_file }
}

fn tls(certificate: &CertifiedIssuer<'_, KeyPair>) -> Arc<ServerConfig> {
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let key = PrivatePkcs8KeyDer::from(certificate.key().serialize_der());
    let config = ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(vec![certificate.der().clone()], key.into());
    Arc::new(config.unwrap())
}

/// The kubelet's and the scheduler's work, as the API server tells it.
fn list(pods: &[Arc<Pod>]) -> Value {
    let item = |pod: &Arc<Pod>| {
        json!({
            "metadata": {
                "name": pod.name.as_str(), "namespace": pod.account.namespace.as_str(),
                "uid": pod.uid.as_str(),
                "resourceVersion": "1",
            },
            "spec": { "nodeName": NODE, "serviceAccountName": pod.account.name.as_str() },
            "status": { "phase": "Running" },
        })
    };
    let items: Vec<Value> = pods.iter().map(item).collect();
    json!({
        "kind": "PodList", "apiVersion": "v1", "metadata": { "resourceVersion": "1" },
        "items": items,
    })
}

/// Answers requests until there are no more, or a watch that is never over.
fn serve(mut connection: Connection, list: &str) -> std::io::Result<()> {
    loop {
        let mut head = Vec::new();
        while !head.ends_with(b"\r\n\r\n") {
            let mut byte = [0];
            connection.read_exact(&mut byte)?;
            head.push(byte[0]);
        }
        let line = String::from_utf8_lossy(&head);
        if line.lines().next().unwrap_or_default().contains("watch=true") {
            let head = "HTTP/1.1 200 OK\r\ncontent-type: application/json\r\n\
                        transfer-encoding: chunked\r\n\r\n";
            connection.write_all(head.as_bytes())?;
            connection.flush()?;
            // Ends with the client.
            return connection.read_exact(&mut [0]);
        }
        let length = list.len();
        let head = format!(
            "HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: {length}\r\n\r\n"
        );
        connection.write_all(head.as_bytes())?;
        connection.write_all(list.as_bytes())?;
        connection.flush()?;
    }
}
