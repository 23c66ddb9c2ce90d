//! Drills: a cluster of real processes, load, a real fault, and whether what was promised for it held. Those here are
//! of lookups; those of releases, in front of which rankers stand, are in [`releases`].
//!
//! **Invariant:** a promise is judged from outside, by what a caller was answered and by what the system says
//! of the processes, never by what a process says of itself.
//!
//! Read first: [`Drill`], [`run`], [`Report`].

mod kill;
mod load;
mod memory;
mod outage;
mod overload;
mod partition;
mod proxy;
mod quota;
pub mod releases;
mod report;
mod scene;
mod site;
mod soak;
mod stop;
mod words;

use std::{fmt, path::PathBuf, time::Duration};

use crate::BenchError;

pub use proxy::Proxy;
pub use report::{Promise, Report};
pub use words::{Asked, Named, ParseDrillError};

/// A fault, and what is promised for it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Drill {
    /// A node is killed (SIGKILL): no request fails.
    Kill,
    /// A node is stopped (SIGSTOP) and goes on later: no request fails, and p99 stays within three times.
    Stop,
    /// Both copies of a partition are gone: a typed error in time, or an answer that says what is missing.
    Outage,
    /// Three times what the nodes take on: goodput stays, memory stays, refusals are typed.
    Overload,
    /// One tenant over its quota: the other does not notice.
    Quota,
    /// The network between a caller and a node goes silent and heals: traffic comes back by itself.
    Partition,
    /// Many lookups of random shapes over connections that break: no wrong answer, flat memory.
    Soak,
}

impl Named for Drill {
    const ALL: &'static [Self] =
        &[Self::Kill, Self::Stop, Self::Outage, Self::Overload, Self::Quota, Self::Partition, Self::Soak];

    fn as_str(self) -> &'static str {
        match self {
            Self::Kill => "kill",
            Self::Stop => "stop",
            Self::Outage => "outage",
            Self::Overload => "overload",
            Self::Quota => "quota",
            Self::Partition => "partition",
            Self::Soak => "soak",
        }
    }
}

impl fmt::Display for Drill {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

/// How a drill is run.
#[derive(Clone, Debug)]
pub struct Params {
    /// The `tidepool` program; `None` for the one that runs this.
    pub program: Option<PathBuf>,
    /// Where the table is kept, and the folders of clusters are made.
    pub dir: PathBuf,
    /// Rows of the table.
    pub rows: u64,
    /// Requests per second, of drills that do not look for a limit.
    pub rate: f64,
    /// How long each phase of a drill lasts.
    pub phase: Duration,
    /// Lookups of the soak.
    pub lookups: u64,
    /// The seed of all that is drawn.
    pub seed: u64,
    /// Whether promises about time count. Where others use the machine, they are printed only.
    pub judge_timing: bool,
}

/// Runs a drill. `progress` is told what happens.
///
/// # Errors
/// [`BenchError`]: a cluster that does not come up or down. A promise that was not kept is in the report.
pub async fn run(
    drill: Drill,
    params: &Params,
    progress: &mut (dyn FnMut(&str) + Send),
) -> Result<Report, BenchError> {
    match drill {
        Drill::Kill => Box::pin(kill::run(params, progress)).await,
        Drill::Stop => Box::pin(stop::run(params, progress)).await,
        Drill::Outage => Box::pin(outage::run(params, progress)).await,
        Drill::Overload => Box::pin(overload::run(params, progress)).await,
        Drill::Quota => Box::pin(quota::run(params, progress)).await,
        Drill::Partition => Box::pin(partition::run(params, progress)).await,
        Drill::Soak => Box::pin(soak::run(params, progress)).await,
    }
}
