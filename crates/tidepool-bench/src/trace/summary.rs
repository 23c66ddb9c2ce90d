//! What a trace holds, in a few numbers.

use std::{
    collections::{BTreeMap, HashMap},
    io::Read,
};

use serde::Serialize;
use tidepool_client::{
    FeatureLookup,
    trace::{Ending, TraceError, TraceReader},
};
use tidepool_types::{Pooling, TableVersion};

/// Tenants that are named; the rest are together under the empty name.
const NAMED_TENANTS: usize = 20;

/// What a trace holds.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct TraceSummary {
    /// Who recorded.
    pub source: String,
    /// Every how many-th lookup was to be recorded.
    pub every: u64,
    /// Whether recording came to its end.
    pub complete: bool,
    /// Bytes behind the last whole record of a trace that was cut off.
    pub lost_bytes: u64,
    /// How long was recorded; of a trace that was cut off, until its last lookup.
    pub seconds: f64,
    /// Lookups recorded.
    pub requests: u64,
    /// Of those.
    pub requests_per_second: f64,
    /// Lookups that were to be recorded and are not there.
    pub dropped: u64,
    /// Ids of all lookups, with repetitions.
    pub ids: u64,
    /// Of those.
    pub ids_per_second: f64,
    /// Ids of a lookup, all features together.
    pub ids_per_request: Distribution,
    /// Vectors that a lookup asks for, all features together.
    pub bags_per_request: Distribution,
    /// By table version.
    pub tables: Vec<TableSummary>,
    /// The tenants with most lookups; an empty name is the client's own tenant and all others.
    pub tenants: Vec<TenantSummary>,
}

/// What is asked of one table version.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct TableSummary {
    /// Which.
    pub table_version: TableVersion,
    /// Ids, with repetitions.
    pub ids: u64,
    /// Ids, each once.
    pub unique_ids: u64,
    /// Which share of `ids` the one asked for most often has.
    pub top_id_share: f64,
    /// Which share of `ids` the 1 % of `unique_ids` have that are asked for most often (one at least).
    pub top_percent_share: f64,
    /// Ids of a bag, 1 where nothing is pooled.
    pub ids_per_bag: Distribution,
    /// Ids of a lookup that asks this table for something.
    pub ids_per_request: Distribution,
}

/// What a tenant asks for.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct TenantSummary {
    /// Its name.
    pub tenant: String,
    /// Its lookups.
    pub requests: u64,
    /// Their ids.
    pub ids: u64,
}

/// How large things are. All 0 when there are none.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub struct Distribution {
    /// The sum by the count.
    pub mean: f64,
    /// Half are at most this.
    pub p50: u64,
    /// 99 of 100 are at most this.
    pub p99: u64,
    /// The largest.
    pub max: u64,
}

/// How often each size was there.
#[derive(Debug, Default)]
struct Sizes(BTreeMap<u64, u64>);

impl Sizes {
    fn add(&mut self, size: u64) {
        *self.0.entry(size).or_default() += 1;
    }

    #[expect(clippy::cast_precision_loss, reason = "a mean to be read")]
    fn distribution(&self) -> Distribution {
        let count: u64 = self.0.values().sum();
        if count == 0 {
            return Distribution::default();
        }
        let at_most = |percent: u64| {
            let rank = (count * percent).div_ceil(100);
            let mut seen = 0;
            let found = self.0.iter().find(|(_, times)| {
                seen += **times;
                seen >= rank
            });
            found.map_or(0, |(size, _)| *size)
        };
        let sum: u64 = self.0.iter().map(|(size, times)| size * times).sum();
        let max = self.0.last_key_value().map_or(0, |(size, _)| *size);
        Distribution { mean: sum as f64 / count as f64, p50: at_most(50), p99: at_most(99), max }
    }
}

#[derive(Debug, Default)]
struct Table {
    times: HashMap<u64, u64>,
    bags: Sizes,
    requests: Sizes,
}

impl Table {
    fn add(&mut self, feature: &FeatureLookup) {
        for id in &feature.ids {
            *self.times.entry(*id).or_default() += 1;
        }
        match &feature.lengths {
            Some(lengths) if feature.pooling != Pooling::None => {
                lengths.iter().for_each(|length| self.bags.add(u64::from(*length)));
            }
            _ => feature.ids.iter().for_each(|_| self.bags.add(1)),
        }
    }

    #[expect(clippy::cast_precision_loss, reason = "shares to be read")]
    fn summary(self, table_version: TableVersion) -> TableSummary {
        let mut times: Vec<u64> = self.times.into_values().collect();
        times.sort_unstable_by(|a, b| b.cmp(a));
        let ids: u64 = times.iter().sum();
        let share = |first: usize| times[..first].iter().sum::<u64>() as f64 / (ids.max(1)) as f64;
        TableSummary {
            table_version,
            ids,
            unique_ids: times.len() as u64,
            top_id_share: share(times.len().min(1)),
            top_percent_share: share(times.len().div_ceil(100)),
            ids_per_bag: self.bags.distribution(),
            ids_per_request: self.requests.distribution(),
        }
    }
}

/// Reads a trace to its end. Takes some 50 bytes of memory per unique id.
///
/// # Errors
/// What the reader says of damaged bytes.
#[expect(clippy::cast_precision_loss, reason = "rates to be read")]
pub fn summarize<R: Read>(trace: &mut TraceReader<R>) -> Result<TraceSummary, TraceError> {
    let mut tables = HashMap::<TableVersion, Table>::new();
    let mut tenants = HashMap::<String, (u64, u64)>::new();
    let (mut ids_per_request, mut bags_per_request) = (Sizes::default(), Sizes::default());
    let (mut requests, mut ids, mut numbers, mut seconds) = (0, 0, 0, 0.0f64);
    while let Some(lookup) = trace.next_lookup()? {
        let (mut of_request, mut bags) = (0, 0);
        let mut of_tables = HashMap::<&TableVersion, u64>::new();
        for feature in &lookup.features {
            let count = feature.ids.len() as u64;
            of_request += count;
            bags += vectors(feature);
            *of_tables.entry(&feature.table_version).or_default() += count;
            match tables.get_mut(&feature.table_version) {
                Some(table) => table.add(feature),
                None => tables.entry(feature.table_version.clone()).or_default().add(feature),
            }
        }
        for (table_version, count) in of_tables {
            if let Some(table) = tables.get_mut(table_version) {
                table.requests.add(count);
            }
        }
        ids_per_request.add(of_request);
        bags_per_request.add(bags);
        let tenant = tenants.entry(lookup.tenant.unwrap_or_default()).or_default();
        *tenant = (tenant.0 + 1, tenant.1 + of_request);
        requests += 1;
        ids += of_request;
        numbers = numbers.max(lookup.number.saturating_add(1));
        seconds = seconds.max(lookup.arrival.as_secs_f64());
    }
    let start = trace.start().clone();
    let (complete, lost_bytes, dropped) = match trace.ending() {
        Some(Ending::Whole(end)) => {
            seconds = end.lasted.as_secs_f64();
            (true, 0, end.dropped)
        }
        Some(Ending::Cut { lost_bytes, .. }) => (false, lost_bytes, numbers.saturating_sub(requests)),
        None => (false, 0, 0),
    };
    let per_second = |count: u64| if seconds > 0.0 { count as f64 / seconds } else { 0.0 };
    let mut tables: Vec<_> = tables.into_iter().map(|(version, table)| table.summary(version)).collect();
    tables.sort_by_key(|table| table.table_version.to_string());
    Ok(TraceSummary {
        source: start.source,
        every: start.every,
        complete,
        lost_bytes,
        seconds,
        requests,
        requests_per_second: per_second(requests),
        dropped,
        ids,
        ids_per_second: per_second(ids),
        ids_per_request: ids_per_request.distribution(),
        bags_per_request: bags_per_request.distribution(),
        tables,
        tenants: first_tenants(tenants),
    })
}

/// Vectors that the answer to a feature has.
pub(super) fn vectors(feature: &FeatureLookup) -> u64 {
    match &feature.lengths {
        Some(lengths) if feature.pooling != Pooling::None => lengths.len() as u64,
        _ => feature.ids.len() as u64,
    }
}

fn first_tenants(tenants: HashMap<String, (u64, u64)>) -> Vec<TenantSummary> {
    let tenant = |(tenant, (requests, ids))| TenantSummary { tenant, requests, ids };
    let mut tenants: Vec<_> = tenants.into_iter().map(tenant).collect();
    tenants.sort_by(|a, b| b.requests.cmp(&a.requests).then_with(|| a.tenant.cmp(&b.tenant)));
    let rest = tenants.split_off(tenants.len().min(NAMED_TENANTS));
    if !rest.is_empty() {
        let at = tenants.iter().position(|tenant| tenant.tenant.is_empty()).unwrap_or(tenants.len());
        if at == tenants.len() {
            tenants.push(TenantSummary { tenant: String::new(), requests: 0, ids: 0 });
        }
        tenants[at].requests += rest.iter().map(|tenant| tenant.requests).sum::<u64>();
        tenants[at].ids += rest.iter().map(|tenant| tenant.ids).sum::<u64>();
    }
    tenants
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, UNIX_EPOCH};

    use tidepool_client::trace::{TraceEnd, TraceStart, TraceWriter, TracedLookup};
    use tidepool_types::Name;

    use super::*;

    fn trace(lookups: &[TracedLookup]) -> Vec<u8> {
        let start = TraceStart { began: UNIX_EPOCH, every: 2, source: "ranker-1".into() };
        let mut writer = TraceWriter::new(Vec::new(), &start).unwrap();
        lookups.iter().for_each(|lookup| writer.lookup(lookup).unwrap());
        writer.finish(&TraceEnd { lasted: Duration::from_secs(4), lookups: 9, dropped: 1 }).unwrap()
    }

    /// Table, ids, lengths.
    type Of<'a> = (&'a str, &'a [u64], Option<&'a [u32]>);

    fn lookup(number: u64, tenant: &str, features: &[Of<'_>]) -> TracedLookup {
        let name = |text: &str| Name::new(text).unwrap();
        let feature = |(table, ids, lengths): &Of<'_>| FeatureLookup {
            table_version: TableVersion { table: name(table), version: name("v1") },
            pooling: Pooling::Sum,
            ids: ids.to_vec(),
            lengths: lengths.map(<[u32]>::to_vec),
            weights: None,
        };
        TracedLookup {
            arrival: Duration::from_secs(number),
            number,
            tenant: Some(tenant.to_owned()).filter(|tenant| !tenant.is_empty()),
            features: features.iter().map(feature).collect(),
        }
    }

    #[test]
    fn a_trace_in_numbers() {
        let bytes = trace(&[
            lookup(0, "ads", &[("item", &[1, 1, 2], Some(&[2, 0, 1])), ("user", &[9], None)]),
            lookup(1, "", &[("item", &[1, 1, 1, 1, 3], Some(&[5]))]),
            lookup(3, "ads", &[]),
        ]);
        let summary = summarize(&mut TraceReader::new(&bytes[..]).unwrap()).unwrap();
        assert_eq!((summary.complete, summary.dropped, summary.seconds), (true, 1, 4.0));
        assert_eq!((summary.requests, summary.ids, summary.ids_per_second), (3, 9, 2.25));
        assert_eq!(summary.ids_per_request, Distribution { mean: 3.0, p50: 4, p99: 5, max: 5 });
        assert_eq!(summary.bags_per_request, Distribution { mean: 5.0 / 3.0, p50: 1, p99: 4, max: 4 });
        let [item, user] = &summary.tables[..] else { panic!("{summary:?}") };
        assert_eq!((item.table_version.to_string().as_str(), item.ids, item.unique_ids), ("item@v1", 8, 3));
        assert_eq!((item.top_id_share, item.top_percent_share), (0.75, 0.75));
        assert_eq!(item.ids_per_bag, Distribution { mean: 2.0, p50: 1, p99: 5, max: 5 });
        assert_eq!(item.ids_per_request, Distribution { mean: 4.0, p50: 3, p99: 5, max: 5 });
        assert_eq!(user.ids_per_bag, Distribution { mean: 1.0, p50: 1, p99: 1, max: 1 });
        let tenants: Vec<_> =
            summary.tenants.iter().map(|t| (t.tenant.as_str(), t.requests, t.ids)).collect();
        assert_eq!(tenants, [("ads", 2, 4), ("", 1, 5)]);

        // What was cut off is said, and what is missing between is known by the numbers.
        let cut = &bytes[..bytes.len() - 1];
        let summary = summarize(&mut TraceReader::new(cut).unwrap()).unwrap();
        assert_eq!((summary.complete, summary.dropped, summary.seconds), (false, 1, 3.0));
        assert!(summary.lost_bytes > 0 && summary.requests == 3);
    }

    #[test]
    fn many_tenants_are_few_lines() {
        let lookups: Vec<_> = (0..30).map(|n| lookup(n, &format!("t{n:02}"), &[("a", &[n], None)])).collect();
        let summary = summarize(&mut TraceReader::new(&trace(&lookups)[..]).unwrap()).unwrap();
        assert_eq!(summary.tenants.len(), NAMED_TENANTS + 1);
        let rest = &summary.tenants[NAMED_TENANTS];
        assert_eq!((rest.tenant.as_str(), rest.requests, rest.ids), ("", 10, 10));
    }

    #[test]
    fn an_empty_trace_has_no_rates() {
        let start = TraceStart { began: UNIX_EPOCH, every: 1, source: String::new() };
        let bytes = TraceWriter::new(Vec::new(), &start).unwrap().finish(&TraceEnd::default()).unwrap();
        let summary = summarize(&mut TraceReader::new(&bytes[..]).unwrap()).unwrap();
        assert_eq!((summary.requests_per_second, summary.ids_per_request), (0.0, Distribution::default()));
    }
}
