//! A piece of network that can go bad: TCP connections through here can be broken, or go silent without being
//! closed, as they do when a link is cut between two machines.

use std::{io, net::SocketAddr, sync::Arc};

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{
        TcpListener, TcpStream,
        tcp::{OwnedReadHalf, OwnedWriteHalf},
    },
    sync::{Semaphore, watch},
};
use tokio_util::task::AbortOnDropHandle;

use crate::BenchError;

/// Bytes that a connection holds in each direction, besides what sockets do.
const BUFFER_BYTES: usize = 64 << 10;
/// Connections at one time; more wait to be accepted.
const MAX_CONNECTIONS: usize = 1024;

/// What happens to the bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Weather {
    /// Nothing passes, nothing is closed, nobody is let in.
    silent: bool,
    /// Connections that were made before this number was reached are broken.
    breaks: u64,
}

/// Passes connections on to one address. Dropping it breaks all of them.
#[derive(Debug)]
pub struct Proxy {
    address: SocketAddr,
    weather: watch::Sender<Weather>,
    _accepting: AbortOnDropHandle<()>,
}

impl Proxy {
    /// A proxy on a free loopback port before `target`.
    ///
    /// # Errors
    /// [`BenchError::Io`].
    pub async fn start(target: SocketAddr) -> Result<Self, BenchError> {
        let listen = async || {
            let listener = TcpListener::bind("127.0.0.1:0").await?;
            io::Result::Ok((listener.local_addr()?, listener))
        };
        let (address, listener) =
            listen().await.map_err(BenchError::io(format!("a proxy before {target}")))?;
        let (weather, watched) = watch::channel(Weather::default());
        let accepting = AbortOnDropHandle::new(tokio::spawn(accept(listener, target, watched)));
        Ok(Self { address, weather, _accepting: accepting })
    }

    /// Where it listens.
    #[must_use]
    pub const fn address(&self) -> SocketAddr {
        self.address
    }

    /// Breaks every connection there is.
    pub fn break_connections(&self) {
        self.weather.send_modify(|weather| weather.breaks += 1);
    }

    /// From now on nothing passes, in either direction, and nothing is closed.
    pub fn fall_silent(&self) {
        self.weather.send_modify(|weather| weather.silent = true);
    }

    /// What was held back passes again.
    pub fn heal(&self) {
        self.weather.send_modify(|weather| weather.silent = false);
    }
}

async fn accept(listener: TcpListener, target: SocketAddr, mut weather: watch::Receiver<Weather>) {
    let places = Arc::new(Semaphore::new(MAX_CONNECTIONS));
    // The tasks of connections end with this one.
    let mut connections = tokio::task::JoinSet::new();
    loop {
        let Ok(place) = Arc::clone(&places).acquire_owned().await else { return };
        while connections.try_join_next().is_some() {}
        if weather.wait_for(|weather| !weather.silent).await.is_err() {
            return;
        }
        let Ok((here, _)) = listener.accept().await else { continue };
        let weather = weather.clone();
        connections.spawn(async move {
            // An error of either side ends both.
            let _ = connection(here, target, weather).await;
            drop(place);
        });
    }
}

async fn connection(
    here: TcpStream,
    target: SocketAddr,
    mut weather: watch::Receiver<Weather>,
) -> io::Result<()> {
    let made_at = weather.borrow_and_update().breaks;
    let there = TcpStream::connect(target).await?;
    here.set_nodelay(true)?;
    there.set_nodelay(true)?;
    let (from_here, to_here) = here.into_split();
    let (from_there, to_there) = there.into_split();
    let silence = weather.clone();
    tokio::select! {
        ended = pass(from_here, to_there, silence.clone()) => ended,
        ended = pass(from_there, to_here, silence) => ended,
        _ = weather.wait_for(|weather| weather.breaks != made_at) => Ok(()),
    }
}

async fn pass(
    mut from: OwnedReadHalf,
    mut to: OwnedWriteHalf,
    mut weather: watch::Receiver<Weather>,
) -> io::Result<()> {
    let mut buffer = vec![0; BUFFER_BYTES];
    loop {
        let len = from.read(&mut buffer).await?;
        if weather.wait_for(|weather| !weather.silent).await.is_err() || len == 0 {
            return Ok(());
        }
        to.write_all(&buffer[..len]).await?;
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use tokio::time::timeout;

    use super::*;

    const DEADLINE: Duration = Duration::from_secs(10);

    /// A server that sends back what it gets.
    async fn echo() -> SocketAddr {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                tokio::spawn(async move {
                    let (mut from, mut to) = stream.into_split();
                    tokio::io::copy(&mut from, &mut to).await
                });
            }
        });
        address
    }

    async fn round(stream: &mut TcpStream, byte: u8) -> io::Result<u8> {
        stream.write_all(&[byte]).await?;
        stream.read_u8().await
    }

    #[tokio::test]
    async fn bytes_pass_are_held_back_and_pass_again() {
        let proxy = Proxy::start(echo().await).await.unwrap();
        let mut stream = TcpStream::connect(proxy.address()).await.unwrap();
        assert_eq!(round(&mut stream, 1).await.unwrap(), 1);
        proxy.fall_silent();
        stream.write_all(&[2]).await.unwrap();
        // Nothing to wait for: that nothing comes can only be seen by looking a while.
        assert!(timeout(Duration::from_millis(50), stream.read_u8()).await.is_err());
        proxy.heal();
        assert_eq!(timeout(DEADLINE, stream.read_u8()).await.unwrap().unwrap(), 2);
    }

    #[tokio::test]
    async fn broken_connections_end_and_new_ones_are_made() {
        let proxy = Proxy::start(echo().await).await.unwrap();
        let mut stream = TcpStream::connect(proxy.address()).await.unwrap();
        assert_eq!(round(&mut stream, 1).await.unwrap(), 1);
        proxy.break_connections();
        assert!(timeout(DEADLINE, stream.read_u8()).await.unwrap().is_err());
        let mut stream = TcpStream::connect(proxy.address()).await.unwrap();
        assert_eq!(timeout(DEADLINE, round(&mut stream, 3)).await.unwrap().unwrap(), 3);
    }
}
