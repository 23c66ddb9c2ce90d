//! Keys that the device inserts are found there as the host finds them, and no others.

use tidepool_dense::resident::{Key, Place, ResidentError, ResidentOptions, ResidentSet, Segment};
use tidepool_types::RowFormat;

use crate::{
    device,
    random::{Random, version},
};

/// Rows of one f32 element each, for these ids.
fn rows(ids: &[u64]) -> Vec<u8> {
    ids.iter().flat_map(|id| (*id as f32).to_le_bytes()).collect()
}

#[test]
fn a_hundred_thousand_keys_of_several_tables_are_found_and_absent_ones_are_not() {
    let device = device();
    let mut random = Random(1);
    let names = ["users", "items", "ads"].map(version);
    // The same ids in two tables, ids in a row, and ids that differ in their high bits alone.
    let shared: Vec<u64> = (0..40_000).map(|n| n * 3).collect();
    let high: Vec<u64> = (0..20_000u64).map(|n| n << 44).collect();
    let ids = [shared.clone(), shared, high];
    let rows = ids.each_ref().map(|ids| rows(ids));
    let segments: Vec<_> = (0..3)
        .map(|at| Segment {
            table: &names[at],
            format: RowFormat::F32,
            dim: 1,
            whole: at == 1,
            ids: &ids[at],
            rows: &rows[at],
        })
        .collect();
    for load in [0.3, 0.6, 0.7] {
        let options = ResidentOptions { load, ..ResidentOptions::new(1 << 30, random.next()) };
        let set = ResidentSet::build(&device, &segments, &options).unwrap();
        assert!(set.told().iter().zip(&ids).all(|(fit, ids)| fit.kept == ids.len() as u64));
        let numbers = names.each_ref().map(|name| set.number(name));
        assert_eq!((numbers, set.number(&version("nobody"))), ([Some(0), Some(1), Some(2)], None));
        let mut keys: Vec<Key> = (0u32..)
            .zip(&ids)
            .flat_map(|(table, ids)| ids.iter().map(move |id| Key { table, id: *id }))
            .collect();
        let present = keys.len();
        for _ in 0..30_000 {
            keys.push(Key { table: random.below(4) as u32, id: random.next() });
        }
        let found = set.find(&keys).unwrap();
        let expected: Vec<_> = keys.iter().map(|key| set.keys().find(*key)).collect();
        assert!(found == expected, "load {load}");
        assert!(found[..present].iter().all(Option::is_some), "load {load}");
        assert!(found[present..].iter().any(Option::is_none), "load {load}");
        let mut places = Vec::new();
        set.place(0, &[3, 4], &mut places);
        set.place(1, &[3, 4], &mut places);
        assert_eq!(places, [Place::Resident, Place::Fetch, Place::Resident, Place::Missing]);
        let hits: Vec<_> = set.hits().iter().map(|hits| (hits.asked, hits.resident)).collect();
        assert_eq!(hits, [(2, 1), (2, 2), (0, 0)]);
    }
}

#[test]
fn what_does_not_fit_stays_away_and_is_told() {
    let device = device();
    let (small, hot) = (version("small"), version("hot"));
    let ids: Vec<u64> = (0..1000).collect();
    let rows = rows(&ids);
    let segment =
        |table, whole| Segment { table, format: RowFormat::F32, dim: 1, whole, ids: &ids, rows: &rows };
    let set = ResidentSet::build(
        &device,
        &[segment(&small, true), segment(&hot, false)],
        &ResidentOptions::new(8_000, 7),
    )
    .unwrap();
    let kept: Vec<_> = set.told().iter().map(|fit| fit.kept).collect();
    assert_eq!(kept[0], 0, "a whole table is resident whole or not at all");
    assert!(kept[1] > 200 && kept[1] < 300, "{kept:?}");
    assert_eq!((set.number(&small), set.number(&hot)), (None, Some(0)));
    assert!(set.bytes() <= 8_000, "{set:?}");
    let keys: Vec<_> = ids.iter().map(|id| Key { table: 0, id: *id }).collect();
    let found = set.find(&keys).unwrap();
    assert!(
        (0..1000).all(|id| found[id] == (id < kept[1] as usize).then_some(id as u32)),
        "the most wanted are kept"
    );
}

#[test]
fn sets_stand_beside_each_other_and_go_with_their_last_batch() {
    let device = device();
    let name = version("t");
    let build = |ids: &[u64]| {
        let rows = rows(ids);
        let segment =
            Segment { table: &name, format: RowFormat::F32, dim: 1, whole: false, ids, rows: &rows };
        ResidentSet::build(&device, &[segment], &ResidentOptions::new(1 << 20, 3)).unwrap()
    };
    let [old, new] = [&[1, 2], &[2, 3]].map(|ids| build(ids));
    let keys = [1, 2, 3].map(|id| Key { table: 0, id });
    assert_eq!(old.find(&keys).unwrap(), [Some(0), Some(1), None], "a batch sees its own set");
    drop(old);
    assert_eq!(new.find(&keys).unwrap(), [None, Some(0), Some(1)], "and to the end, whatever goes");
}

#[test]
fn wrong_offers_are_refused_by_name() {
    let device = device();
    let name = version("t");
    let build = |ids: &[u64], rows: &[u8]| {
        let segment = Segment { table: &name, format: RowFormat::F32, dim: 1, whole: false, ids, rows };
        ResidentSet::build(&device, &[segment], &ResidentOptions::new(1 << 20, 3)).map(drop).unwrap_err()
    };
    let short = build(&[1, 2], &[0; 7]).to_string();
    assert_eq!(short, "the resident rows of t@v1: 7 bytes, 2 rows of 4 were to come");
    assert_eq!(build(&[5, 6, 5], &[0; 12]), ResidentError::Twice { table: 0, id: 5 });
    let little = ResidentSet::build(&device, &[], &ResidentOptions::new(100, 3)).map(drop).unwrap_err();
    assert_eq!(little, ResidentError::Budget { bytes: 768, budget_bytes: 100 });
    let empty = ResidentSet::build(&device, &[], &ResidentOptions::new(1 << 20, 3)).unwrap();
    assert_eq!(empty.find(&[Key { table: 0, id: 5 }]).unwrap(), [None]);
}
