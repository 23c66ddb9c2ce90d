//! `tidepool release golden`: samples of raw features, frozen with what this build makes of them.
//!
//! The samples are a `golden.json` without results. Where a result stands already (because training computed it), it
//! must be what this build gives, and nothing is written when it is not.

use std::{fs, io::Write, path::PathBuf};

use anyhow::{Context, Result, bail};
use serde_json::json;
use tidepool_types::{Golden, ModelSpec};

use crate::output::Output;

#[derive(clap::Args)]
pub(crate) struct Freeze {
    /// The model.toml.
    #[arg(long, value_name = "FILE")]
    model_toml: PathBuf,
    /// Samples: a golden.json whose cases may leave out `ids` and `score`.
    #[arg(long, value_name = "FILE")]
    samples: PathBuf,
    /// Where the golden vectors go; it must not be there yet.
    #[arg(long, value_name = "FILE")]
    out: PathBuf,
}

pub(super) fn freeze(args: &Freeze, output: Output) -> Result<()> {
    let read =
        |path: &PathBuf| fs::read_to_string(path).with_context(|| format!("reading {}", path.display()));
    let spec = ModelSpec::from_toml(&read(&args.model_toml)?)
        .with_context(|| format!("reading {}", args.model_toml.display()))?;
    let mut golden: Golden = serde_json::from_str(&read(&args.samples)?)
        .with_context(|| format!("{} is no list of samples", args.samples.display()))?;
    if let Err(problems) = golden.freeze(&spec) {
        let list: Vec<_> = problems.iter().map(|problem| format!("\n  - {problem}")).collect();
        bail!("these samples cannot be frozen:{}", list.concat());
    }
    let mut text = serde_json::to_string_pretty(&golden)?;
    text.push('\n');
    let out = args.out.display();
    let mut file = fs::File::create_new(&args.out).with_context(|| format!("creating {out}"))?;
    file.write_all(text.as_bytes()).with_context(|| format!("writing {out}"))?;
    output.line(format!("{} golden vectors of model {} are in {out}", golden.cases(), spec.model));
    output.object(json!({ "model": spec.model, "golden_vectors": golden.cases(), "out": args.out }));
    Ok(())
}
