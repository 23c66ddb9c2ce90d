//! What it costs that no TLS session is resumed: a whole handshake with certificates on both sides, beside one that
//! resumes, both within this thread. `cargo bench -p tidepool-runtime --bench handshakes`
#![expect(clippy::unwrap_used, clippy::print_stdout, reason = "a bench may panic, and prints")]

use std::{
    path::Path,
    sync::Arc,
    time::{Duration, Instant},
};

use rustls::{
    ClientConfig, ClientConnection, HandshakeKind, RootCertStore, ServerConfig, ServerConnection,
    client::Resumption,
    pki_types::{CertificateDer, PrivateKeyDer, ServerName, pem::PemObject},
    server::{ServerSessionMemoryCache, WebPkiClientVerifier},
    version::TLS13,
};
use tidepool_runtime::certs::{self, CertsOptions};

/// Of each kind, by turns.
const ROUNDS: usize = 5;
const HANDSHAKES: u32 = 200;
/// More than all of them leave behind.
const SESSIONS: usize = 1 << 14;

fn main() {
    let dir = tempfile::tempdir().unwrap();
    let options = CertsOptions {
        dir: dir.path().to_owned(),
        names: Vec::new(),
        valid_for: Duration::from_secs(3600),
        force: false,
    };
    certs::make(&options).unwrap();
    let server = server(dir.path());
    let (whole, resumed) = (client(dir.path(), false), client(dir.path(), true));
    // The first brings the ticket.
    assert_eq!(handshake(&server, &resumed), HandshakeKind::Full);
    let rounds = if std::env::args().any(|arg| arg == "--test") { 1 } else { ROUNDS };
    for round in 1..=rounds {
        let [whole, resumed] =
            [(&whole, HandshakeKind::Full), (&resumed, HandshakeKind::Resumed)].map(|(client, kind)| {
                let began = Instant::now();
                for _ in 0..HANDSHAKES {
                    assert_eq!(handshake(&server, client), kind);
                }
                began.elapsed() / HANDSHAKES
            });
        println!("round {round}: both sides of a handshake take {whole:?} whole, {resumed:?} resumed");
    }
}

fn server(dir: &Path) -> Arc<ServerConfig> {
    let verifier = WebPkiClientVerifier::builder_with_provider(roots(dir), provider()).build().unwrap();
    let builder = ServerConfig::builder_with_provider(provider()).with_protocol_versions(&[&TLS13]).unwrap();
    let (chain, key) = own(dir, "node");
    let builder = builder.with_client_cert_verifier(verifier);
    let mut config = builder.with_single_cert(chain, key).unwrap();
    // Whole handshakes leave sessions behind, too: they must not drive out those that are resumed.
    config.session_storage = ServerSessionMemoryCache::new(SESSIONS);
    Arc::new(config)
}

fn client(dir: &Path, resumes: bool) -> Arc<ClientConfig> {
    let builder = ClientConfig::builder_with_provider(provider()).with_protocol_versions(&[&TLS13]).unwrap();
    let (chain, key) = own(dir, "client");
    let mut config = builder.with_root_certificates(roots(dir)).with_client_auth_cert(chain, key).unwrap();
    if !resumes {
        config.resumption = Resumption::disabled();
    }
    Arc::new(config)
}

fn provider() -> Arc<rustls::crypto::CryptoProvider> {
    Arc::new(rustls::crypto::ring::default_provider())
}

fn roots(dir: &Path) -> Arc<RootCertStore> {
    let mut roots = RootCertStore::empty();
    roots.add(CertificateDer::from_pem_file(dir.join("ca.pem")).unwrap()).unwrap();
    Arc::new(roots)
}

fn own(dir: &Path, holder: &str) -> (Vec<CertificateDer<'static>>, PrivateKeyDer<'static>) {
    let file = |kind: &str| dir.join(format!("{holder}.{kind}"));
    let chain = vec![CertificateDer::from_pem_file(file("pem")).unwrap()];
    (chain, PrivateKeyDer::from_pem_file(file("key")).unwrap())
}

/// One handshake, and the tickets after it.
fn handshake(server: &Arc<ServerConfig>, client: &Arc<ClientConfig>) -> HandshakeKind {
    let mut server = ServerConnection::new(server.clone()).unwrap();
    let name = ServerName::try_from("localhost").unwrap();
    let mut client = ClientConnection::new(client.clone(), name).unwrap();
    let mut wire = Vec::new();
    while client.is_handshaking() || server.is_handshaking() || server.wants_write() {
        while client.wants_write() {
            client.write_tls(&mut wire).unwrap();
        }
        let mut bytes = wire.as_slice();
        while !bytes.is_empty() {
            server.read_tls(&mut bytes).unwrap();
        }
        server.process_new_packets().unwrap();
        wire.clear();
        while server.wants_write() {
            server.write_tls(&mut wire).unwrap();
        }
        let mut bytes = wire.as_slice();
        while !bytes.is_empty() {
            client.read_tls(&mut bytes).unwrap();
        }
        client.process_new_packets().unwrap();
        wire.clear();
    }
    server.handshake_kind().unwrap()
}
