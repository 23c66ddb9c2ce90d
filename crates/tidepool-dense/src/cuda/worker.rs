//! The thread that owns a stream: its graphs, its arena, its place in the device's work. Batches come to it in pinned
//! memory and go back in it.
#![expect(unsafe_code, reason = "graphs are captured of steps whose memory this file allocated")]

use std::{
    sync::{
        Arc,
        mpsc::{Receiver, SyncSender},
    },
    time::{Duration, Instant},
};

use super::{
    CudaDevice, CudaError, CudaOptions,
    around::{OnStream, Prepared},
    blas::Blas,
    memory::{DeviceBuffer, Layout, Pinned},
    module::Module,
    packing,
    program::Program,
    record::{Addresses, Bucket, Kernels, Recorder},
    rows::Tally,
    spread::spread,
    staging::{Array, Brought, Staging},
    step::Recording,
    stream::{Event, Graph, Stream},
    usage::{Counts, Moved},
};

/// A batch's memory on the host: what goes to the device, and what comes back. A stream has one for each bucket, so a
/// stream's queue is as long as it has buckets, at most.
pub(crate) struct Lane {
    /// Of the stream that it is for.
    pub(crate) stream: usize,
    /// Of the bucket.
    pub(crate) bucket: usize,
    pub(crate) staging: Pinned,
    pub(crate) brought: Brought,
    /// f32: `[outputs, rows of the bucket]`, or the answer of a selection.
    pub(crate) results: Pinned,
    /// Bytes that are copied back: of the answer, where the model has a selection, else of the results.
    pub(crate) back: usize,
    /// How much of the rows' regions is written.
    pub(crate) tally: Tally,
    /// Resident rows that were not found in the batches before.
    pub(crate) lost: u32,
}

/// A lane to be run, and where it goes then.
pub(crate) struct Job {
    pub(crate) lane: Lane,
    /// When it was asked for, and until when it may wait for its turn.
    pub(crate) asked: Instant,
    pub(crate) until: Instant,
    pub(crate) reply: SyncSender<(Lane, Result<(), CudaError>)>,
}

/// What every stream of a model shares.
pub(crate) struct Common {
    pub(crate) device: Arc<CudaDevice>,
    pub(crate) program: Program,
    pub(crate) module: Arc<Module>,
    /// What the model fixes, on the device.
    pub(crate) fixed: DeviceBuffer,
    /// Per bucket.
    pub(crate) staging: Vec<Staging>,
    /// What is done beside the plan, if anything is.
    pub(crate) around: Option<Prepared>,
    pub(crate) options: CudaOptions,
    /// What batches have asked for since the load.
    pub(crate) counts: Counts,
}

impl Common {
    /// Bytes of the staging buffer of a bucket: the most that a batch of it brings.
    pub(crate) fn staging_bytes(&self, bucket: usize) -> usize {
        let staging = &self.staging[bucket];
        let most = || staging.most(staging.head());
        self.around.as_ref().map_or_else(most, |around| around.buckets[bucket].bytes)
    }

    /// Where arrays begin in it, behind the heads.
    pub(crate) fn first(&self, bucket: usize) -> usize {
        let head = || self.staging[bucket].head();
        self.around.as_ref().map_or_else(head, |around| around.buckets[bucket].first)
    }

    /// Bytes of the results of so many rows: outputs have room for the bucket each, and what is behind the last row of the
    /// last is left out.
    pub(crate) fn outputs_bytes(&self, bucket: usize, rows: usize) -> usize {
        let room = self.staging[bucket].bucket.rows as usize;
        (self.program.outputs.saturating_sub(1) * room + rows) * size_of::<f32>()
    }

    /// Bytes of what comes back of a bucket, at most.
    fn results_bytes(&self, bucket: usize) -> usize {
        let outputs = self.outputs_bytes(bucket, self.staging[bucket].bucket.rows as usize);
        let select = self.around.as_ref().and_then(|around| around.buckets[bucket].select.as_ref());
        select.map_or(outputs, |select| select.answer_room())
    }
}

/// Memory of one kind.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MemoryUse {
    /// What lies in it.
    pub what: &'static str,
    /// The stream that it belongs to; shared by all if none.
    pub stream: Option<usize>,
    /// The bucket that it belongs to; used by all of a stream's, one after the other, if none.
    pub bucket: Option<Bucket>,
    /// How much, as it was asked of the driver.
    pub bytes: u64,
    /// Whether it is pinned memory of the host, and not of the device.
    pub pinned: bool,
}

/// What a stream's thread has when it is ready.
pub(crate) struct Ready {
    pub(crate) lanes: Vec<Lane>,
    pub(crate) memory: Vec<MemoryUse>,
}

/// One stream, on its thread.
struct Owner {
    common: Arc<Common>,
    stream: Stream,
    /// One for each bucket, behind its last batch: a lane's memory knows by it when it is free.
    events: Vec<Arc<Event>>,
    staging: DeviceBuffer,
    /// What is brought, spread over the room of a bucket.
    spread: DeviceBuffer,
    results: DeviceBuffer,
    /// What the steps around the plan work in.
    around: Option<OnStream>,
    graphs: Vec<Graph>,
    /// The steps that the graphs were captured from, with the memory that they work in.
    recordings: Vec<Recording>,
}

/// Runs a stream until nobody sends to it any more. `ready` hears whether it could be set up.
pub(crate) fn own(
    common: Arc<Common>,
    number: usize,
    ready: &SyncSender<Result<Ready, CudaError>>,
    jobs: &Receiver<Job>,
) {
    let (mut owner, told) = match Owner::new(common, number) {
        Ok(made) => made,
        Err(error) => {
            // The loader waits for this.
            let _ = ready.send(Err(error));
            return;
        }
    };
    if ready.send(Ok(told)).is_err() {
        return;
    }
    while let Ok(Job { mut lane, asked, until, reply }) = jobs.recv() {
        let begun = Instant::now();
        let waited = begun.saturating_duration_since(asked);
        owner.common.counts.waited_for_turn(waited);
        let done = if begun < until {
            let done = owner.run(&mut lane);
            if done.is_ok() {
                owner.common.counts.done(owner.moved(&lane), begun.elapsed());
            }
            done
        } else {
            owner.common.counts.late();
            Err(CudaError::Late { waited })
        };
        // A caller that is gone has left its lane behind.
        let _ = reply.send((lane, done));
    }
}

impl Owner {
    /// Allocates everything, runs the steps of each bucket once, captures them as a graph, and runs that once.
    fn new(common: Arc<Common>, number: usize) -> Result<(Self, Ready), CudaError> {
        let Common { device, program, staging, .. } = &*common;
        let stream = Stream::new(device)?;
        let blas = Blas::new(device)?;
        let mut memory = Vec::new();
        let mut note = |what, bucket, bytes: usize, pinned| {
            memory.push(MemoryUse { what, stream: Some(number), bucket, bytes: bytes as u64, pinned });
        };
        note("cuBLASLt's workspace", None, blas.workspace_bytes(), false);
        let outputs = program.outputs;
        let results_bytes = |bucket: Bucket| outputs * bucket.rows as usize * size_of::<f32>();
        let most = |of: &dyn Fn(usize) -> usize| (0..staging.len()).map(of).max().unwrap_or(0);
        let buffer = |bytes: usize, what: &str| DeviceBuffer::new(device, bytes, what);
        if most(&|at| common.staging_bytes(at)) > packing::MOST {
            let problem =
                format!("a batch may bring more than {} bytes: smaller buckets are needed", packing::MOST);
            return Err(CudaError::Options(problem));
        }
        let in_device = buffer(most(&|at| common.staging_bytes(at)), "staging on the device")?;
        note("staging", None, in_device.bytes(), false);
        let over = buffer(most(&|at| staging[at].spread), "inputs")?;
        note("inputs", None, over.bytes(), false);
        let results = buffer(most(&|at| results_bytes(staging[at].bucket)), "results")?;
        note("results", None, results.bytes(), false);
        let arenas: Vec<Arena> = staging.iter().map(|staging| Arena::of(program, staging.bucket)).collect();
        let arena = Arc::new(buffer(most(&|at| arenas[at].layout.bytes()), "the arena")?);
        note("arena", None, arena.bytes(), false);
        let events = staging.iter().map(|_| Ok(Arc::new(Event::new(device)?)));
        let events = events.collect::<Result<_, CudaError>>()?;
        let (graphs, recordings) = (Vec::new(), Vec::new());
        let around = common.around.as_ref().map(|around| around.on_stream(&stream)).transpose()?;
        let mut owner = Self {
            common: common.clone(),
            stream,
            events,
            staging: in_device,
            spread: over,
            results,
            around,
            graphs,
            recordings,
        };
        let mut lanes = Vec::new();
        let mut kernels = Kernels::new(common.module.clone());
        for (number_of_bucket, (staging, places)) in common.staging.iter().zip(&arenas).enumerate() {
            let bucket = staging.bucket;
            let mut addresses = owner.addresses(staging, places, &arena, outputs);
            let around = match (&common.around, &mut owner.around) {
                (Some(around), Some(on_stream)) => {
                    let base = owner.staging.address();
                    around.record(&owner.stream, on_stream, number_of_bucket, base, &mut addresses)?
                }
                _ => Default::default(),
            };
            let recorder = Recorder {
                program: &common.program,
                kernels: &mut kernels,
                blas: &blas,
                addresses: &addresses,
                bucket,
            };
            let (before, behind) = around;
            let steps = recorder.steps()?;
            let (staged, over) = (owner.staging.address(), owner.spread.address());
            let mut recording = spread(&owner.stream, &mut kernels, staging, staged, over)?;
            recording.steps.extend(before.steps);
            recording.memory.extend(before.memory);
            recording.steps.extend(steps);
            recording.steps.extend(behind.steps);
            recording.memory.extend(behind.memory.into_iter().chain([arena.clone()]));
            owner.recordings.push(recording);
            let selects = owner.around.as_ref().is_some_and(|made| made.answers[number_of_bucket].is_some());
            let lane = Lane {
                stream: number,
                bucket: number_of_bucket,
                staging: Pinned::new(&common.device, common.staging_bytes(number_of_bucket), "staging")?,
                // Of no rows: heads of zeros alone.
                brought: Brought { rows: 0, bytes: common.first(number_of_bucket) },
                results: Pinned::new(&common.device, common.results_bytes(number_of_bucket), "results")?,
                // A count of lost rows, or a row that nobody asked for.
                back: if selects { 8 } else { common.outputs_bytes(number_of_bucket, 1) },
                tally: Tally::default(),
                lost: 0,
            };
            note("staging", Some(bucket), lane.staging.bytes(), true);
            note("results", Some(bucket), lane.results.bytes(), true);
            lanes.push(lane);
        }
        if let Some(around) = &owner.around {
            note("rows, inputs made from them, and selections", None, around.bytes, false);
        }
        // Once each over zeros, step by step: what breaks breaks now, and what is made or loaded at first use (kernels of
        // cuBLASLt among it) is not made during a capture, which forbids it.
        for lane in &mut lanes {
            owner.run(lane)?;
        }
        for recording in owner.recordings.iter().filter(|_| common.options.graphs) {
            let graph = owner.stream.capture(|stream| {
                // SAFETY: the addresses are those of the buffers that `owner` and `common` keep, sized for the largest
                // bucket; each step reaches as far as the bucket's records do.
                unsafe { recording.ask(stream) }
            })?;
            owner.graphs.push(graph);
        }
        for lane in lanes.iter_mut().filter(|_| common.options.graphs) {
            owner.run(lane)?;
        }
        Ok((owner, Ready { lanes, memory }))
    }

    fn addresses(
        &self,
        staging: &Staging,
        places: &Arena,
        arena: &DeviceBuffer,
        outputs: usize,
    ) -> Addresses {
        let at = |array: &Array| self.spread.address() + array.at as u64;
        let results = (0..outputs).map(|output| {
            self.results.address() + (output * staging.bucket.rows as usize * size_of::<f32>()) as u64
        });
        Addresses {
            fixed: self.common.fixed.address(),
            arena: places.regions.map(|at| arena.address() + at as u64),
            packed: arena.address() + places.packed as u64,
            request_of: at(&staging.arrays[0]),
            inputs: staging.arrays[1..].iter().map(at).collect(),
            results: results.collect(),
        }
    }

    /// One copy in, one graph, one copy out; then waits for them, but not for ever.
    fn run(&mut self, lane: &mut Lane) -> Result<(), CudaError> {
        let asked = self.ask(lane);
        // Also when something was refused half-way: the copies before it are done all the same, and the lane's memory is
        // the device's until they are.
        let event = &self.events[lane.bucket];
        let recorded = self.stream.record(event, &mut [&mut lane.staging, &mut lane.results]);
        asked.and(recorded.and_then(|()| event.wait(self.common.options.deadline)))
    }

    /// What a run of a lane moves.
    fn moved(&self, lane: &Lane) -> Moved {
        let launches = if self.graphs.is_empty() { self.recordings[lane.bucket].steps.len() } else { 1 };
        let Brought { rows, bytes } = lane.brought;
        Moved { rows, bytes_in: bytes, bytes_out: lane.back, launches }
    }

    fn ask(&mut self, lane: &mut Lane) -> Result<(), CudaError> {
        self.stream.copy_in(&mut lane.staging, &self.staging, lane.brought.bytes)?;
        match self.graphs.get(lane.bucket) {
            Some(graph) => self.stream.launch(graph)?,
            // SAFETY: as where the graph is captured of the same steps.
            None => unsafe { self.recordings[lane.bucket].ask(&self.stream) }?,
        }
        let from = match self.around.as_ref().and_then(|around| around.answers[lane.bucket].as_ref()) {
            Some(answer) => answer.as_ref(),
            None => &self.results,
        };
        self.stream.copy_out(from, 0, &mut lane.results, lane.back)
    }
}

impl Drop for Owner {
    fn drop(&mut self) {
        // Graphs go before the memory that they work in, and nothing goes while the device is at it.
        for event in &self.events {
            let _ = event.wait(Duration::from_secs(1));
        }
        self.graphs.clear();
    }
}

/// How the arena of a bucket is laid out, in bytes.
struct Arena {
    layout: Layout,
    /// Of requests, and of rows.
    regions: [usize; 2],
    packed: usize,
}

impl Arena {
    fn of(program: &Program, bucket: Bucket) -> Self {
        let (rows, requests) = (bucket.rows as usize, bucket.requests as usize);
        let mut layout = Layout::default();
        let mut floats = |count: usize| layout.push(count * size_of::<f32>());
        let regions = [floats(program.extent.requests * requests), floats(program.extent.rows * rows)];
        let packed = program.packed();
        let elements = (packed.requests * requests).max(packed.rows * rows);
        let packed = layout.push(elements * program.precision.element_bytes());
        Self { layout, regions, packed }
    }
}
