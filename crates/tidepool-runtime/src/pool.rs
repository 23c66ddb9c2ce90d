//! Threads for computation, so that long work does not hold up the threads that move bytes. The queue is
//! bounded and says so at once when it is full.

use std::{
    any::Any,
    collections::VecDeque,
    fmt, io,
    num::NonZeroUsize,
    panic::{AssertUnwindSafe, catch_unwind},
    sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError},
    thread,
};

use prometheus::{PullingGauge, Registry};
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

/// A thread could not be started.
#[derive(Debug, Error)]
#[error("could not start thread {thread} of {threads} of the CPU pool")]
pub struct SpawnError {
    /// Which one, from 1.
    pub thread: usize,
    /// How many there were to be.
    pub threads: usize,
    /// Why.
    pub source: io::Error,
}

type Job = Box<dyn FnOnce() + Send>;

/// Owned by the users of the pool and not by its threads, so that its drop closes the queue.
struct Handle {
    queue: Arc<Queue>,
    threads: usize,
}

struct Queue {
    state: Mutex<State>,
    /// Signalled when a job arrives, and when the queue closes.
    changed: Condvar,
    max_len: usize,
}

#[derive(Default)]
struct State {
    waiting: VecDeque<Job>,
    closed: bool,
}

impl CpuPool {
    /// Starts `threads` threads, named `cpu-0`, `cpu-1`, ..., before which at most `queue_len` jobs wait.
    /// Zero of either could not do anything and counts as one.
    ///
    /// # Errors
    /// [`SpawnError`] when the system gives no more threads; those that were started end.
    pub fn new(threads: usize, queue_len: usize) -> Result<Self, SpawnError> {
        let (threads, max_len) = (threads.max(1), queue_len.max(1));
        let queue = Arc::new(Queue { state: Mutex::default(), changed: Condvar::new(), max_len });
        let handle = Arc::new(Handle { queue: queue.clone(), threads });
        for index in 0..threads {
            let queue = queue.clone();
            thread::Builder::new()
                .name(format!("cpu-{index}"))
                .spawn(move || queue.work())
                .map_err(|source| SpawnError { thread: index + 1, threads, source })?;
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
        let (sender, result) = oneshot::channel();
        let span = tracing::Span::current();
        let queued = self.handle.queue.push(Box::new(move || {
            if sender.is_closed() {
                return;
            }
            let done = catch_unwind(AssertUnwindSafe(|| span.in_scope(work)));
            // The caller may have left meanwhile; then nobody misses the result.
            let _ = sender.send(done.map_err(|payload| PoolError::Panicked(panic_text(&*payload))));
        }));
        async move {
            queued?;
            result.await.unwrap_or(Err(PoolError::Gone))
        }
    }

    /// How many jobs wait for a thread.
    #[must_use]
    pub fn depth(&self) -> usize {
        self.handle.queue.lock().waiting.len()
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

    /// Shows the pool in `registry` as `<prefix>_cpu_pool_waiting_jobs` and `<prefix>_cpu_pool_threads`.
    /// The registry then keeps the queue's gauge, not the threads, alive.
    ///
    /// # Errors
    /// What the registry says of a name that is taken or is none.
    pub fn register(&self, registry: &Registry, prefix: &str) -> prometheus::Result<()> {
        let (queue, threads) = (self.handle.queue.clone(), self.threads() as f64);
        let waiting = PullingGauge::new(
            format!("{prefix}_cpu_pool_waiting_jobs"),
            "Jobs that wait for a thread of the CPU pool",
            Box::new(move || queue.lock().waiting.len() as f64),
        )?;
        let threads = PullingGauge::new(
            format!("{prefix}_cpu_pool_threads"),
            "Threads of the CPU pool",
            Box::new(move || threads),
        )?;
        registry.register(Box::new(waiting))?;
        registry.register(Box::new(threads))
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

impl Queue {
    /// Nothing panics while it is held, so a poisoned lock guards a good state.
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn push(&self, job: Job) -> Result<(), PoolError> {
        let mut state = self.lock();
        if state.closed {
            return Err(PoolError::Gone);
        }
        if state.waiting.len() >= self.max_len {
            return Err(PoolError::Full { queue_len: self.max_len });
        }
        state.waiting.push_back(job);
        drop(state);
        self.changed.notify_one();
        Ok(())
    }

    fn close(&self) {
        self.lock().closed = true;
        self.changed.notify_all();
    }

    /// The life of a thread.
    fn work(&self) {
        while let Some(job) = self.next() {
            // The job catches the panics of the work; this catches those of dropping what it leaves behind.
            if catch_unwind(AssertUnwindSafe(job)).is_err() {
                tracing::error!("a job of the CPU pool panicked while it was taken down");
            }
        }
    }

    /// Waits for a job; `None` when the queue is closed and empty.
    fn next(&self) -> Option<Job> {
        let mut state = self.lock();
        loop {
            if let Some(job) = state.waiting.pop_front() {
                return Some(job);
            }
            if state.closed {
                return None;
            }
            state = self.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
    }
}

fn panic_text(payload: &(dyn Any + Send)) -> String {
    let text = payload.downcast_ref::<&str>().copied();
    let text = text.or_else(|| payload.downcast_ref::<String>().map(String::as_str));
    text.unwrap_or("(no text)").to_owned()
}

#[cfg(test)]
mod tests {
    use std::{
        sync::{
            atomic::{AtomicUsize, Ordering},
            mpsc,
        },
        time::Duration,
    };

    use super::*;

    const DEADLINE: Duration = Duration::from_secs(30);

    /// Occupies one thread of the pool until the sender is used or dropped; returns once it is occupied.
    fn occupy(pool: &CpuPool) -> (mpsc::Sender<()>, impl Future<Output = Result<(), PoolError>> + use<>) {
        let (release, wait) = mpsc::channel::<()>();
        let (started, has_started) = mpsc::channel();
        let done = pool.run(move || {
            let _ = started.send(());
            let _ = wait.recv();
        });
        has_started.recv_timeout(DEADLINE).unwrap();
        (release, done)
    }

    #[tokio::test]
    async fn results_come_back_from_named_threads() {
        let pool = CpuPool::new(2, 100).unwrap();
        let jobs: Vec<_> = (0..50u64)
            .map(|i| pool.run(move || (i * i, thread::current().name().map(str::to_owned))))
            .collect();
        for (i, job) in jobs.into_iter().enumerate() {
            let (square, thread) = job.await.unwrap();
            assert_eq!(square, (i * i) as u64);
            assert!(matches!(thread.as_deref(), Some("cpu-0" | "cpu-1")), "{thread:?}");
        }
        assert_eq!((pool.threads(), pool.queue_len(), pool.depth()), (2, 100, 0));
    }

    #[tokio::test]
    async fn a_full_queue_says_so_at_once_and_recovers() {
        let pool = CpuPool::new(1, 2).unwrap();
        let (release, running) = occupy(&pool);
        let waiting = [1, 2].map(|i| pool.run(move || i));
        assert_eq!(pool.depth(), 2);
        // The thread is still occupied, so this answer cannot come from it.
        assert_eq!(pool.run(|| 3).await, Err(PoolError::Full { queue_len: 2 }));
        release.send(()).unwrap();
        running.await.unwrap();
        for (job, expected) in waiting.into_iter().zip([1, 2]) {
            assert_eq!(job.await, Ok(expected));
        }
        assert_eq!(pool.run(|| 4).await, Ok(4));
    }

    #[tokio::test]
    async fn a_panic_is_an_error_and_the_thread_goes_on() {
        let pool = CpuPool::new(1, 8).unwrap();
        let text = pool.run(|| -> u8 { panic!("row {} is bad", 7) }).await;
        assert_eq!(text, Err(PoolError::Panicked("row 7 is bad".into())));
        let other = pool.run(|| -> u8 { std::panic::panic_any(7u8) }).await;
        assert_eq!(other, Err(PoolError::Panicked("(no text)".into())));

        /// Panics when it is dropped, which happens outside of the work when its caller has left.
        struct Bomb;
        impl Drop for Bomb {
            fn drop(&mut self) {
                panic!("while dropping");
            }
        }
        let (release, running) = occupy(&pool);
        let bomb = Bomb;
        drop(pool.run(move || {
            let _bomb = &bomb;
        }));
        release.send(()).unwrap();
        running.await.unwrap();
        assert_eq!(pool.run(|| 8).await, Ok(8));
    }

    #[tokio::test]
    async fn work_whose_caller_has_left_is_skipped() {
        let pool = CpuPool::new(1, 8).unwrap();
        let (release, running) = occupy(&pool);
        let ran = Arc::new(AtomicUsize::new(0));
        let count = || {
            let ran = ran.clone();
            pool.run(move || ran.fetch_add(1, Ordering::SeqCst))
        };
        drop(count());
        let kept = count();
        drop(count());
        release.send(()).unwrap();
        running.await.unwrap();
        kept.await.unwrap();
        pool.run(|| ()).await.unwrap();
        assert_eq!(ran.load(Ordering::SeqCst), 1);
    }

    #[tokio::test]
    async fn a_closed_pool_finishes_and_refuses() {
        let pool = CpuPool::new(1, 8).unwrap();
        let (release, running) = occupy(&pool);
        let queued = pool.run(|| 5);
        pool.close();
        assert_eq!(pool.run(|| 6).await, Err(PoolError::Gone));
        release.send(()).unwrap();
        running.await.unwrap();
        assert_eq!(queued.await, Ok(5));
    }

    #[tokio::test]
    async fn the_threads_end_with_the_last_handle() {
        /// Held by the threads as long as they live: each keeps the queue.
        fn threads_alive(queue: &Arc<Queue>) -> usize {
            Arc::strong_count(queue) - 1
        }
        let pool = CpuPool::new(3, 8).unwrap();
        let queue = pool.handle.queue.clone();
        let last = pool.run(|| 9);
        drop(pool);
        assert_eq!(last.await, Ok(9));
        let until = std::time::Instant::now() + DEADLINE;
        while threads_alive(&queue) > 0 {
            assert!(std::time::Instant::now() < until, "threads are left");
            thread::yield_now();
        }
    }

    #[tokio::test]
    async fn the_depth_is_a_metric() {
        let pool = CpuPool::new(1, 8).unwrap();
        let registry = Registry::new();
        pool.register(&registry, "tidepool_node").unwrap();
        assert!(pool.register(&registry, "tidepool_node").is_err(), "the names are taken");
        let (release, running) = occupy(&pool);
        let waiting = pool.run(|| ());
        let text = prometheus::TextEncoder::new().encode_to_string(&registry.gather()).unwrap();
        assert!(text.contains("tidepool_node_cpu_pool_waiting_jobs 1\n"), "{text}");
        assert!(text.contains("tidepool_node_cpu_pool_threads 1\n"), "{text}");
        drop(release);
        running.await.unwrap();
        waiting.await.unwrap();
    }
}
