//! A batch in pieces: one that fits no bucket is cut, and its pieces run side by side, on as many streams as have a lane for
//! them.
//!
//! A lane is only ever waited for by who has none: a batch that has pieces on the device takes what lanes are free and
//! that nobody waits for, and else waits for its own oldest piece. So two large batches cannot wait for each other, and one
//! does not keep others out for longer than a piece takes: a lane that it puts back is first theirs who waited for it.

use std::{
    collections::VecDeque,
    sync::mpsc::{Receiver, RecvTimeoutError, sync_channel},
    time::{Duration, Instant},
};

use super::{
    CudaError, CudaModel,
    model::{PATIENCE, thread_gone},
    packing::floats,
    record::Bucket,
    staging::{Brought, Piece, cut},
    worker::{Job, Lane},
};
use crate::{DenseBatch, DenseError};

/// A lane that a stream has, and who hears when it is done.
pub(super) struct Flight {
    done: Receiver<(Lane, Result<(), CudaError>)>,
    asked: Instant,
    /// After so long, whoever has it will not give it back.
    longest: Duration,
}

/// The pieces of one batch that streams have, the oldest first.
struct Flights<'a> {
    model: &'a CudaModel,
    flying: VecDeque<Flight>,
}

impl Drop for Flights<'_> {
    fn drop(&mut self) {
        // Another piece failed, or somebody panicked: these lanes are others' again as soon as they come back.
        while let Some(flight) = self.flying.pop_front() {
            match self.model.land(&flight) {
                Ok(lane) => self.model.pool.put(lane),
                Err(error) if error.is_lost() => break,
                Err(_) => {}
            }
        }
    }
}

impl CudaModel {
    /// Runs a batch of at least a row, and appends what comes of it to `outputs`.
    pub(super) fn run_pieces(
        &self,
        batch: &DenseBatch<'_>,
        outputs: &mut [Vec<f32>],
    ) -> Result<(), DenseError> {
        let buckets = &self.common.options.buckets;
        let fits =
            buckets.iter().any(|b| batch.rows <= b.rows as usize && batch.requests <= b.requests as usize);
        let whole = Bucket { rows: u32::MAX, requests: u32::MAX };
        let until = Instant::now() + self.common.options.deadline;
        let mut has_begun = false;
        let mut flights = Flights { model: self, flying: VecDeque::new() };
        let mut pieces =
            cut(batch, if fits { whole } else { self.common.options.largest() }).into_iter().peekable();
        loop {
            while let Some(piece) = pieces.peek() {
                let bucket = self.bucket_of(batch, piece)?;
                let lane = match flights.flying.is_empty() {
                    true => self.take(bucket, until, has_begun)?,
                    false => match self.take_free(bucket) {
                        Some(lane) => lane,
                        None => break,
                    },
                };
                flights.flying.push_back(self.ask(lane, batch, piece, until)?);
                has_begun = true;
                pieces.next();
            }
            let Some(flight) = flights.flying.pop_front() else { return Ok(()) };
            let lane = self.land(&flight)?;
            self.taken(lane, outputs)?;
        }
    }

    /// The smallest bucket that has room for a piece.
    fn bucket_of(&self, batch: &DenseBatch<'_>, piece: &Piece) -> Result<usize, CudaError> {
        let rows = piece.rows.len();
        let requests = piece.requests.as_ref().map_or(batch.requests, Vec::len);
        let buckets = &self.common.options.buckets;
        let bucket = buckets.iter().position(|b| rows <= b.rows as usize && requests <= b.requests as usize);
        bucket.ok_or_else(|| CudaError::Options("no bucket has room for a piece".into()))
    }

    /// Fills a lane with a piece and sends it to its stream.
    fn ask(
        &self,
        lane: Lane,
        batch: &DenseBatch<'_>,
        piece: &Piece,
        until: Instant,
    ) -> Result<Flight, CudaError> {
        let (lane, filled) = self.work(lane, |lane| {
            let (bucket, rows) = (lane.bucket, piece.rows.len());
            let first = self.common.first(bucket);
            let bytes = self.common.staging[bucket].fill(lane.staging.bytes_mut()?, first, batch, piece);
            lane.brought = Brought { rows, bytes };
            lane.back = self.common.outputs_bytes(bucket, rows);
            Ok(())
        });
        filled.map_err(|error| self.give_up(error))?;
        self.send(lane, until)
    }

    /// Appends what came of a piece, and lets its lane go.
    fn taken(&self, lane: Lane, outputs: &mut [Vec<f32>]) -> Result<(), CudaError> {
        let (lane, taken) = self.work(lane, |lane| {
            let room = self.common.staging[lane.bucket].bucket.rows as usize;
            let bytes = lane.results.bytes_mut()?;
            for (output, results) in outputs.iter_mut().zip(bytes.chunks(room * size_of::<f32>())) {
                output.extend(floats(results, lane.brought.rows));
            }
            Ok(())
        });
        self.pool.put(lane);
        taken.map_err(|error| self.give_up(error))
    }

    /// Has a lane run on its stream, if its turn comes until then.
    pub(super) fn on_stream(&self, lane: Lane, until: Instant) -> Result<Lane, CudaError> {
        self.land(&self.send(lane, until)?)
    }

    /// Hands a lane to its stream.
    fn send(&self, lane: Lane, until: Instant) -> Result<Flight, CudaError> {
        let (reply, done) = sync_channel(1);
        let asked = Instant::now();
        let sent = self.queues[lane.stream].send(Job { lane, asked, until, reply });
        if sent.is_err() {
            return Err(self.give_up(thread_gone()));
        }
        // The thread does not wait for the device longer than this, unless a call of the driver does not return.
        let longest = until.saturating_duration_since(asked) + self.common.options.deadline + PATIENCE;
        Ok(Flight { done, asked, longest })
    }

    /// Waits for a lane that a stream has.
    fn land(&self, flight: &Flight) -> Result<Lane, CudaError> {
        match flight.done.recv_timeout(flight.longest.saturating_sub(flight.asked.elapsed())) {
            Ok((lane, Ok(()))) => Ok(lane),
            // The device has not seen it.
            Ok((lane, Err(late @ CudaError::Late { .. }))) => {
                self.pool.put(lane);
                Err(late)
            }
            Ok((_, Err(error))) => Err(self.give_up(error)),
            Err(RecvTimeoutError::Timeout) => {
                let error = self.common.device.hangs(flight.asked.elapsed());
                Err(self.give_up(error))
            }
            // A thread ends before its queue does only when it broke down.
            Err(RecvTimeoutError::Disconnected) => Err(self.give_up(thread_gone())),
        }
    }
}
