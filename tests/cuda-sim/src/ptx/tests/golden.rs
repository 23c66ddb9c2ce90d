//! Kernels as NVRTC compiles them (`data/*.cu`), against references written in Rust.

use half::{bf16, f16};

use super::*;

macro_rules! golden {
    ($name:literal) => {
        Bench::new(include_str!(concat!("../../../data/", $name, ".ptx")))
    };
}

/// Numbers without a pattern, the same in each run.
fn noise(seed: u32) -> impl FnMut() -> f32 {
    let mut state = seed;
    move || {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (state >> 8) as f32 / (1 << 23) as f32 - 1.0
    }
}

fn close(found: f32, wanted: f64, tolerance: f64) -> bool {
    let found = f64::from(found);
    (found - wanted).abs() <= tolerance * wanted.abs().max(1.0) || (found.is_nan() && wanted.is_nan())
}

#[test]
fn rows_of_four_bits_are_expanded_and_pooled() {
    let bench = golden!("pool_int4");
    let (dim, count, bags) = (32_usize, 50_usize, 20_usize);
    let stride = dim / 2 + 4;
    let mut next = noise(1);
    let mut rows = Vec::new();
    for _ in 0..count {
        rows.extend((0..dim / 2).map(|_| (next() * 1e6) as i32 as u8));
        let [scale, bias] = [next(), next()].map(f16::from_f32);
        rows.extend(scale.to_le_bytes().into_iter().chain(bias.to_le_bytes()));
    }
    let offsets: Vec<i32> = (0..=bags as i32).map(|b| b * (b + 1) / 2).collect();
    let members: Vec<u32> = (0..offsets[bags] as u32).map(|m| m * 7919 % count as u32).collect();
    let out = bench.device.empty(bags * dim * 4);
    let args: Vec<Arg> = vec![
        bench.device.put(&rows).into(),
        (stride as u32).into(),
        (dim as u32).into(),
        bench.device.put(&members).into(),
        bench.device.put(&offsets).into(),
        (bags as u32).into(),
        out.into(),
    ];
    bench.launch_with("pool_int4", [3, 1, 1], [32, 8, 1], 0, &args, DEFAULT_INSTRUCTION_LIMIT).unwrap();
    let found = bench.device.get::<f32>(out, bags * dim);
    for bag in 0..bags {
        for i in 0..dim {
            let mut sum = 0.0_f32;
            for m in offsets[bag]..offsets[bag + 1] {
                let row = &rows[members[m as usize] as usize * stride..][..stride];
                let code = f32::from(row[i / 2] >> (i % 2 * 4) & 15);
                let tail =
                    |at: usize| f16::from_le_bytes([row[dim / 2 + at], row[dim / 2 + at + 1]]).to_f32();
                // The compiler fuses product and bias, and adds the sum after.
                sum += code.mul_add(tail(0), tail(2));
            }
            assert_eq!(found[bag * dim + i].to_bits(), sum.to_bits(), "bag {bag}, element {i}");
        }
    }
}

#[test]
fn an_array_is_reduced_by_shuffles_barriers_and_atomics() {
    let bench = golden!("reduce");
    let mut next = noise(2);
    let values: Vec<f32> = (0..3000).map(|_| next()).collect();
    let total = bench.device.put(&[0.0_f32]);
    let args = [bench.device.put(&values).into(), 3000_u32.into(), total.into()];
    let counts = bench.launch("reduce", 3, 128, &args).unwrap();
    let wanted: f64 = values.iter().map(|&v| f64::from(v)).sum();
    assert!(close(bench.device.get::<f32>(total, 1)[0], wanted, 1e-5));
    assert_eq!((counts.barriers, counts.atomics), (3, 3));
}

#[test]
fn softmax_meets_at_barriers_in_a_branch() {
    let bench = golden!("softmax");
    let (width, lengths) = (40_usize, [40, 17, 1, 0]);
    let mut next = noise(3);
    let values: Vec<f32> = (0..width * 4).map(|_| next() * 10.0).collect();
    let out = bench.device.empty(width * 4 * 4);
    let args: Vec<Arg> = vec![
        bench.device.put(&values).into(),
        out.into(),
        bench.device.put(&lengths).into(),
        (width as u32).into(),
    ];
    let dynamic = width as u32 * 4;
    bench.launch_with("softmax", [4, 1, 1], [64, 1, 1], dynamic, &args, DEFAULT_INSTRUCTION_LIMIT).unwrap();
    let found = bench.device.get::<f32>(out, width * 4);
    for (row, &n) in lengths.iter().enumerate() {
        let n = n as usize;
        let exps: Vec<f64> = values[row * width..][..n].iter().map(|&v| f64::from(v).exp()).collect();
        let sum: f64 = exps.iter().sum();
        for i in 0..width {
            let wanted = exps.get(i).map_or(0.0, |e| e / sum);
            assert!(close(found[row * width + i], wanted, 1e-6), "row {row}, {i}");
        }
    }
}

#[test]
fn pairs_of_f16_travel_in_vectors_of_four() {
    let bench = golden!("half_axpy");
    let mut next = noise(4);
    let [x, y]: [Vec<f16>; 2] =
        std::array::from_fn(|_| (0..160).map(|_| f16::from_f32(next() * 20.0)).collect());
    let [x_at, y_at] =
        [&x, &y].map(|v| bench.device.put(&v.iter().map(|h| h.to_bits()).collect::<Vec<u16>>()));
    let a = 0.3_f32;
    let args = [Arg::Word(a.to_bits()), x_at.into(), y_at.into(), 20_u32.into()];
    bench.launch("half_axpy", 1, 32, &args).unwrap();
    let found = bench.device.get::<u16>(y_at, 160);
    for i in 0..160 {
        // Exact in f64: 22 bits of product, and exponents that are near each other.
        let exact = f16::from_f32(a).to_f64() * x[i].to_f64() + y[i].to_f64();
        let wanted = super::super::round::round(
            exact,
            0.0,
            super::super::round::F16,
            super::super::round::Mode::Nearest,
        );
        assert_eq!(u64::from(found[i]), wanted, "{i}");
    }
}

#[test]
fn bfloat16_goes_through_bias_and_relu() {
    let bench = golden!("bf16_relu");
    let mut next = noise(5);
    let values: Vec<bf16> = (0..100).map(|_| bf16::from_f32(next())).collect();
    let bias: Vec<f32> = (0..7).map(|_| next()).collect();
    let out = bench.device.empty(200);
    let bits: Vec<u16> = values.iter().map(|v| v.to_bits()).collect();
    let args: Vec<Arg> = vec![
        bench.device.put(&bits).into(),
        bench.device.put(&bias).into(),
        out.into(),
        100_u32.into(),
        7_u32.into(),
    ];
    bench.launch("bf16_relu", 2, 64, &args).unwrap();
    let wanted: Vec<u16> =
        (0..100).map(|i| bf16::from_f32((values[i].to_f32() + bias[i % 7]).max(0.0)).to_bits()).collect();
    assert_eq!(bench.device.get::<u16>(out, 100), wanted);
}

#[test]
fn matrices_are_multiplied_in_tiles() {
    let bench = golden!("gemm");
    let (m, n, k) = (35_usize, 20_usize, 50_usize);
    let mut next = noise(6);
    let a: Vec<f32> = (0..m * k).map(|_| next()).collect();
    let b: Vec<f32> = (0..k * n).map(|_| next()).collect();
    let out = bench.device.empty(m * n * 4);
    let [a_at, b_at] = [&a, &b].map(|v| bench.device.put(v));
    let args: Vec<Arg> =
        vec![a_at.into(), b_at.into(), out.into(), (m as u32).into(), (n as u32).into(), (k as u32).into()];
    bench.launch_with("gemm", [2, 3, 1], [16, 16, 1], 0, &args, DEFAULT_INSTRUCTION_LIMIT).unwrap();
    let found = bench.device.get::<f32>(out, m * n);
    for row in 0..m {
        for column in 0..n {
            let wanted = (0..k).fold(0.0_f32, |sum, i| a[row * k + i].mul_add(b[i * n + column], sum));
            assert_eq!(found[row * n + column].to_bits(), wanted.to_bits(), "{row}, {column}");
        }
    }
}

#[test]
fn keys_are_claimed_in_a_hash_table() {
    let bench = golden!("hash_insert");
    let ids: Vec<u64> = (0..300_u64).map(|i| i * i % 97).collect();
    let keys = bench.device.put(&[u64::MAX; 128]);
    let counts = bench.device.put(&[0_u32; 128]);
    let full = bench.device.put(&[0_u32]);
    let args: Vec<Arg> = vec![
        keys.into(),
        counts.into(),
        127_u32.into(),
        bench.device.put(&ids).into(),
        300_u32.into(),
        full.into(),
    ];
    bench.launch("hash_insert", 3, 128, &args).unwrap();
    let mut wanted = std::collections::BTreeMap::new();
    ids.iter().for_each(|id| *wanted.entry(*id).or_insert(0) += 1);
    let found = bench.device.get::<u64>(keys, 128).into_iter().zip(bench.device.get::<u32>(counts, 128));
    let found: std::collections::BTreeMap<u64, u32> = found.filter(|(key, _)| *key != u64::MAX).collect();
    assert_eq!(found, wanted);
    assert_eq!(bench.device.get::<u32>(full, 1), [0]);
}

#[test]
fn layer_norm_reads_constants_and_initialised_variables() {
    let bench = golden!("layer_norm");
    let (rows, width) = (5_usize, 64_usize);
    let mut next = noise(7);
    let values: Vec<f32> = (0..rows * width).map(|_| next() * 3.0 + 1.0).collect();
    let scale: Vec<f32> = (0..width).map(|i| 1.0 + i as f32 / 100.0).collect();
    let at = bench.module.globals().iter().position(|g| g.name == "scale").unwrap();
    assert!(bench.module.globals()[at].constant);
    bench
        .device
        .store(bench.globals[at], &scale.iter().flat_map(|v| v.to_le_bytes()).collect::<Vec<_>>())
        .unwrap();
    let out = bench.device.empty(rows * width * 4);
    let args: Vec<Arg> = vec![
        bench.device.put(&values).into(),
        out.into(),
        (rows as u32).into(),
        (width as u32).into(),
        Arg::Word(1e-5_f32.to_bits()),
    ];
    bench.launch("layer_norm", 2, 96, &args).unwrap();
    let found = bench.device.get::<f32>(out, rows * width);
    for row in 0..rows {
        let of = values[row * width..][..width].iter().map(|&v| f64::from(v));
        let mean = of.clone().sum::<f64>() / width as f64;
        let variance = of.map(|v| (v - mean) * (v - mean)).sum::<f64>() / width as f64;
        for i in 0..width {
            let shift = [0.5, -0.25].get(i).copied().unwrap_or(0.0);
            let normal = (f64::from(values[row * width + i]) - mean) / (variance + 1e-5).sqrt();
            assert!(close(found[row * width + i], normal * f64::from(scale[i]) + shift, 3e-6), "{row}, {i}");
        }
    }
}

#[test]
fn functions_are_called_directly_recursively_and_through_pointers() {
    let bench = golden!("calls");
    let mut pair = Vec::new();
    [1_i32, 2, 3].iter().for_each(|v| pair.extend(v.to_le_bytes()));
    pair.extend(1.5_f32.to_le_bytes());
    pair.extend(10.25_f64.to_le_bytes());
    let [whole, real] = [0; 2].map(|_| bench.device.empty(16));
    let args = [Arg::Bytes(pair), 2_u32.into(), 3_u32.into(), whole.into(), real.into()];
    bench.launch("calls", 1, 4, &args).unwrap();
    assert_eq!(bench.device.get::<i32>(whole, 4), [9; 4]);
    let wanted = [123.0, 231.0 + 1.0, 312.0 + 4.0, 123.0 + 9.0].map(|v| v + 3.0 + 13.25);
    assert_eq!(bench.device.get::<f32>(real, 4), wanted);
}

#[test]
fn a_switch_takes_every_way() {
    let bench = golden!("switch");
    let values: Vec<i32> = (0..220).map(|i| i * 37 + 5).collect();
    let out = bench.device.empty(880);
    let args: Vec<Arg> = vec![bench.device.put(&values).into(), out.into(), 220_u32.into()];
    bench.launch("many_ways", 4, 64, &args).unwrap();
    let wanted: Vec<i32> = (0..220_i32).map(|t| one_way(values[t as usize], t)).collect();
    assert_eq!(bench.device.get::<i32>(out, 220), wanted);
}

fn one_way(x: i32, t: i32) -> i32 {
    let mut stack: [i32; 8] = std::array::from_fn(|i| (i * i) as i32 + x);
    match x % 11 {
        0 => x / 7 + 1,
        1 => x % 13 - 5,
        2 => x << (t & 7),
        3 => x >> 3,
        4 => (0..t).fold(x, |x, i| x.wrapping_mul(31).wrapping_add(i)),
        5 => (x.count_ones() + x.leading_zeros()) as i32,
        6 => stack[(x & 7) as usize],
        7 => {
            stack[(x & 7) as usize] = -x;
            stack[(t & 7) as usize]
        }
        8 => x.max(t) * x.min(40),
        9 => ((i64::from(x) * 0x1234_5678) >> 32) as i32 ^ x.reverse_bits(),
        _ => -x,
    }
}

/// erf by its series, in f64: enough for a test.
fn erf(x: f64) -> f64 {
    let (mut term, mut sum, mut n) = (x, x, 0.0);
    while f64::abs(term) > 1e-18 && n < 400.0 {
        n += 1.0;
        term *= -x * x / n;
        sum += term / (2.0 * n + 1.0);
    }
    (sum * 2.0 / std::f64::consts::PI.sqrt()).clamp(-1.0, 1.0)
}

#[test]
fn mathematical_functions_are_within_a_few_units() {
    let bench = golden!("math");
    let mut next = noise(8);
    let values: Vec<f32> = (0..200).map(|_| next() * 4.0).chain([0.0, -0.0, 1.0, 300.0, 1e-30]).collect();
    let n = values.len();
    let out = bench.device.empty(n * 48);
    let args: Vec<Arg> = vec![bench.device.put(&values).into(), out.into(), (n as u32).into()];
    bench.launch("math", 2, 128, &args).unwrap();
    let found = bench.device.get::<f32>(out, n * 12);
    for (i, &single) in values.iter().enumerate() {
        let x = f64::from(single);
        // The kernel rounds the arguments of these to f32 first.
        let sine = f64::from(single * 1000.0).sin();
        let small = f64::from(single.abs() + 1e-3);
        let wanted = [
            x.exp(),
            small.ln(),
            x.tanh(),
            erf(x.clamp(-5.0, 5.0)),
            sine,
            x.abs().powf(f64::from(1.7_f32)),
            1.0 / (1.0 + (-x).exp()),
            0.5 * x * (1.0 + erf((x * std::f64::consts::FRAC_1_SQRT_2).clamp(-5.0, 5.0))),
            x.abs().sqrt() + 1.0 / (x.abs() + 1.0).sqrt(),
            x.round_ties_even() + x.floor() + x.trunc(),
            x.abs().ln_1p() + x.exp2(),
            f64::from(single * 10.0) % 3.0,
        ];
        for (k, wanted) in wanted.into_iter().enumerate() {
            let value = found[i * 12 + k];
            let overflow = wanted > f64::from(f32::MAX) && value == f32::INFINITY;
            assert!(
                overflow || close(value, wanted, 2e-6),
                "function {k} of {x:e}: {value:e} for {wanted:e}"
            );
        }
    }
}

#[test]
fn functions_of_f64_are_within_a_few_units() {
    let bench = golden!("math");
    let mut next = noise(9);
    let values: Vec<f64> = (0..100).map(|_| f64::from(next()) * 5.0 + 1e-9).collect();
    let out = bench.device.empty(100 * 40);
    let args: Vec<Arg> = vec![bench.device.put(&values).into(), out.into(), 100_u32.into()];
    bench.launch("math_f64", 1, 128, &args).unwrap();
    let found = bench.device.get::<f64>(out, 500);
    for (i, &x) in values.iter().enumerate() {
        let wanted =
            [x.exp(), (x.abs() + 1e-3).ln(), x.tanh(), (x * 100.0).sin(), 1.0 / (x.abs() + 1.0).sqrt()];
        for (k, wanted) in wanted.into_iter().enumerate() {
            let value = found[i * 5 + k];
            assert!(
                (value - wanted).abs() <= 1e-15 * wanted.abs().max(1.0),
                "function {k} of {x:e}: {value:e}"
            );
        }
    }
}

#[test]
fn integers_are_divided_as_in_rust() {
    let bench = golden!("math");
    let mut next = noise(10);
    let whole =
        |next: &mut dyn FnMut() -> f32| (f64::from(next()) * 2.0_f64.powi((next() * 60.0) as i32)) as i64;
    let pairs: Vec<(i64, i64)> = (0..100).map(|_| (whole(&mut next), whole(&mut next) | 1)).collect();
    let [a, b] = [pairs.iter().map(|p| p.0).collect::<Vec<_>>(), pairs.iter().map(|p| p.1).collect()];
    let out = bench.device.empty(100 * 32);
    let args: Vec<Arg> =
        vec![bench.device.put(&a).into(), bench.device.put(&b).into(), out.into(), 100_u32.into()];
    bench.launch("divide", 1, 128, &args).unwrap();
    let found = bench.device.get::<i64>(out, 400);
    for (i, &(x, y)) in pairs.iter().enumerate() {
        let (u, v) = (x as u32, y as u32 | 1);
        let third = (x as u64 / 1_000_003).wrapping_add(u64::from(u / 7) + u64::from(u % v)) as i64;
        let high = ((i128::from(x) * i128::from(y)) >> 64) as i64;
        let fourth = high + i64::from(x as u16 / 7) + i64::from(x as i8);
        assert_eq!(found[i * 4..][..4], [x / y, x % y, third, fourth], "{x} and {y}");
    }
}
