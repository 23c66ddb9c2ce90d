//! Connections to others: plain, or TLS with the certificates there are at that moment.

use std::{
    future::{Future, poll_fn},
    io,
    path::PathBuf,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use hyper_util::rt::TokioIo;
use rustls::{ClientConfig, pki_types::ServerName};
use thiserror::Error;
use tokio::{
    io::{AsyncBufRead, BufReader},
    net::TcpStream,
    task, time,
};
use tokio_rustls::{TlsConnector, client::TlsStream};
use tokio_util::either::Either;
use tonic::{
    codegen::http::{Uri, uri::Scheme},
    transport::{self, Channel, Endpoint},
};
use tower::Service;

use super::{
    Tls,
    error::TlsError,
    files::{ClientFiles, H2, HTTP_1_1, still_holds},
    x509::Validity,
};
use crate::{error::chain, utc};

/// For the TLS of a connection, once TCP is there.
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(10);
/// For the server's verdict on our certificate, after that.
const ACCEPTED_TIMEOUT: Duration = Duration::from_secs(10);
const SPOKEN_BYTES: usize = 64;

/// How connections to other processes are made. Cheap to clone; the default is plaintext.
#[derive(Clone, Debug, Default)]
pub struct Dial(Kind);

#[derive(Clone, Debug, Default)]
enum Kind {
    #[default]
    Plaintext,
    /// By the certificates of a process that serves; they may change.
    Server(Tls),
    /// By those that were read at the start.
    Client { config: Arc<ClientConfig>, own: Option<(PathBuf, Validity)> },
    /// By those that are there when it connects.
    Files(Arc<ClientFiles>),
}

/// Why there is no connection. Its text is whole, because what carries it drops its sources.
#[derive(Debug, Error)]
enum DialError {
    #[error("{address} is no host:port")]
    Address { address: String },
    #[error("no TCP connection to {address}: {cause}")]
    Tcp { address: String, cause: io::Error },
    #[error("no TLS with {address}: {cause}; {}", hint(.cause))]
    Tls { address: String, cause: io::Error },
    #[error("{address} does not accept our certificate, or wants one: {cause}")]
    Refused { address: String, cause: io::Error },
    #[error("no TLS with {address}: no answer within {HANDSHAKE_TIMEOUT:?}; is TLS spoken there?")]
    Silent { address: String },
    #[error("no connection to {address} is made: {}", chain(.cause))]
    Own { address: String, cause: TlsError },
    #[error("no connection to {address} is made: tls.ca names no authority to check it against")]
    NoAuthority { address: String },
}

/// What to do about a handshake that failed.
fn hint(cause: &io::Error) -> &'static str {
    use rustls::{CertificateError as C, Error};
    let cause = cause.get_ref().and_then(|inner| inner.downcast_ref::<Error>());
    let Some(Error::InvalidCertificate(problem)) = cause else { return "is TLS spoken there?" };
    match problem {
        C::Expired | C::ExpiredContext { .. } => {
            "the certificate there has expired: put a new one in its place"
        }
        C::NotValidYet | C::NotValidYetContext { .. } => {
            "the certificate there holds only later: are the clocks right?"
        }
        C::NotValidForName | C::NotValidForNameContext { .. } => {
            "the certificate there is for other names: ask by one of them, or make one for this name too"
        }
        C::UnknownIssuer | C::BadSignature => {
            "the certificate there is of an authority that is not in our ca file: is it the right file, and the right \
             server?"
        }
        _ => "the certificate there does not do",
    }
}

impl From<DialError> for io::Error {
    fn from(error: DialError) -> Self {
        Self::other(error)
    }
}

impl Dial {
    pub(super) const fn of(tls: Tls) -> Self {
        Self(Kind::Server(tls))
    }

    /// TLS by the files of a program that only connects.
    ///
    /// # Errors
    /// [`TlsError`] names the file, and what to do about it.
    pub fn with_files(files: &ClientFiles) -> Result<Self, TlsError> {
        let (config, own) = files.load(utc::now())?;
        let own = files.own.as_ref().map(|(cert, _)| cert.clone()).zip(own);
        Ok(Self(Kind::Client { config, own }))
    }

    /// TLS by the files of a program that connects for as long as it runs: they are read again for every connection,
    /// so that a new certificate needs no restart.
    ///
    /// # Errors
    /// [`TlsError`] of what is there now.
    pub fn with_files_of_now(files: ClientFiles) -> Result<Self, TlsError> {
        files.load(utc::now())?;
        Ok(Self(Kind::Files(Arc::new(files))))
    }

    /// Whether connections are TLS.
    #[must_use]
    pub const fn is_tls(&self) -> bool {
        !matches!(self.0, Kind::Plaintext)
    }

    /// A channel that connects when it is first used, and again after a failure. `endpoint` begins with `http://`
    /// whatever is spoken.
    #[must_use]
    pub fn channel(&self, endpoint: Endpoint) -> Channel {
        match self.secured(&endpoint) {
            None => endpoint.connect_lazy(),
            Some((endpoint, connector)) => endpoint.connect_with_connector_lazy(connector),
        }
    }

    /// The same, connected.
    ///
    /// # Errors
    /// As tonic has it; its sources say why.
    pub async fn connect(&self, endpoint: Endpoint) -> Result<Channel, transport::Error> {
        match self.secured(&endpoint) {
            None => endpoint.connect().await,
            Some((endpoint, connector)) => endpoint.connect_with_connector(connector).await,
        }
    }

    /// The endpoint as requests name it, and what connects to it; `None` for plaintext.
    fn secured(&self, endpoint: &Endpoint) -> Option<(Endpoint, Connector)> {
        if !self.is_tls() {
            return None;
        }
        let mut origin = endpoint.uri().clone().into_parts();
        origin.scheme = Some(Scheme::HTTPS);
        let origin = Uri::from_parts(origin).unwrap_or_else(|_| endpoint.uri().clone());
        Some((endpoint.clone().origin(origin), Connector(self.clone())))
    }

    /// A connection for HTTP/1.1 to `host:port`.
    ///
    /// # Errors
    /// Says to whom, and why there is none.
    pub async fn http(&self, address: &str) -> io::Result<Stream> {
        self.stream(address, HTTP_1_1).await
    }

    async fn stream(&self, address: &str, protocol: &[u8]) -> io::Result<Stream> {
        let address = || address.to_owned();
        let config = match &self.0 {
            Kind::Plaintext => None,
            Kind::Server(tls) => {
                let material = tls.material();
                // The peer would only say "certificate expired", and not whose.
                let own = |cause| DialError::Own { address: address(), cause };
                still_holds(&tls.files().cert, material.own).map_err(own)?;
                let config = material.client.clone();
                Some(config.ok_or_else(|| DialError::NoAuthority { address: address() })?)
            }
            Kind::Client { config, own } => {
                if let Some((path, own)) = own {
                    let refused = |cause| DialError::Own { address: address(), cause };
                    still_holds(path, *own).map_err(refused)?;
                }
                Some(config.clone())
            }
            Kind::Files(files) => {
                let of = files.clone();
                let loaded =
                    task::spawn_blocking(move || of.load(utc::now())).await.map_err(io::Error::other)?;
                let (config, _) = loaded.map_err(|cause| DialError::Own { address: address(), cause })?;
                Some(config)
            }
        };
        let tcp = |cause| DialError::Tcp { address: address(), cause };
        let stream = TcpStream::connect(address()).await.map_err(tcp)?;
        stream.set_nodelay(true).map_err(tcp)?;
        let Some(config) = config else { return Ok(Either::Left(stream)) };

        let mut config = ClientConfig::clone(&config);
        config.alpn_protocols = vec![protocol.to_vec()];
        let name = server_name(&address()).ok_or_else(|| DialError::Address { address: address() })?;
        let handshake = TlsConnector::from(Arc::new(config)).connect(name, stream);
        match time::timeout(HANDSHAKE_TIMEOUT, handshake).await {
            Ok(Ok(stream)) => {
                let accepted = time::timeout(ACCEPTED_TIMEOUT, accepted(stream));
                let refused = |cause| DialError::Refused { address: address(), cause };
                match accepted.await {
                    Ok(stream) => Ok(Either::Right(Box::new(stream.map_err(refused)?))),
                    Err(_) => Err(DialError::Silent { address: address() }.into()),
                }
            }
            Ok(Err(cause)) => Err(DialError::Tls { address: address(), cause }.into()),
            Err(_) => Err(DialError::Silent { address: address() }.into()),
        }
    }
}

/// Whom the certificate at `host:port` must be for.
fn server_name(address: &str) -> Option<ServerName<'static>> {
    let (host, _) = address.rsplit_once(':')?;
    let host = host.strip_prefix('[').and_then(|h| h.strip_suffix(']')).unwrap_or(host);
    ServerName::try_from(host.to_owned()).ok()
}

/// [`Dial`] as tonic asks for it.
#[derive(Clone, Debug)]
struct Connector(Dial);

impl Service<Uri> for Connector {
    type Response = TokioIo<Stream>;
    type Error = io::Error;
    type Future = Pin<Box<dyn Future<Output = io::Result<Self::Response>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, uri: Uri) -> Self::Future {
        let dial = self.0.clone();
        Box::pin(async move {
            let address = uri.authority().map_or_else(|| uri.to_string(), ToString::to_string);
            dial.stream(&address, H2).await.map(TokioIo::new)
        })
    }
}

/// A connection to another process: plain TCP, or TLS.
pub type Stream = Either<TcpStream, Box<BufReader<TlsStream<TcpStream>>>>;

/// Waits until the server has looked at our certificate. In TLS 1.3 a client is done before that, and would learn only
/// of a connection that is closed: whoever reads that it was "cancelled" cannot know why. A server that is content
/// sends tickets, or begins to speak.
async fn accepted(stream: TlsStream<TcpStream>) -> io::Result<BufReader<TlsStream<TcpStream>>> {
    // What it speaks is kept for whoever reads next; longer reads pass the buffer by.
    let mut stream = BufReader::with_capacity(SPOKEN_BYTES, stream);
    poll_fn(|cx| {
        let spoken = Pin::new(&mut stream).poll_fill_buf(cx).map_ok(|bytes| !bytes.is_empty());
        match spoken {
            Poll::Ready(Ok(true)) => Poll::Ready(Ok(())),
            Poll::Ready(Ok(false)) => Poll::Ready(Err(io::ErrorKind::UnexpectedEof.into())),
            Poll::Ready(Err(error)) => Poll::Ready(Err(error)),
            Poll::Pending if stream.get_ref().get_ref().1.tls13_tickets_received() > 0 => Poll::Ready(Ok(())),
            Poll::Pending => Poll::Pending,
        }
    })
    .await?;
    Ok(stream)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::certs::{self, CertsOptions};

    #[tokio::test]
    async fn a_certificate_that_ends_while_it_is_held_does_not_even_knock() {
        let folder = tempfile::tempdir().unwrap();
        let dir = folder.path().to_owned();
        let valid_for = Duration::from_secs(3600);
        certs::make(&CertsOptions { dir, names: Vec::new(), valid_for, force: false }).unwrap();
        let cert = folder.path().join("client.pem");
        let own = Some((cert.clone(), folder.path().join("client.key")));
        let files = ClientFiles { ca: folder.path().join("ca.pem"), own };
        let (config, held) = files.load(utc::now()).unwrap();
        // It was good when it was read, and has ended a second ago.
        let ended = Validity { not_after: utc::now() - 1, ..held.unwrap() };
        let dial = Dial(Kind::Client { config, own: Some((cert, ended)) });

        let server = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        server.set_nonblocking(true).unwrap();
        let refused = dial.http(&server.local_addr().unwrap().to_string()).await.err().unwrap();
        let text = refused.to_string();
        assert!(text.contains("client.pem expired on 20") && text.ends_with("put a new one there"), "{text}");
        assert_eq!(server.accept().unwrap_err().kind(), io::ErrorKind::WouldBlock, "nobody came");
    }

    #[test]
    fn the_name_that_a_certificate_must_have_is_the_host() {
        let name = |address| server_name(address).map(|name| name.to_str().into_owned());
        assert_eq!(name("node-1.example:7410").as_deref(), Some("node-1.example"));
        assert_eq!(name("127.0.0.1:7410").as_deref(), Some("127.0.0.1"));
        assert_eq!(name("[::1]:7410").as_deref(), Some("::1"));
        assert_eq!(name("7410"), None);
        assert_eq!(name("a b:1"), None);
    }
}
