//! Golden rows, the rules restated as an oracle, and the error that quantization costs.

use proptest::prelude::*;
use tidepool_types::RowFormat;

use crate::{QuantizeError, RowKernel};

fn quantized(format: RowFormat, values: &[f32]) -> Result<Vec<u8>, QuantizeError> {
    let kernel = RowKernel::new(format, values.len() as u32);
    let mut row = vec![0xa5; kernel.row_bytes()];
    kernel.quantize(values, &mut row).map(|()| row)
}

fn dequantized(format: RowFormat, row: &[u8], dim: usize) -> Vec<f32> {
    let mut out = vec![f32::NAN; dim];
    RowKernel::new(format, dim as u32).dequantize(row, &mut out);
    out
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|b| format!("{b:02x}")).collect::<Vec<_>>().join(" ")
}

const SPREAD: [f32; 8] = [-1.0, -0.5, 0.0, 0.25, 0.5, 1.0, 2.0, 3.0];

#[test]
fn golden_int4_rows() {
    let golden = |values: &[f32]| hex(&quantized(RowFormat::Int4, values).unwrap());
    assert_eq!(golden(&SPREAD), "20 54 86 fb 44 34 00 bc");
    assert_eq!(golden(&[0.0; 8]), "00 00 00 00 00 3c 00 00");
    assert_eq!(golden(&[0.1; 8]), "ff ff ff ff 1b 00 66 2e");
}

#[test]
fn golden_int8_rows() {
    let golden = |values: &[f32]| hex(&quantized(RowFormat::Int8, values).unwrap());
    assert_eq!(golden(&SPREAD), "00 20 40 50 60 80 bf ff 81 80 80 3c 00 00 80 bf");
    assert_eq!(golden(&[0.0; 8]), "00 00 00 00 00 00 00 00 00 00 00 00 00 00 00 00");
    assert_eq!(golden(&[0.1; 8]), "00 00 00 00 00 00 00 00 00 00 00 00 cd cc cc 3d");
}
