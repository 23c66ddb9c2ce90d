//! A role of the cluster as a real process of its own, on free loopback ports. However its parent ends, it
//! does not stay behind.

use std::{
    fs::{self, File},
    net::SocketAddr,
    path::{Path, PathBuf},
    process::Stdio,
    time::Duration,
};

use rustix::process::{Pid, Signal, kill_process};
use serde::Deserialize;
use tokio::{
    io::{AsyncBufReadExt, BufReader},
    process::{Child, ChildStdin, Command},
    time::timeout,
};

use crate::{BenchError, proc};

/// How long a role may take until it listens.
const START_TIMEOUT: Duration = Duration::from_secs(20);
/// How long a role may take to drain after its end was asked for.
const STOP_TIMEOUT: Duration = Duration::from_secs(5);
/// Lines of a log that an error shows.
const TAIL_LINES: usize = 12;

/// A program of ours that runs until this end of its stdin closes, however we end. When it is stopped then
/// (SIGSTOP), it is continued: it has asked the kernel for that.
#[derive(Debug)]
pub(crate) struct Piped {
    label: String,
    log: PathBuf,
    child: Child,
    stdin: Option<ChildStdin>,
}

/// A running role. It does not outlive us.
#[derive(Debug)]
pub struct Process {
    start: Start,
    grpc_address: SocketAddr,
    http_address: SocketAddr,
    piped: Piped,
}

/// How a role is started.
#[derive(Clone, Debug)]
pub(crate) struct Start {
    /// The `tidepool` program.
    pub(crate) program: PathBuf,
    /// Where its configuration and its log go.
    pub(crate) dir: PathBuf,
    /// `controller`, `node` or `ranker`.
    pub(crate) role: &'static str,
    /// Its name: that of the files.
    pub(crate) name: String,
    /// Its configuration.
    pub(crate) config: toml::Table,
}

/// What a role prints with `--json` once it listens.
#[derive(Deserialize)]
struct Announcement {
    grpc_address: SocketAddr,
    http_address: SocketAddr,
}

impl Piped {
    /// Starts `program` with `args`, its stderr added to `log`, and waits for the first line that it prints.
    pub(crate) async fn start(
        program: &Path,
        args: Vec<String>,
        label: String,
        log: PathBuf,
    ) -> Result<(Self, String), BenchError> {
        let log_file = File::options().create(true).append(true).open(&log);
        let log_file = log_file.map_err(BenchError::io(format!("creating {}", log.display())))?;
        let mut child = Command::new(program)
            .args(args)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(log_file)
            .process_group(0)
            .kill_on_drop(true)
            .spawn()
            .map_err(BenchError::io(format!("starting {label} of {}", program.display())))?;
        let (stdin, stdout) = (child.stdin.take(), child.stdout.take());
        let piped = Self { label, log, child, stdin };
        let mut lines = BufReader::new(stdout.ok_or_else(|| piped.failed("has no stdout"))?).lines();
        match timeout(START_TIMEOUT, lines.next_line()).await {
            Ok(Ok(Some(line))) => Ok((piped, line)),
            _ => Err(piped.failed_with_log("did not start to listen")),
        }
    }

    pub(crate) fn failed(&self, problem: impl Into<String>) -> BenchError {
        BenchError::Process { process: self.label.clone(), problem: problem.into() }
    }

    /// Says that the process `did` something, with the end of its log.
    fn failed_with_log(&self, did: &str) -> BenchError {
        self.failed(format!("{did}; the end of {}:\n{}", self.log.display(), tail(&self.log)))
    }

    fn pid(&self) -> Option<u32> {
        self.child.id()
    }

    /// How long its threads have run.
    pub(crate) fn cpu_time(&self) -> Option<Duration> {
        proc::cpu_time(self.pid()?, "")
    }

    fn is_running(&mut self) -> bool {
        matches!(self.child.try_wait(), Ok(None))
    }

    async fn kill(&mut self) -> Result<(), BenchError> {
        self.child.kill().await.map_err(BenchError::io(format!("killing {}", self.label)))
    }

    fn signal(&self, signal: Signal, what: &str) -> Result<(), BenchError> {
        let pid = self.pid().and_then(|pid| Pid::from_raw(pid.cast_signed()));
        let sent = match pid {
            Some(pid) => kill_process(pid, signal).map_err(Into::into),
            None => Err(std::io::Error::from(std::io::ErrorKind::NotFound)),
        };
        sent.map_err(BenchError::io(format!("{what} {}", self.label)))
    }

    async fn stop(&mut self) -> Result<(), BenchError> {
        // A paused process would not notice.
        if self.is_running() {
            self.signal(Signal::CONT, "resuming")?;
        }
        drop(self.stdin.take());
        let Ok(status) = timeout(STOP_TIMEOUT, self.child.wait()).await else {
            self.kill().await?;
            let seconds = STOP_TIMEOUT.as_secs();
            return Err(self.failed(format!("did not drain within {seconds} s and was killed")));
        };
        let status = status.map_err(BenchError::io(format!("waiting for {}", self.label)))?;
        if status.success() { Ok(()) } else { Err(self.failed_with_log(&format!("ended with {status}"))) }
    }
}

impl Start {
    /// Starts `tidepool ROLE --config FILE`, with the configuration written to `<dir>/<name>.toml` and the
    /// log to `<dir>/<name>.log`, and waits until it listens.
    pub(crate) async fn run(self) -> Result<Process, BenchError> {
        let label = format!("{} {}", self.role, self.name);
        let config_file = self.dir.join(format!("{}.toml", self.name));
        let writing = || format!("writing {}", config_file.display());
        let text = toml::to_string(&self.config)
            .map_err(|error| BenchError::io(writing())(std::io::Error::other(error)))?;
        fs::write(&config_file, text).map_err(BenchError::io(writing()))?;
        let log = self.dir.join(format!("{}.log", self.name));
        let config = config_file.display().to_string();
        let args = ["--json", self.role, "--until-stdin-closes", "--config", &config].map(String::from);
        let (piped, line) = Piped::start(&self.program, args.to_vec(), label, log).await?;
        let Announcement { grpc_address, http_address } = serde_json::from_str(&line)
            .map_err(|error| piped.failed(format!("announced {line:?}: {error}")))?;
        Ok(Process { start: self, grpc_address, http_address, piped })
    }
}

impl Process {
    /// What people call it: `node a-1`.
    #[must_use]
    pub fn label(&self) -> String {
        self.piped.label.clone()
    }

    /// Its name in the cluster: `a-1`.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.start.name
    }

    /// Where it answers gRPC.
    #[must_use]
    pub const fn grpc_address(&self) -> SocketAddr {
        self.grpc_address
    }

    /// Where `/status` and `/metrics` are.
    #[must_use]
    pub const fn http_address(&self) -> SocketAddr {
        self.http_address
    }

    /// Its log.
    #[must_use]
    pub fn log(&self) -> PathBuf {
        self.piped.log.clone()
    }

    /// Its process id; `None` once it has ended and that was noticed.
    #[must_use]
    pub fn pid(&self) -> Option<u32> {
        self.piped.pid()
    }

    /// How long its threads have run.
    #[must_use]
    pub fn cpu_time(&self) -> Option<Duration> {
        self.piped.cpu_time()
    }

    /// Its resident bytes, mapped files included.
    #[must_use]
    pub fn rss_bytes(&self) -> Option<u64> {
        proc::rss_bytes(self.pid()?)
    }

    /// Its resident bytes that no file stands behind.
    #[must_use]
    pub fn anonymous_bytes(&self) -> Option<u64> {
        proc::anonymous_bytes(self.pid()?)
    }

    /// Its resident bytes of mapped files.
    #[must_use]
    pub fn file_bytes(&self) -> Option<u64> {
        proc::file_bytes(self.pid()?)
    }

    /// Whether it has not ended. A stopped one has not.
    pub fn is_running(&mut self) -> bool {
        self.piped.is_running()
    }

    /// Ends the process at once, as a crash would (SIGKILL), and waits for that.
    ///
    /// # Errors
    /// [`BenchError::Io`].
    pub async fn kill(&mut self) -> Result<(), BenchError> {
        self.piped.kill().await
    }

    /// Stops the process where it stands (SIGSTOP): its connections stay open and nobody answers.
    ///
    /// # Errors
    /// [`BenchError::Io`]: it has ended.
    pub fn pause(&self) -> Result<(), BenchError> {
        self.piped.signal(Signal::STOP, "pausing")
    }

    /// Lets a paused process go on (SIGCONT).
    ///
    /// # Errors
    /// [`BenchError::Io`]: it has ended.
    pub fn resume(&self) -> Result<(), BenchError> {
        self.piped.signal(Signal::CONT, "resuming")
    }

    /// From now on, a start again takes the ports that it has: for one that others find by their configuration.
    pub(crate) fn keep_addresses(&mut self) {
        for (key, address) in [("grpc_address", self.grpc_address), ("http_address", self.http_address)] {
            self.start.config.insert(key.to_owned(), address.to_string().into());
        }
    }

    /// Starts a process that has ended again, with the same configuration; a node's or a ranker's ports may be others.
    ///
    /// # Errors
    /// [`BenchError`]: it runs still, or does not start.
    pub async fn start_again(&mut self) -> Result<(), BenchError> {
        if self.is_running() {
            return Err(self.piped.failed("runs still"));
        }
        *self = self.start.clone().run().await?;
        Ok(())
    }

    /// Asks the process to drain and waits until it has ended; kills it when it takes too long.
    ///
    /// # Errors
    /// [`BenchError`]: it had to be killed, or ended in failure.
    pub async fn stop(&mut self) -> Result<(), BenchError> {
        self.piped.stop().await
    }
}

/// The last lines of a log, for an error message.
fn tail(log: &Path) -> String {
    let text = fs::read_to_string(log).unwrap_or_default();
    let lines: Vec<_> = text.lines().collect();
    lines[lines.len().saturating_sub(TAIL_LINES)..].join("\n")
}
