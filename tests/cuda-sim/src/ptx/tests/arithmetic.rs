//! Integer, bit and floating-point arithmetic, instruction by instruction, against Rust.

use half::{bf16, f16};

use super::*;

const WORDS: [u32; 12] = [
    0,
    1,
    2,
    7,
    31,
    0x7fff_ffff,
    0x8000_0000,
    0x8000_0001,
    0xffff_ffff,
    0x1234_5678,
    0xdead_beef,
    0xffff_0001,
];
const LONGS: [u64; 8] = [
    0,
    1,
    63,
    0x7fff_ffff_ffff_ffff,
    0x8000_0000_0000_0000,
    u64::MAX,
    0x1234_5678_9abc_def0,
    0xffff_ffff_0000_0001,
];

fn words(opcode: &str, f: impl Fn(u32, u32) -> u32) {
    for a in WORDS {
        for b in WORDS {
            let found =
                value(&format!("{opcode} %r1, %r2, %r3;"), "%r1", &[("%r2", a.into()), ("%r3", b.into())]);
            assert_eq!(found, u64::from(f(a, b)), "{opcode} of {a:#x} and {b:#x}");
        }
    }
}

fn longs(opcode: &str, f: impl Fn(u64, u64) -> u64) {
    for a in LONGS {
        for b in LONGS {
            let found = value(&format!("{opcode} %d1, %d2, %d3;"), "%d1", &[("%d2", a), ("%d3", b)]);
            assert_eq!(found, f(a, b), "{opcode} of {a:#x} and {b:#x}");
        }
    }
}

fn shorts(opcode: &str, f: impl Fn(u16, u16) -> u16) {
    for a in WORDS.map(|w| w as u16) {
        for b in WORDS.map(|w| w as u16) {
            let found =
                value(&format!("{opcode} %h1, %h2, %h3;"), "%h1", &[("%h2", a.into()), ("%h3", b.into())]);
            assert_eq!(found, u64::from(f(a, b)), "{opcode} of {a:#x} and {b:#x}");
        }
    }
}

#[test]
fn words_of_32_bits() {
    words("add.u32", u32::wrapping_add);
    words("sub.s32", u32::wrapping_sub);
    words("mul.lo.s32", u32::wrapping_mul);
    words("mul.hi.u32", |a, b| ((u64::from(a) * u64::from(b)) >> 32) as u32);
    words("mul.hi.s32", |a, b| ((i64::from(a as i32) * i64::from(b as i32)) >> 32) as u32);
    words("add.sat.s32", |a, b| (a as i32).saturating_add(b as i32) as u32);
    words("div.u32", |a, b| a.checked_div(b).unwrap_or(u32::MAX));
    words("div.s32", |a, b| if b == 0 { u32::MAX } else { (a as i32).wrapping_div(b as i32) as u32 });
    words("rem.s32", |a, b| if b == 0 { a } else { (a as i32).wrapping_rem(b as i32) as u32 });
    words("min.s32", |a, b| (a as i32).min(b as i32) as u32);
    words("max.u32", u32::max);
    words("and.b32", |a, b| a & b);
    words("xor.b32", |a, b| a ^ b);
    words("shl.b32", |a, n| a.checked_shl(n).unwrap_or(0));
    words("shr.u32", |a, n| a.checked_shr(n).unwrap_or(0));
    words("shr.s32", |a, n| ((a as i32) >> n.min(31)) as u32);
    words("mul24.lo.u32", |a, b| (a & 0xff_ffff).wrapping_mul(b & 0xff_ffff));
    words("max.s16x2", |a, b| {
        let half = |shift: u32| u32::from(((a >> shift) as i16).max((b >> shift) as i16) as u16) << shift;
        half(0) | half(16)
    });
}

#[test]
fn words_of_16_and_64_bits() {
    shorts("add.s16", u16::wrapping_add);
    shorts("mul.lo.u16", u16::wrapping_mul);
    shorts("mul.hi.s16", |a, b| ((i32::from(a as i16) * i32::from(b as i16)) >> 16) as u16);
    shorts("div.s16", |a, b| if b == 0 { u16::MAX } else { (a as i16).wrapping_div(b as i16) as u16 });
    shorts("min.s16", |a, b| (a as i16).min(b as i16) as u16);
    longs("add.s64", u64::wrapping_add);
    longs("mul.lo.s64", u64::wrapping_mul);
    longs("mul.hi.u64", |a, b| ((u128::from(a) * u128::from(b)) >> 64) as u64);
    longs("mul.hi.s64", |a, b| ((i128::from(a as i64) * i128::from(b as i64)) >> 64) as u64);
    longs("div.s64", |a, b| if b == 0 { u64::MAX } else { (a as i64).wrapping_div(b as i64) as u64 });
    longs("rem.u64", |a, b| a.checked_rem(b).unwrap_or(a));
    longs("max.s64", |a, b| (a as i64).max(b as i64) as u64);
    longs("or.b64", |a, b| a | b);
    for a in LONGS {
        let one = |body: &str, result| value(body, result, &[("%d2", a)]);
        assert_eq!(one("popc.b64 %r1, %d2;", "%r1"), a.count_ones().into());
        assert_eq!(one("clz.b64 %r1, %d2;", "%r1"), a.leading_zeros().into());
        assert_eq!(one("brev.b64 %d1, %d2;", "%d1"), a.reverse_bits());
        assert_eq!(one("neg.s64 %d1, %d2;", "%d1"), a.wrapping_neg());
        assert_eq!(one("abs.s64 %d1, %d2;", "%d1"), (a as i64).wrapping_abs() as u64);
        assert_eq!(one("not.b64 %d1, %d2;", "%d1"), !a);
        assert_eq!(one("shl.b64 %d1, %d2, 64;", "%d1"), 0);
        assert_eq!(one("shr.s64 %d1, %d2, 200;", "%d1"), ((a as i64) >> 63) as u64);
        assert_eq!(one("mad.lo.s64 %d1, %d2, %d2, -1;", "%d1"), a.wrapping_mul(a).wrapping_sub(1));
    }
}

#[test]
fn products_of_twice_the_width() {
    for a in WORDS {
        for b in WORDS {
            let three =
                |body: &str| value(body, "%d1", &[("%r2", a.into()), ("%r3", b.into()), ("%d2", u64::MAX)]);
            let (x, y) = (i64::from(a as i32), i64::from(b as i32));
            assert_eq!(three("mul.wide.u32 %d1, %r2, %r3;"), u64::from(a) * u64::from(b));
            assert_eq!(three("mul.wide.s32 %d1, %r2, %r3;"), (x * y) as u64);
            assert_eq!(three("mad.wide.s32 %d1, %r2, %r3, %d2;"), (x * y - 1) as u64);
            let whole = (u128::from(a) << 64 | u128::from(b)) * 3 + 5;
            let carry =
                "cvt.u64.u32 %d3, %r2; cvt.u64.u32 %d4, %r3; mul.lo.u64 %d5, %d4, 3; mul.hi.u64 %d6, %d4, 3;
                mad.lo.u64 %d6, %d3, 3, %d6; add.cc.u64 %d5, %d5, 5; addc.u64 %d1, %d6, 0;";
            assert_eq!(three(carry), (whole >> 64) as u64);
            let borrow =
                "cvt.u64.u32 %d3, %r2; cvt.u64.u32 %d4, %r3; sub.cc.u64 %d5, %d3, %d4; subc.u64 %d1, 0, 0;";
            assert_eq!(three(borrow), if a < b { u64::MAX } else { 0 });
        }
    }
    let chain = "mad.lo.cc.u32 %r4, %r2, %r3, %r2; madc.hi.u32 %r1, %r2, %r3, 0;";
    for (a, b) in [(0xffff_ffff_u32, 0xffff_ffff_u32), (0x8000_0000, 2), (5, 7)] {
        let wanted = (u64::from(a) * u64::from(b) + u64::from(a)) >> 32;
        assert_eq!(value(chain, "%r1", &[("%r2", a.into()), ("%r3", b.into())]), wanted);
    }
}

#[test]
fn bit_fields_and_bytes() {
    for a in WORDS {
        let of = |body: &str| value(body, "%r1", &[("%r2", a.into()), ("%r3", 0x0fed_cba9)]) as u32;
        for (at, n) in [(0_u32, 0_u32), (0, 32), (4, 8), (28, 8), (31, 1), (40, 4), (0, 255)] {
            let taken = n.min(32_u32.saturating_sub(at));
            let mask = if taken == 32 { u32::MAX } else { (1 << taken) - 1 };
            let field = a.checked_shr(at).unwrap_or(0) & mask;
            assert_eq!(of(&format!("bfe.u32 %r1, %r2, {at}, {n};")), field, "{a:#x} {at} {n}");
            let sign = n > 0 && a >> (at + n - 1).min(31) & 1 == 1;
            let signed = if sign { field | !mask } else { field };
            assert_eq!(of(&format!("bfe.s32 %r1, %r2, {at}, {n};")), signed, "{a:#x} {at} {n}");
            let shifted = |x: u32| x.checked_shl(at).unwrap_or(0);
            let into = if at > 31 { 0x0fed_cba9 } else { 0x0fed_cba9 & !shifted(mask) | shifted(a & mask) };
            assert_eq!(of(&format!("bfi.b32 %r1, %r2, %r3, {at}, {n};")), into, "{a:#x} {at} {n}");
        }
        let both = u64::from(a) << 32 | 0x0fed_cba9;
        let bytes = both.to_le_bytes();
        assert_eq!(
            of("prmt.b32 %r1, %r3, %r2, 0x7261;"),
            u32::from_le_bytes([bytes[1], bytes[6], bytes[2], bytes[7]])
        );
        let sign = if bytes[7] & 0x80 != 0 { 0xff } else { 0 };
        assert_eq!(
            of("prmt.b32 %r1, %r3, %r2, 0x321f;"),
            u32::from_le_bytes([sign, bytes[1], bytes[2], bytes[3]])
        );
        assert_eq!(of("shf.l.wrap.b32 %r1, %r3, %r2, 36;"), (both << 4 >> 32) as u32);
        assert_eq!(of("shf.r.clamp.b32 %r1, %r3, %r2, 36;"), a);
        assert_eq!(of("popc.b32 %r1, %r2;"), a.count_ones());
        assert_eq!(of("clz.b32 %r1, %r2;"), a.leading_zeros());
        assert_eq!(of("brev.b32 %r1, %r2;"), a.reverse_bits());
        assert_eq!(of("bfind.u32 %r1, %r2;"), 31_u32.wrapping_sub(a.leading_zeros()));
        assert_eq!(of("bfind.shiftamt.u32 %r1, %r2;"), if a == 0 { u32::MAX } else { a.leading_zeros() });
        let flipped = if (a as i32) < 0 { !a } else { a };
        assert_eq!(of("bfind.s32 %r1, %r2;"), 31_u32.wrapping_sub(flipped.leading_zeros()));
        assert_eq!(of("lop3.b32 %r1, %r2, %r3, 0xff00ff00, 0xe2;"), {
            let (b, c) = (0x0fed_cba9_u32, 0xff00_ff00_u32);
            (0..32).fold(0, |r, i| {
                let row = (a >> i & 1) << 2 | (b >> i & 1) << 1 | c >> i & 1;
                r | (0xe2 >> row & 1) << i
            })
        });
        assert_eq!(of("sad.s32 %r1, %r2, %r3, 1;"), (a as i32).abs_diff(0x0fed_cba9).wrapping_add(1));
        let dot: i32 = a
            .to_le_bytes()
            .iter()
            .zip(0x0fed_cba9_u32.to_le_bytes())
            .map(|(x, y)| i32::from(*x as i8) * i32::from(y as i8))
            .sum();
        assert_eq!(of("dp4a.s32.s32 %r1, %r2, %r3, 10;"), (dot + 10) as u32);
    }
}

const SINGLES: [f32; 16] = [
    0.0,
    -0.0,
    1.0,
    -1.5,
    0.1,
    3.402_823_4e38,
    -3.0e38,
    1.0e-40,
    -1.0e-40,
    1.175_494_4e-38,
    f32::INFINITY,
    f32::NEG_INFINITY,
    f32::NAN,
    16_777_217.0,
    1.000_000_1,
    7.5e-8,
];

/// Bits as a device has them: one NaN, and subnormals flushed where asked.
fn bits(value: f32, flush: bool) -> u64 {
    let value = if flush && value.is_subnormal() { 0.0_f32.copysign(value) } else { value };
    u64::from(if value.is_nan() { 0x7fff_ffff } else { value.to_bits() })
}

fn singles(opcode: &str, f: impl Fn(f32, f32) -> f32) {
    let flush = opcode.contains("ftz");
    let read = |v: f32| f32::from_bits(bits(v, flush) as u32);
    for a in SINGLES {
        for b in SINGLES {
            let inputs = [("%f2", a.to_bits().into()), ("%f3", b.to_bits().into())];
            let found = value(&format!("{opcode} %f1, %f2, %f3;"), "%f1", &inputs);
            assert_eq!(found, bits(f(read(a), read(b)), flush), "{opcode} of {a:e} and {b:e}");
        }
    }
}

#[test]
fn sums_products_and_quotients_of_f32() {
    for suffix in ["f32", "ftz.f32", "rn.f32", "rn.ftz.f32"] {
        singles(&format!("add.{suffix}"), |a, b| a + b);
        singles(&format!("sub.{suffix}"), |a, b| a - b);
        singles(&format!("mul.{suffix}"), |a, b| a * b);
    }
    singles("div.rn.f32", |a, b| a / b);
    singles("div.approx.ftz.f32", |a, b| a / b);
    singles("div.full.f32", |a, b| a / b);
    singles("add.sat.f32", |a, b| if a + b > 0.0 { (a + b).min(1.0) } else { 0.0 });
    singles("min.f32", |a, b| match (a.is_nan(), b.is_nan()) {
        (true, _) => b,
        (_, true) => a,
        _ if a == 0.0 && b == 0.0 => {
            if a.is_sign_negative() {
                a
            } else {
                b
            }
        }
        _ => a.min(b),
    });
    singles("max.ftz.f32", |a, b| match (a.is_nan(), b.is_nan()) {
        (true, _) => b,
        (_, true) => a,
        _ if a == 0.0 && b == 0.0 => {
            if a.is_sign_positive() {
                a
            } else {
                b
            }
        }
        _ => a.max(b),
    });
    singles("max.NaN.f32", |a, b| {
        if a.is_nan() || b.is_nan() {
            f32::NAN
        } else if a == 0.0 && b == 0.0 {
            if a.is_sign_positive() { a } else { b }
        } else {
            a.max(b)
        }
    });
    let sign = value("copysign.f32 %f1, %f2, 0f40000000;", "%f1", &[("%f2", (-0.0_f32).to_bits().into())]);
    assert_eq!(f32::from_bits(sign as u32), -2.0);
}

#[test]
fn directed_rounding_encloses_the_exact_result() {
    let at = |opcode: &str, a: f32, b: f32| {
        let inputs = [("%f2", a.to_bits().into()), ("%f3", b.to_bits().into())];
        f32::from_bits(value(&format!("{opcode} %f1, %f2, %f3;"), "%f1", &inputs) as u32)
    };
    for (a, b) in [(1.0_f32, 1e-9), (-1.0, 1e-9), (0.1, 0.3), (-0.7, 3.3), (1.0, 3.0), (16_777_216.0, 1.0)] {
        for operation in ["add", "mul", "div"] {
            let [nearest, zero, down, up] =
                ["rn", "rz", "rm", "rp"].map(|mode| at(&format!("{operation}.{mode}.f32"), a, b));
            assert!(down <= nearest && nearest <= up, "{operation} {a} {b}");
            assert_eq!(zero, if nearest > 0.0 || (nearest == 0.0 && up > 0.0) { down } else { up });
            assert!(down == up || down.next_up() == up, "{operation} {a} {b}: {down:e} {up:e}");
        }
    }
    assert_eq!(at("add.rm.f32", 1.0, -1.0).to_bits(), (-0.0_f32).to_bits());
    assert_eq!(at("add.rn.f32", 1.0, -1.0).to_bits(), 0);
}

#[test]
fn fused_products_are_rounded_once() {
    for a in SINGLES {
        for b in SINGLES {
            for c in [0.0, -1.0, 1e-40, 0.25, f32::MAX] {
                let inputs =
                    [("%f2", a.to_bits().into()), ("%f3", b.to_bits().into()), ("%f4", c.to_bits().into())];
                let found = value("fma.rn.f32 %f1, %f2, %f3, %f4;", "%f1", &inputs);
                assert_eq!(found, bits(a.mul_add(b, c), false), "{a:e} * {b:e} + {c:e}");
            }
        }
    }
    // 1 + 2^-12 squared is 1 + 2^-11 + 2^-24: only a fused product keeps the last part.
    let a = 1.0 + 2.0_f32.powi(-12);
    let inputs = [("%f2", a.to_bits().into()), ("%f4", (-1.0 - 2.0_f32.powi(-11)).to_bits().into())];
    let found = value("fma.rn.f32 %f1, %f2, %f2, %f4;", "%f1", &inputs);
    assert_eq!(f32::from_bits(found as u32), 2.0_f32.powi(-24));
    let down = value("fma.rm.f32 %f1, %f2, %f2, 0f00000000;", "%f1", &inputs);
    let up = value("fma.rp.f32 %f1, %f2, %f2, 0f00000000;", "%f1", &inputs);
    assert_eq!(down + 1, up);
}

#[test]
fn functions_of_one_f32() {
    type Function = fn(f64) -> f64;
    let functions: [(&str, Function); 8] = [
        ("rcp.approx", |x| 1.0 / x),
        ("sqrt.approx", f64::sqrt),
        ("rsqrt.approx", |x| 1.0 / x.sqrt()),
        ("ex2.approx", f64::exp2),
        ("lg2.approx", f64::log2),
        ("sin.approx", f64::sin),
        ("cos.approx", f64::cos),
        ("sqrt.rn", f64::sqrt),
    ];
    for x in SINGLES {
        let one = |opcode: &str| value(&format!("{opcode} %f1, %f2;"), "%f1", &[("%f2", x.to_bits().into())]);
        for (opcode, f) in functions {
            assert_eq!(
                one(&format!("{opcode}.f32")),
                bits(f(f64::from(x)) as f32, false),
                "{opcode} of {x:e}"
            );
            let flushed = f32::from_bits(bits(x, true) as u32);
            assert_eq!(
                one(&format!("{opcode}.ftz.f32")),
                bits(f(f64::from(flushed)) as f32, true),
                "{opcode} of {x:e}"
            );
        }
        assert_eq!(one("tanh.approx.f32"), bits(f64::from(x).tanh() as f32, false));
        assert_eq!(one("rcp.rn.f32"), bits(1.0 / x, false));
        assert_eq!(one("neg.f32"), u64::from(x.to_bits() ^ 0x8000_0000));
        assert_eq!(one("abs.f32"), u64::from(x.to_bits() & 0x7fff_ffff));
        let [down, up] = [one("sqrt.rm.f32"), one("sqrt.rp.f32")].map(|b| f32::from_bits(b as u32));
        if x > 0.0 && x.is_finite() {
            let root = f64::from(x).sqrt();
            assert!(f64::from(down) <= root && root <= f64::from(up));
        }
    }
}

#[test]
fn arithmetic_of_f64() {
    for a in SINGLES.map(|v| f64::from(v) * 1.1) {
        for b in SINGLES.map(f64::from) {
            let inputs = [("%fd2", a.to_bits()), ("%fd3", b.to_bits())];
            let of =
                |body: &str| f64::from_bits(value(&format!("{body} %fd1, %fd2, %fd3;"), "%fd1", &inputs));
            let same = |found: f64, wanted: f64| {
                found.to_bits() == wanted.to_bits() || (found.is_nan() && wanted.is_nan())
            };
            assert!(same(of("add.f64"), a + b) && same(of("sub.rn.f64"), a - b), "{a:e} {b:e}");
            assert!(same(of("mul.f64"), a * b) && same(of("div.rn.f64"), a / b), "{a:e} {b:e}");
            let (down, up) = (of("add.rm.f64"), of("add.rp.f64"));
            assert!((down <= a + b && a + b <= up) || (a + b).is_nan(), "{a:e} {b:e}");
            let fused = value("fma.rn.f64 %fd1, %fd2, %fd3, %fd2;", "%fd1", &inputs);
            assert!(same(f64::from_bits(fused), a.mul_add(b, a)));
        }
    }
    let root = value("sqrt.rn.f64 %fd1, %fd2;", "%fd1", &[("%fd2", 2.0_f64.to_bits())]);
    assert_eq!(f64::from_bits(root), 2.0_f64.sqrt());
    let rough = value("rcp.approx.ftz.f64 %fd1, %fd2;", "%fd1", &[("%fd2", 3.0_f64.to_bits())]);
    assert!((f64::from_bits(rough) - 1.0 / 3.0).abs() < 1e-6 && rough & 0xffff_ffff == 0);
}

#[test]
fn arithmetic_of_f16_and_bfloat16() {
    let halves: Vec<f16> =
        [0.0, -0.0, 1.0, 0.1, -2.5, 65504.0, 6e-8, 1e-4, f32::INFINITY, f32::NAN].map(f16::from_f32).to_vec();
    for &a in &halves {
        for &b in &halves {
            let wanted = |v: f32| if v.is_nan() { 0x7fff } else { u64::from(f16::from_f32(v).to_bits()) };
            let inputs = [("%h2", a.to_bits().into()), ("%h3", b.to_bits().into())];
            // In f32 sums and products of f16 are exact, or rounded harmlessly.
            assert_eq!(
                value("add.f16 %h1, %h2, %h3;", "%h1", &inputs),
                wanted(a.to_f32() + b.to_f32()),
                "{a} + {b}"
            );
            assert_eq!(
                value("mul.rn.f16 %h1, %h2, %h3;", "%h1", &inputs),
                wanted(a.to_f32() * b.to_f32()),
                "{a} * {b}"
            );
            let pair = |x: f16| u64::from(x.to_bits()) << 16 | u64::from(a.to_bits());
            let both = [("%r2", pair(a)), ("%r3", pair(b))];
            let sum = wanted(a.to_f32() - b.to_f32()) << 16 | wanted(a.to_f32() - a.to_f32());
            assert_eq!(value("sub.f16x2 %r1, %r2, %r3;", "%r1", &both), sum);
        }
    }
    let relu = value("fma.rn.relu.f16 %h1, %h2, %h2, %h3;", "%h1", &[("%h2", 0x3c00), ("%h3", 0xc000)]);
    assert_eq!(relu, 0);
    for (x, y, z) in [(1.5_f32, -0.3, 0.7), (100.0, 3.0, -1e-3), (1e-20, 1e-20, 1.0)] {
        let [x, y, z] = [x, y, z].map(bf16::from_f32);
        let inputs = [("%h2", x.to_bits().into()), ("%h3", y.to_bits().into()), ("%h4", z.to_bits().into())];
        let exact = bf16::from_f64(x.to_f64() * y.to_f64() + z.to_f64());
        assert_eq!(value("fma.rn.bf16 %h1, %h2, %h3, %h4;", "%h1", &inputs), u64::from(exact.to_bits()));
        let larger = if x > y { x } else { y };
        assert_eq!(value("max.bf16 %h1, %h2, %h3;", "%h1", &inputs), u64::from(larger.to_bits()));
    }
}
