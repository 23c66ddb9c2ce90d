//! Files that are broken, by accident or on purpose: a typed error each, never a panic.

use std::path::Path;

use tidepool_dense::{DenseError, DenseModel};
use tract_onnx::pb::{StringStringEntryProto, tensor_proto::DataLocation};

use crate::{dims, load, logistic, logistic_spec, onnx::Graph, run};

fn error(graph: Graph) -> DenseError {
    load(&graph.bytes(), &logistic_spec()).unwrap_err()
}

#[test]
fn a_file_that_is_not_there_is_named() {
    let error = DenseModel::load(Path::new("/no/model.onnx"), &logistic_spec(), &dims).unwrap_err();
    assert!(matches!(&error, DenseError::Read { .. }), "{error:?}");
    assert!(error.to_string().contains("/no/model.onnx"));
}

#[test]
fn what_is_not_onnx_is_refused() {
    for bytes in [&b""[..], b"\x08", b"not a protobuf at all", &[0xff; 64], &[0x3a, 0xff, 0xff, 0xff, 0x0f]] {
        let error = load(bytes, &logistic_spec()).unwrap_err();
        assert!(matches!(error, DenseError::Syntax { .. }), "{error:?}");
    }
}

#[test]
fn every_truncation_and_bit_flip_is_survived() {
    let whole = logistic().bytes();
    let mut refused = 0;
    for len in 0..whole.len() {
        refused += usize::from(load(&whole[..len], &logistic_spec()).is_err());
    }
    assert_eq!(refused, whole.len(), "no part of the file can be spared");
    for at in 0..whole.len() {
        let mut flipped = whole.clone();
        flipped[at] ^= 1 << (at % 8);
        // A flipped weight or name of a node is a model all the same; the hash of the file tells it.
        if let Ok(model) = load(&flipped, &logistic_spec()) {
            let _ = run(&model, 2, &[vec![0.5; 4], vec![0.5; 2]]);
        }
    }
}

#[test]
fn a_tensor_in_another_file_is_named() {
    let mut graph = logistic();
    let weights = &mut graph.0.initializer[0];
    weights.data_location = Some(DataLocation::External as i32);
    weights.external_data =
        vec![StringStringEntryProto { key: "location".into(), value: "/etc/hostname".into() }];
    let error = error(graph);
    assert!(matches!(&error, DenseError::ExternalData { tensor, .. } if tensor == "w"), "{error:?}");
}

#[test]
fn a_tensor_that_claims_more_than_it_holds_is_refused() {
    for shape in [vec![i64::MAX, 2], vec![1 << 40], vec![-1, 3], vec![4, 4]] {
        let mut graph = logistic();
        graph.0.initializer[0].dims = shape.clone();
        let error = error(graph);
        assert!(
            matches!(error, DenseError::Syntax { .. } | DenseError::Graph { .. }),
            "{shape:?}: {error:?}"
        );
    }
}

#[test]
fn an_endless_graph_is_refused() {
    let mut graph = logistic();
    let node = graph.0.node[2].clone();
    graph.0.node.resize(20_001, node);
    let error = error(graph);
    assert!(matches!(error, DenseError::TooLarge { what: "nodes", found: 20_001, .. }), "{error:?}");
}

#[test]
fn an_operator_that_is_not_known_is_named() {
    let mut graph = logistic();
    graph.0.node[2].op_type = "Divinate".into();
    let error = error(graph);
    assert!(matches!(error, DenseError::Graph { .. }), "{error:?}");
    assert!(error.to_string().contains("Divinate"), "{error}");
}

#[test]
fn shapes_that_do_not_fit_are_refused() {
    let mut graph = logistic();
    graph.0.initializer[0].dims = vec![1, 3];
    assert!(matches!(error(graph), DenseError::Graph { .. } | DenseError::Panicked { .. }));
}

#[test]
fn a_graph_that_bites_its_tail_is_refused() {
    let mut graph = logistic();
    graph.0.node[0].input = vec!["probability".into(), "age".into()];
    assert!(matches!(error(graph), DenseError::Graph { .. } | DenseError::Panicked { .. }));
}
