//! What the guards of ramps do is a change too, that nobody asked for: it stands in the audit log like those that
//! people make. The list of events in the durable state says what they did; a number on the disk says up to where it
//! is written down, so that what happened just before an end is made up for: when this controller leads again, and when
//! another leads for the first time.

use std::{
    fs::{self, File},
    io::{self, Write},
    path::PathBuf,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use prometheus::IntCounter;
use serde_json::json;
use tidepool_cluster::{ClusterEvent, ClusterState, GUARDS};
use tidepool_runtime::{
    audit::{AuditLog, Change, Outcome},
    auth::Caller,
    error::chain,
};

use crate::lead::Lead;

/// A controller that has never led writes down what guards did within this time before: whoever led then may have been
/// killed before it had. If it had not, the line stands in both logs, with the same event's number.
const MADE_UP_FOR: Duration = Duration::from_secs(3600);

/// Writes down what guards do, while this controller leads.
pub(crate) struct Halts {
    pub(crate) audit: AuditLog,
    pub(crate) lead: Lead,
    /// The number of the last event that was looked at.
    pub(crate) noted: PathBuf,
    pub(crate) failures: IntCounter,
}

impl Halts {
    /// Runs until this controller will never lead again.
    pub(crate) async fn run(self) {
        let mut last = self.load();
        while self.lead.begun().await {
            let Ok(handle) = self.lead.handle() else { continue };
            let mut maps = handle.maps();
            loop {
                // Guards take traffic away, which is a new map; the state is there before it.
                maps.mark_unchanged();
                last = Some(self.note(&handle.state(), last).await);
                tokio::select! {
                    changed = maps.changed() => if changed.is_err() { break },
                    () = handle.ended() => break,
                }
            }
        }
    }

    /// Writes down what guards did after the event `last`; gives the newest event's number.
    async fn note(&self, state: &ClusterState, last: Option<u64>) -> u64 {
        let events = &state.durable.events;
        let newest = events.after(0).last().map_or(0, |event| event.number);
        let last = match last {
            // Another state, which was put back.
            Some(last) if last > newest => {
                self.save(newest);
                return newest;
            }
            Some(last) => last,
            None => {
                let last = before(state, SystemTime::now());
                // Written down first: if what follows cannot be, it is not too old when it is looked at again.
                self.save(last);
                last
            }
        };
        let mut written = true;
        for event in events.after(last).filter(|event| event.by == GUARDS) {
            written &= self.write(event, state.map().epoch.0).await;
        }
        if written && (newest > last || !self.noted.exists()) {
            self.save(newest);
        }
        newest
    }

    async fn write(&self, event: &ClusterEvent, epoch: u64) -> bool {
        let ClusterEvent { number, kind, subject, release, why, .. } = event;
        let change = Change {
            caller: Caller::process(GUARDS),
            action: kind.as_str().to_owned(),
            what: json!({ "event": number, "model": subject, "release": release }),
            epoch,
        };
        let written = self.audit.note(change, Outcome { word: "ok", problem: Some(why), epoch }).await;
        if let Err(error) = &written {
            self.failures.inc();
            tracing::error!(problem = chain(error), "what guards did is not in the audit log yet");
        }
        written.is_ok()
    }

    fn load(&self) -> Option<u64> {
        fs::read_to_string(&self.noted).ok()?.trim().parse().ok()
    }

    /// A few bytes, a few times a day: it is not worth a thread.
    fn save(&self, number: u64) {
        let draft = self.noted.with_extension("draft");
        let write = || -> io::Result<()> {
            let mut file = File::create(&draft)?;
            writeln!(file, "{number}")?;
            file.sync_all()?;
            fs::rename(&draft, &self.noted)
        };
        if let Err(error) = write() {
            let path = self.noted.display();
            tracing::warn!(%error, %path, "what guards did may be in the audit log twice after a restart");
        }
    }
}

/// The number of the last event that is too old to be made up for.
fn before(state: &ClusterState, now: SystemTime) -> u64 {
    let now = now.duration_since(UNIX_EPOCH).unwrap_or_default();
    let since = now.saturating_sub(MADE_UP_FOR).as_secs();
    let old = state.durable.events.after(0).filter(|event| event.unix_seconds < since);
    old.last().map_or(0, |event| event.number)
}

#[cfg(test)]
mod tests {
    use std::{os::unix::fs::symlink, path::Path};

    use serde_json::Value;
    use tidepool_cluster::{Durable, Settings};
    use tidepool_runtime::audit::AuditOptions;

    use super::*;
    use crate::lead::standing;

    fn state(by: &[&str]) -> ClusterState {
        state_of(1, by)
    }

    /// Events of this second.
    fn state_of(unix_seconds: u64, by: &[&str]) -> ClusterState {
        let events = (1..).zip(by).map(|(number, by)| {
            json!({ "number": number, "unix_seconds": unix_seconds, "by": by, "kind": "halted", "subject": "m", "release": "r2" })
        });
        let events = serde_json::from_value(Value::Array(events.collect())).unwrap();
        let durable = Durable { events, ..Durable::default() };
        let settings = Settings {
            reconnect_grace: std::time::Duration::ZERO,
            group_settle: std::time::Duration::ZERO,
            retire_grace: std::time::Duration::ZERO,
        };
        ClusterState::recover(durable, settings, std::time::Duration::ZERO)
    }

    #[tokio::test]
    async fn what_guards_did_before_an_end_is_made_up_for_and_nothing_is_told_twice() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("audit.log");
        let options = AuditOptions { path: path.clone(), max_bytes: 1 << 20, keep: 1 };
        let halts = Halts {
            audit: AuditLog::open(Some(options)).unwrap(),
            lead: standing().1,
            noted: folder.path().join("audited-events"),
            failures: IntCounter::new("x", "x").unwrap(),
        };
        let told = || -> Vec<u64> {
            let text = fs::read_to_string(&path).unwrap();
            let event = |line: &str| serde_json::from_str::<Value>(line).unwrap()["what"]["event"].as_u64();
            text.lines().filter_map(event).collect()
        };
        // What was there before this controller ever looked is not its business.
        assert_eq!(halts.note(&state(&[GUARDS]), halts.load()).await, 1);
        assert_eq!((halts.load(), told()), (Some(1), vec![]));
        let now = state(&[GUARDS, "alice", GUARDS, "the cluster"]);
        assert_eq!(halts.note(&now, halts.load()).await, 4);
        assert_eq!(halts.note(&now, halts.load()).await, 4);
        assert_eq!((halts.load(), told()), (Some(4), vec![3]));
        // An older state was put back.
        assert_eq!(halts.note(&state(&[GUARDS, "alice"]), halts.load()).await, 2);
        assert_eq!(halts.note(&state(&[GUARDS, "alice", GUARDS]), halts.load()).await, 3);
        assert_eq!(told(), [3, 3]);
    }

    #[tokio::test]
    async fn a_controller_that_leads_for_the_first_time_makes_up_for_what_happened_just_before() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("audit.log");
        let options = AuditOptions { path: path.clone(), max_bytes: 1 << 20, keep: 1 };
        let halts = Halts {
            audit: AuditLog::open(Some(options)).unwrap(),
            lead: standing().1,
            noted: folder.path().join("audited-events"),
            failures: IntCounter::new("x", "x").unwrap(),
        };
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs();
        assert_eq!(halts.note(&state_of(now, &["alice", GUARDS]), halts.load()).await, 2);
        let text = fs::read_to_string(&path).unwrap();
        assert_eq!(text.lines().count(), 1, "{text}");
        assert!(text.contains("\"event\":2") && text.contains(GUARDS), "{text}");
        assert_eq!(halts.load(), Some(2));
    }

    #[tokio::test]
    async fn what_could_not_be_written_at_the_first_look_is_made_up_for_however_late() {
        let folder = tempfile::tempdir().unwrap();
        let [full, path] = ["full.log", "audit.log"].map(|name| folder.path().join(name));
        let open = |path: &Path| {
            let options = AuditOptions { path: path.to_owned(), max_bytes: 1 << 20, keep: 1 };
            Halts {
                audit: AuditLog::open(Some(options)).unwrap(),
                lead: standing().1,
                noted: folder.path().join("audited-events"),
                failures: IntCounter::new("x", "x").unwrap(),
            }
        };
        let halts = open(&full);
        fs::remove_file(&full).unwrap();
        symlink("/dev/full", &full).unwrap();
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs();
        halts.note(&state_of(now, &["alice", GUARDS]), halts.load()).await;
        assert_eq!((halts.failures.get(), halts.load()), (1, Some(0)));
        // The process ends with what it owes, and the next looks when the same events are old.
        let halts = open(&path);
        assert_eq!(halts.note(&state(&["alice", GUARDS]), halts.load()).await, 2);
        let text = fs::read_to_string(&path).unwrap();
        assert_eq!((text.lines().count(), text.contains("\"event\":2")), (1, true), "{text}");
        assert_eq!(halts.load(), Some(2));
    }
}
