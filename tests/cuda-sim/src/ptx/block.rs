//! One block: its threads run alone until they wait, then barriers and warp operations are resolved.

use super::{
    code::{BarrierKind, Code, NONE, Warp},
    error::{Fault, FaultKind},
    launch::{Counts, Machine},
    shared::Shared,
    thread::{Stop, Thread},
    types::keep,
};

/// Instructions that a thread runs before others of its block get their turn, so that a thread may wait
/// in a loop for what another one writes.
const SLICE: u64 = 1 << 16;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    /// Not started; it has no registers yet.
    New,
    Ready,
    Barrier,
    Warp,
    Exited,
}

/// The threads of a block. One object serves all blocks of a launch.
pub(super) struct Block<'a> {
    machine: &'a Machine<'a>,
    states: Vec<State>,
    /// Threads that have started and not exited.
    threads: Vec<Option<Thread>>,
    /// Threads to use again.
    spare: Vec<Thread>,
    /// Threads that have arrived without waiting, per barrier.
    arrived: [u32; 16],
    position: [u32; 3],
}

impl<'a> Block<'a> {
    pub(super) fn new(machine: &'a Machine<'a>) -> Self {
        let threads: u32 = machine.launch.block.iter().product();
        Self {
            machine,
            states: vec![State::New; threads as usize],
            threads: (0..threads).map(|_| None).collect(),
            spare: Vec::new(),
            arrived: [0; 16],
            position: [0; 3],
        }
    }

    /// Runs all threads of the block at `position` to their end.
    pub(super) fn run(
        &mut self,
        position: [u32; 3],
        shared: &mut Shared,
        counts: &mut Counts,
    ) -> Result<(), Box<Fault>> {
        self.position = position;
        self.states.fill(State::New);
        self.arrived = [0; 16];
        shared.start_block();
        loop {
            let mut moved = false;
            for first in (0..self.states.len()).step_by(32) {
                // A warp goes on while its lanes only wait for each other.
                loop {
                    moved |= self.run_warp(first, shared, counts)?;
                    if !self.resolve_warp(first, shared)? {
                        break;
                    }
                }
            }
            moved |= self.resolve_barriers(shared, counts)?;
            if self.states.iter().all(|&s| s == State::Exited) {
                return Ok(());
            }
            if !moved {
                return Err(self.deadlock());
            }
        }
    }

    fn lanes(&self, first: usize) -> std::ops::Range<usize> {
        first..self.states.len().min(first + 32)
    }

    /// Runs the lanes that can run; true when there were any.
    fn run_warp(
        &mut self,
        first: usize,
        shared: &mut Shared,
        counts: &mut Counts,
    ) -> Result<bool, Box<Fault>> {
        let mut ran = false;
        for index in self.lanes(first) {
            match self.states[index] {
                State::New => {
                    let mut thread = self.spare.pop().unwrap_or_default();
                    thread.start(self.machine, index as u32, self.position);
                    self.threads[index] = Some(thread);
                }
                State::Ready => {}
                _ => continue,
            }
            ran = true;
            let Some(thread) = self.threads[index].as_mut() else { continue };
            let left = self.machine.limit.saturating_sub(counts.instructions);
            let stop = thread.run(self.machine, shared, counts, SLICE.min(left));
            match stop {
                Ok(Stop::Exited) => {
                    self.states[index] = State::Exited;
                    self.spare.extend(self.threads[index].take());
                }
                Ok(Stop::Slice) => {
                    self.states[index] = State::Ready;
                    if counts.instructions >= self.machine.limit {
                        return Err(self.fault(index, FaultKind::InstructionLimit(self.machine.limit)));
                    }
                }
                Ok(Stop::Barrier) => self.arrive(index)?,
                Ok(Stop::Warp) => self.states[index] = State::Warp,
                Err(kind) => return Err(self.fault(index, kind)),
            }
        }
        Ok(ran)
    }

    fn fault(&self, index: usize, kind: FaultKind) -> Box<Fault> {
        let mut fault = Box::new(Fault {
            kernel: self.machine.kernel.name.clone(),
            block: self.position,
            thread: [0; 3],
            line: 0,
            instruction: String::new(),
            kind,
        });
        if let Some(thread) = &self.threads[index] {
            let place = self.machine.module.functions[thread.function].places.get(thread.pc).copied();
            let place = place.unwrap_or_default();
            fault.thread = thread.position();
            fault.line = place.line;
            fault.instruction = self.machine.module.instruction(place);
        }
        fault
    }

    fn line(&self, thread: &Thread) -> u32 {
        self.machine.module.functions[thread.function].places.get(thread.pc).map_or(0, |place| place.line)
    }

    /// A thread has come to a barrier.
    fn arrive(&mut self, index: usize) -> Result<(), Box<Fault>> {
        let Some(thread) = self.threads[index].as_mut() else { return Ok(()) };
        let [number, count, ..] = thread.pending;
        let counted = thread.instruction(self.machine).b != NONE;
        let problem = if number > 15 {
            Some(format!("barrier {number}, where there are 16"))
        } else if counted && (count == 0 || count % 32 != 0) {
            Some(format!("a barrier of {count} threads, which is no multiple of a warp"))
        } else {
            None
        };
        self.states[index] = State::Barrier;
        if let Some(problem) = problem {
            return Err(self.fault(index, FaultKind::DivergentBarrier(problem)));
        }
        if thread.barrier(self.machine).is_some_and(|(kind, _)| kind == BarrierKind::Arrive) {
            self.arrived[number as usize] += 1;
            thread.pc += 1;
            self.states[index] = State::Ready;
        }
        Ok(())
    }

    /// Completes barriers at which all are that are waited for; true when there was any.
    fn resolve_barriers(&mut self, shared: &mut Shared, counts: &mut Counts) -> Result<bool, Box<Fault>> {
        let mut any = false;
        for number in 0..16_u64 {
            let waiting: Vec<usize> = (0..self.states.len())
                .filter(|&i| self.states[i] == State::Barrier)
                .filter(|&i| self.threads[i].as_ref().is_some_and(|t| t.pending[0] == number))
                .collect();
            let Some(&first) = waiting.first() else { continue };
            let count = |i: usize| {
                let thread = self.threads[i].as_ref();
                thread.filter(|t| t.instruction(self.machine).b != NONE).map(|t| t.pending[1] as usize)
            };
            let wanted = count(first);
            if let Some(&other) = waiting.iter().find(|&&i| count(i) != wanted) {
                let problem = format!("barrier {number} is waited at for different numbers of threads");
                return Err(self.fault(other, FaultKind::DivergentBarrier(problem)));
            }
            let alive = self.states.iter().filter(|&&s| s != State::Exited).count();
            let here = waiting.len() + self.arrived[number as usize] as usize;
            self.check_aligned(&waiting)?;
            if here < wanted.unwrap_or(alive) {
                continue;
            }
            self.check_converged(&waiting)?;
            self.complete_barrier(&waiting);
            self.arrived[number as usize] = 0;
            shared.barrier();
            counts.barriers += 1;
            any = true;
        }
        Ok(any)
    }

    /// Lanes of one warp must wait at one and the same aligned barrier instruction.
    fn check_aligned(&self, waiting: &[usize]) -> Result<(), Box<Fault>> {
        for pair in waiting.windows(2) {
            let [Some(a), Some(b)] = [&self.threads[pair[0]], &self.threads[pair[1]]] else { continue };
            let aligned = a.barrier(self.machine).is_some_and(|(_, aligned)| aligned);
            if aligned && pair[0] / 32 == pair[1] / 32 && (a.function, a.pc) != (b.function, b.pc) {
                let (this, that) = (self.line(b), self.line(a));
                let problem =
                    format!("lanes of one warp wait at line {this} and (thread {}) at line {that}", pair[0]);
                return Err(self.fault(pair[1], FaultKind::DivergentBarrier(problem)));
            }
        }
        Ok(())
    }

    /// An aligned barrier is reached by all lanes of a warp that live, or by none.
    fn check_converged(&self, waiting: &[usize]) -> Result<(), Box<Fault>> {
        for &index in waiting {
            let Some(thread) = &self.threads[index] else { continue };
            if !thread.barrier(self.machine).is_some_and(|(_, aligned)| aligned) {
                continue;
            }
            let missing = self
                .lanes(index / 32 * 32)
                .find(|i| self.states[*i] != State::Exited && waiting.binary_search(i).is_err());
            if let Some(missing) = missing {
                let problem = format!("thread {missing} of the same warp lives and is not there");
                return Err(self.fault(index, FaultKind::DivergentBarrier(problem)));
            }
        }
        Ok(())
    }

    fn complete_barrier(&mut self, waiting: &[usize]) {
        let yes = |thread: &Thread, machine: &Machine<'_>| {
            let inst = thread.instruction(machine);
            inst.c != NONE && (thread.pending[2] != 0) != (inst.extra != 0)
        };
        let threads = waiting.iter().filter_map(|&i| self.threads[i].as_ref());
        let votes: Vec<bool> = threads.map(|t| yes(t, self.machine)).collect();
        let count = votes.iter().filter(|&&v| v).count() as u64;
        for &index in waiting {
            let Some(thread) = self.threads[index].as_mut() else { continue };
            let result = match thread.barrier(self.machine) {
                Some((BarrierKind::Count, _)) => Some(count),
                Some((BarrierKind::And, _)) => Some(u64::from(count == votes.len() as u64)),
                Some((BarrierKind::Or, _)) => Some(u64::from(count > 0)),
                _ => None,
            };
            let slot = thread.instruction(self.machine).d;
            if let Some(result) = result {
                thread.write(slot, result);
            }
            thread.pc += 1;
            self.states[index] = State::Ready;
        }
    }

    /// Completes the warp operations at which all lanes of their masks are; true when there was any.
    fn resolve_warp(&mut self, first: usize, shared: &mut Shared) -> Result<bool, Box<Fault>> {
        let mut any = false;
        for index in self.lanes(first) {
            if self.states[index] != State::Warp {
                continue;
            }
            let Some(thread) = &self.threads[index] else { continue };
            let (mask, place) = (thread.pending[2] as u32, (thread.function, thread.pc));
            if mask >> (index - first) & 1 == 0 {
                let lane = (index - first) as u32;
                let problem = "is not in its own mask";
                return Err(self.fault(index, FaultKind::Lane { lane, problem }));
            }
            let named = self.lanes(first).filter(|i| mask >> (i - first) & 1 == 1);
            let group: Vec<usize> = named.filter(|&i| self.states[i] != State::Exited).collect();
            let all_here = group.iter().all(|&i| {
                let there = self.threads[i].as_ref().filter(|_| self.states[i] == State::Warp);
                there.is_some_and(|t| (t.function, t.pc) == place && t.pending[2] as u32 == mask)
            });
            if all_here {
                self.complete_warp(first, &group, shared)?;
                any = true;
            }
        }
        Ok(any)
    }

    fn complete_warp(
        &mut self,
        first: usize,
        group: &[usize],
        shared: &mut Shared,
    ) -> Result<(), Box<Fault>> {
        let mut lanes = [None; 32];
        let mut active = 0_u32;
        for &index in group {
            let Some(thread) = &self.threads[index] else { continue };
            lanes[index - first] = Some(thread.pending);
            active |= 1 << (index - first);
        }
        let mut results = [(0, None); 32];
        for &index in group {
            let Some(thread) = &self.threads[index] else { continue };
            let Code::Warp(warp) = thread.instruction(self.machine).code else { continue };
            let lane = (index - first) as u32;
            let result = operate(warp, lane, &lanes, active);
            results[index - first] = result.map_err(|kind| self.fault(index, kind))?;
            if matches!(warp, Warp::Sync) && index == group[0] {
                shared.warp_sync((first / 32) as u32);
            }
        }
        for &index in group {
            let Some(thread) = self.threads[index].as_mut() else { continue };
            let inst = *thread.instruction(self.machine);
            let (value, second) = results[index - first];
            if inst.d != NONE {
                thread.write(inst.d, value);
            }
            if let (Some(second), Ok(slot)) = (second, u16::try_from(inst.extra)) {
                thread.write(slot, u64::from(second));
            }
            thread.pc += 1;
            self.states[index] = State::Ready;
        }
        Ok(())
    }

    /// Nobody can go on: says who waits where.
    fn deadlock(&self) -> Box<Fault> {
        let mut places: Vec<(u32, u64, usize, usize)> = Vec::new();
        for (index, state) in self.states.iter().enumerate() {
            let Some(thread) = self.threads[index].as_ref() else { continue };
            let number = if *state == State::Barrier { thread.pending[0] } else { u64::MAX };
            let line = self.line(thread);
            match places.iter_mut().find(|p| (p.0, p.1) == (line, number)) {
                Some(place) => place.2 += 1,
                None => places.push((line, number, 1, index)),
            }
        }
        let texts: Vec<String> = places
            .iter()
            .map(|&(line, number, threads, first)| match number {
                u64::MAX => format!("{threads} (thread {first} first) wait for other lanes at line {line}"),
                _ => format!("{threads} (thread {first} first) wait at barrier {number} at line {line}"),
            })
            .collect();
        let index = places.first().map_or(0, |p| p.3);
        self.fault(index, FaultKind::Deadlock(format!("of its threads, {}", texts.join("; "))))
    }
}

/// What one lane gets from a warp operation, and its second result. `lanes` has the operands of those
/// that take part.
fn operate(
    warp: Warp,
    lane: u32,
    lanes: &[Option<[u64; 4]>; 32],
    active: u32,
) -> Result<(u64, Option<bool>), FaultKind> {
    let [a, b, _, clamp] = lanes[lane as usize].unwrap_or_default();
    let present = || lanes.iter().flatten();
    let yes = |operands: &[u64; 4]| (operands[0] != 0) != (operands[1] != 0);
    let same = |bits: u8| {
        let equal = |l: &u32| lanes[*l as usize].is_some_and(|o| keep(o[0], bits) == keep(a, bits));
        (0..32).filter(equal).fold(0_u32, |mask, l| mask | 1 << l)
    };
    let shuffle = || {
        let (clamp, segment) = (clamp as u32 & 31, clamp as u32 >> 8 & 31);
        let b = b as u32 & 31;
        let last = lane & segment | clamp & !segment & 31;
        let (from, inside) = match warp {
            Warp::Up => (lane.wrapping_sub(b), i64::from(lane) - i64::from(b) >= i64::from(last)),
            Warp::Down => (lane + b, lane + b <= last),
            Warp::Butterfly => (lane ^ b, lane ^ b <= last),
            _ => {
                let from = lane & segment | b & !segment & 31;
                (from, from <= last)
            }
        };
        let from = if inside { from } else { lane };
        match lanes[from as usize] {
            Some(operands) => Ok((operands[0], Some(inside))),
            None => Err(FaultKind::Lane { lane: from, problem: "is read here and takes no part in it" }),
        }
    };
    Ok(match warp {
        Warp::Sync => (0, None),
        Warp::Up | Warp::Down | Warp::Butterfly | Warp::Index => return shuffle(),
        Warp::Ballot => {
            let ballot = (0..32).filter(|&l: &usize| lanes[l].as_ref().is_some_and(yes));
            (ballot.fold(0, |mask, l| mask | 1 << l), None)
        }
        Warp::Any => (present().any(yes).into(), None),
        Warp::All => (present().all(yes).into(), None),
        Warp::Uniform => ((present().all(yes) || !present().any(yes)).into(), None),
        Warp::MatchAny { bits } => (same(bits).into(), None),
        Warp::MatchAll { bits } => {
            let all = same(bits) == active;
            (if all { active.into() } else { 0 }, Some(all))
        }
        Warp::Reduce(f) => (present().map(|o| o[0]).reduce(f).unwrap_or(0), None),
    })
}
