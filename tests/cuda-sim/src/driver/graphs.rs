//! Graphs: made executable, launched, destroyed.

use std::sync::Arc;

use super::Driver;
use crate::{
    graph::{Executable, Graph, Launch},
    state::{Answer, State, kinds},
    work::{Source, Work},
};

impl State {
    /// What a launch remembers of host memory: fingerprints of pinned sources, and destinations that it poisons.
    fn remember(&self, graph: &Arc<Graph>) -> Launch {
        let mut fingerprints = Vec::with_capacity(graph.nodes.len());
        let mut poisoned = Vec::with_capacity(graph.nodes.len());
        for node in &graph.nodes {
            fingerprints.push(match &node.work {
                Work::ToDevice { from: Source::Pinned { range, .. }, .. } => {
                    let written = graph.nodes.iter().any(|n| n.work.uses_host(range, true));
                    (!written && !self.host_in_use(range, true)).then(|| range.fingerprint())
                }
                _ => None,
            });
        }
        for (index, node) in graph.nodes.iter().enumerate() {
            poisoned.push(match &node.work {
                Work::ToHost { to, .. } => {
                    let mut others = graph.nodes.iter().enumerate().filter(|(other, _)| *other != index);
                    !others.any(|(_, n)| n.work.uses_host(to, false)) && self.poison_host(to)
                }
                _ => false,
            });
        }
        Launch { graph: Arc::clone(graph), fingerprints, poisoned }
    }
}

impl Driver {
    /// `cuGraphInstantiateWithFlags`: the handle of the executable graph.
    pub fn instantiate(&self, graph: u64) -> Answer<u64> {
        let (mut state, _) = self.enter()?;
        let number = state.number(kinds::GRAPH, graph)?;
        let Some(graph) = state.graphs.get(&number).cloned() else { return Err(state.unknown("graph")) };
        let executable = state.handle();
        state.executables.insert(executable, Executable { graph, last: None });
        state.counters.graphs_live += 1;
        Ok(kinds::EXECUTABLE | u64::from(executable))
    }

    /// `cuGraphGetNodes`: how many nodes there are.
    pub fn graph_nodes(&self, graph: u64) -> Answer<usize> {
        let (mut state, _) = self.enter()?;
        let number = state.number(kinds::GRAPH, graph)?;
        let Some(graph) = state.graphs.get(&number) else { return Err(state.unknown("graph")) };
        Ok(graph.nodes.len())
    }

    /// `cuGraphDestroy`.
    pub fn destroy_graph(&self, graph: u64) -> Answer<()> {
        let (mut state, _) = self.enter()?;
        let number = state.number(kinds::GRAPH, graph)?;
        if state.graphs.remove(&number).is_none() {
            return Err(state.unknown("graph"));
        }
        state.counters.graphs_live -= 1;
        Ok(())
    }

    /// `cuGraphExecDestroy`. Launches that were asked for run all the same.
    pub fn destroy_executable(&self, executable: u64) -> Answer<()> {
        let (mut state, _) = self.enter()?;
        let number = state.number(kinds::EXECUTABLE, executable)?;
        if state.executables.remove(&number).is_none() {
            return Err(state.unknown("executable graph"));
        }
        state.counters.graphs_live -= 1;
        Ok(())
    }

    /// `cuGraphUpload`: an operation of the stream that does nothing here.
    pub fn upload(&self, executable: u64, stream: u64) -> Answer<()> {
        let (mut state, context) = self.enter()?;
        let stream = state.stream_of(context, stream)?;
        let number = state.number(kinds::EXECUTABLE, executable)?;
        if !state.executables.contains_key(&number) {
            return Err(state.unknown("executable graph"));
        }
        state.submit(stream, Work::Mark("upload of a graph"), Vec::new())
    }

    /// `cuGraphLaunch`.
    pub fn launch_graph(&self, executable: u64, stream: u64) -> Answer<()> {
        let (mut state, context) = self.enter()?;
        let stream = state.stream_of(context, stream)?;
        let number = state.number(kinds::EXECUTABLE, executable)?;
        let Some(of) = state.executables.get(&number) else { return Err(state.unknown("executable graph")) };
        let (graph, last) = (Arc::clone(&of.graph), of.last.clone());
        state.may_be_lost()?;
        if state.streams[&stream].capture.is_none() {
            let launch = Arc::new(state.remember(&graph));
            state.submit(stream, Work::Graph(launch), last.into_iter().collect())?;
            state.counters.graph_launches += 1;
            for node in &graph.nodes {
                match &node.work {
                    Work::ToDevice { from, .. } => {
                        state.counters.copies_in += 1;
                        state.counters.bytes_in += from.len();
                    }
                    Work::ToHost { to, .. } => {
                        state.counters.copies_out += 1;
                        state.counters.bytes_out += to.len() as u64;
                    }
                    _ => {}
                }
            }
            let last = ((stream, state.streams[&stream].issued), state.streams[&stream].tail.clone());
            if let Some(of) = state.executables.get_mut(&number) {
                of.last = Some(last);
            }
            return Ok(());
        }
        let launch = Launch { graph, fingerprints: Vec::new(), poisoned: Vec::new() };
        state.submit(stream, Work::Graph(Arc::new(launch)), Vec::new())
    }
}
