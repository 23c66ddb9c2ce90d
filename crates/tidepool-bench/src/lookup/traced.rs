//! Requests of a recorded shape: the lookups of a trace, one after the other in the order of their times, their
//! ids laid onto the rows of a bench table, so that answers can be checked.
//!
//! An id becomes the same row whenever it comes, and ids of different tables become rows of their own: what is
//! asked again and again, together, and in which bags, stays as it was recorded. Two ids become one row as rarely
//! as the table is larger than what the trace asks for.

use std::{
    fs::File,
    path::{Path, PathBuf},
};

use serde::Serialize;
use tidepool_client::{
    FeatureLookup, LookupRequest,
    trace::{TraceReader, TracedLookup},
};
use tidepool_types::{Name, TableVersion, mix64};

use crate::{
    BenchError, BenchTable,
    rows::id_of,
    trace::{Damage, InOrder, Survey},
};

/// Which trace, and how.
#[derive(Clone, Debug)]
pub struct TraceParams {
    /// The file.
    pub file: PathBuf,
    /// Whether it begins again at its end. Without that, load ends with it.
    pub repeat: bool,
}

/// The trace that requests were taken from.
#[derive(Clone, Debug, Serialize)]
pub struct TraceUse {
    /// The file.
    pub file: PathBuf,
    /// Who recorded it.
    pub source: String,
    /// Lookups in it.
    pub lookups: u64,
    /// Lookups of it that were asked, repetitions counted.
    pub asked: u64,
    /// Whether it was to begin again at its end.
    pub repeat: bool,
    /// Whether load ended because the trace did.
    pub ended: bool,
}

/// A trace that has been read once.
#[derive(Clone, Debug)]
pub(super) struct Traced {
    params: TraceParams,
    pub(super) survey: Survey,
    table: BenchTable,
    table_version: TableVersion,
    damage: Damage,
}

impl Traced {
    /// Reads the trace to its end: what is damaged is refused before anything is asked.
    pub(super) fn open(params: &TraceParams, table: BenchTable) -> Result<Self, BenchError> {
        let survey = Survey::of(&mut read(&params.file)?)?;
        if survey.requests == 0 {
            return Err(BenchError::Parameters("the trace has no lookups: record for longer"));
        }
        let (params, table_version) = (params.clone(), table.table_version()?);
        Ok(Self { params, survey, table, table_version, damage: Damage::default() })
    }

    /// The requests from number `first` on.
    pub(super) fn requests(&self, first: u64) -> Result<TracedRequests, BenchError> {
        let passed = if self.params.repeat { first % self.survey.requests } else { first };
        let mut lookups = self.lookups()?;
        for _ in 0..passed {
            lookups.next();
        }
        Ok(TracedRequests { traced: self.clone(), lookups })
    }

    fn lookups(&self) -> Result<InOrder<File>, BenchError> {
        Ok(InOrder::new(read(&self.params.file)?, self.damage.clone()))
    }

    /// Whether there is nothing left once so many were asked.
    pub(super) const fn is_over(&self, asked: u64) -> bool {
        !self.params.repeat && asked >= self.survey.requests
    }

    /// What was wrong when requests were taken.
    pub(super) fn check(&self) -> Result<(), BenchError> {
        self.damage.check()
    }

    /// What came of it when so many were asked.
    pub(super) fn of(&self, asked: u64) -> TraceUse {
        let (TraceParams { file, repeat }, Survey { source, requests, .. }) = (&self.params, &self.survey);
        TraceUse {
            file: file.clone(),
            source: source.clone(),
            lookups: *requests,
            asked,
            repeat: *repeat,
            ended: self.is_over(asked),
        }
    }

    fn request(&self, lookup: TracedLookup) -> LookupRequest {
        let mut features = lookup.features;
        for feature in &mut features {
            self.lay_onto_rows(feature);
        }
        LookupRequest { request_id: format!("trace-{}", lookup.number), features }
    }

    fn lay_onto_rows(&self, feature: &mut FeatureLookup) {
        let salt = salt(&feature.table_version.table);
        for id in &mut feature.ids {
            let number = (u128::from(mix64(*id ^ salt)) * u128::from(self.table.rows)) >> 64;
            *id = id_of(self.table.keying, number as u64);
        }
        feature.table_version = self.table_version.clone();
    }
}

/// Tells the ids of one table from those of others.
fn salt(table: &Name) -> u64 {
    table.as_str().bytes().fold(0, |salt, byte| mix64(salt ^ u64::from(byte)))
}

fn read(file: &Path) -> Result<TraceReader<File>, BenchError> {
    let opened = File::open(file).map_err(BenchError::io(format!("opening {}", file.display())))?;
    Ok(TraceReader::new(opened)?)
}

/// Requests that are read as they are taken.
#[derive(Debug)]
pub(super) struct TracedRequests {
    traced: Traced,
    lookups: InOrder<File>,
}

impl Iterator for TracedRequests {
    type Item = LookupRequest;

    fn next(&mut self) -> Option<LookupRequest> {
        let mut next = self.lookups.next();
        if next.is_none() && self.traced.params.repeat {
            match self.traced.lookups() {
                Ok(again) => self.lookups = again,
                Err(error) => {
                    self.traced.damage.note(error);
                    return None;
                }
            }
            next = self.lookups.next();
        }
        next.map(|lookup| self.traced.request(lookup))
    }
}

#[cfg(test)]
mod tests {
    use std::{
        collections::HashSet,
        time::{Duration, UNIX_EPOCH},
    };

    use tempfile::NamedTempFile;
    use tidepool_client::trace::{TraceEnd, TraceError, TraceStart, TraceWriter};
    use tidepool_types::{Keying, PartitionCount, Pooling, RowFormat};

    use super::*;

    const TABLE: BenchTable = BenchTable {
        rows: 1_000_000,
        dim: 8,
        format: RowFormat::Int4,
        keying: Keying::Hashed,
        partitions: PartitionCount::ONE,
    };

    fn name(text: &str) -> Name {
        Name::new(text).unwrap()
    }

    /// Five lookups, written down in another order than they came in.
    fn trace() -> Vec<u8> {
        let start = TraceStart { began: UNIX_EPOCH, every: 1, source: "r-1".into() };
        let mut writer = TraceWriter::new(Vec::new(), &start).unwrap();
        for number in [1, 0, 2, 4, 3] {
            let feature = |table, ids: Vec<u64>| FeatureLookup {
                table_version: TableVersion { table: name(table), version: name("v1") },
                pooling: Pooling::Mean,
                weights: Some(vec![2.0; ids.len()]),
                lengths: Some(vec![1, ids.len() as u32 - 1]),
                ids,
            };
            let features = vec![feature("item", vec![number, 7, 7]), feature("user", vec![7, number])];
            let arrival = Duration::from_millis(10 * number);
            writer.lookup(&TracedLookup { arrival, number, tenant: None, features }).unwrap();
        }
        writer.finish(&TraceEnd::default()).unwrap()
    }

    fn opened(bytes: &[u8], repeat: bool) -> (NamedTempFile, Result<Traced, BenchError>) {
        let file = NamedTempFile::new().unwrap();
        std::fs::write(file.path(), bytes).unwrap();
        let params = TraceParams { file: file.path().to_owned(), repeat };
        (file, Traced::open(&params, TABLE))
    }

    fn numbers(requests: impl Iterator<Item = LookupRequest>) -> Vec<String> {
        requests.map(|request| request.request_id.strip_prefix("trace-").unwrap().to_owned()).collect()
    }

    #[test]
    fn lookups_come_in_order_from_anywhere_and_again_only_if_told() {
        let (_file, once) = opened(&trace(), false);
        let once = once.unwrap();
        assert_eq!(numbers(once.requests(0).unwrap()), ["0", "1", "2", "3", "4"]);
        assert_eq!(numbers(once.requests(3).unwrap()), ["3", "4"]);
        assert_eq!(numbers(once.requests(9).unwrap()), [""; 0]);
        assert!(!once.is_over(4) && once.is_over(5) && once.of(5).ended);

        let (_file, again) = opened(&trace(), true);
        let again = again.unwrap();
        assert_eq!(numbers(again.requests(13).unwrap().take(4)), ["3", "4", "0", "1"]);
        assert!(!again.is_over(13) && again.of(13).asked == 13);
    }

    #[test]
    fn ids_become_rows_and_all_else_stays() {
        let (_file, traced) = opened(&trace(), false);
        let requests: Vec<_> = traced.unwrap().requests(0).unwrap().collect();
        let of = |feature: usize, at: usize| move |r: &LookupRequest| r.features[feature].ids[at];
        let item_7: HashSet<u64> =
            requests.iter().map(of(0, 1)).chain(requests.iter().map(of(0, 2))).collect();
        let user_7: HashSet<u64> = requests.iter().map(of(1, 0)).collect();
        assert!(item_7.len() == 1 && user_7.len() == 1 && item_7 != user_7, "{item_7:?} {user_7:?}");
        assert_eq!(requests.iter().map(of(0, 0)).collect::<HashSet<_>>().len(), 5);
        for feature in requests.iter().flat_map(|request| &request.features) {
            assert_eq!(
                (&feature.table_version, feature.pooling),
                (&TABLE.table_version().unwrap(), Pooling::Mean)
            );
            assert!(feature.ids.iter().all(|id| TABLE.has(*id)));
        }
        assert_eq!(requests[0].features[0].lengths, Some(vec![1, 2]));
        assert_eq!(requests[0].features[1].weights, Some(vec![2.0; 2]));
    }

    #[test]
    fn a_trace_that_is_empty_damaged_or_gone_is_refused() {
        let start = TraceStart { began: UNIX_EPOCH, every: 1, source: String::new() };
        let none = TraceWriter::new(Vec::new(), &start).unwrap().finish(&TraceEnd::default()).unwrap();
        assert!(matches!(opened(&none, true).1, Err(BenchError::Parameters(_))));
        let mut damaged = trace();
        let at = damaged.len() - 40;
        damaged[at] ^= 1;
        assert!(matches!(opened(&damaged, true).1, Err(BenchError::Trace(TraceError::Damaged { .. }))));

        let (file, traced) = opened(&trace(), true);
        let traced = traced.unwrap();
        let requests = traced.requests(0).unwrap();
        file.close().unwrap();
        assert_eq!(requests.count(), 5, "it cannot begin again");
        assert!(matches!(traced.check(), Err(BenchError::Io { .. })));
    }
}
