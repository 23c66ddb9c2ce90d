//! Composite tables in a cluster: built, served, looked up, and held against vectors that are computed here,
//! hash and all, id by id. To the bit with `exact`, within 1e-5 of the sum of |weight x value| otherwise.

use anyhow::Result;
use tidepool_client::{FeatureLookup, LookupOptions, LookupRequest, WireForm};
use tidepool_table::{TableBuilder, TableSpec};
use tidepool_tests::{DEADLINE, Sandbox, Shape};
use tidepool_types::{Combine, Composite, Keying, PartitionCount, Pooling, RowFormat, TableVersion};

use crate::fixture::name;

const ROWS: u64 = 1000;
const DIM: usize = 6;
const SEEDS: [u64; 3] = [0x5eed, u64::MAX, 0];

fn value(row: u64, column: usize) -> f32 {
    (row * 37 % 101) as f32 / 10.0 - 5.0 + column as f32 * 0.3
}

/// The row of a hash, by the words of docs/table-format.md.
fn row(id: u64, seed: u64) -> u64 {
    let mut z = id ^ seed;
    z = (z ^ z >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ z >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
    ((u128::from(z ^ z >> 31) * u128::from(ROWS)) >> 64) as u64
}

fn build(sandbox: &Sandbox, combine: Combine) -> Result<TableVersion> {
    let table_version = TableVersion { table: name(combine.as_str()), version: name("v1") };
    let spec = TableSpec {
        table_version: table_version.clone(),
        dim: DIM as u32,
        format: RowFormat::F32,
        keying: Keying::Dense,
        partitions: PartitionCount::new(8).unwrap(),
        default_row: Vec::new(),
        composite: Some(Composite { seeds: SEEDS.to_vec(), combine }),
        full_keys: false,
        seed: 0,
    };
    let mut builder = TableBuilder::new(spec)?;
    for id in 0..ROWS {
        builder.push(id, &[0, 1, 2, 3, 4, 5].map(|column| value(id, column)))?;
    }
    builder.publish(&sandbox.store.table_dir(&table_version), &mut |_, _| ())?;
    Ok(table_version)
}

/// The vectors of a feature, and per element the sum of |weight x value|, over the divisor.
fn expected(combine: Combine, feature: &FeatureLookup) -> (Vec<f32>, Vec<f32>) {
    let ones = vec![1; feature.ids.len()];
    let lengths = match feature.pooling {
        Pooling::None => &ones,
        Pooling::Sum | Pooling::Mean => feature.lengths.as_ref().unwrap_or(&ones),
    };
    let width = if combine == Combine::Concat { SEEDS.len() * DIM } else { DIM };
    let (mut vectors, mut scales, mut at) = (Vec::new(), Vec::new(), 0);
    for length in lengths {
        let (mut vector, mut scale, mut divisor) = (vec![0.0f32; width], vec![0.0f32; width], 0.0);
        for _ in 0..*length {
            let weight = feature.weights.as_ref().map_or(1.0, |weights| weights[at]);
            for (hash, seed) in SEEDS.into_iter().enumerate() {
                let start = if combine == Combine::Concat { hash * DIM } else { 0 };
                for column in 0..DIM {
                    let value = value(row(feature.ids[at], seed), column);
                    vector[start + column] = weight.mul_add(value, vector[start + column]);
                    scale[start + column] += (weight * value).abs();
                }
            }
            divisor += weight;
            at += 1;
        }
        if feature.pooling == Pooling::Mean && *length > 0 {
            vector.iter_mut().for_each(|value| *value /= divisor);
            scale.iter_mut().for_each(|value| *value /= divisor);
        }
        vectors.extend(vector);
        scales.extend(scale);
    }
    (vectors, scales)
}

/// Bags of any ids, an empty one among them, in every way in which a table can be asked.
fn features(table_version: &TableVersion) -> Vec<FeatureLookup> {
    let ids: Vec<u64> = (0..60u64).map(|n| (n % 45).wrapping_mul(0x9e37_79b9_7f4a_7c15)).collect();
    let weights: Vec<f32> = (0..60u8).map(|n| 0.25 + f32::from(n) / 7.0).collect();
    let feature = |pooling, lengths: Option<Vec<u32>>, weights: Option<Vec<f32>>| FeatureLookup {
        table_version: table_version.clone(),
        pooling,
        ids: ids.clone(),
        lengths,
        weights,
    };
    let bags = || Some(vec![1, 20, 0, 35, 4]);
    vec![
        feature(Pooling::Sum, bags(), None),
        feature(Pooling::Sum, bags(), Some(weights.clone())),
        feature(Pooling::Mean, bags(), None),
        feature(Pooling::Mean, bags(), Some(weights)),
        feature(Pooling::Mean, None, None),
        feature(Pooling::None, None, None),
    ]
}

#[tokio::test(flavor = "multi_thread")]
async fn composite_vectors_are_those_that_anyone_can_compute() -> Result<()> {
    for nodes_per_group in [1, 2, 4] {
        let sandbox = Sandbox::start(Shape { groups: 1, nodes_per_group }).await?;
        let mut all = Vec::new();
        for combine in [Combine::Concat, Combine::Sum] {
            let table_version = build(&sandbox, combine)?;
            sandbox.serve(&table_version).await?;
            all.extend(features(&table_version).into_iter().map(|feature| (combine, feature)));
        }
        let client = sandbox.client().await?;
        client.wait_for_map(|map| map.layouts.len() == 2, DEADLINE).await?;
        let features = all.iter().map(|(_, feature)| feature.clone()).collect();
        let request = LookupRequest { request_id: "composite".into(), features };
        for (exact, wire_form) in
            [(true, None), (false, Some(WireForm::Gather)), (false, Some(WireForm::Pool)), (false, None)]
        {
            let options = LookupOptions { exact, wire_form, timeout: DEADLINE, ..LookupOptions::default() };
            let outcome = client.lookup(&request, &options).await?;
            // Every partition of both tables is needed: each node is asked, once for both.
            assert_eq!(outcome.nodes_touched as usize, nodes_per_group);
            for ((combine, feature), got) in all.iter().zip(outcome.features) {
                let what = format!("{nodes_per_group} nodes, {combine}, {options:?}, {feature:?}");
                let (vectors, scales) = expected(*combine, feature);
                assert_eq!(got.values.len(), vectors.len(), "{what}");
                for ((got, want), scale) in got.values.iter().zip(&vectors).zip(&scales) {
                    let right = if exact {
                        got.to_bits() == want.to_bits()
                    } else {
                        (got - want).abs() <= 1e-5 * scale
                    };
                    assert!(right, "{got} is not {want}: {what}");
                }
                let dim = if *combine == Combine::Concat { DIM * SEEDS.len() } else { DIM };
                assert_eq!((got.dim as usize, got.missing_ids), (dim, 0), "{what}");
                // The empty bag alone has nothing found, and is the default row.
                let empty = got.found.iter().filter(|found| **found == 0).count();
                assert_eq!(
                    (got.defaulted_bags as usize, got.found.iter().sum::<u32>()),
                    (empty, 60),
                    "{what}"
                );
            }
        }
        sandbox.stop().await?;
    }
    Ok(())
}
