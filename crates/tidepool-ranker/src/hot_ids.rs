//! Ids that are asked for often: `GET /v1/hot-ids` gives them to others, and a release that comes is warmed
//! with those of the versions before.

use std::time::{Duration, Instant};

use axum::{
    Router,
    extract::State,
    http::{StatusCode, Uri, header},
    response::{IntoResponse, Response},
    routing::get,
};
use tidepool_client::{Client, HotIds};
use tidepool_runtime::error::chain;
use tidepool_types::{ErrorCode, Name, TableVersion};
use tracing::{info, warn};

use crate::{
    http::answer_error,
    releases::Releases,
    resident::{Filled, merged},
};

/// Ids that are given when nobody says how many, and at most.
const DEFAULT_LIMIT: usize = 100_000;
const MAX_LIMIT: usize = 1_000_000;

/// How the cache of a ranker is made ready for a release.
#[derive(Clone, Debug)]
pub(crate) struct Warming {
    pub(crate) client: Client,
    /// Ids of each table; 0: nothing is warmed.
    pub(crate) ids: usize,
    /// For all tables of a release together.
    pub(crate) within: Duration,
}

impl Warming {
    /// Fills the cache with rows of `versions`, by the ids that were hot in the version before of each table, those left out
    /// that are `resident` on a GPU. It fails nothing: what is not warm is asked for when it is needed.
    pub(crate) async fn warm(&self, versions: &[TableVersion], resident: &Filled) {
        if self.ids == 0 {
            return;
        }
        let start = Instant::now();
        for version in versions {
            let left = self.within.saturating_sub(start.elapsed());
            let Some(before) = self.client.cached_version_before(version) else { continue };
            let (client, limit) = (self.client.clone(), self.ids);
            let (resident, of) = (resident.clone(), version.clone());
            let hot = tokio::task::spawn_blocking(move || {
                let mut hot = client.hot_ids(&before, limit);
                resident.leave_out_resident(&of, &mut hot.ids);
                hot
            });
            let Ok(hot) = hot.await else { continue };
            match self.client.warm(version, &hot.ids, left).await {
                Ok(warmed) => info!(%version, before = %hot.table_version.version, ids = warmed.ids,
                    asked = warmed.asked, "the cache was warmed"),
                Err(error) => warn!(%version, error = %chain(&error), "the cache was not warmed"),
            }
        }
    }
}

#[derive(Clone)]
struct Exporter {
    client: Client,
    cached: bool,
    releases: Releases,
}

impl Exporter {
    /// The ids that are resident on a GPU, if any of the version are: no cache has seen those since.
    fn resident(&self, version: &TableVersion) -> Option<Vec<u64>> {
        let now = self.releases.snapshot();
        let mut residences = now.loaded().filter_map(|loaded| loaded.filled.residence.as_ref());
        residences.find_map(|residence| residence.wanted_ids(version))
    }
}

/// The route, for the cache of `client`, if it has one, and what `releases` have on a GPU.
pub(crate) fn routes(client: Client, cached: bool, releases: Releases) -> Router {
    Router::new().route("/v1/hot-ids", get(export)).with_state(Exporter { client, cached, releases })
}

async fn export(State(exporter): State<Exporter>, uri: Uri) -> Response {
    let (version, limit) = match asked(uri.query().unwrap_or_default()) {
        Ok(asked) => asked,
        Err(problem) => return answer_error(StatusCode::BAD_REQUEST, ErrorCode::InvalidRequest, &problem),
    };
    // It looks at every row.
    let text = tokio::task::spawn_blocking(move || {
        let cached = exporter.cached.then(|| exporter.client.hot_ids(&version, limit).ids);
        let ids = both(exporter.resident(&version), cached, limit)?;
        Some(HotIds { table_version: version, ids }.to_string())
    });
    match text.await {
        Ok(Some(text)) => ([(header::CONTENT_TYPE, "text/plain; charset=utf-8")], text).into_response(),
        Ok(None) => {
            let problem = "this ranker has no cache, its cache_bytes is 0, and no hot ids of this table version on a GPU";
            answer_error(StatusCode::NOT_FOUND, ErrorCode::NotFound, problem)
        }
        Err(error) => {
            answer_error(StatusCode::INTERNAL_SERVER_ERROR, ErrorCode::Internal, &error.to_string())
        }
    }
}

/// Ids that are resident, and behind them those of a cache, which never sees the others; `None`: there are neither.
fn both(resident: Option<Vec<u64>>, cached: Option<Vec<u64>>, limit: usize) -> Option<Vec<u64>> {
    let is_there = resident.is_some() || cached.is_some();
    is_there.then(|| merged(&resident.unwrap_or_default(), &[cached.unwrap_or_default()], limit, |_| true))
}

/// `table`, `version`, and perhaps `limit`, in any order.
fn asked(query: &str) -> Result<(TableVersion, usize), String> {
    let (mut table, mut version, mut limit) = (None, None, DEFAULT_LIMIT);
    for pair in query.split('&').filter(|pair| !pair.is_empty()) {
        let (key, value) = pair.split_once('=').unwrap_or((pair, ""));
        let name = || Name::new(value).map_err(|error| format!("{key}: {error}"));
        match key {
            "table" => table = Some(name()?),
            "version" => version = Some(name()?),
            "limit" => {
                let number = value.parse().ok().filter(|limit| (1..=MAX_LIMIT).contains(limit));
                limit = number.ok_or_else(|| {
                    format!("limit={value}: a whole number from 1 to {MAX_LIMIT} is expected")
                })?;
            }
            _ => return Err(format!("{key:?} is not known: table, version and limit are")),
        }
    }
    let missing = |key| format!("{key} is missing: ?table=NAME&version=NAME");
    let table = table.ok_or_else(|| missing("table"))?;
    let version = version.ok_or_else(|| missing("version"))?;
    Ok((TableVersion { table, version }, limit))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn resident_ids_come_before_those_of_the_cache() {
        let of = |resident: Option<&[u64]>, cached: Option<&[u64]>| {
            both(resident.map(Into::into), cached.map(Into::into), 4)
        };
        assert_eq!(of(Some(&[9, 7]), Some(&[7, 1, 2, 3])), Some(vec![9, 7, 1, 2]));
        assert_eq!(of(Some(&[9, 7]), None), Some(vec![9, 7]));
        assert_eq!((of(None, Some(&[])), of(None, None)), (Some(vec![]), None));
    }

    #[test]
    fn a_table_version_is_asked_for_by_name() {
        let words = |query: &str| asked(query).map(|(version, limit)| format!("{version} {limit}"));
        assert_eq!(words("table=pin&version=v1"), Ok("pin@v1 100000".into()));
        assert_eq!(words("limit=7&version=v1&table=pin"), Ok("pin@v1 7".into()));
        for (query, word) in [
            ("", "table is missing"),
            ("table=pin", "version is missing"),
            ("table=..%2fup&version=v1", "table"),
            ("table=pin&version=v1&limit=0", "from 1"),
            ("table=pin&version=v1&limit=1000001", "from 1"),
            ("table=pin&version=v1&top=1", "top"),
        ] {
            assert!(words(query).unwrap_err().contains(word), "{query}");
        }
    }
}
