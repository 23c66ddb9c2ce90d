//! Operations among lanes, barriers that reduce, special registers.

use super::*;

/// `%r1` of every thread of one block after `body`, in which `%r0` is the thread's index.
fn lanes(threads: u32, body: &str) -> Vec<u32> {
    let bench = Bench::new(&kernel(
        &[".u64 o"],
        &format!(
            "ld.param.u64 %d1, [o]; mov.u32 %r0, %tid.x; mul.wide.u32 %d2, %r0, 4; add.u64 %d1, %d1, %d2;
            {body}
            st.global.u32 [%d1], %r1; ret;"
        ),
    ));
    let out = bench.device.empty(threads as usize * 4);
    bench.launch("k", 1, threads, &[out.into()]).unwrap_or_else(|fault| panic!("{fault}"));
    bench.device.get::<u32>(out, threads as usize)
}

fn per_lane(f: impl Fn(u32) -> u32) -> Vec<u32> {
    (0..32).map(f).collect()
}

#[test]
fn shuffles_of_whole_warps_and_of_segments() {
    let shuffle = |mode: &str, b: u32, clamp: u32| {
        let found = lanes(
            32,
            &format!(
                "shfl.sync.{mode}.b32 %r2|%p1, %r0, {b}, {clamp}, -1; selp.u32 %r3, 100, 0, %p1; add.u32 %r1, %r2, %r3;"
            ),
        );
        found.into_iter().map(|v| (v % 100, v >= 100)).collect::<Vec<_>>()
    };
    let model = |f: &dyn Fn(u32) -> Option<u32>| {
        (0..32).map(|l| (f(l).unwrap_or(l), f(l).is_some())).collect::<Vec<_>>()
    };
    assert_eq!(shuffle("up", 3, 0), model(&|l| l.checked_sub(3)));
    assert_eq!(shuffle("down", 5, 31), model(&|l| (l + 5 < 32).then_some(l + 5)));
    assert_eq!(shuffle("bfly", 9, 31), model(&|l| Some(l ^ 9)));
    assert_eq!(shuffle("idx", 7, 31), model(&|_| Some(7)));
    // Segments of eight lanes: CUDA's width of 8.
    assert_eq!(shuffle("up", 2, 24 << 8), model(&|l| (l % 8 >= 2).then(|| l - 2)));
    assert_eq!(shuffle("down", 2, 24 << 8 | 31), model(&|l| (l % 8 < 6).then_some(l + 2)));
    assert_eq!(shuffle("idx", 3, 24 << 8 | 31), model(&|l| Some(l / 8 * 8 + 3)));
    assert_eq!(shuffle("bfly", 12, 24 << 8 | 31), model(&|l| (l ^ 12 <= l / 8 * 8 + 7).then_some(l ^ 12)));
}

#[test]
fn half_a_warp_shuffles_while_the_other_waits_elsewhere() {
    let found = lanes(
        32,
        "setp.ge.u32 %p1, %r0, 16; @%p1 bra upper; shfl.sync.bfly.b32 %r1, %r0, 1, 31, 0xffff; bra end;
        upper: shfl.sync.bfly.b32 %r1, %r0, 2, 31, 0xffff0000; end: bar.warp.sync -1;",
    );
    assert_eq!(found, per_lane(|l| if l < 16 { l ^ 1 } else { l ^ 2 }));
}

#[test]
fn votes_matches_and_reductions() {
    assert_eq!(
        lanes(32, "setp.gt.u32 %p1, %r0, 27; vote.sync.ballot.b32 %r1, %p1, -1;"),
        per_lane(|_| 0xf << 28)
    );
    assert_eq!(lanes(20, "mov.pred %p1, 1; vote.sync.ballot.b32 %r1, %p1, -1;"), vec![0xf_ffff; 20]);
    let vote = |mode: &str, test: &str| {
        lanes(32, &format!("setp.{test}; vote.sync.{mode}.pred %p2, %p1, -1; selp.u32 %r1, 1, 0, %p2;"))[0]
    };
    assert_eq!([vote("any", "eq.u32 %p1, %r0, 9"), vote("any", "eq.u32 %p1, %r0, 99")], [1, 0]);
    assert_eq!([vote("all", "lt.u32 %p1, %r0, 32"), vote("all", "lt.u32 %p1, %r0, 31")], [1, 0]);
    assert_eq!([vote("uni", "lt.u32 %p1, %r0, 0"), vote("uni", "lt.u32 %p1, %r0, 31")], [1, 0]);
    let negated = "setp.lt.u32 %p1, %r0, 4; vote.sync.ballot.b32 %r1, !%p1, -1;";
    assert_eq!(lanes(32, negated)[0], !0xf);
    let found = lanes(32, "and.b32 %r2, %r0, 3; match.any.sync.b32 %r1, %r2, -1;");
    assert_eq!(found, per_lane(|l| 0x1111_1111 << (l & 3)));
    let all = |value: &str| {
        lanes(32, &format!("{value} match.all.sync.b32 %r2|%p1, %r3, -1; selp.u32 %r1, %r2, 7, %p1;"))[5]
    };
    assert_eq!([all("mov.u32 %r3, 5;"), all("mov.u32 %r3, %r0;")], [u32::MAX, 7]);
    let reduce = |operation: &str| {
        lanes(32, &format!("add.u32 %r2, %r0, -3; redux.sync.{operation} %r1, %r2, -1;"))[0]
    };
    assert_eq!([reduce("add.s32"), reduce("min.s32"), reduce("max.s32")], [496 - 96, -3_i32 as u32, 28]);
    assert_eq!([reduce("max.u32"), reduce("and.b32"), reduce("or.b32")], [u32::MAX, 0, u32::MAX]);
    assert_eq!(lanes(32, "activemask.b32 %r1;"), per_lane(|l| 1 << l));
}

#[test]
fn barriers_count_and_join_predicates() {
    let body = "setp.lt.u32 %p1, %r0, 37; bar.red.popc.u32 %r2, 0, %p1; barrier.cta.red.popc.aligned.u32 %r3, 1, !%p1;
        bar.red.and.pred %p2, 0, %p1; bar.red.or.pred %p3, 0, %p1; selp.u32 %r4, 1000, 0, %p2; selp.u32 %r5, 2000, 0, %p3;
        add.u32 %r1, %r2, %r4; add.u32 %r1, %r1, %r5;";
    assert_eq!(lanes(64, body), vec![2037; 64]);
    assert_eq!(lanes(30, body), vec![3030; 30]);
}

#[test]
fn some_warps_arrive_while_others_wait() {
    // The first warp produces and goes on; the second one waits for it.
    let body = ".shared .b32 s; setp.ge.u32 %p1, %r0, 32; @%p1 bra consume; setp.ne.u32 %p2, %r0, 0;
        @!%p2 st.shared.u32 [s], 42; bar.arrive 3, 64; mov.u32 %r1, 1; bra end;
        consume: bar.sync 3, 64; ld.shared.u32 %r1, [s]; end:";
    let found = lanes(64, body);
    assert_eq!((found[0], found[32], found[63]), (1, 42, 42));
}

#[test]
fn special_registers_say_where_a_thread_is() {
    let bench = Bench::new(&kernel(
        &[".u64 o"],
        "ld.param.u64 %d1, [o]; mov.u32 %r1, %tid.x; mov.u32 %r2, %tid.y; mov.u32 %r3, %tid.z; mov.u32 %r4, %ntid.x;
        mov.u32 %r5, %ntid.y; mov.u32 %r6, %ctaid.x; mov.u32 %r7, %ctaid.y; mov.u32 %r8, %nctaid.x; mov.u32 %r9, %ntid.z;
        mad.lo.u32 %r10, %r3, %r5, %r2; mad.lo.u32 %r10, %r10, %r4, %r1; mad.lo.u32 %r11, %r7, %r8, %r6;
        mul.lo.u32 %r12, %r4, %r5; mul.lo.u32 %r12, %r12, %r9; mad.lo.u32 %r13, %r11, %r12, %r10;
        mov.u32 %r14, %laneid; mov.u32 %r15, %warpid; mov.u32 %r16, %lanemask_lt; popc.b32 %r16, %r16;
        shl.b32 %r17, %r15, 5; add.u32 %r17, %r17, %r14; sub.u32 %r18, %r17, %r10; sub.u32 %r19, %r16, %r14;
        or.b32 %r18, %r18, %r19; mul.wide.u32 %d2, %r13, 4; add.u64 %d1, %d1, %d2; st.global.u32 [%d1], %r18; ret;",
    ));
    let out = bench.device.empty(4 * 6 * 60);
    bench.launch_with("k", [3, 2, 1], [5, 4, 3], 0, &[out.into()], 1_000_000).unwrap();
    assert_eq!(bench.device.get::<u32>(out, 360), vec![0; 360]);
}
