//! Where the rows of a partition are to lie, and how they come there: warm-up, locks, copies. Blocks, so
//! it runs on blocking threads, one partition at a time: the throttle is that of the node.

use std::{
    ops::ControlFlow::{Break, Continue},
    sync::Arc,
};

use tidepool_runtime::error::chain;
use tidepool_table::{MemoryUse, PartitionFile, Residency, ResidencyError, Smaps};
use tokio_util::sync::CancellationToken;

use crate::state::WarmUp;

/// What the configuration says of it.
#[derive(Clone, Debug)]
pub(crate) struct Policy {
    pub(crate) residency: Residency,
    pub(crate) warm_up_bytes_per_second: Option<u64>,
    /// Ends a warm-up.
    pub(crate) shutdown: CancellationToken,
}

/// A partition to be brought to where it should lie.
pub(crate) struct Bringing {
    pub(crate) file: Arc<PartitionFile>,
    /// What the node should hold of the version: all of it competes for the same caches of page tables.
    pub(crate) version_bytes: u64,
    /// Where progress is noted; `None` when the partition was warm before.
    pub(crate) warm_up: Option<Arc<WarmUp>>,
    /// Called whenever progress was noted.
    pub(crate) noted: Box<dyn Fn() + Send>,
}

/// A partition where it should lie.
#[derive(Debug)]
pub(crate) struct Resident {
    /// To be served instead of the one that was given; `None` when that one stays.
    pub(crate) copy: Option<Arc<PartitionFile>>,
    /// As of now.
    pub(crate) memory: MemoryUse,
}

impl Policy {
    /// Whether a partition is served from its map while this is still at work.
    pub(crate) fn in_background(&self) -> bool {
        self.residency == Residency::Auto
    }

    /// Brings a partition to where it should lie, and says what became of it. Whoever serves the copy
    /// instead calls [`PartitionFile::release_unread`] on it then.
    ///
    /// # Errors
    /// [`ResidencyError`]: the file is as it was.
    pub(crate) fn apply(&self, bringing: &Bringing) -> Result<Resident, ResidencyError> {
        let file = &bringing.file;
        if let Some(warm_up) = &bringing.warm_up {
            file.warm_up(self.warm_up_bytes_per_second, &mut |done, all| {
                warm_up.note(done, all);
                (bringing.noted)();
                if self.shutdown.is_cancelled() { Break(()) } else { Continue(()) }
            })?;
        }
        let mut memory = memory_use(file);
        let copy = match self.residency {
            Residency::Copied => Some(file.to_copied()?),
            Residency::Auto
                if memory.lacks_huge_pages(bringing.version_bytes) && !self.shutdown.is_cancelled() =>
            {
                match file.to_copied() {
                    Ok(copy) => Some(copy),
                    Err(error) => {
                        tracing::warn!(
                            path = %file.path().display(), error = chain(&error),
                            "a partition stays in its map, on small pages, which makes lookups slower"
                        );
                        return Ok(Resident { copy: None, memory });
                    }
                }
            }
            Residency::Auto | Residency::Mapped => None,
            Residency::Locked => {
                file.lock()?;
                None
            }
        };
        if let Some(copy) = &copy {
            memory = memory_use(copy);
        }
        log(copy.as_ref().unwrap_or(file), bringing.version_bytes, memory);
        Ok(Resident { copy: copy.map(Arc::new), memory })
    }
}

/// Says what to change when huge pages were not had.
fn log(file: &PartitionFile, version_bytes: u64, memory: MemoryUse) {
    let (path, copied) = (file.path().display(), file.is_copied());
    let (lookup_bytes, huge_page_bytes) = (memory.lookup_bytes, memory.huge_page_bytes);
    if memory.lacks_huge_pages(version_bytes) {
        tracing::warn!(
            %path, copied, lookup_bytes, huge_page_bytes,
            "a partition is in memory on small pages, which makes lookups slower: {}", file.huge_page_advice()
        );
    } else if memory.is_too_small_for_huge_pages(version_bytes) {
        tracing::info!(
            %path, copied, lookup_bytes, huge_page_bytes,
            "a partition is in memory, and too small for pages of 2 MiB: with fewer partitions lookups were faster"
        );
    } else {
        tracing::info!(%path, copied, lookup_bytes, huge_page_bytes, "a partition is in memory");
    }
}

/// Zeros where the kernel does not tell.
fn memory_use(file: &PartitionFile) -> MemoryUse {
    Smaps::read().map_or_else(|_| MemoryUse::default(), |smaps| file.memory_use(&smaps))
}
