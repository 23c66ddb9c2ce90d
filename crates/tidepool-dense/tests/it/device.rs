//! What becomes of models on a GPU, as far as it shows without one: kernels' text and steps. The rest is in `tests/gpu`.

use tidepool_dense::{CudaDevice, CudaError, CudaModel, Device, Precision};

use crate::{models, oracle::Case};

fn steps(graph: crate::onnx::Graph, precision: Precision) -> Vec<String> {
    CudaModel::steps(&Case::new(graph).model, precision)
}

fn count(steps: &[String], part: &str) -> usize {
    steps.iter().filter(|step| step.contains(part)).count()
}

#[test]
fn the_same_model_has_the_same_text() {
    for (name, graph) in models::all() {
        let bytes = graph.0.clone();
        let again = crate::onnx::Graph(bytes);
        let [first, second] = [graph, again].map(|g| CudaModel::source(&Case::new(g).model, Precision::F32));
        assert_eq!(first, second, "{name}");
        // Numbers are written by their bits, and nothing is included.
        assert!(!first.contains("#include"), "{name}");
        if let Ok(folder) = std::env::var("TIDEPOOL_CU_DIR") {
            std::fs::write(format!("{folder}/{name}.cu"), first).unwrap();
        }
    }
}

#[test]
fn experts_are_one_product_with_its_bias_and_relu() {
    let steps = steps(models::dcn_mmoe(), Precision::F32);
    assert_eq!(count(&steps, "row make_e.m: matmul of 1 x [27, 60], bias, relu"), 1, "{steps:#?}");
    assert_eq!(count(&steps, "[12, 1], bias"), 2, "{steps:#?}");
    assert_eq!(count(&steps, "products, "), 0, "{steps:#?}");
    // The user's part of the first cross is computed for requests.
    assert_eq!(count(&steps, "request make_c1.m"), 1, "{steps:#?}");
}

#[test]
fn the_parts_of_a_concatenation_are_one_launch() {
    let steps = steps(models::dcn_mmoe(), Precision::F32);
    assert_eq!(count(&steps, "make_x0: tp_map"), 1, "{steps:#?}");
    assert_eq!(count(&steps, "of 27"), 3, "{steps:#?}");
}

#[test]
fn nothing_is_packed_that_can_be_read_as_it_lies() {
    for (name, graph) in [("two_tower", models::two_tower()), ("dcn_mmoe", models::dcn_mmoe())] {
        let steps = steps(graph, Precision::F32);
        assert_eq!(count(&steps, "pack of"), 0, "{name} {steps:#?}");
    }
}

#[test]
fn what_several_products_read_is_rounded_to_bf16_once() {
    let steps = steps(models::dcn_mmoe(), Precision::Bf16);
    // x2 is read by a gate and then by the experts.
    assert_eq!(count(&steps, "make_ctr.gm: pack of 1 x 27"), 1, "{steps:#?}");
    assert_eq!(count(&steps, "make_e.m: pack of"), 0, "{steps:#?}");
    assert_eq!(count(&steps, "make_e.m: matmul"), 1, "{steps:#?}");
}

#[test]
fn a_device_that_is_not_there_is_told_and_never_replaced() {
    assert_eq!("cuda:1023".parse(), Ok(Device::Cuda(1023)));
    let error = CudaDevice::open(1023).unwrap_err();
    let told = match &error {
        CudaError::LibraryMissing { searched, .. } => !searched.is_empty(),
        CudaError::NoDevice { ordinal, .. } => *ordinal == 1023,
        CudaError::DriverTooOld { .. } | CudaError::SymbolMissing { .. } | CudaError::Driver { .. } => true,
        _ => false,
    };
    assert!(told, "{error}");
}
