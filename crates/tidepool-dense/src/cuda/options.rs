//! What a model on a device is loaded with, judged once.

use std::{path::PathBuf, time::Duration};

use super::{CudaError, Precision, record::Bucket};

/// The most buckets, streams and waiting batches that options may ask for.
const MAX_BUCKETS: usize = 16;
const MAX_STREAMS: usize = 16;
const MAX_WAITING: usize = 4096;
/// The most rows of a bucket.
const MAX_ROWS: u32 = 1 << 17;

/// How a model uses its device.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CudaOptions {
    /// The sizes for which graphs are captured: a batch runs in the smallest that it fits, padded. One that fits none
    /// is cut into pieces of the largest, each with its own copies and launch, which run on all streams side by side.
    pub buckets: Vec<Bucket>,
    /// Streams, each with a thread and memory of its own: while one computes, another copies.
    pub streams: usize,
    /// How exact products are.
    pub precision: Precision,
    /// Whether each bucket's steps are captured as one graph. Without it every batch asks for every step by itself, which is
    /// for measuring what graphs gain.
    pub graphs: bool,
    /// The folder in which compiled kernels are kept, if any.
    pub cache: Option<PathBuf>,
    /// How long a batch may wait for its turn, in all; and how long the device may then take for each piece of it. A batch
    /// that waits longer is refused, a device that takes longer is given up.
    pub deadline: Duration,
    /// Batches that may wait for a stream; more are refused.
    pub waiting: usize,
}

impl Default for CudaOptions {
    fn default() -> Self {
        let bucket = |rows, requests| Bucket { rows, requests };
        Self {
            buckets: vec![
                bucket(64, 64),
                bucket(256, 64),
                bucket(1024, 64),
                bucket(2048, 64),
                bucket(4096, 256),
            ],
            streams: 2,
            precision: Precision::F32,
            graphs: true,
            cache: None,
            deadline: Duration::from_secs(10),
            waiting: 256,
        }
    }
}

impl CudaOptions {
    /// The bucket with room for the most rows, of those the one for the most requests; room for a row where there is none.
    #[must_use]
    pub fn largest(&self) -> Bucket {
        let largest = self.buckets.iter().copied().max_by_key(|bucket| (bucket.rows, bucket.requests));
        largest.unwrap_or(Bucket { rows: 1, requests: 1 })
    }

    /// The options as they are used: judged, buckets by size.
    ///
    /// # Errors
    /// All that is wrong with them, at once.
    pub fn checked(&self) -> Result<Self, CudaError> {
        let mut problems = Vec::new();
        let mut within = |what: &str, found: usize, most: usize| {
            if found == 0 || found > most {
                problems.push(format!("{found} {what}, there must be 1 to {most}"));
            }
        };
        within("buckets", self.buckets.len(), MAX_BUCKETS);
        within("streams", self.streams, MAX_STREAMS);
        within("waiting batches", self.waiting, MAX_WAITING);
        for bucket in &self.buckets {
            within("rows of a bucket", bucket.rows as usize, MAX_ROWS as usize);
            within("requests of a bucket", bucket.requests as usize, bucket.rows as usize);
        }
        if self.deadline.is_zero() {
            problems.push("a deadline of no time".into());
        }
        if !problems.is_empty() {
            return Err(CudaError::Options(problems.join("; ")));
        }
        let mut checked = self.clone();
        checked.buckets.sort_unstable();
        checked.buckets.dedup();
        Ok(checked)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn everything_that_is_wrong_is_told_at_once() {
        let wrong = CudaOptions {
            buckets: vec![Bucket { rows: 4, requests: 5 }, Bucket { rows: 0, requests: 1 }],
            streams: 0,
            deadline: Duration::ZERO,
            ..CudaOptions::default()
        };
        let text = wrong.checked().unwrap_err().to_string();
        for part in
            ["0 streams", "5 requests of a bucket, there must be 1 to 4", "0 rows of a bucket", "no time"]
        {
            assert!(text.contains(part), "{part} is not in: {text}");
        }
    }

    #[test]
    fn buckets_are_used_by_size() {
        let bucket = |rows, requests| Bucket { rows, requests };
        let buckets = vec![bucket(64, 2), bucket(16, 16), bucket(64, 2), bucket(64, 1)];
        let checked = CudaOptions { buckets, ..CudaOptions::default() }.checked().unwrap();
        assert_eq!(checked.buckets, [bucket(16, 16), bucket(64, 1), bucket(64, 2)]);
    }
}
