//! Which release answers, and when a ranker is ready.

use std::sync::atomic::{AtomicBool, Ordering};

use tidepool_dense::{DenseBatch, DenseError};

use super::*;
use crate::{
    batch::{InPlaceOf, Scorer},
    overload_tests::ranker_with,
};

/// `m` r1 is current, r2 is not.
fn snapshot(states: [State; 2]) -> Snapshot {
    let entry = |release: &str, state: v1::ReleaseState| v1::ReleaseEntry {
        model: "m".into(),
        release: release.into(),
        tables: Vec::new(),
        state: state.into(),
        pinned: false,
    };
    let releases = vec![entry("r1", v1::ReleaseState::Current), entry("r2", v1::ReleaseState::Ready)];
    let map = v1::ClusterMap { epoch: 1, releases, ..v1::ClusterMap::default() };
    let map = Arc::new(ClusterMap::try_from(map).unwrap());
    let slots = map.releases.iter().cloned().zip(states);
    let slots = slots.map(|(entry, state)| Slot { entry, state, loading: None }).collect();
    Snapshot { seen: true, map, slots, ..Snapshot::default() }
}

#[test]
fn a_ranker_that_is_not_ready_says_why() {
    let failed = || State::Failed("no such file".into());
    assert_eq!(Snapshot::default().readiness(false), Err("no cluster map has been seen".into()));
    let empty = Snapshot { seen: true, ..Snapshot::default() };
    assert_eq!(empty.readiness(true), Err("no release is loaded".into()));
    for was_ready in [false, true] {
        assert_eq!(
            snapshot([State::Loading, failed()]).readiness(was_ready),
            Err("release r1 of model m is being loaded".into())
        );
        assert_eq!(
            snapshot([failed(), State::Loading]).readiness(was_ready),
            Err("the current release r1 of model m is not loaded: no such file".into())
        );
    }
}

#[test]
fn what_is_not_loaded_is_not_served_and_what_is_unknown_is_not_found() {
    let snapshot = snapshot([State::Loading, State::Failed("no such file".into())]);
    let code = |release| snapshot.choose("m", release, 0).unwrap_err().code();
    assert_eq!(code(None), tidepool_types::ErrorCode::NotServed);
    assert_eq!(code(Some("r2")), tidepool_types::ErrorCode::NotServed);
    assert_eq!(code(Some("r3")), tidepool_types::ErrorCode::NotFound);
    let unseen = Snapshot::default().choose("m", None, 0).unwrap_err();
    assert!(matches!(unseen, RankError::NoMap));
}

/// A model that may be given up, as one on a GPU.
#[derive(Debug)]
struct OnGpu {
    model: Arc<dyn Scorer>,
    is_lost: Arc<AtomicBool>,
}

impl Scorer for OnGpu {
    fn run(&self, batch: &DenseBatch<'_>) -> Result<Vec<Vec<f32>>, DenseError> {
        self.model.run(batch)
    }

    fn lost(&self) -> Option<String> {
        self.is_lost.load(Ordering::SeqCst).then(|| "a product was refused".into())
    }
}

#[test]
fn a_release_whose_model_is_lost_is_loaded_anew_and_does_not_serve_until_then() {
    let is_lost = Arc::new(AtomicBool::new(false));
    let of = is_lost.clone();
    let on_gpu = move |model| Arc::new(OnGpu { model, is_lost: of.clone() }) as Arc<dyn Scorer>;
    let ranker = ranker_with(Some(InPlaceOf(Arc::new(on_gpu))));
    let mut now = Snapshot::clone(&ranker.releases.snapshot());
    now.fail_lost();
    assert_eq!(now.readiness(true), Ok(()));
    is_lost.store(true, Ordering::SeqCst);
    now.fail_lost();
    let why = "the current release p1 of model prices is not loaded: a product was refused";
    assert_eq!(now.readiness(true), Err(why.into()));
    assert!(!now.slots[0].is_being_loaded() && now.slots[0].is_wanted(&now.rollbacks));
    assert!(now.choose("prices", None, 0).is_err());
}
