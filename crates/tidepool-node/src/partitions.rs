//! What this node serves at this moment: an immutable [`Snapshot`], swapped whole. A lookup loads it once
//! and sees nothing else, so no answer can be made from two assignments.

use std::{collections::BTreeMap, sync::Arc};

use tidepool_kernels::RowKernel;
use tidepool_table::{LayoutView, PartitionFile, PartitionRows};
use tidepool_types::{Epoch, Name, PartitionCount, PartitionIndex, TableSchema, TableVersion};

use crate::error::NotServed;

/// Every layout that is served, at one epoch.
#[derive(Debug)]
pub(crate) struct Snapshot<P = PartitionFile> {
    pub(crate) epoch: Epoch,
    /// By table; one table has a few versions, and one version a layout or two, so that part is a list.
    tables: BTreeMap<Name, Vec<Arc<LayoutView<P>>>>,
}

// Derived, this would ask for `P: Clone`.
impl<P> Clone for Snapshot<P> {
    fn clone(&self) -> Self {
        Self { epoch: self.epoch, tables: self.tables.clone() }
    }
}

impl<P: PartitionRows> Default for Snapshot<P> {
    fn default() -> Self {
        Self::at(Epoch::default())
    }
}

fn is<P>(layout: &LayoutView<P>, version: &TableVersion, partitions: PartitionCount) -> bool {
    layout.schema().partitions == partitions && &layout.schema().table_version == version
}

impl<P: PartitionRows> Snapshot<P> {
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
    ) -> Result<&LayoutView<P>, NotServed> {
        let layouts = self.tables.get(&version.table).ok_or(NotServed::Table)?;
        if let Some(layout) = layouts.iter().find(|l| is(l, version, partitions)) {
            return Ok(layout);
        }
        let other = layouts.iter().find(|l| &l.schema().table_version == version);
        Err(other.map_or(NotServed::Version, |l| NotServed::Layout {
            held: l.schema().partitions,
            asked: partitions,
        }))
    }

    /// A layout and all that is held of it, by its schema; `None` also when the schema is another.
    fn held(&self, schema: &TableSchema) -> Option<&Arc<LayoutView<P>>> {
        self.tables.get(&schema.table_version.table)?.iter().find(|l| l.schema() == schema)
    }

    /// The partition of exactly this schema, if it is held.
    pub(crate) fn partition(&self, schema: &TableSchema, partition: PartitionIndex) -> Option<&Arc<P>> {
        self.held(schema)?.partition(partition)
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
        layouts.retain(|l| !is(l, &schema.table_version, schema.partitions) || l.schema() == schema);
        let at = layouts.iter().position(|l| l.schema() == schema).unwrap_or_else(|| {
            layouts.push(Arc::new(LayoutView::new(schema.clone(), kernel)));
            layouts.len() - 1
        });
        Arc::make_mut(&mut layouts[at]).insert(partition, file);
    }

    /// Every partition held.
    pub(crate) fn partitions(&self) -> impl Iterator<Item = &Arc<P>> {
        self.tables.values().flatten().flat_map(|l| l.partitions())
    }

    /// Every schema of which something is held.
    pub(crate) fn schemas(&self) -> impl Iterator<Item = &TableSchema> {
        self.tables.values().flatten().map(|l| l.schema())
    }
}
