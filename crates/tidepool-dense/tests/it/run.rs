//! What a loaded model computes.

use std::thread;

use tidepool_dense::{DenseBatch, DenseError};

use tract_onnx::pb::tensor_proto::DataType;

use crate::{
    BIAS, WEIGHTS, load, logistic, logistic_spec,
    onnx::{Graph, fixed, int, open},
    run, spec,
};

fn inputs(rows: usize) -> Vec<Vec<f32>> {
    let user = (0..rows * 2).map(|i| (i % 17) as f32 * 0.25 - 2.0).collect();
    let age = (0..rows).map(|i| (i % 5) as f32 * 0.1).collect();
    vec![user, age]
}

fn margin(user: &[f32], age: f32) -> f32 {
    user[0] * WEIGHTS[0] + user[1] * WEIGHTS[1] + age * WEIGHTS[2] + BIAS
}

#[test]
fn outputs_equal_hand_computed_values_for_any_batch() {
    let model = load(&logistic().bytes(), &logistic_spec()).unwrap();
    assert_eq!(model.widths(), [2, 1]);
    for rows in [1, 7, 500] {
        let inputs = inputs(rows);
        let outputs = run(&model, rows, &inputs).unwrap();
        assert_eq!((outputs.len(), outputs[0].len(), outputs[1].len()), (2, rows, rows));
        for (row, (user, age)) in inputs[0].chunks(2).zip(&inputs[1]).enumerate() {
            let margin = margin(user, *age);
            let probability = 1.0 / (1.0 + (-margin).exp());
            assert!((outputs[0][row] - margin).abs() < 1e-5, "row {row} of {rows}");
            assert!((outputs[1][row] - probability).abs() < 1e-5, "row {row} of {rows}");
        }
    }
}

#[test]
fn no_rows_give_empty_outputs() {
    let model = load(&logistic().bytes(), &logistic_spec()).unwrap();
    assert_eq!(run(&model, 0, &[vec![], vec![]]).unwrap(), [Vec::<f32>::new(), Vec::new()]);
}

#[test]
fn wrong_lengths_are_refused_and_the_input_named() {
    let model = load(&logistic().bytes(), &logistic_spec()).unwrap();
    let Err(DenseError::Input { input, .. }) = run(&model, 2, &[vec![0.0; 4], vec![0.0; 3]]) else {
        panic!("accepted")
    };
    assert_eq!(input, "\"age\"");
    assert!(matches!(run(&model, 2, &[vec![0.0; 4]]), Err(DenseError::Input { .. })));
    let inputs: [&[f32]; 2] = [&[0.0; 4], &[]];
    let mut batch = DenseBatch { rows: 0, requests: usize::MAX, request_of: &[], inputs: &inputs };
    assert!(matches!(model.run(&batch), Err(DenseError::Input { input, .. }) if input == "\"user\""));
    // The second row belongs to a third request of two.
    (batch.rows, batch.requests, batch.request_of) = (2, 2, &[0, 2]);
    let inputs: [&[f32]; 2] = [&[0.0; 4], &[0.0; 2]];
    batch.inputs = &inputs;
    let Err(DenseError::Input { problem, .. }) = model.run(&batch) else { panic!("accepted") };
    assert_eq!(problem, "row 1 belongs to request 2, there are 2 requests");
}

#[test]
fn a_flat_output_and_a_batch_of_another_name_are_fine() {
    let graph = Graph::new()
        .input("user", &[open("N"), fixed(2)])
        .weights("w", &[2], &[3.0, -1.0])
        .node("MatMul", &["user", "w"], "dot", &[])
        .output("dot", &[open("N")]);
    let spec = spec(
        r#"
        inputs = [ { name = "user", side = "user", table = "user" } ]
        outputs = [ { name = "dot" } ]
        score = "dot"
        "#,
    );
    let model = load(&graph.bytes(), &spec).unwrap();
    assert_eq!(run(&model, 2, &[vec![1.0, 2.0, -1.0, 0.5]]).unwrap(), [vec![1.0, -3.5]]);
}

#[test]
fn inputs_may_call_the_batch_by_different_names() {
    let mut graph = logistic();
    graph.0.input[0] = Graph::new().input("age", &[open("other"), fixed(1)]).0.input.remove(0);
    let model = load(&graph.bytes(), &logistic_spec()).unwrap();
    assert_eq!(run(&model, 3, &inputs(3)).unwrap()[1].len(), 3);
}

#[test]
fn what_is_not_finite_is_returned_as_it_is() {
    let model = load(&logistic().bytes(), &logistic_spec()).unwrap();
    let outputs = run(&model, 1, &[vec![f32::MAX, -f32::MAX], vec![f32::MAX]]).unwrap();
    assert!(outputs[0][0].is_infinite());
    assert!(run(&model, 1, &[vec![f32::NAN, 0.0], vec![0.0]]).unwrap()[0][0].is_nan());
}

#[test]
fn what_a_run_works_in_grows_with_its_requests_and_not_with_its_rows() {
    let model = load(&logistic().bytes(), &logistic_spec()).unwrap();
    // A product for each request of two numbers, and one for each row of one, of a sum of one each.
    assert_eq!(model.flops(), [4, 2]);
    let bytes = |rows, requests| model.arena_bytes(rows, requests);
    assert!(bytes(1, 1) < bytes(512, 1) && bytes(512, 1) == bytes(100_000, 1));
    // What rows read of a request is one number, in a line of 16.
    assert_eq!(bytes(512, 1_000_000) - bytes(512, 1_000), 999_000 * 64);
}

#[test]
fn threads_share_one_model() {
    let model = load(&logistic().bytes(), &logistic_spec()).unwrap();
    let expected = run(&model, 7, &inputs(7)).unwrap();
    thread::scope(|scope| {
        let runs: Vec<_> = (0..4).map(|_| scope.spawn(|| run(&model, 7, &inputs(7)).unwrap())).collect();
        for run in runs {
            assert_eq!(run.join().unwrap(), expected);
        }
    });
}

#[test]
fn rows_of_several_requests_share_their_user() {
    let model = load(&logistic().bytes(), &logistic_spec()).unwrap();
    let users = [0.5, -1.0, 2.0, 0.25];
    let ages = [0.1, 0.2, 0.3, 0.4, 0.5];
    let request_of = [1, 0, 0, 1, 1];
    let batch = DenseBatch { rows: 5, requests: 2, request_of: &request_of, inputs: &[&users, &ages] };
    let outputs = model.run(&batch).unwrap();
    for (row, (&request, &age)) in request_of.iter().zip(&ages).enumerate() {
        let user = &users[request as usize * 2..][..2];
        assert!((outputs[0][row] - margin(user, age)).abs() < 1e-5, "row {row}");
    }
}

#[test]
fn a_graph_may_bring_users_and_rows_together_itself() {
    let graph = Graph::new()
        .input("user", &[open("requests"), fixed(2)])
        .input("age", &[open("batch"), fixed(1)])
        .typed_input("request_index", DataType::Int64, &[open("batch")])
        .weights("w", &[2, 1], &WEIGHTS[..2])
        .node("MatMul", &["user", "w"], "of_user", &[])
        .node("Gather", &["of_user", "request_index"], "of_row", &[int("axis", 0)])
        .node("Add", &["of_row", "age"], "margin", &[])
        .node("Sigmoid", &["margin"], "probability", &[])
        .output("margin", &[open("batch"), fixed(1)])
        .output("probability", &[open("batch"), fixed(1)]);
    let model = load(&graph.bytes(), &logistic_spec()).unwrap();
    let batch = DenseBatch {
        rows: 3,
        requests: 2,
        request_of: &[1, 0, 1],
        inputs: &[&[0.5, -1.0, 2.0, 0.25], &[0.1, 0.2, 0.3]],
    };
    let outputs = model.run(&batch).unwrap();
    let of = |user: [f32; 2], age: f32| user[0] * WEIGHTS[0] + user[1] * WEIGHTS[1] + age;
    let expected = [of([2.0, 0.25], 0.1), of([0.5, -1.0], 0.2), of([2.0, 0.25], 0.3)];
    for (found, expected) in outputs[0].iter().zip(expected) {
        assert!((found - expected).abs() < 1e-6, "{found} {expected}");
    }
}
