//! Batches whose rows go to the scorer as they are stored: what a request gets is what it gets of vectors.

use tidepool_types::{ModelSpec, mix64};

use super::{
    twin::{Thirds, Twin},
    *,
};
use crate::{Finishing, finish::finish};

/// Gives two outputs: the sum of all numbers of a row, each times its place, and what is left of it after dividing by four.
#[derive(Debug)]
struct Graph(Sums);

impl Scorer for Graph {
    fn run(&self, batch: &DenseBatch<'_>) -> Result<Vec<Vec<f32>>, DenseError> {
        let sums = self.0.run(batch)?.remove(0);
        let left = sums.iter().map(|sum| sum.rem_euclid(4.0).floor()).collect();
        Ok(vec![sums, left])
    }
}

/// Ranked by what is the same for many.
fn spec() -> ModelSpec {
    ModelSpec::from_toml(
        r#"schema_version = 1
        model = "m"
        score = "utility"
        utility = "left * bid + rate"
        utility_inputs = [{ name = "bid", side = "candidate" }, { name = "rate", side = "user" }]
        inputs = [{ name = "x", side = "candidate", width = 1 }]
        outputs = [{ name = "sum" }, { name = "left" }]"#,
    )
    .unwrap()
}

/// The rows of the tables of [`Tables`]: nobody's are of a table of composite rows, which has its all.
fn row_of(table: &TableVersion, id: u64) -> Option<[f32; 2]> {
    let there = table.table == name("pin") || table.table == name("pair") || !id.is_multiple_of(7);
    there.then(|| [0, 1].map(|at| (mix64(id * 2 + at) % 1_000) as f32 * 0.37 - 100.0))
}

/// Tables within this process.
#[derive(Debug)]
struct Tables {
    local: LocalTables,
    schemas: Vec<TableSchema>,
}

impl Tables {
    fn new() -> Self {
        let composite = |combine: &str| {
            format!(r#", "keying": "dense", "composite": {{"seeds": [1, 2], "combine": "{combine}"}}"#)
        };
        let of = |table: &str, rest: &str| {
            let text = format!(
                r#"{{"table_version": {{"table": "{table}", "version": "v1"}}, "dim": 2, "format": "f32",
                    "partitions": 4, "rows": 50{rest}}}"#
            );
            serde_json::from_str::<TableSchema>(&text).unwrap()
        };
        let hashed = r#", "keying": "hashed""#;
        let schemas = vec![
            of("user", &format!(r#"{hashed}, "default_row": [0.5, -0.5]"#)),
            of("item", hashed),
            of("tag", &format!(r#"{hashed}, "default_row": [3.0, 4.0]"#)),
            of("pin", &composite("concat")),
            of("pair", &composite("sum")),
        ];
        Self { local: LocalTables::new(schemas.clone()), schemas }
    }

    fn find(&self, table: usize, ids: &[u64], put: &mut tidepool_client::PutRow<'_>) -> Result<(), String> {
        let version = &self.schemas[table].table_version;
        for (at, id) in ids.iter().enumerate() {
            row_of(version, *id).iter().for_each(|row| put(at, &bytes(row)));
        }
        Ok(())
    }
}

impl VectorSource for Tables {
    fn default_options(&self) -> LookupOptions {
        LookupOptions::default()
    }

    fn look_up<'a>(
        &'a self,
        request: &'a LookupRequest,
        _: &'a LookupOptions,
        _: Option<&'a LookupAccount>,
    ) -> Looking<'a> {
        Box::pin(async move { self.local.look_up(request, |table, ids, put| self.find(table, ids, put)) })
    }

    fn look_up_rows<'a>(
        &'a self,
        request: &'a LookupRequest,
        _: &'a LookupOptions,
        held: Option<&'a dyn Held>,
        _: Option<&'a LookupAccount>,
    ) -> Looking<'a, FeatureRows> {
        Box::pin(async move {
            self.local.look_up_rows(request, held, |table, ids, put| self.find(table, ids, put))
        })
    }
}

/// Inputs of all kinds.
fn inputs() -> (Vec<BatchInput>, Vec<Side>) {
    let input = |name: &str, side, width, from| BatchInput { name: name.into(), side, width, from };
    let of = |name: &str, pooling| InputFrom::Bags(table(name), pooling);
    let sequence = InputFrom::Sequence { table_version: table("item"), max_len: 3, mask: true };
    let inputs = vec![
        input("user", Side::User, 2, of("user", Pooling::Sum)),
        input("age", Side::User, 1, InputFrom::Request),
        input("history", Side::User, 6, sequence),
        input("tags", Side::User, 2, of("tag", Pooling::Mean)),
        input("pins", Side::User, 4, of("pin", Pooling::Mean)),
        input("item", Side::Candidate, 2, of("item", Pooling::Sum)),
        input("genres", Side::Candidate, 2, of("tag", Pooling::Mean)),
        input("pairs", Side::Candidate, 2, of("pair", Pooling::Sum)),
        input("price", Side::Candidate, 1, InputFrom::Request),
    ];
    // The mask of the sequence comes last.
    let sides = inputs.iter().map(|input| input.side).chain([Side::User]).collect();
    (inputs, sides)
}

/// Numbers that follow from a seed.
struct Random(u64);

impl Random {
    fn below(&mut self, most: u64) -> u64 {
        self.0 += 1;
        mix64(self.0) % most
    }

    /// Bags of none to `most` ids.
    fn bags(&mut self, rows: u32, most: u64, weighted: bool) -> InputRows {
        let lengths: Vec<u32> = (0..rows).map(|_| self.below(most + 1) as u32).collect();
        let ids: Vec<u64> = (0..lengths.iter().sum()).map(|_| self.below(40)).collect();
        let weights =
            weighted.then(|| ids.iter().map(|_| [0.5, 1.5, -1.0, 0.1][self.below(4) as usize]).collect());
        InputRows::Bags { ids, lengths: Some(lengths), weights }
    }

    /// One id each.
    fn ids(&mut self, rows: u32) -> InputRows {
        let ids = (0..rows).map(|_| self.below(40)).collect();
        InputRows::Bags { ids, lengths: None, weights: None }
    }
}

/// A request of [`inputs`]; `bad` of so many prices are no numbers.
fn request(model: &Arc<BatchModel>, random: &mut Random, rows: u32, bad: u64) -> Job {
    let weighted = random.below(3) == 0;
    let price = |at: u32, random: &mut Random| match random.below(bad) {
        0 => f32::NAN,
        1 => f32::INFINITY,
        _ => at as f32,
    };
    let inputs = vec![
        random.ids(1),
        InputRows::Numbers(vec![random.below(90) as f32]),
        random.bags(1, 3, false),
        random.bags(1, 5, weighted),
        random.bags(1, 2, false),
        random.ids(rows),
        random.bags(rows, 4, weighted),
        random.bags(rows, 2, false),
        InputRows::Numbers((0..rows).map(|at| price(at, random)).collect()),
    ];
    let finishing = Finishing {
        surface: String::new(),
        outputs: [vec![], vec![0], vec![1, 0]][random.below(3) as usize].clone(),
        utility_inputs: vec![
            (0..rows).map(|_| 1.0 + random.below(2) as f32).collect(),
            vec![random.below(5) as f32],
        ],
        top_k: [0, 1, 5, 1_000][random.below(4) as usize],
    };
    Job { inputs, finishing: Arc::new(finishing), ..job(model, rows, 0) }
}

/// The model of [`inputs`], which takes vectors, or rows.
fn model_of(by_rows: Option<&dyn Fn(Twin) -> Twin>) -> (Arc<BatchModel>, Option<Arc<Twin>>) {
    let (inputs, sides) = inputs();
    let graph = Arc::new(Graph(Sums { sides, ..Sums::default() }));
    let twin = by_rows.map(|with| Arc::new(with(Twin::new(graph.clone(), spec(), inputs.clone()))));
    let scorer: Arc<dyn Scorer> = match &twin {
        Some(twin) => twin.clone(),
        None => graph,
    };
    (Arc::new(BatchModel { model: name("m"), release: name("r1"), inputs, scorer }), twin)
}

fn batcher_of(source: &Arc<Tables>, options: BatchOptions) -> Batcher {
    let pool = CpuPool::new(2, 64).unwrap();
    let metrics = BatchMetrics::new().unwrap();
    Batchers::new(options, BTreeMap::new(), pool, source.clone(), metrics).of(&name("m"))
}

/// What a request gets, its scores as bits, and what was counted of it.
type Got = (Result<(Vec<(u32, u32)>, Vec<(String, Vec<u32>)>, u64), String>, [u32; 3]);

async fn got(ticket: Ticket<crate::finish::Finished>) -> Got {
    let progress = ticket.progress().clone();
    let finished = timeout(DEADLINE, ticket.wait()).await.expect("it is answered in time");
    let bits = |values: Vec<f32>| values.iter().map(|value| value.to_bits()).collect();
    let finished = finished.map_err(|error| error.to_string()).map(|of| {
        let ranked = of.ranked.iter().map(|(at, score)| (*at, score.to_bits())).collect();
        let outputs = of.outputs.into_iter().map(|(name, values)| (name, bits(values))).collect();
        (ranked, outputs, of.scores.total())
    });
    let Counts { missing, defaulted, unavailable, .. } = progress.share().counts;
    (finished, [missing, defaulted, unavailable])
}

fn submit(batcher: &Batcher, job: Job) -> Ticket<crate::finish::Finished> {
    let (rows, finishing) = (job.rows as usize, job.finishing.clone());
    let finish = move |results| finish((&spec(), &name("r1")), rows, results, &finishing);
    batcher.submit(job, finish).unwrap()
}

/// Room for the ids of [`inputs`], as many as one request's user and one candidate may have at least; or for any.
fn room(random: &mut Random) -> Vec<u64> {
    let least = [1, 0, 3, 5, 2, 1, 4, 2];
    if random.below(3) > 0 { Vec::new() } else { least.map(|least| least + random.below(30)).to_vec() }
}

#[tokio::test]
async fn a_request_gets_of_rows_what_it_gets_of_vectors() {
    let source = Arc::new(Tables::new());
    let plain = BatchOptions { max_rows: 10_000, max_requests: 1, max_concurrent_batches: 8, ..options() };
    let (vectors, by_vectors) = (model_of(None).0, batcher_of(&source, plain));
    let (mut cut, mut shared, mut failed) = (0, 0, 0);
    for seed in 0..120u64 {
        let mut random = Random(seed << 32);
        let (most, requests) = (1 + random.below(60), 1 + random.below(4) as usize);
        let ids = room(&mut random);
        let limits = RowLimits { rows: 1 + random.below(60), requests, ids, id_bytes: 8 };
        let with_held = random.below(2) == 0;
        let held = || with_held.then(|| Thirds { table: table("item"), row_of });
        let (rows, twin) = model_of(Some(&|twin| Twin { limits: limits.clone(), held: held(), ..twin }));
        let options = BatchOptions { max_rows: most, max_concurrent_batches: 2, places: 1, ..options() };
        let by_rows = batcher_of(&source, options);
        let mut tickets = Vec::new();
        for _ in 0..1 + random.below(6) {
            let (count, bad) = (1 + random.below(70) as u32, [50, u64::MAX][random.below(2) as usize]);
            let of_rows = request(&rows, &mut random, count, bad);
            let (inputs, finishing) = (of_rows.inputs.clone(), of_rows.finishing.clone());
            let weighted = matches!(&inputs[6], InputRows::Bags { weights: Some(_), .. });
            let of_vectors = Job { inputs, finishing, ..job(&vectors, count, 0) };
            tickets.push((weighted, submit(&by_vectors, of_vectors), submit(&by_rows, of_rows)));
        }
        for (number, (weighted, of_vectors, of_rows)) in tickets.into_iter().enumerate() {
            let share = of_rows.progress().clone();
            let (expected, found) = (got(of_vectors).await, got(of_rows).await);
            failed += u32::from(expected.0.is_err());
            assert_eq!(found.0, expected.0, "seed {seed}, request {number}");
            let ([missing, defaulted, unavailable], expected) = (found.1, expected.1);
            assert_eq!([missing, unavailable], [expected[0], expected[2]], "seed {seed}, request {number}");
            // Means that are not finite, since their weights add up to nothing, are known where they are made.
            assert!(
                defaulted == expected[1] || weighted && defaulted < expected[1],
                "seed {seed}: {defaulted}"
            );
            let share = share.share();
            (cut, shared) =
                (cut + u32::from(share.batches > 1), shared + u32::from(share.batch_requests > 1));
        }
        let ran = twin.unwrap();
        let ran = ran.ran.lock().unwrap();
        let most = most.min(limits.rows) as u32;
        assert!(ran.iter().all(|of| of.len() <= requests && of.iter().sum::<u32>() <= most), "{ran:?}");
    }
    assert!(cut > 40 && shared > 40 && failed > 5, "{cut} were cut, {shared} shared, {failed} failed");
}

/// As [`Site`], of the same model, whose rows go to a twin.
fn site(rows: Rows, options: BatchOptions, with: impl Fn(Twin) -> Twin) -> (Site, Arc<Twin>) {
    let mut site = Site::new(rows, options);
    let spec = ModelSpec::from_toml(
        r#"schema_version = 1
        model = "m"
        score = "sum"
        inputs = [{ name = "x", side = "candidate", width = 1 }]
        outputs = [{ name = "sum" }]"#,
    );
    let inputs = site.model.inputs.clone();
    let twin = Arc::new(with(Twin::new(site.sums.clone(), spec.unwrap(), inputs.clone())));
    let (model, release) = (site.model.model.clone(), site.model.release.clone());
    site.model = Arc::new(BatchModel { model, release, inputs, scorer: twin.clone() });
    (site, twin)
}

fn submit_ranked(site: &Site, job: Job) -> Ticket<Vec<(u32, f32)>> {
    let finish = |results| match results {
        Results::Selected(parts) => Ok(parts
            .iter()
            .flat_map(|part| part.selected.ranked.iter().map(|(at, score)| (part.first + at, *score)))
            .collect()),
        Results::Outputs(outputs) => panic!("outputs came back: {outputs:?}"),
    };
    site.batcher.submit(job, finish).unwrap()
}

/// The scores of all candidates, in their order.
async fn by_place(ticket: Ticket<Vec<(u32, f32)>>) -> Result<Vec<f32>, RankError> {
    let mut ranked = timeout(DEADLINE, ticket.wait()).await.expect("it is answered in time")?;
    ranked.sort_unstable_by_key(|(at, _)| *at);
    Ok(ranked.into_iter().map(|(_, score)| score).collect())
}

#[tokio::test]
async fn those_who_left_are_not_in_the_batch_that_is_run() {
    let (site, twin) = site(Rows::gated(), options(), |twin| twin);
    let held = submit_ranked(&site, site.job(1));
    until("it has left", || site.rows.count() == 1).await;
    let tickets = [(2, 2), (4, 1), (3, 3)];
    let [first, leaves, last] =
        tickets.map(|(rows, seed)| submit_ranked(&site, job(&site.model, rows, seed)));
    site.rows.let_through(1);
    by_place(held).await.unwrap();
    until("all have left", || site.rows.count() == 2).await;
    assert_eq!(site.rows.ids(1)[0], [1_002, 1_001, 1_003], "all three are being looked up");
    drop(leaves);
    site.rows.let_through(1);
    assert_eq!(by_place(first).await.unwrap(), scores(2, 2));
    assert_eq!(by_place(last).await.unwrap(), scores(3, 3));
    assert_eq!(*twin.ran.lock().unwrap(), [vec![1], vec![2, 3]]);
}

#[tokio::test]
async fn who_is_late_is_told_so_while_the_others_are_looked_up() {
    let (site, twin) = site(Rows::gated(), options(), |twin| twin);
    let held = submit_ranked(&site, site.job(1));
    until("it has left", || site.rows.count() == 1).await;
    let budget = Duration::from_millis(30);
    let short = Job { deadline: Instant::now() + budget, budget, ..job(&site.model, 4, 1) };
    let tickets = [short, job(&site.model, 3, 3)].map(|job| submit_ranked(&site, job));
    let [short, last] = tickets;
    // Whether it is late before it boards or after, its neighbour goes on.
    let error = by_place(short).await.unwrap_err();
    assert!(matches!(error, RankError::DeadlineExceeded(of) if of == budget), "{error:?}");
    site.rows.let_through(2);
    by_place(held).await.unwrap();
    assert_eq!(by_place(last).await.unwrap(), scores(3, 3));
    assert_eq!(*twin.ran.lock().unwrap(), [vec![1], vec![3]]);
}

#[tokio::test]
async fn requests_are_cut_and_gathered_by_the_room_for_their_ids() {
    // Of the user's sequence, and of the candidates' bags; every fourth bag has three ids, the next none.
    let limits = RowLimits { rows: 100, requests: 8, ids: vec![u64::MAX, u64::MAX, 4, 9], id_bytes: 8 };
    let (site, twin) = site(Rows::gated(), options(), |twin| Twin { limits: limits.clone(), ..twin });
    let held = submit_ranked(&site, site.job(1));
    until("it has left", || site.rows.count() == 1).await;
    // Two requests have four ids of their sequences, three would have six.
    let small = [2, 3, 4].map(|seed| submit_ranked(&site, job(&site.model, 1, seed)));
    let long = submit_ranked(&site, job(&site.model, 13, 5));
    site.rows.let_through(usize::MAX >> 4);
    by_place(held).await.unwrap();
    for (seed, ticket) in [2, 3, 4].into_iter().zip(small) {
        assert_eq!(by_place(ticket).await.unwrap(), scores(1, seed));
    }
    assert_eq!(by_place(long).await.unwrap(), scores(13, 5));
    let ran = twin.ran.lock().unwrap().clone();
    assert_eq!(ran[1], [1, 1], "{ran:?}");
    assert!(ran.iter().flatten().all(|rows| *rows <= 8), "{ran:?}");
    assert_eq!(ran.iter().flatten().sum::<u32>(), 17);
    // What no piece can have is refused before anything is looked up.
    let looked_up = site.rows.count();
    let mut wide = job(&site.model, 2, 6);
    wide.inputs[3] = InputRows::Bags { ids: vec![1; 11], lengths: Some(vec![1, 10]), weights: None };
    let error = site.batcher.submit(wide, Ok).unwrap_err();
    assert_eq!(error.code(), ErrorCode::InvalidRequest);
    let said = error.to_string();
    let words =
        ["input \"item\" with 10 ids of candidate 1", "room for 9 ids", "cuda.ids_per_bag", "cuda.buckets"];
    assert!(words.iter().all(|words| said.contains(words)), "{said}");
    // A sequence may be longer than the input takes.
    let mut long = job(&site.model, 1, 7);
    long.inputs[2] = InputRows::Bags { ids: vec![1; 9], lengths: Some(vec![9]), weights: None };
    by_place(submit_ranked(&site, long)).await.unwrap();
    assert_eq!(site.rows.count(), looked_up + 1);
}

#[tokio::test]
async fn what_the_device_fails_in_is_not_tried_again_and_what_a_request_fails_in_is_found_in_halves() {
    let (site, twin) = site(Rows::gated(), options(), |twin| twin);
    let taken_apart = || site.metrics.of(&name("m")).times_taken_apart();
    let held = submit_ranked(&site, site.job(1));
    until("it has left", || site.rows.count() == 1).await;
    let tickets = [1, 2, 3, 4].map(|seed| submit_ranked(&site, job(&site.model, 2, seed)));
    site.rows.let_through(1);
    by_place(held).await.unwrap();
    let waited = Duration::from_millis(5);
    *twin.fails.lock().unwrap() = Some(tidepool_dense::CudaError::Late { waited });
    site.rows.let_through(1);
    for ticket in tickets {
        let error = by_place(ticket).await.unwrap_err();
        assert_eq!(error.code(), ErrorCode::Overloaded, "{error:?}");
    }
    assert_eq!((twin.tried.load(Ordering::SeqCst), taken_apart()), (1, 0));
    *twin.fails.lock().unwrap() = None;
    let held = submit_ranked(&site, site.job(1));
    until("it has left", || site.rows.count() == 3).await;
    site.sums.refuses_sevens.store(true, Ordering::SeqCst);
    let tickets = [1, 2, 3, 4, 5].map(|seed| {
        let mut job = job(&site.model, 2, seed);
        if seed == 4 {
            job.inputs[1] = InputRows::Numbers(vec![7.0]);
        }
        submit_ranked(&site, job)
    });
    site.rows.let_through(2);
    by_place(held).await.unwrap();
    for (seed, ticket) in (1..).zip(tickets) {
        match by_place(ticket).await {
            Ok(found) => assert_eq!((found, seed == 4), (scores(2, seed), false)),
            Err(error) => assert!(seed == 4 && matches!(error, RankError::Dense(DenseError::Input { .. }))),
        }
    }
    // All five, the last three of them, and the last two of those or the first of those alone.
    assert_eq!(twin.ran.lock().unwrap()[2..], [vec![2, 2], vec![2], vec![2]]);
    assert_eq!(taken_apart(), 3);
}

#[test]
fn of_a_user_whom_each_piece_looks_up_the_most_that_was_lost_is_told_once() {
    let site = Site::new(Rows::open(), options());
    let limits = queue::Limits { rows: 1, requests: 8, ids: 10_000, room: Vec::new() };
    let (work, _ticket) = Work::new(site.job(4), &limits, Ok).unwrap();
    assert_eq!([0, 3, 2, 5, 5].map(|found| work.more_of_user_unavailable(found)), [0, 3, 0, 2, 0]);
}

#[test]
fn where_rows_go_to_the_scorer_no_vectors_are_counted_but_rows_are() {
    let (site, _) = site(Rows::open(), options(), |twin| {
        let limits = RowLimits { rows: 50, requests: 4, ids: vec![40, u64::MAX, 12, 500], id_bytes: 100 };
        Twin { limits, ..twin }
    });
    // A number per user and one per candidate: users once per request, and with each candidate.
    let numbers = 4 * (50 * 2 + 4);
    assert_eq!(site.batcher.batch_bytes(&site.model), numbers + (40 + 12 + 500) * (100 + 41));
}

#[tokio::test]
async fn pieces_do_not_wait_for_each_other_and_each_brings_its_user() {
    let options = BatchOptions { max_concurrent_batches: 3, max_rows: 1_000, ..options() };
    let limits = RowLimits { rows: 40, requests: 8, ids: Vec::new(), id_bytes: 8 };
    let (site, twin) = site(Rows::gated(), options, |twin| Twin { limits: limits.clone(), ..twin });
    let mut lacking = job(&site.model, 100, 5);
    lacking.inputs[0] = InputRows::Bags { ids: vec![ROWS], lengths: None, weights: None };
    let ticket = submit_ranked(&site, lacking);
    let progress = ticket.progress().clone();
    until("all pieces are being looked up", || site.rows.count() == 3).await;
    assert!((0..3).all(|at| site.rows.ids(at)[0] == [ROWS]), "each has the user");
    site.rows.let_through(3);
    assert_eq!(by_place(ticket).await.unwrap().len(), 100);
    let mut ran: Vec<_> = twin.ran.lock().unwrap().concat();
    ran.sort_unstable();
    assert_eq!(ran, [20, 40, 40]);
    let counts = progress.share().counts;
    // The user, once; and every fourth bag of the candidates is empty.
    assert_eq!((counts.missing, counts.defaulted), (1, 26));
}

#[tokio::test]
async fn what_is_too_much_together_is_run_alone_and_what_is_too_much_alone_is_the_callers_fault() {
    let (site, twin) = site(Rows::gated(), options(), |twin| twin);
    let held = submit_ranked(&site, site.job(1));
    until("it has left", || site.rows.count() == 1).await;
    // A request of n candidates has three ids of its user and some one and a half a candidate.
    twin.room.store(20, Ordering::SeqCst);
    let tickets = [(5, 1), (30, 2), (6, 3)];
    let tickets = tickets.map(|(rows, seed)| submit_ranked(&site, job(&site.model, rows, seed)));
    site.rows.let_through(2);
    by_place(held).await.unwrap();
    let [first, huge, last] = tickets;
    assert_eq!(by_place(first).await.unwrap(), scores(5, 1));
    assert_eq!(by_place(last).await.unwrap(), scores(6, 3));
    let error = by_place(huge).await.unwrap_err();
    assert!(matches!(error, RankError::TooManyIds { .. }), "{error:?}");
    assert_eq!(error.code(), ErrorCode::InvalidRequest);
    assert!(
        error.to_string().contains("room for 20 ids") && error.to_string().contains("cuda.ids_per_bag"),
        "{error}"
    );
    assert_eq!(site.rows.count(), 2, "nobody was looked up again");
    // What the graph refuses is refused for one alone, too.
    site.sums.refuses_sevens.store(true, Ordering::SeqCst);
    site.rows.let_through(1);
    let mut bad = site.job(1);
    bad.inputs[1] = InputRows::Numbers(vec![7.0]);
    let error = by_place(submit_ranked(&site, bad)).await.unwrap_err();
    assert!(matches!(error, RankError::Dense(DenseError::Input { .. })), "{error:?}");
}

/// Answers as if every request had wanted nothing.
#[derive(Debug)]
struct Careless(Arc<Twin>);

impl Scorer for Careless {
    fn run(&self, batch: &DenseBatch<'_>) -> Result<Vec<Vec<f32>>, DenseError> {
        self.0.run(batch)
    }

    fn by_rows(&self) -> Option<&dyn RowScorer> {
        Some(self)
    }
}

impl RowScorer for Careless {
    fn held(&self) -> Option<&dyn Held> {
        None
    }

    fn limits(&self) -> RowLimits {
        self.0.limits()
    }

    fn select(&self, batch: &RowBatch<'_>) -> Result<Vec<tidepool_dense::select::Selected>, DenseError> {
        let mut selected = self.0.select(batch)?;
        selected[0].ranked.pop();
        Ok(selected)
    }
}

#[tokio::test]
async fn a_selection_of_another_shape_is_an_error() {
    let (mut site, twin) = site(Rows::open(), options(), |twin| twin);
    let BatchModel { model, release, inputs, .. } = &*site.model;
    let scorer = Arc::new(Careless(twin));
    let (model, release, inputs) = (model.clone(), release.clone(), inputs.clone());
    site.model = Arc::new(BatchModel { model, release, inputs, scorer });
    let error = by_place(submit_ranked(&site, site.job(4))).await.unwrap_err();
    assert_eq!(error.to_string(), "the selection has 3 candidates, 4 were expected");
    assert_eq!(error.code(), ErrorCode::Internal);
}
