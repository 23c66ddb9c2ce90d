//! Placement: which node of a replica group holds which partition, proposed by a consistent-hash ring
//! with bounded loads.
//!
//! The ring is filled once per plan and forgotten; what it proposes is recorded in the cluster map, and
//! neither ids nor clients ever meet it. Its points are hashed by [`PointHasher`] over bytes that we
//! write ourselves, so every machine and every release of Rust proposes the same.

use std::{
    cmp::Ordering,
    collections::BTreeMap,
    hash::{Hash, Hasher},
};

use consistent_hash::{Node, RingHash, StaticHashRing};
use tidepool_types::{Name, NodeId, PartitionCount, PartitionIndex, mix64};

use crate::map::Placement;

/// Ring points of the largest node of a group; a smaller one has proportionally fewer.
const RING_POINTS: usize = 100;

/// A node that may hold partitions.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Member {
    /// The node.
    pub node: NodeId,
    /// Bytes of partition files that it may hold; 0 for no limit, which counts as much as the largest
    /// limit in its group. Only the proportions matter here: a node refuses what does not fit.
    pub capacity_bytes: u64,
}

/// Plans where the partitions of `table` go, in every group of `groups` (group to its members).
///
/// A partition stays where `previous` has it while that node is a member and within its bound; the others
/// go to the first node in ring order that is. So a plan made of its own outcome moves nothing, and
/// when a node leaves only its partitions move. The order of the members does not matter.
///
/// The bound of a node is its share of the partitions by capacity, rounded up, or 1.1 times its share,
/// rounded down, whichever is more; the bounds of a group always add up to all partitions.
///
/// Groups without members, and groups that only `previous` knows, stay as they were.
#[must_use]
pub fn place(
    table: &Name,
    partitions: PartitionCount,
    groups: &BTreeMap<Name, Vec<Member>>,
    previous: &Placement,
) -> Placement {
    let mut plan = previous.clone();
    for (group, members) in groups.iter().filter(|(_, members)| !members.is_empty()) {
        let before = previous.groups.get(group).map_or(&[][..], Vec::as_slice);
        plan.groups.insert(group.clone(), place_group(table, partitions, members, before));
    }
    plan
}

fn place_group(
    table: &Name,
    partitions: PartitionCount,
    members: &[Member],
    before: &[NodeId],
) -> Vec<NodeId> {
    let mut room = bounds(partitions, members);
    let mut plan: Vec<Option<NodeId>> = vec![None; partitions.get() as usize];
    for (slot, node) in plan.iter_mut().zip(before) {
        *slot = take_room(&mut room, node);
    }
    let largest = largest(members);
    let on_ring = |m: &Member| {
        Node::new(Point::of_node(&m.node)).value(m.node.clone()).quantity(ring_points(m, largest))
    };
    let ring = StaticHashRing::new(ByBytes, members.iter().map(on_ring));
    for (slot, partition) in plan.iter_mut().zip(partitions.indexes()) {
        if slot.is_none() {
            let point = Point::of_partition(table, partition);
            *slot = ring.calc_candidates(&point).find_map(|n| take_room(&mut room, &n.value));
        }
    }
    // The bounds add up to all partitions, so every slot is filled.
    plan.into_iter().flatten().collect()
}

/// How many partitions each member may hold.
fn bounds(partitions: PartitionCount, members: &[Member]) -> BTreeMap<NodeId, u64> {
    let count = u128::from(partitions.get());
    let largest = largest(members);
    let weights: BTreeMap<_, _> = members.iter().map(|m| (m.node.clone(), weight(m, largest))).collect();
    let sum: u128 = weights.values().sum();
    let bound = |weight: u128| (count * weight).div_ceil(sum).max(count * weight * 11 / (sum * 10));
    // No bound is far above the count, which has 17 bits at most.
    weights
        .into_iter()
        .map(|(node, weight)| (node, u64::try_from(bound(weight)).unwrap_or(u64::MAX)))
        .collect()
}

/// The largest limit of a group; 1 when none of its nodes has one.
fn largest(members: &[Member]) -> u64 {
    members.iter().map(|m| m.capacity_bytes).max().unwrap_or(0).max(1)
}

/// What a member's share is in proportion to. Never zero.
fn weight(member: &Member, largest: u64) -> u128 {
    u128::from(if member.capacity_bytes == 0 { largest } else { member.capacity_bytes })
}

/// Points of a member on the ring, from 1 to [`RING_POINTS`].
fn ring_points(member: &Member, largest: u64) -> usize {
    let points = weight(member, largest) * RING_POINTS as u128 / u128::from(largest);
    usize::try_from(points).unwrap_or(RING_POINTS).clamp(1, RING_POINTS)
}

fn take_room(room: &mut BTreeMap<NodeId, u64>, node: &NodeId) -> Option<NodeId> {
    let left = room.get_mut(node).filter(|left| **left > 0)?;
    *left -= 1;
    Some(node.clone())
}

/// What is put on the ring, as bytes: a node, or a partition of a table.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Point(Vec<u8>);

impl Point {
    fn of_node(node: &NodeId) -> Self {
        Self(node.0.as_bytes().to_vec())
    }

    fn of_partition(table: &Name, partition: PartitionIndex) -> Self {
        // A name has no zero byte, so no two pairs give the same bytes.
        let mut bytes = table.as_bytes().to_vec();
        bytes.push(0);
        bytes.extend_from_slice(&partition.0.to_le_bytes());
        Self(bytes)
    }
}

impl Hash for Point {
    fn hash<H: Hasher>(&self, state: &mut H) {
        state.write(&self.0);
    }
}

impl PartialOrd for Point {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Point {
    fn cmp(&self, other: &Self) -> Ordering {
        self.0.cmp(&other.0)
    }
}

/// Hashes ring points by their bytes alone; the crate's own hash depends on the machine's byte order.
struct ByBytes;

impl RingHash for ByBytes {
    fn hash_item<T: Hash>(&self, item: &T) -> u64 {
        let mut hasher = PointHasher::new();
        item.hash(&mut hasher);
        hasher.finish()
    }

    fn hash_vnode<K: Hash>(&self, node_key: &K, vnode_seq: usize) -> u64 {
        let mut hasher = PointHasher::new();
        node_key.hash(&mut hasher);
        hasher.write(&[0xff]);
        hasher.write(&(vnode_seq as u64).to_le_bytes());
        hasher.finish()
    }
}

/// 64-bit FNV-1a over the bytes, spread by `mix64`: FNV alone leaves similar names near each other on the
/// ring. Only bytes are ever written to it.
struct PointHasher(u64);

impl PointHasher {
    const fn new() -> Self {
        Self(0xcbf2_9ce4_8422_2325)
    }
}

impl Hasher for PointHasher {
    fn write(&mut self, bytes: &[u8]) {
        for byte in bytes {
            self.0 = (self.0 ^ u64::from(*byte)).wrapping_mul(0x0000_0100_0000_01b3);
        }
    }

    fn finish(&self) -> u64 {
        mix64(self.0)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn name(text: &str) -> Name {
        Name::new(text).unwrap()
    }

    fn members(capacities: &[u64]) -> Vec<Member> {
        let member = |(at, capacity_bytes): (usize, &u64)| Member {
            node: NodeId(name(&format!("node-{at}"))),
            capacity_bytes: *capacity_bytes,
        };
        capacities.iter().enumerate().map(member).collect()
    }

    fn plan(table: &str, log: u32, members: &[Member], previous: &Placement) -> Placement {
        let groups = [(name("a"), members.to_vec())].into();
        place(&name(table), PartitionCount::new(1 << log).unwrap(), &groups, previous)
    }

    fn nodes(plan: &Placement) -> &[NodeId] {
        &plan.groups["a"]
    }

    fn loads(plan: &Placement) -> BTreeMap<NodeId, u64> {
        let mut loads = BTreeMap::new();
        for node in nodes(plan) {
            *loads.entry(node.clone()).or_default() += 1;
        }
        loads
    }

    proptest! {
        #[test]
        fn a_plan_is_whole_bounded_stable_and_blind_to_order(
            table in "[a-z]{1,8}",
            log in 0u32..9,
            capacities in prop::collection::vec(prop_oneof![Just(0u64), 1u64..1 << 40], 1..9),
            rotate in 0usize..8,
        ) {
            let mut members = members(&capacities);
            let first = plan(&table, log, &members, &Placement::default());
            prop_assert_eq!(nodes(&first).len(), 1 << log);
            let bounds = bounds(PartitionCount::new(1 << log).unwrap(), &members);
            for (node, load) in loads(&first) {
                prop_assert!(load <= bounds[&node], "{} holds {} of at most {}", node, load, bounds[&node]);
            }
            prop_assert_eq!(&plan(&table, log, &members, &first), &first);
            let len = members.len();
            members.rotate_left(rotate % len);
            members.reverse();
            prop_assert_eq!(&plan(&table, log, &members, &Placement::default()), &first);
        }

        #[test]
        fn removing_a_node_moves_its_partitions_only(
            log in 0u32..9,
            // A node without limit counts as the largest of those that stay, so its share may change.
            capacities in prop_oneof![
                prop::collection::vec(Just(0u64), 2..9),
                prop::collection::vec(1u64..1 << 40, 2..9),
            ],
            leaves in 0usize..8,
        ) {
            let mut members = members(&capacities);
            let first = plan("user", log, &members, &Placement::default());
            let gone = members.remove(leaves % members.len()).node;
            let second = plan("user", log, &members, &first);
            for (before, after) in nodes(&first).iter().zip(nodes(&second)) {
                prop_assert_ne!(after, &gone);
                prop_assert!(before == &gone || before == after);
            }
        }

        #[test]
        fn a_node_that_joins_takes_no_more_than_it_must(log in 0u32..9, count in 1usize..8) {
            let first = plan("user", log, &members(&vec![0; count]), &Placement::default());
            let second = plan("user", log, &members(&vec![0; count + 1]), &first);
            let count_of = PartitionCount::new(1 << log).unwrap();
            // The nodes are equal, and so are their bounds.
            let bound = bounds(count_of, &members(&vec![0; count + 1])).into_values().max().unwrap();
            let too_many: u64 = loads(&first).values().map(|load| load.saturating_sub(bound)).sum();
            let moved = nodes(&first).iter().zip(nodes(&second)).filter(|(a, b)| a != b).count();
            prop_assert_eq!(moved as u64, too_many);
            for (node, load) in loads(&second) {
                prop_assert!(load <= bound, "{} holds {}", node, load);
            }
        }
    }

    #[test]
    fn equal_nodes_share_small_layouts_evenly() {
        for (log, count, each) in [(2, 2, 2), (2, 4, 1), (4, 4, 4), (5, 2, 17)] {
            let plan = plan("user", log, &members(&vec![0; count]), &Placement::default());
            assert!(loads(&plan).values().all(|load| *load <= each), "{:?}", loads(&plan));
        }
    }

    #[test]
    fn a_larger_node_holds_more() {
        let plan = plan("user", 8, &members(&[1000, 3000]), &Placement::default());
        let loads = loads(&plan);
        let large = loads[&NodeId(name("node-1"))];
        assert!((180..=211).contains(&large), "{large} of 256, its share is 192");
    }

    #[test]
    fn groups_that_are_not_planned_stay() {
        let previous = plan("user", 2, &members(&[0]), &Placement::default());
        let groups = [(name("b"), members(&[0, 0])), (name("c"), Vec::new())].into();
        let plan = place(&name("user"), PartitionCount::new(4).unwrap(), &groups, &previous);
        assert_eq!(plan.groups["a"], previous.groups["a"]);
        assert_eq!(plan.groups["b"].len(), 4);
        assert!(!plan.groups.contains_key("c"));
    }

    /// Placement is recorded, so another hash would not corrupt anything; but a plan that silently changes
    /// between releases would move partitions for nothing.
    #[test]
    fn the_ring_hash_is_golden() {
        let point = Point::of_partition(&name("user"), PartitionIndex(3));
        assert_eq!(point.0, b"user\0\x03\0\0\0");
        // FNV-1a of "a" is af63dc4c8601ec8c by its authors' test vectors.
        let mut hasher = PointHasher::new();
        hasher.write(b"a");
        assert_eq!(hasher.finish(), mix64(0xaf63_dc4c_8601_ec8c));
    }
}
