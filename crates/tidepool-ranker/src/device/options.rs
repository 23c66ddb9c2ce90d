//! Which device runs dense models, and how they use it: the keys `device` and `[cuda]`, judged.

use std::{path::Path, str::FromStr, time::Duration};

use serde::{Deserialize, Serialize};
use tidepool_dense::{Bucket, CudaOptions, Device};
use tidepool_runtime::config::Problems;

use crate::resident::{RawResident, ResidenceOptions};

/// The folder of compiled kernels in the data directory.
const KERNELS: &str = "kernels";
/// The longest deadline of a batch on a GPU.
const MAX_DEADLINE_MS: u64 = 600_000;
/// The most ids of a bag that there may be room for. Longer ones are better pooled where the rows live.
const MAX_IDS_PER_BAG: u32 = 4096;
/// Bits in which the sort of a selection holds the number of a request and that of its row.
const SELECTION_BITS: u32 = 32;

/// The `[cuda]` section.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct RawCuda {
    /// How exact products are: `f32`, `tf32` or `bf16`.
    pub precision: String,
    /// Streams per model.
    pub streams: u32,
    /// Rows and requests of the batches that graphs are captured for.
    pub buckets: Vec<[u32; 2]>,
    /// Where inputs are made of stored rows, and the best candidates are taken: `device` or `host`.
    pub rows: String,
    /// Room for ids in a bag, on average over a bucket.
    pub ids_per_bag: u32,
    /// Where compiled kernels are kept; empty: in the data directory.
    pub cache_dir: String,
    /// How long a batch may take on the device.
    pub deadline_ms: u64,
    /// What of its tables each release has on the device.
    pub resident: RawResident,
}

impl Default for RawCuda {
    fn default() -> Self {
        let CudaOptions { buckets, streams, deadline, .. } = CudaOptions::default();
        Self {
            precision: "f32".into(),
            streams: u32::try_from(streams).unwrap_or(u32::MAX),
            buckets: buckets.iter().map(|bucket| [bucket.rows, bucket.requests]).collect(),
            rows: "device".into(),
            ids_per_bag: 8,
            cache_dir: String::new(),
            deadline_ms: u64::try_from(deadline.as_millis()).unwrap_or(u64::MAX),
            resident: RawResident::default(),
        }
    }
}

/// Where inputs are made of stored rows, and the best candidates are taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RowsAt {
    /// On the GPU: rows travel to it as they are stored, and only the best candidates come back.
    Device,
    /// Here: vectors travel to the GPU, and its outputs come back whole.
    Host,
}

impl RowsAt {
    /// The word in the configuration.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Device => "device",
            Self::Host => "host",
        }
    }
}

impl FromStr for RowsAt {
    type Err = String;

    fn from_str(word: &str) -> Result<Self, String> {
        [Self::Device, Self::Host]
            .into_iter()
            .find(|at| at.as_str() == word)
            .ok_or_else(|| format!("{word:?} is neither \"device\" nor \"host\""))
    }
}

/// Which device, and how models use it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DeviceOptions {
    /// By name.
    pub device: Device,
    /// Of no use on the CPU, as all that follows.
    pub cuda: CudaOptions,
    /// Where inputs are made of stored rows.
    pub rows: RowsAt,
    /// Room for so many ids per request or row and input, on average over a bucket.
    pub ids_per_bag: u32,
    /// What of its tables each release has on the device; `None`: nothing.
    pub resident: Option<ResidenceOptions>,
}

impl DeviceOptions {
    /// Judges the two; `data_dir` is where kernels are kept if nothing else is said.
    pub(crate) fn check(
        problems: &mut Problems,
        device: &str,
        cuda: &RawCuda,
        data_dir: &str,
    ) -> Option<Self> {
        let device = problems.parse("device", device);
        let precision = problems.parse("cuda.precision", &cuda.precision);
        let rows = problems.parse("cuda.rows", &cuda.rows);
        let has_room = (1..=MAX_IDS_PER_BAG).contains(&cuda.ids_per_bag);
        problems.check(has_room, format!("cuda.ids_per_bag: from 1 to {MAX_IDS_PER_BAG}"));
        let in_time = (1..=MAX_DEADLINE_MS).contains(&cuda.deadline_ms);
        problems.check(in_time, format!("cuda.deadline_ms: from 1 to {MAX_DEADLINE_MS}"));
        if rows == Some(RowsAt::Device) {
            for [rows, requests] in cuda.buckets.iter().filter(|bucket| !is_ranked(bucket)) {
                problems.add(format!(
                    "cuda.buckets: {rows} rows of {requests} requests cannot be ranked on the GPU: their numbers take more \
                     than {SELECTION_BITS} bits; smaller buckets, or cuda.rows = \"host\""
                ));
            }
        }
        let takes_rows = rows.is_none_or(|rows| rows == RowsAt::Device);
        // On the CPU nothing is resident, and no list is looked for, whatever is said here: a configuration serves both.
        let resident = ResidenceOptions::check(problems, &cuda.resident, takes_rows);
        let resident = resident.filter(|_| device.is_some_and(|device| device != Device::Cpu));
        let cache = match &*cuda.cache_dir {
            "" => Path::new(data_dir).join(KERNELS),
            folder => folder.into(),
        };
        let options = CudaOptions {
            buckets: cuda.buckets.iter().map(|&[rows, requests]| Bucket { rows, requests }).collect(),
            streams: cuda.streams as usize,
            precision: precision?,
            cache: Some(cache),
            deadline: Duration::from_millis(cuda.deadline_ms.max(1)),
            ..CudaOptions::default()
        };
        if let Err(error) = options.checked() {
            problems.add(format!("cuda: {error}"));
        }
        let ids_per_bag = cuda.ids_per_bag;
        Some(Self { device: device?, cuda: options, rows: rows?, ids_per_bag, resident })
    }

    /// Whether rows may be resident on the device, for which batches need room for keys.
    pub(super) fn has_resident_rows(&self) -> bool {
        self.rows == RowsAt::Device && self.resident.is_some()
    }
}

/// Whether one sort can hold the requests and rows of a bucket.
fn is_ranked(bucket: &[u32; 2]) -> bool {
    let bits = |count: &u32| u32::BITS - count.saturating_sub(1).leading_zeros();
    bucket.iter().map(bits).sum::<u32>() <= SELECTION_BITS
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    pub(in crate::device) fn check(device: &str, cuda: &RawCuda) -> (Option<DeviceOptions>, Vec<String>) {
        let mut problems = Problems::default();
        let options = DeviceOptions::check(&mut problems, device, cuda, "data");
        match problems.finish(|| Some(())) {
            Ok(()) => (options, Vec::new()),
            Err(invalid) => (options, invalid.problems),
        }
    }

    #[test]
    fn a_device_is_asked_for_by_name() {
        let (options, problems) = check("cuda:1", &RawCuda::default());
        let options = options.unwrap();
        assert_eq!((options.device, problems), (Device::Cuda(1), vec![]));
        assert_eq!(options.cuda.cache.as_deref(), Some(Path::new("data/kernels")));
        assert_eq!((options.rows, options.ids_per_bag), (RowsAt::Device, 8));
        let wrong = RawCuda { streams: 0, buckets: vec![[4, 9]], deadline_ms: 0, ..RawCuda::default() };
        let (_, problems) = check("gpu", &wrong);
        let text = problems.join("\n");
        for part in ["device", "cuda.deadline_ms", "0 streams", "9 requests of a bucket"] {
            assert!(text.contains(part), "{part} is not in: {text}");
        }
    }

    #[test]
    fn rows_are_made_into_vectors_on_the_device_or_here() {
        let host = RawCuda { rows: "host".into(), ..RawCuda::default() };
        assert_eq!(check("cuda:0", &host).0.unwrap().rows, RowsAt::Host);
        let wrong = RawCuda { rows: "gpu".into(), ids_per_bag: 0, ..RawCuda::default() };
        let text = check("cuda:0", &wrong).1.join("\n");
        for part in
            ["cuda.rows = \"gpu\": \"gpu\" is neither \"device\" nor \"host\"", "cuda.ids_per_bag: from 1"]
        {
            assert!(text.contains(part), "{part} is not in: {text}");
        }
        let long = RawCuda { ids_per_bag: MAX_IDS_PER_BAG + 1, ..RawCuda::default() };
        assert_eq!(check("cuda:0", &long).1.len(), 1);
    }

    #[test]
    fn on_the_cpu_nothing_is_resident() {
        let resident = RawResident { bytes: 1 << 20, hot_ids: "nowhere".into(), ..RawResident::default() };
        let cuda = RawCuda { resident, ..RawCuda::default() };
        let (options, problems) = check("cpu", &cuda);
        assert_eq!((options.unwrap().resident, problems), (None, vec![]));
        assert!(check("cuda:0", &cuda).0.unwrap().has_resident_rows());
    }

    #[test]
    fn a_bucket_that_cannot_be_ranked_on_the_device_is_refused_where_that_is_asked_for() {
        let large = RawCuda { buckets: vec![[1 << 16, 1 << 16], [1 << 17, 1 << 16]], ..RawCuda::default() };
        let problems = check("cuda:0", &large).1;
        assert!(problems.len() == 1 && problems[0].contains("131072 rows of 65536 requests"), "{problems:?}");
        let host = RawCuda { rows: "host".into(), ..large };
        assert_eq!(check("cuda:0", &host).1, Vec::<String>::new());
    }
}
