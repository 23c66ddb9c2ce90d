//! Compiles `proto/` with protox, so that nobody needs a `protoc`. Messages are decoded by `BoundedCodec`.

use std::{error::Error, path::Path};

fn main() -> Result<(), Box<dyn Error>> {
    let root = Path::new("../../proto");
    let files = ["common", "lookup", "control", "controllers", "rank", "trace"]
        .map(|name| root.join(format!("tidepool/v1/{name}.proto")));
    println!("cargo:rerun-if-changed={}", root.display());
    let descriptors = protox::compile(files, [root])?;
    let configured = tonic_prost_build::configure().bytes(".").codec_path("crate::BoundedCodec");
    configured.compile_fds(descriptors)?;
    Ok(())
}
