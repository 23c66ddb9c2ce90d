//! Certificates and keys, from the files that the configuration names to what rustls takes.

use std::{
    fs,
    path::{Path, PathBuf},
    sync::Arc,
};

use ring::digest;
use rustls::{
    ClientConfig, RootCertStore, ServerConfig,
    client::Resumption,
    crypto::CryptoProvider,
    pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject},
    server::{StoresServerSessions, WebPkiClientVerifier, danger::ClientCertVerifier},
    version::TLS13,
};
use serde::{Deserialize, Serialize};

use super::{
    error::TlsError,
    x509::{self, Validity},
};
use crate::{
    secret::{self, Shared},
    utc,
};

/// What a gRPC connection speaks.
pub(crate) const H2: &[u8] = b"h2";
/// What a connection to the admin server speaks.
pub(crate) const HTTP_1_1: &[u8] = b"http/1.1";

/// Whether whoever connects has to show a certificate.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ClientAuth {
    /// Yes, one of the authority. On the HTTP port it may be left out, and `/healthz` and `/readyz` are all that
    /// is shown then.
    #[default]
    Require,
    /// It may be left out; one that is shown is checked.
    Optional,
    /// None is asked for.
    None,
}

/// Where a process finds its own certificate, and whom it trusts.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TlsFiles {
    /// The certificate and those between it and the authority, PEM.
    pub cert: PathBuf,
    /// Its private key, PEM.
    pub key: PathBuf,
    /// Certificates of the authorities that callers and peers are checked against, PEM.
    pub ca: Option<PathBuf>,
    /// Whether callers show a certificate.
    pub client_auth: ClientAuth,
}

/// The bytes of the files at one moment.
pub(crate) struct Bytes {
    cert: Vec<u8>,
    key: Vec<u8>,
    ca: Option<Vec<u8>>,
}

/// A process' certificate, its authorities, and what is made of them.
#[derive(Debug)]
pub(crate) struct Material {
    pub(crate) grpc: Arc<ServerConfig>,
    pub(crate) http: Arc<ServerConfig>,
    pub(crate) client: Option<Arc<ClientConfig>>,
    pub(crate) own: Validity,
    /// That of the authorities which ends first.
    pub(crate) authority: Option<Validity>,
}

impl TlsFiles {
    pub(crate) fn read(&self) -> Result<Bytes, TlsError> {
        Ok(Bytes {
            cert: read(&self.cert)?,
            key: read_secret(&self.key)?,
            ca: self.ca.as_deref().map(read).transpose()?,
        })
    }

    /// Checks everything that can be checked before anyone connects, at the time `now`.
    pub(crate) fn load(&self, bytes: &Bytes, now: i64) -> Result<Material, TlsError> {
        let chain = certificates(&self.cert, &bytes.cert)?;
        let own = check(&self.cert, &chain[0], now)?;
        let key = private_key(&self.key, &bytes.key)?;
        let authorities = match (&self.ca, &bytes.ca) {
            (Some(path), Some(bytes)) => Some(authorities(path, bytes, now)?),
            _ => None,
        };
        let roots = authorities.as_ref().map(|(roots, _)| roots.clone());
        let server = |protocol: &[u8], client_auth: ClientAuth| {
            let builder = ServerConfig::builder_with_provider(provider())
                .with_protocol_versions(&[&TLS13])
                .map_err(|source| TlsError::Setup { source })?;
            let builder = match (client_auth, &roots) {
                (ClientAuth::None, _) | (_, None) => builder.with_no_client_auth(),
                (auth, Some(roots)) => builder.with_client_cert_verifier(verifier(roots, auth)?),
            };
            let config = builder.with_single_cert(chain.clone(), key.clone_key());
            let mut config = config.map_err(|source| self.pair(source))?;
            config.alpn_protocols = vec![protocol.to_vec()];
            config.session_storage = Arc::new(NothingKept);
            config.send_tls13_tickets = 1;
            Ok(Arc::new(config))
        };
        let on_http = match self.client_auth {
            ClientAuth::Require => ClientAuth::Optional,
            other => other,
        };
        let client = roots.clone().map(|roots| client(roots, Some((&chain, &key)))).transpose();
        Ok(Material {
            grpc: server(H2, self.client_auth)?,
            http: server(HTTP_1_1, on_http)?,
            client: client.map_err(|source| self.pair(source))?,
            own,
            authority: authorities.map(|(_, validity)| validity),
        })
    }

    fn pair(&self, source: rustls::Error) -> TlsError {
        TlsError::Pair { cert: self.cert.clone(), key: self.key.clone(), source }
    }
}

impl Bytes {
    /// Tells two states of the files apart.
    pub(crate) fn digest(&self) -> Vec<u8> {
        let mut context = digest::Context::new(&digest::SHA256);
        for part in [Some(&self.cert), Some(&self.key), self.ca.as_ref()].into_iter().flatten() {
            context.update(&(part.len() as u64).to_le_bytes());
            context.update(part);
        }
        context.finish().as_ref().to_vec()
    }
}

/// Where a process that only connects finds whom it trusts, and its own certificate where it has one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ClientFiles {
    /// Certificates of the authorities that servers are checked against, PEM.
    pub ca: PathBuf,
    /// Certificate and private key, PEM.
    pub own: Option<(PathBuf, PathBuf)>,
}

impl ClientFiles {
    pub(crate) fn load(&self, now: i64) -> Result<(Arc<ClientConfig>, Option<Validity>), TlsError> {
        let (roots, _) = authorities(&self.ca, &read(&self.ca)?, now)?;
        let Some((cert, key)) = &self.own else {
            return Ok((client(roots, None).map_err(|source| TlsError::Setup { source })?, None));
        };
        let chain = certificates(cert, &read(cert)?)?;
        let validity = check(cert, &chain[0], now)?;
        let private = private_key(key, &read_secret(key)?)?;
        let pair = |source| TlsError::Pair { cert: cert.clone(), key: key.clone(), source };
        Ok((client(roots, Some((&chain, &private))).map_err(pair)?, Some(validity)))
    }
}

/// One provider for all, named: rustls would otherwise look for one of the whole process.
fn provider() -> Arc<CryptoProvider> {
    Arc::new(rustls::crypto::ring::default_provider())
}

fn client(
    roots: Arc<RootCertStore>,
    own: Option<(&Vec<CertificateDer<'static>>, &PrivateKeyDer<'static>)>,
) -> Result<Arc<ClientConfig>, rustls::Error> {
    let builder = ClientConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&TLS13])?
        .with_root_certificates(roots);
    let mut config = match own {
        Some((chain, key)) => builder.with_client_auth_cert(chain.clone(), key.clone_key())?,
        None => builder.with_no_client_auth(),
    };
    config.resumption = Resumption::disabled();
    Ok(Arc::new(config))
}

/// No session is resumed: whoever resumes one shows no certificate, and the one of the first time may have expired, or
/// its authority may be trusted no more. Tickets are sent all the same, for they tell a client that it was accepted
/// where the server has nothing else to say; nothing can be had for them.
#[derive(Debug)]
struct NothingKept;

impl StoresServerSessions for NothingKept {
    fn put(&self, _: Vec<u8>, _: Vec<u8>) -> bool {
        // Said to be kept, or no ticket is sent.
        true
    }

    fn get(&self, _: &[u8]) -> Option<Vec<u8>> {
        None
    }

    fn take(&self, _: &[u8]) -> Option<Vec<u8>> {
        None
    }

    fn can_cache(&self) -> bool {
        true
    }
}

fn verifier(roots: &Arc<RootCertStore>, auth: ClientAuth) -> Result<Arc<dyn ClientCertVerifier>, TlsError> {
    let builder = WebPkiClientVerifier::builder_with_provider(roots.clone(), provider());
    let builder = if auth == ClientAuth::Optional { builder.allow_unauthenticated() } else { builder };
    builder.build().map_err(|e| TlsError::Setup { source: rustls::Error::General(e.to_string()) })
}

fn read(path: &Path) -> Result<Vec<u8>, TlsError> {
    fs::read(path).map_err(|source| TlsError::Read { path: path.to_owned(), source })
}

/// The same of a private key, which nobody else may read.
fn read_secret(path: &Path) -> Result<Vec<u8>, TlsError> {
    if let Err(Shared { mode }) = secret::kept(path) {
        return Err(TlsError::Shared { path: path.to_owned(), mode });
    }
    read(path)
}

fn certificates(path: &Path, pem: &[u8]) -> Result<Vec<CertificateDer<'static>>, TlsError> {
    let chain: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(pem).collect();
    let chain = chain.map_err(|e| TlsError::Pem { path: path.to_owned(), problem: e.to_string() })?;
    if chain.is_empty() {
        return Err(TlsError::Nothing { path: path.to_owned(), what: "certificate" });
    }
    Ok(chain)
}

fn private_key(path: &Path, pem: &[u8]) -> Result<PrivateKeyDer<'static>, TlsError> {
    use rustls::pki_types::pem::Error;
    PrivateKeyDer::from_pem_slice(pem).map_err(|error| match error {
        Error::NoItemsFound => TlsError::Nothing { path: path.to_owned(), what: "private key" },
        // Its text has none of the key: sections and lines are named by what is wrong with them.
        error => TlsError::Pem { path: path.to_owned(), problem: error.to_string() },
    })
}

fn authorities(path: &Path, pem: &[u8], now: i64) -> Result<(Arc<RootCertStore>, Validity), TlsError> {
    let (mut roots, mut first): (_, Option<Validity>) = (RootCertStore::empty(), None);
    let mut refused = None;
    for certificate in certificates(path, pem)? {
        // An old authority beside its successor: the old one may end while both are in the file.
        match check(path, &certificate, now) {
            Ok(validity) => first = first.into_iter().chain([validity]).min_by_key(|v| v.not_after),
            Err(error @ TlsError::Malformed { .. }) => return Err(error),
            Err(error) => {
                refused = refused.or(Some(error));
                continue;
            }
        }
        let refused = |source| TlsError::Authority { path: path.to_owned(), source };
        roots.add(certificate).map_err(refused)?;
    }
    match (first, refused) {
        (Some(first), _) => Ok((Arc::new(roots), first)),
        (None, Some(refused)) => Err(refused),
        (None, None) => Err(TlsError::Nothing { path: path.to_owned(), what: "certificate" }),
    }
}

/// When `certificate` holds, which must be `now`.
fn check(path: &Path, certificate: &CertificateDer<'_>, now: i64) -> Result<Validity, TlsError> {
    let path = || path.to_owned();
    let Some(validity) = x509::validity(certificate) else {
        return Err(TlsError::Malformed { path: path() });
    };
    let Validity { not_before, not_after } = validity;
    if now > not_after {
        return Err(TlsError::Expired { path: path(), not_after });
    }
    if now < not_before {
        return Err(TlsError::NotYet { path: path(), not_before, now });
    }
    Ok(validity)
}

/// Refuses a certificate whose time is over by now.
pub(crate) fn still_holds(path: &Path, own: Validity) -> Result<(), TlsError> {
    if utc::now() > own.not_after {
        return Err(TlsError::Expired { path: path.to_owned(), not_after: own.not_after });
    }
    Ok(())
}
