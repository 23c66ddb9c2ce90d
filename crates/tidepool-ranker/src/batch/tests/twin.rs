//! What a GPU does with a batch of stored rows, done on the CPU: vectors are pooled here, row by row and with nothing of
//! tidepool-kernels, the graph is run on them, and candidates are selected by the contract's own functions.

use std::ops::Range;

use tidepool_client::{Holding, UniqueRow};
use tidepool_dense::{
    CudaError,
    rows::RowsError,
    select::{Selected, select},
};
use tidepool_types::{Combine, ModelSpec};

use super::*;
use crate::counters::SCORES_COUNTED;

/// What a row of a table is: `None`, it has none.
pub(super) type RowOf = fn(&TableVersion, u64) -> Option<[f32; 2]>;

/// The rows of one table whose ids can be divided by three.
#[derive(Debug)]
pub(super) struct Thirds {
    pub(super) table: TableVersion,
    pub(super) row_of: RowOf,
}

impl Held for Thirds {
    fn hold(&self, table: &TableVersion, ids: &[u64], into: &mut Vec<Holding>) -> bool {
        let of = |id: &u64| match (self.row_of)(table, *id) {
            _ if !id.is_multiple_of(3) => Holding::Ask,
            Some(_) => Holding::Held,
            None => Holding::Missing,
        };
        let is_held = *table == self.table;
        if is_held {
            into.extend(ids.iter().map(of));
        }
        is_held
    }
}

/// A scorer that takes stored rows of two f32.
#[derive(Debug)]
pub(super) struct Twin {
    pub(super) graph: Arc<dyn Scorer>,
    pub(super) spec: ModelSpec,
    pub(super) inputs: Vec<BatchInput>,
    pub(super) limits: RowLimits,
    /// More ids are too many.
    pub(super) room: AtomicUsize,
    pub(super) held: Option<Thirds>,
    /// How the device fails, if it does, and how often it was tried.
    pub(super) fails: Mutex<Option<CudaError>>,
    pub(super) tried: AtomicUsize,
    /// Candidates of each request, by batch.
    pub(super) ran: Mutex<Vec<Vec<u32>>>,
}

impl Twin {
    pub(super) fn new(graph: Arc<dyn Scorer>, spec: ModelSpec, inputs: Vec<BatchInput>) -> Self {
        let limits = RowLimits { rows: 1 << 20, requests: 1 << 10, ids: Vec::new(), id_bytes: 8 };
        let room = AtomicUsize::new(usize::MAX);
        let (fails, tried, ran) = (Mutex::default(), AtomicUsize::new(0), Mutex::default());
        Self { graph, spec, inputs, limits, room, held: None, fails, tried, ran }
    }

    /// The vector of a bag, and of a mean that of its divisor.
    fn vector(&self, bags: &RowBags<'_>, ids: Range<usize>, mean: bool) -> Vec<f32> {
        let table = &bags.rows.table;
        let concat = table.schema.composite.as_ref().is_some_and(|of| of.combine == Combine::Concat);
        let (hashes, len) = (bags.rows.hashes as usize, ids.len());
        let members = bags.rows.members_of(ids.clone());
        let row = |id: usize, hash: usize| {
            let at = members[if bags.rows.by_hash { hash * len + id } else { id * hashes + hash }] as usize;
            match table.row(at) {
                UniqueRow::Stored(row) => {
                    let of = &table.schema.table_version;
                    let is_held = self.held.as_ref().is_some_and(|held| held.table == *of);
                    assert!(!is_held || !table.ids[at].is_multiple_of(3), "it was held, and asked for");
                    let (values, rest) = row.as_chunks::<4>();
                    assert!(rest.is_empty());
                    Some([f32::from_le_bytes(values[0]), f32::from_le_bytes(values[1])])
                }
                UniqueRow::Held => {
                    let held = self.held.as_ref().expect("nothing is held");
                    assert_eq!(held.table, table.schema.table_version);
                    (held.row_of)(&held.table, table.ids[at])
                }
                UniqueRow::Missing | UniqueRow::Unavailable => None,
            }
        };
        let weight = |id: usize| bags.weights.map(|weights| weights[ids.start + id]);
        let mut vector = vec![0.0f32; 2 * if concat { hashes } else { 1 }];
        let (mut found, mut divisor) = (0, 0.0f32);
        for id in 0..len {
            let rows: Vec<_> = (0..hashes).map(|hash| row(id, hash)).collect();
            if rows.iter().all(Option::is_some) {
                found += 1;
                divisor += weight(id).unwrap_or(1.0);
            }
            for (hash, row) in rows.iter().enumerate() {
                let part = if concat { 2 * hash } else { 0 };
                for (sum, value) in vector[part..part + 2].iter_mut().zip(row.iter().flatten()) {
                    *sum = weight(id).map_or(*sum + value, |weight| weight.mul_add(*value, *sum));
                }
            }
        }
        if mean && found > 0 {
            vector.iter_mut().for_each(|value| *value /= divisor);
        }
        if found == 0 || (hashes > 1 && found < len) || vector.iter().any(|value| !value.is_finite()) {
            let default = &table.schema.default_row;
            vector = if default.is_empty() { vec![0.0; vector.len()] } else { default.clone() };
        }
        vector
    }
}

impl Scorer for Twin {
    fn run(&self, _: &DenseBatch<'_>) -> Result<Vec<Vec<f32>>, DenseError> {
        panic!("a scorer that takes rows is never run on vectors")
    }

    fn by_rows(&self) -> Option<&dyn RowScorer> {
        Some(self)
    }
}

impl RowScorer for Twin {
    fn held(&self) -> Option<&dyn Held> {
        self.held.as_ref().map(|held| held as &dyn Held)
    }

    fn limits(&self) -> RowLimits {
        self.limits.clone()
    }

    fn select(&self, batch: &RowBatch<'_>) -> Result<Vec<Selected>, DenseError> {
        let ids: usize = batch.bags.iter().flatten().flat_map(|bags| &bags.ids).map(Range::len).sum();
        let room = self.room.load(Ordering::SeqCst);
        if ids > room {
            let room = u32::try_from(room).unwrap();
            return Err(RowsError::TooMany { what: "input 0".into(), of: "ids", room }.into());
        }
        for (at, bags) in batch.bags.iter().enumerate() {
            let ids: usize = bags.iter().flat_map(|bags| &bags.ids).map(Range::len).sum();
            let room = self.limits.ids.get(at).copied().unwrap_or(u64::MAX);
            assert!(ids as u64 <= room, "{ids} ids of input {at}, there is room for {room}");
        }
        if let Some(error) = self.fails.lock().unwrap().clone() {
            self.tried.fetch_add(1, Ordering::SeqCst);
            return Err(error.into());
        }
        let (mut inputs, mut masks) = (Vec::new(), Vec::new());
        assert_eq!((batch.bags.len(), batch.requests.len()), (self.inputs.len(), batch.dense.requests));
        for (at, (input, bags)) in self.inputs.iter().zip(batch.bags).enumerate() {
            let Some(bags) = bags else {
                inputs.push(batch.dense.inputs[at].to_vec());
                continue;
            };
            assert!(batch.dense.inputs[at].is_empty(), "{} is made of rows", input.name);
            let count = if input.side == Side::User { batch.dense.requests } else { batch.dense.rows };
            assert_eq!(bags.ids.len(), count, "bags of {}", input.name);
            let mut values = Vec::new();
            for ids in bags.ids.iter().cloned() {
                match input.from {
                    InputFrom::Bags(_, pooling) => {
                        values.extend(self.vector(bags, ids, pooling == Pooling::Mean));
                    }
                    InputFrom::Sequence { max_len, .. } => {
                        assert!(ids.len() <= max_len);
                        let end = values.len() + input.width;
                        masks.extend((0..max_len).map(|place| if place < ids.len() { 1.0 } else { 0.0 }));
                        ids.for_each(|id| values.extend(self.vector(bags, id..id + 1, false)));
                        values.resize(end, 0.0);
                    }
                    InputFrom::Request => unreachable!("numbers are no bags"),
                }
            }
            inputs.push(values);
        }
        let with_mask = |input: &&BatchInput| matches!(input.from, InputFrom::Sequence { mask: true, .. });
        assert_eq!(batch.dense.inputs.len(), inputs.len() + self.inputs.iter().filter(with_mask).count());
        // The tests' models have one sequence at most.
        inputs.push(masks);
        let slices: Vec<&[f32]> = inputs.iter().map(Vec::as_slice).collect();
        let outputs = self.graph.run(&DenseBatch { inputs: &slices, ..batch.dense })?;
        self.ran.lock().unwrap().push(batch.requests.iter().map(|request| request.rows).collect());
        let mut first = 0;
        let of = |request: &tidepool_dense::select::SelectRequest<'_>| {
            let rows = first..first + request.rows as usize;
            first = rows.end;
            let own: Vec<_> = outputs.iter().map(|output| output[rows.clone()].to_vec()).collect();
            select(&self.spec, request, &own, u32::try_from(SCORES_COUNTED).unwrap())
        };
        Ok(batch.requests.iter().map(of).collect())
    }
}
