//! What each node of a route is asked: the ids, in the wire form that takes fewer bytes.

use tidepool_proto::{pack, v1};
use tidepool_types::{Pooling, TableSchema};

use crate::{
    request::{LookupOptions, WireForm},
    route::{Piece, Route},
    split::{FeatureSplit, Split, as_u32},
    topology::NodeAt,
};

/// Everything that one node is asked in one call.
#[derive(Debug)]
pub(crate) struct NodeAsk {
    pub(crate) node: NodeAt,
    /// The partitions that it answers for.
    pub(crate) pieces: Vec<Piece>,
    /// One per feature of the message, in its order.
    pub(crate) asks: Vec<Ask>,
}

/// One feature of the message to a node.
#[derive(Debug)]
pub(crate) enum Ask {
    /// Stored rows of a table, for every feature that gathers from it.
    Gather {
        /// Which of [`Split::tables`].
        table: usize,
        /// The ids sent, as positions in the table's unique ids.
        ids: Vec<u32>,
    },
    /// Partial sums of one feature.
    Pool(PoolAsk),
}

/// Partial sums of the members of a feature that live on one node.
#[derive(Debug, Default)]
pub(crate) struct PoolAsk {
    /// Which of [`Split::features`].
    pub(crate) feature: usize,
    /// The ids sent, as positions in the table's unique ids.
    pub(crate) ids: Vec<u32>,
    /// The bags that have members here, ascending.
    pub(crate) bags: Vec<u32>,
    /// Members per bag of `bags`.
    pub(crate) lengths: Vec<u32>,
    /// Positions in `ids`.
    pub(crate) members: Vec<u32>,
    /// One per member, when the feature has weights.
    pub(crate) weights: Vec<f32>,
}

impl Ask {
    /// The place of the table in [`Split::tables`].
    pub(crate) fn table(&self, split: &Split<'_>) -> usize {
        match self {
            Self::Gather { table, .. } => *table,
            Self::Pool(pool) => split.features[pool.feature].table,
        }
    }

    /// How many ids are sent.
    pub(crate) fn ids(&self) -> &[u32] {
        match self {
            Self::Gather { ids, .. } => ids,
            Self::Pool(pool) => &pool.ids,
        }
    }

    /// How many bytes of rows or sums the answer has.
    pub(crate) fn answer_bytes(&self, split: &Split<'_>) -> usize {
        let schema = &split.tables[self.table(split)].layout.schema;
        match self {
            Self::Gather { ids, .. } => ids.len() * schema.row_bytes(),
            Self::Pool(pool) => pool.bags.len() * schema.dim as usize * size_of::<f32>(),
        }
    }

    /// How many bytes of packed numbers are sent.
    pub(crate) fn sent_bytes(&self) -> usize {
        let ids = self.ids().len() * size_of::<u64>();
        match self {
            Self::Gather { .. } => ids,
            Self::Pool(pool) => {
                let members = if pool.each_once() { 0 } else { pool.members.len() };
                ids + (members + pool.lengths.len() + pool.weights.len()) * size_of::<u32>()
            }
        }
    }

    /// The message.
    pub(crate) fn encode(&self, split: &Split<'_>) -> v1::FeatureRequest {
        let table = &split.tables[self.table(split)];
        let ids: Vec<u64> = self.ids().iter().map(|at| table.ids[*at as usize]).collect();
        let mut message = v1::FeatureRequest {
            table_version: Some((&table.layout.schema.table_version).into()),
            partitions: table.layout.schema.partitions.get(),
            wire_form: v1::WireForm::Gather.into(),
            ids: pack::pack(&ids),
            ..Default::default()
        };
        if let Self::Pool(pool) = self {
            message.wire_form = v1::WireForm::Pool.into();
            if !pool.each_once() {
                message.members = pack::pack(&pool.members);
            }
            message.bag_lengths = pack::pack(&pool.lengths);
            message.weights = pack::pack(&pool.weights);
        }
        message
    }
}

/// What a feature would send to one node.
#[derive(Clone, Copy, Debug, Default)]
struct Load {
    ids: u64,
    members: u64,
    bags: u64,
    /// One more than the last bag seen.
    last_bag: u32,
}

impl Load {
    /// Bytes of the pool form, both ways together.
    const fn pool(&self, schema: &TableSchema, weighted: bool) -> u64 {
        let members = if each_once(self.members, self.ids) { 0 } else { field(self.members, 4) };
        let weights = if weighted { field(self.members, 4) + field(self.bags, 4) } else { 0 };
        let answered = field(self.bags, schema.dim as u64 * 4) + field(self.bags, 4);
        field(self.ids, 8) + members + weights + field(self.bags, 4) + answered
    }
}

/// Bytes of the gather form, both ways together.
const fn gather(ids: u64, schema: &TableSchema) -> u64 {
    field(ids, 8) + field(ids, schema.row_bytes() as u64)
}

/// Bytes of a field of packed numbers, with its tag and length; none at all when it is empty.
const fn field(count: u64, each: u64) -> u64 {
    let bytes = count * each;
    if bytes == 0 { 0 } else { 1 + varint(bytes) + bytes }
}

const fn varint(number: u64) -> u64 {
    (u64::BITS - (number | 1).leading_zeros()).div_ceil(7) as u64
}

/// What a feature of the message takes besides its numbers, both ways together: the table version in question
/// and answer, the layout, the form, the sequence, counts, and the lengths of all these.
fn header(schema: &TableSchema) -> u64 {
    let names = schema.table_version.table.len() + schema.table_version.version.len();
    2 * names as u64 + 24
}

/// Per unique id of a table: what has been done with it in this building.
#[derive(Clone, Copy, Default)]
struct Mark {
    gathered: bool,
    /// One more than the place where some feature gathers it, as far as forms are chosen.
    to_gather: u32,
    /// One more than the last feature that counted it.
    counted_for: u32,
    /// One more than the last feature that pools it, and its position in that question.
    pooled_for: u32,
    pooled_at: u32,
}

/// The questions to every node of `route`, for the pieces that it has nodes for.
pub(crate) fn build(split: &Split<'_>, route: &Route<'_>, options: &LookupOptions) -> Vec<NodeAsk> {
    let mut marks: Vec<Vec<Mark>> = split.tables.iter().map(|t| vec![Mark::default(); t.ids.len()]).collect();
    let forms = forms(split, route, options, &mut marks);
    in_forms(split, route, &forms, &mut marks)
}

/// The questions in given forms, one per feature and node.
fn in_forms(
    split: &Split<'_>,
    route: &Route<'_>,
    forms: &[Vec<WireForm>],
    marks: &mut [Vec<Mark>],
) -> Vec<NodeAsk> {
    let nodes = route.nodes.len();
    let blank = |node: &NodeAt| NodeAsk { node: *node, pieces: Vec::new(), asks: Vec::new() };
    let mut out: Vec<NodeAsk> = route.nodes.iter().map(blank).collect();
    for (table, places) in route.node_of.iter().enumerate() {
        for (slot, place) in (0u32..).zip(places) {
            if let Some(ask) = out.get_mut(*place as usize) {
                ask.pieces.push((table, slot));
            }
        }
    }
    let mut gathers: Vec<Vec<Vec<u32>>> = vec![vec![Vec::new(); nodes]; split.tables.len()];
    let mut pools: Vec<(u32, PoolAsk)> = Vec::new();
    for (at, (feature, forms)) in split.features.iter().zip(forms).enumerate() {
        let marks = &mut marks[feature.table];
        let place_of = |id: u32| route.place_of(split, feature.table, id);
        let mut asks: Vec<Option<PoolAsk>> = forms
            .iter()
            .map(|form| (*form == WireForm::Pool).then(|| PoolAsk { feature: at, ..Default::default() }))
            .collect();
        let weights = feature.weights();
        for (bag, range) in (0u32..).zip(feature.bag_ranges()) {
            for member in range {
                let id = feature.members[member];
                let (place, mark) = (place_of(id) as usize, &mut marks[id as usize]);
                match asks.get_mut(place) {
                    None => {}
                    Some(None) if mark.gathered => {}
                    Some(None) => {
                        mark.gathered = true;
                        gathers[feature.table][place].push(id);
                    }
                    Some(Some(ask)) => ask.add(id, bag, weights.map(|w| w[member]), mark),
                }
            }
        }
        pools.extend((0u32..).zip(asks).filter_map(|(place, ask)| {
            let ask = ask.filter(|ask| !ask.members.is_empty())?;
            Some((place, ask))
        }));
    }
    for (table, by_node) in gathers.into_iter().enumerate() {
        for (node, ids) in out.iter_mut().zip(by_node).filter(|(_, ids)| !ids.is_empty()) {
            node.asks.push(Ask::Gather { table, ids });
        }
    }
    for (place, pool) in pools {
        out[place as usize].asks.push(Ask::Pool(pool));
    }
    out
}

/// The wire form of each feature at each node: the one that takes fewer bytes, of ids that no cache knows.
///
/// A feature gathers where that takes fewer bytes by itself. One that does not gathers all the same where others
/// of its table do, when what is left to gather takes less than its sums. (Not found: several features none of
/// which would gather without the others.)
fn forms(
    split: &Split<'_>,
    route: &Route<'_>,
    options: &LookupOptions,
    marks: &mut [Vec<Mark>],
) -> Vec<Vec<WireForm>> {
    let nodes = route.nodes.len();
    let mut loads = Vec::with_capacity(split.features.len());
    let mut forms = Vec::with_capacity(split.features.len());
    for (tag, feature) in (1u32..).zip(&split.features) {
        let forced = if feature.pooling == Pooling::None || options.exact {
            Some(WireForm::Gather)
        } else {
            options.wire_form.or_else(|| split.learns.then_some(WireForm::Gather))
        };
        if let Some(form) = forced {
            loads.push(Vec::new());
            forms.push(vec![form; nodes]);
            continue;
        }
        let schema = &split.tables[feature.table].layout.schema;
        let of_feature = count(split, route, feature, tag, &mut marks[feature.table]);
        let cheaper = of_feature.iter().map(|load| {
            let pooled = load.pool(schema, feature.weights().is_some());
            if pooled < gather(load.ids, schema) { WireForm::Pool } else { WireForm::Gather }
        });
        forms.push(cheaper.collect());
        loads.push(of_feature);
    }
    for (table, marks) in marks.iter_mut().enumerate() {
        let of_table = || (0..split.features.len()).filter(|at| split.features[*at].table == table);
        let some = |form| of_table().any(|at| forms[at].contains(&form));
        if some(WireForm::Pool) && some(WireForm::Gather) {
            for at in of_table() {
                mark_gathered(split, route, at, &forms[at], marks);
            }
            for at in of_table().filter(|at| !loads[*at].is_empty()) {
                join(split, route, at, &loads[at], &mut forms[at], marks);
            }
        }
    }
    forms
}

/// What a feature would send to each node.
fn count(
    split: &Split<'_>,
    route: &Route<'_>,
    feature: &FeatureSplit<'_>,
    tag: u32,
    marks: &mut [Mark],
) -> Vec<Load> {
    let mut loads = vec![Load::default(); route.nodes.len()];
    for (bag, range) in (1u32..).zip(feature.bag_ranges()) {
        for id in &feature.members[range] {
            let place = route.place_of(split, feature.table, *id);
            let Some(load) = loads.get_mut(place as usize) else { continue };
            load.members += 1;
            let mark = &mut marks[*id as usize];
            if mark.counted_for != tag {
                mark.counted_for = tag;
                load.ids += 1;
            }
            if load.last_bag != bag {
                load.last_bag = bag;
                load.bags += 1;
            }
        }
    }
    loads
}

/// Marks what a feature gathers.
fn mark_gathered(split: &Split<'_>, route: &Route<'_>, at: usize, forms: &[WireForm], marks: &mut [Mark]) {
    let feature = &split.features[at];
    for id in &feature.members {
        let place = route.place_of(split, feature.table, *id);
        if forms.get(place as usize) == Some(&WireForm::Gather) {
            marks[*id as usize].to_gather = place + 1;
        }
    }
}

/// Gathers what a feature would have pooled, where so much of it is gathered anyway that this takes fewer bytes.
fn join(
    split: &Split<'_>,
    route: &Route<'_>,
    at: usize,
    loads: &[Load],
    forms: &mut [WireForm],
    marks: &mut [Mark],
) {
    let feature = &split.features[at];
    let schema = &split.tables[feature.table].layout.schema;
    // Ids that stand twice are counted once: they are taken for gathered as they are counted.
    let mut left = vec![0u64; forms.len()];
    let mut taken = Vec::new();
    for id in &feature.members {
        let (place, mark) = (route.place_of(split, feature.table, *id), &mut marks[*id as usize]);
        if forms.get(place as usize) == Some(&WireForm::Pool) && mark.to_gather != place + 1 {
            mark.to_gather = place + 1;
            left[place as usize] += 1;
            taken.push(*id);
        }
    }
    for ((form, load), left) in forms.iter_mut().zip(loads).zip(left) {
        let pooled = header(schema) + load.pool(schema, feature.weights().is_some());
        if *form == WireForm::Pool && left < load.ids && gather(left, schema) < pooled {
            *form = WireForm::Gather;
        }
    }
    // What stays pooled is not gathered after all.
    for id in taken {
        let place = route.place_of(split, feature.table, id);
        if forms.get(place as usize) == Some(&WireForm::Pool) {
            marks[id as usize].to_gather = 0;
        }
    }
}

/// Whether `members` stand for `ids` one by one, in order: positions are given at first use, so the counts
/// say it. Then they need not be sent.
const fn each_once(members: u64, ids: u64) -> bool {
    members == ids
}

impl PoolAsk {
    const fn each_once(&self) -> bool {
        each_once(self.members.len() as u64, self.ids.len() as u64)
    }

    fn add(&mut self, id: u32, bag: u32, weight: Option<f32>, mark: &mut Mark) {
        let tag = as_u32(self.feature + 1);
        if mark.pooled_for != tag {
            mark.pooled_for = tag;
            mark.pooled_at = as_u32(self.ids.len());
            self.ids.push(id);
        }
        if self.bags.last() != Some(&bag) {
            self.bags.push(bag);
            self.lengths.push(0);
        }
        if let Some(length) = self.lengths.last_mut() {
            *length += 1;
        }
        self.members.push(mark.pooled_at);
        self.weights.extend(weight);
    }
}

#[cfg(test)]
mod tests;
