//! The words of Tidepool as types: ids and `mix64`, row formats, keying, pooling, table and release
//! manifests, the model contract (`model.toml`) and the wire's error codes.
//!
//! **Invariant:** nothing here does I/O, waits, or allocates behind the reader's back. Every other crate
//! may depend on this one; it depends on none of them.
//!
//! Read first: [`TableSchema`], [`ReleaseManifest`], [`ErrorCode`].

mod composite;
mod error;
mod ids;
mod keying;
mod manifest;
mod mix;
mod model;
mod name;
pub mod paths;
mod pooling;
pub mod ports;
mod quantizer;
mod report;
mod row;
pub mod synthetic;

pub use composite::{Combine, Composite, MAX_HASHES};
pub use error::ErrorCode;
pub use ids::{Epoch, NodeId, PartitionCount, PartitionIndex, TableVersion};
pub use keying::{Keying, Location};
pub use manifest::{ManifestError, PartitionEntry, ReleaseManifest, TableManifest, TableSchema};
pub use mix::{mix64, unmix64};
pub use model::{
    Bags, Calibration, Column, Curve, FeatureKind, FeatureSpec, Golden, GoldenBag, GoldenScore, Hashed,
    InputSource, InputSpec, ModelError, ModelSpec, OutputSpec, RawBag, RawKind, RawValues, Score, Side,
    Stage, Transform, TransformError, UnknownFeatures, Utility, UtilityError, UtilityInput, UtilityOp,
    rounded,
};
pub use name::{Name, NameError};
pub use pooling::Pooling;
pub use quantizer::Quantizer;
pub use report::{QuantizationReport, Size, SizeReport, WorstRow};
pub use row::{DimError, MAX_DIM, RowFormat};
