//! `cvt`, comparisons, selection and moves.

use half::{bf16, f16};

use super::*;

const SINGLES: [f32; 18] = [
    0.0,
    -0.0,
    0.5,
    1.5,
    2.5,
    -0.5,
    -1.5,
    -2.7,
    255.4,
    256.0,
    3.0e9,
    -3.0e9,
    2.0e19,
    1e-40,
    f32::INFINITY,
    f32::NEG_INFINITY,
    f32::NAN,
    65519.0,
];

fn from_f32(opcode: &str, result: &str, x: f32) -> u64 {
    value(&format!("{opcode} {result}, %f2;"), result, &[("%f2", x.to_bits().into())])
}

#[test]
fn floats_become_integers_by_saturation() {
    for x in SINGLES {
        assert_eq!(from_f32("cvt.rzi.s32.f32", "%r1", x), u64::from(x as i32 as u32), "{x}");
        assert_eq!(from_f32("cvt.rzi.u32.f32", "%r1", x), u64::from(x as u32), "{x}");
        assert_eq!(
            from_f32("cvt.rni.s32.f32", "%r1", x),
            u64::from(x.round_ties_even() as i32 as u32),
            "{x}"
        );
        assert_eq!(from_f32("cvt.rmi.s32.f32", "%r1", x), u64::from(x.floor() as i32 as u32), "{x}");
        assert_eq!(from_f32("cvt.rpi.ftz.s32.f32", "%r1", x), {
            let x = if x.is_subnormal() { 0.0 } else { x };
            u64::from(x.ceil() as i32 as u32)
        });
        // What is no number becomes the top bit where 64 bits are involved.
        let long = if x.is_nan() { i64::MIN } else { x as i64 };
        assert_eq!(from_f32("cvt.rzi.s64.f32", "%d1", x), long as u64, "{x}");
        let long = if x.is_nan() { 1 << 63 } else { x as u64 };
        assert_eq!(from_f32("cvt.rzi.u64.f32", "%d1", x), long, "{x}");
        assert_eq!(from_f32("cvt.rzi.u8.f32", "%r1", x), u64::from(x as u8), "{x}");
        assert_eq!(from_f32("cvt.rzi.s16.f32", "%r1", x), u64::from(x as i16 as u32), "{x}");
        let from_double = value("cvt.rzi.s32.f64 %r1, %fd2;", "%r1", &[("%fd2", f64::from(x).to_bits())]);
        let whole = if x.is_nan() { i32::MIN } else { x as i32 };
        assert_eq!(from_double, u64::from(whole as u32), "{x}");
    }
}

#[test]
fn integers_become_floats_by_rounding() {
    for x in [0_i64, 1, -1, 16_777_217, -16_777_219, i64::MAX, i64::MIN, 0x7fff_ffff, 1 << 53 | 1, 70_000] {
        let of = |body: &str, result: &str| value(body, result, &[("%d2", x as u64), ("%r2", x as u64)]);
        assert_eq!(of("cvt.rn.f32.s64 %f1, %d2;", "%f1"), u64::from((x as f32).to_bits()), "{x}");
        assert_eq!(of("cvt.rn.f32.u64 %f1, %d2;", "%f1"), u64::from((x as u64 as f32).to_bits()), "{x}");
        assert_eq!(of("cvt.rn.f64.s64 %fd1, %d2;", "%fd1"), (x as f64).to_bits(), "{x}");
        assert_eq!(of("cvt.rn.f64.u64 %fd1, %d2;", "%fd1"), (x as u64 as f64).to_bits(), "{x}");
        assert_eq!(of("cvt.rn.f32.s32 %f1, %r2;", "%f1"), u64::from((x as i32 as f32).to_bits()), "{x}");
        assert_eq!(of("cvt.rn.f32.u32 %f1, %r2;", "%f1"), u64::from((x as u32 as f32).to_bits()), "{x}");
        assert_eq!(of("cvt.rn.f64.s32 %fd1, %r2;", "%fd1"), f64::from(x as i32).to_bits(), "{x}");
        let short = of("cvt.u16.u64 %h1, %d2; cvt.rn.f32.s16 %f1, %h1;", "%f1");
        assert_eq!(short, u64::from(f32::from(x as i16).to_bits()), "{x}");
        let [down, up] =
            ["rz", "rp"].map(|m| f32::from_bits(of(&format!("cvt.{m}.f32.u32 %f1, %r2;"), "%f1") as u32));
        let exact = f64::from(x as u32);
        assert!(f64::from(down) <= exact && exact <= f64::from(up) && f64::from(up - down) <= 256.0, "{x}");
        let half = of("cvt.rn.f16.s32 %h1, %r2;", "%h1");
        assert_eq!(half, u64::from(f16::from_f64(f64::from(x as i32)).to_bits()), "{x}");
    }
}

#[test]
fn integers_change_width_with_sign_and_saturation() {
    for x in [0_u64, 1, 127, 128, 255, 256, 32768, 65535, 1 << 31, u64::from(u32::MAX), 1 << 63, u64::MAX] {
        let of = |body: &str, result: &str| value(body, result, &[("%d2", x), ("%r2", x), ("%h2", x)]);
        assert_eq!(of("cvt.s64.s32 %d1, %r2;", "%d1"), i64::from(x as i32) as u64);
        assert_eq!(of("cvt.u64.u32 %d1, %r2;", "%d1"), u64::from(x as u32));
        assert_eq!(of("cvt.u32.u64 %r1, %d2;", "%r1"), u64::from(x as u32));
        assert_eq!(of("cvt.s32.s8 %r1, %r2;", "%r1"), u64::from(i32::from(x as i8) as u32));
        assert_eq!(of("cvt.s16.s8 %h1, %h2;", "%h1"), u64::from(i16::from(x as i8) as u16));
        assert_eq!(of("cvt.u32.u8 %r1, %h2;", "%r1"), u64::from(x as u8));
        assert_eq!(of("cvt.s8.s32 %r1, %r2;", "%r1"), u64::from(x as i8 as u32));
        assert_eq!(of("cvt.sat.u8.s32 %r1, %r2;", "%r1"), (x as i32).clamp(0, 255) as u64);
        assert_eq!(of("cvt.sat.s32.u64 %r1, %d2;", "%r1"), x.min(i32::MAX as u64));
        assert_eq!(of("cvt.sat.s16.s64 %h1, %d2;", "%h1"), u64::from((x as i64).clamp(-32768, 32767) as u16));
    }
}

#[test]
fn floats_change_width_in_every_mode() {
    for x in SINGLES.into_iter().chain([0.1, 1.000_1, 1e-6, 3.0e-8, 1e5, 3.4e38]) {
        let nan = |bits: u64, is: bool, of: u64| if is { of } else { bits };
        let half = nan(f16::from_f32(x).to_bits().into(), x.is_nan(), 0x7fff);
        assert_eq!(from_f32("cvt.rn.f16.f32", "%h1", x), half, "{x}");
        let brain = nan(bf16::from_f32(x).to_bits().into(), x.is_nan(), 0x7fff);
        assert_eq!(from_f32("cvt.rn.bf16.f32", "%h1", x), brain, "{x}");
        let packed = value("cvt.rn.bf16x2.f32 %r1, %f2, 0f3F800000;", "%r1", &[("%f2", x.to_bits().into())]);
        assert_eq!(packed, brain << 16 | 0x3f80);
        let packed = value("cvt.rn.f16x2.f32 %r1, 0f3F800000, %f2;", "%r1", &[("%f2", x.to_bits().into())]);
        assert_eq!(packed, 0x3c00 << 16 | half);
        let truncated = value("cvt.rz.bf16.f32 %h1, %f2;", "%h1", &[("%f2", x.to_bits().into())]);
        assert_eq!(truncated, nan(u64::from(x.to_bits() >> 16), x.is_nan(), 0x7fff), "{x}");
        let relu = from_f32("cvt.rn.relu.f16.f32", "%h1", x);
        assert_eq!(relu, if x <= 0.0 { 0 } else { half }, "{x}");
        let back =
            value("cvt.rn.f16.f32 %h1, %f2; cvt.f32.f16 %f1, %h1;", "%f1", &[("%f2", x.to_bits().into())]);
        let wide = f16::from_f32(x).to_f32();
        assert_eq!(back, nan(u64::from(wide.to_bits()), x.is_nan(), 0x7fff_ffff), "{x}");
        let double = value("cvt.f64.f32 %fd1, %f2;", "%fd1", &[("%f2", x.to_bits().into())]);
        assert_eq!(double, nan(f64::from(x).to_bits(), x.is_nan(), 0x7ff8_0000_0000_0000), "{x}");
        let tripled = f64::from(x) * 1.1;
        let narrow = |mode: &str| {
            let found =
                value(&format!("cvt.{mode}.f32.f64 %f1, %fd2;"), "%f1", &[("%fd2", tripled.to_bits())]);
            f32::from_bits(found as u32)
        };
        if !x.is_nan() {
            assert_eq!(narrow("rn").to_bits(), (tripled as f32).to_bits(), "{x}");
            assert!(f64::from(narrow("rm")) <= tripled && tripled <= f64::from(narrow("rp")), "{x}");
        }
        let whole = from_f32("cvt.rni.f32.f32", "%f1", x);
        assert_eq!(whole, nan(x.round_ties_even().to_bits().into(), x.is_nan(), 0x7fff_ffff), "{x}");
        let sat = if x > 0.0 { x.min(1.0) } else { 0.0 };
        assert_eq!(from_f32("cvt.sat.f32.f32", "%f1", x), u64::from(sat.to_bits()), "{x}");
        let flushed = from_f32("cvt.ftz.f64.f32", "%fd1", x);
        assert_eq!(f64::from_bits(flushed) == 0.0, x == 0.0 || x.is_subnormal(), "{x}");
        let tf32 = from_f32("cvt.rna.tf32.f32", "%r1", x);
        assert!(tf32 & 0x1fff == 0 || x.is_nan(), "{x}");
    }
}

#[test]
fn comparisons_know_of_nan_and_sign() {
    let floats = [1.0_f32, 2.0, -1.0, 0.0, -0.0, f32::NAN, 1e-40];
    for a in floats {
        for b in floats {
            let inputs = [("%f2", a.to_bits().into()), ("%f3", b.to_bits().into())];
            let test =
                |operator: &str| value(&format!("setp.{operator}.f32 %p1, %f2, %f3;"), "%p1", &inputs) == 1;
            let unordered = a.is_nan() || b.is_nan();
            for (operator, result) in
                [("eq", a == b), ("ne", a != b), ("lt", a < b), ("le", a <= b), ("gt", a > b), ("ge", a >= b)]
            {
                assert_eq!(test(operator), result && !unordered, "{a} {operator} {b}");
                assert_eq!(test(&format!("{operator}u")), result || unordered, "{a} {operator}u {b}");
            }
            assert_eq!((test("num"), test("nan")), (!unordered, unordered));
            let flushed = value("setp.eq.ftz.f32 %p1, %f2, %f3;", "%p1", &inputs) == 1;
            let zero = |x: f32| x == 0.0 || x.is_subnormal();
            assert_eq!(flushed, (a == b && !unordered) || (zero(a) && zero(b)));
        }
    }
    for (a, b) in [(1_u32, 2_u32), (2, 1), (5, 5), (u32::MAX, 1), (1, u32::MAX), (0x8000_0000, 0x7fff_ffff)] {
        let inputs = [("%r2", a.into()), ("%r3", b.into())];
        let test = |operator: &str| value(&format!("setp.{operator} %p1, %r2, %r3;"), "%p1", &inputs) == 1;
        assert_eq!(test("lt.s32"), (a as i32) < b as i32);
        assert_eq!(test("lt.u32"), a < b);
        assert_eq!(test("hs.u32"), a >= b);
        assert_eq!(test("ge.s32"), a as i32 >= b as i32);
        assert_eq!(test("ne.b32"), a != b);
        let joined = |text: &str, q: bool, result: &str| {
            value(text, result, &[("%r2", a.into()), ("%r3", b.into()), ("%p3", q.into())]) == 1
        };
        for q in [false, true] {
            assert_eq!(joined("setp.lt.and.u32 %p1, %r2, %r3, %p3;", q, "%p1"), a < b && q);
            assert_eq!(joined("setp.lt.or.u32 %p1|%p2, %r2, %r3, !%p3;", q, "%p1"), a < b || !q);
            assert_eq!(joined("setp.lt.or.u32 %p1|%p2, %r2, %r3, !%p3;", q, "%p2"), a >= b || !q);
            assert_eq!(joined("setp.lt.xor.u32 %p1, %r2, %r3, %p3;", q, "%p1"), (a < b) != q);
        }
        assert_eq!(
            value("set.lt.u32.u32 %r1, %r2, %r3;", "%r1", &inputs),
            if a < b { 0xffff_ffff } else { 0 }
        );
        assert_eq!(
            value("set.gt.f32.s32 %f1, %r2, %r3;", "%f1", &inputs),
            if a as i32 > b as i32 { 0x3f80_0000 } else { 0 }
        );
    }
}

#[test]
fn selection_and_moves() {
    let select =
        |p: u64| value("selp.f64 %fd1, 0d3FF0000000000000, 0d4000000000000000, %p1;", "%fd1", &[("%p1", p)]);
    assert_eq!([select(1), select(0)].map(f64::from_bits), [1.0, 2.0]);
    let sign = |c: i32| value("slct.u32.s32 %r1, 5, 6, %r2;", "%r1", &[("%r2", u64::from(c as u32))]);
    assert_eq!([sign(0), sign(3), sign(-3)], [5, 5, 6]);
    let whole = value("mov.b64 %d1, {%r2, %r3};", "%d1", &[("%r2", 1), ("%r3", 2)]);
    assert_eq!(whole, 2 << 32 | 1);
    assert_eq!(value("mov.b64 {_, %r1}, %d2;", "%r1", &[("%d2", 7 << 32)]), 7);
    assert_eq!(
        value("mov.b32 {%h1, %h2}, %r2; mov.b32 %r1, {%h2, %h1};", "%r1", &[("%r2", 0x1234_5678)]),
        0x5678_1234
    );
    assert_eq!(value("mov.b32 %r1, %f2;", "%r1", &[("%f2", 0x3f80_0000)]), 0x3f80_0000);
    assert_eq!(
        value("mov.f32 %f1, 0d3FF0000000000000; mov.f64 %fd1, 0f3F800000; mov.b64 %d1, %fd1;", "%d1", &[]),
        1.0_f64.to_bits()
    );
    assert_eq!(
        value(
            "mov.u32 %r1, -1; mov.u32 %r2, 0x10; mov.u32 %r3, 010; mov.u32 %r4, 0b11; add.u32 %r1, %r1, %r2; add.u32 %r1, %r1, %r3; add.u32 %r1, %r1, %r4;",
            "%r1",
            &[]
        ),
        15 + 8 + 3
    );
    assert_eq!(
        value("mov.pred %p2, %p1; not.pred %p3, %p2; xor.pred %p1, %p3, %p2;", "%p1", &[("%p1", 1)]),
        1
    );
    assert_eq!(value("mov.u32 %r1, WARP_SZ; mov.u32 %r2, %nctaid.y; add.u32 %r1, %r1, %r2;", "%r1", &[]), 33);
    let before = value(
        "mov.u64 %d1, %clock64; add.u32 %r1, 1, 2; mov.u64 %d2, %clock64; sub.s64 %d1, %d2, %d1;",
        "%d1",
        &[],
    );
    assert_eq!(before, 2);
}
