//! What this node serves at this moment: an immutable [`Snapshot`], swapped whole. A lookup loads it once
//! and sees nothing else, so no answer can be made from two assignments.

use std::{collections::BTreeMap, sync::Arc};

use tidepool_kernels::RowKernel;
use tidepool_table::PartitionFile;
use tidepool_types::{Epoch, Name, PartitionCount, PartitionIndex, TableSchema, TableVersion};

use crate::error::NotServed;

/// Rows by key. In a node it is a mapped file; in unit tests whatever they like.
pub(crate) trait FindRows: Send + Sync + 'static {
    /// Pushes the stored row of each key, or `None`, in the order of `keys`.
    fn find_many<'a>(&'a self, keys: &[u64], out: &mut Vec<Option<&'a [u8]>>);
}

impl FindRows for PartitionFile {
    fn find_many<'a>(&'a self, keys: &[u64], out: &mut Vec<Option<&'a [u8]>>) {
        Self::find_many(self, keys, out);
    }
}

/// One layout of one table version, and those of its partitions that are held here.
#[derive(Debug)]
pub(crate) struct LayoutSlots<P = PartitionFile> {
    pub(crate) schema: TableSchema,
    /// For the rows of this schema; chosen when the layout was first mapped.
    pub(crate) kernel: RowKernel,
    slots: Vec<Option<Arc<P>>>,
}

/// Every layout that is served, at one epoch.
#[derive(Debug)]
pub(crate) struct Snapshot<P = PartitionFile> {
    pub(crate) epoch: Epoch,
    /// By table; one table has a few versions, and one version a layout or two, so that part is a list.
    tables: BTreeMap<Name, Vec<Arc<LayoutSlots<P>>>>,
}

// Derived, these would ask for `P: Clone` and `P: Default`.
impl<P> Clone for LayoutSlots<P> {
    fn clone(&self) -> Self {
        Self { schema: self.schema.clone(), kernel: self.kernel, slots: self.slots.clone() }
    }
}

impl<P> Clone for Snapshot<P> {
    fn clone(&self) -> Self {
        Self { epoch: self.epoch, tables: self.tables.clone() }
    }
}

impl<P> Default for Snapshot<P> {
    fn default() -> Self {
        Self::at(Epoch::default())
    }
}

impl<P> LayoutSlots<P> {
    pub(crate) fn new(schema: TableSchema, kernel: RowKernel) -> Self {
        let slots = schema.partitions.indexes().map(|_| None).collect();
        Self { schema, kernel, slots }
    }

    /// The partition, if it is held here.
    #[inline]
    pub(crate) fn partition(&self, partition: PartitionIndex) -> Option<&P> {
        self.slots.get(partition.0 as usize)?.as_deref()
    }

    fn is(&self, version: &TableVersion, partitions: PartitionCount) -> bool {
        self.schema.partitions == partitions && &self.schema.table_version == version
    }
}

impl<P> Snapshot<P> {
    /// Nothing is served yet, at `epoch`.
    pub(crate) const fn at(epoch: Epoch) -> Self {
        Self { epoch, tables: BTreeMap::new() }
    }

    /// The layout that a feature asks for.
    ///
    /// # Errors
    /// [`NotServed`] says what of it is not here.
    pub(crate) fn layout(
        &self,
        version: &TableVersion,
        partitions: PartitionCount,
    ) -> Result<&LayoutSlots<P>, NotServed> {
        let layouts = self.tables.get(&version.table).ok_or(NotServed::Table)?;
        if let Some(layout) = layouts.iter().find(|l| l.is(version, partitions)) {
            return Ok(layout);
        }
        let other = layouts.iter().find(|l| &l.schema.table_version == version);
        Err(other.map_or(NotServed::Version, |l| NotServed::Layout {
            held: l.schema.partitions,
            asked: partitions,
        }))
    }

    /// A layout and all that is held of it, by its schema; `None` also when the schema is another.
    fn held(&self, schema: &TableSchema) -> Option<&Arc<LayoutSlots<P>>> {
        self.tables.get(&schema.table_version.table)?.iter().find(|l| &l.schema == schema)
    }

    /// The partition of exactly this schema, if it is held.
    pub(crate) fn partition(&self, schema: &TableSchema, partition: PartitionIndex) -> Option<&Arc<P>> {
        self.held(schema)?.slots.get(partition.0 as usize)?.as_ref()
    }

    /// Puts a partition in its place. A layout of the same name and another schema gives way.
    pub(crate) fn insert(
        &mut self,
        schema: &TableSchema,
        kernel: RowKernel,
        partition: PartitionIndex,
        file: Arc<P>,
    ) {
        let layouts = self.tables.entry(schema.table_version.table.clone()).or_default();
        layouts.retain(|l| !l.is(&schema.table_version, schema.partitions) || &l.schema == schema);
        let at = layouts.iter().position(|l| &l.schema == schema).unwrap_or_else(|| {
            layouts.push(Arc::new(LayoutSlots::new(schema.clone(), kernel)));
            layouts.len() - 1
        });
        let layout = Arc::make_mut(&mut layouts[at]);
        if let Some(slot) = layout.slots.get_mut(partition.0 as usize) {
            *slot = Some(file);
        }
    }

    /// Every partition held.
    pub(crate) fn partitions(&self) -> impl Iterator<Item = &Arc<P>> {
        self.tables.values().flatten().flat_map(|l| l.slots.iter().flatten())
    }

    /// Every schema of which something is held.
    pub(crate) fn schemas(&self) -> impl Iterator<Item = &TableSchema> {
        self.tables.values().flatten().map(|l| &l.schema)
    }
}
