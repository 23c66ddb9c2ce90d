//! What this node serves at this moment: an immutable [`Snapshot`], swapped whole. A lookup loads it once
//! and sees nothing else, so no answer can be made from two assignments.

use std::{collections::BTreeMap, sync::Arc};

use tidepool_kernels::RowKernel;
use tidepool_table::{LayoutView, PartitionFile, PartitionRows};
use tidepool_types::{Epoch, Name, PartitionCount, PartitionIndex, TableSchema, TableVersion};

use crate::{error::NotServed, metrics::TableSeries};

/// Every layout that is served, at one epoch.
#[derive(Debug)]
pub(crate) struct Snapshot<P = PartitionFile> {
    pub(crate) epoch: Epoch,
    /// By table; one table has a few versions, and one version a layout or two, so that part is a list.
    tables: BTreeMap<Name, Served<P>>,
}

/// What is served of a table.
#[derive(Debug)]
struct Served<P> {
    series: Arc<TableSeries>,
    layouts: Vec<Arc<LayoutView<P>>>,
}

// As below.
impl<P> Clone for Served<P> {
    fn clone(&self) -> Self {
        Self { series: self.series.clone(), layouts: self.layouts.clone() }
    }
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

    /// The layout that a feature asks for, and where its table's lookups are counted.
    ///
    /// # Errors
    /// [`NotServed`] says what of it is not here.
    pub(crate) fn layout(
        &self,
        version: &TableVersion,
        partitions: PartitionCount,
    ) -> Result<(&Arc<LayoutView<P>>, &Arc<TableSeries>), NotServed> {
        let Served { series, layouts } = self.tables.get(&version.table).ok_or(NotServed::Table)?;
        if let Some(layout) = layouts.iter().find(|l| is(l, version, partitions)) {
            return Ok((layout, series));
        }
        let other = layouts.iter().find(|l| &l.schema().table_version == version);
        Err(other.map_or(NotServed::Version, |l| NotServed::Layout {
            held: l.schema().partitions,
            asked: partitions,
        }))
    }

    /// A layout and all that is held of it, by its schema; `None` also when the schema is another.
    fn held(&self, schema: &TableSchema) -> Option<&Arc<LayoutView<P>>> {
        self.tables.get(&schema.table_version.table)?.layouts.iter().find(|l| l.schema() == schema)
    }

    /// The partition of exactly this schema, if it is held.
    pub(crate) fn partition(&self, schema: &TableSchema, partition: PartitionIndex) -> Option<&Arc<P>> {
        self.held(schema)?.partition(partition)
    }

    /// Puts a partition in its place. A layout of the same name and another schema gives way. The first
    /// partition of a table brings its series.
    pub(crate) fn insert(
        &mut self,
        schema: &TableSchema,
        kernel: RowKernel,
        series: impl FnOnce(&Name) -> Arc<TableSeries>,
        (partition, file): (PartitionIndex, Arc<P>),
    ) {
        let table = &schema.table_version.table;
        let served = self.tables.entry(table.clone());
        let layouts =
            &mut served.or_insert_with(|| Served { series: series(table), layouts: Vec::new() }).layouts;
        layouts.retain(|l| !is(l, &schema.table_version, schema.partitions) || l.schema() == schema);
        let at = layouts.iter().position(|l| l.schema() == schema).unwrap_or_else(|| {
            layouts.push(Arc::new(LayoutView::new(schema.clone(), kernel)));
            layouts.len() - 1
        });
        Arc::make_mut(&mut layouts[at]).insert(partition, file);
    }

    /// One layout and nothing else.
    pub(crate) fn of(layout: Arc<LayoutView<P>>, series: Arc<TableSeries>) -> Self {
        let table = layout.schema().table_version.table.clone();
        let tables = [(table, Served { series, layouts: vec![layout] })].into();
        Self { epoch: Epoch::default(), tables }
    }

    fn layouts(&self) -> impl Iterator<Item = &Arc<LayoutView<P>>> {
        self.tables.values().flat_map(|served| &served.layouts)
    }

    /// Every table of which something is held.
    pub(crate) fn tables(&self) -> impl Iterator<Item = &Name> {
        self.tables.keys()
    }

    /// Every partition held.
    pub(crate) fn partitions(&self) -> impl Iterator<Item = &Arc<P>> {
        self.layouts().flat_map(|l| l.partitions())
    }

    /// Every schema of which something is held.
    pub(crate) fn schemas(&self) -> impl Iterator<Item = &TableSchema> {
        self.layouts().map(|l| l.schema())
    }
}
