//! What is done on the device around the plan, in the same graph: inputs are made from stored rows before it, and the
//! best candidates are taken behind it. So a batch is still one copy in, one launch and one copy back, with less in both
//! copies.

use std::sync::{Arc, Mutex, PoisonError};

use tidepool_types::{Combine, ModelSpec, RowFormat, Side};

use super::{
    Bucket, CudaError,
    compile::Compiler,
    memory::DeviceBuffer,
    record::Addresses,
    resident::ResidentSet,
    rows::{DeviceRows, Pool, RowInput, RowKernels, RowTable, RowsLayout, Target},
    select::{DeviceSelect, SelectError, SelectKernels, SelectLayout, SelectRoom, Selection},
    staging::Staging,
    step::Recording,
    stream::Stream,
};
use crate::contract::Given;

/// An input of the contract that comes as stored rows.
#[derive(Clone, Debug, PartialEq)]
pub struct RowFeed {
    /// Which input. Whether it is a sequence, and whether it has a mask, its contract says; the mask is made with it.
    pub input: usize,
    /// Which of [`Around::tables`].
    pub table: usize,
    /// Whether a bag's vector is the mean of its rows, and not their sum; of a sequence without effect.
    pub mean: bool,
    /// Whether ids may have weights.
    pub weighted: bool,
    /// Rows of an id: 1, or the hashes of a composite table.
    pub hashes: u32,
    /// How the rows of an id become its vector.
    pub combine: Combine,
    /// The vector of nothing; empty: zeros.
    pub default_row: Vec<f32>,
    /// Room for so many ids per request or row, on average over a bucket. Where an input of the user's is pooled there is
    /// room for as many ids as the bucket has rows at least: of users there are few, and the bag of one may be long.
    pub ids: u32,
}

/// What a model does on the device beside its plan.
#[derive(Clone, Debug, Default)]
pub struct Around {
    /// Tables whose rows come as they are stored: formats and dimensions.
    pub tables: Vec<(RowFormat, u32)>,
    /// The inputs that are made from them.
    pub feeds: Vec<RowFeed>,
    /// Whether ids may be resident. It needs a selection, whose answer says whether all were found.
    pub resident: bool,
    /// The contract by which candidates are ranked on the device, and how many values of each request are returned
    /// whatever they are. `None`: outputs come back whole.
    pub select: Option<(ModelSpec, u32)>,
}

/// The same, judged, with kernels and layouts.
pub(crate) struct Prepared {
    feeds: Vec<Feed>,
    kernels: Option<RowKernels>,
    select: Option<SelectKernels>,
    /// Per bucket.
    pub(crate) buckets: Vec<Regions>,
    /// Resident sets that the device may still read, since a batch with them failed before it was done.
    kept: Mutex<Vec<Arc<ResidentSet>>>,
}

struct Feed {
    input: usize,
    mask: Option<usize>,
    side: Side,
}

/// What a bucket's staging buffer has beside what the plan reads. Heads follow the header; arrays, which only the batch knows
/// the places of, follow the plan's.
pub(crate) struct Regions {
    pub(crate) rows: RowsLayout,
    /// Where the head of the rows is.
    pub(crate) rows_at: usize,
    pub(crate) select: Option<SelectLayout>,
    /// Where the head of the selection is.
    pub(crate) select_at: usize,
    /// Where arrays begin, the plan's first.
    pub(crate) first: usize,
    /// Bytes of the whole staging buffer, of a batch that fills the bucket.
    pub(crate) bytes: usize,
}

/// What a stream has for it.
pub(crate) struct OnStream {
    /// Of each feed, the input and its mask.
    inputs: Vec<(Arc<DeviceBuffer>, Option<Arc<DeviceBuffer>>)>,
    /// Per bucket: the answer, when there is a selection.
    pub(crate) answers: Vec<Option<Arc<DeviceBuffer>>>,
    /// Bytes on the device of all that the steps work in, inputs and answers included.
    pub(crate) bytes: usize,
}

impl Prepared {
    /// Checks `around` against the inputs of the model and compiles its kernels. `given` are the model's inputs and masks;
    /// those that are made here are left without elements, since nobody gives them any more. `masks` says for each mask
    /// which input it goes with, `staged` what the plan's part of the staging buffer of each bucket is, once those are gone.
    pub(crate) fn new(
        stream: &Stream,
        compiler: &Compiler,
        around: &Around,
        given: &mut [Given],
        masks: &[usize],
        buckets: &[Bucket],
        staged: impl Fn(Bucket, &[Given]) -> Staging,
    ) -> Result<Self, CudaError> {
        let wrong = |problem: String| CudaError::Options(problem);
        if around.resident && around.select.is_none() {
            return Err(wrong(
                "resident rows need a selection, whose answer says whether all were found".into(),
            ));
        }
        let first_mask = given.len() - masks.len();
        let mut feeds = Vec::new();
        for feed in &around.feeds {
            if feed.input >= first_mask || feeds.iter().any(|before: &Feed| before.input == feed.input) {
                return Err(wrong(format!(
                    "input {} is fed twice, or is none of the contract's",
                    feed.input
                )));
            }
            let mask = masks.iter().position(|of| *of == feed.input).map(|mask| first_mask + mask);
            feeds.push(Feed { input: feed.input, mask, side: given[feed.input].side });
        }
        let layouts = buckets
            .iter()
            .map(|bucket| layout(around, &feeds, given, *bucket))
            .collect::<Result<Vec<_>, _>>()?;
        for feed in &feeds {
            for at in [Some(feed.input), feed.mask].into_iter().flatten() {
                given[at].shape = vec![0];
            }
        }
        let regions = buckets.iter().zip(layouts).map(|(bucket, rows)| {
            let plan = staged(*bucket, given);
            let rows_at = plan.head();
            let select_at = rows_at + rows.head();
            let select = around.select.as_ref().map(|(spec, samples)| {
                let room = SelectRoom { rows: bucket.rows, requests: bucket.requests, samples: *samples };
                SelectLayout::new(Selection::new(spec), room).map_err(|error| match error {
                    SelectError::Cuda(error) => error,
                    other => wrong(other.to_string()),
                })
            });
            let select = select.transpose()?;
            let first = select_at + select.as_ref().map_or(0, |select| select.head());
            let bytes = rows.most(plan.most(first));
            let bytes = select.as_ref().map_or(bytes, |select| select.most(bytes));
            Ok(Regions { rows, rows_at, select, select_at, first, bytes })
        });
        let buckets = regions.collect::<Result<Vec<_>, CudaError>>()?;
        let kernels = match buckets.first() {
            Some(first) if !feeds.is_empty() => Some(RowKernels::load(stream, compiler, &first.rows)?),
            _ => None,
        };
        let select = around.select.as_ref().map(|(spec, _)| SelectKernels::load(stream, compiler, spec));
        let kept = Mutex::default();
        Ok(Self { feeds, kernels, select: select.transpose()?, buckets, kept })
    }

    /// Bytes on the device that all streams share.
    pub(crate) fn shared_bytes(&self) -> usize {
        self.select.iter().flat_map(SelectKernels::memory).map(|buffer| buffer.bytes()).sum()
    }

    /// Keeps the set of a batch that failed as long as the model. These are as many as there are lanes at most: no batch
    /// runs after a failure.
    pub(crate) fn keep(&self, set: Option<Arc<ResidentSet>>) {
        self.kept.lock().unwrap_or_else(PoisonError::into_inner).extend(set);
    }

    /// Which of the contract's inputs a feed makes.
    pub(crate) fn input(&self, feed: usize) -> usize {
        self.feeds[feed].input
    }

    /// How many bags each feed has in a batch.
    pub(crate) fn bags(&self, rows: usize, requests: usize) -> Vec<u32> {
        let count = |feed: &Feed| if feed.side == Side::User { requests } else { rows };
        self.feeds.iter().map(|feed| u32::try_from(count(feed)).unwrap_or(u32::MAX)).collect()
    }

    /// The inputs of a stream, for the largest bucket. They are zero at first: the plan also computes rows that a batch
    /// does not have, of which nobody makes inputs.
    pub(crate) fn on_stream(&self, stream: &Stream) -> Result<OnStream, CudaError> {
        let most =
            |of: &dyn Fn(&RowsLayout) -> usize| self.buckets.iter().map(|b| of(&b.rows)).max().unwrap_or(0);
        let zeros = |numbers: usize, what: &str| {
            let buffer = DeviceBuffer::new(stream.device(), 4 * numbers, what)?;
            stream.zero(&buffer)?;
            Ok::<_, CudaError>(Arc::new(buffer))
        };
        let inputs = self.feeds.iter().enumerate().map(|(number, feed)| {
            let values = zeros(most(&|layout| layout.numbers(number)), "inputs made from rows")?;
            let mask = feed.mask.map(|_| zeros(most(&|layout| layout.vectors(number)), "masks"));
            Ok::<_, CudaError>((values, mask.transpose()?))
        });
        let inputs: Vec<(Arc<DeviceBuffer>, Option<Arc<DeviceBuffer>>)> = inputs.collect::<Result<_, _>>()?;
        let each = inputs.iter().flat_map(|(values, mask)| std::iter::once(values).chain(mask));
        let bytes = each.map(|buffer| buffer.bytes()).sum();
        Ok(OnStream { inputs, answers: Vec::new(), bytes })
    }

    /// Points the plan at the inputs that are made here, and says what is done before and behind it. `staging` is the
    /// staging buffer's address on the device.
    pub(crate) fn record(
        &self,
        stream: &Stream,
        on_stream: &mut OnStream,
        bucket: usize,
        staging: u64,
        addresses: &mut Addresses,
    ) -> Result<(Recording, Recording), CudaError> {
        let regions = &self.buckets[bucket];
        let (mut before, mut behind) = (Recording::default(), Recording::default());
        let mut lost = 0;
        if let Some(kernels) = &self.kernels {
            let mut targets = Vec::new();
            for (feed, (values, mask)) in self.feeds.iter().zip(&on_stream.inputs) {
                addresses.inputs[feed.input] = values.address();
                if let (Some(at), Some(mask)) = (feed.mask, mask) {
                    addresses.inputs[at] = mask.address();
                }
                targets
                    .push(Target { out: values.address(), mask: mask.as_ref().map(|mask| mask.address()) });
            }
            let rows =
                DeviceRows::new(stream, kernels, &regions.rows, [staging, regions.rows_at as u64], &targets)?;
            lost = rows.lost.address();
            before = rows.recording;
            on_stream.bytes += bytes_of(&before);
            before.memory.extend(
                on_stream
                    .inputs
                    .iter()
                    .flat_map(|(values, mask)| std::iter::once(values.clone()).chain(mask.clone())),
            );
        }
        let answer = match (&self.select, &regions.select) {
            (Some(kernels), Some(layout)) => {
                let places = [staging, regions.select_at as u64];
                let select = DeviceSelect::new(stream, kernels, layout, places, &addresses.results, lost)?;
                behind = select.recording;
                on_stream.bytes += bytes_of(&behind);
                behind.memory.extend(kernels.memory());
                Some(select.answer)
            }
            _ => None,
        };
        on_stream.answers.push(answer);
        Ok((before, behind))
    }
}

/// Bytes of the memory that steps were recorded over.
fn bytes_of(recording: &Recording) -> usize {
    recording.memory.iter().map(|buffer| buffer.bytes()).sum()
}

/// The layout of the rows of a bucket.
fn layout(around: &Around, feeds: &[Feed], given: &[Given], bucket: Bucket) -> Result<RowsLayout, CudaError> {
    let wrong = |problem: String| CudaError::Options(problem);
    let mut rows = vec![0u64; around.tables.len()];
    let mut inputs = Vec::new();
    for (feed, of) in around.feeds.iter().zip(feeds) {
        let bags = if of.side == Side::User { bucket.requests } else { bucket.rows };
        let is_sequence = given[feed.input].shape.len() == 2;
        let least = if of.side == Side::User && !is_sequence { bucket.rows } else { 0 };
        let ids = (u64::from(bags) * u64::from(feed.ids)).max(least.into());
        if let Some(rows) = rows.get_mut(feed.table) {
            *rows += ids * u64::from(feed.hashes);
        }
        let ids =
            u32::try_from(ids).map_err(|_| wrong(format!("input {}: {ids} ids in a bucket", feed.input)))?;
        let pool = match given[feed.input].shape[..] {
            [max_len, _] => {
                let max_len = u32::try_from(max_len).unwrap_or(u32::MAX);
                Pool::Sequence { max_len, mask: of.mask.is_some() }
            }
            _ if feed.mean => Pool::Mean,
            _ => Pool::Sum,
        };
        let RowFeed { table, weighted, hashes, combine, .. } = *feed;
        let default_row = feed.default_row.clone();
        inputs.push(RowInput { table, bags, ids, pool, weighted, hashes, combine, default_row });
    }
    let tables = around.tables.iter().zip(&rows).map(|(&(format, dim), rows)| {
        // No more rows than fit the count are ever staged.
        RowTable { format, dim, rows: u32::try_from(*rows).unwrap_or(u32::MAX).min(u32::MAX >> 1) }
    });
    let keys = if around.resident { rows.iter().sum::<u64>().min(u64::from(u32::MAX >> 1)) } else { 0 };
    let keys = u32::try_from(keys).unwrap_or(u32::MAX >> 1);
    let made = RowsLayout::new(tables.collect(), inputs, keys).map_err(|e| wrong(e.to_string()))?;
    for (number, feed) in feeds.iter().enumerate() {
        let wanted = given[feed.input].shape.last().copied().unwrap_or(0);
        if made.width(number) != wanted {
            let (input, width) = (feed.input, made.width(number));
            return Err(wrong(format!(
                "input {input}: its rows make vectors of {width}, the model takes {wanted}"
            )));
        }
    }
    Ok(made)
}
