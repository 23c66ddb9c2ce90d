//! Each check, provoked: the fault names what happened, and where.

use super::*;

fn access(fault: &Fault) -> (&'static str, bool, Access) {
    match &fault.kind {
        FaultKind::Memory { space, store, access } => (*space, *store, access.clone()),
        other => panic!("{other}"),
    }
}

#[test]
fn an_access_out_of_bounds_names_kernel_block_thread_line_and_instruction() {
    let text = kernel(
        &[".u64 o"],
        "ld.param.u64 %d1, [o];
        mov.u32 %r1, %ctaid.x; mov.u32 %r2, %ntid.x; mov.u32 %r3, %tid.x; mad.lo.u32 %r4, %r1, %r2, %r3;
        mul.wide.u32 %d2, %r4, 4; add.u64 %d1, %d1, %d2;
        st.global.u32
            [%d1], %r4;
        ret;",
    );
    let bench = Bench::new(&text);
    let out = bench.device.empty(4 * 45);
    let fault = bench.fault("k", 2, 32, &[out.into()]);
    let line = text.lines().position(|l| l.contains("st.global")).unwrap() as u32 + 1;
    assert_eq!(
        (fault.kernel.as_str(), fault.block, fault.thread, fault.line),
        ("k", [1, 0, 0], [13, 0, 0], line)
    );
    assert_eq!(fault.instruction, "st.global.u32 [%d1], %r4");
    let outside = Access::OutOfBounds { address: out + 180, bytes: 4, nearest: Some((out, 180)) };
    assert_eq!(access(&fault), ("global", true, outside));
    let text = fault.to_string();
    assert!(text.contains("store to global memory: 4 bytes at") && text.contains("180 bytes at"), "{text}");
}

#[test]
fn freed_unwritten_and_misaligned_memory_is_not_read() {
    let bench = Bench::new(&kernel(
        &[".u64 a", ".u64 o"],
        "ld.param.u64 %d1, [a]; ld.param.u64 %d2, [o]; ld.global.u32 %r1, [%d1]; st.global.u32 [%d2], %r1; ret;",
    ));
    let out = bench.device.put(&[0_u32]);
    let freed = bench.device.put(&[1_u32]);
    bench.device.free(freed);
    let fault = bench.fault("k", 1, 1, &[freed.into(), out.into()]);
    assert_eq!(access(&fault), ("global", false, Access::Freed { address: freed, bytes: 4 }));
    let empty = bench.device.empty(8);
    bench.device.store(empty, &[1, 2, 3]).unwrap();
    let fault = bench.fault("k", 1, 1, &[empty.into(), out.into()]);
    assert_eq!(access(&fault), ("global", false, Access::Uninitialised { address: empty, bytes: 4 }));
    let four = bench.device.put(&[1_u32, 2]);
    let fault = bench.fault("k", 1, 1, &[(four + 2).into(), out.into()]);
    assert_eq!(access(&fault), ("global", false, Access::Misaligned { address: four + 2, bytes: 4 }));
    bench.launch("k", 1, 1, &[four.into(), out.into()]).unwrap();
}

#[test]
fn a_vector_is_aligned_to_its_whole_length() {
    let bench = Bench::new(&kernel(
        &[".u64 a"],
        "ld.param.u64 %d1, [a]; ld.global.v4.f32 {%f1, %f2, %f3, %f4}, [%d1+8]; ret;",
    ));
    let four = bench.device.put(&[0.0_f32; 8]);
    let fault = bench.fault("k", 1, 1, &[four.into()]);
    assert_eq!(access(&fault).2, Access::Misaligned { address: four + 8, bytes: 16 });
}

#[test]
fn shared_and_local_memory_have_bounds_and_must_be_written_first() {
    let run = |body: &str| {
        let bench = Bench::new(&kernel(
            &[],
            &format!(".shared .align 8 .b8 s[64]; .local .align 8 .b8 l[32];\n{body} ret;"),
        ));
        access(&bench.fault("k", 1, 1, &[]))
    };
    let of = |space, store, access| (space, store, access);
    let end = |address, all| Access::OutOfBounds { address, bytes: 4, nearest: Some((0, all)) };
    assert_eq!(run("st.shared.u32 [s+64], 1;"), of("shared", true, end(64, 64)));
    assert_eq!(run("ld.shared.u32 %r1, [s+64];"), of("shared", false, end(64, 64)));
    assert_eq!(run("st.local.u32 [l+32], 1;"), of("local", true, end(32, 32)));
    let unwritten = |address| Access::Uninitialised { address, bytes: 4 };
    assert_eq!(run("ld.shared.u32 %r1, [s+4];"), of("shared", false, unwritten(4)));
    assert_eq!(run("ld.local.u32 %r1, [l+4];"), of("local", false, unwritten(4)));
    let through = "mov.u64 %d1, s; cvta.shared.u64 %d2, %d1; st.u32 [%d2+60], 7; st.u32 [%d2+64], 7;";
    assert_eq!(run(through).0, "shared");
    // An address of shared memory that is taken for one of global memory is none.
    let confused =
        "mov.u64 %d1, s; cvta.shared.u64 %d2, %d1; cvta.to.global.u64 %d3, %d2; st.global.u32 [%d3], 7;";
    assert_eq!(run(confused).0, "global");
}

#[test]
fn what_an_earlier_block_wrote_to_shared_memory_is_not_there() {
    let bench = Bench::new(&kernel(
        &[],
        ".shared .b32 s; mov.u32 %r1, %ctaid.x; setp.eq.u32 %p1, %r1, 0; @%p1 st.shared.u32 [s], 1;
        ld.shared.u32 %r2, [s]; ret;",
    ));
    bench.launch("k", 1, 1, &[]).unwrap();
    let fault = bench.fault("k", 2, 1, &[]);
    assert_eq!((fault.block, access(&fault).2), ([1, 0, 0], Access::Uninitialised { address: 0, bytes: 4 }));
}

#[test]
fn a_register_is_written_before_it_is_read() {
    let bench = Bench::new(&kernel(
        &[".u32 n"],
        "ld.param.u32 %r1, [n]; setp.gt.u32 %p1, %r1, 3; @%p1 mov.u32 %r2, 1; add.u32 %r3, %r2, 1; ret;",
    ));
    bench.launch("k", 1, 1, &[4_u32.into()]).unwrap();
    let fault = bench.fault("k", 1, 1, &[3_u32.into()]);
    assert_eq!(fault.kind, FaultKind::UninitialisedRegister("%r2".to_owned()));
    assert_eq!(fault.instruction, "add.u32 %r3, %r2, 1");
}

/// Each thread writes its number to shared memory, then reads its neighbour's.
fn neighbours(between: &str) -> Bench {
    Bench::new(&kernel(
        &[],
        &format!(
            ".shared .align 4 .b8 s[512]; mov.u32 %r1, %tid.x; shl.b32 %r2, %r1, 2; mov.u32 %r3, s; add.u32 %r4, %r3, %r2;
            mov.u32 %r5, %ntid.x; add.u32 %r6, %r1, 1; rem.u32 %r6, %r6, %r5; shl.b32 %r6, %r6, 2; add.u32 %r6, %r6, %r3;
            st.shared.u32 [%r4], %r1;
            {between}
            ld.shared.u32 %r7, [%r6];
            ret;"
        ),
    ))
}

#[test]
fn threads_that_share_bytes_meet_at_a_barrier_between() {
    for threads in [32, 64, 128] {
        neighbours("bar.sync 0;").launch("k", 3, threads, &[]).unwrap();
        neighbours("barrier.sync.aligned 1;").launch("k", 1, threads, &[]).unwrap();
        let fault = neighbours("").fault("k", 1, threads, &[]);
        // Threads run in order, so the last one finds what the first one wrote.
        let FaultKind::SharedRace { .. } = fault.kind else {
            let (_, _, access) = access(&fault);
            assert!(matches!(access, Access::Uninitialised { .. }), "{fault}");
            continue;
        };
    }
    // Within a warp the sync of the warp is enough, and between warps it is not.
    neighbours("bar.warp.sync -1;").launch("k", 1, 32, &[]).unwrap();
    let fault = neighbours("bar.warp.sync -1;").fault("k", 1, 64, &[]);
    let other = matches!(fault.kind, FaultKind::Memory { .. } | FaultKind::SharedRace { .. });
    assert!(other, "{fault}");
}

#[test]
fn races_in_shared_memory_are_found_in_either_order() {
    let race = |body: &str, threads: u32| {
        let bench = Bench::new(&kernel(
            &[],
            &format!(".shared .align 4 .b8 s[64]; mov.u32 %r1, %tid.x;\n{body}\nret;"),
        ));
        bench.launch("k", 1, threads, &[]).map_err(|fault| match fault.kind {
            FaultKind::SharedRace { offset, store, other, other_wrote, other_line } => {
                assert!(other_line >= 7, "{other_line}");
                (offset, store, other, other_wrote, fault.thread[0])
            }
            other => panic!("{other}"),
        })
    };
    // Write after write, in one warp and between warps.
    assert_eq!(race("st.shared.u32 [s], %r1;", 2).unwrap_err(), (0, true, 0, true, 1));
    // Read after write: thread 0 writes, others read without a barrier.
    let write = "setp.eq.u32 %p1, %r1, 0; @%p1 st.shared.u32 [s], 1;";
    assert_eq!(race(&format!("{write} ld.shared.u32 %r2, [s];"), 2).unwrap_err(), (0, false, 0, true, 1));
    // Write after read: all read, then one writes; a single byte of the word is enough.
    let late = format!(
        "{write} bar.sync 0; ld.shared.u32 %r2, [s]; setp.eq.u32 %p2, %r1, 40; @%p2 st.shared.u8 [s+1], %r1;"
    );
    assert_eq!(race(&late, 64).unwrap_err().0, 1);
    assert!(race(&late, 32).is_ok());
    // Neighbouring bytes do not race, nor do reads, nor atomics among themselves; atomics and stores do.
    assert!(race("mov.u32 %r2, s; add.u32 %r2, %r2, %r1; st.shared.u8 [%r2], %r1;", 64).is_ok());
    let atomics = format!("{write} bar.sync 0; atom.shared.add.u32 %r2, [s], 1; red.shared.max.u32 [s], 3;");
    assert!(race(&atomics, 64).is_ok());
    assert!(race(&format!("{atomics} st.shared.u32 [s], 0;"), 64).is_err());
    assert!(
        race(&format!("{atomics} bar.sync 0; setp.eq.u32 %p1, %r1, 9; @%p1 st.shared.u32 [s], 0;"), 64)
            .is_ok()
    );
}

fn stuck(body: &str, threads: u32) -> Box<Fault> {
    let bench = Bench::new(&kernel(&[], &format!("mov.u32 %r1, %tid.x;\n{body}\nret;")));
    bench.launch_with("k", [1; 3], [threads, 1, 1], 0, &[], 1_000_000).unwrap_err()
}

#[test]
fn a_barrier_that_some_threads_never_reach_is_a_fault() {
    // One warp waits at barrier 0, the other at barrier 1: nobody goes on.
    let fault = stuck("setp.lt.u32 %p1, %r1, 32; @%p1 bra a; bar.sync 1; ret; a: bar.sync 0;", 64);
    let FaultKind::Deadlock(text) = &fault.kind else { panic!("{fault}") };
    assert!(text.contains("32 (thread 0 first) wait at barrier 0") && text.contains("barrier 1"), "{text}");
    // Lanes of one warp at two barriers that look alike.
    let fault = stuck("setp.lt.u32 %p1, %r1, 7; @%p1 bra a; bar.sync 0; ret; a: bar.sync 0;", 32);
    assert!(matches!(fault.kind, FaultKind::DivergentBarrier(_)), "{fault}");
    // A barrier of one warp that only half of it reaches.
    let fault = stuck("setp.lt.u32 %p1, %r1, 16; @%p1 bra a; w: bra w; a: bar.sync 0, 32;", 32);
    assert!(matches!(fault.kind, FaultKind::InstructionLimit(_) | FaultKind::DivergentBarrier(_)), "{fault}");
    let fault = stuck("bar.sync 0, 33;", 64);
    assert!(matches!(fault.kind, FaultKind::DivergentBarrier(_)), "{fault}");
    let fault = stuck("bar.sync 16;", 1);
    assert!(matches!(fault.kind, FaultKind::DivergentBarrier(_)), "{fault}");
}

#[test]
fn threads_that_have_left_are_not_waited_for() {
    let bench = Bench::new(&kernel(
        &[],
        "mov.u32 %r1, %tid.x; setp.ge.u32 %p1, %r1, 20; @%p1 ret; bar.sync 0; bar.sync 0; ret;",
    ));
    assert_eq!(bench.launch("k", 1, 96, &[]).unwrap().barriers, 2);
    // Warps may meet at different places of the code.
    let bench = Bench::new(&kernel(
        &[],
        "mov.u32 %r1, %tid.x; setp.lt.u32 %p1, %r1, 32; @%p1 bra a; bar.sync 0; ret; a: bar.sync 0; ret;",
    ));
    bench.launch("k", 1, 64, &[]).unwrap();
}

#[test]
fn a_lane_that_takes_no_part_is_not_read() {
    let shuffle = |mask: &str| format!("shfl.sync.idx.b32 %r2, %r1, 5, 31, {mask};");
    // Lane 5 has left, or does not exist, or is not named.
    let fault = stuck(&format!("setp.eq.u32 %p1, %r1, 5; @%p1 ret; {}", shuffle("-1")), 32);
    assert_eq!(fault.kind, FaultKind::Lane { lane: 5, problem: "is read here and takes no part in it" });
    assert!(matches!(stuck(&shuffle("-1"), 4).kind, FaultKind::Lane { lane: 5, .. }));
    let fault = stuck(&format!("setp.ge.u32 %p1, %r1, 4; @%p1 bra e; {} e:", shuffle("15")), 32);
    assert!(matches!(fault.kind, FaultKind::Lane { lane: 5, .. }), "{fault}");
    // A lane outside its own mask.
    let fault = stuck(&shuffle("0xfffffffe"), 32);
    assert_eq!(fault.kind, FaultKind::Lane { lane: 0, problem: "is not in its own mask" });
    // A lane that the mask names waits elsewhere.
    let fault =
        stuck(&format!("setp.eq.u32 %p1, %r1, 5; @%p1 bra b; {} ret; b: bar.sync 0;", shuffle("-1")), 32);
    assert!(matches!(fault.kind, FaultKind::Deadlock(_) | FaultKind::DivergentBarrier(_)), "{fault}");
}

#[test]
fn a_launch_that_never_ends_is_a_fault() {
    let bench = Bench::new(&kernel(&[], "mov.u32 %r1, 0; a: add.u32 %r1, %r1, 1; bra a;"));
    let result = bench.launch_with("k", [1, 1, 1], [2, 1, 1], 0, &[], 100_000);
    let fault = result.unwrap_err();
    assert_eq!(fault.kind, FaultKind::InstructionLimit(100_000));
}

#[test]
fn a_thread_may_wait_in_a_loop_for_another() {
    let bench = Bench::new(&kernel(
        &[".u64 f"],
        "ld.param.u64 %d1, [f]; mov.u32 %r1, %tid.x; setp.eq.u32 %p1, %r1, 33; @%p1 bra set;
        a: ld.acquire.gpu.global.u32 %r2, [%d1]; setp.eq.u32 %p2, %r2, 0; @%p2 bra a; ret;
        set: st.release.gpu.global.u32 [%d1], 1; ret;",
    ));
    bench.launch("k", 1, 64, &[bench.device.put(&[0_u32]).into()]).unwrap();
}

#[test]
fn trap_is_a_fault_of_the_thread_that_trapped() {
    let fault = stuck("setp.eq.u32 %p1, %r1, 3; @%p1 trap;", 8);
    assert_eq!((fault.kind, fault.thread), (FaultKind::Trap, [3, 0, 0]));
}

#[test]
fn endless_recursion_is_a_fault() {
    let bench =
        Bench::new(".func f() { call.uni f, (); ret; }\n.visible .entry k() { call.uni f, (); ret; }");
    assert!(matches!(bench.fault("k", 1, 1, &[]).kind, FaultKind::Stack(_)));
}

#[test]
fn launches_that_no_device_could_do_are_refused() {
    let text = kernel(&[".u32 n"], "ret;").replace(")\n{", ")\n.maxntid 128, 1, 1\n{");
    let bench = Bench::new(&text);
    let launch = |grid, block, shared| {
        let result = bench.launch_with("k", grid, block, shared, &[1_u32.into()], DEFAULT_INSTRUCTION_LIMIT);
        result.err().map(|fault| matches!(fault.kind, FaultKind::Launch(_)))
    };
    assert_eq!(launch([1, 1, 1], [128, 1, 1], 0), None);
    for (grid, block, shared) in [
        ([1, 1, 1], [129, 1, 1], 0),
        ([1, 1, 1], [0, 1, 1], 0),
        ([0, 1, 1], [1, 1, 1], 0),
        ([1, 65536, 1], [1, 1, 1], 0),
        ([1, 1, 1], [1, 1, 1], 228 << 10),
    ] {
        assert_eq!(launch(grid, block, shared), Some(true), "{grid:?} {block:?} {shared}");
    }
    let kernel = bench.module.kernel("k").unwrap();
    let wrong = Launch { grid: [1; 3], block: [1; 3], dynamic_shared: 0, params: &[0; 3] };
    assert!(run(&bench.module, kernel, &wrong, &bench.device, &[], 10).is_err());
}
