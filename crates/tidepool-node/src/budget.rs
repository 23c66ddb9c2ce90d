//! What a node may hold, of partition files, of memory and of its disk, and whether something more fits. A partition
//! that does not is refused with the numbers before anything of it is loaded.
//!
//! What is served stays until all that an assignment adds has come, so both count at the same time.

use std::{fmt, path::PathBuf};

use prometheus::{IntGauge, IntGaugeVec, Opts, PullingGauge, Registry};
use serde_json::{Value, json};
use tidepool_cluster::HostMemory;
use tidepool_table::{PartitionFile, Residency, charged_bytes, lockable_bytes, memory_limit};

use crate::{
    config::Config,
    error::LoadError,
    partition::Wanted,
    partitions::Snapshot,
    state::{Held, NodeState},
};

/// Of a limit that was found, one part in so many is left for requests, page tables and the program itself.
const RESERVE_SHARE: u64 = 4;
/// And not more than this.
const RESERVE_MAX_BYTES: u64 = 1 << 30;

/// What the configuration says of it.
#[derive(Clone, Debug)]
pub(crate) struct Budgets {
    /// Bytes of partition files.
    pub(crate) capacity_bytes: Option<u64>,
    /// Bytes of memory; `None`: what the machine and the control group allow, less a reserve.
    pub(crate) memory_capacity_bytes: Option<u64>,
    pub(crate) residency: Residency,
}

/// How much memory partitions may take, and why.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct MemoryBudget {
    pub(crate) bytes: u64,
    /// For people.
    pub(crate) source: String,
}

/// What is served takes of memory. A byte counts once, wherever it lies.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct HeldMemory {
    pub(crate) locked: u64,
    pub(crate) copied: u64,
    pub(crate) mapped: u64,
}

impl HeldMemory {
    /// What partitions take that are brought to where `residency` says before they are served.
    pub(crate) fn of<'a>(files: impl IntoIterator<Item = &'a PartitionFile>, residency: Residency) -> Self {
        let mut held = Self::default();
        for file in files {
            let of = match residency {
                _ if file.is_copied() => &mut held.copied,
                Residency::Locked => &mut held.locked,
                _ => &mut held.mapped,
            };
            *of += file.lookup_bytes();
        }
        held
    }

    fn sum(self) -> u64 {
        self.locked.saturating_add(self.copied).saturating_add(self.mapped)
    }
}

impl fmt::Display for HeldMemory {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { locked, copied, mapped } = self;
        write!(f, "{locked} locked, {copied} copied, {mapped} mapped")
    }
}

impl Budgets {
    /// How much memory there is for partitions now. `None`: the system does not tell, and nothing is configured.
    pub(crate) fn memory(&self) -> Option<MemoryBudget> {
        if let Some(bytes) = self.memory_capacity_bytes {
            return Some(MemoryBudget { bytes, source: "memory_capacity_bytes".to_owned() });
        }
        let limit = memory_limit()?;
        let reserve = (limit.bytes / RESERVE_SHARE).min(RESERVE_MAX_BYTES);
        let source = format!("{}: {} bytes, less {reserve} for all else", limit.said_by, limit.bytes);
        Some(MemoryBudget { bytes: limit.bytes - reserve, source })
    }

    /// Begins to count what an assignment adds to what is served. `files_bytes` are those of partition files that
    /// stay; of the disk so much is used of a limit; a copy of `copying_bytes` is being made beside its map.
    pub(crate) fn tally(
        &self,
        served: &Snapshot,
        files_bytes: u64,
        disk: Option<(u64, u64)>,
        copying_bytes: u64,
    ) -> Tally {
        Tally {
            capacity_bytes: self.capacity_bytes,
            residency: self.residency,
            memory: self.memory(),
            lockable: lockable_bytes().filter(|_| self.residency == Residency::Locked),
            held: HeldMemory::of(served.partitions().map(|file| &**file), self.residency),
            files_bytes,
            disk,
            coming: 0,
            beside: copying_bytes,
        }
    }

    /// Whether a copy of a partition that is served from its map can be made: for a while it lies in memory twice.
    ///
    /// # Errors
    /// [`LoadError::Memory`].
    pub(crate) fn check_copy(&self, served: &Snapshot, file: &PartitionFile) -> Result<(), LoadError> {
        let mut tally = self.tally(served, 0, None, 0);
        tally.residency = Residency::Auto;
        tally.check_memory(file.path().to_owned(), file.lookup_bytes())
    }

    /// Those of a node, which says beforehand what it would refuse later.
    pub(crate) fn of(config: &Config) -> Self {
        let budgets = Self {
            capacity_bytes: config.capacity_bytes,
            memory_capacity_bytes: config.memory_capacity_bytes,
            residency: config.residency,
        };
        budgets.announce();
        budgets
    }

    fn announce(&self) {
        match self.memory() {
            Some(MemoryBudget { bytes, source }) => {
                tracing::info!(bytes, source, "memory that partitions may take");
            }
            None => tracing::warn!(
                "the system does not tell how much memory there is, and memory_capacity_bytes is not given: partitions \
                 are taken on whether or not they fit"
            ),
        }
        if self.residency == Residency::Locked
            && let Some(lockable) = lockable_bytes()
        {
            tracing::warn!(
                lockable,
                "residency is locked, and this process may lock no more than that (RLIMIT_MEMLOCK): what is beyond it \
                 will be refused. Raise it: LimitMEMLOCK= in a systemd unit, ulimit -l in a shell, the capability \
                 IPC_LOCK in a container"
            );
        }
    }

    /// What is served takes of memory now.
    pub(crate) fn host_memory(&self, served: &Snapshot) -> HostMemory {
        let held = HeldMemory::of(served.partitions().map(|file| &**file), self.residency);
        HostMemory {
            budget_bytes: self.memory().map_or(0, |budget| budget.bytes),
            locked_bytes: held.locked,
            copied_bytes: held.copied,
            mapped_bytes: held.mapped,
            charged_bytes: charged_bytes().unwrap_or(0),
        }
    }

    /// The largest partition that would still fit; `None` where no limit is known.
    fn room(&self, served: &Snapshot) -> Option<u64> {
        let Tally { memory, held, lockable, .. } = self.tally(served, 0, None, 0);
        let left = memory.map(|budget| budget.bytes.saturating_sub(held.sum()));
        // Beside its map.
        let left = left.map(|left| if self.residency == Residency::Copied { left / 2 } else { left });
        let lockable = lockable.map(|lockable| lockable.saturating_sub(held.locked));
        left.into_iter().chain(lockable).min()
    }

    /// What `/status` shows of memory.
    pub(crate) fn status(&self, served: &Snapshot, state: &NodeState) -> Value {
        let memory = self.host_memory(served);
        json!({
            "budget_bytes": self.memory().map(|budget| budget.bytes),
            "budget_source": self.memory().map(|budget| budget.source),
            "locked_bytes": memory.locked_bytes,
            "copied_bytes": memory.copied_bytes,
            "mapped_bytes": memory.mapped_bytes,
            "mapped_resident_bytes": mapped_resident(served, state),
            "charged_bytes": charged_bytes(),
            "largest_that_fits_bytes": self.room(served),
            "lockable_bytes": lockable_bytes(),
        })
    }
}

/// Of what lies in maps: the bytes that were in memory when their partitions were brought there.
fn mapped_resident(served: &Snapshot, state: &NodeState) -> u64 {
    let is_mapped = |held: &&Held| {
        let status = &held.status;
        served.schemas().filter(|schema| schema.table_version == status.table_version).any(|schema| {
            let file = served.partition(schema, status.partition);
            schema.partitions.get() == status.partitions && file.is_some_and(|file| !file.is_copied())
        })
    };
    state.partitions.iter().filter(is_mapped).map(|held| held.memory.resident_bytes).sum()
}

/// What is taken while an assignment is planned.
#[derive(Debug)]
pub(crate) struct Tally {
    capacity_bytes: Option<u64>,
    residency: Residency,
    memory: Option<MemoryBudget>,
    /// What this process may lock, if it locks and there is a limit.
    lockable: Option<u64>,
    /// Served, whether or not it is still assigned.
    held: HeldMemory,
    files_bytes: u64,
    disk: Option<(u64, u64)>,
    /// Memory of partitions that were taken on since.
    coming: u64,
    /// The largest of what lies in memory twice while it is copied: one is copied at a time.
    beside: u64,
}

impl Tally {
    /// Takes a partition on whose file has `needed` bytes, of which `to_come` must still come to the disk.
    ///
    /// # Errors
    /// [`LoadError`] with the numbers; nothing is taken then.
    pub(crate) fn take(&mut self, wanted: &Wanted, needed: u64, to_come: u64) -> Result<(), LoadError> {
        let path = || wanted.path.clone();
        if let Some(capacity) = self.capacity_bytes
            && needed > capacity.saturating_sub(self.files_bytes)
        {
            return Err(LoadError::Capacity { path: path(), needed, taken: self.files_bytes, capacity });
        }
        self.check_memory(path(), needed)?;
        self.check_locks(wanted, needed)?;
        if let Some((used, limit)) = self.disk
            && to_come > limit.saturating_sub(used)
        {
            return Err(LoadError::DiskCapacity {
                path: path(),
                needed: to_come,
                taken: used,
                capacity: limit,
            });
        }
        self.files_bytes = self.files_bytes.saturating_add(needed);
        self.disk = self.disk.map(|(used, limit)| (used.saturating_add(to_come), limit));
        self.coming = self.coming.saturating_add(needed);
        if self.residency == Residency::Copied {
            self.beside = self.beside.max(needed);
        }
        Ok(())
    }

    /// Rows and index are less than the file; how much less is not known before it is here.
    fn check_memory(&self, path: PathBuf, needed: u64) -> Result<(), LoadError> {
        let Some(budget) = &self.memory else { return Ok(()) };
        let beside = if self.residency == Residency::Copied { self.beside.max(needed) } else { self.beside };
        let taken = self.held.sum().saturating_add(self.coming).saturating_add(beside);
        if needed <= budget.bytes.saturating_sub(taken) {
            return Ok(());
        }
        Err(LoadError::Memory {
            path,
            needed,
            residency: self.residency,
            held: self.held,
            coming: self.coming,
            beside,
            budget: budget.clone(),
        })
    }

    fn check_locks(&self, wanted: &Wanted, needed: u64) -> Result<(), LoadError> {
        let Some(lockable) = self.lockable else { return Ok(()) };
        let locked = self.held.locked.saturating_add(self.coming);
        if needed <= lockable.saturating_sub(locked) {
            return Ok(());
        }
        Err(LoadError::Locks { path: wanted.path.clone(), needed, locked, lockable })
    }
}

/// Gauges of memory.
#[derive(Clone, Debug)]
pub(crate) struct MemoryGauges {
    /// What partitions may take.
    budget: IntGauge,
    /// What those that are served take, by where they lie.
    held: IntGaugeVec,
    /// The largest partition that would still fit.
    room: IntGauge,
}

impl MemoryGauges {
    /// Registers them, and one that asks the control group whenever it is scraped.
    ///
    /// # Errors
    /// When `registry` has a metric of such a name already.
    pub(crate) fn new(registry: &Registry) -> prometheus::Result<Self> {
        let name = |rest: &str| format!("tidepool_node_memory_{rest}_bytes");
        let gauges = Self {
            budget: IntGauge::new(name("budget"), "Bytes of memory that partitions may take")?,
            held: IntGaugeVec::new(
                Opts::new(name("held"), "Bytes of rows and indexes that are served, by where they lie"),
                &["kind"],
            )?,
            room: IntGauge::new(
                name("room"),
                "Bytes of the largest partition that would still fit in memory",
            )?,
        };
        let charged = PullingGauge::new(
            name("charged"),
            "Bytes that the control group of the node is charged with, page cache included",
            Box::new(|| charged_bytes().unwrap_or(0) as f64),
        )?;
        registry.register(Box::new(gauges.budget.clone()))?;
        registry.register(Box::new(gauges.held.clone()))?;
        registry.register(Box::new(gauges.room.clone()))?;
        registry.register(Box::new(charged))?;
        Ok(gauges)
    }

    /// Shows what is served.
    pub(crate) fn show(&self, budgets: &Budgets, served: &Snapshot, state: &NodeState) {
        let memory = budgets.host_memory(served);
        let gauge = |value: u64| i64::try_from(value).unwrap_or(i64::MAX);
        self.budget.set(gauge(memory.budget_bytes));
        self.room.set(gauge(budgets.room(served).unwrap_or(0)));
        for (kind, bytes) in [
            ("locked", memory.locked_bytes),
            ("copied", memory.copied_bytes),
            ("mapped", memory.mapped_bytes),
            ("mapped_resident", mapped_resident(served, state)),
        ] {
            self.held.with_label_values(&[kind]).set(gauge(bytes));
        }
    }
}

#[cfg(test)]
mod tests;
