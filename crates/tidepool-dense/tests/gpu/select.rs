//! What the device selects is what the twin selects: the same winners in the same order, and the same values.

use tidepool_dense::select::{
    SelectError, SelectLayout, SelectRequest, SelectRoom, Selected, Selection, Selector, select,
};
use tidepool_types::ModelSpec;

use crate::{device, random::Random};

fn spec(score: &str) -> ModelSpec {
    ModelSpec::from_toml(&format!(
        r#"schema_version = 1
        model = "ads"
        {score}
        inputs = [{{ name = "x", side = "candidate", width = 1 }}]
        outputs = [{{ name = "ctr" }}, {{ name = "cvr" }}, {{ name = "raw" }}]
        calibrations = [
            {{ output = "ctr", kind = "platt", a = 1.1, b = -0.2 }},
            {{ output = "ctr", surface = "feed", kind = "linear", a = 0.5, b = 0.125 }},
            {{ output = "cvr", surface = "home", kind = "isotonic", points = [[0, 0.1], [0.25, 0.25], [0.5, 0.25], [1, 0.75]] }},
        ]"#
    ))
    .unwrap()
}

const OUTPUT: &str = "score = \"raw\"";
const PRODUCT: &str = r#"score = "utility"
    utility = "clamp(ctr, 0, 1) * bid / rate - cvr + min(bid, raw)"
    utility_inputs = [{ name = "rate", side = "user" }, { name = "bid", side = "candidate" }]"#;
const FUNCTIONS: &str = r#"score = "utility"
    utility = "exp(raw) * pow(bid, 1.5) + log(bid + 2) * sigmoid(-raw) + pow(ctr, rate)"
    utility_inputs = [{ name = "bid", side = "candidate" }, { name = "rate", side = "user" }]"#;

struct Request {
    rows: u32,
    surface: &'static str,
    outputs: Vec<usize>,
    numbers: Vec<Vec<f32>>,
    top_k: u32,
}

/// Requests of these rows, and the outputs of all of them.
fn batch(random: &mut Random, spec: &ModelSpec, rows: &[u32], ties: bool) -> (Vec<Request>, Vec<Vec<f32>>) {
    let value = |random: &mut Random| match ties {
        // Few values, also 0 and -0.
        true => [0.0, -0.0, 0.25, 0.5][random.below(4) as usize],
        false => (random.number() + 1.0) / 2.0,
    };
    let requests = rows.iter().map(|rows| {
        let numbers = spec.utility_inputs.iter().map(|input| {
            let count = if input.side == tidepool_types::Side::User { 1 } else { *rows };
            (0..count).map(|_| random.number() + 1.5).collect()
        });
        let numbers = numbers.collect();
        Request {
            rows: *rows,
            surface: ["", "home", "feed", "elsewhere"][random.below(4) as usize],
            outputs: [vec![], vec![1], vec![2, 0], vec![0, 1, 2]][random.below(4) as usize].clone(),
            numbers,
            top_k: [0, 1, 3, 10, 100_000][random.below(5) as usize],
        }
    });
    let requests = requests.collect();
    let total = rows.iter().sum::<u32>();
    let outputs = (0..3).map(|_| (0..total).map(|_| value(random)).collect()).collect();
    (requests, outputs)
}

fn asked(requests: &[Request]) -> Vec<SelectRequest<'_>> {
    let mut asked = Vec::with_capacity(requests.len());
    for Request { rows, surface, outputs, numbers, top_k } in requests {
        asked.push(SelectRequest { rows: *rows, surface, outputs, utility_inputs: numbers, top_k: *top_k });
    }
    asked
}

fn expected(spec: &ModelSpec, requests: &[Request], outputs: &[Vec<f32>], samples: u32) -> Vec<Selected> {
    let mut first = 0;
    let one = |request: &SelectRequest<'_>| {
        let range = first..first + request.rows as usize;
        first = range.end;
        let own: Vec<Vec<f32>> = outputs.iter().map(|values| values[range.clone()].to_vec()).collect();
        select(spec, request, &own, samples)
    };
    asked(requests).iter().map(one).collect()
}

fn selector(spec: &ModelSpec, rows: u32, requests: u32) -> Selector {
    let layout = SelectLayout::new(Selection::new(spec), SelectRoom { rows, requests, samples: 16 }).unwrap();
    Selector::new(&device(), layout, None).unwrap()
}

/// The same values but for the last bit of some, and the same order where they differ by more.
fn near(made: &[Selected], expected: &[Selected], what: &str) {
    let apart = |a: f32, b: f32| a.to_bits().abs_diff(b.to_bits());
    for (request, (made, expected)) in made.iter().zip(expected).enumerate() {
        assert_eq!(made.ranked.len(), expected.ranked.len(), "{what}, request {request}");
        for (made, expected) in made.ranked.iter().zip(&expected.ranked) {
            assert!(apart(made.1, expected.1) <= 1, "{what}, request {request}: {made:?} {expected:?}");
            assert!(made.0 == expected.0 || made.1 == expected.1, "{what}: {made:?} {expected:?}");
        }
        let both = made.outputs.iter().flatten().zip(expected.outputs.iter().flatten());
        assert!(both.clone().count() == expected.outputs.iter().flatten().count());
        assert!(made.samples.len() == expected.samples.len());
        for (made, expected) in both.chain(made.samples.iter().zip(&expected.samples)) {
            assert!(apart(*made, *expected) <= 1, "{what}, request {request}: {made} {expected}");
        }
        assert_eq!(made.not_finite, None, "{what}, request {request}");
    }
}

#[test]
fn winners_are_those_of_the_cpu_in_the_same_order() {
    let mut random = Random(5);
    for score in [OUTPUT, PRODUCT, FUNCTIONS] {
        let spec = spec(score);
        let mut selector = selector(&spec, 3000, 8);
        for rows in [&[0][..], &[1], &[700, 0, 1, 1299, 1000], &[3000], &[1024, 1024], &[]] {
            let (requests, outputs) = batch(&mut random, &spec, rows, false);
            let made = selector.run(&asked(&requests), &outputs).unwrap();
            near(&made, &expected(&spec, &requests, &outputs, 16), &format!("{score} of {rows:?}"));
        }
    }
}

#[test]
fn equal_candidates_stay_in_the_order_of_their_request() {
    let mut random = Random(6);
    let spec = spec(OUTPUT);
    let mut selector = selector(&spec, 5000, 4);
    for rows in [&[5000][..], &[10, 2000, 2990], &[1, 1, 1, 1]] {
        let (mut requests, outputs) = batch(&mut random, &spec, rows, true);
        for top_k in [0, 1, 7, 1500] {
            for request in &mut requests {
                request.top_k = top_k;
                request.surface = "feed";
            }
            let made = selector.run(&asked(&requests), &outputs).unwrap();
            let bits = |all: &[Selected]| -> Vec<Vec<(u32, u32)>> {
                let one =
                    |one: &Selected| one.ranked.iter().map(|(at, value)| (*at, value.to_bits())).collect();
                all.iter().map(one).collect()
            };
            assert_eq!(bits(&made), bits(&expected(&spec, &requests, &outputs, 16)), "{rows:?} {top_k}");
        }
    }
}

#[test]
fn the_best_of_a_hundred_thousand_are_found() {
    let mut random = Random(8);
    let spec = spec(OUTPUT);
    let mut selector = selector(&spec, 100_000, 1);
    let (mut requests, outputs) = batch(&mut random, &spec, &[100_000], false);
    (requests[0].top_k, requests[0].outputs) = (500, vec![1]);
    let made = selector.run(&asked(&requests), &outputs).unwrap();
    near(&made, &expected(&spec, &requests, &outputs, 16), "100,000 rows");
}

#[test]
fn numbers_that_are_none_are_named_as_the_cpu_names_them() {
    let mut random = Random(7);
    for score in [OUTPUT, PRODUCT] {
        let spec = spec(score);
        let mut selector = selector(&spec, 300, 3);
        for (output, value) in [(0, f32::NAN), (1, f32::INFINITY), (2, f32::NEG_INFINITY), (0, 1.5)] {
            let (mut requests, mut outputs) = batch(&mut random, &spec, &[100, 100, 100], false);
            for request in &mut requests {
                request.surface = "";
                request.outputs = vec![1, 0];
            }
            // In the second request, at two rows.
            outputs[output][170] = value;
            outputs[output][150] = value;
            let made = selector.run(&asked(&requests), &outputs).unwrap();
            let expected = expected(&spec, &requests, &outputs, 16);
            for (made, expected) in made.iter().zip(&expected) {
                let shown = |one: &Selected| format!("{:?}", one.not_finite);
                assert_eq!(shown(made), shown(expected), "{score}: {output} {value}");
            }
            assert!(expected[0].not_finite.is_none() && expected[2].not_finite.is_none());
            let (made, expected) =
                ([made[0].clone(), made[2].clone()], [expected[0].clone(), expected[2].clone()]);
            near(&made, &expected, "the other requests");
        }
    }
}

#[test]
fn what_does_not_fit_is_refused_before_anything_is_copied() {
    let spec = spec(OUTPUT);
    let mut selector = selector(&spec, 10, 2);
    let request = SelectRequest { rows: 11, surface: "", outputs: &[], utility_inputs: &[], top_k: 0 };
    let outputs = vec![vec![0.0; 11]; 3];
    let error = selector.run(&[request], &outputs).unwrap_err();
    assert_eq!(error, SelectError::TooMany { of: "rows", found: 11, room: 10 });
    let fits = SelectRequest { rows: 10, ..request };
    assert!(matches!(selector.run(&[fits], &outputs), Err(SelectError::Wanted(_))));
}
