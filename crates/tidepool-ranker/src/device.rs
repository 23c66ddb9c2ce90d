//! What runs dense models: the CPU, or a GPU that is asked for by name and never swapped for another in silence.

use std::{path::Path, sync::Arc, time::Duration};

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use tidepool_dense::{
    Bucket, CudaDevice, CudaError, CudaModel, CudaOptions, DenseBatch, DenseError, DenseModel, Device,
    MemoryUse,
};
use tidepool_runtime::config::Problems;
use tokio::runtime::Handle;

use crate::batch::Scorer;

/// The folder of compiled kernels in the data directory.
const KERNELS: &str = "kernels";
/// The longest deadline of a batch on a GPU.
const MAX_DEADLINE_MS: u64 = 600_000;

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
    /// Where compiled kernels are kept; empty: in the data directory.
    pub cache_dir: String,
    /// How long a batch may take on the device.
    pub deadline_ms: u64,
}

impl Default for RawCuda {
    fn default() -> Self {
        let CudaOptions { buckets, streams, deadline, .. } = CudaOptions::default();
        Self {
            precision: "f32".into(),
            streams: u32::try_from(streams).unwrap_or(u32::MAX),
            buckets: buckets.iter().map(|bucket| [bucket.rows, bucket.requests]).collect(),
            cache_dir: String::new(),
            deadline_ms: u64::try_from(deadline.as_millis()).unwrap_or(u64::MAX),
        }
    }
}

/// Which device, and how models use it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DeviceOptions {
    /// By name.
    pub device: Device,
    /// Of no use on the CPU.
    pub cuda: CudaOptions,
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
        let in_time = (1..=MAX_DEADLINE_MS).contains(&cuda.deadline_ms);
        problems.check(in_time, format!("cuda.deadline_ms: from 1 to {MAX_DEADLINE_MS}"));
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
        Some(Self { device: device?, cuda: options })
    }
}

/// A model on a GPU. Letting it go waits for its threads and frees memory, each of which waits for the device; and the last
/// to hold a release may be a request or the loader. So it is never done on a thread that runs tasks.
#[derive(Debug)]
struct OnDevice(Option<CudaModel>);

impl Scorer for OnDevice {
    fn run(&self, batch: &DenseBatch<'_>) -> Result<Vec<Vec<f32>>, DenseError> {
        match &self.0 {
            Some(model) => model.run(batch),
            // Only `drop` takes it out.
            None => Err(CudaError::GivenUp { problem: "it was let go".into() }.into()),
        }
    }

    fn lost(&self) -> Option<String> {
        self.0.as_ref()?.lost().map(|error| error.to_string())
    }
}

impl Drop for OnDevice {
    fn drop(&mut self) {
        let model = self.0.take();
        match Handle::try_current() {
            // Nobody waits for it. Where the runtime ends, the model goes with the task that is not run any more.
            Ok(runtime) => drop(runtime.spawn_blocking(move || drop(model))),
            Err(_) => drop(model),
        }
    }
}

/// An open device.
#[derive(Clone, Debug)]
pub(crate) enum Engine {
    /// The cores of this machine.
    Cpu,
    /// A GPU.
    Cuda(Arc<CudaDevice>, CudaOptions),
}

/// A model that is ready to run, and the memory that it has on a GPU.
pub(crate) type Placed = (Arc<dyn Scorer>, Vec<MemoryUse>);

impl Engine {
    /// Opens the device that was asked for.
    ///
    /// # Errors
    /// What a GPU lacks, and what brings it.
    pub(crate) fn open(options: &DeviceOptions) -> Result<Self, CudaError> {
        match options.device {
            Device::Cpu => Ok(Self::Cpu),
            Device::Cuda(ordinal) => Ok(Self::Cuda(CudaDevice::open(ordinal)?, options.cuda.clone())),
        }
    }

    /// Puts a model where it is to run.
    ///
    /// # Errors
    /// [`DenseError::Device`]: also when the device has no room for it. Models that are on it go on.
    pub(crate) fn place(&self, model: Arc<DenseModel>) -> Result<Placed, DenseError> {
        match self {
            Self::Cpu => Ok((model, Vec::new())),
            Self::Cuda(device, options) => {
                let placed = CudaModel::load(device, &model, options)?;
                let memory = placed.memory().to_vec();
                Ok((Arc::new(OnDevice(Some(placed))), memory))
            }
        }
    }

    /// Why no model can run any more, if the device is lost.
    pub(crate) fn lost(&self) -> Option<String> {
        match self {
            Self::Cpu => None,
            Self::Cuda(device, _) => {
                let words = |problem: &str| format!("cuda:{} is lost: {problem}", device.ordinal());
                device.lost().map(words)
            }
        }
    }

    /// What was found that fails nobody, since it was asked last.
    pub(crate) fn notes(&self) -> Vec<String> {
        match self {
            Self::Cpu => Vec::new(),
            Self::Cuda(device, _) => device.take_notes(),
        }
    }

    /// What `/status` shows.
    pub(crate) fn document(&self) -> Value {
        match self {
            Self::Cpu => json!({ "name": "cpu", "engine": "tidepool-dense" }),
            Self::Cuda(device, options) => {
                let memory = device.memory().ok();
                json!({
                    "name": Device::Cuda(device.ordinal()).to_string(),
                    "engine": "tidepool-dense",
                    "gpu": device.name(),
                    "compute_capability": format!("{}.{}", device.capability().0, device.capability().1),
                    "libraries": device.versions(),
                    "precision": format!("{:?}", options.precision).to_lowercase(),
                    "streams": options.streams,
                    "free_bytes": memory.map(|(free, _)| free),
                    "total_bytes": memory.map(|(_, total)| total),
                    "lost_because": device.lost(),
                })
            }
        }
    }
}

/// The memory of a model on a GPU, as `/status` shows it.
pub(crate) fn memory_document(memory: &[MemoryUse]) -> Value {
    let line = |used: &MemoryUse| {
        json!({
            "what": used.what,
            "stream": used.stream,
            "bucket": used.bucket.map(|bucket| json!({ "rows": bucket.rows, "requests": bucket.requests })),
            "bytes": used.bytes,
            "pinned": used.pinned,
        })
    };
    Value::Array(memory.iter().map(line).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(device: &str, cuda: &RawCuda) -> (Option<DeviceOptions>, Vec<String>) {
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
        let wrong = RawCuda { streams: 0, buckets: vec![[4, 9]], deadline_ms: 0, ..RawCuda::default() };
        let (_, problems) = check("gpu", &wrong);
        let text = problems.join("\n");
        for part in ["device", "cuda.deadline_ms", "0 streams", "9 requests of a bucket"] {
            assert!(text.contains(part), "{part} is not in: {text}");
        }
    }

    #[test]
    fn a_device_that_is_not_there_is_an_error_and_not_the_cpu() {
        let options = check("cuda:1023", &RawCuda::default()).0.unwrap();
        let error = Engine::open(&options).unwrap_err().to_string();
        assert!(error.contains("libcuda") || error.contains("cuda:1023"), "{error}");
    }

    #[test]
    fn the_cpu_is_never_lost() {
        let cpu = Engine::open(&check("cpu", &RawCuda::default()).0.unwrap()).unwrap();
        assert_eq!((cpu.lost(), &cpu.document()["name"]), (None, &json!("cpu")));
    }
}
