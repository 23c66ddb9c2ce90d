//! What is wrong with an answer is noticed, and the queue to those who check is bounded.

use tidepool_types::{Keying, Name, PartitionCount, RowFormat, TableVersion};

use super::{super::ask::BatchShape, *};
use crate::{Skew, load::Asked, oracle::decode, rows::stored_row};

const DIM: u32 = 8;

fn asked(pooling: Pooling) -> Asked {
    Asked {
        table: BenchTable {
            rows: 1000,
            dim: DIM,
            format: RowFormat::Int4,
            keying: Keying::Hashed,
            partitions: PartitionCount::new(4).unwrap(),
        },
        batch: 10,
        shape: BatchShape::Fixed,
        bag: 4,
        pooling,
        weighted: pooling != Pooling::None,
        skew: Skew::Uniform,
        seed: 3,
    }
}

/// The right answer, in f64: of ids that the table has.
fn answer(table: BenchTable, request: &LookupRequest) -> LookupOutcome {
    let feature = &request.features[0];
    let lengths = match (&feature.lengths, feature.pooling) {
        (Some(lengths), Pooling::Sum | Pooling::Mean) => lengths.clone(),
        _ => vec![1; feature.ids.len()],
    };
    let (mut values, mut found) = (Vec::new(), Vec::new());
    let mut first = 0;
    for &length in &lengths {
        let (mut sums, mut weights) = (vec![0.0; DIM as usize], 0.0);
        let present: Vec<usize> =
            (first..first + length as usize).filter(|place| table.has(feature.ids[*place])).collect();
        found.push(present.len() as u32);
        for place in present {
            let mut row = vec![0; RowFormat::Int4.row_bytes(DIM)];
            let mut decoded = vec![0.0; DIM as usize];
            stored_row(RowFormat::Int4, feature.ids[place], ROWS_VERSION, &mut row);
            decode(RowFormat::Int4, &row, &mut decoded);
            let weight = feature.weights.as_ref().map_or(1.0, |weights| f64::from(weights[place]));
            weights += weight;
            sums.iter_mut().zip(decoded).for_each(|(sum, value)| *sum += weight * value);
        }
        first += length as usize;
        let divisor = if feature.pooling == Pooling::Mean && weights > 0.0 { weights } else { 1.0 };
        values.extend(sums.into_iter().map(|sum: f64| (sum / divisor) as f32));
    }
    let vectors = FeatureVectors {
        table_version: feature.table_version.clone(),
        sequence: 0,
        dim: DIM,
        values,
        missing_ids: feature.ids.len() as u32 - found.iter().sum::<u32>(),
        found,
        unavailable_ids: 0,
        unavailable: Vec::new(),
        defaulted_bags: 0,
        defaulted: Vec::new(),
    };
    LookupOutcome { features: vec![vectors], ..LookupOutcome::default() }
}

#[test]
fn right_answers_pass_and_every_swap_is_noticed() {
    for (pooling, bags) in [(Pooling::Sum, 10), (Pooling::Mean, 10), (Pooling::None, 40)] {
        let asked = asked(pooling);
        let check = CheckRows(asked.table);
        let request = asked.requests().unwrap().next().unwrap();
        let right = answer(asked.table, &request);
        assert_eq!(check.check(&request, &right), Verdict { checked: bags, wrong: 0 }, "{pooling:?}");
        let wrong = |spoil: &dyn Fn(&mut LookupRequest, &mut LookupOutcome)| {
            let (mut request, mut outcome) = (request.clone(), right.clone());
            spoil(&mut request, &mut outcome);
            check.check(&request, &outcome).wrong
        };
        assert_eq!(wrong(&|_, outcome| outcome.features[0].values.swap(0, 3 * DIM as usize)), 2);
        assert_eq!(wrong(&|_, outcome| outcome.features[0].values[5] += 0.01), 1);
        assert_eq!(wrong(&|_, outcome| outcome.features[0].values[5] = f32::NAN), 1);
        assert_eq!(wrong(&|_, outcome| outcome.features[0].found[1] -= 1), 1);
        assert_eq!(wrong(&|request, _| request.features[0].ids.swap(0, 39)), 2, "ids of two bags");
        assert_eq!(wrong(&|_, outcome| _ = outcome.features[0].values.pop()), bags);
        assert_eq!(wrong(&|_, outcome| outcome.features.clear()), bags);
        let other = TableVersion { table: Name::new("t").unwrap(), version: Name::new("v").unwrap() };
        assert_eq!(wrong(&|_, outcome| outcome.features[0].table_version = other.clone()), bags);
        if pooling != Pooling::None {
            let swap = |request: &mut LookupRequest, _: &mut LookupOutcome| {
                request.features[0].weights.as_mut().unwrap().swap(0, 1);
            };
            assert_eq!(wrong(&swap), 1, "weights of one bag");
        }
    }
}

#[test]
fn ids_that_the_table_has_not_are_missing_and_add_nothing() {
    for keying in [Keying::Dense, Keying::Hashed] {
        for pooling in [Pooling::Sum, Pooling::Mean, Pooling::None] {
            let mut asked = asked(pooling);
            asked.table.keying = keying;
            let check = CheckRows(asked.table);
            let mut request = asked.requests().unwrap().next().unwrap();
            // The first bag has one such id, the second nothing else.
            let ids = &mut request.features[0].ids;
            (ids[1], ids[4], ids[5], ids[6], ids[7]) = (u64::MAX, 1000, 1001, 1002, 1003);
            assert_eq!(ids.iter().filter(|id| !asked.table.has(**id)).count(), 5, "{keying}");
            let right = answer(asked.table, &request);
            assert_eq!(check.check(&request, &right).wrong, 0, "{keying} {pooling:?}");
            assert_eq!(right.features[0].missing_ids, 5);

            let mut uncounted = right.clone();
            uncounted.features[0].missing_ids = 0;
            assert!(check.check(&request, &uncounted).wrong > 0, "{keying} {pooling:?}");
            let mut found = right.clone();
            found.features[0].found[1] += 1;
            assert_eq!(check.check(&request, &found).wrong, 1, "{keying} {pooling:?}");
            let mut no_default = right.clone();
            let of_nothing = if pooling == Pooling::None { 4 } else { 1 };
            no_default.features[0].values[of_nothing * DIM as usize] = 0.25;
            assert_eq!(check.check(&request, &no_default).wrong, 1, "{keying} {pooling:?}");
        }
    }
}

#[test]
fn all_that_is_kept_is_checked_and_the_rest_counted() {
    for beside in [false, true] {
        let asked = asked(Pooling::Sum);
        let (request, outcome) = {
            let request = asked.requests().unwrap().next().unwrap();
            let outcome = answer(asked.table, &request);
            (request, outcome)
        };
        let check = || Arc::new(CheckRows(asked.table));
        let answers = Answers::new(check(), Keep { bytes: 1 << 30, beside }).unwrap();
        let mut wrong = outcome.clone();
        wrong.features[0].values[0] += 1.0;
        for _ in 0..20 {
            answers.keep(request.clone(), outcome.clone());
        }
        answers.keep(request.clone(), wrong);
        assert_eq!(answers.finish(), (Verdict { checked: 210, wrong: 1 }, 0));

        let none = Answers::new(check(), Keep { bytes: 0, beside }).unwrap();
        none.keep(request.clone(), outcome.clone());
        assert_eq!(none.finish(), (Verdict::default(), 1));
        // Given up: whoever checks ends too.
        drop(Answers::new(check(), Keep { bytes: 1 << 30, beside }).unwrap());
    }
}
