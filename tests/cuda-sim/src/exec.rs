//! Running one operation, and what is checked while it runs.

use std::sync::Arc;

use crate::{
    blas,
    error::Code,
    graph::Launch,
    host::HostRange,
    memory::{Memory, Touched, Wrong},
    module,
    races::{Clock, Point, conflict, says, union},
    settings::Schedule,
    state::State,
    streams::Op,
    work::{Source, Work},
};

/// An error of the device: its code and words.
pub(crate) type Failed = (Code, String);

impl Wrong {
    /// What the device answers. A real one knows nothing of bytes that nobody has written; the stand-in says of
    /// those that the launch failed.
    pub(crate) fn code(&self) -> Code {
        match self {
            Wrong::Unwritten { .. } => Code::LAUNCH_FAILED,
            Wrong::Misaligned { .. } => Code::MISALIGNED_ADDRESS,
            _ => Code::ILLEGAL_ADDRESS,
        }
    }
}

impl State {
    /// Runs an operation of a stream. After an error of the device nothing runs any more.
    pub(crate) fn execute(&mut self, stream: u32, op: &Op) {
        if self.sticky.is_some() || self.lost.is_some() {
            return;
        }
        let point = (stream, op.position);
        let result = match &op.work {
            Work::Graph(launch) => self.run_graph(launch),
            work => self.run_work(work).map(|()| self.memory.take_touched()),
        };
        match result {
            Ok(touched) => self.judge(touched, point, &op.clock, &op.work),
            Err((code, words)) => {
                self.memory.take_touched();
                self.fault(code, format!("{} in stream {stream}: {words}", op.work.says()));
            }
        }
    }

    /// Looks for races of what an operation touched.
    fn judge(&mut self, touched: Vec<Touched>, point: Point, clock: &Clock, work: &Work) {
        let race = self.races.note(touched, point, clock, &self.host, &work.says());
        if let Some(race) = race {
            let words = format!(
                "race: {} and {} of stream {} are ordered by nothing, and both touch bytes {:?} of {}",
                race.first,
                race.second,
                point.0,
                race.range,
                self.named(race.slot)
            );
            self.fault(Code::LAUNCH_FAILED, words);
        }
    }

    fn named(&self, slot: u32) -> String {
        self.memory.in_slot(slot).map_or_else(String::new, |a| {
            format!("allocation {} ({} bytes at {:#x})", a.serial, a.length, a.start)
        })
    }

    fn run_work(&mut self, work: &Work) -> Result<(), Failed> {
        let wrong = |wrong: Wrong| (wrong.code(), wrong.to_string());
        match work {
            Work::ToDevice { from: Source::Staged(bytes), to } => {
                self.memory.store(*to, bytes).map_err(wrong)
            }
            Work::ToDevice { from: Source::Pinned { range, fingerprint }, to } => {
                if fingerprint.is_some_and(|print| print != range.fingerprint()) {
                    return Err(stale(range));
                }
                self.memory.store(*to, &range.read()).map_err(wrong)
            }
            Work::ToHost { from, to, poisoned } => {
                if *poisoned && !to.is_poison() {
                    return Err(overwritten(to));
                }
                let content = self.memory.content(*from, to.len() as u64).map_err(wrong)?;
                self.counters.poison_copied_out += content.written.iter().filter(|w| !**w).count() as u64;
                to.write(&content.bytes);
                Ok(())
            }
            Work::Within { from, to, bytes } => {
                let content = self.memory.content(*from, *bytes).map_err(wrong)?;
                self.memory.set_content(*to, &content).map_err(wrong)
            }
            Work::Fill { to, pattern, count } => {
                self.memory.store(*to, &pattern.repeat(*count as usize)).map_err(wrong)
            }
            Work::Kernel(call) => {
                self.injected()?;
                self.counters.kernels_run += 1;
                self.counters.instructions += module::run(call, &self.memory)?;
                Ok(())
            }
            Work::Matmul(matmul) => {
                self.injected()?;
                self.counters.matmuls_run += 1;
                blas::run(matmul, &self.memory)
            }
            Work::Born(address) => {
                let length = self.memory.allocation(*address).map_err(wrong)?.length;
                self.memory.spoil(*address, length).map_err(wrong)
            }
            Work::Free(address) => self.release_memory(*address).map_err(wrong),
            // A graph holds no graphs, and host functions are called without the lock.
            Work::Graph(_) | Work::HostCall(_) | Work::Mark(_) => Ok(()),
        }
    }

    /// Counts a kernel or matmul towards the one that was asked to fail.
    fn injected(&mut self) -> Result<(), Failed> {
        match &mut self.settings.fail_launch {
            Some(1) => {
                self.settings.fail_launch = None;
                Err((Code::LAUNCH_FAILED, "this launch was asked to fail".into()))
            }
            Some(left) => {
                *left -= 1;
                Ok(())
            }
            None => Ok(()),
        }
    }

    /// Ends an allocation, and gives its bytes back to the device.
    pub(crate) fn release_memory(&mut self, address: u64) -> Result<(), Wrong> {
        let length = self.memory.free(address)?;
        self.counters.allocations_live -= 1;
        self.counters.bytes_live -= Memory::rounded(length);
        Ok(())
    }

    /// Runs the nodes of a graph in some order that its dependencies allow, and gives what all of them touched.
    fn run_graph(&mut self, launch: &Arc<Launch>) -> Result<Vec<Touched>, Failed> {
        let graph = &launch.graph;
        let draws = matches!(self.settings.schedule, Schedule::Random(_));
        // Without a seed, the branch that was captured last goes first: what works in the order of the capture only
        // does not work.
        let order = graph.order(|ready| if draws { self.draw(ready) } else { ready - 1 });
        let mut of_nodes: Vec<Option<Vec<Touched>>> = (0..graph.nodes.len()).map(|_| None).collect();
        let mut all = Vec::new();
        for index in order {
            let node = &graph.nodes[index];
            let result = match &node.work {
                Work::ToDevice { from: Source::Pinned { range, .. }, to } => {
                    let from =
                        Source::Pinned { range: range.clone(), fingerprint: launch.fingerprints[index] };
                    self.run_work(&Work::ToDevice { from, to: *to })
                }
                Work::ToHost { from, to, .. } => {
                    let (to, poisoned) = (to.clone(), launch.poisoned[index]);
                    self.run_work(&Work::ToHost { from: *from, to, poisoned })
                }
                work => self.run_work(work),
            };
            result.map_err(|(code, words)| (code, format!("node {index}, {}: {words}", node.work.says())))?;
            self.counters.graph_nodes += 1;
            let touched = self.memory.take_touched();
            for (other, before) in of_nodes.iter().enumerate() {
                let Some(before) = before else { continue };
                if graph.orders(other, index) || graph.orders(index, other) {
                    continue;
                }
                self.judge_nodes(before, &touched, (&graph.nodes[other].work, &node.work))?;
            }
            union(&mut all, touched.clone());
            of_nodes[index] = Some(touched);
        }
        Ok(all)
    }

    fn judge_nodes(&self, before: &[Touched], now: &[Touched], of: (&Work, &Work)) -> Result<(), Failed> {
        for now in now {
            let Some(before) = before.iter().find(|t| t.slot == now.slot) else { continue };
            let Some((range, first, second)) = conflict((&before.reads, &before.writes), now) else {
                continue;
            };
            let words = format!(
                "race: {} and {} are nodes that the graph does not order, and both touch bytes {range:?} of {}",
                says(&of.0.says(), first),
                says(&of.1.says(), second),
                self.named(now.slot)
            );
            return Err((Code::LAUNCH_FAILED, words));
        }
        Ok(())
    }
}

fn stale(range: &HostRange) -> Failed {
    let words = format!(
        "stale pinned buffer: the host changed the {} bytes at {:#x} between asking for the copy and its end",
        range.len(),
        range.address()
    );
    (Code::LAUNCH_FAILED, words)
}

fn overwritten(range: &HostRange) -> Failed {
    let words = format!(
        "the host wrote to the {} bytes at {:#x} while a copy to them was under way",
        range.len(),
        range.address()
    );
    (Code::LAUNCH_FAILED, words)
}
