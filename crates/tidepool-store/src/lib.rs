//! The artifact store: where table versions and releases lie, and how they get there whole. A directory, or an S3
//! bucket from which what is needed is fetched into a directory of the same shape.
//!
//! **Invariant:** it must not know what a row is, nor open a partition file: bytes, names and hashes are
//! all it sees. What it shows is complete: in a directory a version or a release appears under its name by one rename of
//! a directory whose files are already on disk, in an object store by its manifest, which is put last and only where
//! none is; and nothing that is missing, short or altered is handed out.
//!
//! ```text
//! <root>/tables/<table>/<version>/manifest.json
//! <root>/tables/<table>/<version>/layout-16/part-00003.tide
//! <root>/releases/<model>/<release>/{release.json, model.toml, model.onnx}
//! ```
//! Names never begin with a dot, so a directory that does is one being written, or left behind by a
//! crash; listings skip it.
//!
//! Read first: [`ArtifactStore`] (a directory), [`RemoteStore`] (an object store), [`Artifacts`] (what a role has of
//! either), [`StoreError`].

mod artifacts;
mod documents;
mod error;
mod gc;
mod hash;
mod local;
mod location;
mod publish;
mod remote;
mod store;
mod throttle;

pub use artifacts::Artifacts;
pub use documents::NewRelease;
pub use error::StoreError;
pub use gc::{Artifact, Collected, Found, References, Report};
pub use hash::content_hash;
pub use local::{ArtifactStore, ReleaseFiles};
pub use location::StoreLocation;
pub use remote::{
    Pulled, RemoteStore, Retries, Uploaded,
    fetch::{FetchEvent, Fetched, Fetcher},
};
pub use store::Store;
