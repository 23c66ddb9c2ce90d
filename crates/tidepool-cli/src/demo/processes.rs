//! The cluster of the demo: real processes of this very binary on free loopback ports.

use std::{
    fs::{self, File},
    net::SocketAddr,
    path::{Path, PathBuf},
    process::Stdio,
    time::Duration,
};

use anyhow::{Context, Result, bail};
use serde::Deserialize;
use tokio::{
    io::{AsyncBufReadExt, BufReader},
    process::{Child, ChildStdin, Command},
    time::timeout,
};

/// How long a role may take until it listens.
const START_TIMEOUT: Duration = Duration::from_secs(20);
/// How long a role may take to drain after its end was asked for.
const STOP_TIMEOUT: Duration = Duration::from_secs(5);

/// A role that runs as a process of its own. It ends when this end of its stdin closes, however we end.
pub(crate) struct Process {
    /// What people call it: `node a-1`.
    pub(crate) label: String,
    /// Where it answers gRPC.
    pub(crate) grpc_address: SocketAddr,
    /// Where `/status` and `/metrics` are.
    pub(crate) http_address: SocketAddr,
    child: Child,
    stdin: Option<ChildStdin>,
    log: PathBuf,
}

/// What a role prints with `--json` once it listens.
#[derive(Deserialize)]
struct Announcement {
    grpc_address: SocketAddr,
    http_address: SocketAddr,
}

impl Process {
    /// Starts `tidepool ROLE --config FILE`, with the configuration written to `<dir>/<name>.toml` and the
    /// log to `<dir>/<name>.log`, and waits until it listens.
    pub(crate) async fn start(dir: &Path, role: &str, name: &str, config: &toml::Table) -> Result<Self> {
        let label = format!("{role} {name}");
        let config_file = dir.join(format!("{name}.toml"));
        let log = dir.join(format!("{name}.log"));
        fs::write(&config_file, toml::to_string(config)?)
            .with_context(|| format!("writing {}", config_file.display()))?;
        let log_file = File::create(&log).with_context(|| format!("creating {}", log.display()))?;
        let mut child = Command::new(std::env::current_exe().context("finding this program")?)
            .args(["--json", role, "--until-stdin-closes", "--config"])
            .arg(&config_file)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(log_file)
            .kill_on_drop(true)
            .spawn()
            .with_context(|| format!("starting {label}"))?;
        let stdin = child.stdin.take();
        let stdout = child.stdout.take().context("a piped stdout")?;
        let mut lines = BufReader::new(stdout).lines();
        let first = timeout(START_TIMEOUT, lines.next_line()).await;
        let Ok(Ok(Some(line))) = first else {
            bail!("{label} did not start to listen; the end of {}:\n{}", log.display(), tail(&log));
        };
        let announced: Announcement =
            serde_json::from_str(&line).with_context(|| format!("{label} announced {line:?}"))?;
        let Announcement { grpc_address, http_address } = announced;
        Ok(Self { label, grpc_address, http_address, child, stdin, log })
    }

    /// Ends the process at once, as a crash would (SIGKILL).
    pub(crate) async fn kill(&mut self) -> Result<()> {
        self.child.kill().await.with_context(|| format!("killing {}", self.label))
    }

    /// Whether it has not ended.
    pub(crate) fn is_running(&mut self) -> bool {
        matches!(self.child.try_wait(), Ok(None))
    }

    /// Asks the process to drain and waits until it has ended; kills it when it takes too long.
    pub(crate) async fn stop(&mut self) -> Result<()> {
        drop(self.stdin.take());
        let Ok(status) = timeout(STOP_TIMEOUT, self.child.wait()).await else {
            self.kill().await?;
            bail!("{} did not drain within {} s and was killed", self.label, STOP_TIMEOUT.as_secs());
        };
        let status = status.with_context(|| format!("waiting for {}", self.label))?;
        if !status.success() {
            bail!(
                "{} ended with {status}; the end of {}:\n{}",
                self.label,
                self.log.display(),
                tail(&self.log)
            );
        }
        Ok(())
    }
}

/// The last lines of a log, for an error message.
fn tail(log: &Path) -> String {
    let text = fs::read_to_string(log).unwrap_or_default();
    let lines: Vec<_> = text.lines().collect();
    lines[lines.len().saturating_sub(12)..].join("\n")
}
