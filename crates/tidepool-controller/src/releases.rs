//! The Releases service: traffic, guards and the way back, for operators.

use std::time::Duration;

use tidepool_cluster::{
    BUCKETS, ClusterState, Event, Guards, ReleaseEntry, ReleaseState, ScoreHistogram, step,
};
use tidepool_proto::v1;
use tidepool_runtime::auth::{Caller, KnownBy};
use tidepool_types::Name;
use tonic::{Request, Response, Status};

use crate::{convert::name, error::RequestError, lead::Lead};

/// The header in which a caller says who he is, where nothing better is known of him.
const BY_HEADER: &str = "tidepool-by";
/// What of it is kept.
const MAX_BY_CHARS: usize = 100;

/// The service. It holds no state of its own.
pub(crate) struct ReleasesService {
    pub(crate) lead: Lead,
}

impl ReleasesService {
    /// Applies an event, or only says what it would do, and shows the model's traffic afterwards.
    async fn change(
        &self,
        model: &Name,
        event: Event,
        dry_run: bool,
    ) -> Result<Response<v1::TrafficStatus>, RequestError> {
        let state = apply(&self.lead, event, dry_run).await?;
        Ok(Response::new(traffic_status(&state, model)))
    }
}

/// Applies an event, or only tries what it would do to the state as it is; gives the state after it.
pub(crate) async fn apply(lead: &Lead, event: Event, dry_run: bool) -> Result<ClusterState, RequestError> {
    let handle = lead.handle()?;
    if dry_run {
        // No time has passed: nothing but the event itself is tried.
        return Ok(step(&handle.state(), event, Duration::ZERO)?.0);
    }
    handle.request(event).await?;
    Ok(handle.state())
}

/// Who asks, for the list of events: what is known of the caller, or else what he says of himself.
pub(crate) fn asked_by<T>(request: &Request<T>) -> String {
    let caller = Caller::of(request.extensions());
    let said = request.metadata().get(BY_HEADER).and_then(|said| said.to_str().ok());
    let said = said.map(|said| said.chars().take(MAX_BY_CHARS).collect::<String>());
    let who = match caller.by {
        KnownBy::Nothing => said.unwrap_or_else(|| caller.name.to_string()),
        KnownBy::Token | KnownBy::Certificate | KnownBy::Process => caller.name.to_string(),
    };
    caller.from.map_or_else(|| who.clone(), |from| format!("{who} from {}", from.ip()))
}

fn names(model: String, release: String) -> Result<(Name, Name), RequestError> {
    Ok((name("model", model)?, name("release", release)?))
}

/// Who answers the requests of a model, and what guards see.
fn traffic_status(state: &ClusterState, model: &Name) -> v1::TrafficStatus {
    let map = state.map();
    let traffic = map.traffic.get(model).cloned().unwrap_or_default();
    let of_state = |wanted| {
        let is = |r: &&ReleaseEntry| r.model == *model && r.state == wanted;
        map.releases.iter().find(is).map(|r| r.release.to_string()).unwrap_or_default()
    };
    let current = of_state(ReleaseState::Current);
    let names_of = |is: &dyn Fn(&ReleaseEntry) -> bool| {
        let releases = map.releases.iter().filter(|r| r.model == *model && is(r));
        releases.map(|r| r.release.to_string()).collect()
    };
    let shift = |a: &ScoreHistogram, b: &ScoreHistogram| a.distance(b);
    let arms = state.durable.ramps.iter().filter(|ramp| ramp.model == *model).map(|ramp| {
        let (candidate, beside) = state.evidence(model, &ramp.release);
        v1::ArmStatus {
            release: ramp.release.to_string(),
            buckets: traffic.share(&ramp.release),
            guards: Some(ramp.guards.into()),
            halted: ramp.halted.clone().unwrap_or_default(),
            by: ramp.by.clone(),
            unix_seconds: ramp.unix_seconds,
            candidate: Some((&candidate).into()),
            current: Some((&beside).into()),
            score_shift: shift(&candidate.scores, &beside.scores),
        }
    });
    let shadows = traffic.shadows.iter().map(|shadow| {
        let tally = state.shadow_tally(model, &shadow.release);
        v1::ShadowStatus {
            release: shadow.release.to_string(),
            sample: shadow.sample,
            score_shift: shift(&tally.scores, &tally.answered),
            tally: Some((&tally).into()),
        }
    });
    let rolled_back = state.ranker_reports().filter(|r| r.rolled_back.contains(model));
    v1::TrafficStatus {
        model: model.to_string(),
        epoch: map.epoch.0,
        current_buckets: if current.is_empty() { 0 } else { traffic.free().min(BUCKETS) },
        current,
        previous: of_state(ReleaseState::Previous),
        arms: arms.collect(),
        shadows: shadows.collect(),
        rolled_back_at: rolled_back.map(|r| r.ranker.to_string()).collect(),
        retiring: names_of(&|r| r.state == ReleaseState::Retiring),
        pinned: names_of(&|r| r.pinned),
    }
}

#[tonic::async_trait]
impl v1::releases_server::Releases for ReleasesService {
    async fn set_shares(
        &self,
        request: Request<v1::SetSharesRequest>,
    ) -> Result<Response<v1::TrafficStatus>, Status> {
        let by = asked_by(&request);
        let v1::SetSharesRequest { model, shares, guards, dry_run } = request.into_inner();
        let model = name("model", model).map_err(RequestError::from)?;
        let share = |share: v1::Share| Ok((name("release", share.release)?, share.buckets));
        let shares = shares.into_iter().map(share).collect::<Result<_, RequestError>>()?;
        let guards = guards.map_or_else(Guards::default, Into::into);
        let event = Event::SetShares { model: model.clone(), shares, guards, by };
        Ok(self.change(&model, event, dry_run).await?)
    }

    async fn shadow_release(
        &self,
        request: Request<v1::ShadowReleaseRequest>,
    ) -> Result<Response<v1::TrafficStatus>, Status> {
        let by = asked_by(&request);
        let v1::ShadowReleaseRequest { model, release, sample, dry_run } = request.into_inner();
        let (model, release) = names(model, release)?;
        let event = Event::ShadowRelease { model: model.clone(), release, sample, by };
        Ok(self.change(&model, event, dry_run).await?)
    }

    async fn rollback(
        &self,
        request: Request<v1::RollbackRequest>,
    ) -> Result<Response<v1::TrafficStatus>, Status> {
        let by = asked_by(&request);
        let v1::RollbackRequest { model, release, dry_run } = request.into_inner();
        let model = name("model", model).map_err(RequestError::from)?;
        let release = (!release.is_empty()).then(|| name("release", release)).transpose();
        let release = release.map_err(RequestError::from)?;
        let event = Event::Rollback { model: model.clone(), release, by };
        Ok(self.change(&model, event, dry_run).await?)
    }

    async fn retire_release(
        &self,
        request: Request<v1::RetireReleaseRequest>,
    ) -> Result<Response<v1::TrafficStatus>, Status> {
        let by = asked_by(&request);
        let v1::RetireReleaseRequest { model, release, dry_run } = request.into_inner();
        let (model, release) = names(model, release)?;
        let event = Event::RetireRelease { model: model.clone(), release, by };
        Ok(self.change(&model, event, dry_run).await?)
    }

    async fn pin_release(
        &self,
        request: Request<v1::PinReleaseRequest>,
    ) -> Result<Response<v1::TrafficStatus>, Status> {
        let by = asked_by(&request);
        let v1::PinReleaseRequest { model, release, pinned, dry_run } = request.into_inner();
        let (model, release) = names(model, release)?;
        let event = Event::PinRelease { model: model.clone(), release, pinned, by };
        Ok(self.change(&model, event, dry_run).await?)
    }

    async fn get_traffic(
        &self,
        request: Request<v1::GetTrafficRequest>,
    ) -> Result<Response<v1::GetTrafficResponse>, Status> {
        let wanted = request.into_inner().model;
        let state = self.lead.handle()?.state();
        let mut models: Vec<_> = state.map().releases.iter().map(|r| r.model.clone()).collect();
        models.sort_unstable();
        models.dedup();
        if !wanted.is_empty() {
            models.retain(|model| model.as_str() == wanted);
            if models.is_empty() {
                return Err(RequestError::NotFound { what: format!("release of model {wanted:?}") }.into());
            }
        }
        let models = models.iter().map(|model| traffic_status(&state, model)).collect();
        Ok(Response::new(v1::GetTrafficResponse { models }))
    }

    async fn get_events(
        &self,
        request: Request<v1::GetEventsRequest>,
    ) -> Result<Response<v1::GetEventsResponse>, Status> {
        let state = self.lead.handle()?.state();
        let events = state.durable.events.after(request.into_inner().after).map(Into::into);
        Ok(Response::new(v1::GetEventsResponse { events: events.collect() }))
    }
}
