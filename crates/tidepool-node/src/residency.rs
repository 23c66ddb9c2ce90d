//! Where the rows of a partition are to lie, and how they come there: warm-up, locks, copies. It blocks and takes its
//! time, so it runs on threads of idle priority, one partition at a time: the throttle is that of the node.

use std::{
    ops::ControlFlow::{Break, Continue},
    sync::Arc,
};

use tidepool_runtime::{error::chain, idle};
use tidepool_table::{MemoryUse, PartitionFile, Residency, ResidencyError};
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;

use crate::{error::LoadError, state::WarmUp};

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
    /// Where progress is noted; `None` when the partition was warm before.
    pub(crate) warm_up: Option<Arc<WarmUp>>,
    /// Whether it is to be copied though the configuration leaves that open.
    pub(crate) to_copy: bool,
    /// Called whenever progress was noted.
    pub(crate) noted: Box<dyn Fn() + Send>,
    /// Asked at the beginning, during warm-up and before a copy.
    pub(crate) is_wanted: Box<dyn Fn() -> bool + Send>,
}

impl Policy {
    /// Whether a partition is served from its map while this is still at work.
    pub(crate) fn in_background(&self) -> bool {
        self.residency == Residency::Auto
    }

    /// Brings a partition to where it should lie, and gives the copy to be served instead, if one was made.
    /// Whoever serves it calls [`PartitionFile::release_unread`] on it then. Ends early, without a copy, when
    /// the partition is not wanted any more. Blocks.
    ///
    /// # Errors
    /// [`ResidencyError`]: the file is as it was.
    fn apply(&self, bringing: &Bringing) -> Result<Option<PartitionFile>, ResidencyError> {
        let file = &bringing.file;
        let ends = || self.shutdown.is_cancelled() || !(bringing.is_wanted)();
        if ends() {
            return Ok(None);
        }
        if let Some(warm_up) = &bringing.warm_up {
            file.warm_up(self.warm_up_bytes_per_second, &mut |done, all| {
                warm_up.note(done, all);
                (bringing.noted)();
                if ends() { Break(()) } else { Continue(()) }
            })?;
        }
        match self.residency {
            _ if ends() => Ok(None),
            Residency::Copied => file.to_copied().map(Some),
            Residency::Auto if bringing.to_copy => file.to_copied().map(Some),
            Residency::Auto | Residency::Mapped => Ok(None),
            Residency::Locked => file.lock().map(|()| None),
        }
    }
}

/// Waits for its turn, and blocks a thread made for that. Gives the copy to be served instead, if any.
pub(crate) async fn bring(
    policy: Policy,
    turn: Arc<Semaphore>,
    bringing: Bringing,
) -> Result<Option<Arc<PartitionFile>>, LoadError> {
    let turn = turn.acquire_owned().await;
    // The turn goes with the work and its result, which outlive this future when another assignment comes:
    // else the next copy began beside this one.
    let done = idle::run(move || (policy.apply(&bringing), turn)).await;
    let (copy, _turn) = done.map_err(|error| LoadError::Internal(chain(&error)))?;
    Ok(copy?.map(Arc::new))
}

/// Logs where a partition lies, and says what to change when huge pages were not had.
pub(crate) fn log(file: &PartitionFile, version_bytes: u64, memory: MemoryUse) {
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

#[cfg(test)]
mod tests {
    use std::sync::mpsc;

    use tempfile::TempDir;
    use tidepool_table::{TableBuilder, TableSpec};
    use tidepool_types::{Keying, Name, PartitionCount, PartitionIndex, RowFormat, TableVersion};

    use super::*;

    /// A partition of a small table, open; its directory goes with the first value.
    fn partition() -> (TempDir, Arc<PartitionFile>) {
        let dir = TempDir::new().unwrap();
        let name = |text| Name::new(text).unwrap();
        let spec = TableSpec {
            table_version: TableVersion { table: name("pin"), version: name("v1") },
            dim: 8,
            format: RowFormat::Int8,
            keying: Keying::Hashed,
            partitions: PartitionCount::ONE,
            default_row: Vec::new(),
            composite: None,
            full_keys: false,
            seed: 1,
        };
        let store = tidepool_store::ArtifactStore::open(dir.path()).unwrap();
        let table_dir = store.table_dir(&spec.table_version);
        let mut builder = TableBuilder::new(spec).unwrap();
        (0..1000).for_each(|id| builder.push(id, &[id as f32; 8]).unwrap());
        let schema = builder.publish(&table_dir, &mut |_, _| {}).unwrap().schema;
        let path = store.partition_path(&schema.table_version, schema.partitions, PartitionIndex(0));
        (dir, Arc::new(PartitionFile::open(&path).unwrap()))
    }

    fn policy(residency: Residency) -> Policy {
        Policy { residency, warm_up_bytes_per_second: None, shutdown: CancellationToken::new() }
    }

    /// All of it, while `is_wanted` says so; `noted` is called during warm-up.
    fn bringing(
        file: &Arc<PartitionFile>,
        noted: impl Fn() + Send + 'static,
        is_wanted: impl Fn() -> bool + Send + 'static,
    ) -> Bringing {
        Bringing {
            file: file.clone(),
            warm_up: Some(WarmUp::of(0)),
            to_copy: false,
            noted: Box::new(noted),
            is_wanted: Box::new(is_wanted),
        }
    }

    #[tokio::test]
    async fn a_copy_that_nobody_waits_for_any_more_keeps_its_turn_until_it_ends() {
        let (_dir, file) = partition();
        let turn = Arc::new(Semaphore::new(1));
        let (begun, mut has_begun) = tokio::sync::mpsc::unbounded_channel();
        let (go, may_go) = mpsc::channel::<()>();
        let noted = move || {
            let _ = begun.send(());
            // Until the other end is dropped.
            let _ = may_go.recv();
        };
        let first = bring(policy(Residency::Copied), turn.clone(), bringing(&file, noted, || true));
        // The assignment changes while the partition is on its way: the future is dropped.
        tokio::select! {
            _ = first => panic!("it waits for the test"),
            begun = has_begun.recv() => assert!(begun.is_some()),
        }
        assert!(turn.try_acquire().is_err(), "the next copy would begin beside this one");
        drop(go);
        let second = bring(policy(Residency::Copied), turn.clone(), bringing(&file, || (), || true));
        assert!(second.await.unwrap().unwrap().is_copied());
        assert_eq!(turn.available_permits(), 1);
    }

    #[tokio::test]
    async fn what_is_not_wanted_any_more_is_neither_warmed_nor_copied() {
        let (_dir, file) = partition();
        let turn = Arc::new(Semaphore::new(1));
        let run = |residency, bringing| bring(policy(residency), turn.clone(), bringing);

        let never = bringing(&file, || panic!("warmed"), || false);
        assert!(run(Residency::Copied, never).await.unwrap().is_none());

        // Let go of during warm-up.
        let (noted, notes) = mpsc::channel();
        let left = CancellationToken::new();
        let (leave, asked) = (left.clone(), left);
        let noted = move || {
            leave.cancel();
            noted.send(()).unwrap();
        };
        let meanwhile = bringing(&file, noted, move || !asked.is_cancelled());
        assert!(run(Residency::Copied, meanwhile).await.unwrap().is_none());
        assert_eq!(notes.iter().count(), 1, "warm-up went on");

        // With auto it is warmed first, and copied when that was found to be worth it.
        assert!(run(Residency::Auto, bringing(&file, || (), || true)).await.unwrap().is_none());
        let to_copy = Bringing { to_copy: true, ..bringing(&file, || (), || true) };
        assert!(run(Residency::Auto, to_copy).await.unwrap().unwrap().is_copied());
        let unwanted = Bringing { to_copy: true, ..bringing(&file, || (), || false) };
        assert!(run(Residency::Auto, unwanted).await.unwrap().is_none());
    }
}
