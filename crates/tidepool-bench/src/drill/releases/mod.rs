//! Drills of releases: a cluster of real processes in front of which several rankers answer checked load, a release
//! or a process that comes or goes under it, and whether anybody noticed.
//!
//! **Invariant:** whether an answer is right is judged by the oracle of `oracle.rs`, which knows rows and dense models by
//! functions of its own; it calls neither `tidepool-kernels` nor `tidepool-dense`. What an operator would do is done
//! by the commands that he has.
//!
//! Read first: [`ReleaseDrill`], [`run`], [`Report`]; `truth.rs` for what is true, `scene.rs` for how a drill goes.

mod etcd;
mod kill;
mod load;
mod operator;
mod oracle;
mod outage;
mod promote;
mod ramp_bad;
mod report;
mod requests;
mod rollback;
mod scene;
mod tables;
mod truth;

use std::{fmt, path::PathBuf, time::Duration};

use super::Named;
use crate::BenchError;

pub use report::{Pair, Report};

/// What happens to a release, or to what it depends on, and what is promised for it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ReleaseDrill {
    /// A release is published, loaded and promoted, and the one before is retired.
    Promote,
    /// The release before answers again: by the controller, and at each ranker while the controller is dead.
    Rollback,
    /// A model with the tables of the one before it is ramped, and its guards take it back.
    RampBad,
    /// The controller is killed in the middle of a promotion, and started again.
    KillController,
    /// A node is killed and started again.
    KillNode,
    /// Every node of a replica group is killed and started again.
    KillGroup,
    /// etcd is killed or stopped, and comes back.
    MetastoreOutage,
    /// The artifact store is gone, then in part, and comes back.
    StoreOutage,
}

impl Named for ReleaseDrill {
    const ALL: &'static [Self] = &[
        Self::Promote,
        Self::Rollback,
        Self::RampBad,
        Self::KillController,
        Self::KillNode,
        Self::KillGroup,
        Self::MetastoreOutage,
        Self::StoreOutage,
    ];

    fn as_str(self) -> &'static str {
        match self {
            Self::Promote => "promote",
            Self::Rollback => "rollback",
            Self::RampBad => "ramp-bad",
            Self::KillController => "kill-controller",
            Self::KillNode => "kill-node",
            Self::KillGroup => "kill-group",
            Self::MetastoreOutage => "metastore-outage",
            Self::StoreOutage => "store-outage",
        }
    }
}

impl fmt::Display for ReleaseDrill {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

/// How a drill of releases is run.
#[derive(Clone, Debug)]
pub struct Params {
    /// The `tidepool` program; `None` for the one that runs this.
    pub program: Option<PathBuf>,
    /// Where tables are kept, and the folders of clusters are made.
    pub dir: PathBuf,
    /// Rows of both tables together.
    pub rows: u64,
    /// Requests per second.
    pub rate: f64,
    /// Rankers that are asked in turn.
    pub rankers: usize,
    /// Requests that are sent during transitions at least, all pairs together.
    pub requests_during: u64,
    /// How often it is done, each time after as many requests with which it is compared; at most 14.
    pub pairs: usize,
    /// After this time there is no answer any more; at most [`Self::MOST_DEADLINE`].
    pub deadline: Duration,
    /// The seed of all that is drawn.
    pub seed: u64,
    /// Whether configurations, logs and state stay after a clean end as well.
    pub keep: bool,
    /// Whether tables that were kept are built again.
    pub fresh: bool,
    /// The `etcd` program.
    pub etcd: PathBuf,
    /// Whether releases are published with a table of the release before, which the oracle does not know: what is
    /// then answered is mixed, and has to be found so.
    pub mix_versions: bool,
    /// Whether promises about time count. Where others use the machine, they are printed only.
    pub judge_timing: bool,
}

impl Params {
    /// The latest moment at which an answer is one.
    pub const MOST_DEADLINE: Duration = Duration::from_millis(250);

    fn check(&self) -> Result<(), BenchError> {
        let problem = match self {
            _ if self.pairs == 0 || self.pairs as u64 >= truth::MOST_VERSIONS => "there are 1 to 14 pairs",
            _ if self.rankers == 0 => "somebody has to be asked: give one ranker or more",
            _ if self.rows < 2 => "either table has rows",
            _ if self.requests_during == 0 || self.rate <= 0.0 => "a load has requests",
            _ if self.deadline.is_zero() || self.deadline > Self::MOST_DEADLINE => {
                "a deadline is at most 250 ms"
            }
            _ => return Ok(()),
        };
        Err(BenchError::Parameters(problem))
    }
}

/// Runs a drill. `progress` is told what happens.
///
/// # Errors
/// [`BenchError`]: a cluster that does not come up or down, a command that is refused. A promise that was not kept is in
/// the report.
pub async fn run(
    drill: ReleaseDrill,
    params: &Params,
    progress: &mut (dyn FnMut(&str) + Send),
) -> Result<Report, BenchError> {
    params.check()?;
    match drill {
        ReleaseDrill::Promote => Box::pin(promote::run(params, progress)).await,
        ReleaseDrill::Rollback => Box::pin(rollback::run(params, progress)).await,
        ReleaseDrill::RampBad => Box::pin(ramp_bad::run(params, progress)).await,
        ReleaseDrill::KillController => Box::pin(kill::controller(params, progress)).await,
        ReleaseDrill::KillNode => Box::pin(kill::nodes(drill, params, progress)).await,
        ReleaseDrill::KillGroup => Box::pin(kill::nodes(drill, params, progress)).await,
        ReleaseDrill::MetastoreOutage => Box::pin(outage::metastore(params, progress)).await,
        ReleaseDrill::StoreOutage => Box::pin(outage::store(params, progress)).await,
    }
}
