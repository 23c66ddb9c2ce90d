//! The pool with its threads held up by gates, so that who waits, and in which order, is known.

use std::{
    sync::{
        Mutex,
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
    let jobs: Vec<_> =
        (0..50u64).map(|i| pool.run(move || (i * i, thread::current().name().map(str::to_owned)))).collect();
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
    pool.register(&registry, "tidepool_node", Some("rows")).unwrap();
    assert!(pool.register(&registry, "tidepool_node", Some("rows")).is_err(), "the names are taken");
    let (release, running) = occupy(&pool);
    let waiting = pool.run_at_cost(40, || ());
    let text = prometheus::TextEncoder::new().encode_to_string(&registry.gather()).unwrap();
    assert!(text.contains("tidepool_node_cpu_pool_waiting_jobs 1\n"), "{text}");
    assert!(text.contains("tidepool_node_cpu_pool_waiting_rows 40\n"), "{text}");
    assert!(text.contains("tidepool_node_cpu_pool_threads 1\n"), "{text}");
    drop(release);
    running.await.unwrap();
    waiting.await.unwrap();
}

/// A list that work writes itself into, in the order in which it is done.
type Log = Arc<Mutex<Vec<&'static str>>>;

fn note(log: &Log, what: &'static str) -> impl FnOnce() -> Result<(), ()> + Send + use<> {
    let log = log.clone();
    move || {
        log.lock().unwrap().push(what);
        Ok(())
    }
}

fn pieces<F>(count: usize, cost: u64, piece: impl Fn() -> F) -> Vec<(u64, F)> {
    (0..count).map(|_| (cost, piece())).collect()
}

#[tokio::test]
async fn results_of_pieces_come_in_order_and_the_first_error_ends_them() {
    let pool = CpuPool::new(3, 8).unwrap();
    let squares = pool.split((0..100u64).map(|i| (i, move || Ok::<_, ()>(i * i))).collect());
    assert_eq!(squares.await, Ok(Ok((0..100).map(|i| i * i).collect())));
    let none = pool.split(Vec::<(u64, fn() -> Result<u8, ()>)>::new());
    assert_eq!(none.await, Ok(Ok(Vec::new())));

    let pool = CpuPool::new(1, 8).unwrap();
    let ran = Arc::new(AtomicUsize::new(0));
    let fails_at = |bad: usize| {
        let ran = ran.clone();
        let piece = move |at| if at == bad { Err(at) } else { Ok(ran.fetch_add(1, Ordering::SeqCst)) };
        pool.split(
            (0..10)
                .map(|at| {
                    (1, {
                        let piece = piece.clone();
                        move || piece(at)
                    })
                })
                .collect(),
        )
    };
    assert_eq!(fails_at(4).await, Ok(Err(4)));
    pool.run(|| ()).await.unwrap();
    assert_eq!(ran.load(Ordering::SeqCst), 4, "what follows the error is skipped");
    let panics = pool.split(vec![(1, || -> Result<(), ()> { panic!("row 7 is bad") })]);
    assert_eq!(panics.await, Err(PoolError::Panicked("row 7 is bad".into())));
}

#[tokio::test]
async fn a_huge_job_lets_small_ones_through_between_its_pieces() {
    let pool = CpuPool::new(1, 8).unwrap();
    let (release, running) = occupy(&pool);
    let log = Log::default();
    let huge = pool.split(pieces(20, 1000, || note(&log, "huge")));
    let small = [1, 2].map(|_| pool.run_at_cost(10, note(&log, "small")));
    release.send(()).unwrap();
    running.await.unwrap();
    huge.await.unwrap().unwrap();
    for small in small {
        small.await.unwrap().unwrap();
    }
    let order = log.lock().unwrap().clone();
    assert_eq!(order[..4], ["huge", "small", "small", "huge"]);
}

#[tokio::test]
async fn a_small_job_that_comes_between_two_pieces_goes_before_the_next_but_one() {
    let pool = CpuPool::new(1, 8).unwrap();
    let (started, has_started) = mpsc::channel();
    let (release, wait) = mpsc::channel::<()>();
    let (log, wait) = (Log::default(), Arc::new(Mutex::new(wait)));
    let piece = || {
        let (noted, started, wait) = (note(&log, "huge"), started.clone(), wait.clone());
        move || {
            started.send(()).unwrap();
            wait.lock().unwrap().recv().unwrap();
            noted()
        }
    };
    let huge = [1, 2].map(|_| pool.split(pieces(10, 1000, piece)));
    for _ in 0..7 {
        has_started.recv_timeout(DEADLINE).unwrap();
        release.send(()).unwrap();
    }
    has_started.recv_timeout(DEADLINE).unwrap();
    let small = pool.run_at_cost(10, note(&log, "small"));
    for _ in 7..20 {
        release.send(()).unwrap();
    }
    small.await.unwrap().unwrap();
    for huge in huge {
        huge.await.unwrap().unwrap();
    }
    let at = log.lock().unwrap().iter().position(|what| *what == "small").unwrap();
    // The eighth piece was under way; one more may have been due already.
    assert!((8..=9).contains(&at), "after {at} pieces of huge jobs");
}

#[tokio::test]
async fn turns_are_shared_by_cost_and_not_by_count() {
    let pool = CpuPool::new(1, 8).unwrap();
    let (release, running) = occupy(&pool);
    let log = Log::default();
    let dear = pool.split(pieces(4, 100, || note(&log, "dear")));
    let cheap = pool.split(pieces(40, 10, || note(&log, "cheap")));
    release.send(()).unwrap();
    running.await.unwrap();
    dear.await.unwrap().unwrap();
    cheap.await.unwrap().unwrap();
    let order = log.lock().unwrap().clone();
    let at: Vec<_> = (0..order.len()).filter(|&at| order[at] == "dear").collect();
    assert_eq!(at, [0, 11, 22, 33], "{order:?}");
}

#[tokio::test]
async fn pieces_whose_caller_has_left_are_skipped() {
    let pool = CpuPool::new(1, 8).unwrap();
    let (release, running) = occupy(&pool);
    let log = Log::default();
    drop(pool.split(pieces(5, 1, || note(&log, "left"))));
    let kept = pool.split(pieces(2, 1, || note(&log, "kept")));
    release.send(()).unwrap();
    running.await.unwrap();
    kept.await.unwrap().unwrap();
    pool.run(|| ()).await.unwrap();
    assert_eq!(*log.lock().unwrap(), ["kept", "kept"]);
}

#[tokio::test]
async fn a_job_goes_on_in_pieces_in_a_full_queue_and_in_a_closed_one() {
    let pool = CpuPool::new(1, 1).unwrap();
    let (release, running) = occupy(&pool);
    let waiting = pool.run(|| 1);
    assert_eq!(pool.run(|| 2).await, Err(PoolError::Full { queue_len: 1 }));
    let goes_on = pool.split(vec![(50, || Ok::<_, ()>(3))]);
    assert_eq!((pool.depth(), pool.cost()), (2, 51));
    pool.close();
    let later = pool.split(vec![(1, || Ok::<_, ()>(4))]);
    release.send(()).unwrap();
    running.await.unwrap();
    assert_eq!(waiting.await, Ok(1));
    assert_eq!(goes_on.await, Ok(Ok(vec![3])));
    assert_eq!(later.await, Ok(Ok(vec![4])));
    assert_eq!((pool.depth(), pool.cost()), (0, 0));
}

#[tokio::test]
async fn threads_stay_on_their_cores_and_a_core_that_is_not_there_is_named() {
    let allowed = rustix::thread::sched_getaffinity(None).unwrap();
    let core = (0..rustix::thread::CpuSet::MAX_CPU).find(|core| allowed.is_set(*core)).unwrap();
    let pool = CpuPool::on_cores(2, 8, &[core]).unwrap();
    let on = pool.run(|| rustix::thread::sched_getaffinity(None).unwrap()).await.unwrap();
    assert_eq!((on.count(), on.is_set(core)), (1, true));
    for absent in [rustix::thread::CpuSet::MAX_CPU - 1, usize::MAX] {
        let error = CpuPool::on_cores(1, 1, &[core, absent]).unwrap_err().to_string();
        assert!(error.contains(&format!("core {absent} is not there")) && error.contains('['), "{error}");
    }
}
