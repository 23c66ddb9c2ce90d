//! A batch of a model that has steps around its plan.

use std::{sync::Arc, time::Instant};

use super::{
    CudaError, CudaModel,
    around::Prepared,
    packing::floats,
    resident::ResidentSet,
    rows::{RowCounts, RowsError, RowsWriter},
    select::{SelectRequest, Selected, Wanted},
    staging::{Brought, Piece},
    worker::Lane,
};
use crate::{DenseBatch, DenseError, model::check};

/// What a batch gets.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Answered {
    /// Without a selection: each output of the contract, `[rows]`.
    pub outputs: Vec<Vec<f32>>,
    /// With one: what each request gets.
    pub selected: Vec<Selected>,
    /// Bytes that were copied back.
    pub bytes: usize,
}

impl CudaModel {
    /// Which inputs of the contract are made of rows, and of how many ids at most in the bucket at `bucket` of the options.
    ///
    /// # Panics
    /// When there are not so many buckets.
    pub fn room_for_ids(&self, bucket: usize) -> impl Iterator<Item = (usize, u32)> + '_ {
        self.common.around.iter().flat_map(move |around| {
            let inputs = around.buckets[bucket].rows.inputs().iter().enumerate();
            inputs.map(|(feed, input)| (around.input(feed), input.ids))
        })
    }

    /// Runs a batch of a model that was loaded with [`Around`](super::Around). Inputs that come as rows are empty in
    /// `batch`; `stage` writes them, one bag for each request or row, in the order of the feeds. With a selection
    /// `requests` say what each request wants, and the rows of each must follow those of the one before.
    ///
    /// The batch runs in the smallest bucket that has room for its rows, its requests and what it stages, of which `counts`
    /// says beforehand how much that is at most; the copy to the device is as long as that. It must fit one, since nobody else can cut bags and selections: callers form
    /// batches by [`CudaOptions::buckets`](super::CudaOptions::buckets). A resident set that `stage` names is kept until
    /// the device is done with the batch.
    ///
    /// # Errors
    /// [`DenseError::Input`], [`DenseError::Rows`], [`DenseError::Select`] when something does not fit, before anything is
    /// copied, and where no bucket has room before anything is staged; [`DenseError::Device`] as [`run`](Self::run), and
    /// when the resident set had not the rows that it was to have.
    pub fn answer(
        &self,
        batch: &DenseBatch<'_>,
        counts: &RowCounts,
        requests: &[SelectRequest<'_>],
        stage: impl FnOnce(&mut RowsWriter<'_>) -> Result<(), RowsError>,
    ) -> Result<Answered, DenseError> {
        check(&self.given, batch)?;
        let Some(around) = &self.common.around else {
            let problem = "the model was loaded without steps around its plan".into();
            return Err(CudaError::Options(problem).into());
        };
        let selects = around.buckets.iter().any(|bucket| bucket.select.is_some());
        check_requests(batch, requests, selects)?;
        let bucket = self.bucket(around, batch, counts)?;
        let until = Instant::now() + self.common.options.deadline;
        let lane = self.take(bucket, until, false)?;
        let (lane, filled) = self.work(lane, |lane| self.fill(lane, batch, counts, requests, stage));
        let (wanted, set) = match filled {
            Ok(filled) => filled,
            Err(error) => {
                // Nothing is in flight: the lane is as good as before.
                self.pool.put(lane);
                return Err(error);
            }
        };
        let lane = match self.on_stream(lane, until) {
            Ok(lane) => lane,
            Err(error) => {
                // The device may still be at it, for example when it took too long; but not when the model goes on.
                if self.lost().is_some() {
                    around.keep(set);
                }
                return Err(error.into());
            }
        };
        drop(set);
        let (lane, answered) = self.work(lane, |lane| self.read(lane, batch.rows, wanted.as_ref()));
        self.pool.put(lane);
        answered
    }

    /// The smallest bucket that has room. Where none has, it is the one with the most room that says for what not.
    fn bucket(
        &self,
        around: &Prepared,
        batch: &DenseBatch<'_>,
        counts: &RowCounts,
    ) -> Result<usize, DenseError> {
        let mut refused = None;
        let name = |feed: usize| format!("input {:?}", self.given[around.input(feed)].name);
        for (at, bucket) in self.common.options.buckets.iter().enumerate() {
            if batch.rows > bucket.rows as usize || batch.requests > bucket.requests as usize {
                continue;
            }
            match around.buckets[at].rows.fits(counts, &name) {
                Ok(()) => return Ok(at),
                Err(error) => refused = Some(error),
            }
        }
        Err(refused.map_or_else(
            || DenseError::Input {
                input: "list".into(),
                problem: format!("{} rows of {} requests fit no bucket", batch.rows, batch.requests),
            },
            DenseError::Rows,
        ))
    }

    fn fill(
        &self,
        lane: &mut Lane,
        batch: &DenseBatch<'_>,
        counts: &RowCounts,
        requests: &[SelectRequest<'_>],
        stage: impl FnOnce(&mut RowsWriter<'_>) -> Result<(), RowsError>,
    ) -> Result<(Option<Wanted>, Option<Arc<ResidentSet>>), DenseError> {
        let Some(around) = &self.common.around else { return Ok((None, None)) };
        let regions = &around.buckets[lane.bucket];
        let bytes = lane.staging.bytes_mut().map_err(|error| self.give_up(error))?;
        let rows = batch.rows;
        let end = self.common.staging[lane.bucket].fill(bytes, regions.first, batch, &Piece::whole(batch));
        let bags = around.bags(rows, batch.requests);
        let places = [regions.rows_at, end];
        let mut writer = RowsWriter::begin(&regions.rows, bytes, places, counts, &bags, &mut lane.tally)?;
        stage(&mut writer)?;
        let staged = writer.finish()?;
        staged.check_device(self.common.device.ordinal())?;
        lane.brought = Brought { rows, bytes: staged.end };
        let Some(layout) = &regions.select else {
            lane.back = self.common.outputs_bytes(lane.bucket, rows);
            return Ok((None, staged.set));
        };
        let (wanted, end) = layout.write(bytes, [regions.select_at, staged.end], requests)?;
        lane.brought.bytes = end;
        lane.back = layout.answer_bytes(&wanted);
        Ok((Some(wanted), staged.set))
    }

    fn read(&self, lane: &mut Lane, rows: usize, wanted: Option<&Wanted>) -> Result<Answered, DenseError> {
        let bucket = lane.bucket;
        let bytes = lane.results.bytes_mut().map_err(|error| self.give_up(error))?;
        let around = self.common.around.as_ref();
        let layout = around.and_then(|around| around.buckets[bucket].select.as_ref());
        if let (Some(layout), Some(wanted)) = (layout, wanted) {
            let count = layout.answer_bytes(wanted);
            let (lost, selected) = layout.read(wanted, &bytes[..count]);
            let since = lost.wrapping_sub(lane.lost);
            lane.lost = lost;
            if since > 0 {
                return Err(CudaError::NotResident { rows: since }.into());
            }
            return Ok(Answered { outputs: Vec::new(), selected, bytes: count });
        }
        let room = self.common.staging[bucket].bucket.rows as usize * size_of::<f32>();
        // Behind the last row of the last output nothing was copied, and nothing is taken.
        let one = |results: &[u8]| floats(results, rows).collect();
        let outputs = bytes.chunks(room).take(self.common.program.outputs).map(one).collect();
        Ok(Answered { outputs, selected: Vec::new(), bytes: lane.back })
    }
}

/// A selection takes the rows of a request from where those of the one before end.
fn check_requests(
    batch: &DenseBatch<'_>,
    requests: &[SelectRequest<'_>],
    selects: bool,
) -> Result<(), DenseError> {
    let wrong = |problem: String| Err(DenseError::Input { input: "list".into(), problem });
    if !selects {
        return match requests.len() {
            0 => Ok(()),
            found => wrong(format!("{found} selections are wanted of a model that was loaded without")),
        };
    }
    if requests.len() != batch.requests {
        return wrong(format!("{} selections for {} requests", requests.len(), batch.requests));
    }
    let mut first = 0usize;
    for (number, request) in requests.iter().enumerate() {
        let end = first.saturating_add(request.rows as usize);
        let own = batch.request_of.get(first..end);
        if !own.is_some_and(|own| own.iter().all(|of| *of as usize == number)) {
            return wrong(format!("the rows of request {number} are not {first} to {end}"));
        }
        first = end;
    }
    if first != batch.rows {
        return wrong(format!("the requests have {first} rows, the batch {}", batch.rows));
    }
    Ok(())
}
