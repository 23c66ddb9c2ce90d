//! Lays the trained ranker out as ONNX nodes: Add, Mul, Concat, Gemm, Relu and Sigmoid, nothing else.

use ndarray::Array2;
use tidepool_dense::GraphWriter;

use crate::{
    model::{
        ENTITY_DIM, FEATURE_AGE, FEATURE_GENDER, FEATURE_GENRES, FEATURE_ITEM, FEATURE_OCCUPATION,
        FEATURE_USER, GENRE_DIM, OCCUPATION_DIM, OUTPUT_PROBABILITY, TrainedModel,
    },
    net::Linear,
};

/// The bytes of the ONNX file.
pub(crate) fn ranker_graph(model: &TrainedModel) -> Vec<u8> {
    let mut graph = GraphWriter::new("ranker");
    let inputs = [
        (FEATURE_USER, ENTITY_DIM),
        (FEATURE_ITEM, ENTITY_DIM),
        (FEATURE_GENRES, GENRE_DIM),
        (FEATURE_OCCUPATION, OCCUPATION_DIM),
        (FEATURE_AGE, 1),
        (FEATURE_GENDER, 1),
    ];
    for (name, width) in inputs {
        graph.input(name, width);
    }
    graph.output(OUTPUT_PROBABILITY, 1);

    graph.constant("age.minus_mean", &[1], &[-model.age.mean]);
    graph.constant("age.inverse_deviation", &[1], &[model.age.inverse_deviation]);
    graph.node("Add", &[FEATURE_AGE, "age.minus_mean"], "age.centred");
    graph.node("Mul", &["age.centred", "age.inverse_deviation"], "age.scaled");
    graph.concat(
        &[FEATURE_USER, FEATURE_ITEM, FEATURE_GENRES, FEATURE_OCCUPATION, "age.scaled", FEATURE_GENDER],
        "x",
    );
    let mut current = String::from("x");
    for (at, layer) in model.net.cross.iter().enumerate() {
        let (gate, term, next) =
            (format!("cross.{at}.gate"), format!("cross.{at}.term"), format!("cross.{at}"));
        linear(&mut graph, layer, &current, &gate);
        graph.node("Mul", &["x", &gate], &term);
        graph.node("Add", &[&term, &current], &next);
        current = next;
    }
    for (at, layer) in model.net.hidden.iter().enumerate() {
        let (affine, next) = (format!("hidden.{at}.affine"), format!("hidden.{at}"));
        linear(&mut graph, layer, &current, &affine);
        graph.node("Relu", &[&affine], &next);
        current = next;
    }
    graph.node("Mul", &[FEATURE_USER, FEATURE_ITEM], "product");
    graph.concat(&[&current, "product"], "head.input");
    linear(&mut graph, &model.net.head, "head.input", "logit");
    graph.node("Sigmoid", &["logit"], OUTPUT_PROBABILITY);
    graph.into_file()
}

fn linear(graph: &mut GraphWriter, layer: &Linear, input: &str, output: &str) {
    let (weight, bias) = (format!("{output}.weight"), format!("{output}.bias"));
    let matrix: &Array2<f32> = &layer.weight.value;
    graph.constant(&weight, matrix.shape(), &matrix.iter().copied().collect::<Vec<_>>());
    let row = &layer.bias.value;
    graph.constant(&bias, &[row.len()], &row.iter().copied().collect::<Vec<_>>());
    graph.node("Gemm", &[input, &weight, &bias], output);
}
