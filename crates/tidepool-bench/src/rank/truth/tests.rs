//! Graphs that are small enough to be worked out by hand.

use tidepool_dense::GraphWriter;

use super::*;

fn given(name: &str, values: &[f64]) -> (String, (Tensor, Vec<f64>)) {
    let tensor = Tensor { shape: vec![1, values.len()], values: values.to_vec() };
    (name.to_owned(), (tensor, vec![0.0; values.len()]))
}

/// `sigmoid(relu(x W + b) . y)` of three and two numbers.
fn graph() -> Graph {
    let mut graph = GraphWriter::new("test");
    graph.constant("w", &[3, 2], &[1.0, -1.0, 0.5, 2.0, -0.25, 1.0]);
    graph.constant("b", &[2], &[0.125, -4.0]);
    graph.input("x", 3);
    graph.input("y", 2);
    graph.node("Gemm", &["x", "w", "b"], "h");
    graph.node("Relu", &["h"], "r");
    graph.node("Mul", &["r", "y"], "p");
    graph.row_sums("p", "s");
    graph.node("Sigmoid", &["s"], "out");
    graph.output("out", 1);
    onnx::read(&graph.into_file()).unwrap()
}

#[test]
fn a_graph_is_read_and_run_and_its_bound_holds_for_f32() {
    let (x, y) = ([1.0, 2.0, 3.0], [0.5, 0.25]);
    // x W + b = [1 + 1 - 0.75 + 0.125, -1 + 4 + 3 - 4] = [1.375, 2]; times y and added up: 1.1875.
    let inputs = BTreeMap::from([given("x", &x), given("y", &y)]);
    let Bounded { value, bound } = evaluate::run(&graph(), &inputs, "out").unwrap();
    assert!((value - 1.0 / (1.0 + (-1.1875f64).exp())).abs() < 1e-15, "{value}");
    assert!(bound > 1e-8 && bound < 2e-5, "{bound}");
    let in_f32 = 1.0f32 / (1.0 + (-1.1875f32).exp());
    assert!((f64::from(in_f32) - value).abs() <= bound);
    let other = BTreeMap::from([given("x", &[1.0, 2.0, 3.001]), given("y", &y)]);
    let moved = evaluate::run(&graph(), &other, "out").unwrap().value;
    assert!((moved - value).abs() > bound, "another input is no rounding: {moved} {value}");
}

#[test]
fn derivatives_are_those_of_finite_differences() {
    // What an error of an input does to the output, as the bound has it, is what moving that input does.
    let values = [1.0, 2.0, 3.0];
    for at in 0..3 {
        let step = 1e-4;
        let mut inputs = BTreeMap::from([given("x", &values), given("y", &[0.5, 0.25])]);
        let without = evaluate::run(&graph(), &inputs, "out").unwrap();
        inputs.get_mut("x").unwrap().1[at] = step;
        let with = evaluate::run(&graph(), &inputs, "out").unwrap();
        inputs.get_mut("x").unwrap().0.values[at] += step;
        let moved = evaluate::run(&graph(), &inputs, "out").unwrap();
        // Deviations of independent errors add up as squares do.
        let bound = (with.bound.powi(2) - without.bound.powi(2)).sqrt() / 8.0;
        let found = (moved.value - without.value).abs();
        assert!((bound - found).abs() < 2e-2 * found, "{at}: {bound} {found}");
    }
}

#[test]
fn pairs_and_gates_are_known() {
    let mut writer = GraphWriter::new("test");
    writer.input("x", 2);
    writer.input("y", 2);
    writer.concat(&["x", "y"], "flat");
    writer.reshape("flat", &[0, 2, 2], "stacked");
    writer.transpose("stacked", &[0, 2, 1], "turned");
    writer.node("MatMul", &["stacked", "turned"], "all");
    writer.reshape("all", &[0, 4], "listed");
    writer.gather_columns("listed", &[2], "pair");
    writer.node("Softmax", &["x"], "gates");
    writer.columns("gates", 1, 2, "gate");
    writer.node("Mul", &["pair", "gate"], "out");
    writer.output("out", 1);
    let graph = onnx::read(&writer.into_file()).unwrap();
    let inputs = BTreeMap::from([given("x", &[1.0, 3.0]), given("y", &[2.0, -1.0])]);
    let found = evaluate::run(&graph, &inputs, "out").unwrap();
    // The dot product of [1, 3] and [2, -1], weighed by the second of softmax([1, 3]).
    let right = -1.0 / (1.0 + (-2.0f64).exp());
    assert!((found.value - right).abs() < 1e-15 && found.bound < 2e-5, "{found:?}");
}

#[test]
fn what_is_cut_off_or_unknown_is_an_error() {
    let mut writer = GraphWriter::new("test");
    writer.input("x", 1);
    writer.node("Erf", &["x"], "out");
    let file = writer.into_file();
    assert!(onnx::read(&file[..file.len() - 1]).is_err());
    let inputs = BTreeMap::from([given("x", &[1.0])]);
    let problem = evaluate::run(&onnx::read(&file).unwrap(), &inputs, "out").unwrap_err();
    assert!(problem.contains("Erf"), "{problem}");
}
