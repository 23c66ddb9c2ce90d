//! SIGTERM and SIGINT, sent to a child: this test binary again, told by a variable to play a role.

use std::{
    env,
    io::{self, BufRead, BufReader, Write},
    process::{Child, Command, Stdio},
    time::Duration,
};

use tidepool_runtime::{
    health::Health,
    shutdown::{Drained, Shutdown, signal},
};
use tokio::{runtime::Runtime, time::timeout};

const ROLE: &str = "TIDEPOOL_RUNTIME_TEST_ROLE";

/// Longer than any test waits: who ends sooner did not end by this.
const FOR_EVER: Duration = Duration::from_secs(300);

/// Whether this process is the child of the test that calls.
fn is_child() -> bool {
    env::var_os(ROLE).is_some()
}

/// Says where it is to the parent.
fn say(word: &str) {
    let mut out = io::stdout();
    writeln!(out, "child: {word}").unwrap();
    out.flush().unwrap();
}

/// A role that drains on the first signal. With `stuck`, something is in flight that never ends.
fn play_role(stuck: bool) {
    Runtime::new().unwrap().block_on(async {
        let first = signal().unwrap();
        let (health, shutdown) = (Health::new(), Shutdown::new());
        let guard = stuck.then(|| shutdown.in_flight());
        health.set_ready(true, "");
        say("ready");
        let signal = timeout(FOR_EVER, first).await.unwrap();
        say(&format!("draining after {signal}"));
        let outcome = shutdown.drain(&health, FOR_EVER).await;
        drop(guard);
        say(&format!("{outcome}"));
        assert_eq!(outcome, Drained::Clean);
    });
}

/// A child that plays the role of the test called `test`, and what it says.
struct Role {
    child: Child,
    lines: io::Lines<BufReader<std::process::ChildStdout>>,
}

impl Role {
    fn start(test: &str) -> Self {
        let mut child = Command::new(env::current_exe().unwrap())
            .args(["--exact", &format!("signals::{test}"), "--nocapture", "--test-threads=1"])
            .env(ROLE, "1")
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let lines = BufReader::new(child.stdout.take().unwrap()).lines();
        Self { child, lines }
    }

    /// Reads on until the child says `word`. The pipe ends with the child, so this cannot hang on a dead one.
    fn wait_for(&mut self, word: &str) {
        let mut seen = Vec::new();
        for line in &mut self.lines {
            let line = line.unwrap();
            // The test harness of the child may have begun the line.
            if line.ends_with(&format!("child: {word}")) {
                return;
            }
            seen.push(line);
        }
        panic!("the child ended without {word:?}: {seen:#?}");
    }

    fn send(&self, signal: &str) {
        // The shell's own kill: a small image may have no other.
        let kill = format!("kill {signal} {}", self.child.id());
        assert!(Command::new("sh").args(["-c", &kill]).status().unwrap().success());
    }

    fn exit_code(mut self) -> Option<i32> {
        self.child.wait().unwrap().code()
    }
}

#[test]
fn the_first_signal_drains_and_the_process_ends_well() {
    if is_child() {
        return play_role(false);
    }
    for (signal, name) in [("-TERM", "SIGTERM"), ("-INT", "SIGINT")] {
        let mut role = Role::start("the_first_signal_drains_and_the_process_ends_well");
        role.wait_for("ready");
        role.send(signal);
        role.wait_for(&format!("draining after {name}"));
        role.wait_for("drained");
        assert_eq!(role.exit_code(), Some(0));
    }
}

#[test]
fn the_second_signal_ends_the_process_at_once() {
    if is_child() {
        return play_role(true);
    }
    for (signal, code) in [("-TERM", 143), ("-INT", 130)] {
        let mut role = Role::start("the_second_signal_ends_the_process_at_once");
        role.wait_for("ready");
        role.send("-TERM");
        role.wait_for("draining after SIGTERM");
        role.send(signal);
        assert_eq!(role.exit_code(), Some(code), "the second was {signal}");
    }
}
