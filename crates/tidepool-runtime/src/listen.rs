//! Connections as they come: TCP, with TLS before anything else where there is TLS. One listener serves gRPC
//! and HTTP alike, and tells of each connection who is at its other end.

use std::{
    fmt,
    future::{Future, poll_fn},
    io::{self, IoSlice},
    net::SocketAddr,
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    task::{Context, Poll, ready},
    time::{Duration, Instant},
};

use axum::{extract::connect_info, serve::IncomingStream};
use prometheus::IntCounter;
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::{TcpListener, TcpStream},
    time::{self, Sleep},
};
use tokio_rustls::{TlsAcceptor, server::TlsStream};
use tokio_stream::Stream;
use tokio_util::either::Either;
use tonic::transport::server::Connected;

use crate::{
    handshakes::Handshakes,
    tls::{Tls, names},
};

/// For the TLS of a connection that has come.
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(10);
/// After an error that is no single connection's: file descriptors have run out, mostly.
const ACCEPT_PAUSE: Duration = Duration::from_millis(500);
/// Between two lines about handshakes that failed: whoever knocks must not fill the log.
const FAILURE_LINES: Duration = Duration::from_secs(5);

/// Who is at the other end of a connection.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Peer {
    /// Where it comes from.
    pub address: SocketAddr,
    /// The DNS names of its certificate, when it has shown one that the authority vouches for.
    pub certificate: Option<Arc<[String]>>,
}

/// A connection that is ready for requests.
pub struct Connection {
    io: Io,
    peer: Peer,
}

/// Plain, or TLS.
type Io = Either<TcpStream, Box<TlsStream<TcpStream>>>;

/// Connections that come in at an address.
pub struct Incoming {
    tcp: TcpListener,
    tls: Option<Lock>,
    handshakes: Handshakes<Connection>,
    pause: Option<Pin<Box<Sleep>>>,
}

/// TLS for connections that come, and what is told of those that fail.
#[derive(Clone)]
pub(crate) struct Lock {
    pub(crate) tls: Tls,
    /// What is spoken inside.
    pub(crate) protocol: &'static [u8],
    pub(crate) failures: Failures,
}

/// Handshakes that fail.
#[derive(Clone, Debug)]
pub(crate) struct Failures {
    count: IntCounter,
    last_line: Arc<AtomicU64>,
    began: Instant,
}

impl fmt::Debug for Incoming {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Incoming").field("tcp", &self.tcp).field("tls", &self.tls.is_some()).finish()
    }
}

impl Incoming {
    /// Connections that come to `tcp`, through `lock` if there is one. Each has `TCP_NODELAY`: without it small
    /// answers wait for the peer's delayed acknowledgement (40 ms).
    pub(crate) fn new(tcp: TcpListener, lock: Option<Lock>) -> Self {
        Self { tcp, tls: lock, handshakes: Handshakes::new(), pause: None }
    }

    fn poll_accept(&mut self, cx: &mut Context<'_>) -> Poll<Connection> {
        loop {
            if let Poll::Ready(connection) = self.handshakes.poll_next(cx) {
                return Poll::Ready(connection);
            }
            if let Some(pause) = &mut self.pause {
                ready!(pause.as_mut().poll(cx));
                self.pause = None;
            }
            let (stream, address) = match ready!(self.tcp.poll_accept(cx)) {
                Ok(accepted) => accepted,
                Err(error) if is_of_one_connection(&error) => continue,
                Err(error) => {
                    tracing::error!(%error, retry_in = ?ACCEPT_PAUSE, "connections cannot be accepted");
                    self.pause = Some(Box::pin(time::sleep(ACCEPT_PAUSE)));
                    continue;
                }
            };
            if let Err(error) = stream.set_nodelay(true) {
                tracing::debug!(%error, %address, "could not set TCP_NODELAY on a connection");
            }
            match &self.tls {
                None => {
                    let peer = Peer { address, certificate: None };
                    return Poll::Ready(Connection { io: Either::Left(stream), peer });
                }
                Some(lock) => {
                    let unlock = |spoken| lock.clone().unlock(stream, address, spoken);
                    if let Some(gone) = self.handshakes.begin(address, unlock) {
                        lock.failures.tell(gone, "it had to go for another: too many were under way");
                    }
                }
            }
        }
    }
}

impl Lock {
    async fn unlock(
        self,
        stream: TcpStream,
        address: SocketAddr,
        spoken: Arc<AtomicBool>,
    ) -> Option<Connection> {
        let acceptor = TlsAcceptor::from(self.tls.server(self.protocol));
        let handshake = async {
            stream.readable().await?;
            spoken.store(true, Ordering::Relaxed);
            acceptor.accept(stream).await
        };
        let problem = match time::timeout(HANDSHAKE_TIMEOUT, handshake).await {
            Ok(Ok(stream)) => {
                let shown = stream.get_ref().1.peer_certificates().and_then(|chain| chain.first());
                let peer = Peer { address, certificate: shown.map(|c| names(c).into()) };
                return Some(Connection { io: Either::Right(Box::new(stream)), peer });
            }
            Ok(Err(error)) => error.to_string(),
            Err(_) => format!("nothing was heard for {HANDSHAKE_TIMEOUT:?}"),
        };
        self.failures.tell(address, &problem);
        None
    }
}

impl Failures {
    pub(crate) fn new(count: IntCounter) -> Self {
        Self { count, last_line: Arc::default(), began: Instant::now() }
    }

    fn tell(&self, address: SocketAddr, problem: &str) {
        self.count.inc();
        // From 1 on: 0 is that there was no line yet.
        let now = self.began.elapsed().as_millis() as u64 + 1;
        let last = self.last_line.load(Ordering::Relaxed);
        let due = last == 0 || now - last.min(now) >= FAILURE_LINES.as_millis() as u64;
        if due && self.last_line.compare_exchange(last, now, Ordering::Relaxed, Ordering::Relaxed).is_ok() {
            tracing::warn!(%address, problem, "a connection was refused: no TLS with it");
        } else {
            tracing::debug!(%address, problem, "a connection was refused: no TLS with it");
        }
    }
}

/// Whether the next connection may do better.
fn is_of_one_connection(error: &io::Error) -> bool {
    use io::ErrorKind::{ConnectionAborted, ConnectionRefused, ConnectionReset, Interrupted, TimedOut};
    matches!(error.kind(), ConnectionAborted | ConnectionRefused | ConnectionReset | Interrupted | TimedOut)
}

impl Stream for Incoming {
    type Item = io::Result<Connection>;

    fn poll_next(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        self.get_mut().poll_accept(cx).map(|connection| Some(Ok(connection)))
    }
}

impl axum::serve::Listener for Incoming {
    type Io = Connection;
    type Addr = Peer;

    async fn accept(&mut self) -> (Connection, Peer) {
        let connection = poll_fn(|cx| self.poll_accept(cx)).await;
        let peer = connection.peer.clone();
        (connection, peer)
    }

    fn local_addr(&self) -> io::Result<Peer> {
        Ok(Peer { address: self.tcp.local_addr()?, certificate: None })
    }
}

impl connect_info::Connected<IncomingStream<'_, Incoming>> for Peer {
    fn connect_info(stream: IncomingStream<'_, Incoming>) -> Self {
        stream.remote_addr().clone()
    }
}

impl Connected for Connection {
    type ConnectInfo = Peer;

    fn connect_info(&self) -> Peer {
        self.peer.clone()
    }
}

impl fmt::Debug for Connection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Connection").field("peer", &self.peer).finish_non_exhaustive()
    }
}

impl AsyncRead for Connection {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_read(cx, buffer)
    }
}

impl AsyncWrite for Connection {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.io).poll_write(cx, bytes)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.io).poll_write_vectored(cx, slices)
    }

    fn is_write_vectored(&self) -> bool {
        self.io.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use tokio_stream::StreamExt;

    use super::*;
    use crate::net::bind_tcp;

    #[tokio::test]
    async fn accepted_connections_have_no_delay_and_tell_where_they_come_from() {
        let listener = bind_tcp("127.0.0.1:0").await.unwrap();
        let here = listener.local_addr().unwrap();
        let mut incoming = Incoming::new(listener, None);
        let there = TcpStream::connect(here).await.unwrap();
        let connection = incoming.next().await.unwrap().unwrap();
        assert_eq!(
            connection.connect_info(),
            Peer { address: there.local_addr().unwrap(), certificate: None }
        );
        let Either::Left(stream) = connection.io else { panic!("there is no TLS") };
        assert!(stream.nodelay().unwrap());
    }

    #[test]
    fn whoever_knocks_does_not_fill_the_log() {
        let failures = Failures::new(IntCounter::new("x", "x").unwrap());
        let line = |failures: &Failures| {
            let before = failures.last_line.load(Ordering::Relaxed);
            failures.tell("127.0.0.1:1".parse().unwrap(), "x");
            failures.last_line.load(Ordering::Relaxed) != before
        };
        assert!(line(&failures), "the first is told");
        for _ in 0..100 {
            assert!(!line(&failures));
        }
        assert_eq!(failures.count.get(), 101);
    }
}
