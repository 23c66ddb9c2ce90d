//! Threads for computation, so that long work does not hold up the threads that move bytes. The queue is
//! bounded and says so at once when it is full. Large work comes in pieces ([`CpuPool::split`]), between which
//! others have their turn.

mod cores;
mod pieces;
mod queue;

use std::{
    any::Any,
    collections::VecDeque,
    fmt, io,
    num::NonZeroUsize,
    panic::{AssertUnwindSafe, catch_unwind},
    sync::Arc,
    thread,
};

use pieces::Together;
use prometheus::{PullingGauge, Registry};
use queue::{Piece, Queue};
use thiserror::Error;
use tokio::sync::oneshot;

/// A fixed number of threads and a bounded queue before them. Clones share it; when the last is dropped,
/// the threads finish what is queued and end.
#[derive(Clone)]
pub struct CpuPool {
    handle: Arc<Handle>,
}

/// Why there is no result.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum PoolError {
    /// The queue is full; nothing was done. The wire says `overloaded`.
    #[error("the CPU pool is full: {queue_len} jobs are waiting")]
    Full {
        /// How many may wait.
        queue_len: usize,
    },
    /// The pool was closed; nothing was done.
    #[error("the CPU pool is closed")]
    Gone,
    /// The work panicked: a defect. The pool goes on.
    #[error("work in the CPU pool panicked: {0}")]
    Panicked(String),
}

/// The pool could not be started.
#[derive(Debug, Error)]
pub enum SpawnError {
    /// The system gives no more threads.
    #[error("could not start thread {thread} of {threads} of the CPU pool")]
    Thread {
        /// Which one, from 1.
        thread: usize,
        /// How many there were to be.
        threads: usize,
        /// Why.
        source: io::Error,
    },
    /// A core that is not there, or that the process may not run on.
    #[error("core {core} is not there for this process, which may run on the cores {allowed:?}")]
    Core {
        /// Which one.
        core: usize,
        /// Those that there are.
        allowed: Vec<usize>,
    },
    /// The system does not say which cores there are.
    #[error("could not find out which cores there are")]
    Cores {
        /// Why.
        source: io::Error,
    },
}

/// Owned by the users of the pool and not by its threads, so that its drop closes the queue.
struct Handle {
    queue: Arc<Queue>,
    threads: usize,
}

impl CpuPool {
    /// Starts `threads` threads, named `cpu-0`, `cpu-1`, ..., before which at most `queue_len` jobs wait.
    /// Zero of either could not do anything and counts as one.
    ///
    /// # Errors
    /// [`SpawnError`] when the system gives no more threads; those that were started end.
    pub fn new(threads: usize, queue_len: usize) -> Result<Self, SpawnError> {
        Self::on_cores(threads, queue_len, &[])
    }

    /// The same with the threads kept on `cores`, one after the other; anywhere without any.
    ///
    /// # Errors
    /// [`SpawnError`], also for a core that is not there.
    pub fn on_cores(threads: usize, queue_len: usize, cores: &[usize]) -> Result<Self, SpawnError> {
        cores::check(cores)?;
        let threads = threads.max(1);
        let queue = Arc::new(Queue::new(queue_len.max(1)));
        let handle = Arc::new(Handle { queue: queue.clone(), threads });
        for index in 0..threads {
            let queue = queue.clone();
            let core = (!cores.is_empty()).then(|| cores[index % cores.len()]);
            thread::Builder::new()
                .name(format!("cpu-{index}"))
                .spawn(move || {
                    core.into_iter().for_each(cores::stay_on);
                    queue.work();
                })
                .map_err(|source| SpawnError::Thread { thread: index + 1, threads, source })?;
        }
        Ok(Self { handle })
    }

    /// As many threads as the process may use cores.
    #[must_use]
    pub fn default_threads() -> usize {
        thread::available_parallelism().map_or(1, NonZeroUsize::get)
    }

    /// Queues `work` now, and gives a future of its result. Work whose future was dropped before a thread
    /// got to it is skipped. The current tracing span goes along.
    ///
    /// # Errors
    /// [`PoolError`]; `Full` and `Gone` are decided before this returns.
    pub fn run<T, F>(&self, work: F) -> impl Future<Output = Result<T, PoolError>> + Send + use<T, F>
    where
        F: FnOnce() -> T + Send + 'static,
        T: Send + 'static,
    {
        self.run_at_cost(1, work)
    }

    /// The same for work of a known cost, in whatever unit all users of the pool count.
    ///
    /// # Errors
    /// As [`run`](Self::run).
    pub fn run_at_cost<T, F>(
        &self,
        cost: u64,
        work: F,
    ) -> impl Future<Output = Result<T, PoolError>> + Send + use<T, F>
    where
        F: FnOnce() -> T + Send + 'static,
        T: Send + 'static,
    {
        let (sender, result) = oneshot::channel();
        let span = tracing::Span::current();
        let job = Box::new(move || {
            if sender.is_closed() {
                return;
            }
            let done = catch_unwind(AssertUnwindSafe(|| span.in_scope(work)));
            // The caller may have left meanwhile; then nobody misses the result.
            let _ = sender.send(done.map_err(|payload| PoolError::panicked(&*payload)));
        });
        let queued = self.handle.queue.push([Piece { cost: cost.max(1), job }].into(), false);
        async move {
            queued?;
            result.await.unwrap_or(Err(PoolError::Gone))
        }
    }

    /// Goes on, in pieces, with work that the pool has begun: for jobs that find out how large they are. Queues
    /// the pieces now, each with its cost, and gives a future of all their results in order. Between the pieces of
    /// one job those of others have their turn, in proportion to cost. Once a piece has failed, or the future was
    /// dropped, the rest is skipped.
    ///
    /// The queue takes the pieces even when it is full or closed: the job had its place there. So never more
    /// than `queue_len` jobs wait, and one more for each thread.
    ///
    /// # Errors
    /// [`PoolError::Panicked`], or inside the first error that a piece returned.
    pub fn split<T, E, F>(
        &self,
        pieces: Vec<(u64, F)>,
    ) -> impl Future<Output = Result<Result<Vec<T>, E>, PoolError>> + Send + use<T, E, F>
    where
        F: FnOnce() -> Result<T, E> + Send + 'static,
        T: Send + 'static,
        E: Send + 'static,
    {
        let (together, outcome) = Together::new(pieces.len());
        let span = tracing::Span::current();
        let piece = |(at, (cost, work)): (usize, (u64, F))| {
            let (together, span) = (together.clone(), span.clone());
            let job = Box::new(move || {
                if !together.is_over() {
                    together.settle(at, catch_unwind(AssertUnwindSafe(|| span.in_scope(work))));
                }
            });
            Piece { cost: cost.max(1), job }
        };
        let pieces: VecDeque<_> = pieces.into_iter().enumerate().map(piece).collect();
        let queued = self.handle.queue.push(pieces, true);
        async move {
            queued?;
            outcome.await.unwrap_or(Err(PoolError::Gone))
        }
    }

    /// How many jobs wait for a thread.
    #[must_use]
    pub fn depth(&self) -> usize {
        self.handle.queue.len()
    }

    /// What the work that waits for a thread costs.
    #[must_use]
    pub fn cost(&self) -> u64 {
        self.handle.queue.cost()
    }

    /// How many threads there are.
    #[must_use]
    pub fn threads(&self) -> usize {
        self.handle.threads
    }

    /// How many jobs may wait.
    #[must_use]
    pub fn queue_len(&self) -> usize {
        self.handle.queue.max_len
    }

    /// Refuses work from now on; what is queued is still done.
    pub fn close(&self) {
        self.handle.queue.close();
    }

    /// Shows the pool in `registry` as `<prefix>_cpu_pool_waiting_jobs` and `<prefix>_cpu_pool_threads`, and if
    /// cost has a unit, as `<prefix>_cpu_pool_waiting_<unit>`. The registry then keeps the queue's gauges, not
    /// the threads, alive.
    ///
    /// # Errors
    /// What the registry says of a name that is taken or is none.
    pub fn register(&self, registry: &Registry, prefix: &str, unit: Option<&str>) -> prometheus::Result<()> {
        let gauge = |rest: &str, help: &str, value: Box<dyn Fn() -> f64 + Send + Sync>| {
            let gauge = PullingGauge::new(format!("{prefix}_cpu_pool_{rest}"), help, value)?;
            registry.register(Box::new(gauge))
        };
        let (queue, threads) = (self.handle.queue.clone(), self.threads() as f64);
        gauge(
            "waiting_jobs",
            "Jobs that wait for a thread of the CPU pool",
            Box::new(move || queue.len() as f64),
        )?;
        gauge("threads", "Threads of the CPU pool", Box::new(move || threads))?;
        if let Some(unit) = unit {
            let queue = self.handle.queue.clone();
            let help = format!("What waits for a thread of the CPU pool, in {unit}");
            gauge(&format!("waiting_{unit}"), &help, Box::new(move || queue.cost() as f64))?;
        }
        Ok(())
    }
}

impl fmt::Debug for CpuPool {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("CpuPool")
            .field("threads", &self.threads())
            .field("queue_len", &self.queue_len())
            .field("depth", &self.depth())
            .finish()
    }
}

impl Drop for Handle {
    fn drop(&mut self) {
        self.queue.close();
    }
}

impl PoolError {
    fn panicked(payload: &(dyn Any + Send)) -> Self {
        let text = payload.downcast_ref::<&str>().copied();
        let text = text.or_else(|| payload.downcast_ref::<String>().map(String::as_str));
        Self::Panicked(text.unwrap_or("(no text)").to_owned())
    }
}

#[cfg(test)]
mod tests;
