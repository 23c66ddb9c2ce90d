//! Graphs: operations with dependencies, and what a launch of them remembers.

use std::sync::Arc;

use crate::{
    races::{Clock, Point},
    work::Work,
};

/// One operation of a graph and the nodes that come before it.
pub(crate) struct Node {
    pub(crate) work: Work,
    pub(crate) after: Vec<usize>,
}

/// Operations in an order in which they could run: a node comes after those that it depends on.
pub(crate) struct Graph {
    pub(crate) nodes: Vec<Node>,
    /// For each node, a bit per node that comes before it.
    before: Vec<Vec<u64>>,
}

impl Graph {
    pub(crate) fn new(nodes: Vec<Node>) -> Self {
        let words = nodes.len().div_ceil(64);
        let mut before: Vec<Vec<u64>> = Vec::with_capacity(nodes.len());
        for node in &nodes {
            let mut of = vec![0; words];
            for after in &node.after {
                of[after / 64] |= 1 << (after % 64);
                for (to, from) in of.iter_mut().zip(&before[*after]) {
                    *to |= from;
                }
            }
            before.push(of);
        }
        Self { nodes, before }
    }

    /// Whether node `first` is done before node `second` starts.
    pub(crate) fn orders(&self, first: usize, second: usize) -> bool {
        self.before[second][first / 64] & (1 << (first % 64)) != 0
    }

    /// Whether every node but these is done before one of these starts.
    pub(crate) fn all_before(&self, ends: &[usize]) -> bool {
        (0..self.nodes.len()).all(|node| ends.iter().any(|end| *end == node || self.orders(node, *end)))
    }

    /// The nodes in an order in which they may run. Of those that are ready, `draw` picks one.
    pub(crate) fn order(&self, mut draw: impl FnMut(usize) -> usize) -> Vec<usize> {
        let mut done = vec![false; self.nodes.len()];
        let mut order = Vec::with_capacity(self.nodes.len());
        while order.len() < self.nodes.len() {
            let ready: Vec<usize> = (0..self.nodes.len())
                .filter(|n| !done[*n] && self.nodes[*n].after.iter().all(|before| done[*before]))
                .collect();
            let next = ready[draw(ready.len())];
            done[next] = true;
            order.push(next);
        }
        order
    }
}

/// A graph that can be launched.
pub(crate) struct Executable {
    pub(crate) graph: Arc<Graph>,
    /// Launches of one executable graph come one after the other, on whatever streams they are.
    pub(crate) last: Option<(Point, Clock)>,
}

/// One launch: what the pinned sources of its copies held when it was asked for, and whether the destinations were
/// poisoned then; a number per node.
pub(crate) struct Launch {
    pub(crate) graph: Arc<Graph>,
    pub(crate) fingerprints: Vec<Option<u64>>,
    pub(crate) poisoned: Vec<bool>,
}

#[cfg(test)]
mod tests {
    use super::*;

    fn node(after: &[usize]) -> Node {
        Node { work: Work::Mark("nothing"), after: after.to_vec() }
    }

    #[test]
    fn a_fork_is_ordered_with_its_ends_but_not_across() {
        let graph = Graph::new(vec![node(&[]), node(&[0]), node(&[0]), node(&[1, 2]), node(&[0])]);
        assert!(graph.orders(0, 3) && graph.orders(1, 3) && !graph.orders(1, 2) && !graph.orders(3, 0));
        assert!(!graph.all_before(&[3]) && graph.all_before(&[3, 4]));
        assert_eq!(graph.order(|_| 0), [0, 1, 2, 3, 4]);
        assert_eq!(graph.order(|ready| ready - 1), [0, 4, 2, 1, 3]);
    }
}
