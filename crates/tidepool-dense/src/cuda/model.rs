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
    staging::Staging,
    stream::Stream,
    usage::{Counts, Usage},
    worker::{self, Common, Job, Lane, MemoryUse, Ready},
};
use crate::{
    DenseBatch, DenseError, DenseModel,
    contract::Given,
    model::{check, given_of, path_of, plan_of},
};

/// How much longer than it may take a call of the driver is waited for, before the device counts as one that hangs.
pub(super) const PATIENCE: Duration = Duration::from_secs(5);

/// How long a stream may take to be set up, beside the batches by which it is tried: allocations, algorithms for products,
/// and the capture of its graphs.
const LOADING: Duration = Duration::from_secs(120);

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
    pub(super) queues: Vec<SyncSender<Job>>,
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
    /// Batches that wait for a lane, by its bucket.
    waiting: Vec<usize>,
    /// Why no batch can run any more.
    lost: Option<CudaError>,
}

impl CudaModel {
    /// Compiles the model's kernels, brings its weights to the device, and captures a graph for each bucket and stream.
    /// It takes from tenths of a second to several; with kernels in the cache much less.
    ///
    /// # Errors
    /// [`DenseError::Device`]: options that are wrong, kernels that do not compile, memory that the device does not have
    /// (other models on it go on), or a device that is lost, or that hangs: it is not waited for longer than two minutes and what the
    /// deadline of the options allows.
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
            let staged = |bucket, given: &[Given]| Staging::new(bucket, given);
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
        let (device_of, counts) = (device.clone(), Counts::default());
        let common =
            Arc::new(Common { device: device_of, program, module, fixed, staging, around, options, counts });
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
            // Every bucket is run twice, each time for as long as a batch may take.
            let runs = 2 * u32::try_from(common.options.buckets.len()).unwrap_or(u32::MAX);
            let longest = LOADING.saturating_add(common.options.deadline.saturating_mul(runs));
            match told.recv_timeout(longest) {
                Ok(Ok(Ready { lanes, memory: used })) => {
                    free.extend(lanes);
                    memory.extend(used);
                }
                Ok(Err(error)) => failed = Some(error),
                // It is in a call of the driver that does not return.
                Err(RecvTimeoutError::Timeout) => failed = Some(device.hangs(longest)),
                Err(RecvTimeoutError::Disconnected) => failed = Some(thread_gone()),
            }
            if failed.is_some() {
                break;
            }
        }
        let buckets = common.options.buckets.len();
        let state = Mutex::new(State { free, waiting: vec![0; buckets], lost: None });
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

    /// What its batches have asked of the device since it was loaded.
    #[must_use]
    pub fn usage(&self) -> Usage {
        self.common.counts.read()
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
        self.run_pieces(batch, &mut outputs)?;
        Ok(outputs)
    }

    /// Works on a lane that the device has not. Should `work` panic, the lane goes back to the others: a lane that is lost is
    /// lost for ever, and there are few.
    pub(super) fn work<T>(&self, lane: Lane, work: impl FnOnce(&mut Lane) -> T) -> (Lane, T) {
        let mut lane = lane;
        match catch_unwind(AssertUnwindSafe(|| work(&mut lane))) {
            Ok(done) => (lane, done),
            Err(panic) => {
                self.pool.put(lane);
                resume_unwind(panic)
            }
        }
    }

    /// A lane of the bucket, waited for until then if there is none free. A batch of which the device has done a piece may
    /// wait however many wait already: each of those had a lane, so they are few.
    pub(super) fn take(&self, bucket: usize, until: Instant, has_begun: bool) -> Result<Lane, CudaError> {
        let counts = &self.common.counts;
        let most = if has_begun { usize::MAX } else { self.common.options.waiting };
        let mut queued = None;
        let taken = self.take_before(bucket, until, most, &mut queued);
        if let Some(since) = queued {
            counts.waited_for_lane(since.elapsed());
        }
        match &taken {
            Err(CudaError::Busy { .. }) => counts.busy(),
            Err(CudaError::Late { .. }) => counts.late(),
            _ => {}
        }
        taken
    }

    /// The same, unless `most` wait; `queued` is since when it waits. One that has waited takes whatever lane is free, others only
    /// what those that wait leave over, so nobody overtakes them between the return of a lane and their waking.
    fn take_before(
        &self,
        bucket: usize,
        until: Instant,
        most: usize,
        queued: &mut Option<Instant>,
    ) -> Result<Lane, CudaError> {
        let mut state = self.pool.lock();
        loop {
            if let Some(lost) = &state.lost {
                return Err(lost.clone());
            }
            if let Some(problem) = self.common.device.lost() {
                return Err(CudaError::Lost { problem: problem.to_owned() });
            }
            let lane = if queued.is_some() { state.pick(bucket) } else { state.pick_unwanted(bucket) };
            if let Some(lane) = lane {
                return Ok(lane);
            }
            let waiting = state.waiting.iter().sum();
            if queued.is_none() && waiting >= most {
                return Err(CudaError::Busy { waiting });
            }
            let now = Instant::now();
            let since = *queued.get_or_insert(now);
            let left = until.saturating_duration_since(now);
            if left.is_zero() {
                return Err(CudaError::Late { waited: now.duration_since(since) });
            }
            state.waiting[bucket] += 1;
            let waited = self.pool.changed.wait_timeout(state, left);
            state = waited.unwrap_or_else(PoisonError::into_inner).0;
            state.waiting[bucket] -= 1;
        }
    }

    /// The same, if there is one that nobody waits for.
    pub(super) fn take_free(&self, bucket: usize) -> Option<Lane> {
        let mut state = self.pool.lock();
        if state.lost.is_some() { None } else { state.pick_unwanted(bucket) }
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

impl State {
    /// A free lane of the bucket, if there are more of them than batches that wait for one: those were told of the
    /// others, and will take them.
    fn pick_unwanted(&mut self, bucket: usize) -> Option<Lane> {
        let free = self.free.iter().filter(|lane| lane.bucket == bucket).count();
        if free > self.waiting[bucket] { self.pick(bucket) } else { None }
    }

    /// A free lane of the bucket, of the stream that has most of its lanes free.
    fn pick(&mut self, bucket: usize) -> Option<Lane> {
        let idle = |lane: &Lane| self.free.iter().filter(|other| other.stream == lane.stream).count();
        let of_bucket = self.free.iter().enumerate().filter(|(_, lane)| lane.bucket == bucket);
        let best = of_bucket.max_by_key(|(_, lane)| idle(lane)).map(|(at, _)| at)?;
        Some(self.free.swap_remove(best))
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

pub(super) fn thread_gone() -> CudaError {
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
