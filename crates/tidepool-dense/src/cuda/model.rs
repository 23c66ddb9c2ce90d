//! A model on a device: loaded once with everything that its batches need, run from any thread.

use std::{
    fmt,
    panic::{AssertUnwindSafe, catch_unwind, resume_unwind},
    path::PathBuf,
    sync::{
        Arc, Condvar, Mutex, MutexGuard, PoisonError,
        mpsc::{Receiver, RecvTimeoutError, SyncSender, sync_channel},
    },
    thread::JoinHandle,
    time::{Duration, Instant},
};

use super::{
    Cost, CudaDevice, CudaError, CudaOptions, Precision,
    around::{Around, Prepared},
    compile::Compiler,
    memory::DeviceBuffer,
    module::Module,
    program::Program,
    record::Bucket,
    staging::{Filled, Piece, Staging, cut},
    stream::Stream,
    worker::{self, Common, Job, Lane, MemoryUse, Ready},
};
use crate::{
    DenseBatch, DenseError, DenseModel,
    contract::Given,
    model::{check, given_of, path_of, plan_of},
};

/// How much longer than it may take a call of the driver is waited for, before the device counts as one that hangs.
const PATIENCE: Duration = Duration::from_secs(5);

/// A dense model on a GPU. It may be shared between threads; what it computes is what [`DenseModel::run`] computes,
/// up to the order of sums in products, or their precision where the options ask for less (docs/gpu.md has bounds).
///
/// A batch that fits a bucket is one copy to the device, one launch of the graph that was captured for the bucket when
/// the model was loaded, and one copy back.
pub struct CudaModel {
    path: PathBuf,
    pub(super) given: Vec<Given>,
    pub(super) common: Arc<Common>,
    pub(super) pool: Pool,
    /// One for each stream; closed before the threads are waited for.
    queues: Vec<SyncSender<Job>>,
    threads: Vec<Thread>,
    memory: Vec<MemoryUse>,
}

/// A stream's thread; the channel ends with it.
struct Thread {
    handle: JoinHandle<()>,
    /// Asked by `drop` alone; the lock makes it `Sync`.
    ended: Mutex<Receiver<()>>,
}

impl fmt::Debug for CudaModel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("CudaModel")
            .field("path", &self.path)
            .field("device", &self.common.device)
            .field("options", &self.common.options)
            .finish_non_exhaustive()
    }
}

/// Lanes that no batch has.
pub(super) struct Pool {
    state: Mutex<State>,
    changed: Condvar,
}

struct State {
    free: Vec<Lane>,
    waiting: usize,
    /// Why no batch can run any more.
    lost: Option<CudaError>,
}

impl CudaModel {
    /// Compiles the model's kernels, brings its weights to the device, and captures a graph for each bucket and stream.
    /// It takes from tenths of a second to several; with kernels in the cache much less.
    ///
    /// # Errors
    /// [`DenseError::Device`]: options that are wrong, kernels that do not compile, memory that the device does not have
    /// (other models on it go on), or a device that is lost.
    pub fn load(
        device: &Arc<CudaDevice>,
        model: &DenseModel,
        options: &CudaOptions,
    ) -> Result<Self, DenseError> {
        Self::load_around(device, model, options, None)
    }

    /// The same, with inputs that are made from stored rows on the device, or a selection of the best candidates there,
    /// or both: [`answer`](Self::answer) runs such a model.
    ///
    /// # Errors
    /// As [`load`](Self::load), and when `around` does not fit the model.
    pub fn load_around(
        device: &Arc<CudaDevice>,
        model: &DenseModel,
        options: &CudaOptions,
        around: Option<&Around>,
    ) -> Result<Self, DenseError> {
        let options = options.checked()?;
        let program = Program::new(plan_of(model), options.precision);
        let compiler = Compiler::new(device.capability(), options.cache.as_deref())?;
        let ptx = compiler.ptx("plan", &program.source)?;
        let module = Module::load(device, "the plan", &ptx)?;
        let fixed = DeviceBuffer::new(device, program.fixed.bytes.len(), "weights")?;
        Stream::new(device)?.upload(&program.fixed.bytes, &fixed, 0)?;
        let mut given = given_of(model).to_vec();
        let around = around.map(|around| {
            let staged = |bucket, given: &[Given]| Staging::new(bucket, given).bytes;
            let (stream, masks) = (Stream::new(device)?, model.masks());
            Prepared::new(&stream, &compiler, around, &mut given, masks, &options.buckets, staged)
        });
        let around = around.transpose()?;
        compiler.take_notes().into_iter().for_each(|note| device.tell(note));
        let staging = options.buckets.iter().map(|&bucket| Staging::new(bucket, &given)).collect();
        let weights = MemoryUse {
            what: "weights, constants and tables",
            stream: None,
            bucket: None,
            bytes: fixed.bytes() as u64,
            pinned: false,
        };
        let common =
            Arc::new(Common { device: device.clone(), program, module, fixed, staging, around, options });
        let (mut queues, mut threads) = (Vec::new(), Vec::new());
        let (mut free, mut memory) = (Vec::new(), vec![weights]);
        if let Some(around) = &common.around {
            let (what, bytes) = ("curves of a selection", around.shared_bytes() as u64);
            memory.push(MemoryUse { what, stream: None, bucket: None, bytes, pinned: false });
        }
        let mut failed = None;
        for number in 0..common.options.streams {
            let (queue, jobs) = sync_channel(common.options.buckets.len());
            let (ready, told) = sync_channel(1);
            let shared = common.clone();
            let name = format!("cuda:{} stream {number}", device.ordinal());
            let (alive, ended) = sync_channel(1);
            let work = move || {
                let _alive = alive;
                worker::own(shared, number, &ready, &jobs);
            };
            match device.start(name, work) {
                Ok(handle) => threads.push(Thread { handle, ended: Mutex::new(ended) }),
                Err(error) => {
                    failed = Some(error);
                    break;
                }
            }
            queues.push(queue);
            match told.recv() {
                Ok(Ok(Ready { lanes, memory: used })) => {
                    free.extend(lanes);
                    memory.extend(used);
                }
                Ok(Err(error)) => failed = Some(error),
                Err(_) => failed = Some(thread_gone()),
            }
            if failed.is_some() {
                break;
            }
        }
        let state = Mutex::new(State { free, waiting: 0, lost: None });
        let pool = Pool { state, changed: Condvar::new() };
        let path = path_of(model).to_path_buf();
        let loaded = Self { path, given, common, pool, queues, threads, memory };
        // Dropped on failure: threads end, memory is freed.
        failed.map_or(Ok(loaded), |error| Err(error.into()))
    }

    /// The kernels that a model would have, as CUDA C: a function of the model alone, for which no device is needed.
    #[must_use]
    pub fn source(model: &DenseModel, precision: Precision) -> String {
        Program::new(plan_of(model), precision).source
    }

    /// What the device would do for a batch of a model, a line for each step, in order.
    #[must_use]
    pub fn steps(model: &DenseModel, precision: Precision) -> Vec<String> {
        Program::new(plan_of(model), precision).describe()
    }

    /// The least that a batch of a bucket costs, whatever the device.
    #[must_use]
    pub fn cost(model: &DenseModel, precision: Precision, bucket: Bucket) -> Cost {
        Program::new(plan_of(model), precision).cost(&Staging::new(bucket, given_of(model)))
    }

    /// The device that it is on.
    #[must_use]
    pub fn device(&self) -> &Arc<CudaDevice> {
        &self.common.device
    }

    /// What it was loaded with.
    #[must_use]
    pub fn options(&self) -> &CudaOptions {
        &self.common.options
    }

    /// The memory that it has, on the device and pinned on the host: exactly what was asked of the driver.
    #[must_use]
    pub fn memory(&self) -> &[MemoryUse] {
        &self.memory
    }

    /// Why no batch can run any more, if none can.
    #[must_use]
    pub fn lost(&self) -> Option<CudaError> {
        let lost = self.common.device.lost().map(|problem| CudaError::Lost { problem: problem.to_owned() });
        lost.or_else(|| self.pool.lock().lost.clone())
    }

    /// Scores a batch, as [`DenseModel::run`] does: for each output of the contract `[rows]`.
    ///
    /// # Errors
    /// [`DenseError::Input`] as there; [`DenseError::Device`] when too many batches wait, and, at once for every later
    /// batch, when the device is lost.
    pub fn run(&self, batch: &DenseBatch<'_>) -> Result<Vec<Vec<f32>>, DenseError> {
        check(&self.given, batch)?;
        if self.common.around.is_some() {
            let problem = "the model was loaded with steps around its plan: it is run by `answer`".into();
            return Err(CudaError::Options(problem).into());
        }
        let mut outputs = vec![Vec::with_capacity(batch.rows); self.common.program.outputs];
        if batch.rows == 0 {
            return Ok(outputs);
        }
        let buckets = &self.common.options.buckets;
        let largest = buckets.iter().copied().max_by_key(|bucket| (bucket.rows, bucket.requests));
        let largest = largest.unwrap_or(Bucket { rows: 1, requests: 1 });
        let fits =
            buckets.iter().any(|b| batch.rows <= b.rows as usize && batch.requests <= b.requests as usize);
        let whole = Bucket { rows: u32::MAX, requests: u32::MAX };
        let until = Instant::now() + self.common.options.deadline;
        for piece in cut(batch, if fits { whole } else { largest }) {
            self.piece(batch, &piece, until, &mut outputs)?;
        }
        Ok(outputs)
    }

    /// One piece: fills a lane, has it run, takes the results.
    fn piece(
        &self,
        batch: &DenseBatch<'_>,
        piece: &Piece,
        until: Instant,
        outputs: &mut [Vec<f32>],
    ) -> Result<(), DenseError> {
        let rows = piece.rows.len();
        let requests = piece.requests.as_ref().map_or(batch.requests, Vec::len);
        let buckets = &self.common.options.buckets;
        let bucket = buckets.iter().position(|b| rows <= b.rows as usize && requests <= b.requests as usize);
        let bucket = bucket.ok_or_else(|| CudaError::Options("no bucket has room for a piece".into()))?;
        let lane = self.take(bucket, until)?;
        let staging = &self.common.staging[bucket];
        let (lane, filled) = self.work(lane, |lane| {
            let bytes = lane.staging.bytes_mut()?;
            staging.fill(bytes, batch, piece, &mut lane.filled);
            Ok(())
        });
        if let Err(error) = filled {
            return Err(self.give_up(error).into());
        }
        let lane = self.on_stream(lane, until)?;
        let room = staging.bucket.rows as usize;
        let (lane, taken) = self.work(lane, |lane| {
            let bytes = lane.results.bytes_mut()?;
            for (output, results) in outputs.iter_mut().zip(bytes.chunks_exact(room * size_of::<f32>())) {
                let numbers = results.chunks_exact(size_of::<f32>()).take(rows);
                output.extend(numbers.map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]])));
            }
            Ok(())
        });
        self.pool.put(lane);
        taken.map_err(|error| self.give_up(error).into())
    }

    /// Works on a lane that the device has not. Should `work` panic, the lane goes back to the others: a lane that is lost is
    /// lost for ever, and there are few.
    pub(super) fn work<T>(&self, lane: Lane, work: impl FnOnce(&mut Lane) -> T) -> (Lane, T) {
        let mut lane = lane;
        match catch_unwind(AssertUnwindSafe(|| work(&mut lane))) {
            Ok(done) => (lane, done),
            Err(panic) => {
                // Nobody knows how far it came.
                lane.filled = Filled::whole(self.common.staging[lane.bucket].bucket);
                self.pool.put(lane);
                resume_unwind(panic)
            }
        }
    }

    /// Has a lane run on its stream, if its turn comes until then.
    pub(super) fn on_stream(&self, lane: Lane, until: Instant) -> Result<Lane, CudaError> {
        let (reply, done) = sync_channel(1);
        let asked = Instant::now();
        let sent = self.queues[lane.stream].send(Job { lane, asked, until, reply });
        if sent.is_err() {
            return Err(self.give_up(thread_gone()));
        }
        // The thread does not wait for the device longer than this, unless a call of the driver does not return.
        let longest = until.saturating_duration_since(asked) + self.common.options.deadline + PATIENCE;
        match done.recv_timeout(longest) {
            Ok((lane, Ok(()))) => Ok(lane),
            // The device has not seen it.
            Ok((lane, Err(late @ CudaError::Late { .. }))) => {
                self.pool.put(lane);
                Err(late)
            }
            Ok((_, Err(error))) => Err(self.give_up(error)),
            Err(RecvTimeoutError::Timeout) => {
                let error = self.common.device.hangs(asked.elapsed());
                Err(self.give_up(error))
            }
            // A thread ends before its queue does only when it broke down.
            Err(RecvTimeoutError::Disconnected) => Err(self.give_up(thread_gone())),
        }
    }

    /// A free lane of the bucket, of the stream that has most of its lanes free.
    pub(super) fn take(&self, bucket: usize, until: Instant) -> Result<Lane, CudaError> {
        let begun = Instant::now();
        let options = &self.common.options;
        let mut state = self.pool.lock();
        loop {
            if let Some(lost) = &state.lost {
                return Err(lost.clone());
            }
            if let Some(problem) = self.common.device.lost() {
                return Err(CudaError::Lost { problem: problem.to_owned() });
            }
            let idle = |lane: &Lane| state.free.iter().filter(|other| other.stream == lane.stream).count();
            let of_bucket = state.free.iter().enumerate().filter(|(_, lane)| lane.bucket == bucket);
            let best = of_bucket.max_by_key(|(_, lane)| idle(lane)).map(|(at, _)| at);
            if let Some(at) = best {
                return Ok(state.free.swap_remove(at));
            }
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Err(CudaError::Late { waited: begun.elapsed() });
            }
            if state.waiting >= options.waiting {
                return Err(CudaError::Busy { waiting: state.waiting });
            }
            state.waiting += 1;
            let waited = self.pool.changed.wait_timeout(state, left);
            state = waited.unwrap_or_else(PoisonError::into_inner).0;
            state.waiting -= 1;
        }
    }

    /// After any failure in a run nothing is known of the memory that was in flight: no batch runs any more.
    pub(super) fn give_up(&self, error: CudaError) -> CudaError {
        self.pool.lock().lost.get_or_insert_with(|| match &error {
            lost if lost.is_lost() => lost.clone(),
            other => CudaError::GivenUp { problem: other.to_string() },
        });
        self.pool.changed.notify_all();
        error
    }
}

impl Pool {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn put(&self, lane: Lane) {
        self.lock().free.push(lane);
        self.changed.notify_all();
    }
}

fn thread_gone() -> CudaError {
    CudaError::GivenUp { problem: "the thread of a stream broke down".into() }
}

impl Drop for CudaModel {
    fn drop(&mut self) {
        // Threads end when nobody can send to them; a batch that runs is waited for, up to its deadline.
        self.queues.clear();
        let until = Instant::now() + self.common.options.deadline + PATIENCE;
        for Thread { handle, ended } in self.threads.drain(..) {
            let patience = match self.common.device.lost() {
                None => until.saturating_duration_since(Instant::now()),
                // It has nothing to wait for, unless a call of the driver does not return.
                Some(_) => Duration::from_secs(1),
            };
            let ended = ended.into_inner().unwrap_or_else(PoisonError::into_inner);
            // One that is in a call that does not return is left to itself, with all that it needs.
            if ended.recv_timeout(patience) == Err(RecvTimeoutError::Disconnected) {
                let _ = handle.join();
            }
        }
    }
}
