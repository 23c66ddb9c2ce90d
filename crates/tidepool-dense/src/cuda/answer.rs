//! A batch of a model that has steps around its plan.

use std::{sync::Arc, time::Instant};

use super::{
    CudaError, CudaModel,
    resident::ResidentSet,
    rows::{RowsError, RowsWriter},
    select::{SelectRequest, Selected, Wanted},
    staging::Piece,
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
    /// Runs a batch of a model that was loaded with [`Around`](super::Around). Inputs that come as rows are empty in
    /// `batch`; `stage` writes them, one bag for each request or row, in the order of the feeds. With a selection
    /// `requests` say what each request wants, and the rows of each must follow those of the one before.
    ///
    /// A resident set that `stage` names is kept until the device is done with the batch. The batch must fit a bucket,
    /// since nobody else can cut bags and selections: callers form batches by [`CudaOptions::buckets`](super::CudaOptions::buckets).
    ///
    /// # Errors
    /// [`DenseError::Input`], [`DenseError::Rows`], [`DenseError::Select`] when something does not fit, before anything is
    /// copied; [`DenseError::Device`] as [`run`](Self::run), and when the resident set had not the rows that it was to
    /// have.
    pub fn answer(
        &self,
        batch: &DenseBatch<'_>,
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
        let buckets = &self.common.options.buckets;
        let fits = |b: &super::Bucket| batch.rows <= b.rows as usize && batch.requests <= b.requests as usize;
        let bucket = buckets.iter().position(fits).ok_or_else(|| DenseError::Input {
            input: "list".into(),
            problem: format!("{} rows of {} requests fit no bucket", batch.rows, batch.requests),
        })?;
        let until = Instant::now() + self.common.options.deadline;
        let lane = self.take(bucket, until)?;
        let (lane, filled) = self.work(lane, |lane| self.fill(lane, batch, requests, stage));
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

    fn fill(
        &self,
        lane: &mut Lane,
        batch: &DenseBatch<'_>,
        requests: &[SelectRequest<'_>],
        stage: impl FnOnce(&mut RowsWriter<'_>) -> Result<(), RowsError>,
    ) -> Result<(Option<Wanted>, Option<Arc<ResidentSet>>), DenseError> {
        let Some(around) = &self.common.around else { return Ok((None, None)) };
        let regions = &around.buckets[lane.bucket];
        let bytes = lane.staging.bytes_mut().map_err(|error| self.give_up(error))?;
        let whole = Piece::whole(batch);
        self.common.staging[lane.bucket].fill(bytes, batch, &whole, &mut lane.filled);
        let staged = &mut bytes[regions.rows_at..][..regions.rows.bytes()];
        let mut writer = RowsWriter::begin(&regions.rows, staged, &mut lane.tally)?;
        stage(&mut writer)?;
        let staged = writer.finish(&around.bags(batch.rows, batch.requests))?;
        staged.check_device(self.common.device.ordinal())?;
        let Some(layout) = &regions.select else { return Ok((None, staged.set)) };
        let wanted = layout.write(&mut bytes[regions.select_at..][..layout.bytes()], requests)?;
        lane.answer_bytes = layout.answer_bytes(&wanted);
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
        let count = self.common.program.outputs * room;
        let one = |results: &[u8]| {
            let numbers = results.chunks_exact(size_of::<f32>()).take(rows);
            numbers.map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]])).collect()
        };
        let outputs = bytes[..count].chunks_exact(room).map(one).collect();
        Ok(Answered { outputs, selected: Vec::new(), bytes: count })
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
