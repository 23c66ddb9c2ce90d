//! The static plan beside tract, on small models of every kind that is served; what is not covered is named.

use tidepool_dense::DenseError;

use crate::{
    load, models,
    onnx::{Graph, fixed, int, ints, open},
    oracle::{Batch, Case},
    spec,
};

#[test]
fn every_model_says_what_tract_says() {
    for (name, graph) in models::all() {
        let case = Case::new(graph);
        for (rows, requests, seed) in [(1, 1, 1), (7, 1, 2), (130, 3, 3), (601, 601, 4)] {
            case.check(name, &case.batch(rows, requests, seed));
        }
    }
}

/// A row alone, as the only row of its request.
fn alone(case: &Case, batch: &Batch, row: usize) -> Batch {
    let request = batch.request_of[row] as usize;
    let values = case.spec.inputs.iter().zip(&batch.values).zip(case.model.widths());
    let values = values.map(|((input, values), &width)| {
        let record = if input.side == tidepool_types::Side::User { request } else { row };
        values[record * width..][..width].to_vec()
    });
    Batch { rows: 1, requests: 1, request_of: vec![0], values: values.collect() }
}

#[test]
fn a_row_has_the_same_bits_whatever_it_is_run_with() {
    for (name, graph) in models::all() {
        let case = Case::new(graph);
        for (rows, requests) in [(700, 5), (33, 33)] {
            let batch = case.batch(rows, requests, 7);
            let whole = case.run(&batch);
            for row in (0..rows).step_by(13) {
                for (whole, alone) in whole.iter().zip(case.run(&alone(&case, &batch, row))) {
                    assert_eq!(whole[row].to_bits(), alone[0].to_bits(), "{name}, row {row} of {rows}");
                }
            }
        }
    }
}

#[test]
fn what_depends_on_the_user_alone_is_computed_once_per_request() {
    let steps = |graph| Case::new(graph).model.steps();
    let per_request = |steps: &[String], node: &str| {
        steps.iter().any(|step| step.starts_with("request ") && step.contains(node))
    };
    let towers = steps(models::two_tower());
    assert!(per_request(&towers, "make_u1") && per_request(&towers, "make_u2"), "{towers:#?}");
    assert!(!per_request(&towers, "make_i1"), "{towers:#?}");
    let attention = steps(models::attention());
    assert!(per_request(&attention, "make_weights"), "{attention:#?}");
    // The user's part of the first cross is summed once per request, the item's and the context's once per row.
    let crossed = steps(models::dcn_mmoe());
    let parts = |kind: &str| {
        crossed.iter().filter(|s| s.starts_with(kind) && s.contains("c1.m") && s.contains("product")).count()
    };
    assert_eq!((parts("request"), parts("row")), (1, 2), "{crossed:#?}");
}

#[test]
fn products_do_what_is_added_to_them_and_the_relu_behind_them() {
    let inputs = [("user", 5), ("item", 9), ("context", 3)];
    let graph =
        inputs.iter().fold(Graph::new(), |g, (name, width)| g.input(name, &[open("batch"), fixed(*width)]));
    let graph = graph
        .node("Concat", &["user", "item", "context"], "x", &[int("axis", 1)])
        .random("w", &[17, 40])
        .random("b", &[40])
        .node("Gemm", &["x", "w", "b"], "sum", &[])
        .node("Relu", &["sum"], "positive", &[])
        .random("v", &[40, 1])
        .node("MatMul", &["positive", "v"], "p", &[])
        .output("p", &[open("batch"), fixed(1)]);
    let case = Case::new(graph);
    let steps = case.model.steps();
    let count = |what: &str| steps.iter().filter(|step| step.contains(what)).count();
    assert_eq!(
        (count(", from a bias"), count(", from its request's"), count(", ReLU")),
        (1, 1, 1),
        "{steps:#?}"
    );
    assert!(!steps.iter().any(|s| s.contains("map of") && !s.contains("map of 1 ")), "{steps:#?}");
    // Rows of one request start from its record where it is, those of several from copies.
    for (rows, requests) in [(1, 1), (40, 1), (40, 7), (600, 2)] {
        case.check("sums", &case.batch(rows, requests, 5));
    }
}

/// One input, one output, one node between them.
fn single(op: &str, more: &[&str], attributes: &[tract_onnx::pb::AttributeProto]) -> Graph {
    let inputs: Vec<&str> = std::iter::once("x").chain(more.iter().copied()).collect();
    Graph::new()
        .input("x", &[open("batch"), fixed(4)])
        .integers("zero", &[1], &[0])
        .integers("one", &[1], &[1])
        .integers("scalar", &[], &[1])
        .node(op, &inputs, "y", attributes)
        .node("ReduceSum", &["y", "one"], "p", &[int("keepdims", 1)])
        .output("p", &[open("batch"), fixed(1)])
}

fn refusal(graph: Graph) -> String {
    let spec = spec(
        "score = \"p\"\ninputs = [{ name = \"x\", side = \"candidate\", width = 4 }]\noutputs = [{ name = \"p\" }]",
    );
    match load(&graph.bytes(), &spec) {
        Err(error @ (DenseError::NotCovered { .. } | DenseError::Contract(_))) => error.to_string(),
        other => panic!("{other:?}"),
    }
}

#[test]
fn what_is_not_covered_is_named() {
    let text = refusal(single("CumSum", &["scalar"], &[]));
    assert!(text.contains("make_y") && text.contains("not covered"), "{text}");
    let text = refusal(single("Sinh", &[], &[]));
    assert!(text.contains("make_y") && text.contains("Sinh"), "{text}");
}

#[test]
fn rows_do_not_see_each_other() {
    for graph in [
        single("Softmax", &[], &[int("axis", 0)]),
        single("ReduceMax", &["zero"], &[int("keepdims", 1)]),
        Graph::new()
            .input("x", &[open("batch"), fixed(4)])
            .node("Transpose", &["x"], "t", &[ints("perm", &[1, 0])])
            .node("MatMul", &["x", "t"], "all", &[])
            .integers("one", &[1], &[1])
            .node("ReduceSum", &["all", "one"], "p", &[int("keepdims", 1)])
            .output("p", &[open("batch"), fixed(1)]),
    ] {
        let text = refusal(graph);
        assert!(text.contains("row") || text.contains("batch"), "{text}");
    }
}

#[test]
fn numbers_that_are_not_finite_stay_so() {
    let graph = || {
        Graph::new()
            .input("x", &[open("batch"), fixed(4)])
            .weights("w", &[4, 1], &[f32::NAN, f32::MAX, f32::INFINITY, 1.0])
            .node("Relu", &["x"], "r", &[])
            .node("MatMul", &["r", "w"], "p", &[])
            .output("p", &[open("batch"), fixed(1)])
    };
    let case = Case::new(graph());
    let batch = Batch {
        rows: 2,
        requests: 1,
        request_of: vec![0; 2],
        values: vec![vec![1.0, 2.0, 3.0, f32::NAN, 0.0, 0.0, 0.0, 5.0]],
    };
    let found = case.run(&batch);
    assert!(found[0][0].is_nan() && found[0][1].is_nan(), "{found:?}");
}

#[test]
fn a_sequence_comes_with_its_mask() {
    let graph = Graph::new()
        .input("history", &[open("batch"), fixed(3), fixed(2)])
        .input("seen", &[open("batch"), fixed(3)])
        .input("item", &[open("batch"), fixed(2)])
        .integers("last", &[1], &[2])
        .node("Unsqueeze", &["seen", "last"], "column", &[])
        .node("Mul", &["history", "column"], "kept", &[])
        .integers("steps", &[1], &[1])
        .node("ReduceSum", &["kept", "steps"], "sum", &[int("keepdims", 0)])
        .node("Mul", &["sum", "item"], "product", &[])
        .node("ReduceSum", &["product", "steps"], "p", &[int("keepdims", 1)])
        .output("p", &[open("batch"), fixed(1)]);
    let contract = |max_len: u32| {
        spec(&format!(
            r#"
            inputs = [
                {{ name = "history", side = "user", table = "user", sequence = {max_len}, mask = "seen" }},
                {{ name = "item", side = "candidate", table = "user" }},
            ]
            outputs = [ {{ name = "p" }} ]
            score = "p"
            "#
        ))
    };
    let bytes = graph.bytes();
    let model = load(&bytes, &contract(3)).unwrap();
    assert_eq!((model.widths(), model.masks()), (&[6, 2][..], &[0][..]));
    let history = [1.0, 2.0, 3.0, 4.0, 50.0, 60.0];
    let batch = tidepool_dense::DenseBatch {
        rows: 2,
        requests: 1,
        request_of: &[0, 0],
        inputs: &[&history, &[1.0, 0.5, -1.0, 2.0], &[1.0, 1.0, 0.0]],
    };
    assert_eq!(model.run(&batch).unwrap(), [[4.0 + 3.0, -4.0 + 12.0]]);
    let Err(DenseError::Contract(problems)) = load(&bytes, &contract(4)) else { panic!("accepted") };
    assert_eq!(
        problems,
        [
            "input \"history\": its length is 3 in the graph, 4 by model.toml and tables",
            "input \"seen\": its width is 3 in the graph, 4 by model.toml and tables",
        ]
    );
}

/// Where tract's own answer is another one: it counts the element once (0.23.9), so the sum is written out beside it.
#[test]
fn an_element_that_is_repeated_along_a_summed_axis_counts_each_time() {
    let graph = || {
        models::usual()
            .integers("axis", &[1], &[1])
            .node("ReduceMean", &["user", "axis"], "mean", &[int("keepdims", 1)])
            .integers("wide", &[2], &[1, 5])
            .node("Expand", &["mean", "wide"], "spread", &[])
            .node("Concat", &["spread", "item"], "x", &[int("axis", 1)])
            .random("w", &[21])
    };
    let product = graph().node("MatMul", &["x", "w"], "ctr", &[]);
    let written_out = graph().node("Mul", &["x", "w"], "terms", &[]);
    let written_out = written_out.node("ReduceSum", &["terms", "axis"], "ctr", &[int("keepdims", 0)]);
    let [product, written_out] = [product, written_out].map(|graph| {
        // An input that nothing takes would not be in the contract.
        let graph = graph.node("ReduceSum", &["context", "axis"], "rest", &[int("keepdims", 0)]);
        Case::new(graph.output("ctr", &[open("batch")]).output("rest", &[open("batch")]))
    });
    let batch = product.batch(9, 2, 5);
    for (product, written_out) in product.run(&batch)[0].iter().zip(&written_out.run(&batch)[0]) {
        assert!((product - written_out).abs() <= 3e-6, "{product} {written_out}");
    }
}
