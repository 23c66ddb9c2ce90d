//! Golden rows, the rules restated as an oracle, and the error that quantization costs.

use proptest::prelude::*;
use tidepool_types::RowFormat;

use crate::{Isa, QuantizeError, Quantizer, RowKernel, testing::Random};

/// By the reference, after every other instruction set of this CPU has given the same: the same bytes, or
/// the same complaint about the same column.
pub(super) fn quantized_with(
    quantizer: Quantizer,
    format: RowFormat,
    values: &[f32],
) -> Result<Vec<u8>, QuantizeError> {
    let by = |isa| {
        let kernel = RowKernel::with_isa(format, values.len() as u32, isa).unwrap();
        let mut row = vec![0xa5; kernel.row_bytes()];
        kernel.quantize_with(quantizer, values, &mut row).map(|()| row)
    };
    let reference = by(Isa::Scalar);
    for isa in Isa::available() {
        // As text, in which a NaN equals itself.
        assert_eq!(format!("{:?}", by(isa)), format!("{reference:?}"), "{isa}, {format}, {values:?}");
    }
    reference
}

fn quantized(format: RowFormat, values: &[f32]) -> Result<Vec<u8>, QuantizeError> {
    quantized_with(Quantizer::MinMax, format, values)
}

pub(super) fn dequantized(format: RowFormat, row: &[u8], dim: usize) -> Vec<f32> {
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

#[test]
fn golden_f16_and_f32_rows() {
    // 1 + 2^-11 and 1 + 3 * 2^-11 lie halfway between two f16 numbers: both go to the even one.
    let halfway = [1.0 + 1.0 / 2048.0, 1.0 + 3.0 / 2048.0, -0.0, 65_504.0];
    assert_eq!(hex(&quantized(RowFormat::F16, &halfway).unwrap()), "00 3c 02 3c 00 80 ff 7b");
    assert_eq!(hex(&quantized(RowFormat::F32, &[1.0, -0.0]).unwrap()), "00 00 80 3f 00 00 00 80");
}

/// The nearest f16, halves to even, worked out exactly in f64.
fn oracle_f16(x: f32) -> u16 {
    let sign = if x.is_sign_negative() { 0x8000 } else { 0 };
    let magnitude = f64::from(x.abs());
    let exponent = (((magnitude.to_bits() >> 52) as i32) - 1023).max(-14);
    let steps = (magnitude * 2f64.powi(10 - exponent)).round_ties_even() as u32;
    // A subnormal has no leading one; a mantissa that rounds up to 2048 carries into the exponent.
    let bits = ((exponent + 14) as u32) * 1024 + steps;
    sign | bits.min(0x7c00) as u16
}

fn f16_value(bits: u16) -> f32 {
    half::f16::from_bits(bits).to_f32()
}

fn oracle_int4(row: &[f32]) -> Vec<u8> {
    let min = row.iter().copied().fold(f32::INFINITY, f32::min);
    let max = row.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let bias = oracle_f16(min);
    let range = max - f16_value(bias);
    let mut scale = oracle_f16(if range == 0.0 { 1.0 } else { range / 15.0 });
    if f16_value(scale) == 0.0 || (1.0 / f16_value(scale)).is_infinite() {
        scale = oracle_f16(1.0);
    }
    let inverse = 1.0 / f16_value(scale);
    let mut bytes = vec![0u8; row.len().div_ceil(2)];
    for (i, x) in row.iter().enumerate() {
        let code = ((x - f16_value(bias)) * inverse).round_ties_even().clamp(0.0, 15.0);
        bytes[i / 2] |= (code as u8) << if i % 2 == 0 { 0 } else { 4 };
    }
    bytes.extend(scale.to_le_bytes());
    bytes.extend(bias.to_le_bytes());
    bytes
}

fn oracle_int8(row: &[f32]) -> Vec<u8> {
    let min = row.iter().copied().fold(f32::INFINITY, f32::min);
    let max = row.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let range = max - min;
    let mut bytes: Vec<u8> =
        row.iter().map(|x| ((x - min) * (255.0 / (range + 1e-8))).round_ties_even() as u8).collect();
    bytes.extend((range / 255.0).to_le_bytes());
    bytes.extend(min.to_le_bytes());
    bytes
}

/// Rows of many shapes: any spread around any offset, few distinct values, halves that tie.
fn any_row() -> impl Strategy<Value = Vec<f32>> {
    (1usize..200, any::<u64>(), -24i32..15, -24i32..15, 0u32..3).prop_map(
        |(dim, seed, spread, offset, shape)| {
            let mut random = Random::new(seed);
            let offset = if random.below(3) == 0 { 0.0 } else { 2f32.powi(offset) };
            let mut row: Vec<f32> = (0..dim)
                .map(|_| match shape {
                    0 => random.gaussian().mul_add(2f32.powi(spread), offset),
                    1 => (random.below(31) as f32 / 2.0).mul_add(2f32.powi(spread), -offset),
                    _ => offset,
                })
                .collect();
            // Which zero a row's minimum is, when it has both, is this crate's choice and not the rule's.
            for value in &mut row {
                *value += 0.0;
            }
            row
        },
    )
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    #[test]
    fn int4_rows_follow_the_rule_to_the_byte(row in any_row()) {
        if let Ok(stored) = quantized(RowFormat::Int4, &row) {
            prop_assert_eq!(hex(&stored), hex(&oracle_int4(&row)));
        } else {
            let bias = f16_value(oracle_f16(row.iter().copied().fold(f32::INFINITY, f32::min)));
            let max = row.iter().copied().fold(f32::NEG_INFINITY, f32::max);
            prop_assert!(bias.is_infinite() || oracle_f16((max - bias) / 15.0) & 0x7fff == 0x7c00);
        }
    }

    #[test]
    fn int8_rows_follow_the_rule_to_the_byte(row in any_row()) {
        prop_assert_eq!(hex(&quantized(RowFormat::Int8, &row).unwrap()), hex(&oracle_int8(&row)));
    }

    #[test]
    fn f16_elements_round_to_nearest_even(bits in any::<u32>()) {
        let value = f32::from_bits(bits);
        prop_assume!(value.is_finite());
        match quantized(RowFormat::F16, &[value]) {
            Ok(stored) => prop_assert_eq!(stored, oracle_f16(value).to_le_bytes()),
            Err(error) => {
                prop_assert_eq!(oracle_f16(value) & 0x7fff, 0x7c00);
                prop_assert_eq!(error, QuantizeError::OutOfRange { column: 0, value, format: RowFormat::F16 });
            }
        }
    }

    #[test]
    fn f32_rows_come_back_as_they_were(row in proptest::collection::vec(proptest::num::f32::NORMAL | proptest::num::f32::ZERO | proptest::num::f32::SUBNORMAL, 1..100)) {
        let back = dequantized(RowFormat::F32, &quantized(RowFormat::F32, &row).unwrap(), row.len());
        let bits = |v: &[f32]| v.iter().map(|x| x.to_bits()).collect::<Vec<_>>();
        prop_assert_eq!(bits(&back), bits(&row));
    }

    #[test]
    fn coded_values_are_within_half_a_step(dim in 1usize..200, seed in any::<u64>(), spread in -4i32..10) {
        let mut random = Random::new(seed);
        let row: Vec<f32> = (0..dim).map(|_| random.gaussian() * 2f32.powi(spread)).collect();
        for (format, levels, rounding) in [(RowFormat::Int4, 15.0, 2f32.powi(-11)), (RowFormat::Int8, 255.0, 2f32.powi(-20))] {
            let min = row.iter().copied().fold(f32::INFINITY, f32::min);
            let max = row.iter().copied().fold(f32::NEG_INFINITY, f32::max);
            // Half a step of the code, and what rounding the scale and the bias themselves costs.
            let bound = (max - min) / levels * 0.5 + (max - min + min.abs()) * rounding * 1.1;
            let stored = quantized(format, &row).unwrap();
            for (value, back) in row.iter().zip(dequantized(format, &stored, dim)) {
                prop_assert!((value - back).abs() <= bound, "{format}: {value} came back as {back}, bound {bound}");
            }
        }
    }
}

/// `||stored - original|| / ||original||` over Gaussian rows.
fn gaussian_relative_l2(format: RowFormat, dim: usize, rows: usize) -> f64 {
    let mut random = Random::new(7);
    let (mut error, mut norm) = (0.0, 0.0);
    for _ in 0..rows {
        let row: Vec<f32> = (0..dim).map(|_| random.gaussian()).collect();
        let back = dequantized(format, &quantized(format, &row).unwrap(), dim);
        for (value, back) in row.iter().zip(back) {
            error += f64::from(value - back).powi(2);
            norm += f64::from(*value).powi(2);
        }
    }
    (error / norm).sqrt()
}

#[test]
fn gaussian_rows_lose_what_is_known_of_these_formats() {
    let percent = |format, dim| 100.0 * gaussian_relative_l2(format, dim, 20_000);
    let close =
        |got: f64, want: f64, slack: f64| assert!((got - want).abs() <= slack, "{got} % instead of {want} %");
    close(percent(RowFormat::Int4, 32), 7.8, 0.1);
    close(percent(RowFormat::Int4, 64), 8.9, 0.1);
    close(percent(RowFormat::Int8, 32), 0.46, 0.01);
    close(percent(RowFormat::F16, 32), 0.02, 0.01);
}

#[test]
fn what_is_not_finite_is_refused_with_its_column() {
    for format in RowFormat::ALL {
        for value in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
            let mut row = [0.5; 40];
            (row[17], row[30]) = (value, value);
            match quantized(format, &row) {
                Err(QuantizeError::NotFinite { column: 17, value: named }) => {
                    assert_eq!(named.to_bits(), value.to_bits());
                }
                other => panic!("{format}, {value}: {other:?}"),
            }
        }
    }
}

#[test]
fn the_first_value_that_is_not_finite_is_found_in_every_column() {
    for format in RowFormat::ALL {
        for dim in [1, 2, 15, 16, 17, 31, 33, 64, 70] {
            for column in 0..dim {
                let mut row = vec![0.5; dim];
                (row[column], row[dim - 1]) = (f32::NAN, f32::NAN);
                let error = quantized(format, &row).unwrap_err();
                assert!(
                    matches!(error, QuantizeError::NotFinite { column: named, .. } if named == column),
                    "{format}, dim {dim}, column {column}: {error:?}"
                );
            }
        }
    }
}

#[test]
fn the_first_zero_of_a_row_is_its_minimum() {
    for dim in [2, 7, 16, 40, 64] {
        for first in 0..dim {
            for (zero, other) in [(0.0f32, -0.0f32), (-0.0, 0.0)] {
                let mut row = vec![1.0; dim];
                row[first] = zero;
                row[first + 1..].fill(other);
                let int4 = quantized(RowFormat::Int4, &row).unwrap();
                assert_eq!(int4[int4.len() - 2..], half::f16::from_f32(zero).to_le_bytes());
                let int8 = quantized(RowFormat::Int8, &row).unwrap();
                assert_eq!(int8[dim + 4..], zero.to_le_bytes());
            }
        }
    }
    // Zeros only: the range is 0.0, not -0.0.
    let row = quantized(RowFormat::Int8, &[-0.0, 0.0, -0.0, 0.0]).unwrap();
    assert_eq!(hex(&row), "00 00 00 00 00 00 00 00 00 00 00 80");
}

#[test]
fn what_f16_cannot_hold_is_refused_with_its_column() {
    let refused = |format, row: &[f32]| match quantized(format, row) {
        Err(QuantizeError::OutOfRange { column, value, format: named }) => {
            assert_eq!((value, named), (row[column], format));
            Some(column)
        }
        Ok(_) => None,
        other => panic!("{other:?}"),
    };
    // 65,520 is halfway to what would be the next f16, and rounds to infinity.
    assert_eq!(refused(RowFormat::F16, &[1.0, 65_519.0, -65_520.0]), Some(2));
    assert_eq!(refused(RowFormat::F16, &[65_519.0, -65_519.0]), None);
    assert_eq!(refused(RowFormat::Int4, &[1.0, -65_520.0, 2.0]), Some(1), "the bias");
    assert_eq!(refused(RowFormat::Int4, &[65_520.0, 65_520.0]), Some(0), "the bias");
    assert_eq!(refused(RowFormat::Int4, &[0.0, 1.0, 15.0 * 65_520.0]), Some(2), "the scale");
    assert_eq!(refused(RowFormat::Int4, &[0.0, 15.0 * 65_519.0]), None);
    assert_eq!(refused(RowFormat::Int8, &[-3.0e38, 0.0, 3.3e38]), Some(2), "the range");
    assert_eq!(refused(RowFormat::Int8, &[f32::MAX, 0.0]), None);
    assert_eq!(refused(RowFormat::F32, &[f32::MAX, f32::MIN]), None);
}

#[test]
fn bytes_past_the_row_are_left_alone() {
    for format in RowFormat::ALL {
        let kernel = RowKernel::new(format, 6);
        let mut row = vec![0xa5; kernel.row_bytes() + 4];
        kernel.quantize(&[1.0, 2.0, 3.0, 4.0, 5.0, 6.0], &mut row).unwrap();
        assert_eq!(row[kernel.row_bytes()..], [0xa5; 4]);
    }
}

#[test]
#[should_panic(expected = "dimension 8")]
fn values_of_another_dimension_panic() {
    let _ = RowKernel::new(RowFormat::Int4, 8).quantize(&[0.0; 7], &mut [0; 8]);
}
