//! What a stream or a node of a graph does.

use std::sync::Arc;

use crate::{blas::Matmul, graph::Launch, host::HostRange, module::KernelCall};

/// Where a copy to the device takes its bytes from.
#[derive(Clone)]
pub(crate) enum Source {
    /// Pageable memory, whose bytes were taken when the copy was asked for, as the real driver does.
    Staged(Arc<[u8]>),
    /// Pinned memory, which is read when the copy runs. The fingerprint is that of its bytes when the copy was asked
    /// for; without one, they may change, since an operation before this one writes them.
    Pinned { range: HostRange, fingerprint: Option<u64> },
}

impl Source {
    pub(crate) fn len(&self) -> u64 {
        match self {
            Self::Staged(bytes) => bytes.len() as u64,
            Self::Pinned { range, .. } => range.len() as u64,
        }
    }
}

/// One operation.
#[derive(Clone)]
pub(crate) enum Work {
    /// Host to device.
    ToDevice { from: Source, to: u64 },
    /// Device to host. `poisoned` says that the destination was poisoned when the copy was asked for, and must be
    /// poison still when it runs.
    ToHost { from: u64, to: HostRange, poisoned: bool },
    /// Device to device.
    Within { from: u64, to: u64, bytes: u64 },
    /// `count` times the pattern.
    Fill { to: u64, pattern: Vec<u8>, count: u64 },
    /// A kernel.
    Kernel(Arc<KernelCall>),
    /// A matmul of cuBLASLt.
    Matmul(Arc<Matmul>),
    /// A graph.
    Graph(Arc<Launch>),
    /// A function of the host, which runs without the driver's lock.
    HostCall(Arc<dyn Fn() + Send + Sync>),
    /// Memory of the pool becomes usable.
    Born(u64),
    /// Memory goes back to the pool.
    Free(u64),
    /// Nothing: the recording of an event, or a wait for one.
    Mark(&'static str),
}

impl Work {
    /// The operation in a few words.
    pub(crate) fn says(&self) -> Arc<str> {
        match self {
            Self::ToDevice { from: Source::Staged(bytes), .. } => {
                format!("copy of {} bytes from pageable memory", bytes.len()).into()
            }
            Self::ToDevice { from, .. } => format!("copy of {} bytes from pinned memory", from.len()).into(),
            Self::ToHost { to, .. } => format!("copy of {} bytes to the host", to.len()).into(),
            Self::Within { bytes, .. } => format!("copy of {bytes} bytes on the device").into(),
            Self::Fill { count, pattern, .. } => {
                format!("memory set of {} bytes", count * pattern.len() as u64).into()
            }
            Self::Kernel(call) => format!("kernel {}", call.name).into(),
            Self::Matmul(matmul) => matmul.says().into(),
            Self::Graph(launch) => format!("graph of {} nodes", launch.graph.nodes.len()).into(),
            Self::HostCall(_) => "host function".into(),
            Self::Born(_) => "allocation from the pool".into(),
            Self::Free(_) => "free to the pool".into(),
            Self::Mark(what) => (*what).into(),
        }
    }

    /// Whether it reads or writes one of these bytes of the host when it runs.
    pub(crate) fn uses_host(&self, range: &HostRange, writes_only: bool) -> bool {
        match self {
            Self::ToDevice { from: Source::Pinned { range: of, .. }, .. } => {
                !writes_only && of.overlaps(range)
            }
            Self::ToHost { to, .. } => to.overlaps(range),
            Self::Graph(launch) => launch.graph.nodes.iter().any(|n| n.work.uses_host(range, writes_only)),
            _ => false,
        }
    }
}
