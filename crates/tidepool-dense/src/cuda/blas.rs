//! Products of matrices by cuBLASLt: described once, when a model is loaded, with the algorithm that its heuristic
//! chose then.
//!
//! **Trap:** cudarc's own product computes f32 in TF32, with 10 bits of mantissa, unasked, and describes everything and
//! asks the heuristic anew at each call. Here the type of the sums is the caller's, and nothing is left to a call.
//!
//! cuBLASLt counts columns first. A row-major `[rows, columns]` is a column-major `[columns, rows]`, so the product that
//! it is asked for is the transposed one: `out' = weights' * left'`.
#![expect(unsafe_code, reason = "cuBLASLt is called with descriptions that this file made itself")]

use std::{ffi::c_void, fmt, sync::Arc};

use cudarc::cublaslt::{
    result::{self, CublasError},
    sys,
};

use super::{CudaDevice, CudaError, device::Handle, memory::DeviceBuffer, stream::Stream};

/// `CUBLAS_OP_T`, which the bindings leave out: the matrix is read transposed.
const TURNED: i32 = 1;
/// Workspace of a stream: what NVIDIA advises for compute capability 9 and later, and before.
const WORKSPACE_BYTES: [usize; 2] = [32 << 20, 4 << 20];

/// How exact products are.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Precision {
    /// f32 throughout: as exact as the CPU, in another order of sums.
    #[default]
    F32,
    /// Factors are rounded to TF32 (10 bits of mantissa), sums are f32.
    Tf32,
    /// Weights and what meets them are rounded to bf16 (7 bits of mantissa), sums are f32.
    Bf16,
}

impl std::str::FromStr for Precision {
    type Err = CudaError;

    fn from_str(name: &str) -> Result<Self, CudaError> {
        match name {
            "f32" => Ok(Self::F32),
            "tf32" => Ok(Self::Tf32),
            "bf16" => Ok(Self::Bf16),
            _ => Err(CudaError::Options(format!(
                "precision {name:?} is not known: it must be \"f32\", \"tf32\" or \"bf16\""
            ))),
        }
    }
}

impl Precision {
    /// The elements of factors.
    fn factors(self) -> sys::cudaDataType {
        match self {
            Self::F32 | Self::Tf32 => sys::cudaDataType::CUDA_R_32F,
            Self::Bf16 => sys::cudaDataType::CUDA_R_16BF,
        }
    }

    fn sums(self) -> sys::cublasComputeType_t {
        match self {
            Self::F32 | Self::Bf16 => sys::cublasComputeType_t::CUBLAS_COMPUTE_32F,
            Self::Tf32 => sys::cublasComputeType_t::CUBLAS_COMPUTE_32F_FAST_TF32,
        }
    }

    /// Bytes of an element of a factor.
    pub(crate) fn element_bytes(self) -> usize {
        match self {
            Self::F32 | Self::Tf32 => 4,
            Self::Bf16 => 2,
        }
    }
}

/// What is done with sums before they are written.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum Activation {
    #[default]
    None,
    Relu,
    /// The approximation by `tanh`: cuBLASLt's GELU is this one, and not that by `erf`.
    GeluTanh,
}

/// One product, row-major: `out[b][r][c] = act(start + sum over k of left[b][r][k] * weights[b][k][c] + bias[c])`.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Shape {
    pub(crate) rows: usize,
    pub(crate) columns: usize,
    pub(crate) k: usize,
    /// Elements between rows of the left side; between its columns with `left_turned`.
    pub(crate) left_stride: usize,
    /// Columns of the left side lie apart, rows side by side.
    pub(crate) left_turned: bool,
    /// Elements between rows of the weights.
    pub(crate) weights_stride: usize,
    /// Elements between rows of the result.
    pub(crate) out_stride: usize,
    /// Products, and how far the sides lie apart from one to the next.
    pub(crate) batch: usize,
    pub(crate) left_step: usize,
    pub(crate) weights_step: usize,
    pub(crate) out_step: usize,
    /// Sums start from what is in the result.
    pub(crate) adds: bool,
    pub(crate) biased: bool,
    pub(crate) activation: Activation,
    pub(crate) precision: Precision,
}

/// A handle of the library and a stream's workspace.
pub(crate) struct Blas {
    device: Arc<CudaDevice>,
    handle: Handle<sys::cublasLtHandle_t>,
    workspace: DeviceBuffer,
}

impl fmt::Debug for Blas {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "cuBLASLt of cuda:{}", self.device.ordinal())
    }
}

/// What a call's error means. The library tells of a lost device in words of its own, so the device is asked.
fn failed(device: &CudaDevice, doing: &str, error: CublasError) -> CudaError {
    device.look();
    CudaError::Blas { doing: doing.to_owned(), status: format!("{:?}", error.0) }
}

impl Blas {
    /// For one stream: products that share a workspace must not run at once.
    pub(crate) fn new(device: &Arc<CudaDevice>) -> Result<Arc<Self>, CudaError> {
        let bytes = WORKSPACE_BYTES[usize::from(device.capability().0 < 9)];
        let workspace = DeviceBuffer::new(device, bytes, "cuBLASLt's workspace")?;
        device.bind()?;
        let handle = result::create_handle().map_err(|e| failed(device, "start", e))?;
        Ok(Arc::new(Self { device: device.clone(), handle: Handle(handle), workspace }))
    }

    /// Bytes of the workspace.
    pub(crate) fn workspace_bytes(&self) -> usize {
        self.workspace.bytes()
    }
}

impl Drop for Blas {
    fn drop(&mut self) {
        if !self.device.bind_for_drop() {
            return;
        }
        // SAFETY: it was created once and is destroyed here alone, when no product holds it.
        let _ = unsafe { result::destroy_handle(self.handle.0) };
    }
}

/// Addresses of a product's sides.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Sides {
    pub(crate) left: u64,
    pub(crate) weights: u64,
    pub(crate) out: u64,
    /// `columns` numbers of type f32; not looked at unless the shape says so.
    pub(crate) bias: u64,
}

/// A product that can be asked for.
pub(crate) struct Matmul {
    blas: Arc<Blas>,
    name: String,
    shape: Shape,
    sides: Sides,
    description: Description,
    weights: MatrixLayout,
    left: MatrixLayout,
    out: MatrixLayout,
    algorithm: sys::cublasLtMatmulAlgo_t,
}

// SAFETY: the descriptions are memory of the library's own that is only read after `new`.
unsafe impl Send for Matmul {}
// SAFETY: as above.
unsafe impl Sync for Matmul {}

impl fmt::Debug for Matmul {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {:?}", self.name, self.shape)
    }
}

impl Matmul {
    /// Describes it and asks the heuristic which algorithm is the fastest.
    pub(crate) fn new(blas: &Arc<Blas>, name: &str, shape: Shape, sides: Sides) -> Result<Self, CudaError> {
        blas.device.bind()?;
        let doing = || format!("prepare {name}, {shape:?}");
        let refused = |e| failed(&blas.device, &doing(), e);
        let factors = shape.precision.factors();
        let description = Description::new(&shape, &sides).map_err(refused)?;
        let layout = |element, rows: usize, columns: usize, stride: usize, step: usize| {
            MatrixLayout::new(element, [rows, columns], stride, (shape.batch, step)).map_err(refused)
        };
        let weights = layout(factors, shape.columns, shape.k, shape.weights_stride, shape.weights_step)?;
        let left = if shape.left_turned {
            layout(factors, shape.rows, shape.k, shape.left_stride, shape.left_step)?
        } else {
            layout(factors, shape.k, shape.rows, shape.left_stride, shape.left_step)?
        };
        let f32s = sys::cudaDataType::CUDA_R_32F;
        let out = layout(f32s, shape.columns, shape.rows, shape.out_stride, shape.out_step)?;
        let preference = Preference::new(blas.workspace.bytes(), &sides).map_err(refused)?;
        // SAFETY: everything was created above and is alive.
        let chosen = unsafe {
            result::get_matmul_algo_heuristic(
                blas.handle.0,
                description.0,
                weights.0,
                left.0,
                out.0,
                out.0,
                preference.0,
            )
        };
        let algorithm = chosen.map_err(refused)?.algo;
        let (blas, name) = (blas.clone(), name.to_owned());
        Ok(Self { blas, name, shape, sides, description, weights, left, out, algorithm })
    }

    /// Asks a stream for it.
    ///
    /// # Safety
    /// The sides have room for what the shape says, and outlive the work; the stream is the one that the workspace is
    /// for.
    pub(crate) unsafe fn ask(&self, stream: &Stream) -> Result<(), CudaError> {
        self.blas.device.bind()?;
        let (alpha, beta) = (1.0f32, if self.shape.adds { 1.0f32 } else { 0.0 });
        let at = |address: u64| std::ptr::with_exposed_provenance_mut::<c_void>(address as usize);
        let out = at(self.sides.out);
        // SAFETY: the descriptions are alive, the two factors are read before the call returns, and the rest is the
        // caller's promise.
        let asked = unsafe {
            result::matmul(
                self.blas.handle.0,
                self.description.0,
                (&raw const alpha).cast(),
                (&raw const beta).cast(),
                at(self.sides.weights),
                self.weights.0,
                at(self.sides.left),
                self.left.0,
                out,
                self.out.0,
                out,
                self.out.0,
                &raw const self.algorithm,
                at(self.blas.workspace.address()),
                self.blas.workspace.bytes(),
                stream.raw().cast(),
            )
        };
        asked.map_err(|e| failed(&self.blas.device, &format!("multiply {}", self.name), e))
    }
}

/// The operation.
struct Description(sys::cublasLtMatmulDesc_t);

impl Description {
    fn new(shape: &Shape, sides: &Sides) -> Result<Self, CublasError> {
        use sys::{cublasLtEpilogue_t as Epilogue, cublasLtMatmulDescAttributes_t as Of};
        let f32s = sys::cudaDataType::CUDA_R_32F;
        let made = Self(result::create_matmul_desc(shape.precision.sums(), f32s)?);
        if shape.left_turned {
            made.set(Of::CUBLASLT_MATMUL_DESC_TRANSB, &TURNED)?;
        }
        let epilogue = match (shape.activation, shape.biased) {
            (Activation::None, false) => Epilogue::CUBLASLT_EPILOGUE_DEFAULT,
            (Activation::None, true) => Epilogue::CUBLASLT_EPILOGUE_BIAS,
            (Activation::Relu, false) => Epilogue::CUBLASLT_EPILOGUE_RELU,
            (Activation::Relu, true) => Epilogue::CUBLASLT_EPILOGUE_RELU_BIAS,
            (Activation::GeluTanh, false) => Epilogue::CUBLASLT_EPILOGUE_GELU,
            (Activation::GeluTanh, true) => Epilogue::CUBLASLT_EPILOGUE_GELU_BIAS,
        };
        made.set(Of::CUBLASLT_MATMUL_DESC_EPILOGUE, &epilogue)?;
        if shape.biased {
            made.set(Of::CUBLASLT_MATMUL_DESC_BIAS_POINTER, &sides.bias)?;
            made.set(Of::CUBLASLT_MATMUL_DESC_BIAS_DATA_TYPE, &f32s)?;
        }
        Ok(made)
    }

    fn set<T: Copy>(
        &self,
        attribute: sys::cublasLtMatmulDescAttributes_t,
        value: &T,
    ) -> Result<(), CublasError> {
        let bytes = std::ptr::from_ref(value).cast();
        // SAFETY: the description is alive; the value is copied before the call returns, and has the attribute's type.
        unsafe { result::set_matmul_desc_attribute(self.0, attribute, bytes, size_of::<T>()) }
    }
}

impl Drop for Description {
    fn drop(&mut self) {
        // SAFETY: it was created once and is destroyed here alone; so below.
        let _ = unsafe { result::destroy_matmul_desc(self.0) };
    }
}

/// How a matrix lies in memory, in cuBLASLt's order.
struct MatrixLayout(sys::cublasLtMatrixLayout_t);

impl MatrixLayout {
    fn new(
        element: sys::cudaDataType,
        [rows, columns]: [usize; 2],
        stride: usize,
        (batch, step): (usize, usize),
    ) -> Result<Self, CublasError> {
        use sys::cublasLtMatrixLayoutAttribute_t as Of;
        let made = Self(result::create_matrix_layout(element, rows as u64, columns as u64, stride as i64)?);
        if batch > 1 {
            made.set(Of::CUBLASLT_MATRIX_LAYOUT_BATCH_COUNT, &(batch as i32))?;
            made.set(Of::CUBLASLT_MATRIX_LAYOUT_STRIDED_BATCH_OFFSET, &(step as i64))?;
        }
        Ok(made)
    }

    fn set<T: Copy>(
        &self,
        attribute: sys::cublasLtMatrixLayoutAttribute_t,
        value: &T,
    ) -> Result<(), CublasError> {
        let bytes = std::ptr::from_ref(value).cast();
        // SAFETY: as for a description.
        unsafe { result::set_matrix_layout_attribute(self.0, attribute, bytes, size_of::<T>()) }
    }
}

impl Drop for MatrixLayout {
    fn drop(&mut self) {
        // SAFETY: as above.
        let _ = unsafe { result::destroy_matrix_layout(self.0) };
    }
}

/// The power of two that an address is a multiple of, up to 256.
fn alignment(address: u64) -> u32 {
    1 << address.trailing_zeros().min(8)
}

/// What algorithms may use.
struct Preference(sys::cublasLtMatmulPreference_t);

impl Preference {
    /// **Trap:** unless it is told, the heuristic takes it that every side begins at 256 bytes, and may choose an algorithm
    /// that reads wrongly where one does not.
    fn new(workspace: usize, sides: &Sides) -> Result<Self, CublasError> {
        use sys::cublasLtMatmulPreferenceAttributes_t as Of;
        let made = Self(result::create_matmul_pref()?);
        made.set(Of::CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES, &workspace)?;
        for (attribute, address) in [
            (Of::CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES, sides.weights),
            (Of::CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_B_BYTES, sides.left),
            (Of::CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_C_BYTES, sides.out),
            (Of::CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_D_BYTES, sides.out),
        ] {
            made.set(attribute, &alignment(address))?;
        }
        Ok(made)
    }

    fn set<T: Copy>(
        &self,
        attribute: sys::cublasLtMatmulPreferenceAttributes_t,
        value: &T,
    ) -> Result<(), CublasError> {
        let bytes = std::ptr::from_ref(value).cast();
        // SAFETY: as for a description.
        unsafe { result::set_matmul_pref_attribute(self.0, attribute, bytes, size_of::<T>()) }
    }
}

impl Drop for Preference {
    fn drop(&mut self) {
        // SAFETY: as above.
        let _ = unsafe { result::destroy_matmul_pref(self.0) };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_more_alignment_is_promised_than_there_is() {
        assert_eq!([0x100, 0x104, 0x1000, 0x180, 0x10].map(alignment), [256, 4, 256, 128, 16]);
    }

    #[test]
    fn a_precision_is_named_exactly() {
        assert_eq!("bf16".parse(), Ok(Precision::Bf16));
        assert!(matches!("fp32".parse::<Precision>(), Err(CudaError::Options(_))));
    }
}
