//! What the device is told of the requests of a batch, and where in the staging buffer.
//!
//! ```text
//! head        u32 requests, rows, chosen outputs, winners of all requests, then the places of the six arrays, u32 0, 0
//! starts      u32 [requests + 1]: where the rows of each begin
//! winners     u32 [requests + 1]: where its winners begin
//! columns     u32 [chosen]: which outputs are returned
//! curves      u32 [requests, formula's outputs + chosen ones]: which curve, from 1; 0: none
//! users       f32 [numbers of the user side, requests]
//! candidates  f32 [numbers of the candidates' side, rows]
//! ```
//! The head stays where it is. The arrays are as long as the batch, and their places are counted from the beginning of the
//! staging buffer, in units of 16 bytes (`packing.rs`).

use std::collections::BTreeMap;

use tidepool_types::{ModelSpec, Side};

use super::{SelectError, source::formula_outputs};
use crate::cuda::packing::{Packing, units};

/// Bytes of the head.
const HEAD_BYTES: usize = 48;

/// What is fixed when a model is loaded: which curve belongs to which output and surface, and what the formula needs.
#[derive(Clone, Debug)]
pub struct Selection {
    spec: ModelSpec,
    formula: Vec<usize>,
    /// By output and surface: the number of the curve, from 1, in the order of the contract.
    curves: BTreeMap<(usize, String), u32>,
}

/// Room of a bucket.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SelectRoom {
    /// Rows.
    pub rows: u32,
    /// Requests.
    pub requests: u32,
    /// Values of each request that are returned whatever they are, for the release's guards.
    pub samples: u32,
}

/// One request of a batch; its rows stand behind those of the request before it.
#[derive(Clone, Copy, Debug)]
pub struct SelectRequest<'a> {
    /// How many rows it has.
    pub rows: u32,
    /// Where the candidates are to be shown; empty: nowhere in particular.
    pub surface: &'a str,
    /// The outputs that are returned beside the value, by their places in the contract.
    pub outputs: &'a [usize],
    /// In the contract's order: one number of the user side, or one per row. What is missing is no number.
    pub utility_inputs: &'a [Vec<f32>],
    /// How many of the best are returned; 0: all.
    pub top_k: u32,
}

/// What was written of a batch: with it the answer is read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Wanted {
    pub(crate) rows: Vec<u32>,
    pub(crate) winners: Vec<u32>,
    /// The outputs that are returned, each once.
    pub(crate) columns: Vec<usize>,
    /// Of each request: its outputs, as places among `columns`.
    pub(crate) chosen: Vec<Vec<usize>>,
}

impl Wanted {
    /// Candidates that are returned, of all requests.
    #[must_use]
    pub fn winners(&self) -> u32 {
        self.winners.iter().sum()
    }
}

/// What a selection of one bucket may have.
#[derive(Clone, Debug)]
pub struct SelectLayout {
    selection: Selection,
    room: SelectRoom,
}

/// Where the arrays of a batch are, in bytes from the beginning of the staging buffer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Places {
    pub(crate) starts: usize,
    pub(crate) winners: usize,
    pub(crate) columns: usize,
    pub(crate) curves: usize,
    pub(crate) users: usize,
    pub(crate) candidates: usize,
    /// Behind the last of them.
    pub(crate) end: usize,
}

impl Selection {
    /// Of a model's contract.
    #[must_use]
    pub fn new(spec: &ModelSpec) -> Self {
        let numbered = (1u32..).zip(&spec.calibrations);
        let curves = numbered.map(|(number, of)| ((of.output, of.surface.clone()), number)).collect();
        Self { spec: spec.clone(), formula: formula_outputs(spec), curves }
    }

    /// The contract.
    #[must_use]
    pub fn spec(&self) -> &ModelSpec {
        &self.spec
    }

    /// The outputs of the formula.
    pub(crate) fn formula(&self) -> &[usize] {
        &self.formula
    }

    /// The number of the curve of an output on a surface: its own, or that of every other surface; 0: none.
    fn curve(&self, output: usize, surface: &str) -> u32 {
        let of = |surface: &str| self.curves.get(&(output, surface.to_owned())).copied();
        of(surface).or_else(|| of("")).unwrap_or(0)
    }

    fn numbers(&self, side: Side) -> usize {
        self.spec.utility_inputs.iter().filter(|input| input.side == side).count()
    }
}

impl SelectLayout {
    /// A layout for a bucket.
    ///
    /// # Errors
    /// [`SelectError::Wanted`] when rows and requests together are more than a key of the sort can hold.
    pub fn new(selection: Selection, room: SelectRoom) -> Result<Self, SelectError> {
        let bits = |count: u32| u32::BITS - count.saturating_sub(1).leading_zeros();
        if bits(room.rows) + bits(room.requests) > 32 || room.rows == 0 || room.requests == 0 {
            let SelectRoom { rows, requests, .. } = room;
            let problem = format!(
                "{rows} rows of {requests} requests: 1 of each or more, their bits 32 together at most"
            );
            return Err(SelectError::Wanted(problem));
        }
        Ok(Self { selection, room })
    }

    /// Bytes of head and arrays of a batch that has all that there is room for.
    #[must_use]
    pub fn bytes(&self) -> usize {
        self.most(self.head())
    }

    /// Bytes of the head.
    pub(crate) fn head(&self) -> usize {
        HEAD_BYTES
    }

    /// The end of the arrays of a batch that has all that there is room for, when they begin at `first`.
    pub(crate) fn most(&self, first: usize) -> usize {
        let SelectRoom { rows, requests, .. } = self.room;
        self.places(requests as usize, rows as usize, self.chosen_room(), first).end
    }

    /// Where the arrays of a batch are, when they begin at `first`.
    pub(crate) fn places(&self, requests: usize, rows: usize, chosen: usize, first: usize) -> Places {
        let mut packing = Packing::new(first);
        let mut push = |words: usize| packing.push(words, 4);
        let (starts, winners, columns) = (push(requests + 1), push(requests + 1), push(chosen));
        let curves = push(requests * (self.selection.formula.len() + chosen));
        let users = push(requests * self.selection.numbers(Side::User));
        let candidates = push(rows * self.selection.numbers(Side::Candidate));
        Places { starts, winners, columns, curves, users, candidates, end: packing.end() }
    }

    /// The room.
    #[must_use]
    pub fn room(&self) -> SelectRoom {
        self.room
    }

    /// The contract.
    #[must_use]
    pub fn selection(&self) -> &Selection {
        &self.selection
    }

    /// Bits of a row's number in a key.
    pub(crate) fn row_bits(&self) -> u32 {
        u32::BITS - self.room.rows.saturating_sub(1).leading_zeros()
    }

    /// The most outputs that are returned.
    pub(crate) fn chosen_room(&self) -> usize {
        self.selection.spec.outputs.len()
    }

    /// The most bytes of an answer.
    #[must_use]
    pub fn answer_room(&self) -> usize {
        let (rows, requests) = (self.room.rows as usize, self.room.requests as usize);
        self.bytes_of(requests, rows, self.chosen_room())
    }

    /// Bytes of the answer to a batch: what is copied back.
    #[must_use]
    pub fn answer_bytes(&self, wanted: &Wanted) -> usize {
        self.bytes_of(wanted.rows.len(), wanted.winners() as usize, wanted.columns.len())
    }

    fn bytes_of(&self, requests: usize, winners: usize, chosen: usize) -> usize {
        let bad = 8 * requests * (self.selection.formula.len() + chosen + 1);
        8 + bad + 4 * requests * self.room.samples as usize + 4 * winners * (2 + chosen)
    }

    /// Writes the requests of a batch into the staging buffer: the head, and the arrays, where the two say. Also gives the byte
    /// behind the arrays.
    ///
    /// # Errors
    /// [`SelectError::TooMany`], or [`SelectError::Wanted`] when an output is not the contract's.
    pub(crate) fn write(
        &self,
        staging: &mut [u8],
        [head, first]: [usize; 2],
        requests: &[SelectRequest<'_>],
    ) -> Result<(Wanted, usize), SelectError> {
        if staging.len() < self.most(first) {
            let (found, needed) = (staging.len(), self.most(first));
            let problem = format!("a staging buffer of {found} bytes, the layout needs {needed}");
            return Err(SelectError::Wanted(problem));
        }
        let rows: usize = requests.iter().map(|request| request.rows as usize).sum();
        let fits = |of, found, room: u32| match found <= room as usize {
            true => Ok(()),
            false => Err(SelectError::TooMany { of, found, room: room as usize }),
        };
        fits("requests", requests.len(), self.room.requests)?;
        fits("rows", rows, self.room.rows)?;
        let wanted = self.wanted(requests)?;
        let places = self.places(requests.len(), rows, wanted.columns.len(), first);
        let Places { starts, winners, columns, curves, users, candidates, end } = places;
        let mut put = |at: usize, bits: u32| staging[at..at + 4].copy_from_slice(&bits.to_le_bytes());
        let numbers = [requests.len(), rows, wanted.columns.len(), wanted.winners() as usize].map(as_u32);
        let arrays = [starts, winners, columns, curves, users, candidates].map(units);
        let words = numbers.iter().chain(&arrays).chain(&[0; 2]);
        words.enumerate().for_each(|(at, word)| put(head + 4 * at, *word));
        for (at, counts) in [(starts, &wanted.rows), (winners, &wanted.winners)] {
            let mut sum = 0;
            put(at, 0);
            for (number, count) in counts.iter().enumerate() {
                sum += count;
                put(at + 4 * (number + 1), sum);
            }
        }
        for (at, output) in wanted.columns.iter().enumerate() {
            put(columns + 4 * at, as_u32(*output));
        }
        let formula = &self.selection.formula;
        let watched = formula.len() + wanted.columns.len();
        let mut row_of = 0;
        for (number, request) in requests.iter().enumerate() {
            for (column, output) in formula.iter().chain(&wanted.columns).enumerate() {
                let curve = self.selection.curve(*output, request.surface);
                put(curves + 4 * (number * watched + column), curve);
            }
            let (mut of_user, mut of_candidate) = (0, 0);
            for (input, spec) in self.selection.spec.utility_inputs.iter().enumerate() {
                let given = request.utility_inputs.get(input).map_or(&[][..], Vec::as_slice);
                let value = |at: usize| given.get(at).copied().unwrap_or(f32::NAN).to_bits();
                match spec.side {
                    Side::User => {
                        put(users + 4 * (of_user * requests.len() + number), value(0));
                        of_user += 1;
                    }
                    Side::Candidate => {
                        let at = candidates + 4 * (of_candidate * rows + row_of);
                        (0..request.rows as usize).for_each(|row| put(at + 4 * row, value(row)));
                        of_candidate += 1;
                    }
                }
            }
            row_of += request.rows as usize;
        }
        Ok((wanted, end))
    }

    fn wanted(&self, requests: &[SelectRequest<'_>]) -> Result<Wanted, SelectError> {
        let mut wanted =
            Wanted { rows: Vec::new(), winners: Vec::new(), columns: Vec::new(), chosen: Vec::new() };
        for request in requests {
            wanted.rows.push(request.rows);
            wanted.winners.push(match request.top_k {
                0 => request.rows,
                k => k.min(request.rows),
            });
            let mut chosen = Vec::with_capacity(request.outputs.len());
            for output in request.outputs {
                if *output >= self.chosen_room() {
                    let problem = format!("output {output} is wanted, the model has {}", self.chosen_room());
                    return Err(SelectError::Wanted(problem));
                }
                let known = wanted.columns.iter().position(|known| known == output);
                chosen.push(known.unwrap_or_else(|| {
                    wanted.columns.push(*output);
                    wanted.columns.len() - 1
                }));
            }
            wanted.chosen.push(chosen);
        }
        Ok(wanted)
    }
}

fn as_u32(count: usize) -> u32 {
    u32::try_from(count).unwrap_or(u32::MAX)
}
