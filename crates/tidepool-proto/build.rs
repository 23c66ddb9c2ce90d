//! Compiles `proto/` with protox, so that nobody needs a `protoc`. Messages are decoded by `BoundedCodec`,
//! those of the inference protocol by `InferenceCodec`.

use std::{error::Error, path::Path};

/// Requests for changes, and what is in them: the audit log of the controller has them as JSON.
const WRITTEN_DOWN: &[&str] = &[
    "PublishReleaseRequest",
    "PromoteReleaseRequest",
    "ServeTableRequest",
    "TableVersion",
    "QuotaRule",
    "Quota",
    "RemoveQuotaRequest",
    "NoteCollectionRequest",
    "RebuildRequest",
    "SetSharesRequest",
    "Share",
    "Guards",
    "ShadowReleaseRequest",
    "RollbackRequest",
    "RetireReleaseRequest",
    "PinReleaseRequest",
    "DrainNodeRequest",
];

fn main() -> Result<(), Box<dyn Error>> {
    let root = Path::new("../../proto");
    let files = ["common", "lookup", "control", "controllers", "rank", "releases", "trace"]
        .map(|name| root.join(format!("tidepool/v1/{name}.proto")));
    println!("cargo:rerun-if-changed={}", root.display());
    let descriptors = protox::compile(files, [root])?;
    let configured = tonic_prost_build::configure().bytes(".").codec_path("crate::BoundedCodec");
    let configured = WRITTEN_DOWN.iter().fold(configured, |configured, message| {
        configured.type_attribute(format!(".tidepool.v1.{message}"), "#[derive(serde::Serialize)]")
    });
    configured.compile_fds(descriptors)?;
    let inference = protox::compile([root.join("inference/service.proto")], [root])?;
    let configured = tonic_prost_build::configure().bytes(".").btree_map(".");
    configured.codec_path("crate::InferenceCodec").compile_fds(inference)?;
    Ok(())
}
