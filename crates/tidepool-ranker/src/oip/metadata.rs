//! What the server and its models say of themselves.

use std::sync::Arc;

use tidepool_cluster::BUCKETS;

use super::{
    Inference, check_names,
    contract::{Contract, Described},
};
use crate::{RankError, loaded::LoadedRelease};

/// The server.
pub(super) const NAME: &str = "tidepool";
/// This build.
pub(super) const VERSION: &str = env!("CARGO_PKG_VERSION");
/// Extensions of the protocol that are served; `parameters` are those of requests and answers.
pub(super) const EXTENSIONS: [&str; 3] = ["binary_tensor_data", "model_repository", "parameters"];
/// What runs the models.
pub(super) const PLATFORM: &str = "tidepool";

/// What a model says of itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Metadata {
    pub(super) name: String,
    /// The releases that are loaded here, the one that is described among them.
    pub(super) versions: Vec<String>,
    pub(super) inputs: Vec<Described>,
    pub(super) outputs: Vec<Described>,
}

impl Inference {
    /// A release of a model that answers here: the named one, or the current one.
    pub(super) fn model(&self, name: &str, version: &str) -> Result<Arc<LoadedRelease>, RankError> {
        if name.is_empty() {
            return Err(RankError::Invalid("no model is named".into()));
        }
        check_names(name, version)?;
        let version = (!version.is_empty()).then_some(version);
        // No arm has the bucket after the last.
        let chosen = self.service.ranker.releases.choose(name, version, BUCKETS)?;
        Ok(chosen.release)
    }

    pub(super) fn metadata(&self, name: &str, version: &str) -> Result<Metadata, RankError> {
        let release = self.model(name, version)?;
        let contract = Contract::of(&release.spec);
        let (inputs, outputs) = (contract.inputs(), contract.outputs());
        let snapshot = self.service.ranker.releases.snapshot();
        let loaded = snapshot.loaded().filter(|loaded| loaded.model == release.model);
        let versions = loaded.map(|loaded| loaded.release.to_string()).collect();
        Ok(Metadata { name: release.model.to_string(), versions, inputs, outputs })
    }
}
