//! cuBLASLt: descriptions, layouts and preferences as its callers set them, and matmuls on their way to a stream.
//!
//! What is not known is refused, never ignored: an attribute that changes the result and is not simulated ends in
//! `CUBLAS_STATUS_NOT_SUPPORTED`. Beyond what the real library checks, a matmul is refused when its pointers are less
//! aligned than the preference promised, or its workspace smaller than the algorithm asked for: on a device that is
//! sometimes wrong, and sometimes slow.

mod calls;
mod compute;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;

pub(crate) use compute::run;

/// A `cublasStatus_t` other than success.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u32)]
pub enum Status {
    /// The driver or the handle is not ready.
    NotInitialized = 1,
    /// An argument has no sense.
    InvalidValue = 7,
    /// The device failed, or could not be asked.
    ExecutionFailed = 13,
    /// The stand-in cannot do this.
    NotSupported = 15,
}

/// Types of elements, numbered as `cudaDataType_t`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Element {
    /// 0.
    F32,
    /// 2.
    F16,
    /// 14.
    Bf16,
}

impl Element {
    pub(crate) fn of(number: u32) -> Result<Self, Status> {
        match number {
            0 => Ok(Self::F32),
            2 => Ok(Self::F16),
            14 => Ok(Self::Bf16),
            _ => Err(Status::NotSupported),
        }
    }

    /// Bytes of an element.
    pub(crate) fn size(self) -> u64 {
        if self == Self::F32 { 4 } else { 2 }
    }
}

/// How products are made, numbered as `cublasComputeType_t`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Compute {
    /// 68, and 69 (pedantic): f32 throughout.
    F32,
    /// 77: inputs are rounded to ten bits of mantissa.
    Tf32,
    /// 74: inputs are rounded to f16.
    FastF16,
    /// 75: inputs are rounded to bf16.
    FastBf16,
}

impl Compute {
    fn of(number: u32) -> Result<Self, Status> {
        match number {
            68 | 69 => Ok(Self::F32),
            77 => Ok(Self::Tf32),
            74 => Ok(Self::FastF16),
            75 => Ok(Self::FastBf16),
            _ => Err(Status::NotSupported),
        }
    }
}

/// What is done with the product before it is stored: the bits of `cublasLtEpilogue_t`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct Epilogue {
    pub(crate) bias: bool,
    pub(crate) relu: bool,
    pub(crate) gelu: bool,
}

impl Epilogue {
    fn of(number: u32) -> Result<Self, Status> {
        let known = matches!(number, 1 | 2 | 4 | 6 | 32 | 36);
        let of = Self { bias: number & 4 != 0, relu: number & 2 != 0, gelu: number & 32 != 0 };
        if known { Ok(of) } else { Err(Status::NotSupported) }
    }
}

/// `cublasLtMatmulDesc_t`.
#[derive(Debug, Clone)]
pub(crate) struct Description {
    pub(crate) compute: Compute,
    pub(crate) transposed: [bool; 2],
    pub(crate) epilogue: Epilogue,
    pub(crate) bias: u64,
    pub(crate) bias_stride: i64,
    pub(crate) bias_type: Option<Element>,
    /// Alpha and beta are addresses of the device.
    pub(crate) device_scalars: bool,
}

/// `cublasLtMatrixLayout_t`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Layout {
    pub(crate) element: Element,
    pub(crate) rows: u64,
    pub(crate) columns: u64,
    /// Elements from one column to the next, or from one row to the next where rows are contiguous.
    pub(crate) leading: i64,
    pub(crate) row_major: bool,
    pub(crate) batch: i32,
    pub(crate) stride: i64,
}

impl Layout {
    /// Elements of one matrix of the batch, from the first to the last.
    pub(crate) fn span(&self) -> u64 {
        let (lines, along) = self.lines();
        if lines == 0 || along == 0 { 0 } else { (lines - 1) * self.leading as u64 + along }
    }

    /// How many contiguous lines there are, and how long each is.
    pub(crate) fn lines(&self) -> (u64, u64) {
        if self.row_major { (self.rows, self.columns) } else { (self.columns, self.rows) }
    }
}

/// `cublasLtMatmulPreference_t`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Preference {
    pub(crate) workspace: u64,
    /// What the caller promises of the addresses of A, B, C and D, in bytes.
    pub(crate) alignment: [u32; 4],
}

/// What the heuristic answers, and a matmul brings back: the words of `cublasLtMatmulAlgo_t`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Algorithm {
    /// Workspace that it needs, in bytes.
    pub workspace: u64,
    /// Alignment that it counts on, in bytes.
    pub alignment: [u32; 4],
}

/// Alpha or beta: a number, or where on the device it lies.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Scalar {
    /// Read when the matmul was asked for.
    Host(f32),
    /// Read when it runs.
    Device(u64),
}

/// A matmul with everything that it needs, as copied when it was asked for. Layouts are of A, B, C and D.
pub(crate) struct Matmul {
    pub(crate) description: Description,
    pub(crate) alpha: Scalar,
    pub(crate) beta: Scalar,
    pub(crate) layouts: [Layout; 4],
    pub(crate) addresses: [u64; 4],
    pub(crate) workspace: (u64, u64),
}

impl Matmul {
    pub(crate) fn says(&self) -> String {
        let [a, _, _, d] = &self.layouts;
        let inner = if self.description.transposed[0] { a.rows } else { a.columns };
        format!("matmul {} x {} x {inner} in {:?}", d.rows, d.columns, a.element)
    }
}

/// What callers have handles of.
#[derive(Default)]
pub(crate) struct Handles {
    pub(crate) libraries: BTreeMap<u32, u64>,
    pub(crate) descriptions: BTreeMap<u32, Description>,
    pub(crate) layouts: BTreeMap<u32, Layout>,
    pub(crate) preferences: BTreeMap<u32, Preference>,
}
