//! From data to a release in a store, on a small synthetic set.
#![expect(clippy::unwrap_used, reason = "a helper that fails is a test that fails")]

use std::{collections::BTreeMap, sync::LazyLock};

use tidepool_dense::{DenseBatch, DenseModel};
use tidepool_store::ArtifactStore;
use tidepool_table::LayoutReader;
use tidepool_train::{
    Dataset, Event, ExportOptions, FEATURE_AGE, FEATURE_GENDER, FeatureValue, Phase, Progress, SyntheticSize,
    TrainError, TrainOptions, TrainedModel, TrainingOutcome, TrainingReport, auc, export_release, synthetic,
    train,
};
use tidepool_types::{InputSource, Keying, ModelSpec, Name, Pooling, RowFormat, Side};

const SIZE: SyntheticSize = SyntheticSize { users: 300, items: 400, events: 20_000 };

fn options() -> TrainOptions {
    let mut options = TrainOptions::default();
    options.pretrain.epochs = 4;
    options.ranker.max_epochs = 5;
    options.resamples = 50;
    options
}

fn run(seed: u64) -> (Dataset, TrainingOutcome, Vec<Progress>) {
    let data = synthetic(1, SIZE);
    let mut told = Vec::new();
    let outcome = train(&data, &TrainOptions { seed, ..options() }, &mut |p| told.push(p)).unwrap();
    (data, outcome, told)
}

/// One training for all the tests that only look at its result.
static RUN: LazyLock<(Dataset, TrainingOutcome, Vec<Progress>)> = LazyLock::new(|| run(7));

fn name(text: &str) -> Name {
    Name::new(text).unwrap()
}

#[test]
fn training_learns_and_does_not_beat_the_truth() {
    let (data, outcome, told) = &*RUN;
    let report = &outcome.report;
    let optimum = report.planted_optimum.unwrap();
    for quality in [report.with_pretraining, report.without_pretraining, report.offline.int4] {
        assert!(quality.auc > 0.62 && quality.auc < optimum.auc, "{quality:?}, planted {optimum:?}");
        assert!(quality.log_loss > optimum.log_loss, "{quality:?}, planted {optimum:?}");
    }
    assert!(report.tables_missing.auc + 0.05 < report.offline.int4.auc, "{report:#?}");
    assert_eq!(report.offline.f32, report.with_pretraining, "f32 rows lose nothing");
    let cost = &report.int4_minus_f32.auc;
    assert!((cost.difference - (report.offline.int4.auc - report.offline.f32.auc)).abs() < 1e-9);
    assert!(cost.low <= cost.difference && cost.difference <= cost.high && cost.low < cost.high);
    assert_eq!(report.test_examples, data.test.len());

    for phase in [Phase::Pretrain, Phase::FineTune, Phase::FromScratch, Phase::Evaluate] {
        let of: Vec<_> = told.iter().filter(|p| p.phase == phase).collect();
        assert!(of.windows(2).all(|w| w[0].done < w[1].done), "{of:?}");
        assert_eq!(of.iter().filter(|p| p.done == p.total).count(), 1, "{} ends once", phase.as_str());
    }
    let text = serde_json::to_string(report).unwrap();
    let back: TrainingReport = serde_json::from_str(&text).unwrap();
    assert_eq!((&back.data, back.test_examples), (&report.data, report.test_examples));
    // JSON numbers may lose the last binary digit.
    assert!((back.offline.int4.auc - report.offline.int4.auc).abs() < 1e-12);
}

#[test]
fn a_seed_means_the_same_model_and_another_seed_another() {
    let (data, first, _) = &*RUN;
    let (_, again, _) = run(7);
    assert_eq!(again.model.tables, first.model.tables);
    assert_eq!(again.model.onnx(), first.model.onnx());
    let (_, other, _) = run(8);
    assert_ne!(other.model.predict(data, &data.test), first.model.predict(data, &data.test));
}

/// Looks up and pools one feature the slow way, from what a request says.
fn pooled(model: &TrainedModel, table: &Name, pooling: Pooling, ids: &[u64]) -> Vec<f32> {
    let table = model.tables.iter().find(|t| t.name == table.as_str()).unwrap();
    let found: Vec<&[f32]> = ids
        .iter()
        .filter_map(|&id| table.entries().find(|&(row, _)| row == id))
        .map(|(_, row)| row)
        .collect();
    if found.is_empty() {
        return table.default_row.clone();
    }
    let share = if pooling == Pooling::Mean { 1.0 / found.len() as f32 } else { 1.0 };
    (0..table.dim).map(|d| found.iter().map(|row| row[d]).sum::<f32>() * share).collect()
}

/// The graph's inputs for every candidate of every request.
fn graph_inputs(data: &Dataset, model: &TrainedModel, spec: &ModelSpec) -> (Vec<Vec<f32>>, Vec<bool>) {
    let mut inputs = vec![Vec::new(); spec.inputs.len()];
    let mut labels = Vec::new();
    for request in data.test_requests() {
        for candidate in &request.candidates {
            labels.push(candidate.label);
            for (input, out) in spec.inputs.iter().zip(&mut inputs) {
                let side = match input.side {
                    Side::User => &request.user_features,
                    Side::Candidate => &candidate.features,
                };
                let (_, feature) = side.iter().find(|(name, _)| *name == input.name).unwrap();
                match (&input.source, feature) {
                    (InputSource::Pooled { table, pooling }, FeatureValue::Ids(ids)) => {
                        out.extend(pooled(model, table, *pooling, ids));
                    }
                    (InputSource::Dense { width }, FeatureValue::Numbers(numbers)) => {
                        assert_eq!(numbers.len(), *width as usize);
                        out.extend(numbers);
                    }
                    _ => panic!("feature {} is not of the kind that model.toml says", input.name),
                }
            }
        }
    }
    (inputs, labels)
}

#[test]
fn the_onnx_file_says_what_our_own_forward_pass_says() {
    let (data, TrainingOutcome { model, .. }, _) = &*RUN;
    let spec = model.spec(name("ranker")).unwrap();
    assert_eq!(ModelSpec::from_toml(&spec.to_toml()).unwrap(), spec);
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("model.onnx");
    std::fs::write(&path, model.onnx()).unwrap();
    let dims: BTreeMap<&str, u32> = model.tables.iter().map(|t| (t.name.as_str(), t.dim as u32)).collect();
    let dense = DenseModel::load(&path, &spec, &|table| dims.get(table.as_str()).copied()).unwrap();

    let (inputs, labels) = graph_inputs(data, model, &spec);
    // Each example is a request of its own.
    let rows = labels.len();
    let request_of: Vec<u32> = (0..rows as u32).collect();
    let inputs: Vec<&[f32]> = inputs.iter().map(Vec::as_slice).collect();
    let batch = DenseBatch { rows, requests: rows, request_of: &request_of, inputs: &inputs };
    let from_graph = dense.run(&batch).unwrap().remove(0);
    // Requests list the test slice in order of user, which is its own order.
    let ours = model.predict(data, &data.test);
    assert_eq!(from_graph.len(), ours.len());
    for (at, (graph, ours)) in from_graph.iter().zip(&ours).enumerate() {
        assert!((graph - ours).abs() < 1e-5, "example {at}: {graph} from the graph, {ours} from ours");
    }
    let quality = auc(&from_graph, &labels);
    assert!((quality - RUN.1.report.with_pretraining.auc).abs() < 1e-6, "{quality}");
}

#[test]
fn a_release_reads_back_as_the_model_it_was_written_from() {
    let (data, TrainingOutcome { model, .. }, _) = &*RUN;
    let folder = tempfile::tempdir().unwrap();
    let store = ArtifactStore::open(folder.path()).unwrap();
    let options = ExportOptions::new(name("movielens"), name("r1"), name("v1"));
    let written = export_release(&store, model, &options).unwrap();
    let files = store.release(&options.model, &options.release).unwrap();
    assert_eq!(files.manifest, written);
    assert_eq!(files.spec, model.spec(name("movielens")).unwrap());
    assert_eq!(std::fs::read(&files.onnx_path).unwrap(), model.onnx());

    let stored = model.stored_as(RowFormat::Int4).unwrap();
    for (table, version) in stored.tables.iter().zip(&written.tables) {
        let layout = LayoutReader::open(&store.table_dir(version)).unwrap();
        let schema = &layout.manifest().schema;
        assert_eq!((schema.format, schema.partitions.get()), (RowFormat::Int4, 4));
        assert_eq!((schema.rows, &schema.default_row), (table.ids.len() as u64, &table.default_row));
        let kernel = tidepool_kernels::RowKernel::new(schema.format, schema.dim);
        let mut row = vec![0.0; table.dim];
        for (id, values) in table.entries() {
            kernel.dequantize(layout.find(id).unwrap(), &mut row);
            assert_eq!(row, values, "row {id} of {version}");
        }
    }
    // A user without a train event has no row, there as here.
    let unseen = data.users.iter().find(|user| !model.tables[0].ids.contains(&user.id));
    assert!(unseen.is_none(), "all users of this set have train events");

    let again = export_release(&store, model, &options);
    assert!(matches!(again, Err(TrainError::Table { .. })), "{again:?}");
}

#[test]
fn ids_that_training_never_saw_have_no_row_and_get_the_default() {
    let mut data = synthetic(2, SyntheticSize { users: 60, items: 80, events: 2_000 });
    // Item 5 and user 3 lose all their train events.
    data.train.retain(|e| e.item != 5 && e.user != 3);
    let mut options = options();
    options.pretrain.epochs = 1;
    options.ranker.max_epochs = 1;
    options.resamples = 2;
    let model = train(&data, &options, &mut |_| ()).unwrap().model;
    let [user, item, genre, occupation] = &model.tables;
    assert!(!user.ids.contains(&data.users[3].id) && user.ids.len() <= 59);
    assert!(!item.ids.contains(&data.items[5].id));
    assert_eq!((user.keying, genre.keying), (Keying::Hashed, Keying::Dense));
    for (table, rows) in [(genre, data.genres.len()), (occupation, data.occupations.len())] {
        assert!(table.ids.iter().copied().eq(0..rows as u64), "dense tables have all their ids");
    }
    let mean: f32 = user.entries().map(|(_, row)| row[4]).sum::<f32>() / user.ids.len() as f32;
    assert!((mean - user.default_row[4]).abs() < 1e-5, "the default row is the mean row");

    // Two unseen users who agree in everything else score alike; the features that are no ids still count.
    let mut twin = data.clone();
    twin.users[3].id = u64::MAX;
    let event = Event { user: 3, ..data.test[0] };
    assert_eq!(model.predict(&data, &[event]), model.predict(&twin, &[event]));
    twin.users[3].age += 30.0;
    assert_ne!(model.predict(&data, &[event]), model.predict(&twin, &[event]));
    assert!(data.user_features(&data.users[3]).iter().any(|(feature, _)| *feature == FEATURE_AGE));
    assert!(data.user_features(&data.users[3]).iter().any(|(feature, _)| *feature == FEATURE_GENDER));
}

#[test]
fn what_cannot_be_trained_is_refused_by_name() {
    let good = synthetic(3, SyntheticSize { users: 30, items: 40, events: 800 });
    let mut one_class = good.clone();
    one_class.validation.iter_mut().for_each(|e| e.label = true);
    let error = train(&one_class, &options(), &mut |_| ()).unwrap_err();
    assert!(matches!(error, TrainError::OneClass { part: "validation", .. }), "{error}");
    let mut empty = good.clone();
    empty.train.clear();
    let error = train(&empty, &options(), &mut |_| ()).unwrap_err();
    assert!(matches!(error, TrainError::OneClass { part: "train", examples: 0, .. }), "{error}");

    let mut wrong = options();
    wrong.ranker.dropout = 1.0;
    let error = train(&good, &wrong, &mut |_| ()).unwrap_err();
    assert!(matches!(error, TrainError::Option { option: "ranker.dropout", .. }), "{error}");
    let mut steep = options();
    steep.ranker.learning_rate = f32::MAX;
    let error = train(&good, &steep, &mut |_| ()).unwrap_err();
    assert!(matches!(error, TrainError::Diverged { phase: "ranker", .. }), "{error}");
}
