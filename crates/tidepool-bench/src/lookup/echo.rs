//! What lookups are compared with: the same bytes, to and from as many processes, over bare TCP. A server
//! takes a message and answers with as many bytes as it was told to; nothing is looked up, encoded or framed
//! beyond a length.
//!
//! A message is its length (u32, little-endian), the length of the answer (u32), and bytes; the answer its
//! length and bytes.

use std::{
    io::{self, Read, Write},
    net::{SocketAddr, TcpListener, TcpStream},
    path::Path,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicUsize, Ordering},
    },
    thread,
};

use futures::future::try_join_all;
use tidepool_client::{LookupOutcome, LookupRequest};
use tidepool_types::ErrorCode;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use crate::{
    BenchError,
    load::{Failure, Target},
    process::Piped,
};

/// The longest message and answer.
const MAX_BYTES: usize = 64 << 20;
/// Connections that a server has at most.
const MAX_CONNECTIONS: usize = 4096;

/// Answers on any free loopback port, a thread a connection, until this process ends. `listening` is told the
/// address.
///
/// # Errors
/// [`BenchError::Io`]: no port can be had.
pub fn serve_bytes(listening: impl FnOnce(SocketAddr)) -> Result<(), BenchError> {
    let failed = || BenchError::io("listening");
    let listener = TcpListener::bind("127.0.0.1:0").map_err(failed())?;
    listening(listener.local_addr().map_err(failed())?);
    let open = Arc::new(AtomicUsize::new(0));
    for stream in listener.incoming() {
        let stream = stream.map_err(BenchError::io("accepting a connection"))?;
        if open.load(Ordering::Relaxed) >= MAX_CONNECTIONS {
            continue;
        }
        open.fetch_add(1, Ordering::Relaxed);
        let open = Arc::clone(&open);
        let serving = thread::Builder::new().name("bytes".into()).spawn(move || {
            // The other end closes when it has had enough.
            let _ = answer_all(stream);
            open.fetch_sub(1, Ordering::Relaxed);
        });
        serving.map_err(BenchError::io("starting a thread"))?;
    }
    Ok(())
}

fn answer_all(mut stream: TcpStream) -> io::Result<()> {
    stream.set_nodelay(true)?;
    let (mut message, mut answer) = (Vec::new(), Vec::new());
    loop {
        let mut head = [0; 8];
        stream.read_exact(&mut head)?;
        let [length, answer_length] = [0, 4]
            .map(|at| u32::from_le_bytes([head[at], head[at + 1], head[at + 2], head[at + 3]]) as usize);
        if length > MAX_BYTES || answer_length > MAX_BYTES {
            return Err(io::ErrorKind::InvalidData.into());
        }
        message.resize(length, 0);
        stream.read_exact(&mut message)?;
        answer.resize(4 + answer_length, 0);
        answer[..4].copy_from_slice(&(answer_length as u32).to_le_bytes());
        stream.write_all(&answer)?;
    }
}

/// Processes that answer with bytes. They end with this value.
#[derive(Debug)]
pub(super) struct EchoServers {
    servers: Vec<Piped>,
    idle: Arc<Idle>,
}

/// Addresses of the servers, and connections to them that nobody uses at the moment. They outlive a load: a
/// server has a thread for each, and the time of threads that have ended is not counted.
type Idle = Vec<(SocketAddr, Mutex<Vec<Connection>>)>;

impl EchoServers {
    /// Starts `count` of them, each `PROGRAM bench bytes-server`.
    pub(super) async fn start(program: &Path, dir: &Path, count: usize) -> Result<Self, BenchError> {
        let args: Vec<String> = ["bench", "bytes-server"].map(String::from).to_vec();
        let started = (1..=count).map(|n| {
            let log = dir.join(format!("bytes-{n}.log"));
            Piped::start(program, args.clone(), format!("bytes-server {n}"), log)
        });
        let (mut servers, mut idle) = (Vec::new(), Vec::new());
        for (server, line) in try_join_all(started).await? {
            let address = line.parse().map_err(|_| server.failed(format!("announced {line:?}")))?;
            idle.push((address, Mutex::default()));
            servers.push(server);
        }
        Ok(Self { servers, idle: Arc::new(idle) })
    }

    /// How long their threads have run.
    pub(super) fn cpu_time(&self) -> std::time::Duration {
        self.servers.iter().filter_map(Piped::cpu_time).sum()
    }

    /// A target that asks all of them at once: `sent` and `received` bytes for each id of a request.
    pub(super) fn target(&self, sent: f64, received: f64) -> EchoTarget {
        EchoTarget { nodes: Arc::clone(&self.idle), sent, received }
    }
}

/// Sends the bytes of a request to every server, an equal share to each, and reads as many as lookups gave.
#[derive(Debug)]
pub(super) struct EchoTarget {
    nodes: Arc<Idle>,
    sent: f64,
    received: f64,
}

#[derive(Debug)]
struct Connection {
    stream: tokio::net::TcpStream,
    message: Vec<u8>,
    answer: Vec<u8>,
}

impl Target for EchoTarget {
    async fn ask(&self, request: &LookupRequest) -> Result<LookupOutcome, Failure> {
        let ids = request.features.iter().map(|feature| feature.ids.len()).sum::<usize>() as f64;
        let share = |bytes: f64| (ids * bytes / self.nodes.len() as f64).round() as usize;
        let (sent, received) = (share(self.sent), share(self.received));
        let asked = try_join_all(self.nodes.iter().map(|(address, idle)| async move {
            let taken = idle.lock().unwrap_or_else(PoisonError::into_inner).pop();
            let mut connection = match taken {
                Some(connection) => connection,
                None => Connection::open(*address).await?,
            };
            connection.exchange(sent, received).await?;
            idle.lock().unwrap_or_else(PoisonError::into_inner).push(connection);
            Ok::<_, io::Error>(())
        }));
        asked.await.map_err(|error| Failure { code: ErrorCode::Unavailable, text: error.to_string() })?;
        Ok(LookupOutcome { nodes_touched: self.nodes.len() as u32, ..LookupOutcome::default() })
    }
}

impl Connection {
    async fn open(address: SocketAddr) -> io::Result<Self> {
        let stream = tokio::net::TcpStream::connect(address).await?;
        stream.set_nodelay(true)?;
        Ok(Self { stream, message: Vec::new(), answer: Vec::new() })
    }

    async fn exchange(&mut self, sent: usize, received: usize) -> io::Result<()> {
        self.message.resize(8 + sent, 0);
        self.message[..4].copy_from_slice(&(sent as u32).to_le_bytes());
        self.message[4..8].copy_from_slice(&(received as u32).to_le_bytes());
        self.stream.write_all(&self.message).await?;
        self.answer.resize(4 + received, 0);
        self.stream.read_exact(&mut self.answer).await?;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use tidepool_client::FeatureLookup;
    use tidepool_types::{Name, Pooling, TableVersion};

    use super::*;

    #[tokio::test]
    async fn every_server_is_sent_its_share_and_answers() {
        let (tell, told) = std::sync::mpsc::channel();
        // They end with the test's process.
        for _ in 0..3 {
            let tell = tell.clone();
            thread::spawn(move || serve_bytes(|address| tell.send(address).unwrap()));
        }
        let nodes = told.iter().take(3).map(|address| (address, Mutex::default())).collect();
        let target = EchoTarget { nodes: Arc::new(nodes), sent: 8.0, received: 36.0 };
        let name = |text| Name::new(text).unwrap();
        let feature = FeatureLookup {
            table_version: TableVersion { table: name("t"), version: name("v") },
            pooling: Pooling::Sum,
            ids: vec![1; 300],
            lengths: None,
            weights: None,
        };
        let request = LookupRequest { request_id: String::new(), features: vec![feature] };
        for _ in 0..2 {
            assert_eq!(target.ask(&request).await.unwrap().nodes_touched, 3);
        }
        for (_, idle) in target.nodes.iter() {
            let idle = idle.lock().unwrap();
            let lengths: Vec<_> = idle.iter().map(|c| (c.message.len(), c.answer.len())).collect();
            assert_eq!(lengths, [(808, 3604)], "one connection, used again");
        }
    }
}
