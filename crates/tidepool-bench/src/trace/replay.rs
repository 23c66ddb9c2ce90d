//! Asking a trace again: the lookups of real traffic, at their times, of a cluster.

use std::{
    collections::{BTreeMap, BTreeSet},
    io::Read,
    sync::Arc,
    time::Duration,
};

use serde::Serialize;
use tidepool_client::{
    Client, LookupOptions, LookupOutcome, LookupRequest,
    trace::{Ending, TraceError, TraceReader, TracedLookup},
};
use tidepool_types::{Name, TableVersion};

use super::{
    in_order::{Damage, InOrder},
    summary::vectors,
};
use crate::{
    BenchError, BenchTable,
    load::{
        Check, CheckRows, Failure, Keep, LoadReport, Lookups, Pace, Plan, Planned, Target, Verdict, drive,
    },
};

/// Between tenant and number in the request id.
const TENANT_END: char = '#';

/// How a trace is asked again.
#[derive(Clone, Debug)]
pub struct ReplaySpec {
    /// How much faster than it was recorded; 1 for as fast.
    pub speed: f64,
    /// For a table: the version that is asked instead of the recorded one.
    pub versions: BTreeMap<Name, Name>,
    /// Timeout and wire form; the tenant, for lookups that were recorded without one.
    pub options: LookupOptions,
    /// Requests in flight at most; more are held back, and their latency runs.
    pub max_in_flight: usize,
    /// How answers about bench tables are kept until they are checked.
    pub keep: Keep,
}

impl Default for ReplaySpec {
    fn default() -> Self {
        Self {
            speed: 1.0,
            versions: BTreeMap::new(),
            options: LookupOptions::default(),
            max_in_flight: 4096,
            keep: Keep::default(),
        }
    }
}

/// What a trace asks for: what must be known before it is asked again.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Survey {
    /// Who recorded.
    pub source: String,
    /// Every how many-th lookup was to be recorded.
    pub every: u64,
    /// Whether recording came to its end; if not, what is whole is asked.
    pub complete: bool,
    /// Lookups.
    pub requests: u64,
    /// Their ids.
    pub ids: u64,
    /// Vectors that they ask for.
    pub bags: u64,
    /// From the first to the last of them, as recorded.
    pub seconds: f64,
    /// Every table version that is asked for.
    pub table_versions: BTreeSet<TableVersion>,
    #[serde(skip)]
    first: Duration,
}

impl Survey {
    /// Reads a trace to its end.
    ///
    /// # Errors
    /// What the reader says of damaged bytes.
    pub fn of<R: Read>(trace: &mut TraceReader<R>) -> Result<Self, TraceError> {
        let start = trace.start().clone();
        let (mut requests, mut ids, mut bags) = (0, 0, 0);
        let (mut first, mut last) = (Duration::MAX, Duration::ZERO);
        let mut table_versions = BTreeSet::new();
        while let Some(lookup) = trace.next_lookup()? {
            requests += 1;
            first = first.min(lookup.arrival);
            last = last.max(lookup.arrival);
            for feature in &lookup.features {
                ids += feature.ids.len() as u64;
                bags += vectors(feature);
                if !table_versions.contains(&feature.table_version) {
                    table_versions.insert(feature.table_version.clone());
                }
            }
        }
        let first = first.min(last);
        let complete = matches!(trace.ending(), Some(Ending::Whole(_)));
        let seconds = (last - first).as_secs_f64();
        Ok(Self {
            source: start.source,
            every: start.every,
            complete,
            requests,
            ids,
            bags,
            seconds,
            table_versions,
            first,
        })
    }

    /// Ids of a lookup, on average.
    pub(crate) fn mean_ids(&self) -> usize {
        usize::try_from(self.ids.checked_div(self.requests).unwrap_or(0)).unwrap_or(usize::MAX)
    }
}

impl ReplaySpec {
    /// The table version that is asked for in the place of the recorded one.
    #[must_use]
    pub fn version_for(&self, recorded: &TableVersion) -> TableVersion {
        let version = self.versions.get(&recorded.table).unwrap_or(&recorded.version);
        TableVersion { table: recorded.table.clone(), version: version.clone() }
    }
}

/// What came of asking a trace again.
#[derive(Clone, Debug)]
pub struct Replayed {
    /// Times, counts, and the verdict about answers of bench tables.
    pub load: LoadReport,
    /// Tables whose answers were checked: bench tables, whose rows are known.
    pub checked_tables: Vec<TableVersion>,
    /// Tables whose answers were not: nobody but they knows their rows.
    pub unchecked_tables: Vec<TableVersion>,
}

/// Asks `client` what `trace` has, at the recorded times; `survey` is of the same trace.
///
/// # Errors
/// [`BenchError::Parameters`]: a speed that is none. [`BenchError::NotServed`]: a table version that the
/// cluster does not serve. [`BenchError::Trace`]: damage, found on the way.
pub async fn replay<R: Read + Send + 'static>(
    client: &Client,
    trace: TraceReader<R>,
    survey: &Survey,
    spec: &ReplaySpec,
) -> Result<Replayed, BenchError> {
    if !(spec.speed > 0.0 && spec.speed.is_finite()) {
        return Err(BenchError::Parameters("a speed is above 0"));
    }
    let map = client.map();
    let (mut bench_tables, mut unchecked_tables) = (BTreeMap::new(), Vec::new());
    for recorded in &survey.table_versions {
        let asked = spec.version_for(recorded);
        let layout = map.layout(&asked).ok_or_else(|| BenchError::NotServed(asked.clone()))?;
        match BenchTable::of_schema(&layout.schema) {
            Some(table) => _ = bench_tables.insert(asked, table),
            None => unchecked_tables.push(asked),
        }
    }
    unchecked_tables.sort();
    unchecked_tables.dedup();
    let checked_tables = bench_tables.keys().cloned().collect();
    let damage = Damage::default();
    let items = planned(InOrder::new(trace, damage.clone()), spec.clone(), survey.first);
    let plan = Plan::new(items, survey.mean_ids());
    let lookups = Lookups { client: client.clone(), options: spec.options.clone() };
    let check = (Arc::new(CheckBenchTables(bench_tables)) as _, spec.keep);
    let pace = Pace::Planned { max_in_flight: spec.max_in_flight };
    let load = drive(Arc::new(AsRecorded(lookups)), plan, pace, Some(check)).await?;
    damage.check()?;
    Ok(Replayed { load, checked_tables, unchecked_tables })
}

/// The lookups of `trace` as they are asked; `first` is the time of the first of them.
fn planned<R: Read>(
    trace: InOrder<R>,
    spec: ReplaySpec,
    first: Duration,
) -> impl Iterator<Item = Planned> + use<R> {
    trace.map(move |lookup| {
        let at = lookup.arrival.saturating_sub(first).as_secs_f64() / spec.speed;
        Planned {
            at: Duration::try_from_secs_f64(at).unwrap_or(Duration::MAX),
            request: request(&spec, lookup),
        }
    })
}

fn request(spec: &ReplaySpec, lookup: TracedLookup) -> LookupRequest {
    let mut features = lookup.features;
    for feature in &mut features {
        feature.table_version = spec.version_for(&feature.table_version);
    }
    // A plan is of requests alone: the tenant travels in the id, which nodes show in their logs.
    let tenant = lookup.tenant.unwrap_or_default();
    LookupRequest { request_id: format!("{tenant}{TENANT_END}{}", lookup.number), features }
}

/// Lookups on behalf of the tenants that were recorded.
struct AsRecorded(Lookups);

impl Target for AsRecorded {
    async fn ask(&self, request: &LookupRequest) -> Result<LookupOutcome, Failure> {
        match request.request_id.rsplit_once(TENANT_END) {
            Some((tenant, _)) if !tenant.is_empty() => {
                let options = LookupOptions { tenant: Some(tenant.to_owned()), ..self.0.options.clone() };
                Lookups { client: self.0.client.clone(), options }.ask(request).await
            }
            _ => self.0.ask(request).await,
        }
    }
}

/// Checks the features that ask bench tables.
struct CheckBenchTables(BTreeMap<TableVersion, BenchTable>);

impl Check for CheckBenchTables {
    fn check(&self, request: &LookupRequest, outcome: &LookupOutcome) -> Verdict {
        let mut verdict = Verdict::default();
        for (at, feature) in request.features.iter().enumerate() {
            let Some(table) = self.0.get(&feature.table_version) else { continue };
            let request = LookupRequest { request_id: String::new(), features: vec![feature.clone()] };
            let features = outcome.features.get(at).cloned().into_iter().collect();
            let outcome = LookupOutcome { features, ..LookupOutcome::default() };
            let of_feature = CheckRows(*table).check(&request, &outcome);
            verdict.checked += of_feature.checked;
            verdict.wrong += of_feature.wrong;
        }
        verdict
    }
}

#[cfg(test)]
mod tests {
    use std::time::UNIX_EPOCH;

    use tidepool_client::{
        FeatureLookup,
        trace::{TraceEnd, TraceStart, TraceWriter},
    };
    use tidepool_types::Pooling;

    use super::*;

    fn name(text: &str) -> Name {
        Name::new(text).unwrap()
    }

    fn lookup(number: u64, ms: u64, tenant: Option<&str>) -> TracedLookup {
        let feature = |table| FeatureLookup {
            table_version: TableVersion { table: name(table), version: name("v1") },
            pooling: Pooling::Sum,
            ids: vec![number; 3],
            lengths: Some(vec![3]),
            weights: None,
        };
        TracedLookup {
            arrival: Duration::from_millis(ms),
            number,
            tenant: tenant.map(Into::into),
            features: vec![feature("item"), feature("user")],
        }
    }

    fn trace() -> Vec<u8> {
        let start = TraceStart { began: UNIX_EPOCH, every: 1, source: "r".into() };
        let mut writer = TraceWriter::new(Vec::new(), &start).unwrap();
        for lookup in [lookup(1, 40, None), lookup(0, 20, Some("a#b")), lookup(2, 60, Some("ads"))] {
            writer.lookup(&lookup).unwrap();
        }
        writer.finish(&TraceEnd::default()).unwrap()
    }

    #[test]
    fn lookups_are_asked_in_their_order_at_their_times_of_the_version_wanted() {
        let bytes = trace();
        let survey = Survey::of(&mut TraceReader::new(&bytes[..]).unwrap()).unwrap();
        assert_eq!((survey.requests, survey.ids, survey.bags, survey.mean_ids()), (3, 18, 6, 6));
        assert_eq!((survey.seconds, survey.complete), (0.04, true));
        let tables: Vec<_> = survey.table_versions.iter().map(ToString::to_string).collect();
        assert_eq!(tables, ["item@v1", "user@v1"]);
        let spec =
            ReplaySpec { speed: 2.0, versions: [(name("item"), name("v2"))].into(), ..ReplaySpec::default() };
        let trace = InOrder::new(TraceReader::new(&bytes[..]).unwrap(), Damage::default());
        let items: Vec<_> = planned(trace, spec, survey.first).collect();
        let at: Vec<_> = items.iter().map(|item| item.at.as_millis()).collect();
        assert_eq!(at, [0, 10, 20]);
        let ids: Vec<_> = items.iter().map(|item| item.request.request_id.as_str()).collect();
        assert_eq!(ids, ["a#b#0", "#1", "ads#2"]);
        let asked: Vec<_> = items[1].request.features.iter().map(|f| f.table_version.to_string()).collect();
        assert_eq!(asked, ["item@v2", "user@v1"]);
    }

    #[test]
    fn damage_on_the_way_is_told() {
        let mut bytes = trace();
        let at = bytes.len() - 40;
        bytes[at] ^= 1;
        let damage = Damage::default();
        let items = InOrder::new(TraceReader::new(&bytes[..]).unwrap(), damage.clone());
        assert_eq!(items.count(), 0, "no figure is made of half a trace");
        assert!(matches!(damage.check(), Err(BenchError::Trace(TraceError::Damaged { .. }))));
        assert!(damage.check().is_ok(), "it is told once");
    }
}
