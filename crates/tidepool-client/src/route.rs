//! Which node is asked for which partition: one replica group when it can answer all of the request,
//! otherwise partition by partition, healthy nodes first.

use std::{
    collections::{BTreeSet, HashMap},
    time::{Duration, Instant},
};

use tidepool_cluster::ClusterMap;
use tidepool_types::{Name, NodeId, PartitionIndex};

use crate::split::{Split, as_u32};

/// Nodes that failed a moment ago.
#[derive(Debug, Default)]
pub(crate) struct Penalties(HashMap<NodeId, Instant>);

impl Penalties {
    /// `node` is asked last until `until`.
    pub(crate) fn add(&mut self, node: &NodeId, until: Instant) {
        self.0.insert(node.clone(), until);
    }

    /// `node` has answered.
    pub(crate) fn clear(&mut self, node: &NodeId) {
        self.0.remove(node);
    }

    fn holds(&self, node: &NodeId, now: Instant) -> bool {
        self.0.get(node).is_some_and(|until| now < *until)
    }
}

/// A partition of a table of the request: the table's place in [`Split::tables`], and the slot.
pub(crate) type Piece = (usize, u32);

/// A decision: which node is asked for which piece.
#[derive(Debug)]
pub(crate) struct Route<'m> {
    /// The nodes that are asked.
    pub(crate) nodes: Vec<&'m NodeId>,
    /// `[table][slot]`: place in `nodes`, or [`Route::NOT_ASKED`].
    pub(crate) node_of: Vec<Vec<u32>>,
}

impl Route<'_> {
    /// A piece that this route does not ask for.
    pub(crate) const NOT_ASKED: u32 = u32::MAX;
}

/// A piece that no node is left for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct NobodyLeft(pub(crate) Piece);

/// Nodes that were asked, per table and slot.
pub(crate) type Tried<'m> = Vec<Vec<Vec<&'m NodeId>>>;

/// Health of a node; smaller is asked first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Health {
    Up,
    FailedLately,
    Down,
}

/// Chooses nodes for the pieces of one request.
#[derive(Debug)]
pub(crate) struct Router<'m> {
    split: &'m Split<'m>,
    /// Groups in the order in which this request prefers them.
    groups: Vec<&'m Name>,
    health: HashMap<&'m NodeId, Health>,
}

impl<'m> Router<'m> {
    /// `turn` rotates the groups, so that requests spread over them; `preferred` comes first all the same.
    pub(crate) fn new(
        map: &'m ClusterMap,
        split: &'m Split<'m>,
        preferred: Option<&Name>,
        turn: usize,
        penalties: &Penalties,
        now: Instant,
    ) -> Self {
        let groups: BTreeSet<_> =
            split.tables.iter().flat_map(|t| t.layout.placement.groups.keys()).collect();
        let mut groups: Vec<_> = groups.into_iter().collect();
        if !groups.is_empty() {
            let turn = turn % groups.len();
            groups.rotate_left(turn);
        }
        groups.sort_by_key(|group| Some(*group) != preferred);
        let health = map.nodes.iter().map(|(node, entry)| {
            let health = match (entry.up, penalties.holds(node, now)) {
                (false, _) => Health::Down,
                (true, true) => Health::FailedLately,
                (true, false) => Health::Up,
            };
            (node, health)
        });
        Self { split, groups, health: health.collect() }
    }

    /// The route for the whole request: the first group all of whose nodes that are needed are healthy, or
    /// the best node of each partition.
    pub(crate) fn first(&self) -> Result<Route<'m>, NobodyLeft> {
        let pieces = || {
            let tables = self.split.tables.iter().enumerate();
            tables.flat_map(|(table, t)| (0..as_u32(t.partitions.len())).map(move |slot| (table, slot)))
        };
        let whole = self.groups.iter().find(|group| {
            pieces().all(|piece| self.node(group, piece).is_some_and(|node| self.health(node) == Health::Up))
        });
        match whole {
            Some(group) => self.assemble(pieces(), |piece| self.node(group, piece)),
            None => self.assemble(pieces(), |piece| self.best(piece, &[])),
        }
    }

    /// The route for pieces that failed, to nodes that have not been tried for them.
    pub(crate) fn elsewhere(&self, pieces: &[Piece], tried: &Tried<'_>) -> Result<Route<'m>, NobodyLeft> {
        self.assemble(pieces.iter().copied(), |(table, slot)| {
            self.best((table, slot), &tried[table][slot as usize])
        })
    }

    /// Whether each of `pieces` could still be asked of a node that is up and was not tried.
    pub(crate) fn has_alternative(&self, pieces: &[Piece], tried: &Tried<'_>) -> bool {
        pieces.iter().all(|(table, slot)| {
            let tried = &tried[*table][*slot as usize];
            self.candidates((*table, *slot), tried).any(|node| self.health(node) == Health::Up)
        })
    }

    /// The healthiest node that holds a piece and is not in `tried`; of equals, the preferred group's.
    fn best(&self, piece: Piece, tried: &[&NodeId]) -> Option<&'m NodeId> {
        self.candidates(piece, tried).min_by_key(|node| self.health(node))
    }

    /// The nodes that hold a piece and are not in `tried`.
    fn candidates(&self, piece: Piece, tried: &[&NodeId]) -> impl Iterator<Item = &'m NodeId> {
        let nodes = self.groups.iter().filter_map(move |group| self.node(group, piece));
        nodes.filter(move |node| !tried.contains(node))
    }

    fn partition(&self, (table, slot): Piece) -> PartitionIndex {
        self.split.tables[table].partitions[slot as usize]
    }

    fn node(&self, group: &Name, piece: Piece) -> Option<&'m NodeId> {
        self.split.tables[piece.0].layout.placement.node(group, self.partition(piece))
    }

    fn health(&self, node: &NodeId) -> Health {
        self.health.get(node).copied().unwrap_or(Health::Down)
    }

    fn assemble(
        &self,
        pieces: impl Iterator<Item = Piece>,
        choose: impl Fn(Piece) -> Option<&'m NodeId>,
    ) -> Result<Route<'m>, NobodyLeft> {
        let none = |t: &crate::split::TableSplit<'_>| vec![Route::NOT_ASKED; t.partitions.len()];
        let mut route = Route { nodes: Vec::new(), node_of: self.split.tables.iter().map(none).collect() };
        let mut places: HashMap<&NodeId, u32> = HashMap::new();
        for (table, slot) in pieces {
            let node = choose((table, slot)).ok_or(NobodyLeft((table, slot)))?;
            let place = *places.entry(node).or_insert_with(|| {
                route.nodes.push(node);
                as_u32(route.nodes.len() - 1)
            });
            route.node_of[table][slot as usize] = place;
        }
        Ok(route)
    }
}

/// When a node that fails at `now` is asked normally again.
pub(crate) fn penalty_end(now: Instant, penalty: Duration) -> Instant {
    now.checked_add(penalty).unwrap_or(now)
}

#[cfg(test)]
mod tests {
    use tidepool_types::{Pooling, TableVersion};

    use super::*;
    use crate::request::{FeatureLookup, LookupRequest};

    /// Groups a, b and c; two partitions; `a-0` holds the first of group a, `a-1` the second, and so on.
    fn map(down: &[&str]) -> ClusterMap {
        let (mut nodes, mut groups) = (Vec::new(), Vec::new());
        for group in ["a", "b", "c"] {
            for n in 0..2 {
                let up = !down.contains(&format!("{group}-{n}").as_str());
                nodes.push(format!(
                    r#""{group}-{n}": {{"group": "{group}", "grpc_address": "", "http_address": "", "up": {up}}}"#
                ));
            }
            groups.push(format!(r#""{group}": ["{group}-0", "{group}-1"]"#));
        }
        serde_json::from_str(&format!(
            r#"{{"epoch": 1, "nodes": {{{}}}, "releases": [], "layouts": [{{"placement": {{{}}}, "schema": {{
                "table_version": {{"table": "t", "version": "v"}}, "dim": 2, "format": "f32",
                "keying": "dense", "partitions": 2, "rows": 9}}}}]}}"#,
            nodes.join(","),
            groups.join(",")
        ))
        .unwrap()
    }

    fn node(text: &str) -> NodeId {
        NodeId(Name::new(text).unwrap())
    }

    fn routed(map: &ClusterMap, preferred: Option<&str>, turn: usize, failed: &[&str]) -> Vec<String> {
        let name = |text: &str| Name::new(text).unwrap();
        let request = LookupRequest {
            request_id: String::new(),
            features: vec![FeatureLookup {
                table_version: TableVersion { table: name("t"), version: name("v") },
                pooling: Pooling::Sum,
                ids: vec![0, 1],
                lengths: None,
                weights: None,
            }],
        };
        let split = Split::new(&request, map, 0).unwrap();
        let now = Instant::now();
        let mut penalties = Penalties::default();
        failed.iter().for_each(|n| penalties.add(&node(n), penalty_end(now, Duration::from_secs(1))));
        let preferred = preferred.map(name);
        let route = Router::new(map, &split, preferred.as_ref(), turn, &penalties, now).first().unwrap();
        let later = now + Duration::from_secs(2);
        let forgiven = Router::new(map, &split, preferred.as_ref(), turn, &penalties, later).first().unwrap();
        let calm = Router::new(map, &split, preferred.as_ref(), turn, &Penalties::default(), now);
        assert_eq!(forgiven.nodes, calm.first().unwrap().nodes, "a penalty ends");
        route.node_of[0].iter().map(|place| route.nodes[*place as usize].to_string()).collect()
    }

    #[test]
    fn one_group_answers_all_of_a_request() {
        let whole = map(&[]);
        assert_eq!(routed(&whole, None, 0, &[]), ["a-0", "a-1"]);
        assert_eq!(routed(&whole, None, 1, &[]), ["b-0", "b-1"], "by turns");
        assert_eq!(routed(&whole, None, 3, &[]), ["a-0", "a-1"]);
        assert_eq!(routed(&whole, Some("c"), 1, &[]), ["c-0", "c-1"], "the preferred group first");
        assert_eq!(routed(&whole, Some("nowhere"), 1, &[]), ["b-0", "b-1"]);
        assert_eq!(routed(&map(&["c-1"]), Some("c"), 1, &[]), ["b-0", "b-1"], "unless a node of it is down");
        assert_eq!(routed(&whole, Some("c"), 1, &["c-0"]), ["b-0", "b-1"], "or failed a moment ago");
    }

    #[test]
    fn no_whole_group_left_goes_partition_by_partition() {
        let broken = map(&["a-0", "b-1", "c-0"]);
        assert_eq!(routed(&broken, None, 0, &[]), ["b-0", "a-1"]);
        assert_eq!(routed(&broken, None, 0, &["b-0"]), ["b-0", "a-1"], "failed lately, but not down");
        let dead = map(&["a-0", "a-1", "b-0", "b-1", "c-0", "c-1"]);
        assert_eq!(routed(&dead, Some("b"), 0, &[]), ["b-0", "b-1"], "down by the map is asked all the same");
    }
}
