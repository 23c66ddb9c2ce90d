//! The file of rules while a process runs: looked at again and again, and used when it is certainly whole.
//!
//! Half of a file may parse as a shorter list, in which somebody is missing. So a file counts when another was put in
//! its place (`mv`) and has been the same for two looks, or when somebody says that it is whole.

use std::{
    fmt,
    fs::File,
    io::Read,
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError},
    time::SystemTime,
};

use arc_swap::{ArcSwap, Guard};
use tokio::sync::watch;

use super::rules::{Rules, RulesError};
use crate::{error::chain, tls::Reloaded};

/// The rules of a file, and what is known of the file.
pub(super) struct RulesFile {
    path: PathBuf,
    rules: ArcSwap<Rules>,
    looks: Mutex<Looks>,
    /// How often the rules have changed.
    changes: watch::Sender<u64>,
}

impl fmt::Debug for RulesFile {
    /// Without the rules: what is kept of tokens is nobody's business either.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RulesFile").field("path", &self.path).finish_non_exhaustive()
    }
}

struct Looks {
    /// What the rules in use were read from.
    used: String,
    /// What the last look saw.
    last: Seen,
    /// Whether that was put there as it is; otherwise it was written in place.
    whole: bool,
    /// Why the file as it is now is not used.
    problem: Option<String>,
}

/// A file at one moment.
#[derive(Clone, PartialEq, Eq)]
struct Seen {
    device: u64,
    inode: u64,
    /// When it was made, where the file system tells: the number of a file that is gone is soon given to another.
    born: Option<SystemTime>,
    text: String,
}

impl Seen {
    fn read(path: &Path) -> Result<Self, RulesError> {
        let error = |source| RulesError::Read { path: path.to_owned(), source };
        let mut file = File::open(path).map_err(error)?;
        // Of what is read, and not of what may have come to the path since.
        let found = file.metadata().map_err(error)?;
        let mut text = String::new();
        file.read_to_string(&mut text).map_err(error)?;
        Ok(Self { device: found.dev(), inode: found.ino(), born: found.created().ok(), text })
    }

    fn is_same_file(&self, other: &Self) -> bool {
        (self.device, self.inode, self.born) == (other.device, other.inode, other.born)
    }
}

impl RulesFile {
    pub(super) fn open(path: PathBuf) -> Result<Self, RulesError> {
        let last = Seen::read(&path)?;
        let rules = ArcSwap::from_pointee(Rules::parse(&path, &last.text)?);
        let looks = Mutex::new(Looks { used: last.text.clone(), last, whole: true, problem: None });
        Ok(Self { path, rules, looks, changes: watch::Sender::new(0) })
    }

    pub(super) fn rules(&self) -> Guard<Arc<Rules>> {
        self.rules.load()
    }

    /// Marked as changed when the rules change.
    pub(super) fn changes(&self) -> watch::Receiver<u64> {
        self.changes.subscribe()
    }

    pub(super) fn problem(&self) -> Option<String> {
        self.looks.lock().unwrap_or_else(PoisonError::into_inner).problem.clone()
    }

    /// Looks at the file. When somebody has `told` that it is whole, that is not doubted.
    pub(super) fn look(&self, told: bool) -> Reloaded {
        let seen = Seen::read(&self.path);
        let mut looks = self.looks.lock().unwrap_or_else(PoisonError::into_inner);
        match seen.and_then(|seen| self.judge(&mut looks, seen, told)) {
            Ok(None) => Reloaded::Unchanged,
            Ok(Some(rules)) => {
                self.rules.store(Arc::new(rules));
                self.changes.send_modify(|changes| *changes += 1);
                Reloaded::New
            }
            Err(error) => {
                let problem = chain(&error);
                if looks.problem.as_ref() == Some(&problem) {
                    return Reloaded::Unchanged;
                }
                looks.problem = Some(problem.clone());
                Reloaded::Refused(problem)
            }
        }
    }

    /// New rules, if there are some that can be used now.
    fn judge(&self, looks: &mut Looks, seen: Seen, told: bool) -> Result<Option<Rules>, RulesError> {
        let is_settled = looks.last == seen;
        if !is_settled {
            looks.whole = !looks.last.is_same_file(&seen);
            looks.last = seen;
        }
        if looks.last.text == looks.used {
            (looks.whole, looks.problem) = (true, None);
            return Ok(None);
        }
        if !told && !looks.whole {
            return Err(RulesError::InPlace { path: self.path.clone() });
        }
        if !told && !is_settled {
            return Ok(None);
        }
        let rules = Rules::parse(&self.path, &looks.last.text)?;
        looks.used.clone_from(&looks.last.text);
        (looks.whole, looks.problem) = (true, None);
        Ok((**self.rules.load() != rules).then_some(rules))
    }
}
