//! A thread's share of a pass: ids nobody asked for before, their rows' places, and room for the answers.

use std::{hint::black_box, sync::Barrier, thread};

use tidepool_table::{Bags, LayoutView, LookupScratch, NotHeld, PartitionRows, Pooled};
use tidepool_types::Keying;

use super::limit;
use crate::{
    Oracle,
    draw::{Draw, Random},
    rows::id_of,
};

/// What a worker's pass is made of.
#[derive(Clone, Copy, Debug)]
pub(super) struct PassShape {
    /// Ids of a bag.
    pub(super) bag: usize,
    /// Bags of a batch, which is one call.
    pub(super) bags: usize,
    /// Batches of a pass.
    pub(super) batches: usize,
}

/// One thread's ids and answers.
pub(super) struct Worker<'a> {
    view: &'a LayoutView,
    draw: &'a Draw,
    random: Random,
    shape: PassShape,
    ids: Vec<[u8; 8]>,
    /// Where the rows of `ids` are, with their key checks.
    rows: Vec<&'a [u8]>,
    /// The bags of each batch.
    members: Vec<[u8; 4]>,
    lengths: Vec<[u8; 4]>,
    weights: Option<Vec<[u8; 4]>>,
    scratch: LookupScratch,
    out: Pooled,
    /// The batch whose answers are kept, and these.
    checked: usize,
    kept: Pooled,
}

impl<'a> Worker<'a> {
    pub(super) fn new(
        view: &'a LayoutView,
        draw: &'a Draw,
        shape: PassShape,
        weighted: bool,
        seed: u64,
    ) -> Self {
        let batch_ids = shape.bag * shape.bags;
        Self {
            view,
            draw,
            random: Random::new(seed),
            shape,
            ids: Vec::with_capacity(batch_ids * shape.batches),
            rows: Vec::with_capacity(batch_ids * shape.batches),
            members: (0..batch_ids as u32).map(u32::to_le_bytes).collect(),
            lengths: vec![(shape.bag as u32).to_le_bytes(); shape.bags],
            weights: weighted.then(|| vec![[0; 4]; batch_ids]),
            scratch: LookupScratch::default(),
            out: Pooled::default(),
            checked: 0,
            kept: Pooled::default(),
        }
    }

    /// Ids of a pass.
    pub(super) fn ids(&self) -> usize {
        self.shape.bag * self.shape.bags * self.shape.batches
    }

    /// Draws the ids of the next pass and finds their rows, without reading these.
    pub(super) fn prepare(&mut self) {
        let schema = self.view.schema();
        self.ids.clear();
        self.rows.clear();
        for _ in 0..self.ids() {
            let id = id_of(schema.keying, self.draw.row(&mut self.random));
            self.ids.push(id.to_le_bytes());
            let at = schema.keying.locate(id, schema.partitions);
            let row = self.view.partition(at.partition).map(|file| match schema.keying {
                Keying::Dense => file.row(at.key),
                Keying::Hashed => file.seek(file.probe(at.key)),
            });
            self.rows.push(row.unwrap_or_default());
        }
        for weight in self.weights.iter_mut().flatten() {
            *weight = ((self.random.unit() * 4.0 - 1.0) as f32).to_le_bytes();
        }
        self.checked = self.random.next() as usize % self.shape.batches;
    }

    /// Pools the pass, batch by batch.
    pub(super) fn pool(&mut self) -> Result<(), NotHeld> {
        let (members, weights) = (Some(&self.members[..]), self.weights.as_deref());
        let bags = Bags { members, lengths: &self.lengths, weights };
        for (at, batch) in self.ids.chunks_exact(self.members.len()).enumerate() {
            let out = if at == self.checked { &mut self.kept } else { &mut self.out };
            self.view.pool(batch, bags, &mut self.scratch, out)?;
            black_box(&*out);
        }
        Ok(())
    }

    /// Touches the rows of the pass.
    pub(super) fn touch(&self, distance: usize) {
        black_box(limit::touch(&self.rows, distance));
    }

    /// Answers of the pass that were looked at, and those of them that were wrong.
    pub(super) fn check(&self, oracle: &mut Oracle) -> (u64, u64) {
        let batch = self.members.len();
        let ids = &self.ids[self.checked * batch..][..batch];
        wrong_answers(ids, self.shape.bag, self.weights.as_deref(), &self.kept, oracle)
    }
}

/// Of how many bags of `ids` the answers in `pooled` were looked at, and how many were wrong: the sum, the
/// number of rows found, or the sum of weights.
pub(super) fn wrong_answers(
    ids: &[[u8; 8]],
    bag: usize,
    weights: Option<&[[u8; 4]]>,
    pooled: &Pooled,
    oracle: &mut Oracle,
) -> (u64, u64) {
    let dim = pooled.sums.len() / 4 / (ids.len() / bag);
    let sums: Vec<f32> = pooled.sums.as_chunks().0.iter().map(|sum| f32::from_le_bytes(*sum)).collect();
    let counts = pooled.counts.as_chunks::<4>().0;
    let mut wrong = 0;
    for (at, ids) in ids.chunks_exact(bag).enumerate() {
        let weights = weights.map(|weights| &weights[at * bag..][..bag]);
        let weight = |place: usize| weights.map_or(1.0, |weights| f32::from_le_bytes(weights[place]));
        let members = ids.iter().enumerate().map(|(place, id)| (u64::from_le_bytes(*id), weight(place)));
        let answer = sums.get(at * dim..(at + 1) * dim).unwrap_or_default();
        let all_found = counts.get(at).is_some_and(|count| u32::from_le_bytes(*count) as usize == bag);
        let weight_sum = pooled.weight_sums.as_chunks().0.get(at).map(|sum| f32::from_le_bytes(*sum));
        let weights_right = weights.is_none_or(|weights| {
            let each = weights.iter().map(|weight| f64::from(f32::from_le_bytes(*weight)));
            let (sum, magnitude) = each.fold((0.0, 0.0), |(sum, all), w| (sum + w, all + w.abs()));
            weight_sum.is_some_and(|found| (f64::from(found) - sum).abs() <= 1e-5 * magnitude)
        });
        wrong += u64::from(!(all_found && weights_right && oracle.is_sum(members, answer)));
    }
    ((ids.len() / bag) as u64, wrong)
}

/// Has every worker do the same on a thread of its own; `start` lets all of them begin together.
pub(super) fn at_once<'a, R: Send>(
    workers: &mut [Worker<'a>],
    work: impl Fn(&mut Worker<'a>, &Barrier) -> R + Sync,
) -> Vec<R> {
    let start = Barrier::new(workers.len());
    if let [worker] = workers {
        return vec![work(worker, &start)];
    }
    thread::scope(|scope| {
        let (work, start) = (&work, &start);
        let threads: Vec<_> =
            workers.iter_mut().map(|worker| scope.spawn(move || work(worker, start))).collect();
        threads
            .into_iter()
            .map(|thread| thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)))
            .collect()
    })
}
