//! Text that is no PTX, or PTX that nobody means well: errors, never a panic and never a huge allocation.

use super::{super::PtxError, *};

fn refused(text: &str) -> PtxError {
    Module::parse(text).expect_err(text)
}

#[test]
fn an_unknown_instruction_is_an_error_of_the_module() {
    let text = kernel(
        &[],
        "add.u32 %r1, 1, 2;\nmma.sync.aligned.m8n8k4.row.col.f32.f16.f16.f32 {%f1}, {%r1}, {%r2}, {%f2};\nret;",
    );
    let PtxError::Unsupported { line, instruction } = refused(&text) else { panic!() };
    assert_eq!(text.lines().nth(line as usize - 1).unwrap().split('.').next(), Some("mma"));
    assert!(instruction.starts_with("mma.sync") && instruction.len() <= 200);
    for body in [
        "add.u33 %r1, 1, 2;",
        "add.rn.u32 %r1, 1, 2;",
        "add.f32.rn %f1, %f2, %f3;",
        "mul.u32 %r1, %r2, %r3;",
        "cvt.f16.f32 %h1, %f1;",
        "cvt.u32.f32 %r1, %f1;",
        "cvt.rn.f64.f32 %fd1, %f1;",
        "setp.ltu.u32 %p1, %r1, %r2;",
        "ld.global.weird.u32 %r1, [%d1];",
        "st.const.u32 [%d1], %r1;",
        "atom.global.mul.u32 %r1, [%d1], 2;",
        "shfl.idx.b32 %r1, %r2, 0, 31;",
        "f16;",
        "f32;",
        "cvt;",
        "bf16x2 %r1;",
        "tex.2d.v4.f32.f32 {%f1,%f2,%f3,%f4}, [t, {%f1,%f2}];",
        "cp.async.ca.shared.global [%r1], [%d1], 4;",
        "fma.f32 %f1, %f2, %f3, %f4;",
        "bar.sync;",
        "mov.u32 %r1, %pm0;",
        "call undeclared, ();",
        "bra nowhere;",
        "ret %r1;",
    ] {
        assert!(Module::parse(&kernel(&[], body)).is_err(), "{body}");
    }
}

#[test]
fn operands_fit_their_instructions() {
    for body in [
        "add.u32 %r1, %r2;",
        "add.u32 %r1, %r2, %d1;",
        "add.u32 %p1, %r1, %r2;",
        "add.u32 1, %r1, %r2;",
        "add.u32 %r1, %r99, %r2;",
        "add.u32 %r1, %r01, %r2;",
        "add.u32 %r1, {%r2, %r3}, %r4;",
        "add.f32 %f1, %f2, 5;",
        "selp.u32 %r1, %r2, %r3, %r4;",
        "mov.b64 %d1, {%r1, %r2, %r3};",
        "mov.b32 {%h1, %h2, %h3}, %r1;",
        "ld.global.v4.u32 {%r1, %r2}, [%d1];",
        "ld.global.v4.u64 %d1, [%d1];",
        "ld.global.u32 %r1, %d1;",
        "ld.global.u64 %r1, [%d1];",
        "ld.global.u32 %r1, [%h1];",
        "ld.shared.u32 %r1, [g];",
        "ld.global.u32 %r1, [%d1+99999999999];",
        "setp.lt.u32 %r1, %r2, %r3;",
        "setp.lt.and.u32 %p1, %r2, %r3;",
        "@%r1 ret;",
        "@! ret;",
        "bra %r1 + 4;",
        "call k, ();",
    ] {
        let text = kernel(&[], body).replace(".visible", ".global .u32 g;\n.visible");
        assert!(Module::parse(&text).is_err(), "{body}");
    }
}

#[test]
fn names_are_declared_once() {
    for text in [
        kernel(&[".u32 a", ".u32 a"], "ret;"),
        kernel(&[], "a: ret; a: ret;"),
        kernel(&[], ".reg .b32 x; .reg .b32 x;"),
        ".global .u32 a; .global .u32 a;".to_owned(),
        ".func f() { ret; } .func f() { ret; }".to_owned(),
        ".global .u32 a; .func a() { ret; }".to_owned(),
    ] {
        assert!(matches!(refused(&text), PtxError::Duplicate { .. }), "{text}");
    }
    let text = ".func f(); .visible .entry k() { call f, (); ret; }";
    assert!(matches!(refused(text), PtxError::Undeclared { .. }));
}

#[test]
fn counts_have_bounds() {
    for text in [
        ".global .b8 a[99999999999999];".to_owned(),
        ".global .b8 a[4294967296][4294967296];".to_owned(),
        ".global .b8 a[0xffffffffffffffff];".to_owned(),
        ".shared .b8 a[300000];".to_owned(),
        ".shared .b8 a[200000]; .shared .b8 b[200000];".to_owned(),
        ".global .align 3 .b8 a[4];".to_owned(),
        ".global .u32 a[1] = {1, 2};".to_owned(),
        ".global .u32 a = b;".to_owned(),
        ".global .u8 a = generic(a);".to_owned(),
        kernel(&[".b8 a[40000]"], "ret;"),
        kernel(&[], ".local .b8 l[999999999];"),
        kernel(&[], ".reg .b32 %x<99999999999>;"),
        kernel(&[], ".param .b8 p[99999];"),
        kernel(&[], &"{".repeat(100_000)),
        kernel(&[], &format!("add.u32 {};", "%r1,".repeat(100_000) + "%r1")),
        kernel(&[], &(0..70_000).map(|i| format!("mov.u32 %x{i}, {i};")).collect::<String>())
            .replace(".reg .pred %p<10>;", ".reg .pred %p<10>; .reg .b32 %x<70000>;"),
        format!(".visible .entry k() .maxntid {0}, {0} {{ ret; }}", 1024),
    ] {
        assert!(Module::parse(&text).is_err(), "{}", &text[..text.len().min(200)]);
    }
    // Many registers are declared and few used: that costs nothing.
    Module::parse(&kernel(&[], ".reg .b32 %x<4000000000>; mov.u32 %x3999999999, 1; ret;")).unwrap();
}

#[test]
fn text_cut_anywhere_is_an_error_or_a_smaller_module() {
    for (text, step) in
        [(include_str!("../../../data/calls.ptx"), 13), (include_str!("../../../data/reduce.ptx"), 1)]
    {
        let whole = Module::parse(text).unwrap().kernels().len();
        for end in (0..text.len()).step_by(step) {
            if let Ok(module) = Module::parse(&text[..end]) {
                assert!(module.kernels().len() <= whole);
            }
        }
    }
}

#[test]
fn text_with_a_changed_byte_never_panics() {
    let text = include_str!("../../../data/reduce.ptx").as_bytes();
    let start = text.windows(8).position(|w| w == b".version").unwrap();
    let mut state = 12345_u32;
    for at in start..text.len() {
        for _ in 0..3 {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            let mut changed = text.to_vec();
            changed[at] = (state >> 24) as u8 & 0x7f;
            let _ = Module::parse(std::str::from_utf8(&changed).unwrap());
        }
    }
}

#[test]
fn a_kernel_of_changed_text_faults_or_ends() {
    let text = include_str!("../../../data/switch.ptx");
    let lines: Vec<&str> = text.lines().collect();
    let mut loaded = 0;
    // Each line is left out once: registers stay unwritten, loops endless, branches without aim.
    for skip in 0..lines.len() {
        let kept: Vec<&str> = lines.iter().enumerate().filter(|(i, _)| *i != skip).map(|(_, l)| *l).collect();
        let Ok(module) = Module::parse(&kept.join("\n")) else { continue };
        let Some(kernel) = module.kernel("many_ways") else { continue };
        let device = Device::default();
        let values: Vec<i32> = (0..64).map(|i| i * 37 + 5).collect();
        let (from, to) = (device.put(&values), device.empty(256));
        let mut params = [from.to_le_bytes(), to.to_le_bytes(), 64_u64.to_le_bytes()].concat();
        params.resize(kernel.param_bytes as usize, 0);
        let launch = Launch { grid: [1; 3], block: [64, 1, 1], dynamic_shared: 0, params: &params };
        loaded += 1;
        let _ = run(&module, kernel, &launch, &device, &[], 200_000);
    }
    assert!(loaded > 50, "{loaded}");
}
