//! Running the binary: to its end, or as a role that is ended with its test.

use std::{
    fs::File,
    io::{BufRead, BufReader, Read, Write},
    net::TcpStream,
    path::{Path, PathBuf},
    process::{Child, Command, Output, Stdio},
    time::Duration,
};

use serde_json::Value;

/// How long anything may take before a test fails.
pub(crate) const DEADLINE: Duration = Duration::from_secs(30);

/// The command, without what the environment of the tests may say to it.
pub(crate) fn tidepool() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_tidepool"));
    for (name, _) in std::env::vars_os() {
        if name.to_string_lossy().starts_with("TIDEPOOL_") {
            command.env_remove(name);
        }
    }
    command
}

/// Runs to the end with `--json`; gives the exit code and the object of the last line.
pub(crate) fn json(args: &[&str]) -> (i32, Value) {
    let output = tidepool().arg("--json").args(args).output().unwrap();
    let stdout = String::from_utf8(output.stdout.clone()).unwrap();
    assert_eq!(stdout.lines().count(), 1, "{args:?} printed {stdout:?}; {}", stderr(&output));
    (output.status.code().unwrap(), serde_json::from_str(&stdout).unwrap())
}

/// Runs to the end, expecting failure; gives the exit code and what stderr says.
pub(crate) fn failure(args: &[&str]) -> (i32, String) {
    let output = tidepool().args(args).output().unwrap();
    assert!(!output.status.success(), "{args:?} succeeded");
    (output.status.code().unwrap(), stderr(&output))
}

fn stderr(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

/// Keys of a role: what it serves from, and its state in `dir`.
pub(crate) fn keys(dir: &Path, store: &Path, role: &str) -> Vec<(&'static str, String)> {
    let text = |path: &Path| path.to_str().unwrap().to_owned();
    vec![("store", text(store)), ("data_dir", text(&dir.join(role)))]
}

/// Keys of node `a-1`, in group `a`, of these controllers.
pub(crate) fn node_keys(dir: &Path, store: &Path, controllers: &[&str]) -> Vec<(&'static str, String)> {
    let member = [("controllers", format!("{controllers:?}")), ("node", "a-1".into()), ("group", "a".into())];
    [keys(dir, store, "node"), member.to_vec()].concat()
}

/// A role that runs until it is dropped.
pub(crate) struct Role {
    child: Child,
    pub(crate) grpc_address: String,
    pub(crate) http_address: String,
    pub(crate) log: PathBuf,
}

impl Role {
    /// Starts `tidepool ROLE` with these keys set and waits until it listens.
    pub(crate) fn start(dir: &Path, role: &str, set: &[(&str, String)]) -> Self {
        Self::start_in(dir, role, set, &[])
    }

    /// The same with these variables in its environment.
    pub(crate) fn start_in(
        dir: &Path,
        role: &str,
        set: &[(&str, String)],
        environment: &[(&str, String)],
    ) -> Self {
        Self::start_by(tidepool(), "127.0.0.1", dir, role, set, environment)
    }

    /// The same by a command that may be wrapped, listening at this address.
    pub(crate) fn start_by(
        mut command: Command,
        ip: &str,
        dir: &Path,
        role: &str,
        set: &[(&str, String)],
        environment: &[(&str, String)],
    ) -> Self {
        let log = dir.join(format!("{role}.log"));
        command.envs(environment.iter().map(|(name, value)| (name, value)));
        command.args(["--json", role, "--until-stdin-closes"]);
        for (key, value) in set {
            command.arg("--set").arg(format!("{key}={value}"));
        }
        for key in ["grpc_address", "http_address"] {
            command.arg("--set").arg(format!("{key}={ip}:0"));
        }
        let log_file = File::create(&log).unwrap();
        let mut child =
            command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(log_file).spawn().unwrap();
        let mut line = String::new();
        BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
        let said: Value = serde_json::from_str(&line)
            .unwrap_or_else(|_| panic!("{role} said {line:?}: {}", std::fs::read_to_string(&log).unwrap()));
        let address = |key: &str| said[key].as_str().unwrap().to_owned();
        Self { child, grpc_address: address("grpc_address"), http_address: address("http_address"), log }
    }

    /// Starts a controller that places tables on the nodes that are there, without waiting for more.
    pub(crate) fn controller(dir: &Path, store: &Path) -> Self {
        // Nobody waits longer than a test would.
        let soon = vec![("group_settle_ms", "0".into()), ("retire_grace_ms", "500".into())];
        let keys = [keys(dir, store, "controller"), soon].concat();
        Self::start(dir, "controller", &keys)
    }

    /// Starts node `a-1` of a controller.
    pub(crate) fn node(dir: &Path, store: &Path, controller: &Self) -> Self {
        Self::start(dir, "node", &node_keys(dir, store, &[&controller.grpc_address]))
    }

    /// Its process.
    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Sends SIGTERM and gives the exit code.
    pub(crate) fn terminate(mut self) -> i32 {
        let killed = Command::new("kill").args(["-TERM", &self.child.id().to_string()]).status().unwrap();
        assert!(killed.success());
        self.child.wait().unwrap().code().unwrap_or(-1)
    }
}

impl Drop for Role {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The whole answer of an HTTP endpoint, its head too.
pub(crate) fn http_get(address: &str, path: &str) -> String {
    let mut stream = TcpStream::connect(address).unwrap();
    write!(stream, "GET {path} HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n\r\n").unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    answer
}
