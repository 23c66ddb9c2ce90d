//! An etcd of the drill's own: on loopback, over a folder of its own, ended with the drill.

use std::{
    fs::File,
    net::{SocketAddr, TcpListener},
    path::{Path, PathBuf},
    process::Stdio,
    time::{Duration, Instant},
};

use rustix::process::{Pid, Signal, kill_process};
use tokio::process::{Child, Command};

use crate::{BenchError, drill::site::http_get};

/// How long it may take until it answers.
const START_TIMEOUT: Duration = Duration::from_secs(20);
/// How often a wait looks again.
const LOOK_AGAIN: Duration = Duration::from_millis(50);

/// A running etcd, or one that was killed and can be started again over what it had.
#[derive(Debug)]
pub(super) struct Etcd {
    program: PathBuf,
    dir: PathBuf,
    client: SocketAddr,
    peer: SocketAddr,
    child: Option<Child>,
}

/// A port that nobody had a moment ago.
fn free() -> Result<SocketAddr, BenchError> {
    let listener = TcpListener::bind("127.0.0.1:0").and_then(|listener| listener.local_addr());
    listener.map_err(BenchError::io("looking for a free port"))
}

impl Etcd {
    /// Starts it over an empty folder, and waits until it answers.
    pub(super) async fn start(program: &Path, dir: &Path) -> Result<Self, BenchError> {
        std::fs::create_dir_all(dir).map_err(BenchError::io(format!("creating {}", dir.display())))?;
        let (program, dir) = (program.to_owned(), dir.to_owned());
        let mut etcd = Self { program, dir, client: free()?, peer: free()?, child: None };
        etcd.run().await?;
        Ok(etcd)
    }

    /// `http://host:port` of it.
    pub(super) fn endpoint(&self) -> String {
        format!("http://{}", self.client)
    }

    /// Starts it again over what it had, and waits until it answers.
    pub(super) async fn run(&mut self) -> Result<(), BenchError> {
        let log = self.dir.join("log");
        let opened = File::options().create(true).append(true).open(&log);
        let file = opened.map_err(BenchError::io(format!("creating {}", log.display())))?;
        let beside = file.try_clone().map_err(BenchError::io("opening the log of etcd twice"))?;
        let (client, peer) = (self.endpoint(), format!("http://{}", self.peer));
        let child = Command::new(&self.program)
            .args(["--name", "drill", "--data-dir"])
            .arg(self.dir.join("data"))
            .args(["--listen-client-urls", &client, "--advertise-client-urls", &client])
            .args(["--listen-peer-urls", &peer, "--initial-advertise-peer-urls", &peer])
            .args(["--initial-cluster", &format!("drill={peer}"), "--logger", "zap"])
            .stdin(Stdio::null())
            .stdout(beside)
            .stderr(file)
            .kill_on_drop(true)
            .spawn();
        let starting = format!(
            "starting {}: this drill needs etcd (Debian: apt-get install etcd-server), found by --etcd PATH",
            self.program.display()
        );
        self.child = Some(child.map_err(BenchError::io(starting))?);
        let deadline = Instant::now() + START_TIMEOUT;
        loop {
            let health = http_get(self.client, "/health").await.unwrap_or_default();
            if health.contains("\"health\":\"true\"") {
                return Ok(());
            }
            if Instant::now() >= deadline {
                let problem = format!("did not answer in time; its log is {}", log.display());
                return Err(BenchError::Process { process: "etcd".to_owned(), problem });
            }
            tokio::time::sleep(LOOK_AGAIN).await;
        }
    }

    /// Ends it at once (SIGKILL); what it has acknowledged is on its disk.
    pub(super) async fn kill(&mut self) -> Result<(), BenchError> {
        match self.child.take() {
            Some(mut child) => child.kill().await.map_err(BenchError::io("killing etcd")),
            None => Ok(()),
        }
    }

    /// Stops it where it stands (SIGSTOP): its connections stay open and nobody answers.
    pub(super) fn pause(&self) -> Result<(), BenchError> {
        self.signal(Signal::STOP, "pausing etcd")
    }

    /// Lets it go on.
    pub(super) fn resume(&self) -> Result<(), BenchError> {
        self.signal(Signal::CONT, "resuming etcd")
    }

    fn signal(&self, signal: Signal, what: &str) -> Result<(), BenchError> {
        let pid = self.child.as_ref().and_then(Child::id).and_then(|pid| Pid::from_raw(pid.cast_signed()));
        let sent = match pid {
            Some(pid) => kill_process(pid, signal).map_err(Into::into),
            None => Err(std::io::Error::from(std::io::ErrorKind::NotFound)),
        };
        sent.map_err(BenchError::io(what))
    }
}
