//! Finding the controller that leads: any controller says who does.

use std::{
    collections::{BTreeSet, VecDeque},
    time::{Duration, Instant},
};

use anyhow::{Result, anyhow, bail};
use tidepool_proto::v1::{GetStandingRequest, controllers_client::ControllersClient};
use tonic::Code;

use crate::remote::{Caller, Remote};

/// A controller that has ended is followed by another within its lease; this is longer.
const PATIENCE: Duration = Duration::from_secs(15);
/// What a controller may take to say who leads.
const STANDING_TIMEOUT: Duration = Duration::from_secs(2);
/// Between two rounds of asking.
const PAUSE: Duration = Duration::from_millis(200);

/// Opens a channel to the controller that leads. Those that are named are asked, and those that they name.
///
/// # Errors
/// When none of them can be reached, or none leads for a while.
pub(crate) async fn channel(remote: &Remote) -> Result<Caller> {
    let deadline = Instant::now() + PATIENCE;
    loop {
        let mut todo: VecDeque<String> = remote.controllers().into();
        let (mut asked, mut unreached, mut problem) = (BTreeSet::new(), None, None);
        while let Some(address) = todo.pop_front() {
            if !asked.insert(address.clone()) {
                continue;
            }
            let channel = match remote.channel("controller", &address).await {
                Ok(channel) => channel,
                Err(error) => {
                    unreached.get_or_insert(error.context(format!(
                        "the controller at {address} cannot be reached: start it with `tidepool controller`, or name \
                         yours with --controller HOST:PORT"
                    )));
                    continue;
                }
            };
            let mut controller = ControllersClient::new(channel.clone());
            let asking = controller.get_standing(GetStandingRequest {});
            // One that hangs is passed over like one that is gone.
            let Ok(standing) = tokio::time::timeout(STANDING_TIMEOUT, asking).await else {
                unreached.get_or_insert(anyhow!("the controller at {address} does not answer"));
                continue;
            };
            match standing {
                Ok(standing) => {
                    let standing = standing.into_inner();
                    if standing.leading {
                        return Ok(channel);
                    }
                    if !standing.leader.is_empty() {
                        todo.push_front(standing.leader);
                    }
                    if problem.as_ref().is_none_or(String::is_empty) {
                        problem = Some(standing.problem);
                    }
                }
                Err(status) if status.code() == Code::Unavailable => {}
                // It is no controller, or does not tell us: what is asked next says so better.
                Err(_) => return Ok(channel),
            }
        }
        match (problem, unreached) {
            (None, Some(error)) => return Err(error),
            (problem, _) if Instant::now() >= deadline => {
                let asked = Vec::from_iter(asked).join(", ");
                let why = problem.filter(|p| !p.is_empty()).map_or_else(String::new, |p| format!(": {p}"));
                bail!("no controller leads (asked {asked}){why}");
            }
            _ => tokio::time::sleep(PAUSE).await,
        }
    }
}
