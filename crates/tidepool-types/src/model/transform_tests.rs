//! Transforms beside what Python's xxhash and numpy say, and beside themselves one bag at a time.

use proptest::prelude::*;

use super::*;

fn texts(texts: &[&str]) -> RawValues {
    RawValues::Texts(texts.iter().map(|text| (*text).to_owned()).collect())
}

fn of(stages: &[Stage]) -> Transform {
    Transform::new(stages.to_vec()).unwrap()
}

const fn hash_text(seed: u64) -> Stage {
    Stage::Hash { of: Hashed::Text, seed }
}

/// What `xxhash.xxh3_64_intdigest(text.encode(), seed=seed)` of Python's xxhash 4 says, and of
/// `struct.pack("<Q", id)`.
#[test]
fn hashes_are_those_of_the_published_algorithm() {
    for (text, seed, id) in [
        ("", 7, 10_464_923_555_624_353_464),
        ("sku-1", 7, 2_486_670_271_788_658_016),
        ("идентификатор", u64::MAX, 8_972_590_912_953_138_629),
        ("user:42", 0, 11_511_735_035_886_662_826),
    ] {
        let bags = of(&[hash_text(seed)]).apply(texts(&[text]), None, None).unwrap();
        assert_eq!(bags, Bags { ids: vec![id], lengths: None, weights: None }, "{text}");
    }
    for (id, seed, hashed) in [
        (0, 0, 14_374_147_212_387_527_897),
        (42, 7, 12_760_919_361_882_801_957),
        (u64::MAX, u64::MAX, 15_748_937_971_782_621_674),
    ] {
        let stages = [Stage::Hash { of: Hashed::Ids, seed }];
        assert_eq!(of(&stages).apply(RawValues::Ids(vec![id]), None, None).unwrap().ids, [hashed]);
    }
}

/// `numpy.digitize([-5, 0, 0.1, 0.5, 1, 99], [0, 0.1, 1])`, both of float32.
#[test]
fn buckets_are_those_of_numpy() {
    let buckets = of(&[Stage::Bucketize { boundaries: vec![0.0, 0.1, 1.0] }]);
    let numbers = RawValues::Numbers(vec![-5.0, 0.0, 0.1, 0.5, 1.0, 99.0, f32::INFINITY, -0.0]);
    assert_eq!(buckets.apply(numbers, None, None).unwrap().ids, [0, 1, 2, 2, 3, 3, 3, 1]);
    let nan = RawValues::Numbers(vec![0.0, f32::NAN]);
    assert_eq!(buckets.apply(nan, None, None), Err(TransformError::Nan { at: 1 }));
}

#[test]
fn the_last_are_kept_with_their_weights_and_empty_bags_are_filled() {
    let transform =
        of(&[Stage::Last { n: 2 }, hash_text(7), Stage::Modulo { n: 1_000_000 }, Stage::Default { id: 5 }]);
    assert_eq!(transform.takes(), RawKind::Texts);
    let raw = texts(&["old", "sku-1", "sku-2", "sku-2"]);
    let bags = transform.apply(raw, Some(vec![3, 0, 1]), Some(vec![9.0, 0.5, 2.0, 3.0])).unwrap();
    assert_eq!(bags.ids, [658_016, 624_634, 5, 624_634]);
    assert_eq!(bags.lengths, Some(vec![2, 1, 1]));
    assert_eq!(bags.weights, Some(vec![0.5, 2.0, 1.0, 3.0]));
}

#[test]
fn what_does_not_fit_is_refused() {
    let ids = Transform::default();
    assert_eq!(
        ids.apply(texts(&["a"]), None, None).unwrap_err().to_string(),
        "the model takes ids here, not texts"
    );
    let shape = |lengths: Option<Vec<u32>>, weights: Option<Vec<f32>>| {
        ids.apply(RawValues::Ids(vec![1, 2]), lengths, weights)
    };
    assert_eq!(
        shape(Some(vec![u32::MAX, u32::MAX]), None),
        Err(TransformError::Shape { values: 2, found: 8_589_934_590 })
    );
    assert_eq!(shape(None, Some(vec![1.0])), Err(TransformError::Shape { values: 2, found: 1 }));
    assert_eq!(
        Transform::new(vec![
            Stage::Modulo { n: 0 },
            hash_text(1),
            Stage::Bucketize { boundaries: vec![1.0, 1.0] }
        ])
        .unwrap_err(),
        [
            "step 0, modulo: n is 0",
            "step 1, hash: it takes texts, the step before it gives ids",
            "step 2, bucketize: it takes numbers, the step before it gives ids",
            "step 2, bucketize: boundaries must be finite numbers, ascending, none twice",
        ]
    );
    assert_eq!(Transform::new(vec![Stage::Last { n: 1 }; 17]).unwrap_err(), ["17 steps, there may be 16"]);
}

fn stage() -> impl Strategy<Value = Stage> {
    prop_oneof![
        any::<u64>().prop_map(|seed| Stage::Hash { of: Hashed::Ids, seed }),
        (1u64..50).prop_map(|n| Stage::Modulo { n }),
        (1u32..5).prop_map(|n| Stage::Last { n }),
        any::<u64>().prop_map(|id| Stage::Default { id }),
    ]
}

proptest! {
    /// Many rows at once are each row alone, one after the other.
    #[test]
    fn rows_do_not_see_each_other(
        stages in prop::collection::vec(stage(), 0..6),
        rows in prop::collection::vec(prop::collection::vec((any::<u64>(), any::<f32>()), 0..8), 0..20),
        weighted: bool,
    ) {
        let transform = of(&stages);
        let apply = |rows: &[Vec<(u64, f32)>]| {
            let (ids, weights): (Vec<_>, Vec<_>) = rows.iter().flatten().copied().unzip();
            let lengths = rows.iter().map(|row| row.len() as u32).collect();
            transform.apply(RawValues::Ids(ids), Some(lengths), weighted.then_some(weights)).unwrap()
        };
        let bits = |bags: &Bags| {
            let weights = bags.weights.iter().flatten().map(|weight| weight.to_bits()).collect::<Vec<_>>();
            (bags.ids.clone(), bags.lengths.clone().unwrap_or_default(), weights)
        };
        let mut alone = (Vec::new(), Vec::new(), Vec::new());
        for row in &rows {
            let (ids, lengths, weights) = bits(&apply(std::slice::from_ref(row)));
            alone.0.extend(ids);
            alone.1.extend(lengths);
            alone.2.extend(weights);
        }
        prop_assert_eq!(bits(&apply(&rows)), alone);
    }
}
