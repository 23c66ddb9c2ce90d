//! What an operator does in a drill: the commands of this very program, each a process of its own.

use std::{path::PathBuf, process::Stdio, time::Duration};

use serde_json::Value;
use tidepool_runtime::idle;
use tidepool_types::TableVersion;
use tokio::{process::Command, runtime::Handle, time::timeout};

use super::truth::{MODEL, Release};
use crate::BenchError;

/// How long a command may take.
const COMMAND_TIMEOUT: Duration = Duration::from_secs(90);

/// Somebody with a shell.
#[derive(Clone, Debug)]
pub(super) struct Operator {
    pub(super) program: PathBuf,
    /// `host:port` of the controller.
    pub(super) controller: String,
    /// The artifact store.
    pub(super) store: PathBuf,
    /// Where the files of releases are written.
    pub(super) files: PathBuf,
}

/// What became of a command.
#[derive(Clone, Debug)]
pub(super) enum Answer {
    /// What it printed.
    Done(Value),
    /// What it said is wrong.
    Refused(String),
}

impl Operator {
    /// Runs `tidepool --json ARGS`. It stands for another machine: it has idle priority, as what starts it.
    pub(super) async fn ask(&self, args: &[&str]) -> Result<Answer, BenchError> {
        let words = args.join(" ");
        let running = || BenchError::io(format!("running tidepool {words}"));
        let failed = |problem: String| BenchError::Process { process: format!("tidepool {words}"), problem };
        let mut command = Command::new(&self.program);
        command
            .args(["--json", "--controller", &self.controller])
            .args(args)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .kill_on_drop(true);
        let runtime = Handle::current();
        let started = idle::run(move || {
            let _context = runtime.enter();
            command.spawn()
        });
        let child = started.await.map_err(|error| running()(std::io::Error::other(error)))?;
        let child = child.map_err(running())?;
        let Ok(output) = timeout(COMMAND_TIMEOUT, child.wait_with_output()).await else {
            return Err(failed(format!("has taken longer than {COMMAND_TIMEOUT:?}")));
        };
        let output = output.map_err(running())?;
        if !output.status.success() {
            return Ok(Answer::Refused(String::from_utf8_lossy(&output.stderr).trim().to_owned()));
        }
        let text = String::from_utf8_lossy(&output.stdout);
        let answer = serde_json::from_str(text.trim());
        answer.map(Answer::Done).map_err(|error| failed(format!("printed {text:?}: {error}")))
    }

    /// As [`ask`](Self::ask), where a refusal is an error.
    pub(super) async fn run(&self, args: &[&str]) -> Result<Value, BenchError> {
        match self.ask(args).await? {
            Answer::Done(value) => Ok(value),
            Answer::Refused(problem) => Err(BenchError::Process {
                process: format!("tidepool {}", args.join(" ")),
                problem: format!("was refused: {problem}"),
            }),
        }
    }

    /// Writes the files of a release and publishes it, with these tables.
    pub(super) async fn publish(
        &self,
        release: &Release,
        tables: &[TableVersion],
    ) -> Result<Value, BenchError> {
        let args = self.files_of(release, tables)?;
        self.run(&args.iter().map(String::as_str).collect::<Vec<_>>()).await
    }

    /// Writes the files of a release, and gives the command that publishes it.
    pub(super) fn files_of(
        &self,
        release: &Release,
        tables: &[TableVersion],
    ) -> Result<Vec<String>, BenchError> {
        let write = |name: &str, bytes: &[u8]| {
            let path = self.files.join(format!("{}.{name}", release.name));
            let written = std::fs::write(&path, bytes);
            written.map_err(BenchError::io(format!("writing {}", path.display())))?;
            Ok::<_, BenchError>(path.display().to_string())
        };
        let model_toml = write("model.toml", super::truth::model_toml()?.as_bytes())?;
        let onnx = write("model.onnx", &release.dense.onnx())?;
        let store = self.store.display().to_string();
        let mut args = ["release", "publish", release.name.as_str(), "--model-toml", &model_toml]
            .map(String::from)
            .to_vec();
        args.extend(["--onnx", &onnx, "--store", &store].map(String::from));
        args.extend(tables.iter().flat_map(|table| ["--table".to_owned(), table.to_string()]));
        Ok(args)
    }

    /// Waits until a release is loaded everywhere, and makes it the current one.
    pub(super) async fn promote(&self, release: &Release) -> Result<Value, BenchError> {
        self.run(&["release", "promote", MODEL, &release.name]).await
    }

    /// Lets a release go.
    pub(super) async fn retire(&self, release: &Release) -> Result<Value, BenchError> {
        self.run(&["release", "retire", MODEL, &release.name, "--yes"]).await
    }
}
