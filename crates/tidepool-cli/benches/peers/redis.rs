//! Redis: `redis-server` without persistence, a key of 8 bytes and a value of 36 for each row, and a client of
//! a few lines that sends a request's ids as pipelined MGETs.

use std::{
    io::{BufRead, BufReader},
    net::TcpListener,
    path::Path,
    process::{Child, Command, Stdio},
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail, ensure};
use tidepool_bench::{
    BenchTable, ROWS_VERSION, id_of,
    load::{Failure, Target},
    proc, stored_row,
};
use tidepool_client::{LookupOutcome, LookupRequest};
use tidepool_kernels::RowKernel;
use tidepool_types::{ErrorCode, RowFormat};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
};

use crate::pooled::pooled;

/// Stored bytes of a row of 64 elements.
const ROW_BYTES: usize = 36;
/// An answer of a row: `$36`, a line end, the row, a line end.
const REPLY_BYTES: usize = 5 + ROW_BYTES + 2;
/// Keys of an MGET that are tried; the fastest is used.
const BATCHES: [usize; 4] = [50, 200, 1000, 10_000];
const START_TIMEOUT: Duration = Duration::from_secs(20);
/// Rows that are set by one command.
const FILL_ROWS: u64 = 1000;

/// A server of its own and connections to it.
pub(crate) struct Redis {
    shell: Child,
    pid: u32,
    port: u16,
    kernel: RowKernel,
    keys_per_mget: AtomicUsize,
    /// As many as were ever used at once.
    idle: Mutex<Vec<Connection>>,
}

struct Connection {
    stream: TcpStream,
    question: Vec<u8>,
    answer: Vec<u8>,
}

impl Redis {
    /// Starts a server with its files in `dir`.
    pub(crate) async fn start(dir: &Path) -> Result<Arc<Self>> {
        let found = Command::new("redis-server").arg("--version").stdout(Stdio::null()).status();
        found
            .context("redis-server is not there: apt-get install -y --no-install-recommends redis-server")?;
        // A port that was free a moment ago.
        let port = TcpListener::bind("127.0.0.1:0")?.local_addr()?.port();
        let dir = dir.join("redis");
        std::fs::create_dir_all(&dir)?;
        // The shell ends the server when our end of its stdin closes, however we end.
        let script = "redis-server \"$@\" >redis.log 2>&1 & echo $!; read _; kill $!; wait $!";
        let settings = ["--bind", "127.0.0.1", "--save", "", "--appendonly", "no", "--port"];
        let mut shell = Command::new("sh")
            .args(["-c", script, "redis-server"])
            .args(settings)
            .arg(port.to_string())
            .current_dir(&dir)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()?;
        let mut line = String::new();
        BufReader::new(shell.stdout.take().context("the shell has no stdout")?).read_line(&mut line)?;
        let pid = line.trim().parse().context("the shell says the process id of redis-server")?;
        let redis = Self {
            shell,
            pid,
            port,
            kernel: RowKernel::new(RowFormat::Int4, 64),
            keys_per_mget: AtomicUsize::new(1000),
            idle: Mutex::default(),
        };
        let until = Instant::now() + START_TIMEOUT;
        while let Err(error) = redis.ping().await {
            if Instant::now() > until {
                let log = std::fs::read_to_string(dir.join("redis.log")).unwrap_or_default();
                return Err(error.context(format!("redis-server does not answer: {log}")));
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        Ok(Arc::new(redis))
    }

    /// Sets every row of `table`.
    pub(crate) async fn fill(&self, table: &BenchTable) -> Result<()> {
        let mut connection = self.connection().await?;
        let mut row = [0; ROW_BYTES];
        for first in (0..table.rows).step_by(FILL_ROWS as usize) {
            let rows = first..(first + FILL_ROWS).min(table.rows);
            connection.question.clear();
            let words = 1 + 2 * (rows.end - rows.start);
            connection.question.extend_from_slice(format!("*{words}\r\n$4\r\nMSET\r\n").as_bytes());
            for n in rows {
                let id = id_of(table.keying, n);
                stored_row(table.format, id, ROWS_VERSION, &mut row);
                for word in [&id.to_le_bytes()[..], &row] {
                    connection.question.extend_from_slice(format!("${}\r\n", word.len()).as_bytes());
                    connection.question.extend_from_slice(word);
                    connection.question.extend_from_slice(b"\r\n");
                }
            }
            let Connection { stream, question, .. } = &mut connection;
            stream.write_all(question).await?;
            let mut ok = [0; 5];
            stream.read_exact(&mut ok).await?;
            ensure!(&ok == b"+OK\r\n", "Redis says {:?}", String::from_utf8_lossy(&ok));
        }
        self.give_back(connection);
        Ok(())
    }

    /// Takes the number of keys of an MGET with which `requests` are answered fastest.
    pub(crate) async fn choose_batch(&self, requests: &[LookupRequest]) -> Result<usize> {
        let mut best = (Duration::MAX, BATCHES[0]);
        for keys in BATCHES {
            self.keys_per_mget.store(keys, Ordering::Relaxed);
            let began = Instant::now();
            for request in requests {
                self.get(request).await?;
            }
            best = best.min((began.elapsed(), keys));
        }
        self.keys_per_mget.store(best.1, Ordering::Relaxed);
        Ok(best.1)
    }

    pub(crate) const fn pid(&self) -> u32 {
        self.pid
    }

    pub(crate) fn cpu_time(&self) -> Option<Duration> {
        proc::cpu_time(self.pid, "")
    }

    async fn ping(&self) -> Result<()> {
        let mut connection = self.connection().await?;
        connection.stream.write_all(b"*1\r\n$4\r\nPING\r\n").await?;
        let mut pong = [0; 7];
        connection.stream.read_exact(&mut pong).await?;
        ensure!(&pong == b"+PONG\r\n", "another server answers");
        Ok(())
    }

    async fn connection(&self) -> Result<Connection> {
        let idle = self.idle.lock().unwrap_or_else(PoisonError::into_inner).pop();
        if let Some(connection) = idle {
            return Ok(connection);
        }
        let stream = TcpStream::connect(("127.0.0.1", self.port)).await?;
        stream.set_nodelay(true)?;
        Ok(Connection { stream, question: Vec::new(), answer: Vec::new() })
    }

    fn give_back(&self, connection: Connection) {
        self.idle.lock().unwrap_or_else(PoisonError::into_inner).push(connection);
    }

    async fn get(&self, request: &LookupRequest) -> Result<LookupOutcome> {
        let mut connection = self.connection().await?;
        let keys = self.keys_per_mget.load(Ordering::Relaxed);
        let ids = &request.features[0].ids;
        connection.exchange(ids, keys).await?;
        let outcome = pooled(&self.kernel, request, &rows(&connection.answer, ids.len(), keys)?);
        self.give_back(connection);
        Ok(outcome)
    }
}

impl Connection {
    /// Sends the MGETs of `ids`, and reads the answers while it sends.
    async fn exchange(&mut self, ids: &[u64], keys: usize) -> Result<()> {
        let Self { stream, question, answer } = self;
        question.clear();
        let mut answer_bytes = 0;
        for ids in ids.chunks(keys) {
            question.extend_from_slice(format!("*{}\r\n$4\r\nMGET\r\n", ids.len() + 1).as_bytes());
            for id in ids {
                question.extend_from_slice(b"$8\r\n");
                question.extend_from_slice(&id.to_le_bytes());
                question.extend_from_slice(b"\r\n");
            }
            answer_bytes += header(ids.len()).len() + ids.len() * REPLY_BYTES;
        }
        answer.resize(answer_bytes, 0);
        let (mut read, mut write) = stream.split();
        tokio::try_join!(write.write_all(question), read.read_exact(answer))?;
        Ok(())
    }
}

fn header(rows: usize) -> String {
    format!("*{rows}\r\n")
}

/// The rows in the answers to the MGETs of `ids` ids. Every key is there: another answer is an error.
fn rows(mut answer: &[u8], ids: usize, keys: usize) -> Result<Vec<&[u8]>> {
    let mut rows = Vec::with_capacity(ids);
    while rows.len() < ids {
        let count = keys.min(ids - rows.len());
        let header = header(count);
        let body = answer.strip_prefix(header.as_bytes()).context("another answer than that of an MGET")?;
        let (replies, rest) = body.split_at(count * REPLY_BYTES);
        for reply in replies.chunks_exact(REPLY_BYTES) {
            if !reply.starts_with(b"$36\r\n") {
                bail!("a key is not there");
            }
            rows.push(&reply[5..5 + ROW_BYTES]);
        }
        answer = rest;
    }
    Ok(rows)
}

impl Target for Redis {
    async fn ask(&self, request: &LookupRequest) -> Result<LookupOutcome, Failure> {
        self.get(request)
            .await
            .map_err(|error| Failure { code: ErrorCode::Internal, text: format!("Redis: {error:#}") })
    }
}

impl Drop for Redis {
    fn drop(&mut self) {
        drop(self.shell.stdin.take());
        let _ = self.shell.wait();
    }
}
