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
    /// The form with fewer bytes, both ways together. Ids that other features gather anyway are not
    /// deducted: that would make a feature's form depend on its neighbours.
    const fn cheaper(&self, schema: &TableSchema, weighted: bool) -> WireForm {
        let gather = self.ids * (8 + schema.row_bytes() as u64);
        let weights = if weighted { self.members * 4 + self.bags * 4 } else { 0 };
        let sums = self.bags * (schema.dim as u64 * 4 + 4);
        let members = if each_once(self.members, self.ids) { 0 } else { self.members * 4 };
        let pool = self.ids * 8 + members + weights + self.bags * 4 + sums;
        if pool < gather { WireForm::Pool } else { WireForm::Gather }
    }
}

/// Per unique id of a table: what has been done with it in this building.
#[derive(Clone, Copy)]
struct Mark {
    gathered: bool,
    /// One more than the last feature that counted it.
    counted_for: u32,
    /// One more than the last feature that pools it, and its position in that question.
    pooled_for: u32,
    pooled_at: u32,
}

/// The questions to every node of `route`, for the pieces that it has nodes for.
pub(crate) fn build(split: &Split<'_>, route: &Route<'_>, options: &LookupOptions) -> Vec<NodeAsk> {
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
    let unmarked = Mark { gathered: false, counted_for: 0, pooled_for: 0, pooled_at: 0 };
    let mut marks: Vec<Vec<Mark>> = split.tables.iter().map(|t| vec![unmarked; t.ids.len()]).collect();
    let mut gathers: Vec<Vec<Vec<u32>>> = vec![vec![Vec::new(); nodes]; split.tables.len()];
    let mut pools: Vec<(u32, PoolAsk)> = Vec::new();
    for (at, feature) in split.features.iter().enumerate() {
        let table = &split.tables[feature.table];
        let marks = &mut marks[feature.table];
        let place_of = |id: u32| route.node_of[feature.table][table.slot_of[id as usize] as usize];
        let forms = forms(feature, as_u32(at + 1), &table.layout.schema, options, nodes, marks, place_of);
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

/// The wire form of one feature at each node.
fn forms(
    feature: &FeatureSplit<'_>,
    tag: u32,
    schema: &TableSchema,
    options: &LookupOptions,
    nodes: usize,
    marks: &mut [Mark],
    place_of: impl Fn(u32) -> u32,
) -> Vec<WireForm> {
    if feature.pooling == Pooling::None || options.exact {
        return vec![WireForm::Gather; nodes];
    }
    if let Some(form) = options.wire_form {
        return vec![form; nodes];
    }
    let mut loads = vec![Load::default(); nodes];
    for (bag, range) in (1u32..).zip(feature.bag_ranges()) {
        for id in &feature.members[range] {
            let Some(load) = loads.get_mut(place_of(*id) as usize) else { continue };
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
    loads.iter().map(|load| load.cheaper(schema, feature.weights().is_some())).collect()
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
