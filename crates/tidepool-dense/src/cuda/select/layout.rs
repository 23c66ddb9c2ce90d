//! What the device is told of the requests of a batch, and where in the staging buffer.
//!
//! ```text
//! head        u32 requests, rows, chosen outputs, winners of all requests
//! starts      u32 [requests + 1]: where the rows of each begin
//! winners     u32 [requests + 1]: where its winners begin
//! columns     u32 [chosen]: which outputs are returned
//! curves      u32 [requests, formula's outputs + room for chosen ones]: which curve, from 1; 0: none
//! users       f32 [numbers of the user side, room for requests]
//! candidates  f32 [numbers of the candidates' side, room for rows]
//! ```
//! Every array begins at a multiple of 256 bytes and has room for the bucket.

use std::collections::BTreeMap;

use tidepool_types::{ModelSpec, Side};

use super::{SelectError, source::formula_outputs};

/// What arrays are aligned to.
const ALIGN: usize = 256;

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

/// Where the arrays of one bucket are, in bytes.
#[derive(Clone, Debug)]
pub struct SelectLayout {
    selection: Selection,
    room: SelectRoom,
    pub(crate) starts: usize,
    pub(crate) winners: usize,
    pub(crate) columns: usize,
    pub(crate) curves: usize,
    pub(crate) users: usize,
    pub(crate) candidates: usize,
    bytes: usize,
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
        let mut bytes = 0usize;
        let mut push = |words: usize| {
            let at = bytes;
            bytes += (4 * words).next_multiple_of(ALIGN);
            at
        };
        let (rows, requests) = (room.rows as usize, room.requests as usize);
        let outputs = selection.spec.outputs.len();
        push(4);
        let (starts, winners) = (push(requests + 1), push(requests + 1));
        let columns = push(outputs);
        let curves = push(requests * (selection.formula.len() + outputs));
        let users = push(requests * selection.numbers(Side::User));
        let candidates = push(rows * selection.numbers(Side::Candidate));
        Ok(Self { selection, room, starts, winners, columns, curves, users, candidates, bytes })
    }

    /// Bytes of the region, a multiple of 256.
    #[must_use]
    pub fn bytes(&self) -> usize {
        self.bytes
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

    /// Writes the requests of a batch into the region of the staging buffer.
    ///
    /// # Errors
    /// [`SelectError::TooMany`], or [`SelectError::Wanted`] when an output is not the contract's.
    pub fn write(&self, staging: &mut [u8], requests: &[SelectRequest<'_>]) -> Result<Wanted, SelectError> {
        if staging.len() != self.bytes {
            let problem =
                format!("a staging buffer of {} bytes, the layout needs {}", staging.len(), self.bytes);
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
        let mut put = |at: usize, bits: u32| staging[at..at + 4].copy_from_slice(&bits.to_le_bytes());
        let head = [requests.len(), rows, wanted.columns.len(), wanted.winners() as usize];
        head.iter().enumerate().for_each(|(at, number)| put(4 * at, as_u32(*number)));
        for (at, counts) in [(self.starts, &wanted.rows), (self.winners, &wanted.winners)] {
            let mut sum = 0;
            put(at, 0);
            for (number, count) in counts.iter().enumerate() {
                sum += count;
                put(at + 4 * (number + 1), sum);
            }
        }
        for (at, output) in wanted.columns.iter().enumerate() {
            put(self.columns + 4 * at, as_u32(*output));
        }
        let formula = &self.selection.formula;
        let columns = formula.len() + self.chosen_room();
        let mut first = 0;
        for (number, request) in requests.iter().enumerate() {
            for (column, output) in formula.iter().chain(&wanted.columns).enumerate() {
                let curve = self.selection.curve(*output, request.surface);
                put(self.curves + 4 * (number * columns + column), curve);
            }
            let (mut users, mut candidates) = (0, 0);
            for (input, spec) in self.selection.spec.utility_inputs.iter().enumerate() {
                let given = request.utility_inputs.get(input).map_or(&[][..], Vec::as_slice);
                let value = |at: usize| given.get(at).copied().unwrap_or(f32::NAN).to_bits();
                match spec.side {
                    Side::User => {
                        put(self.users + 4 * (users * self.room.requests as usize + number), value(0));
                        users += 1;
                    }
                    Side::Candidate => {
                        let at = self.candidates + 4 * (candidates * self.room.rows as usize + first);
                        (0..request.rows as usize).for_each(|row| put(at + 4 * row, value(row)));
                        candidates += 1;
                    }
                }
            }
            first += request.rows as usize;
        }
        Ok(wanted)
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
