//! The cache by itself: what it holds, what it weighs, what it forgets.

use proptest::prelude::*;
use tidepool_types::mix64;

use super::*;
use crate::{
    layouts_tests::{
        Shape, any_feature, any_table, bits, feature, look_up_with, map_of_schemas, name, oracle, schema,
    },
    request::{FeatureVectors, LookupOptions, LookupRequest, WireForm},
};

fn row_of(id: u64, bytes: usize) -> Vec<u8> {
    (0..bytes as u64).map(|at| mix64(id * 64 + at) as u8).collect()
}

/// Puts rows in, every seventh as missing.
fn put(cache: &RowCache, schema: &TableSchema, ids: std::ops::Range<u64>) {
    let rows: Vec<_> = ids.map(|id| (id, (id % 7 != 0).then(|| row_of(id, schema.row_bytes())))).collect();
    let rows: Vec<_> = rows.iter().map(|(id, row)| (*id, row.as_deref())).collect();
    cache.put(schema, &rows);
}

#[test]
fn what_is_found_is_what_was_put_in_and_stays_below_the_bound() {
    for bytes in [2_000, 100_000, 20 << 20] {
        let cache = RowCache::new(bytes, 7, None).unwrap();
        // Rows in their entry, at its edge, and outside it.
        for (table, dim) in [("a", 32), ("b", 68), ("c", 70), ("d", 1000)] {
            let schema = schema(table, dim);
            for from in (0..40_000).step_by(1000) {
                put(&cache, &schema, from..from + 1000);
                let ids: Vec<u64> = (from..from + 1010).collect();
                let known = cache.read(&schema, &ids);
                let mut hits = 0;
                for (at, id) in ids.iter().enumerate().filter(|(at, _)| !known.is_unknown(*at)) {
                    hits += 1;
                    assert!(*id < from + 1000, "never put in");
                    let expected = (id % 7 != 0).then(|| row_of(*id, schema.row_bytes()));
                    assert_eq!(known.row(at), expected.as_deref(), "{table} {id}");
                }
                assert_eq!(hits, known.hits());
                let (held, rows) = cache.held();
                assert!(held <= cache.capacity && rows <= held / 92, "{held} bytes, {rows} rows");
                assert!(cache.taken_bytes() <= bytes, "{} of {bytes}", cache.taken_bytes());
            }
        }
    }
}

#[test]
fn where_there_is_no_cache_there_are_no_metrics_of_one() {
    let registry = prometheus::Registry::new();
    assert!(RowCache::new(0, 7, Some(&registry)).is_none());
    assert_eq!(registry.gather().len(), 0);
    assert!(RowCache::new(1 << 20, 7, Some(&registry)).is_some());
    assert!(registry.gather().len() > 2);
}

#[test]
fn a_large_cache_holds_all_that_fits_and_then_learns_less() {
    let cache = RowCache::new(20 << 20, 7, None).unwrap();
    assert_eq!(cache.shards.len(), 4);
    let schema = schema("a", 32);
    put(&cache, &schema, 0..100_000);
    let known = cache.read(&schema, &(0..100_000).collect::<Vec<_>>());
    assert_eq!((known.hits(), cache.held().1), (100_000, 100_000));
    assert!((0..100).all(|_| cache.learns()));
    put(&cache, &schema, 0..1_000_000);
    assert_eq!((0..160).filter(|_| cache.learns()).count(), 10);
    assert!(cache.evicted.load(Ordering::Relaxed) > 500_000);
}

#[test]
fn hot_ids_come_by_how_often_they_were_asked_for() {
    let cache = RowCache::new(1 << 20, 7, None).unwrap();
    let (a, b) = (schema("a", 32), schema("b", 32));
    put(&cache, &a, 1..100);
    put(&cache, &b, 1..100);
    for (id, times) in [(50, 3), (7, 9), (9, 5), (8, 5)] {
        (0..times).for_each(|_| _ = cache.read(&a, &[id]));
    }
    let top = cache.hot_ids(&a.table_version, 4);
    assert_eq!(top, [8, 9, 50, 1], "7 has no row; of equals the smaller id comes first");
    assert_eq!(cache.hot_ids(&b.table_version, 1000).len(), 99 - 99 / 7);
    assert_eq!(cache.hot_ids(&schema("c", 32).table_version, 9), [0; 0]);
}

#[test]
fn who_peeks_leaves_no_trace() {
    let registry = prometheus::Registry::new();
    let cache = RowCache::new(1 << 20, 7, Some(&registry)).unwrap();
    let a = schema("a", 32);
    let peek = |ids: &[u64]| {
        let mut found = Finding::nothing(a.row_bytes(), ids.len());
        cache.peek_rest(&a, ids, &mut found);
        found.done()
    };
    assert_eq!(peek(&[3]).hits(), 0);
    assert!(cache.tables.read().unwrap().is_empty(), "no table is made for it");
    put(&cache, &a, 1..10);
    assert_eq!(cache.read(&a, &[5]).hits(), 1);
    for _ in 0..9 {
        let known = peek(&[3, 7, 50]);
        assert_eq!((known.hits(), known.row(0)), (2, Some(&row_of(3, a.row_bytes())[..])));
        assert_eq!((known.of(1), known.of(2)), (KnownId::Missing, KnownId::Unknown));
    }
    assert_eq!(cache.hot_ids(&a.table_version, 2), [5, 1], "3 has not been asked for");
    let text = prometheus::TextEncoder::new().encode_to_string(&registry.gather()).unwrap();
    for (of, count) in [("hits", 1), ("misses", 0)] {
        let line = format!("tidepool_client_cache_{of}_total{{table=\"a\"}} {count}\n");
        assert!(text.contains(&line), "{line} is not in\n{text}");
    }
}

#[test]
fn tables_that_left_the_map_are_forgotten_for_good() {
    let cache = RowCache::new(1 << 20, 7, None).unwrap();
    let (a, b) = (schema("a", 32), schema("b", 32));
    put(&cache, &a, 1..100);
    put(&cache, &b, 1..100);
    let both = map_of_schemas(1, &[&a, &b]);
    assert_eq!(cache.follow(&both), None);
    let gone = cache.follow(&map_of_schemas(2, &[&b])).unwrap();
    assert_eq!(cache.follow(&both), None, "an older map changes nothing");
    assert_eq!(cache.read(&a, &[1, 2, 3]).hits(), 0, "not found, though its rows are still there");
    assert_eq!(cache.held().1, 198);
    put(&cache, &a, 1..3);
    cache.drop_rows(&gone);
    assert_eq!(cache.held().1, 99 + 2);
    assert_eq!(cache.read(&b, &[1, 2, 3]).hits(), 3);
    assert_eq!(cache.read(&a, &[1, 2, 3]).hits(), 2, "what came later stays");
}

#[test]
fn tables_have_a_label_as_long_as_they_are_there_and_only_so_many_have_one() {
    let registry = prometheus::Registry::new();
    let cache = RowCache::new(1 << 20, 7, Some(&registry)).unwrap();
    let text = || prometheus::TextEncoder::new().encode_to_string(&registry.gather()).unwrap();
    let misses = |table: &str| format!("tidepool_client_cache_misses_total{{table=\"{table}\"}} 1");
    // Every map has another table, and another version of one that stays.
    let mut kept = schema("kept", 32);
    for epoch in 1..=200 {
        kept.table_version.version = name(format!("v{epoch}"));
        let passing = schema(&format!("t{epoch}"), 32);
        cache.follow(&map_of_schemas(epoch, &[&kept, &passing]));
        cache.read(&kept, &[epoch]);
        cache.read(&passing, &[epoch]);
        assert!(text().contains(&misses(&format!("t{epoch}"))), "{epoch}");
    }
    let shown = text();
    assert!(!shown.contains("\"t199\""), "it has left: {shown}");
    assert!(shown.contains("tidepool_client_cache_misses_total{table=\"kept\"} 200"), "{shown}");
    let many: Vec<_> = (0..100).map(|n| schema(&format!("u{n:02}"), 32)).collect();
    cache.follow(&map_of_schemas(201, &many.iter().collect::<Vec<_>>()));
    many.iter().for_each(|schema| _ = cache.read(schema, &[1]));
    let shown = text();
    assert_eq!(shown.matches("tidepool_client_cache_misses_total{").count(), 65, "{shown}");
    assert!(shown.contains("tidepool_client_cache_misses_total{table=\"other\"} 36"), "{shown}");
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    #[test]
    fn a_cache_changes_no_answer(
        tables in (any_table(0), any_table(1)),
        requests in prop::collection::vec(prop::collection::vec(any_feature(), 0..4), 1..8),
        cache_bytes in prop::sample::select(vec![300u64, 1_500, 6_000, 1 << 20]),
        forms in prop::collection::vec(prop::sample::select(vec![
            (true, None), (false, None), (false, Some(WireForm::Pool)), (false, Some(WireForm::Gather)),
        ]), 8),
        fails in prop::option::of(0usize..4),
        nodes in 1usize..4,
    ) {
        let tables = [tables.0, tables.1];
        let shape = Shape { nodes, groups: 2, partitions: 4 };
        let cache = RowCache::new(cache_bytes, 5, None).unwrap();
        for (turn, (seeds, (exact, wire_form))) in requests.iter().zip(forms).enumerate() {
            let features = seeds.iter().map(|(t, pooling, bags, weighted, lengths)| {
                feature(&tables[usize::from(*t)], *pooling, bags, *weighted, *lengths)
            });
            let request = LookupRequest { request_id: "r".into(), features: features.collect() };
            let options = LookupOptions { exact, wire_form, ..Default::default() };
            let look_up = |cache| look_up_with(&tables, &request, &shape, &options, turn, fails, cache);
            let (with, _) = look_up(Some(&cache));
            let (without, asked) = look_up(None);
            if exact {
                prop_assert_eq!(&bits(&with), &bits(&without));
            }
            for ((with, without), seed) in with.iter().zip(&without).zip(seeds) {
                let at = request.features.iter().zip(seeds).position(|(_, s)| std::ptr::eq(s, seed)).unwrap();
                let (_, scales) = oracle(&tables[usize::from(seed.0)], &request.features[at]);
                for ((with, without), scale) in with.values.iter().zip(&without.values).zip(&scales) {
                    prop_assert!((with - without).abs() <= 1e-5 * scale, "{with} {without}");
                }
                let rest = FeatureVectors { values: without.values.clone(), ..with.clone() };
                prop_assert_eq!(&rest, without);
                prop_assert_eq!(with.values.len(), without.values.len());
            }
            if cache_bytes == 1 << 20 {
                // All of it fits, so what was gathered once is never asked for again.
                let again = LookupOptions { exact: true, ..Default::default() };
                let again = |_| look_up_with(&tables, &request, &shape, &again, turn, None, Some(&cache)).1;
                again(());
                prop_assert_eq!(again(()), 0, "{} ids were asked for without a cache", asked);
            }
        }
    }
}
