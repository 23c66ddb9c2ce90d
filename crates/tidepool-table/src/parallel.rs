//! Works on the partitions of a version with several threads, and tells the caller's thread how far they are.

use std::{
    panic,
    sync::{Mutex, PoisonError, mpsc},
    thread,
};

/// Words of progress on their way; a worker waits when nobody listens.
const WORDS: usize = 64;

/// Calls `work` with each item and its position, on `workers` threads, and gives the results in the order
/// of the items. What `work` tells its last argument arrives at `progress`, on the calling thread.
pub(crate) fn for_each<T: Send, R: Send>(
    items: Vec<T>,
    workers: usize,
    work: impl Fn(usize, T, &dyn Fn(u64)) -> R + Sync,
    progress: &mut dyn FnMut(u64),
) -> Vec<R> {
    let count = items.len();
    let queue = Mutex::new(items.into_iter().enumerate());
    // A panic elsewhere is not a reason to stop here: it is passed on below.
    let next = || queue.lock().unwrap_or_else(PoisonError::into_inner).next();
    let (words, heard) = mpsc::sync_channel(WORDS);
    let mut results: Vec<Option<R>> = std::iter::repeat_with(|| None).take(count).collect();
    thread::scope(|scope| {
        let threads: Vec<_> = (0..workers.clamp(1, count.max(1)))
            .map(|_| {
                let words = words.clone();
                let (work, next) = (&work, &next);
                scope.spawn(move || {
                    let tell = |rows| {
                        // The listener ends only after all workers.
                        let _ = words.send(rows);
                    };
                    let mut done = Vec::new();
                    while let Some((at, item)) = next() {
                        done.push((at, work(at, item, &tell)));
                    }
                    done
                })
            })
            .collect();
        drop(words);
        heard.iter().for_each(&mut *progress);
        for thread in threads {
            let done = thread.join().unwrap_or_else(|payload| panic::resume_unwind(payload));
            done.into_iter().for_each(|(at, result)| results[at] = Some(result));
        }
    });
    results.into_iter().flatten().collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn results_come_in_order_and_all_progress_arrives() {
        for workers in [1, 3, 100] {
            let mut told = 0;
            let items: Vec<u64> = (0..50).collect();
            let doubled = for_each(
                items,
                workers,
                |at, item, tell| {
                    tell(item);
                    item + at as u64
                },
                &mut |rows| told += rows,
            );
            assert_eq!(doubled, (0..50).map(|n| 2 * n).collect::<Vec<u64>>());
            assert_eq!(told, 49 * 50 / 2);
        }
        assert!(for_each(Vec::<u64>::new(), 4, |_, item, _| item, &mut |_| ()).is_empty());
    }
}
