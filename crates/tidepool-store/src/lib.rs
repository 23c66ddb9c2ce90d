//! The artifact store: where table versions and releases lie, and how they get there whole.
//!
//! **Invariant:** it must not know what a row is, nor open a partition file: bytes, names and hashes are
//! all it sees. What it shows is complete: a version or a release appears under its name by one rename of
//! a directory whose files are already on disk, and nothing that is missing, short or altered is handed out.
//!
//! ```text
//! <root>/tables/<table>/<version>/manifest.json
//! <root>/tables/<table>/<version>/layout-16/part-00003.tide
//! <root>/releases/<model>/<release>/{release.json, model.toml, model.onnx}
//! ```
//! Names never begin with a dot, so a directory that does is one being written, or left behind by a
//! crash; listings skip it.
//!
//! Read first: [`ArtifactStore`], [`ReleaseFiles`], [`StoreError`].

mod error;
mod hash;
mod local;
mod publish;

pub use error::StoreError;
pub use hash::content_hash;
pub use local::{ArtifactStore, ReleaseFiles};
