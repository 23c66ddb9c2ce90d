//! The resident set of a release: chosen, fetched and built before the release serves. Nothing of it fails the release: what
//! is not on the device is asked of nodes.

use std::{
    fs,
    hash::{BuildHasher, Hasher, RandomState},
    sync::{Arc, Weak},
    time::{Duration, Instant},
};

use tidepool_client::{Client, ClientError, FetchedRows};
use tidepool_dense::{
    CudaError,
    resident::{ResidentError, ResidentOptions, ResidentSet, Segment},
};
use tidepool_runtime::{error::chain, idle};
use tidepool_types::{Epoch, TableSchema, TableVersion};

use super::{
    Filled, FilledTable, Residence, ResidenceOptions,
    fetch::{Fetched, Origin, fetch},
    lists::{Lists, merged},
    plan::{Candidate, Wanted, may_have, plan},
};
use crate::{StartError, device::ResidentPlace};

/// Seeds that are tried, should ids collide under one.
const SEEDS: usize = 3;
/// Which part of the device's memory is left free.
const LEFT_OVER: u64 = 64;

/// How the sets of releases are filled.
#[derive(Clone, Debug)]
pub(crate) struct Filling {
    pub(crate) client: Client,
    /// `None`: nothing is to be resident.
    pub(crate) options: Option<ResidenceOptions>,
}

impl Filling {
    /// Whether the folder of lists can be read. A path that is wrong is told at the start, when somebody looks; a list that is
    /// none is not, for lists come and go while rankers serve, and a bad one should not keep them from starting anew.
    ///
    /// # Errors
    /// [`StartError::HotIds`].
    pub(crate) fn check(options: Option<&ResidenceOptions>) -> Result<(), StartError> {
        let Some(path) = options.and_then(|options| options.hot_ids.clone()) else { return Ok(()) };
        fs::read_dir(&path).map(drop).map_err(|source| StartError::HotIds { path, source })
    }

    /// Fills the place of a release, if it has one. `before` are the sets of releases that serve, the most telling first.
    pub(crate) async fn fill(&self, place: Option<&ResidentPlace>, before: Vec<Weak<Residence>>) -> Filled {
        let (Some(options), Some(place)) = (&self.options, place) else { return Filled::default() };
        let client = self.client.clone();
        let (of, tables, device) = (options.clone(), place.tables().to_vec(), place.device().clone());
        let choose = move || {
            let (bytes, less) = room(of.bytes, device.memory());
            let mut chosen = choose(&client, &of, bytes, &tables, &before);
            chosen.problems.extend(less);
            chosen
        };
        let (device, cache) = (place.device().clone(), place.cache().map(Into::into));
        let built_with = ResidentOptions { cache, ..ResidentOptions::new(options.bytes, 0) };
        let make = move |segments: &[Segment<'_>], options: &ResidentOptions| {
            ResidentSet::build(&device, segments, options)
        };
        let origin = Nodes { epoch: self.client.map().epoch, client: self.client.clone() };
        let (mut filled, set) = fill(options.within, choose, origin, built_with, make).await;
        if let Some(set) = set {
            let residence = Arc::new(Residence::new(set, place.tables()));
            if let Some(set) = residence.set()
                && place.put(set.clone(), residence.clone())
            {
                filled.residence = Some(residence);
            }
        }
        filled
    }
}

/// Rows of the nodes.
struct Nodes {
    client: Client,
    /// Of the map that was seen last.
    epoch: Epoch,
}

impl Origin for Nodes {
    async fn rows(
        &self,
        table: &TableVersion,
        ids: &[u64],
        within: Duration,
    ) -> Result<FetchedRows, ClientError> {
        self.client.fetch_rows(table, ids, within).await
    }

    async fn change(&mut self, within: Duration) -> bool {
        let (seen, until) = (self.epoch, tokio::time::Instant::now() + within);
        let changed = self.client.wait_for_map(|map| map.epoch != seen, within).await.is_ok();
        if !changed {
            // At once, where nobody is left who could send another map.
            tokio::time::sleep_until(until).await;
        }
        self.epoch = self.client.map().epoch;
        changed
    }
}

/// What is to be fetched, and what is wrong.
#[derive(Debug, Default)]
struct Chosen {
    wanted: Vec<Wanted>,
    /// With what was to say so.
    list_problems: Vec<String>,
    problems: Vec<String>,
}

/// Chooses, fetches, and builds what `make` makes. What goes wrong is in the answer.
async fn fill<T: Send + 'static>(
    within: Duration,
    choose: impl FnOnce() -> Chosen + Send + 'static,
    origin: impl Origin,
    options: ResidentOptions,
    make: impl Fn(&[Segment<'_>], &ResidentOptions) -> Result<T, ResidentError> + Send + 'static,
) -> (Filled, Option<T>) {
    let mut filled = Filled::default();
    let wanted = match idle::run(choose).await {
        Ok(Chosen { wanted, list_problems, problems }) => {
            filled.list_problems(list_problems);
            filled.problems.extend(problems);
            wanted
        }
        Err(error) => {
            filled.problems.push(chain(&error));
            return (filled, None);
        }
    };
    let (fetched, late) = fetch(wanted, within, origin).await;
    if late {
        let asked: usize = fetched.iter().map(|one| one.asked).sum();
        let wanted: usize = fetched.iter().map(|one| one.wanted.ids.len()).sum();
        let within = within.as_millis();
        filled.problems.push(format!(
            "after {within} ms (cuda.resident.within_ms) {asked} of {wanted} ids had been fetched"
        ));
    }
    for one in &fetched {
        let Wanted { table, offered, .. } = &one.wanted;
        filled.tables.push(FilledTable { table: table.clone(), offered: *offered, absent: one.absent() });
        if let Some(problem) = one.why() {
            let (asked, wanted) = (one.asked, one.wanted.ids.len());
            filled.problems.push(format!("{table}: {asked} of {wanted} ids had been fetched: {problem}"));
        }
    }
    let built = match idle::run(move || build(&fetched, options, make)).await {
        Ok(Ok(built)) => built,
        Ok(Err(error)) => {
            filled.problems.push(format!("the set was not built: {}", chain(&error)));
            None
        }
        Err(error) => {
            filled.problems.push(chain(&error));
            None
        }
    };
    (filled, built)
}

/// The bytes that a set may take, of `bytes` that it was meant to take and a device with so much free memory of all; and what is to
/// be said when that is less.
fn room(bytes: u64, memory: Result<(u64, u64), CudaError>) -> (u64, Option<String>) {
    match memory {
        Ok((free, total)) => {
            // What models and the driver take while they run, and other processes.
            let left_over = total / LEFT_OVER;
            let room = free.saturating_sub(left_over).min(bytes);
            let less = || {
                format!(
                    "cuda.resident.bytes are {bytes}, and of the device {free} are free, {left_over} of which are left over: \
                     the set takes {room} at most"
                )
            };
            (room, (room < bytes).then(less))
        }
        Err(error) => (0, Some(format!("how much memory is free is not known: {}", chain(&error)))),
    }
}

/// What is to be fetched. It reads files, for as long as `options.within` at most, and looks at every row of the cache.
fn choose(
    client: &Client,
    options: &ResidenceOptions,
    bytes: u64,
    tables: &[TableSchema],
    before: &[Weak<Residence>],
) -> Chosen {
    let end = Instant::now() + options.within;
    let mut lists = options.hot_ids.as_deref().map_or_else(Lists::default, |folder| {
        Lists::of(folder).unwrap_or_else(|error| Lists::unreadable(folder, &error))
    });
    let candidate = |schema: &TableSchema| {
        let table = &schema.table_version;
        let first = lists.ids(table, options.ids, end, |id| may_have(schema, id));
        let had = |set: &Weak<Residence>| set.upgrade()?.wanted_in_another_version(schema);
        let mut in_turns: Vec<_> = before.iter().find_map(had).into_iter().collect();
        let cached = [Some(table.clone()), client.cached_version_before(table)];
        in_turns.extend(cached.iter().flatten().map(|version| client.hot_ids(version, options.ids).ids));
        let hot = merged(&first, &in_turns, options.ids, |id| may_have(schema, id));
        Candidate::new(schema, options.whole_rows, hot)
    };
    let candidates = tables.iter().map(candidate).collect();
    Chosen { wanted: plan(candidates, bytes), list_problems: lists.problems, problems: Vec::new() }
}

/// Builds a set by `make`, under one seed and then another; `None`: nothing came of which one could be.
fn build<T>(
    fetched: &[Fetched],
    mut options: ResidentOptions,
    make: impl Fn(&[Segment<'_>], &ResidentOptions) -> Result<T, ResidentError>,
) -> Result<Option<T>, ResidentError> {
    let segments: Vec<_> = fetched.iter().map(Fetched::segment).collect();
    if segments.iter().all(|segment| segment.ids.is_empty() && !segment.whole) {
        return Ok(None);
    }
    for _ in 1..SEEDS {
        options.seed = seed();
        match make(&segments, &options) {
            Err(ResidentError::Crowded { .. }) => {}
            built => return built.map(Some),
        }
    }
    options.seed = seed();
    make(&segments, &options).map(Some)
}

/// A number that nobody who chooses ids knows.
fn seed() -> u64 {
    RandomState::new().build_hasher().finish()
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;

    use tidepool_client::{ClientConfig, ClusterMap, HotIds};
    use tidepool_dense::resident::Inventory;
    use tidepool_types::{Combine, Composite, Keying, Name, PartitionCount, RowFormat};
    use tokio::sync::watch;

    use super::{
        super::fetch::tests::{Fault, Site, wanted},
        *,
    };

    fn version(table: &str, version: &str) -> TableVersion {
        let name = |text: &str| Name::new(text).unwrap();
        TableVersion { table: name(table), version: name(version) }
    }

    fn schema(table: &str, keying: Keying, rows: u64) -> TableSchema {
        TableSchema {
            table_version: version(table, "v2"),
            dim: 1,
            format: RowFormat::F32,
            keying,
            partitions: PartitionCount::ONE,
            rows,
            default_row: Vec::new(),
            composite: None,
        }
    }

    #[test]
    fn lists_come_first_and_then_what_the_release_before_had() {
        let folder = tempfile::tempdir().unwrap();
        let list = HotIds { table_version: version("pin", "v1"), ids: vec![7, 5, 5, 1000, 6] };
        fs::write(folder.path().join("pin.ids"), list.to_string()).unwrap();
        fs::write(folder.path().join("broken"), "no list").unwrap();
        let table = version("pin", "v1");
        let ids = [40, 7, 50];
        let (format, dim) = (RowFormat::F32, 1);
        let segment = Segment { table: &table, format, dim, whole: false, ids: &ids, rows: &[0; 12] };
        let inventory = Inventory::new(&[segment], &ResidentOptions::new(1 << 20, 1)).unwrap();
        let was = TableSchema { table_version: table, ..schema("pin", Keying::Dense, 90) };
        let residence = Arc::new(Residence::of(inventory, &[was]));
        let (_, maps) = watch::channel(Arc::new(ClusterMap::default()));
        let client = Client::with_map(ClientConfig::default(), maps).unwrap();
        let mut options = ResidenceOptions {
            bytes: 1 << 20,
            whole_rows: 10,
            hot_ids: Some(folder.path().into()),
            ids: 100,
            within: Duration::from_secs(1),
        };
        let tables = [
            schema("pin", Keying::Dense, 100),
            schema("small", Keying::Dense, 10),
            schema("unknown", Keying::Hashed, 10),
        ];
        let gone = Weak::new();
        let before = Arc::downgrade(&residence);
        let Chosen { wanted, list_problems: problems, .. } =
            choose(&client, &options, 1 << 20, &tables, &[gone, before.clone()]);
        let ids: Vec<_> = wanted.iter().map(|one| (one.table.table.as_str(), one.ids.clone())).collect();
        let all = (0..10).collect();
        assert_eq!(ids, [("small", all), ("pin", vec![7, 5, 6, 40, 50]), ("unknown", vec![])]);
        assert!(problems.len() == 1 && problems[0].contains("broken"), "{problems:?}");

        options.hot_ids = Some(folder.path().join("gone"));
        let Chosen { wanted, list_problems: problems, .. } =
            choose(&client, &options, 1 << 20, &tables, &[before]);
        assert_eq!((wanted[1].ids.clone(), problems.len()), (vec![40, 7, 50], 1));
        let error = Filling::check(Some(&options)).unwrap_err().to_string();
        assert!(error.contains("cuda.resident.hot_ids") && error.contains("gone"), "{error}");
    }

    #[test]
    fn ids_that_collide_are_tried_under_another_seed_and_nothing_is_built_of_nothing() {
        let fetched = |ids: u64| Fetched {
            asked: 2,
            ids: (0..ids).collect(),
            rows: vec![0; 4 * ids as usize],
            ..Fetched::new(wanted("pin", false, ids))
        };
        let (tries, seeds) = (Cell::new(0), Cell::new(0));
        let after = |failures: usize| {
            tries.set(0);
            let options = ResidentOptions::new(1 << 20, 0);
            build(&[fetched(2)], options, |segments, options| {
                tries.set(tries.get() + 1);
                assert_ne!(seeds.replace(options.seed), options.seed);
                if tries.get() > failures {
                    return Ok(segments[0].ids.len());
                }
                Err(ResidentError::Crowded { keys: 2 })
            })
        };
        assert_eq!((after(0), tries.get()), (Ok(Some(2)), 1));
        assert_eq!((after(2), tries.get()), (Ok(Some(2)), 3));
        assert_eq!((after(9), tries.get()), (Err(ResidentError::Crowded { keys: 2 }), SEEDS));
        let nothing = build(&[fetched(0)], ResidentOptions::new(1 << 20, 0), |_, _| -> Result<(), _> {
            panic!("it is not to be built")
        });
        assert_eq!(nothing, Ok(None));
    }

    #[test]
    fn a_table_that_was_whole_or_has_other_rows_says_nothing_of_what_is_wanted() {
        let ids = [3, 1];
        let of = |was: &TableSchema, whole| {
            let (table, format, dim) = (&was.table_version, RowFormat::F32, 1);
            let segment = Segment { table, format, dim, whole, ids: &ids, rows: &[0; 8] };
            let inventory = Inventory::new(&[segment], &ResidentOptions::new(1 << 20, 1)).unwrap();
            Residence::of(inventory, std::slice::from_ref(was))
        };
        let with = |seed: Option<u64>, rows: u64| TableSchema {
            composite: seed.map(|seed| Composite::from_build_seed(seed, 2, Combine::Sum)),
            ..schema("pin", Keying::Dense, rows)
        };
        let plain = with(None, 10);
        assert_eq!(of(&plain, false).wanted_in_another_version(&with(None, 20)), Some(ids.into()));
        assert_eq!(of(&plain, true).wanted_in_another_version(&plain), None);
        let composite = of(&with(Some(7), 10), false);
        let said = [with(Some(7), 10), with(Some(8), 10), with(Some(7), 20), plain]
            .map(|schema| composite.wanted_in_another_version(&schema).is_some());
        assert_eq!(said, [true, false, false, false]);
    }

    #[test]
    fn what_is_free_bounds_the_set_and_both_numbers_are_told() {
        assert_eq!(room(600, Ok((1000, 6400))), (600, None));
        let (bytes, less) = room(950, Ok((1000, 6400)));
        assert_eq!(bytes, 900);
        let less = less.unwrap();
        assert!(less.contains("bytes are 950") && less.contains("1000 are free"), "{less}");
        assert_eq!(room(950, Ok((10, 6400))).0, 0);
        assert_eq!(room(950, Err(CudaError::InFlight)).0, 0);
    }

    /// The problems of a filling at `site`, and how many ids were built of.
    async fn filled(
        site: &Site,
        chosen: Chosen,
        fails: Option<ResidentError>,
    ) -> (Vec<String>, Option<usize>) {
        let make = move |segments: &[Segment<'_>], _: &ResidentOptions| match &fails {
            Some(error) => Err(error.clone()),
            None => Ok(segments.iter().map(|segment| segment.ids.len()).sum::<usize>()),
        };
        let within = Duration::from_secs(5);
        let (filled, built) =
            fill(within, move || chosen, site, ResidentOptions::new(1 << 20, 0), make).await;
        assert!(filled.residence.is_none());
        (filled.problems, built)
    }

    #[tokio::test(start_paused = true)]
    async fn whatever_goes_wrong_is_told_and_what_came_is_built_of() {
        let list = || vec![wanted("pin", true, 10), wanted("user", false, 20)];
        let chosen = || Chosen { wanted: list(), ..Chosen::default() };
        assert_eq!(filled(&Site::default(), chosen(), None).await, (vec![], Some(30)));

        // However much is wrong with lists, what the nodes and the device say is there too.
        let bad_lists = Chosen { list_problems: vec!["no list".into(); 5000], ..chosen() };
        let site = Site::with(&[("pin", &[Fault::Broken]), ("user", &[Fault::Silent])]);
        let little = ResidentError::Cuda(CudaError::InFlight);
        let (problems, built) = filled(&site, bad_lists, Some(little)).await;
        assert_eq!((problems.len(), built), (11, None), "{problems:?}");
        assert!(problems[8].contains("4992 more"), "{problems:?}");
        assert!(problems[9].contains("5000 ms") && problems[9].contains("0 of 30"), "{problems:?}");
        assert!(problems[10].starts_with("pin@v1: 0 of 10 ids"), "{problems:?}");

        let silent = Site::with(&[("user", &[Fault::Silent])]);
        let (problems, built) = filled(&silent, chosen(), None).await;
        assert_eq!((problems.len(), built), (1, Some(10)), "{problems:?}");
        let full = Some(ResidentError::Budget { bytes: 9, budget_bytes: 8 });
        let (problems, built) = filled(&Site::default(), chosen(), full).await;
        assert!(problems.len() == 1 && problems[0].starts_with("the set was not built: "), "{problems:?}");
        assert_eq!(built, None);
        let (problems, built) = filled(&Site::default(), Chosen::default(), None).await;
        assert_eq!((problems, built), (vec![], None), "of nothing nothing is built");
    }

    #[tokio::test]
    async fn a_choice_that_panics_is_told() {
        let make = |_: &[Segment<'_>], _: &ResidentOptions| -> Result<(), ResidentError> {
            panic!("it is not to be built")
        };
        let options = ResidentOptions::new(1 << 20, 0);
        let within = Duration::from_secs(5);
        let (filled, built) = fill(within, || panic!("a defect"), &Site::default(), options, make).await;
        assert!(built.is_none() && filled.problems.len() == 1 && filled.problems[0].contains("a defect"));
    }
}
