//! The audit log: what was changed, by whom, from where, and what became of it. One JSON object a line, on disk
//! before the answer goes out.
//!
//! The file is rotated by size: `audit.log` becomes `audit.log.1`, that `audit.log.2`, and the oldest goes.

use std::{
    fs::{self, File, OpenOptions},
    io::{self, Write},
    os::unix::fs::OpenOptionsExt,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError},
};

use serde::Serialize;
use serde_json::Value;
use thiserror::Error;

use crate::{
    auth::{Caller, KnownBy},
    utc,
};

/// Where the audit log is, and how much of it is kept.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AuditOptions {
    /// The file that is written now.
    pub path: PathBuf,
    /// A file that would grow beyond this is put aside.
    pub max_bytes: u64,
    /// How many files are kept beside the one that is written.
    pub keep: u32,
}

/// The audit log could not be written.
#[derive(Debug, Error)]
#[error("could not {did} the audit log {path}", path = path.display())]
pub struct AuditError {
    /// "open", "write" or "rotate".
    pub did: &'static str,
    /// The file.
    pub path: PathBuf,
    /// Why.
    pub source: io::Error,
}

/// A change, or one that was refused.
#[derive(Clone, Debug)]
pub struct Change<'a> {
    /// Who asked for it.
    pub caller: &'a Caller,
    /// What it is called: `promote_release`.
    pub action: &'a str,
    /// What it was about; nothing secret.
    pub what: Value,
    /// `ok`, or the code of the error.
    pub outcome: &'a str,
    /// What the error said.
    pub problem: Option<&'a str>,
    /// The epoch of the cluster map after it.
    pub epoch: u64,
}

/// A line.
#[derive(Serialize)]
struct Line<'a> {
    time: String,
    who: &'a str,
    known_by: KnownBy,
    from: Option<String>,
    action: &'a str,
    what: &'a Value,
    outcome: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    problem: Option<&'a str>,
    epoch: u64,
}

/// Where changes are written down: a file, if one is wanted, and the log of the process under the target `audit`.
/// Clones share it.
#[derive(Clone, Debug, Default)]
pub struct AuditLog(Option<Arc<Mutex<Rotating>>>);

#[derive(Debug)]
struct Rotating {
    options: AuditOptions,
    file: File,
    bytes: u64,
}

impl AuditLog {
    /// Opens the file, to write on at its end; without `options` there is none.
    ///
    /// # Errors
    /// [`AuditError`].
    pub fn open(options: Option<AuditOptions>) -> Result<Self, AuditError> {
        let open = |options: AuditOptions| {
            let error = |source| AuditError { did: "open", path: options.path.clone(), source };
            let (file, bytes) = open_at_end(&options.path).map_err(error)?;
            Ok(Arc::new(Mutex::new(Rotating { options, file, bytes })))
        };
        Ok(Self(options.map(open).transpose()?))
    }

    /// Writes a change down. It blocks until the line is on the disk.
    ///
    /// # Errors
    /// [`AuditError`]: it is in the log of the process only.
    pub fn write(&self, change: &Change<'_>) -> Result<(), AuditError> {
        let Change { caller, action, what, outcome, problem, epoch } = change;
        tracing::info!(
            target: "audit", who = %caller.name, from = ?caller.from, action, %what, outcome, problem, epoch, "change"
        );
        let Some(file) = &self.0 else { return Ok(()) };
        let line = Line {
            time: utc::format(utc::now()),
            who: &caller.name,
            known_by: caller.by,
            from: caller.from.map(|from| from.to_string()),
            action,
            what,
            outcome,
            problem: *problem,
            epoch: *epoch,
        };
        let mut file = file.lock().unwrap_or_else(PoisonError::into_inner);
        file.write(&line)
    }
}

impl Rotating {
    fn write(&mut self, line: &Line<'_>) -> Result<(), AuditError> {
        let path = self.options.path.clone();
        let error = |did| move |source| AuditError { did, path, source };
        let mut bytes = serde_json::to_vec(line).map_err(|e| error.clone()("write")(e.into()))?;
        bytes.push(b'\n');
        let len = bytes.len() as u64;
        if self.bytes > 0 && self.bytes + len > self.options.max_bytes {
            self.rotate().map_err(error.clone()("rotate"))?;
        }
        // In one call, so that a line is never between the parts of another.
        let written = self.file.write_all(&bytes).and_then(|()| self.file.sync_data());
        written.map_err(error("write"))?;
        self.bytes += len;
        Ok(())
    }

    fn rotate(&mut self) -> io::Result<()> {
        let AuditOptions { path, keep, .. } = &self.options;
        for number in (1..*keep).rev() {
            rename_if_there(&numbered(path, number), &numbered(path, number + 1))?;
        }
        match keep {
            0 => fs::remove_file(path)?,
            _ => rename_if_there(path, &numbered(path, 1))?,
        }
        (self.file, self.bytes) = open_at_end(path)?;
        Ok(())
    }
}

fn numbered(path: &Path, number: u32) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(format!(".{number}"));
    name.into()
}

fn rename_if_there(from: &Path, to: &Path) -> io::Result<()> {
    match fs::rename(from, to) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        renamed => renamed,
    }
}

/// The file, made if it is not there, and its length; its name is on the disk too.
fn open_at_end(path: &Path) -> io::Result<(File, u64)> {
    let file = OpenOptions::new().create(true).append(true).mode(0o600).open(path)?;
    let bytes = file.metadata()?.len();
    let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty());
    File::open(folder.unwrap_or(Path::new(".")))?.sync_all()?;
    Ok((file, bytes))
}

#[cfg(test)]
mod tests {
    use serde_json::json;
    use tonic::codegen::http::Extensions;

    use super::*;

    fn change(caller: &Caller, epoch: u64) -> Change<'_> {
        let what = json!({ "model": "ads", "release": "r1" });
        Change { caller, action: "promote_release", what, outcome: "ok", problem: None, epoch }
    }

    fn lines(path: &Path) -> Vec<Value> {
        let text = fs::read_to_string(path).unwrap();
        text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
    }

    #[test]
    fn a_change_is_a_line_and_lines_are_added_after_a_restart() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("audit.log");
        let options = AuditOptions { path: path.clone(), max_bytes: 1 << 20, keep: 2 };
        let caller = Caller::of(&Extensions::new());
        for epoch in [7, 8] {
            AuditLog::open(Some(options.clone())).unwrap().write(&change(&caller, epoch)).unwrap();
        }
        let refused = Change { outcome: "conflict", problem: Some("not ready"), ..change(&caller, 9) };
        AuditLog::open(Some(options)).unwrap().write(&refused).unwrap();
        let lines = lines(&path);
        assert_eq!(lines.len(), 3);
        assert_eq!((&lines[0]["epoch"], &lines[0]["who"]), (&json!(7), &json!("in-process")));
        assert_eq!(lines[0]["what"], json!({ "model": "ads", "release": "r1" }));
        assert_eq!((&lines[2]["outcome"], &lines[2]["problem"]), (&json!("conflict"), &json!("not ready")));
        assert!(lines[0].get("problem").is_none() && lines[0]["time"].as_str().unwrap().ends_with('Z'));
    }

    #[test]
    fn files_are_put_aside_by_size_and_the_oldest_goes() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("audit.log");
        let caller = Caller::of(&Extensions::new());
        let one = {
            let probe = folder.path().join("probe");
            let options = AuditOptions { path: probe.clone(), max_bytes: 0, keep: 0 };
            AuditLog::open(Some(options)).unwrap().write(&change(&caller, 1)).unwrap();
            fs::metadata(&probe).unwrap().len()
        };
        let log =
            AuditLog::open(Some(AuditOptions { path: path.clone(), max_bytes: 2 * one, keep: 2 })).unwrap();
        for epoch in 1..=7 {
            log.write(&change(&caller, epoch)).unwrap();
        }
        let epochs =
            |path: &Path| lines(path).iter().map(|l| l["epoch"].as_u64().unwrap()).collect::<Vec<_>>();
        assert_eq!(epochs(&path), [7]);
        assert_eq!(epochs(&numbered(&path, 1)), [5, 6]);
        assert_eq!(epochs(&numbered(&path, 2)), [3, 4]);
        assert!(!numbered(&path, 3).exists());
    }

    #[test]
    fn a_file_that_cannot_be_written_is_an_error_and_without_a_file_there_is_none() {
        let options = AuditOptions { path: "/no/such/folder/audit.log".into(), max_bytes: 1, keep: 1 };
        let error = AuditLog::open(Some(options)).unwrap_err();
        assert_eq!(error.to_string(), "could not open the audit log /no/such/folder/audit.log");
        let caller = Caller::of(&Extensions::new());
        AuditLog::open(None).unwrap().write(&change(&caller, 1)).unwrap();
        let full = AuditOptions { path: "/dev/full".into(), max_bytes: 1 << 20, keep: 1 };
        let error = AuditLog::open(Some(full)).unwrap().write(&change(&caller, 1)).unwrap_err();
        assert_eq!(error.did, "write");
    }
}
