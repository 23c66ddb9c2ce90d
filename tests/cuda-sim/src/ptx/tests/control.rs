//! Branches, tables of labels, calls, predicates, scopes.

use super::*;

#[test]
fn branches_by_table() {
    let body = "t: .branchtargets a, b, c; @%p1 brx.idx %r2, t; mov.u32 %r1, 9; bra end;
        a: mov.u32 %r1, 10; bra end; b: mov.u32 %r1, 11; bra.uni end; c: mov.u32 %r1, 12; end:";
    let at = |index: u64, p: u64| value(body, "%r1", &[("%r2", index), ("%p1", p)]);
    assert_eq!([at(0, 1), at(1, 1), at(2, 1), at(1, 0)], [10, 11, 12, 9]);
    let bench = Bench::new(&kernel(&[], "t: .branchtargets a; brx.idx 1, t; a: ret;"));
    assert!(matches!(bench.fault("k", 1, 1, &[]).kind, FaultKind::BadTarget(_)));
}

#[test]
fn loops_and_guards() {
    let sum = "mov.u32 %r1, 0; loop: add.u32 %r1, %r1, %r2; sub.u32 %r2, %r2, 1; setp.ne.u32 %p1, %r2, 0; @%p1 bra loop;";
    assert_eq!(value(sum, "%r1", &[("%r2", 100)]), 5050);
    let guard = "mov.u32 %r1, 1; @%p1 mov.u32 %r1, 2; @!%p1 add.u32 %r1, %r1, 10;";
    assert_eq!([1, 0].map(|p| value(guard, "%r1", &[("%p1", p)])), [2, 11]);
    // `exit` ends a thread where it stands.
    let bench = Bench::new(&kernel(&[".u64 o"], "ld.param.u64 %d1, [o]; exit; st.global.u32 [%d1], 1; ret;"));
    let out = bench.device.put(&[0_u32]);
    bench.launch("k", 1, 32, &[out.into()]).unwrap();
    assert_eq!(bench.device.get::<u32>(out, 1), [0]);
}

#[test]
fn inner_scopes_have_their_own_names_and_labels() {
    let body = "mov.u32 %r1, 1;
        { .reg .b32 %r<3>; mov.u32 %r1, 50; bra skip; mov.u32 %r1, 60; skip: }
        { .reg .b32 x; mov.u32 x, %r1; bra skip; mov.u32 x, 70; skip: { .reg .b32 x; mov.u32 x, 5; } add.u32 %r1, x, 1; }";
    assert_eq!(value(body, "%r1", &[]), 2);
    // Jumps lead out of a scope too.
    assert_eq!(value("mov.u32 %r1, 3; { { bra out; } mov.u32 %r1, 4; } out:", "%r1", &[]), 3);
}

const FUNCTIONS: &str = "
.func (.param .b32 r) add_one (.param .b32 a) ;
.func (.param .align 16 .b8 r[16]) swap (.param .align 16 .b8 a[16], .param .b32 b)
{ .reg .b64 %d<4>; .reg .b32 %r<3>; .local .align 8 .b8 l[8];
  ld.param.u64 %d1, [a]; ld.param.u64 %d2, [a+8]; ld.param.u32 %r1, [b]; cvt.u64.u32 %d3, %r1; add.u64 %d2, %d2, %d3;
  st.local.u64 [l], %d2; ld.local.u64 %d2, [l]; st.param.u64 [r], %d2; st.param.u64 [r+8], %d1; ret; }
.func (.param .b32 r) add_one (.param .b32 a)
{ .reg .b32 %r<3>; ld.param.u32 %r1, [a]; add.u32 %r2, %r1, 1; st.param.b32 [r], %r2; ret; }
.func (.param .b32 r) factorial (.param .b32 a)
{ .reg .b32 %r<5>; .reg .pred %p<2>; ld.param.u32 %r1, [a]; setp.lt.u32 %p1, %r1, 2; mov.u32 %r4, 1; @%p1 bra out;
  sub.u32 %r2, %r1, 1;
  { .param .b32 x; .param .b32 y; st.param.b32 [x], %r2; call.uni (y), factorial, (x); ld.param.b32 %r3, [y]; }
  mul.lo.u32 %r4, %r1, %r3; out: st.param.b32 [r], %r4; ret; }
";

fn with_functions(body: &str) -> Result<u64, Box<Fault>> {
    let text = FUNCTIONS.to_owned()
        + &kernel(&[".u64 o"], &format!("ld.param.u64 %d39, [o];\n{body}\nst.global.u64 [%d39], %d1; ret;"));
    let bench = Bench::new(&text);
    let out = bench.device.put(&[0_u64]);
    bench.launch("k", 1, 1, &[out.into()]).map(|_| bench.device.get::<u64>(out, 1)[0])
}

#[test]
fn functions_take_and_give_parameters() {
    let call =
        "{ .param .align 16 .b8 x[16]; .param .b32 y; .param .align 16 .b8 z[16]; st.param.v2.b64 [x], {1, 2};
        st.param.b32 [y], 40; call.uni (z), swap, (x, y); ld.param.u64 %d1, [z]; ld.param.u64 %d2, [z+8]; }
        mul.lo.u64 %d2, %d2, 100; add.u64 %d1, %d1, %d2;";
    assert_eq!(with_functions(call).unwrap(), 142);
    let factorial = "{ .param .b32 x; .param .b32 y; st.param.b32 [x], 10; call (y), factorial, (x); ld.param.b32 %r1, [y]; }
        cvt.u64.u32 %d1, %r1;";
    assert_eq!(with_functions(factorial).unwrap(), 3_628_800);
    // Registers and numbers are handed over as well.
    let registers = "mov.u32 %r1, 5; call (%r2), add_one, (%r1); call (%r3), add_one, (9); add.u32 %r4, %r2, %r3; cvt.u64.u32 %d1, %r4;";
    assert_eq!(with_functions(registers).unwrap(), 16);
    // A parameter that the caller did not write is not there.
    let unwritten = "{ .param .b32 x; .param .b32 y; call (y), add_one, (x); } mov.u64 %d1, 0;";
    assert!(matches!(with_functions(unwritten).unwrap_err().kind, FaultKind::Memory { space: "param", .. }));
}

#[test]
fn functions_are_called_through_pointers() {
    let call = |target: &str| {
        format!(
            "{target} {{ .param .b32 x; .param .b32 y; st.param.b32 [x], 6;
            p: .callprototype (.param .b32 _) _ (.param .b32 _); call (y), %d2, (x), p; ld.param.b32 %r1, [y]; }}
            cvt.u64.u32 %d1, %r1;"
        )
    };
    assert_eq!(with_functions(&call("mov.u64 %d2, add_one;")).unwrap(), 7);
    assert_eq!(with_functions(&call("mov.u64 %d2, factorial;")).unwrap(), 720);
    for nowhere in ["mov.u64 %d2, 0;", "mov.u64 %d2, swap;", "mov.u64 %d2, add_one; add.u64 %d2, %d2, 4;"] {
        assert!(
            matches!(with_functions(&call(nowhere)).unwrap_err().kind, FaultKind::BadTarget(_)),
            "{nowhere}"
        );
    }
}
