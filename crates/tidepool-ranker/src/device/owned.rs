//! A model on a GPU that is let go where it may wait.

use tidepool_dense::{CudaError, CudaModel, DenseError};

use super::LetGo;

/// A model.
#[derive(Debug)]
pub(super) struct Owned(LetGo<CudaModel>);

impl Owned {
    pub(super) const fn new(model: CudaModel) -> Self {
        Self(LetGo::new(model))
    }

    pub(super) fn model(&self) -> Result<&CudaModel, DenseError> {
        self.0.get().ok_or_else(|| CudaError::GivenUp { problem: "it was let go".into() }.into())
    }

    /// Why no batch can run any more, if none can.
    pub(super) fn lost(&self) -> Option<String> {
        self.0.get()?.lost().map(|error| error.to_string())
    }
}
