//! Answers become vectors, in the order of the request.
//!
//! Gathered rows are added bag by bag in request order with the kernel that nodes use, so an exact lookup
//! gives the same bits on any layout. Partial sums are added after them, in the order of the questions.

use tidepool_kernels::RowKernel;
use tidepool_proto::pack;
use tidepool_types::Pooling;

use crate::{
    answer::Answered,
    asks::{Ask, PoolAsk},
    fanout::Gathered,
    request::{FeatureVectors, StoredRow},
    route::Piece,
    split::{FeatureSplit, Split, TableSplit, as_u32},
    topology::Topology,
};

/// What has been answered about the unique ids of one table.
struct Rows<'a> {
    /// Per unique id: its stored row, when it was gathered and is in the table.
    rows: Vec<Option<&'a [u8]>>,
    sequence: Option<u64>,
}

impl<'a> Rows<'a> {
    /// What needed no asking.
    fn of_cache(table: &'a TableSplit<'_>) -> Self {
        Self { rows: (0..table.ids.len()).map(|id| table.known.row(id)).collect(), sequence: None }
    }
}

/// The partial sums of one feature at one node.
struct Partial<'a> {
    ask: &'a PoolAsk,
    answer: &'a Answered,
}

/// Puts the answers together. Each needed partition must be answered exactly once, or stand in
/// `unavailable`; `answers` in the order of the questions, whatever the order in which they came.
pub(crate) fn merge(split: &Split<'_>, answers: &[Answered], unavailable: &[Piece]) -> Vec<FeatureVectors> {
    let mut tables: Vec<Rows<'_>> = split.tables.iter().map(Rows::of_cache).collect();
    let mut partials: Vec<Vec<Partial<'_>>> = split.features.iter().map(|_| Vec::new()).collect();
    for answer in answers {
        let table = answer.ask.table(split);
        let known = &mut tables[table];
        known.sequence = Some(known.sequence.map_or(answer.sequence, |s| s.min(answer.sequence)));
        match &answer.ask {
            Ask::Gather { ids, .. } => {
                let row_bytes = split.tables[table].layout.schema.row_bytes();
                for (at, (id, row)) in ids.iter().zip(answer.body.chunks_exact(row_bytes)).enumerate() {
                    if !answer.is_missing(at) {
                        known.rows[*id as usize] = Some(row);
                    }
                }
            }
            Ask::Pool(ask) => partials[ask.feature].push(Partial { ask, answer }),
        }
    }
    let gone = slots_gone(split, unavailable);
    let features = split.features.iter().zip(&partials);
    features
        .map(|(feature, partials)| {
            let table = &split.tables[feature.table];
            let rows = &tables[feature.table];
            let lost = gone.get(feature.table).map(|gone| lost_ids(feature, table, &rows.rows, gone));
            let lost = lost.unwrap_or_default();
            // Without pooling too, the rows of an id may have to be added up.
            let sums_rows = feature.composed.is_some_and(|composed| composed.sums_rows());
            let mut out = if feature.pooling == Pooling::None && !sums_rows {
                unpooled(feature, table, &rows.rows, lost)
            } else {
                pooled(feature, table, &rows.rows, partials, lost)
            };
            out.sequence = rows.sequence.unwrap_or(0);
            out
        })
        .collect()
}

/// Per table and slot: whether nobody answered for it. Empty when everybody has.
fn slots_gone(split: &Split<'_>, unavailable: &[Piece]) -> Vec<Vec<bool>> {
    if unavailable.is_empty() {
        return Vec::new();
    }
    let mut gone: Vec<_> = split.tables.iter().map(|t| vec![false; t.partitions.len()]).collect();
    for (table, slot) in unavailable {
        gone[*table][*slot as usize] = true;
    }
    gone
}

/// Per bag: the ids that nothing is known of, because they lie on slots that are `gone`.
fn lost_ids(
    feature: &FeatureSplit<'_>,
    table: &TableSplit<'_>,
    rows: &[Option<&[u8]>],
    gone: &[bool],
) -> Vec<u32> {
    let is_lost = |at: usize| {
        let id = feature.members[at] as usize;
        // An id that the cache knows to be missing lies on no slot.
        rows[id].is_none() && gone.get(table.slot_of[id] as usize) == Some(&true)
    };
    match &feature.composed {
        Some(composed) => composed.lost(is_lost),
        None => feature.bag_ranges().map(|bag| as_u32(bag.filter(|at| is_lost(*at)).count())).collect(),
    }
}

/// What was gathered for the first feature, an unpooled one, row by row: as stored, and from which node. Of a
/// composite table, all rows of an id, then all of the next.
pub(crate) fn stored_rows(topology: &Topology, split: &Split<'_>, gathered: &Gathered) -> Vec<StoredRow> {
    let Some(feature) = split.features.first() else { return Vec::new() };
    let table = &split.tables[feature.table];
    let row_bytes = table.layout.schema.row_bytes();
    let mut found = vec![None; table.ids.len()];
    for (answer, node) in gathered.answers.iter().zip(&gathered.answered_by) {
        for (at, id) in answer.ask.ids().iter().enumerate() {
            let row = || answer.body.slice(at * row_bytes..(at + 1) * row_bytes);
            found[*id as usize] = Some((*node, (!answer.is_missing(at)).then(row)));
        }
    }
    let members = feature.members.iter().map(|member| *member as usize).enumerate();
    members
        .filter_map(|(member, at)| {
            let (node, row) = found[at].clone()?;
            let partition = table.partitions[table.slot_of[at] as usize];
            let row_id = table.ids[at];
            let id = feature.composed.map_or(row_id, |composed| composed.id_of(member));
            Some(StoredRow { id, row_id, partition, node: topology.id(node).clone(), row })
        })
        .collect()
}

/// The vectors of a feature, and what was found for each.
fn vectors(
    feature: &FeatureSplit<'_>,
    table: &TableSplit<'_>,
    values: Vec<f32>,
    found: Vec<u32>,
    lost: Vec<u32>,
) -> FeatureVectors {
    let schema = &table.layout.schema;
    let asked = feature.members.len() / feature.members_per_id();
    let unavailable_ids = lost.iter().sum::<u32>();
    FeatureVectors {
        table_version: schema.table_version.clone(),
        sequence: 0,
        dim: schema.vector_dim(),
        values,
        missing_ids: as_u32(asked) - found.iter().sum::<u32>() - unavailable_ids,
        found,
        unavailable_ids,
        unavailable: if unavailable_ids > 0 { lost } else { Vec::new() },
        defaulted_bags: 0,
        defaulted: Vec::new(),
    }
}

/// Makes `vector` the default row when nothing was found, or when it is not finite; says whether it did.
fn settle(table: &TableSplit<'_>, vector: &mut [f32], found: u32) -> bool {
    if found > 0 && vector.iter().all(|v| v.is_finite()) {
        return false;
    }
    match table.layout.schema.default_row.as_slice() {
        row if row.len() == vector.len() => vector.copy_from_slice(row),
        _ => vector.fill(0.0),
    }
    true
}

/// Which of the vectors are the default row.
fn defaulted(mut out: FeatureVectors, defaulted: Vec<u32>) -> FeatureVectors {
    out.defaulted_bags = as_u32(defaulted.len());
    FeatureVectors { defaulted, ..out }
}

fn unpooled(
    feature: &FeatureSplit<'_>,
    table: &TableSplit<'_>,
    rows: &[Option<&[u8]>],
    lost: Vec<u32>,
) -> FeatureVectors {
    let schema = &table.layout.schema;
    let kernel = RowKernel::new(schema.format, schema.dim);
    let mut values = vec![0.0; feature.members.len() * schema.dim as usize];
    for (member, values) in feature.members.iter().zip(values.chunks_exact_mut(schema.dim as usize)) {
        if let Some(row) = rows[*member as usize] {
            kernel.dequantize(row, values);
        }
    }
    let found_of = |members: &[u32]| u32::from(members.iter().all(|member| rows[*member as usize].is_some()));
    let found = feature.members.chunks_exact(feature.members_per_id()).map(found_of).collect();
    let mut out = vectors(feature, table, values, found, lost);
    let mut settled = Vec::new();
    let vectors = out.values.chunks_exact_mut(out.dim as usize).zip(&out.found);
    for (at, (vector, found)) in vectors.enumerate() {
        if settle(table, vector, *found) {
            settled.push(as_u32(at));
        }
    }
    defaulted(out, settled)
}

fn pooled(
    feature: &FeatureSplit<'_>,
    table: &TableSplit<'_>,
    rows: &[Option<&[u8]>],
    partials: &[Partial<'_>],
    lost: Vec<u32>,
) -> FeatureVectors {
    let Sums { values, mut found, mut weight_sums, .. } = sums(feature, table, rows, partials);
    if let Some(composed) = &feature.composed {
        (found, weight_sums) = composed.found();
        // Of an empty table nothing is found, lost or not.
        found.iter_mut().zip(&lost).for_each(|(found, lost)| *found = found.saturating_sub(*lost));
    }
    let mut out = vectors(feature, table, values, found, lost);
    let mut settled = Vec::new();
    for (bag, vector) in out.values.chunks_exact_mut(out.dim as usize).enumerate() {
        let found = out.found[bag];
        if feature.pooling == Pooling::Mean && found > 0 {
            #[expect(clippy::cast_precision_loss, reason = "a bag's mean is f32")]
            let divisor = weight_sums.get(bag).copied().unwrap_or(found as f32);
            // A sum of weights beyond f32 would make a mean of 0 out of any rows.
            let divisor = if divisor.is_finite() { divisor } else { f32::NAN };
            vector.iter_mut().for_each(|v| *v /= divisor);
        }
        // A vector that lacks some rows of an id is none.
        let torn = feature.composed.is_some() && out.unavailable.get(bag).is_some_and(|lost| *lost > 0);
        if settle(table, vector, if torn { 0 } else { found }) {
            settled.push(as_u32(bag));
        }
    }
    defaulted(out, settled)
}

/// The sums of a feature, bag by bag as they were asked for.
struct Sums {
    dim: usize,
    /// `[bags, dim]`.
    values: Vec<f32>,
    /// Rows found, per bag.
    found: Vec<u32>,
    /// The sum of their weights, per bag; empty without weights.
    weight_sums: Vec<f32>,
}

fn sums(
    feature: &FeatureSplit<'_>,
    table: &TableSplit<'_>,
    rows: &[Option<&[u8]>],
    partials: &[Partial<'_>],
) -> Sums {
    let schema = &table.layout.schema;
    let (bags, dim) = (feature.bags(), schema.dim as usize);
    let kernel = RowKernel::new(schema.format, schema.dim);
    let weights = feature.weights();
    let mut out = Sums {
        dim,
        values: vec![0.0; bags * dim],
        found: vec![0; bags],
        weight_sums: vec![0.0; if weights.is_some() { bags } else { 0 }],
    };
    // Ids that other features gather may lie on partitions that this feature has pooled at the node. What is
    // known from a cache never does: its slot is none.
    let pooled_at_node = slots_pooled(table, partials);
    let (mut found_rows, mut found_weights) = (Vec::new(), Vec::new());
    for (bag, range) in feature.bag_ranges().enumerate() {
        found_rows.clear();
        found_weights.clear();
        for member in range {
            let id = feature.members[member] as usize;
            let elsewhere =
                pooled_at_node.as_ref().is_some_and(|p| p.get(table.slot_of[id] as usize) == Some(&true));
            let Some(row) = rows[id].filter(|_| !elsewhere) else { continue };
            found_rows.push(row);
            if let Some(weights) = weights {
                found_weights.push(weights[member]);
            }
        }
        let vector = &mut out.values[bag * dim..(bag + 1) * dim];
        if weights.is_some() {
            kernel.accumulate_weighted(&found_rows, &found_weights, &[], vector);
            out.weight_sums[bag] = found_weights.iter().sum();
        } else {
            kernel.accumulate(&found_rows, &[], vector);
        }
        out.found[bag] = as_u32(found_rows.len());
    }
    for partial in partials {
        partial.add(&mut out);
    }
    out
}

/// Which slots of its table a feature had pooled by nodes; None when it had none.
fn slots_pooled(table: &TableSplit<'_>, partials: &[Partial<'_>]) -> Option<Vec<bool>> {
    if partials.is_empty() {
        return None;
    }
    let mut slots = vec![false; table.partitions.len()];
    for id in partials.iter().flat_map(|partial| &partial.ask.ids) {
        slots[table.slot_of[*id as usize] as usize] = true;
    }
    Some(slots)
}

impl Partial<'_> {
    /// Adds the sums to their bags.
    fn add(&self, out: &mut Sums) {
        let dim = out.dim;
        let sums = self.answer.body.chunks_exact(dim * 4);
        // Lengths have been checked: one count and one sum per bag sent.
        let counts = pack::unpack::<u32>(&self.answer.counts).into_iter().flatten();
        for ((bag, sum), count) in self.ask.bags.iter().zip(sums).zip(counts) {
            let bag = *bag as usize;
            out.found[bag] += count;
            let vector = &mut out.values[bag * dim..(bag + 1) * dim];
            for (v, partial) in vector.iter_mut().zip(pack::unpack::<f32>(sum).into_iter().flatten()) {
                *v += partial;
            }
        }
        let sums = pack::unpack::<f32>(&self.answer.weight_sums).into_iter().flatten();
        for (bag, sum) in self.ask.bags.iter().zip(sums) {
            out.weight_sums[*bag as usize] += sum;
        }
    }
}
