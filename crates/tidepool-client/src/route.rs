//! Which node is asked for which partition: one replica group when it can answer all of the request,
//! otherwise partition by partition, healthy nodes first.
//!
//! Among groups that are whole, the preferred one is taken unless it is much slower or more loaded; without
//! one, the better of two that chance has picked. A group is as slow as the slowest node that the request
//! needs. Nothing here takes longer when the cluster has more partitions than the request touches.

use std::time::Instant;

use tidepool_types::PartitionIndex;

use crate::{
    breaker::Status,
    peer::Ticket,
    split::{Split, as_u32},
    topology::{NodeAt, Topology},
};

/// A partition of a table of the request: the table's place in [`Split::tables`], and the slot.
pub(crate) type Piece = (usize, u32);

/// A decision: which node is asked for which piece.
#[derive(Debug, Default)]
pub(crate) struct Route<'m> {
    /// The nodes that are asked.
    pub(crate) nodes: Vec<NodeAt>,
    /// A place for one call at each of them.
    pub(crate) tickets: Vec<Ticket<'m>>,
    /// `[table][slot]`: place in `nodes`, or [`Route::NOT_ASKED`].
    pub(crate) node_of: Vec<Vec<u32>>,
    /// Whether another group could answer all of the request just as well.
    pub(crate) alternative: bool,
}

impl Route<'_> {
    /// A piece that this route does not ask for.
    pub(crate) const NOT_ASKED: u32 = u32::MAX;

    /// Which of `nodes` is asked for a unique id of a table, if one is.
    pub(crate) fn place_of(&self, split: &Split<'_>, table: usize, id: u32) -> u32 {
        let slot = split.tables[table].slot_of[id as usize];
        self.node_of[table].get(slot as usize).copied().unwrap_or(Self::NOT_ASKED)
    }
}

/// Nodes that were asked without success, per table and slot; empty until there is one.
#[derive(Debug, Default)]
pub(crate) struct Tried(Vec<Vec<Vec<NodeAt>>>);

impl Tried {
    pub(crate) fn add(&mut self, split: &Split<'_>, pieces: &[Piece], node: NodeAt) {
        if self.0.is_empty() {
            self.0 = split.tables.iter().map(|t| vec![Vec::new(); t.partitions.len()]).collect();
        }
        for (table, slot) in pieces {
            let tried = &mut self.0[*table][*slot as usize];
            if !tried.contains(&node) {
                tried.push(node);
            }
        }
    }

    pub(crate) fn remove(&mut self, pieces: &[Piece], node: NodeAt) {
        for (table, slot) in pieces {
            self.0[*table][*slot as usize].retain(|tried| *tried != node);
        }
    }

    pub(crate) fn of(&self, (table, slot): Piece) -> &[NodeAt] {
        self.0.get(table).map_or(&[], |slots| &slots[slot as usize])
    }
}

/// Health of a node; smaller is asked first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Health {
    Up,
    /// Its breaker lets one call through.
    ProbeDue,
    /// Traffic is to leave it.
    Draining,
    /// Its breaker is open.
    Sick,
    /// The map says so.
    Down,
}

/// What is known of a node while a request is routed.
#[derive(Clone, Copy, Debug)]
struct Seen {
    health: Health,
    /// A breaker keeps it from being asked, whatever the map says of it.
    shut: bool,
    latency_nanos: f64,
    in_flight: f64,
}

/// A node's place on the router's table.
#[derive(Clone, Copy, Debug, Default)]
struct Slot {
    seen: Option<Seen>,
    /// The round in which it was last met, and its place then.
    round: u32,
    place: u32,
}

/// How slow and loaded a group is.
#[derive(Clone, Copy, Debug, Default)]
struct Weight {
    /// To tell two groups apart.
    fine: f64,
    /// To say that one is much worse: differences below a millisecond or a few dozen calls do not count.
    coarse: f64,
}

impl Weight {
    fn add(&mut self, seen: &Seen) {
        let weigh = |nanos: f64, calls: f64| (seen.latency_nanos + nanos) * (seen.in_flight + calls);
        self.fine = self.fine.max(weigh(1e5, 1.0));
        self.coarse = self.coarse.max(weigh(1e6, 32.0));
    }
}

/// How groups are chosen.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Choice<'a> {
    /// The group that comes first.
    pub(crate) preferred: Option<&'a str>,
    /// By how much it may be worse than another, as a factor.
    pub(crate) spill_factor: f64,
    /// A number by chance.
    pub(crate) random: u64,
    /// Whether nodes whose breaker is open are left out, also when nobody else is left.
    pub(crate) skip_sick: bool,
}

/// Chooses nodes for the pieces of one request.
#[derive(Debug)]
pub(crate) struct Router<'m> {
    topology: &'m Topology,
    split: &'m Split<'m>,
    /// Groups in the order in which this request looks at them.
    order: Vec<usize>,
    /// Whether the first of `order` is the preferred group.
    prefers: bool,
    spill_factor: f64,
    skip_sick: bool,
    now: Instant,
    slots: Vec<Slot>,
    round: u32,
}

impl<'m> Router<'m> {
    pub(crate) fn new(
        topology: &'m Topology,
        split: &'m Split<'m>,
        choice: Choice<'_>,
        now: Instant,
    ) -> Self {
        let groups = topology.groups.len();
        let mut order: Vec<usize> = (0..groups).collect();
        let preferred = topology.groups.iter().position(|group| Some(group.as_str()) == choice.preferred);
        if let Some(preferred) = preferred {
            order.swap(0, preferred);
        }
        let rest = &mut order[usize::from(preferred.is_some())..];
        // Two by chance come first; the others are asked only when those are not whole.
        for (at, random) in [choice.random, choice.random >> 32].into_iter().enumerate() {
            if let Some(left @ 1..) = rest.len().checked_sub(at) {
                rest.swap(at, at + (random as u32 as usize) % left);
            }
        }
        Self {
            topology,
            split,
            order,
            prefers: preferred.is_some(),
            spill_factor: choice.spill_factor,
            skip_sick: choice.skip_sick,
            now,
            slots: vec![Slot::default(); topology.nodes.len()],
            round: 0,
        }
    }

    /// Looks at the nodes anew.
    pub(crate) fn refresh(&mut self, now: Instant) {
        self.now = now;
        self.slots.iter_mut().for_each(|slot| slot.seen = None);
    }

    /// The route for the whole request: a group all of whose nodes that are needed are healthy, or the best
    /// node of each partition. And the pieces that nobody is left for.
    pub(crate) fn first(&mut self) -> (Route<'m>, Vec<Piece>) {
        let split = self.split;
        let pieces: Vec<Piece> = {
            let tables = split.tables.iter().enumerate();
            tables.flat_map(|(table, t)| (0..as_u32(t.partitions.len())).map(move |s| (table, s))).collect()
        };
        while let Some((group, alternative)) = self.choose() {
            if let Some(mut route) = self.whole(group, &pieces) {
                route.alternative = alternative;
                return (route, Vec::new());
            }
        }
        self.elsewhere(&pieces, &Tried::default())
    }

    /// A route for pieces whose call is late: a whole, healthy group of which none was tried for them.
    pub(crate) fn hedge(&mut self, pieces: &[Piece], tried: &Tried) -> Option<Route<'m>> {
        for at in 0..self.order.len() {
            let group = self.order[at];
            let fits = pieces.iter().all(|piece| {
                self.node(group, *piece).is_some_and(|node| {
                    !tried.of(*piece).contains(&node) && self.see(node).health == Health::Up
                })
            });
            if fits && let Some(route) = self.whole(group, pieces) {
                return Some(route);
            }
        }
        None
    }

    /// The best route for pieces, to nodes that have not been tried for them, and the pieces that nobody is
    /// left for.
    pub(crate) fn elsewhere(&mut self, pieces: &[Piece], tried: &Tried) -> (Route<'m>, Vec<Piece>) {
        let mut route = self.blank();
        let mut nobody = Vec::new();
        for piece in pieces {
            match self.best(*piece, tried.of(*piece)) {
                Some(node) => self.put(&mut route, *piece, node),
                None => nobody.push(*piece),
            }
        }
        let peers = route.nodes.iter().map(|node| self.topology.peer(*node));
        route.tickets = peers.map(|peer| peer.insist(self.now)).collect();
        (route, nobody)
    }

    /// Whether each of `pieces` could still be asked of a healthy node that was not tried.
    pub(crate) fn has_alternative(&mut self, pieces: &[Piece], node: NodeAt, tried: &Tried) -> bool {
        pieces.iter().all(|piece| {
            (0..self.order.len()).any(|at| {
                self.node(self.order[at], *piece).is_some_and(|other| {
                    other != node
                        && !tried.of(*piece).contains(&other)
                        && self.see(other).health == Health::Up
                })
            })
        })
    }

    /// A group that can answer all of the request, and whether another could too.
    fn choose(&mut self) -> Option<(usize, bool)> {
        let preferred = if self.prefers { self.weigh(self.order[0]) } else { None };
        let mut best: Option<(usize, Weight)> = None;
        let mut others = 0;
        for at in usize::from(self.prefers)..self.order.len() {
            let group = self.order[at];
            if let Some(weight) = self.weigh(group) {
                others += 1;
                if best.is_none_or(|(_, best)| weight.fine < best.fine) {
                    best = Some((group, weight));
                }
                if others == 2 {
                    break;
                }
            }
        }
        match (preferred, best) {
            (Some(weight), Some((other, of_other)))
                if weight.coarse > self.spill_factor * of_other.coarse =>
            {
                Some((other, true))
            }
            (Some(_), best) => Some((self.order[0], best.is_some())),
            (None, best) => best.map(|(group, _)| (group, others > 1)),
        }
    }

    /// How slow and loaded `group` is for this request; None: it cannot answer all of it.
    fn weigh(&mut self, group: usize) -> Option<Weight> {
        let (split, topology) = (self.split, self.topology);
        self.round += 1;
        let mut weight = Weight::default();
        for table in &split.tables {
            for partition in &table.partitions {
                let node = topology.node(table.at, group, *partition)?;
                let slot = &mut self.slots[node.index()];
                if slot.round != self.round {
                    slot.round = self.round;
                    let seen = self.see(node);
                    if seen.health > Health::ProbeDue {
                        return None;
                    }
                    weight.add(&seen);
                }
            }
        }
        Some(weight)
    }

    /// All of `pieces` at `group`; None: a breaker has closed the way since it was looked at.
    fn whole(&mut self, group: usize, pieces: &[Piece]) -> Option<Route<'m>> {
        let mut route = self.blank();
        for piece in pieces {
            let node = self.node(group, *piece)?;
            self.put(&mut route, *piece, node);
        }
        for node in &route.nodes {
            match self.topology.peer(*node).admit(self.now) {
                Some(ticket) => route.tickets.push(ticket),
                None => {
                    let slot = &mut self.slots[node.index()];
                    slot.seen = slot.seen.map(|seen| Seen { health: Health::Sick, shut: true, ..seen });
                    return None;
                }
            }
        }
        Some(route)
    }

    fn blank(&mut self) -> Route<'m> {
        self.round += 1;
        let none = |t: &crate::split::TableSplit<'_>| vec![Route::NOT_ASKED; t.partitions.len()];
        Route { node_of: self.split.tables.iter().map(none).collect(), ..Route::default() }
    }

    fn put(&mut self, route: &mut Route<'m>, (table, piece): Piece, node: NodeAt) {
        let slot = &mut self.slots[node.index()];
        if slot.round != self.round {
            (slot.round, slot.place) = (self.round, as_u32(route.nodes.len()));
            route.nodes.push(node);
        }
        route.node_of[table][piece as usize] = slot.place;
    }

    /// The healthiest node that holds a piece and is not in `tried`; of equals, the first group's.
    fn best(&mut self, piece: Piece, tried: &[NodeAt]) -> Option<NodeAt> {
        let mut best: Option<(Health, NodeAt)> = None;
        for at in 0..self.order.len() {
            let Some(node) = self.node(self.order[at], piece).filter(|node| !tried.contains(node)) else {
                continue;
            };
            let Seen { health, shut, .. } = self.see(node);
            let skipped = self.skip_sick && shut;
            if !skipped && best.is_none_or(|(best, _)| health < best) {
                best = Some((health, node));
            }
        }
        best.map(|(_, node)| node)
    }

    fn partition(&self, (table, slot): Piece) -> PartitionIndex {
        self.split.tables[table].partitions[slot as usize]
    }

    fn node(&self, group: usize, piece: Piece) -> Option<NodeAt> {
        self.topology.node(self.split.tables[piece.0].at, group, self.partition(piece))
    }

    fn see(&mut self, node: NodeAt) -> Seen {
        if let Some(seen) = self.slots[node.index()].seen {
            return seen;
        }
        let look = self.topology.peer(node).look(self.now);
        let health = match look.status {
            _ if !self.topology.nodes[node.index()].up => Health::Down,
            Status::Closed | Status::ProbeDue if self.topology.nodes[node.index()].draining => {
                Health::Draining
            }
            Status::Closed => Health::Up,
            Status::ProbeDue => Health::ProbeDue,
            Status::Probing | Status::Open => Health::Sick,
        };
        let shut = matches!(look.status, Status::Probing | Status::Open);
        let (latency_nanos, in_flight) = (look.latency_nanos, f64::from(look.in_flight));
        let seen = Seen { health, shut, latency_nanos, in_flight };
        self.slots[node.index()].seen = Some(seen);
        seen
    }
}

#[cfg(test)]
mod tests;
