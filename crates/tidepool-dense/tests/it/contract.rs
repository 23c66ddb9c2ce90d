//! Graphs that are not what their contract says.

use tidepool_dense::DenseError;
use tract_onnx::pb::tensor_proto::DataType;

use crate::{
    load, logistic, logistic_spec,
    onnx::{Graph, fixed, int, open},
    spec,
};

fn problems(graph: Graph, spec: &tidepool_types::ModelSpec) -> Vec<String> {
    match load(&graph.bytes(), spec) {
        Err(DenseError::Contract(problems)) => problems,
        other => panic!("{other:?}"),
    }
}

#[test]
fn every_mismatch_is_listed_at_once() {
    let graph = Graph::new()
        .input("user", &[open("batch"), fixed(3)])
        .typed_input("age", DataType::Int64, &[fixed(8), fixed(1)])
        .input("extra", &[open("batch"), fixed(1)])
        .node("Identity", &["user"], "other", &[])
        .output("other", &[open("batch"), fixed(1)]);
    let spec = spec(
        r#"
        inputs = [
            { name = "user", side = "user", table = "user" },
            { name = "age", side = "user", width = 1 },
            { name = "gone", side = "user", width = 1 },
            { name = "item", side = "candidate", table = "item" },
        ]
        outputs = [ { name = "probability" } ]
        score = "probability"
        "#,
    );
    let problems = problems(graph, &spec);
    let expected = [
        "graph input \"extra\" is not in model.toml",
        "input \"user\": its width is 3 in the graph, 2 by model.toml and tables",
        "input \"age\": its elements are INT64, they must be FLOAT (f32)",
        "input \"age\": its batch is fixed at 8, it must be symbolic",
        "input \"gone\" of model.toml is not in the graph",
        "input \"item\": there is no table item",
        "input \"item\" of model.toml is not in the graph",
        "output \"probability\" of model.toml is not in the graph",
        "graph output \"other\" is not in model.toml",
    ];
    assert_eq!(problems, expected);
}

#[test]
fn ranks_and_missing_shapes_are_refused() {
    let mut graph = logistic();
    graph.0.input[1] = Graph::new().input("user", &[open("b"), fixed(1), fixed(2)]).0.input.remove(0);
    let Some(tract_onnx::pb::type_proto::Value::TensorType(age)) =
        graph.0.input[0].r#type.as_mut().and_then(|t| t.value.as_mut())
    else {
        panic!("no type")
    };
    age.shape = None;
    assert_eq!(
        problems(graph, &logistic_spec()),
        [
            "input \"user\": it has rank 3, it must be [batch, width]",
            "input \"age\": the graph gives it no shape; it must be [batch, width]",
        ]
    );
}

#[test]
fn outputs_must_be_one_number_per_row() {
    let spec = spec(
        r#"
        inputs = [ { name = "user", side = "user", table = "user" } ]
        outputs = [ { name = "wide" }, { name = "single" }, { name = "whole" } ]
        score = "wide"
        "#,
    );
    let graph = Graph::new()
        .input("user", &[open("batch"), fixed(2)])
        .node("Relu", &["user"], "wide", &[])
        .node("ReduceMean", &["user"], "single", &[int("keepdims", 0)])
        .node("Cast", &["user"], "whole", &[int("to", DataType::Int64 as i64)])
        // What the file claims of its outputs is not believed.
        .output("wide", &[open("batch"), fixed(1)])
        .output("single", &[open("batch"), fixed(1)])
        .output("whole", &[open("batch"), fixed(1)]);
    let problems = problems(graph, &spec);
    assert_eq!(problems[0], "output \"wide\": its shape is [batch, 2], it must be [batch] or [batch, 1]");
    assert_eq!(problems[1], "output \"single\": its shape is [], it must be [batch] or [batch, 1]");
    assert!(problems[2].starts_with("output \"whole\": its elements are"), "{problems:?}");
}

#[test]
fn an_output_that_nothing_makes_is_named() {
    let mut graph = logistic();
    graph.0.node.pop();
    let text = problems(graph, &logistic_spec()).join("\n");
    assert_eq!(text, "graph output \"probability\" is made by no node");
}

#[test]
fn an_input_that_stands_twice_is_named() {
    let graph = logistic().input("age", &[open("batch"), fixed(1)]);
    assert_eq!(problems(graph, &logistic_spec()), ["graph input \"age\" stands twice"]);
}

#[test]
fn weights_among_the_inputs_are_no_inputs() {
    let graph = logistic().input("w", &[fixed(3), fixed(1)]);
    assert!(load(&graph.bytes(), &logistic_spec()).is_ok());
}

#[test]
fn the_numbers_of_requests_are_integers() {
    let graph = logistic().input("request_index", &[open("batch"), fixed(1)]);
    let expected = "input \"request_index\": it must be INT64 (i64) of shape [rows], rows symbolic";
    assert_eq!(problems(graph, &logistic_spec()), [expected]);
}
