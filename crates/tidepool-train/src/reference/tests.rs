//! The reference models learn what was planted, and their graphs say what their tapes say.

use std::{collections::BTreeMap, sync::LazyLock};

use ndarray::Array2;
use tidepool_dense::{DenseBatch, DenseModel};
use tidepool_types::{ModelSpec, Name, RowFormat, Side};

use super::*;
use crate::{
    data::Dataset,
    error::TrainError,
    export::ExportOptions,
    rng::Rng,
    synthetic::{SyntheticSize, synthetic},
};

const SIZE: SyntheticSize = SyntheticSize { users: 300, items: 400, events: 20_000 };

static DATA: LazyLock<Dataset> = LazyLock::new(|| synthetic(1, SIZE));

fn options(architecture: Architecture, size: ModelSize) -> ReferenceOptions {
    let mut options = ReferenceOptions::new(architecture, size, 7);
    options.training.pretrain.epochs = 4;
    options.training.ranker.max_epochs = 5;
    options.training.ranker.batch = 128;
    options
}

/// One training of each for all the tests that only look at its result.
static RUNS: LazyLock<[ReferenceOutcome; 3]> = LazyLock::new(|| {
    Architecture::ALL.map(|architecture| {
        train_reference(&DATA, &options(architecture, ModelSize::Small), &mut |_| ()).unwrap()
    })
});

fn name(text: &str) -> Name {
    Name::new(text).unwrap()
}

fn loaded(model: &ReferenceModel, dir: &std::path::Path) -> DenseModel {
    let spec = model.spec(name("m")).unwrap();
    assert_eq!(ModelSpec::from_toml(&spec.to_toml()).unwrap(), spec);
    std::fs::create_dir_all(dir).unwrap();
    let path = dir.join("model.onnx");
    std::fs::write(&path, model.onnx()).unwrap();
    let dims: BTreeMap<&str, u32> = model.tables.iter().map(|t| (t.name.as_str(), t.dim as u32)).collect();
    DenseModel::load(&path, &spec, &|table| dims.get(table.as_str()).copied()).unwrap()
}

#[test]
fn every_model_learns_and_does_not_beat_the_truth() {
    for ReferenceOutcome { report, .. } in &*RUNS {
        let what = report.architecture.as_str();
        assert!(report.trained && report.parameters > 1_000, "{report:?}");
        for head in &report.heads {
            let optimum = head.planted_optimum.unwrap();
            let chance = if head.output == OUTPUT_CVR { 0.53 } else { 0.60 };
            for quality in [head.f32, head.int4] {
                assert!(quality.auc > chance && quality.auc < optimum.auc, "{what}: {head:?}");
                assert!(quality.log_loss > optimum.log_loss, "{what}: {head:?}");
            }
        }
        let outputs: Vec<&str> = report.heads.iter().map(|head| head.output.as_str()).collect();
        match report.architecture {
            Architecture::DcnMmoe => assert_eq!(outputs, ["ctr", "cvr", "ctr * cvr"]),
            Architecture::TwoTower | Architecture::Dlrm => assert_eq!(outputs, ["ctr"]),
        }
        let text = serde_json::to_string(report).unwrap();
        let back: ReferenceReport = serde_json::from_str(&text).unwrap();
        assert_eq!((back.architecture, back.heads.len()), (report.architecture, report.heads.len()));
    }
}

#[test]
fn every_graph_says_what_its_tape_says() {
    let mut rng = Rng::new(17);
    let large = Architecture::ALL
        .map(|architecture| untrained_reference(&DATA, &options(architecture, ModelSize::Large)).unwrap());
    for ReferenceOutcome { model, report } in RUNS.iter().chain(&large) {
        let what = (report.architecture, report.size);
        let dir = tempfile::tempdir().unwrap();
        let dense = loaded(model, dir.path());
        let widths: Vec<usize> = model.tape.inputs().map(|(_, width)| width).collect();
        assert_eq!(dense.widths(), widths, "{what:?}");

        // Random rows, each a request of its own.
        const ROWS: usize = 33;
        let mut rows = |width: &usize| Array2::from_shape_simple_fn((ROWS, *width), || rng.normal());
        let inputs: Vec<Array2<f32>> = widths.iter().map(&mut rows).collect();
        let flat: Vec<Vec<f32>> = inputs.iter().map(|input| input.iter().copied().collect()).collect();
        let from_graph = crate::check::run_rows(&dense, ROWS, &flat);
        let pass = model.tape.forward(inputs, None);
        for (&output, graph) in model.outputs.iter().zip(&from_graph) {
            for (at, (graph, ours)) in graph.iter().zip(pass.value(output).column(0)).enumerate() {
                assert!((graph - ours).abs() < 1e-5, "{what:?}, row {at}: {graph} for {ours}");
            }
        }

        let by_request = model.clone().per_request();
        let by_request = loaded(&by_request, &dir.path().join("by_request"));
        for dense in [&dense, &by_request] {
            of_one_user(model, dense, what);
        }
    }
}

/// Events of one user as one request, whose features are given once.
fn of_one_user(model: &ReferenceModel, dense: &DenseModel, what: (Architecture, ModelSize)) {
    let user = DATA.test[0].user;
    let events: Vec<_> = DATA.test.iter().copied().filter(|event| event.user == user).collect();
    assert!(events.len() > 1, "a request of one candidate shows nothing");
    let inputs = model.graph_inputs(&DATA, &events).next().unwrap();
    let given = model.inputs.iter().zip(&inputs).map(|(input, values)| {
        let rows = if input.feature.side() == Side::User { 1 } else { values.nrows() };
        values.rows().into_iter().take(rows).flatten().copied().collect()
    });
    let given: Vec<Vec<f32>> = given.collect();
    let given: Vec<&[f32]> = given.iter().map(Vec::as_slice).collect();
    let request_of = vec![0; events.len()];
    let batch = DenseBatch { rows: events.len(), requests: 1, request_of: &request_of, inputs: &given };
    let from_graph = dense.run(&batch).unwrap();
    for (graph, ours) in from_graph.iter().zip(model.predict(&DATA, &events)) {
        assert_eq!(graph.len(), ours.len());
        let close = graph.iter().zip(&ours).all(|(a, b)| (a - b).abs() < 1e-5);
        assert!(close, "{what:?}: {graph:?} for {ours:?}");
    }
}

#[test]
fn the_large_experts_have_about_two_million_parameters_and_say_that_they_are_untrained() {
    let outcome = untrained_reference(&DATA, &options(Architecture::DcnMmoe, ModelSize::Large)).unwrap();
    assert!((1_900_000..2_200_000).contains(&outcome.report.parameters), "{}", outcome.report.parameters);
    assert!(!outcome.report.trained);
}

#[test]
fn an_items_vector_stands_in_a_table_and_the_graph_has_the_rest() {
    let ReferenceOutcome { model, .. } = &RUNS[1];
    let spec = model.spec(name("m")).unwrap();
    let inputs: Vec<&str> = spec.inputs.iter().map(|input| input.name.as_str()).collect();
    assert_eq!(inputs.len(), 5, "no genres: {inputs:?}");
    assert!(!inputs.contains(&"genres"), "{inputs:?}");
    let tables: Vec<&str> = model.tables.iter().map(|table| table.name.as_str()).collect();
    assert_eq!(tables, ["user", "item_tower", "occupation"]);
    assert_eq!(model.tables[1].ids.len(), DATA.items.len(), "items without events have their genres");
}

/// Serving gives an item without genres the default row, and a genre that was never seen as well.
#[test]
fn what_is_not_known_of_genres_is_their_mean() {
    let mut data = DATA.clone();
    let unseen = data.genres.len() as u32;
    data.genres.push("Silent".into());
    let new = |id: u64, genres: Vec<u32>| crate::data::Item { id, title: String::new(), year: None, genres };
    data.items.extend([new(9_000_001, vec![unseen]), new(9_000_002, Vec::new()), new(9_000_003, vec![0])]);
    let ReferenceOutcome { model, .. } =
        untrained_reference(&data, &options(Architecture::TwoTower, ModelSize::Small)).unwrap();
    let table = &model.tables[1];
    let rows: Vec<&[f32]> = table.rows.chunks(table.dim).collect();
    let [.., of_unseen, of_none, of_known] = rows[..] else { panic!() };
    assert_eq!(of_unseen, of_none);
    assert_ne!(of_none, of_known);
}

#[test]
fn a_seed_means_the_same_model() {
    let again = train_reference(&DATA, &options(Architecture::Dlrm, ModelSize::Small), &mut |_| ()).unwrap();
    assert_eq!(again.model.tables, RUNS[2].model.tables);
    assert_eq!(again.model.onnx(), RUNS[2].model.onnx());
}

#[test]
fn a_release_reads_back_as_the_model_it_was_written_from() {
    let folder = tempfile::tempdir().unwrap();
    let store = tidepool_store::ArtifactStore::open(folder.path()).unwrap();
    for ReferenceOutcome { model, report } in &*RUNS {
        let what = report.architecture.as_str();
        let tables: Vec<&str> = model.tables.iter().map(|table| table.name.as_str()).collect();
        assert_eq!(tables, report.architecture.tables());
        let options = ExportOptions::new(name(what), name("r1"), name(&format!("{what}-r1")));
        let written = model.export(&store, &options).unwrap();
        let files = store.release(&options.model, &options.release).unwrap();
        assert_eq!((&files.manifest, &files.spec), (&written, &model.spec(name(what)).unwrap()));
        assert_eq!(std::fs::read(&files.onnx_path).unwrap(), model.onnx());
        let stored = model.stored_as(RowFormat::Int4).unwrap();
        for (table, version) in stored.tables.iter().zip(&written.tables) {
            let layout = tidepool_table::LayoutReader::open(&store.table_dir(version)).unwrap();
            assert_eq!(layout.manifest().schema.rows, table.ids.len() as u64);
        }
    }
}

#[test]
fn clicks_that_all_convert_teach_a_second_head_nothing_and_are_refused() {
    let mut data = synthetic(3, SyntheticSize { users: 30, items: 40, events: 800 });
    data.train.iter_mut().for_each(|event| event.conversion = event.label);
    let run = |architecture| {
        let mut options = options(architecture, ModelSize::Small);
        options.training.ranker.max_epochs = 1;
        train_reference(&data, &options, &mut |_| ())
    };
    let error = run(Architecture::DcnMmoe).unwrap_err();
    assert!(matches!(error, TrainError::OneClass { part: "train (clicks)", .. }), "{error}");
    run(Architecture::Dlrm).unwrap();
}
