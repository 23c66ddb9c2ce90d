//! The folder of a data set, which several demos may use at a time: one makes the release, any number serve it.

use std::{
    fs::{self, File, TryLockError},
    path::Path,
};

use anyhow::{Context, Result};

use crate::output::Output;

const LOCK_FILE: &str = "lock";

/// A hold on the folder. It ends with the process, however that ends.
#[derive(Debug)]
pub(crate) struct Hold {
    file: File,
    /// Nobody else uses the folder, so what is in it may be replaced.
    alone: bool,
}

impl Hold {
    /// Takes the folder, alone if nobody has it. Waits while another demo trains in it, and says so.
    pub(crate) fn take(dir: &Path, output: Output) -> Result<Self> {
        fs::create_dir_all(dir).with_context(|| format!("creating {}", dir.display()))?;
        let path = dir.join(LOCK_FILE);
        let file = File::options().create(true).truncate(false).write(true).open(&path);
        let file = file.with_context(|| format!("opening {}", path.display()))?;
        let locking = || format!("locking {}", path.display());
        let alone = match file.try_lock() {
            Ok(()) => true,
            Err(TryLockError::WouldBlock) => false,
            Err(TryLockError::Error(error)) => return Err(error).with_context(locking),
        };
        if !alone && let Err(TryLockError::WouldBlock) = file.try_lock_shared() {
            output.line(format!("another demo trains in {}: waiting for its release", dir.display()));
            file.lock_shared().with_context(locking)?;
        }
        Ok(Self { file, alone })
    }

    pub(crate) const fn alone(&self) -> bool {
        self.alone
    }

    /// The release is there: others may serve it too, but nobody may replace it.
    pub(crate) fn share(&mut self) -> Result<()> {
        self.alone = false;
        self.file.lock_shared().context("sharing the folder's lock")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_replaces_and_several_share() {
        let dir = tempfile::tempdir().unwrap();
        let output = Output::new(false);
        let mut first = Hold::take(dir.path(), output).unwrap();
        assert!(first.alone());
        first.share().unwrap();
        let second = Hold::take(dir.path(), output).unwrap();
        assert!(!second.alone(), "the first still serves");
        drop((first, second));
        assert!(Hold::take(dir.path(), output).unwrap().alone());
    }
}
