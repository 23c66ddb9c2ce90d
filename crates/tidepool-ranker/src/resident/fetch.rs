//! Rows that are to be resident, fetched within a time.
//!
//! A release comes to rankers and its tables to nodes at the same time, so what no node serves yet is asked for again. Such a table
//! waits without keeping the others from their turn, and is left alone for a while, since each question that fails spends of the
//! retries that live requests have.

use std::{cmp::Reverse, time::Duration};

use tidepool_client::{ClientError, FetchedRows};
use tidepool_dense::resident::Segment;
use tidepool_runtime::error::chain;
use tidepool_types::{ErrorCode, TableVersion};
use tokio::time::Instant;

use super::plan::Wanted;

/// Rows that are asked for at a time: what a failure, or the end of the time, costs.
const PIECE_IDS: usize = 1 << 14;
/// How long a table is left alone that nobody serves, unless the map of the cluster changes.
const AGAIN_AFTER: Duration = Duration::from_secs(1);

/// Where rows come from.
pub(crate) trait Origin {
    /// Rows of a table by their ids, those that there are, in their order.
    fn rows(
        &self,
        table: &TableVersion,
        ids: &[u64],
        within: Duration,
    ) -> impl Future<Output = Result<FetchedRows, ClientError>> + Send;

    /// Waits until others may serve than before, since the last call or the beginning, but no longer than `within`. Whether they may.
    fn change(&mut self, within: Duration) -> impl Future<Output = bool> + Send;
}

/// What came for a table.
#[derive(Debug)]
pub(crate) struct Fetched {
    pub(crate) wanted: Wanted,
    /// How many of the wanted ids were asked for, from the first one on.
    pub(crate) asked: usize,
    /// Those of them that the table has, in their order.
    pub(crate) ids: Vec<u64>,
    /// Their rows.
    pub(crate) rows: Vec<u8>,
    /// Why not all were asked for, if not for want of time.
    pub(crate) problem: Option<String>,
    /// Why the last question was not answered, and when it is asked again.
    pub(super) waits: Option<(String, Instant)>,
    /// How often it had its turn.
    pub(super) turns: u64,
}

impl Fetched {
    pub(crate) const fn new(wanted: Wanted) -> Self {
        Self { wanted, asked: 0, ids: Vec::new(), rows: Vec::new(), problem: None, waits: None, turns: 0 }
    }

    /// Ids that were asked for and are in no row of the table.
    pub(crate) fn absent(&self) -> u64 {
        self.asked.saturating_sub(self.ids.len()) as u64
    }

    /// Why not all is there, if something was wrong with the answers.
    pub(crate) fn why(&self) -> Option<&str> {
        self.problem.as_deref().or_else(|| self.waits.as_ref().map(|(problem, _)| problem.as_str()))
    }

    /// Whether nothing is left to ask for.
    fn is_done(&self) -> bool {
        self.problem.is_some() || self.asked == self.wanted.ids.len()
    }

    /// As a set is built of it. A table that was to be whole and did not come so is a part of itself: what is not resident of
    /// it is asked for.
    pub(crate) fn segment(&self) -> Segment<'_> {
        let Wanted { table, format, dim, whole, ids, .. } = &self.wanted;
        let whole = *whole && self.ids.len() == ids.len();
        Segment { table, format: *format, dim: *dim, whole, ids: &self.ids, rows: &self.rows }
    }

    /// Asks for the next piece, until `end`.
    async fn next(&mut self, end: Instant, origin: &impl Origin) {
        let upto = self.wanted.ids.len().min(self.asked + PIECE_IDS);
        let left = end.saturating_duration_since(Instant::now());
        self.turns += 1;
        match origin.rows(&self.wanted.table, &self.wanted.ids[self.asked..upto], left).await {
            Ok(came) => {
                self.asked = upto;
                self.ids.extend(came.ids);
                self.rows.extend(came.rows);
                self.waits = None;
            }
            // It is the time that was wanting.
            Err(_) if Instant::now() >= end => {}
            Err(error) if is_soon(error.code()) => {
                self.waits = Some((chain(&error), Instant::now() + AGAIN_AFTER));
            }
            Err(error) => self.problem = Some(chain(&error)),
        }
    }
}

/// Whether a node may serve soon what none does now.
const fn is_soon(code: ErrorCode) -> bool {
    matches!(code, ErrorCode::NotServed | ErrorCode::Unavailable | ErrorCode::Overloaded)
}

/// Fetches what is wanted, as far as `within` allows: whole tables one after the other, since half of one is worth little; of the
/// others a piece of each in turn, so that none waits for the least wanted ids of another. What no node serves yet is asked for
/// again later, and a table that fails keeps what came of it; the others go on. Says whether the time was up before all was there.
pub(crate) async fn fetch(
    wanted: Vec<Wanted>,
    within: Duration,
    mut origin: impl Origin,
) -> (Vec<Fetched>, bool) {
    let end = Instant::now() + within;
    let mut fetched: Vec<_> = wanted.into_iter().map(Fetched::new).collect();
    loop {
        let now = Instant::now();
        let left: Vec<_> = fetched.iter_mut().filter(|one| !one.is_done()).collect();
        if left.is_empty() {
            return (fetched, false);
        }
        if now >= end {
            return (fetched, true);
        }
        let first = left.iter().filter_map(|one| one.waits.as_ref()).map(|(_, again)| *again).min();
        let is_ready = |one: &&mut Fetched| one.waits.as_ref().is_none_or(|(_, again)| *again <= now);
        // Whole tables first; of the others whoever had the fewest turns. Of equals `min_by_key` takes the first.
        let whose =
            |one: &&mut Fetched| (Reverse(one.wanted.whole), if one.wanted.whole { 0 } else { one.turns });
        match left.into_iter().filter(is_ready).min_by_key(whose) {
            Some(one) => one.next(end, &origin).await,
            // All that are left wait.
            None => {
                let until = first.unwrap_or(end).min(end);
                if origin.change(until.saturating_duration_since(now)).await {
                    fetched
                        .iter_mut()
                        .filter_map(|one| one.waits.as_mut())
                        .for_each(|(_, again)| *again = now);
                }
            }
        }
    }
}

#[cfg(test)]
pub(super) mod tests {
    use std::{
        collections::VecDeque,
        future::{pending, ready},
        sync::Mutex,
    };

    use tidepool_types::{Name, PartitionIndex, RowFormat};

    use super::*;

    pub(in crate::resident) fn wanted(table: &str, whole: bool, ids: u64) -> Wanted {
        let name = |text: &str| Name::new(text).unwrap();
        let table = TableVersion { table: name(table), version: name("v1") };
        Wanted { table, format: RowFormat::F32, dim: 1, whole, offered: ids, ids: (0..ids).collect() }
    }

    /// Has rows of the ids that are even or below 100,000.
    #[derive(Debug, Default)]
    pub(in crate::resident) struct Site {
        /// Tables and counts of ids, as they were asked for, and how many milliseconds after the beginning.
        asked: Mutex<Vec<(String, u128)>>,
        /// Of a table: what becomes of the next questions, before it has rows.
        pub(in crate::resident) faults: Mutex<Vec<(&'static str, VecDeque<Fault>)>>,
        /// After how long the map changes.
        changes: Mutex<VecDeque<Duration>>,
        begun: Option<Instant>,
    }

    #[derive(Clone, Copy, Debug)]
    pub(in crate::resident) enum Fault {
        NotYet,
        Broken,
        Silent,
    }

    impl Site {
        pub(in crate::resident) fn with(faults: &[(&'static str, &[Fault])]) -> Self {
            let faults =
                faults.iter().map(|(table, list)| (*table, list.iter().copied().collect())).collect();
            Self { faults: Mutex::new(faults), begun: Some(Instant::now()), ..Self::default() }
        }

        fn asked(&self) -> Vec<String> {
            self.asked.lock().unwrap().iter().map(|(asked, _)| asked.clone()).collect()
        }

        fn fault(&self, table: &TableVersion) -> Option<Fault> {
            let mut faults = self.faults.lock().unwrap();
            faults.iter_mut().find(|(of, _)| *of == table.table.as_str())?.1.pop_front()
        }
    }

    impl Origin for &Site {
        async fn rows(
            &self,
            table: &TableVersion,
            ids: &[u64],
            within: Duration,
        ) -> Result<FetchedRows, ClientError> {
            let after = self.begun.map_or(0, |begun| begun.elapsed().as_millis());
            self.asked.lock().unwrap().push((format!("{} {}", table.table, ids.len()), after));
            match self.fault(table) {
                None => {}
                Some(Fault::NotYet) => {
                    let (table, partition) = (table.clone(), PartitionIndex(0));
                    return Err(ClientError::Unavailable { table, partition, tried: 1, last: None });
                }
                Some(Fault::Broken) => {
                    return Err(ClientError::DeadlineExceeded { timeout: MINUTE, node: None });
                }
                // As a client does: it gives up when the time is up.
                Some(Fault::Silent) => {
                    let gave_up = tokio::time::timeout(within, pending::<()>()).await;
                    assert!(gave_up.is_err());
                    return Err(ClientError::DeadlineExceeded { timeout: within, node: None });
                }
            }
            let ids: Vec<u64> = ids.iter().copied().filter(|id| id % 2 == 0 || *id < 100_000).collect();
            let rows = ids.iter().flat_map(|id| (*id as f32).to_le_bytes()).collect();
            ready(Ok(FetchedRows { sequence: 0, ids, rows })).await
        }

        async fn change(&mut self, within: Duration) -> bool {
            let next = self.changes.lock().unwrap().pop_front();
            tokio::time::sleep(next.unwrap_or(within).min(within)).await;
            next.is_some_and(|next| next <= within)
        }
    }

    const MINUTE: Duration = Duration::from_secs(60);

    #[tokio::test(start_paused = true)]
    async fn whole_tables_come_first_and_the_others_in_turns() {
        let site = Site::default();
        let list =
            vec![wanted("long", false, 40_000), wanted("small", true, 20_000), wanted("short", false, 10)];
        let (fetched, late) = fetch(list, MINUTE, &site).await;
        let order = ["small 16384", "small 3616", "long 16384", "short 10", "long 16384", "long 7232"];
        assert_eq!((site.asked(), late), (order.map(str::to_owned).to_vec(), false));
        assert!(fetched.iter().all(|one| one.ids.len() as u64 == one.wanted.offered && one.absent() == 0));
        let segment = fetched[1].segment();
        assert!(segment.whole && segment.rows.len() == 4 * 20_000);
        assert_eq!(fetch(Vec::new(), MINUTE, &site).await.0.len(), 0);
    }

    #[tokio::test(start_paused = true)]
    async fn a_table_that_fails_keeps_what_came_and_the_others_go_on() {
        let site = Site::with(&[("whole", &[Fault::Broken])]);
        let list = vec![wanted("whole", true, 20_000), wanted("hot", false, 20_000)];
        let (fetched, late) = fetch(list, MINUTE, &site).await;
        assert!(!late && fetched[0].why().is_some() && fetched[1].why().is_none());
        assert_eq!((fetched[0].ids.len(), fetched[1].ids.len()), (0, 20_000));
        assert!(!fetched[0].segment().whole, "what is not there is asked for");
    }

    #[tokio::test(start_paused = true)]
    async fn a_table_that_no_node_serves_yet_is_asked_for_again_behind_the_others() {
        let site = Site::with(&[("new", &[Fault::NotYet, Fault::NotYet])]);
        let list = vec![wanted("new", true, 20_000), wanted("there", true, 9), wanted("hot", false, 8)];
        let (fetched, late) = fetch(list, MINUTE, &site).await;
        let order = [
            ("new 16384", 0),
            ("there 9", 0),
            ("hot 8", 0),
            ("new 16384", 1000),
            ("new 16384", 2000),
            ("new 3616", 2000),
        ];
        let asked = site.asked.lock().unwrap().clone();
        assert_eq!(asked, order.map(|(asked, after)| (asked.to_owned(), after)));
        assert!(!late && fetched.iter().all(|one| one.why().is_none()) && fetched[0].segment().whole);
    }

    #[tokio::test(start_paused = true)]
    async fn a_change_of_the_map_ends_the_waiting_and_the_time_all_of_it() {
        let site = Site::with(&[("new", &[Fault::NotYet; 3])]);
        site.changes.lock().unwrap().push_back(Duration::from_millis(40));
        let (fetched, late) = fetch(vec![wanted("new", true, 10)], Duration::from_millis(1500), &site).await;
        let asked = site.asked.lock().unwrap().clone();
        assert_eq!(asked.iter().map(|(_, after)| *after).collect::<Vec<_>>(), [0, 40, 1040]);
        assert!(late && fetched[0].why().is_some_and(|why| why.contains("new@v1")), "{fetched:?}");
    }

    #[tokio::test(start_paused = true)]
    async fn ids_that_the_table_lacks_are_counted() {
        let mut beyond = wanted("hot", false, 4);
        beyond.ids = vec![5, 100_001, 100_002, 100_003];
        let (fetched, _) = fetch(vec![beyond], MINUTE, &Site::default()).await;
        assert_eq!((fetched[0].ids.clone(), fetched[0].absent()), (vec![5, 100_002], 2));
    }

    #[tokio::test(start_paused = true)]
    async fn the_time_is_not_exceeded_and_what_came_is_kept() {
        let site = Site::with(&[("late", &[Fault::Silent])]);
        let list = vec![wanted("hot", false, 20_000), wanted("late", false, 10)];
        let (fetched, late) = fetch(list, MINUTE, &site).await;
        assert!(late);
        assert_eq!((fetched[0].ids.len(), fetched[1].ids.len()), (16_384, 0));
        assert!(fetched.iter().all(|one| one.why().is_none()));
        assert!(fetch(vec![wanted("hot", false, 1)], Duration::ZERO, &site).await.1);
    }
}
