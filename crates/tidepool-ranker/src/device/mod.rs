//! What runs dense models: the CPU, or a GPU that is asked for by name and never swapped for another in silence.
//!
//! On a GPU a model takes its inputs in one of two ways, as the configuration says: as vectors that were made here
//! (`OnDevice`), with outputs that come back whole; or as the stored rows that they are made of (`RowsOnDevice`), with
//! nothing coming back but the best candidates. A model that cannot be run as it is asked for is not loaded.

mod around;
mod let_go;
mod memory;
mod options;
mod owned;
mod place;
mod rows;
mod staging;

use std::sync::Arc;

use serde_json::{Value, json};
use tidepool_dense::{
    CudaDevice, CudaError, CudaModel, DenseBatch, DenseError, DenseModel, Device, MemoryUse, Usage,
};
use tidepool_types::{ModelSpec, TableSchema};

pub(crate) use self::let_go::LetGo;
pub use self::memory::DeviceMemory;
pub use self::{
    options::{DeviceOptions, RawCuda, RowsAt},
    place::ResidentPlace,
};
use self::{owned::Owned, rows::RowsOnDevice};
use crate::{batch::Scorer, error::LoadError};

/// A model on a GPU that takes vectors.
#[derive(Debug)]
struct OnDevice(Owned);

impl Scorer for OnDevice {
    fn run(&self, batch: &DenseBatch<'_>) -> Result<Vec<Vec<f32>>, DenseError> {
        self.0.model()?.run(batch)
    }

    fn lost(&self) -> Option<String> {
        self.0.lost()
    }

    fn usage(&self) -> Option<Usage> {
        self.0.model().ok().map(CudaModel::usage)
    }
}

/// An open device.
#[derive(Clone, Debug)]
pub enum Engine {
    /// The cores of this machine.
    Cpu,
    /// A GPU, and how models use it.
    Cuda(Arc<CudaDevice>, DeviceOptions, DeviceMemory),
}

/// A model that is ready to run.
#[derive(Debug)]
pub struct Placed {
    /// What runs it.
    pub scorer: Arc<dyn Scorer>,
    /// The memory that it has on a GPU.
    pub memory: Vec<MemoryUse>,
    /// Where rows of its tables may be resident; `None`: it takes no rows.
    pub resident: Option<ResidentPlace>,
}

impl Engine {
    /// Opens the device that was asked for.
    ///
    /// # Errors
    /// What a GPU lacks, and what brings it; [`CudaError::Options`] when more rows are to be resident than it has memory for.
    pub fn open(options: &DeviceOptions) -> Result<Self, CudaError> {
        let Device::Cuda(ordinal) = options.device else { return Ok(Self::Cpu) };
        let device = CudaDevice::open(ordinal)?;
        let (free, total) = device.memory()?;
        let bytes = options.resident.as_ref().map_or(0, |resident| resident.bytes);
        if bytes > total {
            let problem = format!("cuda.resident.bytes are {bytes}, and cuda:{ordinal} has {total}");
            return Err(CudaError::Options(problem));
        }
        Ok(Self::Cuda(device, options.clone(), DeviceMemory::new(free, total)))
    }

    /// Asks the device for its memory, which is shown from then on. It does not wait: a device that hangs keeps a thread for that
    /// from all others, and is not asked again before it has answered.
    pub(crate) fn look(&self) {
        if let Self::Cuda(device, _, memory) = self {
            memory.look(device);
        }
    }

    /// Free and total bytes of a GPU when it was last looked at, if it answered then.
    pub(crate) fn memory(&self) -> Option<(u64, u64)> {
        match self {
            Self::Cpu => None,
            Self::Cuda(_, _, memory) => memory.seen(),
        }
    }

    /// Puts a model where it is to run. `schemas` are those of the tables of its inputs, one per input of the contract.
    ///
    /// # Errors
    /// [`LoadError::Dense`]: also when the device has no room for it. Models that are on it go on. [`LoadError::Rows`] when
    /// it cannot take its inputs as stored rows.
    pub fn place(
        &self,
        model: Arc<DenseModel>,
        spec: &ModelSpec,
        schemas: &[Option<&TableSchema>],
    ) -> Result<Placed, LoadError> {
        let Self::Cuda(device, options, _) = self else {
            return Ok(Placed { scorer: model, memory: Vec::new(), resident: None });
        };
        if options.rows == RowsAt::Host {
            let loaded = CudaModel::load(device, &model, &options.cuda)?;
            let memory = loaded.memory().to_vec();
            return Ok(Placed { scorer: Arc::new(OnDevice(Owned::new(loaded))), memory, resident: None });
        }
        let made = around::around(spec, schemas, options.ids_per_bag, options.has_resident_rows());
        let loaded = CudaModel::load_around(device, &model, &options.cuda, Some(&made.around));
        let loaded = loaded.map_err(|error| match error {
            // The options of the device were judged when the ranker started, so it is what was made of the contract.
            DenseError::Device(CudaError::Options(problem)) => LoadError::Rows(problem),
            other => LoadError::Dense(other),
        })?;
        let memory = loaded.memory().to_vec();
        let place = ResidentPlace::new(device.clone(), options.cuda.cache.clone(), made.tables);
        let scorer = RowsOnDevice::new(Owned::new(loaded), made.feeds, place.clone());
        Ok(Placed { scorer: Arc::new(scorer), memory, resident: Some(place) })
    }

    /// Why no model can run any more, if the device is lost.
    #[must_use]
    pub fn lost(&self) -> Option<String> {
        match self {
            Self::Cpu => None,
            Self::Cuda(device, ..) => {
                let words = |problem: &str| format!("cuda:{} is lost: {problem}", device.ordinal());
                device.lost().map(words)
            }
        }
    }

    /// What was found that fails nobody, since it was asked last.
    pub(crate) fn notes(&self) -> Vec<String> {
        match self {
            Self::Cpu => Vec::new(),
            Self::Cuda(device, ..) => device.take_notes(),
        }
    }

    /// What `/status` shows.
    pub(crate) fn document(&self) -> Value {
        match self {
            Self::Cpu => json!({ "name": "cpu", "engine": "tidepool-dense" }),
            Self::Cuda(device, options, memory) => {
                let memory = memory.seen();
                json!({
                    "name": Device::Cuda(device.ordinal()).to_string(),
                    "engine": "tidepool-dense",
                    "gpu": device.name(),
                    "compute_capability": format!("{}.{}", device.capability().0, device.capability().1),
                    "libraries": device.versions(),
                    "precision": format!("{:?}", options.cuda.precision).to_lowercase(),
                    "streams": options.cuda.streams,
                    "rows": options.rows.as_str(),
                    "ids_per_bag": (options.rows == RowsAt::Device).then_some(options.ids_per_bag),
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
    use super::{options::tests::check, *};

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
