//! Loads and stores in every state space, vectors, atomics, addresses.

use super::*;

#[test]
fn a_kernel_adds_two_vectors() {
    let bench = Bench::new(&kernel(
        &[".u64 a", ".u64 b", ".u64 o", ".u32 n"],
        "ld.param.u64 %d1, [a]; ld.param.u64 %d2, [b]; ld.param.u64 %d3, [o]; ld.param.u32 %r1, [n];
        mov.u32 %r2, %ctaid.x; mov.u32 %r3, %ntid.x; mov.u32 %r4, %tid.x; mad.lo.s32 %r5, %r2, %r3, %r4;
        setp.ge.u32 %p1, %r5, %r1; @%p1 bra done;
        mul.wide.u32 %d4, %r5, 4; add.s64 %d1, %d1, %d4; add.s64 %d2, %d2, %d4; add.s64 %d3, %d3, %d4;
        ld.global.nc.f32 %f1, [%d1]; ld.global.f32 %f2, [%d2]; add.f32 %f3, %f1, %f2; st.global.f32 [%d3], %f3;
        done: ret;",
    ));
    let a: Vec<f32> = (0..100).map(|i| i as f32).collect();
    let b: Vec<f32> = (0..100).map(|i| 0.5 * i as f32).collect();
    let [a_at, b_at] = [&a, &b].map(|v| bench.device.put(v));
    let out = bench.device.empty(400);
    let counts = bench.launch("k", 4, 32, &[a_at.into(), b_at.into(), out.into(), 100_u32.into()]).unwrap();
    let sums: Vec<f32> = a.iter().zip(&b).map(|(a, b)| a + b).collect();
    assert_eq!(bench.device.get::<f32>(out, 100), sums);
    assert_eq!((counts.loads, counts.stores), (200 + 4 * 128, 100));
}

/// The value of `body` in `%d1` (or another register), with one parameter `a` in `%d2`.
fn with_memory(values: &[u32], body: &str, result: &str) -> (u64, Vec<u32>) {
    let type_ = if result.starts_with("%r") { "u32" } else { "u64" };
    let bench = Bench::new(&kernel(
        &[".u64 a", ".u64 o"],
        &format!(
            "ld.param.u64 %d2, [a]; ld.param.u64 %d39, [o];\n{body}\nst.global.{type_} [%d39], {result}; ret;"
        ),
    ));
    let (at, out) = (bench.device.put(values), bench.device.put(&[0_u64]));
    bench.launch("k", 1, 1, &[at.into(), out.into()]).unwrap_or_else(|fault| panic!("{fault}"));
    (bench.device.get::<u64>(out, 1)[0], bench.device.get::<u32>(at, values.len()))
}

#[test]
fn narrow_loads_extend_and_narrow_stores_cut() {
    let load = |opcode: &str, result: &str| {
        with_memory(&[0xfedc_ba98, 7], &format!("{opcode} {result}, [%d2];"), result).0
    };
    assert_eq!(load("ld.global.u8", "%r1"), 0x98);
    assert_eq!(load("ld.global.s8", "%r1"), 0xffff_ff98);
    assert_eq!(load("ld.global.s8", "%d1"), 0xffff_ffff_ffff_ff98);
    assert_eq!(load("ld.global.s16", "%r1"), 0xffff_ba98);
    assert_eq!(load("ld.global.b16", "%r1"), 0xba98);
    assert_eq!(load("ld.global.s32", "%d1"), 0xffff_ffff_fedc_ba98);
    assert_eq!(load("ld.global.u32", "%d1"), 0xfedc_ba98);
    assert_eq!(load("ld.global.b64", "%d1"), 7 << 32 | 0xfedc_ba98);
    let (sign, _) = with_memory(&[0x80], "ld.global.s8 %h1, [%d2]; cvt.u32.u16 %r1, %h1;", "%r1");
    assert_eq!(sign, 0xff80);
    let (_, after) = with_memory(
        &[0, 0],
        "mov.u32 %r1, 0x12345678; st.global.u8 [%d2+3], %r1; st.global.u16 [%d2+4], %r1;",
        "%r1",
    );
    assert_eq!(after, [0x7800_0000, 0x5678]);
}

#[test]
fn vectors_and_hints_move_the_same_bytes() {
    for modifiers in [
        "global",
        "global.nc",
        "global.ca",
        "global.cg",
        "global.cs",
        "volatile.global",
        "relaxed.sys.global",
        "global.nc.L1::no_allocate.L2::128B",
    ] {
        let text = format!("ld.{modifiers}.v4.u32 {{%r1, %r2, %r3, %r4}}, [%d2]; sub.u32 %r1, %r4, %r2;");
        assert_eq!(with_memory(&[1, 20, 3, 400], &text, "%r1").0, 380, "{modifiers}");
    }
    let swap = "ld.global.v2.u64 {%d3, %d4}, [%d2]; st.global.v2.b64 [%d2], {%d4, %d3};";
    assert_eq!(with_memory(&[1, 2, 3, 4], swap, "%d3").1, [3, 4, 1, 2]);
    let bytes = "ld.global.v4.u8 {%h1, %h2, %h3, %h4}, [%d2]; st.global.v4.u8 [%d2], {%h4, %h3, %h2, %h1};";
    assert_eq!(with_memory(&[0x0102_0304], bytes, "%d2").1, [0x0403_0201]);
    let floats = "ld.global.v2.f32 {%f1, _}, [%d2]; st.global.wt.f32 [%d2+4], %f1;";
    assert_eq!(with_memory(&[5, 6], floats, "%d2").1, [5, 5]);
}

#[test]
fn atomics_give_the_old_value_and_write_the_new_one() {
    let atom = |operation: &str, old: u32| {
        let (result, after) = with_memory(&[old], &format!("atom.global.{operation}"), "%r1");
        (result as u32, after[0])
    };
    assert_eq!(atom("add.u32 %r1, [%d2], 5;", 7), (7, 12));
    assert_eq!(atom("add.s32 %r1, [%d2], -8;", 7), (7, u32::MAX));
    assert_eq!(atom("min.s32 %r1, [%d2], -1;", 7), (7, u32::MAX));
    assert_eq!(atom("min.u32 %r1, [%d2], -1;", 7), (7, 7));
    assert_eq!(atom("max.u32 %r1, [%d2], 9;", 7), (7, 9));
    assert_eq!(atom("cas.b32 %r1, [%d2], 7, 1;", 7), (7, 1));
    assert_eq!(atom("cas.b32 %r1, [%d2], 8, 1;", 7), (7, 7));
    assert_eq!(atom("exch.b32 %r1, [%d2], 3;", 7), (7, 3));
    assert_eq!(atom("and.b32 %r1, [%d2], 5;", 7), (7, 5));
    assert_eq!(atom("or.b32 %r1, [%d2], 8;", 7), (7, 15));
    assert_eq!(atom("xor.b32 %r1, [%d2], 1;", 7), (7, 6));
    assert_eq!([atom("inc.u32 %r1, [%d2], 7;", 7).1, atom("inc.u32 %r1, [%d2], 8;", 7).1], [0, 8]);
    assert_eq!([atom("dec.u32 %r1, [%d2], 5;", 7).1, atom("dec.u32 %r1, [%d2], 9;", 7).1], [5, 6]);
    let float = with_memory(&[1.5_f32.to_bits()], "red.global.add.f32 [%d2], 0f3F800000;", "%d2").1;
    assert_eq!(f32::from_bits(float[0]), 2.5);
    let pair = with_memory(&[0x3c00_4000], "atom.global.add.noftz.f16x2 %r1, [%d2], 0x3c003c00;", "%r1").1;
    assert_eq!(pair, [0x4000_4200]);
    let long = with_memory(&[u32::MAX, 0], "atom.global.add.u64 %d1, [%d2], 1;", "%d1");
    assert_eq!(long, (u64::from(u32::MAX), vec![0, 1]));
    let half = with_memory(&[0x0002_0001], "atom.global.cas.b16 %h1, [%d2+2], 2, 9;", "%d2").1;
    assert_eq!(half, [0x0009_0001]);
    let double =
        with_memory(&[0, 0x3ff0_0000], "atom.global.add.f64 %fd1, [%d2], 0d3FF0000000000000;", "%d2").1;
    assert_eq!(double, [0, 0x4000_0000]);
}

#[test]
fn generic_addresses_reach_every_space() {
    let body = ".shared .align 8 .b8 s[16]; .local .align 8 .b8 l[16];
        mov.u64 %d3, s; cvta.shared.u64 %d4, %d3; st.u32 [%d4+4], 11; ld.shared.u32 %r1, [s+4];
        mov.u64 %d5, l; cvta.local.u64 %d6, %d5; st.u32 [%d6+8], 22; ld.local.u32 %r2, [l+8];
        cvta.global.u64 %d7, %d2; st.u32 [%d7], 33; ld.global.u32 %r3, [%d2];
        atom.add.u32 %r4, [%d4+4], 100; ld.u32 %r5, [%d4+4];
        cvta.to.shared.u64 %d8, %d4; sub.u64 %d8, %d8, %d3; cvt.u32.u64 %r6, %d8;
        isspacep.shared %p1, %d4; isspacep.local %p2, %d4; isspacep.global %p3, %d7; selp.u32 %r7, 1000, 0, %p1;
        selp.u32 %r8, 5000, 0, %p2; selp.u32 %r9, 2000, 0, %p3;
        add.u32 %r1, %r1, %r2; add.u32 %r1, %r1, %r3; add.u32 %r1, %r1, %r4; add.u32 %r1, %r1, %r5;
        add.u32 %r1, %r1, %r6; add.u32 %r1, %r1, %r7; add.u32 %r1, %r1, %r8; add.u32 %r1, %r1, %r9;";
    assert_eq!(with_memory(&[0], body, "%r1").0, 11 + 22 + 33 + 11 + 111 + 3000);
}

#[test]
fn parameters_are_structures_too() {
    let bench = Bench::new(&kernel(
        &[".u8 a", ".align 8 .b8 s[24]", ".u64 o"],
        "ld.param.u64 %d1, [o]; ld.param.u8 %r1, [a]; ld.param.v2.u32 {%r2, %r3}, [s+8]; mov.b64 %d2, s; ld.param.u32 %r4, [%d2+20];
        add.u32 %r1, %r1, %r2; add.u32 %r1, %r1, %r3; add.u32 %r1, %r1, %r4; st.global.u32 [%d1], %r1; ret;",
    ));
    let out = bench.device.put(&[0_u32]);
    let structure: Vec<u8> = [1_u32, 2, 30, 400, 5, 6000].iter().flat_map(|v| v.to_le_bytes()).collect();
    bench.launch("k", 1, 1, &[Arg::Bytes(vec![7]), Arg::Bytes(structure), out.into()]).unwrap();
    assert_eq!(bench.device.get::<u32>(out, 1), [7 + 30 + 400 + 6000]);
    let kernel = bench.module.kernel("k").unwrap();
    let at: Vec<_> = kernel.params.iter().map(|p| (p.offset, p.size)).collect();
    assert_eq!((at, kernel.param_bytes), (vec![(0, 1), (8, 24), (32, 8)], 40));
}

#[test]
fn variables_have_images_with_addresses_in_them() {
    let text = ".global .align 4 .b8 bytes[6] = {1, 2, 0x3};\n.const .align 8 .f64 doubles[2] = {0d3FF0000000000000, 2.5};
        .global .f32 single = 0f40000000;\n.global .s16 shorts[2][2] = {{-1, 2}, {3}};
        .global .u64 links[3] = {bytes, generic(single), bytes+4};\n.global .u32 plain;\n";
    let bench = Bench::new(&(text.to_owned() + &kernel(&[".u64 o"],
        "ld.param.u64 %d1, [o]; ld.global.u64 %d2, [links+16]; ld.u8 %r1, [%d2+-2]; ld.const.f64 %fd1, [doubles+8];
        cvt.rzi.u32.f64 %r2, %fd1; ld.global.u32 %r3, [plain]; mov.u64 %d3, shorts; ld.global.s16 %r4, [%d3];
        add.u32 %r1, %r1, %r2; add.u32 %r1, %r1, %r3; add.u32 %r1, %r1, %r4; st.global.u32 [%d1], %r1; st.global.u32 [plain], 5; ret;")));
    let names: Vec<_> =
        bench.module.globals().iter().map(|g| (g.name.as_str(), g.size, g.align, g.constant)).collect();
    assert_eq!(names[..3], [("bytes", 6, 4, false), ("doubles", 16, 8, true), ("single", 4, 4, false)]);
    let image = bench.module.globals()[4].image(&bench.globals);
    let wanted = [bench.globals[0], bench.globals[2], bench.globals[0] + 4].map(u64::to_le_bytes).concat();
    assert_eq!(image, wanted);
    let out = bench.device.put(&[0_u32]);
    bench.launch("k", 1, 1, &[out.into()]).unwrap();
    assert_eq!(bench.device.get::<u32>(out, 1), [3 + 2 - 1]);
    bench.launch("k", 1, 1, &[out.into()]).unwrap();
    assert_eq!(bench.device.get::<u32>(out, 1), [9]);
}

#[test]
fn dynamic_shared_memory_follows_the_static_one() {
    let text = ".extern .shared .align 16 .b8 dynamic[];\n".to_owned()
        + &kernel(
            &[".u64 o"],
            ".shared .align 4 .b8 fixed[20]; ld.param.u64 %d1, [o]; mov.u32 %r1, %tid.x; shl.b32 %r2, %r1, 2; mov.u32 %r3, dynamic;
            add.u32 %r4, %r3, %r2; st.shared.u32 [%r4], %r1; st.shared.u32 [fixed], 77; bar.sync 0; ld.shared.u32 %r5, [dynamic+4];
            mov.u32 %r6, %dynamic_smem_size; add.u32 %r5, %r5, %r6; add.u32 %r5, %r5, %r3; st.global.u32 [%d1], %r5; ret;",
        )
        .replace("st.shared.u32 [fixed], 77;", "setp.eq.u32 %p1, %r1, 0; @%p1 st.shared.u32 [fixed], 77;");
    let bench = Bench::new(&text);
    assert_eq!(bench.module.kernel("k").unwrap().shared_bytes, 20);
    let out = bench.device.put(&[0_u32]);
    let launch = |bytes| bench.launch_with("k", [1; 3], [32, 1, 1], bytes, &[out.into()], 100_000);
    launch(128).unwrap();
    assert_eq!(bench.device.get::<u32>(out, 1), [1 + 128 + 32]);
    assert!(matches!(launch(124).unwrap_err().kind, FaultKind::Memory { space: "shared", .. }));
}
