//! Where the rows of a partition are to lie, and how they come there: warm-up, locks, copies. Blocks, so
//! it runs on blocking threads, one partition at a time: the throttle is that of the node.

use std::ops::ControlFlow;

use tidepool_table::{MemoryUse, PartitionFile, Residency, ResidencyError, Smaps};
use tokio_util::sync::CancellationToken;

/// What the configuration says of it.
#[derive(Clone, Debug)]
pub(crate) struct Policy {
    pub(crate) residency: Residency,
    pub(crate) warm_up_bytes_per_second: Option<u64>,
    /// Ends a warm-up.
    pub(crate) shutdown: CancellationToken,
}

/// A partition where it should lie.
#[derive(Debug)]
pub(crate) struct Resident {
    /// To be served instead of the one that was given; `None` when that one stays.
    pub(crate) copy: Option<PartitionFile>,
    /// As of now.
    pub(crate) memory: MemoryUse,
}

impl Policy {
    /// Whether a partition is served from its map while this is still at work.
    pub(crate) fn in_background(&self) -> bool {
        self.residency == Residency::Auto
    }

    /// Brings a partition to where it should lie, and says what became of it.
    ///
    /// # Errors
    /// [`ResidencyError`]: the file is as it was.
    pub(crate) fn apply(&self, file: &PartitionFile) -> Result<Resident, ResidencyError> {
        file.warm_up(self.warm_up_bytes_per_second, &mut |_, _| {
            if self.shutdown.is_cancelled() { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
        })?;
        let mut memory = memory_use(file);
        let copy = match self.residency {
            Residency::Copied => true,
            Residency::Auto => memory.lacks_huge_pages() && !self.shutdown.is_cancelled(),
            Residency::Mapped => false,
            Residency::Locked => {
                file.lock()?;
                false
            }
        };
        let copy = copy.then(|| file.to_copied()).transpose()?;
        if let Some(copy) = &copy {
            memory = memory_use(copy);
        }
        self.log(file, copy.is_some(), memory);
        Ok(Resident { copy, memory })
    }

    /// Says what to change when huge pages were not had.
    fn log(&self, file: &PartitionFile, copied: bool, memory: MemoryUse) {
        let (path, lookup_bytes, huge_page_bytes) =
            (file.path().display(), memory.lookup_bytes, memory.huge_page_bytes);
        if !memory.lacks_huge_pages() {
            tracing::info!(%path, copied, lookup_bytes, huge_page_bytes, "a partition is in memory");
        } else if copied {
            tracing::warn!(
                %path, lookup_bytes, huge_page_bytes,
                "the copy of a partition is on small pages, which makes lookups slower: set \
                 /sys/kernel/mm/transparent_hugepage/enabled to madvise or always, and see that memory is free"
            );
        } else {
            tracing::warn!(
                %path, lookup_bytes, huge_page_bytes,
                "the map of a partition is on small pages, which makes lookups slower: set residency to auto or \
                 copied, or use a file system with large folios (ext4 from Linux 6.16 on, xfs)"
            );
        }
    }
}

/// Zeros where the kernel does not tell.
fn memory_use(file: &PartitionFile) -> MemoryUse {
    Smaps::read().map_or_else(|_| MemoryUse::default(), |smaps| file.memory_use(&smaps))
}
