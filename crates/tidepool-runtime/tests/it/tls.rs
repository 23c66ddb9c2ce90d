//! Doors as those see them who come to them: sessions that are not resumed, sockets that say nothing, and what is told
//! of certificates that do not do.

use std::{path::Path, sync::Arc, time::Duration};

use prometheus::Registry;
use rustls::{
    ClientConfig, HandshakeKind, RootCertStore,
    pki_types::{CertificateDer, PrivateKeyDer, ServerName, pem::PemObject},
    version::TLS13,
};
use tempfile::TempDir;
use tidepool_runtime::{
    certs::{self, CertsOptions},
    error::chain,
    listen::Incoming,
    net::bind_tcp,
    security::{Security, SecurityOptions},
    tls::{ClientAuth, ClientFiles, Dial, TlsFiles},
};
use tokio::{io::AsyncReadExt, net::TcpStream, task::JoinHandle, time::timeout};
use tokio_rustls::TlsConnector;
use tokio_stream::StreamExt;
use tonic::transport::Endpoint;

const DEADLINE: Duration = Duration::from_secs(30);
const DAY: Duration = Duration::from_secs(24 * 3600);

/// Certificates in `dir`, whose authority stays.
fn make(dir: &Path, valid_for: Duration, names: &[&str]) {
    let names = names.iter().map(|name| (*name).to_owned()).collect();
    certs::make(&CertsOptions { dir: dir.to_owned(), names, valid_for, force: true }).unwrap();
}

fn options(dir: &Path) -> SecurityOptions {
    let file = |name: &str| dir.join(name);
    let tls = TlsFiles {
        cert: file("node.pem"),
        key: file("node.key"),
        ca: Some(file("ca.pem")),
        client_auth: ClientAuth::Require,
    };
    SecurityOptions { tls: Some(tls), ..SecurityOptions::default() }
}

/// A server that holds every connection it is given.
struct Door {
    address: String,
    registry: Registry,
    serving: JoinHandle<()>,
}

impl Door {
    async fn open(dir: &Path) -> Self {
        let registry = Registry::new();
        let security = Security::open(&options(dir), &registry).unwrap();
        let tcp = bind_tcp("127.0.0.1:0").await.unwrap();
        let address = tcp.local_addr().unwrap().to_string();
        let incoming = security.grpc(tcp);
        Self { address, registry, serving: tokio::spawn(hold(incoming)) }
    }

    fn failures(&self) -> f64 {
        let families = self.registry.gather();
        let of = families.iter().find(|f| f.name() == "tidepool_tls_handshake_failures_total").unwrap();
        of.get_metric()[0].get_counter().get_value()
    }
}

impl Drop for Door {
    fn drop(&mut self) {
        self.serving.abort();
    }
}

fn endpoint(address: &str) -> Endpoint {
    Endpoint::from_shared(format!("http://{address}")).unwrap()
}

async fn hold(mut incoming: Incoming) {
    let mut held = Vec::new();
    while let Some(connection) = incoming.next().await {
        held.push(connection);
    }
}

/// What a client that means no good has: sessions are kept.
fn keeps_sessions(dir: &Path) -> TlsConnector {
    let mut roots = RootCertStore::empty();
    roots.add(CertificateDer::from_pem_file(dir.join("ca.pem")).unwrap()).unwrap();
    let chain = vec![CertificateDer::from_pem_file(dir.join("client.pem")).unwrap()];
    let key = PrivateKeyDer::from_pem_file(dir.join("client.key")).unwrap();
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let mut config = ClientConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&TLS13])
        .unwrap()
        .with_root_certificates(roots)
        .with_client_auth_cert(chain, key)
        .unwrap();
    config.alpn_protocols = vec![b"h2".to_vec()];
    TlsConnector::from(Arc::new(config))
}

#[tokio::test]
async fn no_session_is_resumed_for_its_certificate_may_have_ended() {
    let dir = TempDir::new().unwrap();
    make(dir.path(), DAY, &[]);
    let door = Door::open(dir.path()).await;
    let connector = keeps_sessions(dir.path());
    for _ in 0..3 {
        let tcp = TcpStream::connect(&door.address).await.unwrap();
        let name = ServerName::try_from("localhost").unwrap();
        let mut stream = connector.connect(name, tcp).await.unwrap();
        // Tickets come with the first read.
        let _ = timeout(Duration::from_millis(200), stream.read_u8()).await;
        let (_, connection) = stream.get_ref();
        assert!(connection.tls13_tickets_received() > 0, "they tell whoever waits that he was accepted");
        assert_eq!(connection.handshake_kind(), Some(HandshakeKind::Full));
    }
}

#[tokio::test]
async fn sockets_that_say_nothing_keep_nobody_out() {
    let dir = TempDir::new().unwrap();
    make(dir.path(), DAY, &[]);
    let door = Door::open(dir.path()).await;
    let mut silent = Vec::new();
    for _ in 0..400 {
        silent.push(TcpStream::connect(&door.address).await.unwrap());
    }
    let own = Some((dir.path().join("client.pem"), dir.path().join("client.key")));
    let dial = Dial::with_files(&ClientFiles { ca: dir.path().join("ca.pem"), own }).unwrap();
    let began = std::time::Instant::now();
    timeout(DEADLINE, dial.connect(endpoint(&door.address))).await.unwrap().unwrap();
    assert!(began.elapsed() < Duration::from_secs(8), "not after their ten seconds: {:?}", began.elapsed());
    let gone = door.failures();
    assert!(gone >= 200.0, "{gone}");
}

#[tokio::test]
async fn what_is_wrong_with_a_servers_certificate_is_told_with_what_to_do() {
    let dir = TempDir::new().unwrap();
    make(dir.path(), Duration::from_secs(4), &["node-1.example"]);
    let door = Door::open(dir.path()).await;
    let own_dir = TempDir::new().unwrap();
    for file in ["ca.pem", "ca.key"] {
        std::fs::copy(dir.path().join(file), own_dir.path().join(file)).unwrap();
    }
    make(own_dir.path(), DAY, &[]);
    let files = |dir: &Path, own: &Path| ClientFiles {
        ca: dir.join("ca.pem"),
        own: Some((own.join("client.pem"), own.join("client.key"))),
    };
    let said = async |dial: &Dial, address: &str| {
        let connected = timeout(DEADLINE, dial.connect(endpoint(address))).await.unwrap();
        connected.err().map(|error| chain(&error)).unwrap_or_default()
    };
    let dial = Dial::with_files(&files(own_dir.path(), own_dir.path())).unwrap();
    // It is reached by an address that its certificate does not have.
    let port = door.address.rsplit_once(':').unwrap().1;
    let elsewhere = format!("127.0.0.2:{port}");
    let tcp = bind_tcp(&elsewhere).await.unwrap();
    let security = Security::open(&options(own_dir.path()), &Registry::new()).unwrap();
    let serving = tokio::spawn(hold(security.grpc(tcp)));
    let text = said(&dial, &elsewhere).await;
    assert!(text.contains(&elsewhere) && text.contains("is for other names"), "{text}");
    serving.abort();
    // Nobody whom we trust has signed it.
    let other = TempDir::new().unwrap();
    make(other.path(), DAY, &[]);
    let stranger = Dial::with_files(&files(other.path(), own_dir.path())).unwrap();
    let text = said(&stranger, &door.address).await;
    assert!(text.contains("an authority that is not in our ca file"), "{text}");
    // Its time ends while it serves.
    let until = std::time::Instant::now() + DEADLINE;
    let text = loop {
        let text = said(&dial, &door.address).await;
        if text.contains("expired") {
            break text;
        }
        assert!(std::time::Instant::now() < until, "{text}");
        tokio::time::sleep(Duration::from_millis(50)).await;
    };
    assert!(text.contains("the certificate there has expired: put a new one in its place"), "{text}");
}
