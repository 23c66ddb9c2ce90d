//! The static plan: what a graph computes, as a list of steps over one arena. Everything that the graph fixes is done
//! when it is loaded: shapes and strides are known, weights are packed, buffers have their places.
//!
//! Read first: [`view`] (where a value lies), [`step`] (what is done), `lower` (how a graph becomes steps), `run`.

mod arena;
mod axes;
mod chain;
mod cost;
mod lower;
mod ops;
mod product;
mod run;
pub(crate) mod step;
mod sums;
pub(crate) mod view;

use std::{
    fmt,
    sync::{Mutex, PoisonError},
};

use arena::Extent;
pub(crate) use lower::lower;
use run::Arena;
pub(crate) use run::Inputs;
use step::{Start, Step, Work};
use view::{Buffer, Space, View};

use crate::cpu::Cpu;

/// What the steps of a block may make: three quarters of a second level cache of 1 MiB.
const BLOCK_BYTES: usize = 768 << 10;
/// The fewest rows of a block, if there are so many: with fewer, the weights come through the cache so often that
/// memory and not arithmetic is the limit.
const MIN_BLOCK: usize = 48;
/// The most: more do not make products faster.
const MAX_BLOCK: usize = 512;
/// Arenas that a plan keeps between runs; further ones are made and let go.
const MAX_ARENAS: usize = 64;
/// The largest arena that is kept: 64 MiB.
const MAX_KEPT_ELEMENTS: usize = 16 << 20;

/// An operator, or a form of one, that the plan does not cover.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Uncovered {
    /// The node, as the file names it or as simplifying the graph named it after one of the file's.
    pub(crate) node: String,
    /// Its operator.
    pub(crate) op: String,
    /// What is not covered.
    pub(crate) problem: String,
}

/// A graph, ready to run.
pub(crate) struct Plan {
    cpu: Cpu,
    pub(crate) constants: Vec<f32>,
    pub(crate) buffers: Vec<Buffer>,
    pub(crate) request_steps: Vec<Step>,
    pub(crate) row_steps: Vec<Step>,
    extent: Extent,
    pub(crate) outputs: Vec<View>,
    /// Records of a block of requests, and of rows.
    blocks: [usize; 2],
    longest_line: usize,
    arenas: Mutex<Vec<Arena>>,
}

impl fmt::Debug for Plan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Plan")
            .field("request_steps", &self.request_steps.len())
            .field("row_steps", &self.row_steps.len())
            .field("extent", &self.extent)
            .field("blocks", &self.blocks)
            .finish_non_exhaustive()
    }
}

impl Plan {
    /// Assigns places, and chooses the size of a block.
    fn new(
        constants: Vec<f32>,
        mut buffers: Vec<Buffer>,
        (request_steps, row_steps): (Vec<Step>, Vec<Step>),
        outputs: Vec<View>,
    ) -> Self {
        let last: Vec<_> = outputs.iter().map(|view| view.buffer).collect();
        let extent = arena::assign(&mut buffers, &request_steps, &row_steps, &last);
        let blocks = [Space::Request, Space::Row].map(|space| {
            let width = extent.scratch(space).max(1);
            let fits = (BLOCK_BYTES / size_of::<f32>() / width).clamp(MIN_BLOCK, MAX_BLOCK);
            fits.min(MAX_KEPT_ELEMENTS / width).max(1)
        });
        let line =
            |step: &Step| if let Work::Line { elements, .. } = &step.work { elements.len() } else { 0 };
        let longest_line = request_steps.iter().chain(&row_steps).map(line).max().unwrap_or(0);
        let arenas = Mutex::new(Vec::new());
        let cpu = Cpu::detect();
        Self {
            cpu,
            constants,
            buffers,
            request_steps,
            row_steps,
            extent,
            outputs,
            blocks,
            longest_line,
            arenas,
        }
    }

    /// Elements that a request and a row take at most.
    fn per_record(&self) -> usize {
        self.extent.requests.max(self.extent.rows).max(self.extent.kept)
    }

    /// Runs the plan for inputs that the caller has judged, and gives `[rows]` for each output.
    pub(crate) fn run(&self, inputs: Inputs<'_>) -> Vec<Vec<f32>> {
        let kept = self.arenas.lock().unwrap_or_else(PoisonError::into_inner).pop();
        let mut arena = kept.unwrap_or_else(|| Arena::new(self.longest_line));
        let mut outputs = vec![vec![0.0; inputs.rows]; self.outputs.len()];
        self.execute(inputs, &mut arena, &mut outputs);
        if arena.capacity() <= MAX_KEPT_ELEMENTS {
            let mut arenas = self.arenas.lock().unwrap_or_else(PoisonError::into_inner);
            if arenas.len() < MAX_ARENAS {
                arenas.push(arena);
            }
        }
        outputs
    }

    /// The steps in words, for those who want to know what became of a graph.
    pub(crate) fn describe(&self) -> Vec<String> {
        let line = |space: &str, step: &Step| {
            let width = self.buffers[step.out].width;
            let what = match &step.work {
                Work::Map { instructions, .. } => format!("map of {} instructions", instructions.len()),
                Work::Product(product) => {
                    let bytes: usize = product.weights.iter().map(crate::cpu::Packed::bytes).sum();
                    let shape = product.weights.first().map_or((0, 0), |w| (w.depth(), w.columns()));
                    let calls = product.calls.len();
                    let start = match product.start {
                        Start::Zero => "",
                        Start::Bias(_) => ", from a bias",
                        Start::Buffer(_) => ", from its request's",
                        Start::Here => ", added to it",
                    };
                    let relu = if product.relu { ", ReLU" } else { "" };
                    let (k, n) = shape;
                    format!("product, {calls} x [{k}, {n}]{start}{relu}, {bytes} bytes of weights")
                }
                Work::Pair { shape, places, .. } => {
                    format!("pair, {} x [{}, {}, {}]", places.len(), shape.m, shape.k, shape.n)
                }
                Work::Line { op, starts, elements, .. } => {
                    format!("{op:?} of {} x {}", starts.len(), elements.len())
                }
                Work::Pick { elements, .. } => format!("pick of {}", elements.len()),
            };
            format!("{space} {}: {what} -> {width}", step.node)
        };
        let requests = self.request_steps.iter().map(|step| line("request", step));
        requests.chain(self.row_steps.iter().map(|step| line("row", step))).collect()
    }
}
