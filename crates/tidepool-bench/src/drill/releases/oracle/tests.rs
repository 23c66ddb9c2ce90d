//! Answers as a cluster would give them, and as one would that mixes.

use tidepool_proto::pack::pack;

use super::*;
use crate::drill::releases::requests::Requests;

const REQUESTS: Requests = Requests { rows: 1000, seed: 7 };

/// What a model gives on rows of these versions, in f32 and in no particular order of addition.
fn scores_of(dense: Dense, versions: [u64; 2], asked: &Asked) -> Vec<f32> {
    let weights = dense.weights();
    let mut rows = Rows::new(asked);
    rows.pool(Table::Users, versions[0]);
    rows.pool(Table::Items, versions[1]);
    let user = rows.pooled[&(Table::Users, versions[0])][0].values.map(|value| value as f32);
    let items = &rows.pooled[&(Table::Items, versions[1])];
    let score = |item: &Pooled| {
        let mut sum = weights.bias;
        for column in (0..DIM).rev() {
            let item = item.values[column] as f32;
            sum += weights.columns[2][column] * user[column] * item;
            sum += weights.columns[1][column] * item + weights.columns[0][column] * user[column];
        }
        1.0 / (1.0 + (-sum).exp())
    };
    items.iter().map(score).collect()
}

/// The answer that says it is `release`'s and has these scores.
fn answer(release: &Release, scores: &[f32]) -> v1::RankResponse {
    let mut ranked: Vec<(u32, f32)> = (0..).zip(scores.iter().copied()).collect();
    ranked.sort_by(|a, b| b.1.total_cmp(&a.1).then(a.0.cmp(&b.0)));
    let (indexes, scores): (Vec<u32>, Vec<f32>) = ranked.into_iter().unzip();
    v1::RankResponse {
        release: release.name.to_string(),
        table_versions: release.tables().unwrap().iter().map(Into::into).collect(),
        indexes: pack(&indexes),
        scores: pack(&scores),
        ..v1::RankResponse::default()
    }
}

/// r1 and r2, and a skewed r3: the model of version 2 on tables of version 1.
fn scene() -> (Oracle, [Release; 3]) {
    let releases =
        [Release::whole(1, 1).unwrap(), Release::whole(2, 2).unwrap(), Release::skewed(3, 2, 1).unwrap()];
    let mut oracle = Oracle::default();
    releases.iter().for_each(|release| oracle.learn(release));
    (oracle, releases)
}

#[test]
fn what_a_release_gives_is_right_and_so_is_what_a_skewed_one_gives() {
    let (oracle, releases) = scene();
    for number in 0..200 {
        let asked = REQUESTS.asked(number);
        for release in &releases {
            let scores = scores_of(release.dense, release.versions, &asked);
            assert_eq!(
                oracle.judge(&asked, &answer(release, &scores)),
                Verdict::Right,
                "{release:?} {number}"
            );
        }
    }
}

#[test]
fn every_cross_of_models_and_tables_is_told_apart() {
    let (oracle, releases) = scene();
    let versions: Vec<[u64; 2]> = oracle.crosses().collect();
    assert_eq!(versions.len(), 4);
    for number in 0..100 {
        let asked = REQUESTS.asked(number);
        for named in &releases {
            for model in &releases {
                for versions in &versions {
                    let scores = scores_of(model.dense, *versions, &asked);
                    let own = model == named && *versions == named.versions;
                    let expected = if own { Verdict::Right } else { Verdict::Mixed };
                    let found = oracle.judge(&asked, &answer(named, &scores));
                    assert_eq!(found, expected, "{named:?} with {model:?} on {versions:?}, {number}");
                }
            }
        }
    }
}

#[test]
fn one_candidate_of_another_release_is_mixed_and_any_other_score_is_wrong() {
    let (oracle, [first, second, _]) = scene();
    let asked = REQUESTS.asked(1);
    let mut scores = scores_of(first.dense, first.versions, &asked);
    scores[3] = scores_of(second.dense, second.versions, &asked)[3];
    assert_eq!(oracle.judge(&asked, &answer(&first, &scores)), Verdict::Mixed);
    for off in [0.01, f32::NAN, f32::INFINITY] {
        let mut scores = scores_of(first.dense, first.versions, &asked);
        scores[3] += off;
        assert_eq!(oracle.judge(&asked, &answer(&first, &scores)), Verdict::Wrong, "{off}");
    }
}

#[test]
fn an_answer_that_names_other_tables_is_mixed_and_one_that_lacks_candidates_is_wrong() {
    let (oracle, [first, second, _]) = scene();
    let asked = REQUESTS.asked(1);
    let right = answer(&first, &scores_of(first.dense, first.versions, &asked));
    let mut others = right.clone();
    others.table_versions[1] = (&second.tables().unwrap()[1]).into();
    assert_eq!(oracle.judge(&asked, &others), Verdict::Mixed);
    let change = |change: &dyn Fn(&mut v1::RankResponse)| {
        let mut answer = right.clone();
        change(&mut answer);
        oracle.judge(&asked, &answer)
    };
    assert_eq!(change(&|answer| answer.release = "r9".into()), Verdict::Wrong);
    assert_eq!(change(&|answer| answer.missing_ids = 1), Verdict::Wrong);
    assert_eq!(change(&|answer| answer.scores = answer.scores.slice(4..)), Verdict::Wrong);
    assert_eq!(change(&|answer| answer.indexes = pack(&[0u32; CANDIDATES])), Verdict::Wrong);
    let reversed = |answer: &mut v1::RankResponse| {
        let indexes: Vec<u32> = unpack(&answer.indexes).unwrap().collect();
        let scores: Vec<f32> = unpack(&answer.scores).unwrap().collect();
        answer.indexes = pack(&indexes.into_iter().rev().collect::<Vec<u32>>());
        answer.scores = pack(&scores.into_iter().rev().collect::<Vec<f32>>());
    };
    assert_eq!(change(&reversed), Verdict::Wrong, "the best come first");
}

#[test]
fn scores_of_a_skewed_release_lie_elsewhere() {
    let (_, [first, second, skewed]) = scene();
    let mean = |release: &Release| {
        let all = (0..200).flat_map(|n| scores_of(release.dense, release.versions, &REQUESTS.asked(n)));
        all.map(f64::from).sum::<f64>() / (200 * CANDIDATES) as f64
    };
    for release in [&first, &second] {
        assert!((0.3..0.7).contains(&mean(release)), "{}", mean(release));
    }
    assert!(mean(&skewed) < 0.1, "{}", mean(&skewed));
}
