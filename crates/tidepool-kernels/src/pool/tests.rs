//! The same tests for every instruction set: each must give, to the bit, what the naive oracle gives.

use half::f16;
use proptest::prelude::*;
use tidepool_types::RowFormat;

use crate::{Isa, RowKernel, testing::Random};

/// What a row says at one column, by the rules of docs/table-format.md and nothing else.
fn oracle_value(format: RowFormat, dim: usize, row: &[u8], column: usize) -> f32 {
    let half_at = |at: usize| f16::from_bits(u16::from_le_bytes([row[at], row[at + 1]])).to_f32();
    let single_at = |at: usize| f32::from_le_bytes(row[at..at + 4].try_into().unwrap());
    match format {
        RowFormat::Int4 => {
            let byte = row[column / 2];
            let code = if column.is_multiple_of(2) { byte & 0x0f } else { byte >> 4 };
            let codes = dim / 2 + dim % 2;
            f32::from(code).mul_add(half_at(codes), half_at(codes + 2))
        }
        RowFormat::Int8 => f32::from(row[column]).mul_add(single_at(dim), single_at(dim + 4)),
        RowFormat::F16 => half_at(2 * column),
        RowFormat::F32 => single_at(4 * column),
    }
}

/// Column by column, row by row.
fn oracle_sum(format: RowFormat, rows: &[&[u8]], weights: Option<&[f32]>, start: &[f32]) -> Vec<f32> {
    let dim = start.len();
    let mut acc = start.to_vec();
    for (column, sum) in acc.iter_mut().enumerate() {
        for (at, row) in rows.iter().enumerate() {
            let value = oracle_value(format, dim, row, column);
            *sum = match weights {
                Some(weights) => weights[at].mul_add(value, *sum),
                None => *sum + value,
            };
        }
    }
    acc
}

/// Bits, with every NaN made the same one.
fn bits(values: &[f32]) -> Vec<u32> {
    values.iter().map(|v| if v.is_nan() { f32::NAN.to_bits() } else { v.to_bits() }).collect()
}

/// Stored rows of one format, each in an allocation of exactly its size plus `surplus`, so that a debug
/// build's checked loads see a read past the end.
struct Rows {
    bytes: Vec<Vec<u8>>,
    weights: Vec<f32>,
    start: Vec<f32>,
}

impl Rows {
    /// Rows that the quantizer wrote, of values over many magnitudes with zeros of both signs and
    /// subnormals among them.
    fn quantized(kernel: &RowKernel, count: usize, surplus: usize, random: &mut Random) -> Self {
        let dim = kernel.dim() as usize;
        let bytes = (0..count)
            .map(|_| {
                let magnitude = 2f32.powi(random.below(30) as i32 - 20);
                let values: Vec<f32> = (0..dim).map(|_| special_or(random, magnitude)).collect();
                let mut row = vec![0xee; kernel.row_bytes() + surplus];
                kernel.quantize(&values, &mut row).unwrap();
                row
            })
            .collect();
        Self::with_bytes(bytes, dim, random)
    }

    /// Rows of any bytes at all: infinities and NaN among scales, biases and elements.
    fn arbitrary(kernel: &RowKernel, count: usize, random: &mut Random) -> Self {
        let bytes =
            (0..count).map(|_| (0..kernel.row_bytes()).map(|_| random.next() as u8).collect()).collect();
        Self::with_bytes(bytes, kernel.dim() as usize, random)
    }

    fn with_bytes(bytes: Vec<Vec<u8>>, dim: usize, random: &mut Random) -> Self {
        let weights = bytes.iter().map(|_| special_or(random, 4.0)).collect();
        let start = (0..dim).map(|_| special_or(random, 1.0)).collect();
        Self { bytes, weights, start }
    }

    fn check(&self, kernel: &RowKernel) -> Result<(), TestCaseError> {
        let (format, dim) = (kernel.format(), kernel.dim() as usize);
        let rows: Vec<&[u8]> = self.bytes.iter().map(Vec::as_slice).collect();

        let mut acc = self.start.clone();
        // Whatever is asked for meanwhile, empty, short or too many, the sums are the same.
        let later: Vec<&[u8]> = rows.iter().chain(&[&[][..], &[1][..]]).rev().copied().collect();
        kernel.accumulate(&rows, &later, &mut acc);
        prop_assert_eq!(bits(&acc), bits(&oracle_sum(format, &rows, None, &self.start)));

        let mut acc = self.start.clone();
        kernel.accumulate_weighted(&rows, &self.weights, &later[later.len() / 2..], &mut acc);
        let expected = oracle_sum(format, &rows, Some(&self.weights), &self.start);
        prop_assert_eq!(bits(&acc), bits(&expected));

        for row in rows {
            let mut out = self.start.clone();
            kernel.dequantize(row, &mut out);
            let expected: Vec<f32> = (0..dim).map(|c| oracle_value(format, dim, row, c)).collect();
            prop_assert_eq!(bits(&out), bits(&expected));
        }
        Ok(())
    }
}

/// Mostly a number of the given magnitude, now and then one that arithmetic treats specially.
fn special_or(random: &mut Random, magnitude: f32) -> f32 {
    match random.below(16) {
        0 => -0.0,
        1 => 0.0,
        2 => f32::from_bits(random.next() as u32 & 0x807f_ffff),
        3 => 6.0e-8 * random.uniform(),
        _ => magnitude * (2.0 * random.uniform() - 1.0),
    }
}

fn any_dim() -> impl Strategy<Value = u32> {
    let specialised = proptest::sample::select(&[16u32, 32, 64, 128, 256][..]);
    prop_oneof![8 => 1u32..=300, 3 => specialised, 2 => (1u32..=64).prop_map(|n| 16 * n), 1 => 900u32..=1024]
}

macro_rules! same_tests_for_every_isa {
    ($($module:ident: $isa:expr;)*) => { $(
        mod $module {
            use super::*;

            /// Where this CPU lacks the instruction set, its tests say so and the best one stands in.
            fn kernel(format: RowFormat, dim: u32) -> RowKernel {
                RowKernel::with_isa(format, dim, $isa).unwrap_or_else(|| {
                    eprintln!("NOT TESTED: this CPU has no {}", $isa);
                    RowKernel::new(format, dim)
                })
            }

            proptest! {
                #[test]
                fn quantized_rows_give_the_oracles_bits(
                    format in proptest::sample::select(&RowFormat::ALL[..]),
                    dim in any_dim(), count in 0usize..30, surplus in 0usize..9, seed in any::<u64>(),
                ) {
                    let kernel = kernel(format, dim);
                    Rows::quantized(&kernel, count, surplus, &mut Random::new(seed)).check(&kernel)?;
                }

                #[test]
                fn rows_of_any_bytes_give_the_oracles_bits(
                    format in proptest::sample::select(&RowFormat::ALL[..]),
                    dim in any_dim(), count in 0usize..5, seed in any::<u64>(),
                ) {
                    let kernel = kernel(format, dim);
                    Rows::arbitrary(&kernel, count, &mut Random::new(seed)).check(&kernel)?;
                }
            }

            #[test]
            fn every_code_of_every_lane_is_decoded() {
                for format in [RowFormat::Int4, RowFormat::Int8] {
                    let kernel = kernel(format, 64);
                    for code in 0..=u8::MAX {
                        let mut row = vec![code; kernel.row_bytes()];
                        for (lane, byte) in row.iter_mut().enumerate() {
                            *byte = byte.wrapping_add((17 * lane) as u8);
                        }
                        let tail = row.len() - if format == RowFormat::Int4 { 4 } else { 8 };
                        let scale_bias: &[u8] = if format == RowFormat::Int4 {
                            &[0x00, 0x3c, 0x00, 0xc8]
                        } else {
                            &[0, 0, 0x80, 0x3f, 0, 0, 0, 0xc1]
                        };
                        row[tail..].copy_from_slice(scale_bias);
                        Rows::with_bytes(vec![row], 64, &mut Random::new(0)).check(&kernel).unwrap();
                    }
                }
            }

            #[test]
            fn no_rows_leave_the_sum_as_it_was() {
                for format in RowFormat::ALL {
                    let mut acc = [-0.0f32; 48];
                    kernel(format, 48).accumulate(&[], &[], &mut acc);
                    kernel(format, 48).accumulate_weighted(&[], &[], &[], &mut acc);
                    assert_eq!(bits(&acc), vec![(-0.0f32).to_bits(); 48]);
                }
            }

            #[test]
            #[should_panic(expected = "row 1 has 35 bytes, not 36")]
            fn a_short_row_panics() {
                kernel(RowFormat::Int4, 64).accumulate(&[&[0; 36], &[0; 35]], &[], &mut [0.0; 64]);
            }

            #[test]
            #[should_panic(expected = "rows of dimension 64")]
            fn a_short_sum_panics() {
                kernel(RowFormat::Int4, 64).accumulate(&[&[0; 36]], &[], &mut [0.0; 63]);
            }

            #[test]
            #[should_panic(expected = "one weight per row")]
            fn a_missing_weight_panics() {
                kernel(RowFormat::F32, 2).accumulate_weighted(&[&[0; 8], &[0; 8]], &[1.0], &[], &mut [0.0; 2]);
            }

            #[test]
            #[should_panic(expected = "row 0 has 7 bytes, not 8")]
            fn dequantizing_a_short_row_panics() {
                kernel(RowFormat::F32, 2).dequantize(&[0; 7], &mut [0.0; 2]);
            }
        }
    )* };
}

same_tests_for_every_isa! {
    scalar: Isa::Scalar;
}
#[cfg(target_arch = "x86_64")]
same_tests_for_every_isa! {
    avx2: Isa::Avx2;
    avx512: Isa::Avx512;
}
