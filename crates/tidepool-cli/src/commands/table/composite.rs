//! Composite tables on the command line: how one is asked for, and how it is described.

use clap::Args;
use tidepool_types::{Combine, Composite, TableSchema};

use crate::output::Output;

/// What makes a table composite.
#[derive(Args)]
pub(super) struct CompositeArgs {
    /// Make a composite table, with `--keying dense`: an id is any number, and each of this many hashes, 1 to 64,
    /// gives it one of the rows. The hashes follow from --seed.
    #[arg(long, value_name = "COUNT")]
    hashes: Option<u8>,
    /// With --hashes: `concat` puts the rows of an id one after the other, `sum` adds them up.
    #[arg(long, value_name = "HOW", requires = "hashes", default_value = "concat")]
    combine: Combine,
}

impl CompositeArgs {
    /// What the schema says of it, in a build with this seed.
    pub(super) fn composite(&self, seed: u64) -> Option<Composite> {
        self.hashes.map(|hashes| Composite::from_build_seed(seed, hashes, self.combine))
    }
}

/// What is to be said of a composite table beside its rows; nothing of others.
pub(super) fn describe(schema: &TableSchema, output: Output) {
    if let Some(composite) = &schema.composite {
        let (combine, hashes) = (composite.combine, composite.hashes());
        let dim = schema.vector_dim();
        output.line(format!("composite: {combine} of {hashes} rows an id, vectors of dim {dim}"));
    }
}
