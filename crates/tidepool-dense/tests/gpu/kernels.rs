//! The kernels: steps that are not products give the CPU's bits; what is compiled is kept, and never trusted blindly.

use std::fs;

use tidepool_dense::CudaOptions;

use crate::{
    load, models,
    onnx::{Graph, fixed, int, open},
    oracle::Case,
    run, small_buckets,
};

/// Functions of one number and of two, lines of several lengths, choices: no product.
fn without_products() -> Graph {
    let graph = models::usual();
    let functions = [
        "Abs",
        "Ceil",
        "Erf",
        "Exp",
        "Floor",
        "Neg",
        "Reciprocal",
        "Round",
        "Sigmoid",
        "Sign",
        "Softplus",
        "Tanh",
        "HardSwish",
        "Gelu",
        "Relu",
    ];
    let mut graph = graph.integers("axis", &[1], &[1]);
    let mut parts: Vec<String> = Vec::new();
    for function in functions {
        graph = graph.node(function, &["item"], function, &[]);
        parts.push(function.to_owned());
    }
    graph = graph
        .node("Abs", &["item"], "positive", &[])
        .node("Sqrt", &["positive"], "root", &[])
        .node("Log", &["positive"], "log", &[])
        .node("Softmax", &["item"], "softmax", &[int("axis", 1)])
        .node("LogSoftmax", &["user"], "log_softmax", &[int("axis", 1)])
        .node("Greater", &["Sigmoid", "positive"], "which", &[])
        .node("Where", &["which", "Tanh", "log"], "chosen", &[])
        .node("ReduceMean", &["user", "axis"], "mean", &[int("keepdims", 1)])
        .node("ReduceMax", &["item", "axis"], "max", &[int("keepdims", 1)])
        .node("Div", &["item", "mean"], "divided", &[]);
    parts.extend(["root", "log", "softmax", "log_softmax", "chosen", "max", "divided"].map(str::to_owned));
    let names: Vec<&str> = parts.iter().map(String::as_str).collect();
    let graph = graph
        .node("Concat", &names, "all", &[int("axis", 1)])
        .node("Softmax", &["all"], "shares", &[int("axis", 1)])
        .node("Mul", &["shares", "all"], "terms", &[])
        .node("ReduceSum", &["terms", "axis"], "sum", &[int("keepdims", 1)]);
    graph.output("sum", &[open("batch"), fixed(1)])
}

#[test]
fn steps_that_are_no_products_give_the_bits_of_the_cpu() {
    let case = Case::new(without_products());
    let model = load(&case, &small_buckets());
    for (rows, requests) in [(1, 1), (40, 8), (37, 5)] {
        let batch = case.batch(rows, requests, 5);
        let (found, expected) = (run(&model, &batch).unwrap(), case.run(&batch));
        let bits = |numbers: &[f32]| numbers.iter().map(|x| x.to_bits()).collect::<Vec<_>>();
        assert_eq!(bits(&found[0]), bits(&expected[0]), "{found:?} {expected:?}");
    }
}

#[test]
fn what_was_compiled_is_kept_and_made_anew_when_it_was_changed() {
    let folder = tempfile::tempdir().unwrap();
    let case = Case::new(models::two_tower());
    let options = CudaOptions { cache: Some(folder.path().to_path_buf()), ..small_buckets() };
    let batch = case.batch(9, 3, 1);
    let files = || -> Vec<_> { fs::read_dir(folder.path()).unwrap().map(|f| f.unwrap().path()).collect() };
    let first = run(&load(&case, &options), &batch).unwrap();
    let [kept] = &files()[..] else { panic!("{:?}", files()) };
    let whole = fs::read(kept).unwrap();
    assert_eq!(run(&load(&case, &options), &batch).unwrap(), first);
    for broken in [whole[..whole.len() / 2].to_vec(), [&whole[..], b"x"].concat(), Vec::new()] {
        fs::write(kept, broken).unwrap();
        assert_eq!(run(&load(&case, &options), &batch).unwrap(), first);
        assert_eq!(fs::read(kept).unwrap(), whole);
    }
    assert_eq!(files().len(), 1);
}
