//! A small trained model, once for all tests, and requests for it.

use std::sync::OnceLock;

use tidepool_proto::{
    pack::{pack, unpack},
    v1,
};
use tidepool_store::ArtifactStore;
use tidepool_train::{
    Dataset, ExportOptions, FeatureValue, SyntheticSize, TestRequest, TrainOptions, TrainedModel,
    export_release, synthetic, train,
};
use tidepool_types::{Name, PartitionCount, ReleaseManifest};

pub(crate) const MODEL: &str = "synthetic";

pub(crate) fn name(text: &str) -> Name {
    Name::new(text).unwrap()
}

/// A data set of a few thousand events, and a model trained on it for a moment.
pub(crate) fn trained() -> &'static (Dataset, TrainedModel) {
    static TRAINED: OnceLock<(Dataset, TrainedModel)> = OnceLock::new();
    TRAINED.get_or_init(|| {
        let data = synthetic(7, SyntheticSize { users: 60, items: 200, events: 3_000 });
        let mut options = TrainOptions::default();
        options.pretrain.epochs = 1;
        options.ranker.max_epochs = 2;
        options.resamples = 2;
        let outcome = train(&data, &options, &mut |_| {}).unwrap();
        (data, outcome.model)
    })
}

/// Writes the model as a release whose tables are cut into `partitions`.
pub(crate) fn export(store: &ArtifactStore, release: &str, partitions: u32) -> ReleaseManifest {
    let mut options = ExportOptions::new(name(MODEL), name(release), name(release));
    options.partitions = PartitionCount::new(partitions).unwrap();
    export_release(store, &trained().1, &options).unwrap()
}

/// The test slice as rank requests, with an id in each that no table has.
pub(crate) fn requests() -> Vec<TestRequest> {
    let mut requests = trained().0.test_requests();
    for request in &mut requests {
        let (_, FeatureValue::Ids(ids)) = &mut request.candidates[0].features[0] else {
            panic!("an id first")
        };
        ids[0] += 1 << 40;
    }
    requests
}

fn feature<'a>(name: &str, rows: impl Iterator<Item = &'a FeatureValue>) -> v1::Feature {
    let (mut ids, mut lengths, mut values) = (Vec::new(), Vec::new(), Vec::new());
    for row in rows {
        match row {
            FeatureValue::Ids(of_row) => {
                lengths.push(u32::try_from(of_row.len()).unwrap());
                ids.extend_from_slice(of_row);
            }
            FeatureValue::Numbers(of_row) => values.extend_from_slice(of_row),
        }
    }
    v1::Feature {
        name: name.to_owned(),
        ids: pack(&ids),
        lengths: pack(&lengths),
        values: pack(&values),
        ..v1::Feature::default()
    }
}

/// The message for a request, to the current release.
pub(crate) fn message(request: &TestRequest) -> v1::RankRequest {
    let columns = request.candidates[0].features.iter().enumerate();
    v1::RankRequest {
        request_id: format!("test-{}", request.user_id),
        model: MODEL.to_owned(),
        candidates: u32::try_from(request.candidates.len()).unwrap(),
        user: request.user_features.iter().map(|(name, value)| feature(name, [value].into_iter())).collect(),
        candidate: columns
            .map(|(at, (name, _))| feature(name, request.candidates.iter().map(|c| &c.features[at].1)))
            .collect(),
        ..v1::RankRequest::default()
    }
}

/// The scores of an answer, in the order of the request.
pub(crate) fn scores(answer: &v1::RankResponse) -> Vec<f32> {
    let indexes = unpack::<u32>(&answer.indexes).unwrap();
    let mut scores = vec![f32::NAN; indexes.len()];
    for (index, score) in indexes.zip(unpack::<f32>(&answer.scores).unwrap()) {
        scores[index as usize] = score;
    }
    assert!(scores.iter().all(|s| s.is_finite()), "a score for every candidate");
    scores
}
