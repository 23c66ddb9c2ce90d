//! The releases of these tests and requests for them: the three reference models, trained for a moment, and one with a
//! sequence, its mask, weights, a calibration and a formula, over tables of all the formats of rows.

use std::sync::OnceLock;

use anyhow::Result;
use tidepool_client::HotIds;
use tidepool_dense::GraphWriter;
use tidepool_proto::{pack::pack, v1};
use tidepool_store::{ArtifactStore, NewRelease};
use tidepool_table::{TableBuilder, TableSpec};
use tidepool_train::{
    Architecture, Dataset, ExportOptions, ModelSize, ReferenceModel, ReferenceOptions, SyntheticSize,
    synthetic, train_reference,
};
use tidepool_types::{Keying, Name, PartitionCount, RowFormat, TableVersion, mix64};

use crate::{
    fixture::{self, name},
    site::LARGEST,
};

/// The model with a sequence and a formula.
pub(crate) const FEED: &str = "feed";

/// All models.
pub(crate) const ALL: [&str; 4] = ["dcn-mmoe", "two-tower", "dlrm", FEED];

/// Films that the model with a sequence has where nobody asks for more.
pub(crate) const FILMS: u64 = 300;
/// Places of its sequence.
pub(crate) const PLACES: usize = 4;
const USERS: u64 = 40;
const TAGS: u64 = 12;

const FEED_TOML: &str = r#"
    schema_version = 1
    model = "feed"
    score = "utility"
    utility = "click * bid + 0.25 * log(1 + buy)"
    top_k = 7
    outputs = [{ name = "click" }, { name = "buy" }]
    utility_inputs = [{ name = "bid", side = "candidate" }]
    calibrations = [{ output = "click", surface = "home", kind = "platt", a = 1.1, b = -0.2 }]
    [[inputs]]
    name = "history"
    side = "user"
    table = "film"
    sequence = 4
    mask = "seen"
    [[inputs]]
    name = "user"
    side = "user"
    table = "viewer"
    [[inputs]]
    name = "film"
    side = "candidate"
    table = "film"
    [[inputs]]
    name = "tags"
    side = "candidate"
    table = "tag"
    pooling = "mean"
    [[inputs]]
    name = "price"
    side = "candidate"
    width = 1
"#;

/// Numbers within -1 and 1 that are a function of their place.
fn number(seed: u64, at: u64) -> f32 {
    (mix64(seed << 32 | at) >> 40) as f32 / (1u32 << 23) as f32 - 1.0
}

/// Four vectors of 16 with their mask, then vectors of 8, 16 and 8, and a number: 24 hidden ones, and two heads.
fn feed_onnx() -> Vec<u8> {
    let mut graph = GraphWriter::new(FEED);
    graph.sequence_input("history", 4, 16);
    graph.input("seen", 4);
    for (input, width) in [("user", 8), ("film", 16), ("tags", 8), ("price", 1)] {
        graph.input(input, width);
    }
    graph.reshape("history", &[-1, 64], "of_user");
    graph.concat(&["of_user", "seen", "user", "film", "tags", "price"], "x");
    let mut layer = |input: &str, output: &str, (from, to): (usize, usize), act: &str, seed: u64| {
        let scale = (2.0 / from as f32).sqrt();
        let weights: Vec<f32> = (0..(from * to) as u64).map(|at| scale * number(seed, at)).collect();
        let [w, b, sum] = ["w", "b", "sum"].map(|part| format!("{output}.{part}"));
        graph.constant(&w, &[from, to], &weights);
        graph.constant(&b, &[to], &vec![0.125; to]);
        graph.node("Gemm", &[input, &w, &b], &sum);
        graph.node(act, &[&sum], output);
    };
    layer("x", "hidden", (101, 24), "Relu", 1);
    layer("hidden", "click", (24, 1), "Sigmoid", 2);
    layer("hidden", "buy", (24, 1), "Sigmoid", 3);
    graph.output("click", 1);
    graph.output("buy", 1);
    graph.into_file()
}

fn table(
    store: &ArtifactStore,
    version: &TableVersion,
    (rows, dim): (u64, u32),
    format: RowFormat,
    keying: Keying,
) -> Result<()> {
    let mut builder = TableBuilder::new(TableSpec {
        table_version: version.clone(),
        dim,
        format,
        keying,
        partitions: PartitionCount::new(4).unwrap(),
        default_row: (0..dim).map(|at| number(9, u64::from(at))).collect(),
        composite: None,
        full_keys: false,
        seed: 0,
    })?;
    let seed = mix64(u64::from(dim) + version.version.as_str().len() as u64);
    for id in 0..rows {
        let values: Vec<f32> = (0..u64::from(dim)).map(|at| number(seed >> 40, id * 64 + at)).collect();
        builder.push(id, &values)?;
    }
    builder.publish(&store.table_dir(version), &mut |_, _| ())?;
    Ok(())
}

/// Writes a release of the model with a sequence, with so many films.
pub(crate) fn feed(store: &ArtifactStore, release: &str, films: u64) -> Result<(Name, Name)> {
    let version =
        |table: &str| TableVersion { table: name(table), version: name(&format!("feed-{release}")) };
    let tables = ["film", "viewer", "tag"].map(version);
    table(store, &tables[0], (films, 16), RowFormat::Int4, Keying::Hashed)?;
    table(store, &tables[1], (USERS, 8), RowFormat::F16, Keying::Hashed)?;
    table(store, &tables[2], (TAGS, 8), RowFormat::Int8, Keying::Dense)?;
    let (model, release) = (name(FEED), name(release));
    store.write(NewRelease {
        model: &model,
        release: &release,
        tables: &tables,
        model_toml: FEED_TOML,
        onnx: &feed_onnx(),
        golden: None,
    })?;
    Ok((model, release))
}

/// Events, and the reference models trained on them for a moment, so that scores are not all alike.
fn trained() -> &'static (Dataset, [ReferenceModel; 3]) {
    static TRAINED: OnceLock<(Dataset, [ReferenceModel; 3])> = OnceLock::new();
    TRAINED.get_or_init(|| {
        let data = synthetic(7, SyntheticSize { users: 60, items: 200, events: 3_000 });
        let models = Architecture::ALL.map(|architecture| {
            let mut options = ReferenceOptions::new(architecture, ModelSize::Small, 7);
            (options.training.pretrain.epochs, options.training.ranker.max_epochs) = (1, 1);
            train_reference(&data, &options, &mut |_| ()).unwrap().model
        });
        (data, models)
    })
}

/// Writes a release of one of the models, whose tables are its own.
pub(crate) fn write(store: &ArtifactStore, model: &str, release: &str) -> Result<(Name, Name)> {
    if model == FEED {
        return feed(store, release, FILMS);
    }
    let at = Architecture::ALL.iter().position(|architecture| architecture.as_str() == model).unwrap();
    let options = ExportOptions::new(name(model), name(release), name(&format!("{model}-{release}")));
    trained().1[at].export(store, &options)?;
    Ok((name(model), name(release)))
}

fn bags(name: &str, bags: &[Vec<u64>]) -> v1::Feature {
    v1::Feature {
        name: name.into(),
        ids: pack(&bags.concat()),
        lengths: pack(&bags.iter().map(|bag| bag.len() as u32).collect::<Vec<_>>()),
        ..v1::Feature::default()
    }
}

/// So many ids of a table of `rows`, drawn for this place; some are beyond its end.
fn ids(seed: u64, count: u64, rows: u64) -> Vec<u64> {
    (0..count).map(|at| mix64(seed << 20 | at) % (rows + rows / 16 + 1)).collect()
}

/// Whether a film is resident where some are: every second one, so half of those that are wanted.
pub(crate) fn is_hot(film: u64) -> bool {
    film.is_multiple_of(2) && film < FILMS
}

/// The list of every second one of so many films, as a ranker exports it.
pub(crate) fn hot_films(films: u64) -> HotIds {
    let table_version = TableVersion { table: name("film"), version: name("feed-r1") };
    HotIds { table_version, ids: (0..films).step_by(2).collect() }
}

/// A request to the model with a sequence, by a number that all of it follows from.
pub(crate) fn feed_request(number_of: u64, candidates: u64, films: u64) -> v1::RankRequest {
    let seed = |feature: u64, row: u64| mix64(number_of * 1000 + row) + feature;
    let rows = 0..candidates;
    let tags: Vec<Vec<u64>> = rows.clone().map(|row| ids(seed(1, row), row % 4, TAGS)).collect();
    let weights: Vec<f32> = (0..tags.concat().len() as u64).map(|at| 0.5 + number(5, at) / 4.0).collect();
    let numbers = |name: &str, of: u64| v1::Feature {
        name: name.into(),
        values: pack(&(0..candidates).map(|row| 1.0 + number(of, row)).collect::<Vec<_>>()),
        ..v1::Feature::default()
    };
    v1::RankRequest {
        request_id: format!("feed-{number_of}"),
        model: FEED.into(),
        candidates: candidates as u32,
        user: vec![
            bags("history", &[ids(seed(2, 0), number_of % 7, films)]),
            bags("user", &[ids(seed(3, 0), 1 + number_of % 3, USERS)]),
        ],
        candidate: vec![
            bags("film", &rows.map(|row| ids(seed(4, row), 1, films)).collect::<Vec<_>>()),
            v1::Feature { weights: pack(&weights), ..bags("tags", &tags) },
            numbers("price", 11),
            numbers("bid", 12),
        ],
        top_k: u32::MAX,
        surface: if number_of.is_multiple_of(2) { "home".into() } else { String::new() },
        outputs: vec!["buy".into(), "click".into()],
        ..v1::RankRequest::default()
    }
}

/// Requests to one of the models, of all sizes up to the largest batch, that want every candidate back.
pub(crate) fn requests(
    store: &ArtifactStore,
    model: &str,
    release: &str,
    count: usize,
) -> Result<Vec<v1::RankRequest>> {
    if model == FEED {
        return Ok((0..count as u64).map(|n| feed_request(n, 1 + n * 5 % LARGEST as u64, FILMS)).collect());
    }
    let spec = store.release(&name(model), &name(release))?.spec;
    let taken = |feature: &v1::Feature| spec.inputs.iter().any(|input| input.feature == feature.name);
    let mut requests = trained().0.test_requests();
    requests.retain(|request| request.candidates.len() > 1);
    assert!(requests.len() >= count, "{} requests", requests.len());
    let messages = requests.iter_mut().take(count).map(|request| {
        request.candidates.truncate(LARGEST);
        let mut message = fixture::message(request);
        message.model = model.into();
        message.user.retain(taken);
        message.candidate.retain(taken);
        message.top_k = u32::MAX;
        message.outputs = spec.outputs.iter().map(|output| output.name.clone()).collect();
        message
    });
    Ok(messages.collect())
}
