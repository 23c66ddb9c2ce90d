//! The admin server over real connections, and the end of a real process by real signals, the logs of a whole process.
#![expect(clippy::unwrap_used, reason = "a test may panic")]

mod admin;
mod signals;
mod tls;

use tidepool_runtime::logs::{self, LogError, LogOptions};

#[test]
fn the_logs_of_a_process_are_set_up_once() {
    let options = |filter: &str| LogOptions { filter: filter.into(), ..LogOptions::default() };
    logs::init(&options("off")).unwrap();
    assert!(matches!(logs::init(&options("off")), Err(LogError::Taken { .. })));
}
