//! Benches of tiny tables: every combination runs, and what is wrong with an answer is noticed.

use tempfile::TempDir;
use tidepool_table::{Bags, LookupScratch, Pooled};

use super::{worker::wrong_answers, *};
use crate::rows::id_of;

fn params(dir: &TempDir) -> Params {
    Params {
        rows: 3000,
        dim: 16,
        bag: 20,
        format: RowFormat::Int4,
        skew: Skew::Uniform,
        keying: Keying::Hashed,
        partitions: PartitionCount::new(4).unwrap(),
        threads: NonZeroUsize::MIN,
        isa: None,
        residency: Residency::Auto,
        weighted: false,
        time: Duration::ZERO,
        seed: 7,
        pass_bytes: Some(1),
        dir: dir.path().to_owned(),
    }
}

#[test]
fn every_format_keying_and_skew_runs_and_is_right() {
    let dir = TempDir::new().unwrap();
    for format in RowFormat::ALL {
        for (keying, skew, weighted, threads) in [
            (Keying::Dense, Skew::Uniform, false, 1),
            (Keying::Dense, Skew::Zipf(1.05), true, 1),
            (Keying::Hashed, Skew::Zipf(1.0), false, 2),
            (Keying::Hashed, Skew::Uniform, true, 2),
        ] {
            let threads = NonZeroUsize::new(threads).unwrap();
            let params = Params { format, keying, skew, weighted, threads, ..params(&dir) };
            let report = run(&params, &mut |_, _, _| ()).unwrap();
            assert_eq!(report.wrong_answers, 0, "{report:?}");
            assert_eq!(report.checked_answers, (MIN_PAIRS * 1000 * threads.get()) as u64);
            assert!(report.rows_per_second > 0.0 && report.gather_limit_rows_per_second > 0.0);
            assert!(report.table_bytes > 3000 * report.row_bytes);
            assert_eq!(report.index_bytes > 0, keying == Keying::Hashed);
        }
    }
}

#[test]
fn a_table_is_built_once_and_its_progress_told() {
    let dir = TempDir::new().unwrap();
    let mut steps = Vec::new();
    assert!(run(&params(&dir), &mut |step, _, _| steps.push(step)).unwrap().built);
    steps.dedup();
    assert_eq!(steps, [Step::Rows, Step::Building, Step::Verifying, Step::Timing]);
    assert!(!run(&params(&dir), &mut |_, _, _| ()).unwrap().built);
}

#[test]
fn one_instruction_set_is_forced() {
    let dir = TempDir::new().unwrap();
    let params = Params { isa: Some(Isa::Scalar), ..params(&dir) };
    assert_eq!(run(&params, &mut |_, _, _| ()).unwrap().isa, "scalar");
}

#[test]
fn rows_may_lie_in_the_map_or_be_copied() {
    let dir = TempDir::new().unwrap();
    for residency in [Residency::Mapped, Residency::Copied] {
        let params = Params { residency, ..params(&dir) };
        let report = run(&params, &mut |_, _, _| ()).unwrap();
        assert_eq!((report.residency, report.wrong_answers), (residency.as_str(), 0));
        assert!(report.ratio_to_gather_limit_on_cpu.median > 0.0);
    }
}

#[test]
fn parameters_of_no_table_are_refused() {
    let dir = TempDir::new().unwrap();
    for wrong in [
        Params { rows: 0, ..params(&dir) },
        Params { bag: 0, ..params(&dir) },
        Params { bag: 20_001, ..params(&dir) },
        Params { dim: 7, ..params(&dir) },
    ] {
        assert!(run(&wrong, &mut |_, _, _| ()).is_err(), "{wrong:?}");
    }
}

#[test]
fn answers_of_swapped_rows_or_weights_count_as_wrong() {
    const BAG: usize = 20;
    let dir = TempDir::new().unwrap();
    let params = params(&dir);
    let kernel = RowKernel::new(params.format, params.dim);
    let view = open(&params, kernel, &mut |_, _, _| ()).unwrap().0.view;
    let ids: Vec<[u8; 8]> = (0..10 * BAG as u64).map(|n| id_of(Keying::Hashed, n).to_le_bytes()).collect();
    let weights: Vec<[u8; 4]> = (0..ids.len()).map(|n| (0.5 + n as f32 / 64.0).to_le_bytes()).collect();
    let members: Vec<[u8; 4]> = (0..ids.len() as u32).map(u32::to_le_bytes).collect();
    let lengths = vec![(BAG as u32).to_le_bytes(); ids.len() / BAG];
    let wrong = |asked: &[[u8; 8]], asked_weights: &[[u8; 4]], spoil: &dyn Fn(&mut Pooled)| {
        let mut pooled = Pooled::default();
        let bags = Bags { members: Some(&members), lengths: &lengths, weights: Some(asked_weights) };
        view.pool(asked, bags, &mut LookupScratch::default(), &mut pooled).unwrap();
        spoil(&mut pooled);
        let mut oracle = Oracle::new(params.format, params.dim, ROWS_VERSION);
        wrong_answers(&ids, BAG, Some(&weights), &pooled, &mut oracle)
    };
    let leave = |_: &mut Pooled| ();
    assert_eq!(wrong(&ids, &weights, &leave), (10, 0));

    let mut swapped = ids.clone();
    swapped.swap(3, 3 * BAG);
    assert_eq!(wrong(&swapped, &weights, &leave), (10, 2), "rows of two bags");
    let mut swapped = weights.clone();
    swapped.swap(3, 9);
    assert_eq!(wrong(&ids, &swapped, &leave), (10, 1), "weights of one bag");
    let mut absent = ids.clone();
    absent[0] = id_of(Keying::Hashed, params.rows + 1).to_le_bytes();
    assert_eq!(wrong(&absent, &weights, &leave), (10, 1), "a row that is not there");

    let spoiled = |spoil: &dyn Fn(&mut Pooled)| wrong(&ids, &weights, spoil).1;
    assert_eq!(spoiled(&|pooled| pooled.sums[2] ^= 0x40), 1, "a bit of one sum");
    assert_eq!(spoiled(&|pooled| pooled.counts[0] -= 1), 1, "a count");
    assert_eq!(spoiled(&|pooled| pooled.weight_sums[3] ^= 1), 1, "a sum of weights");
    assert_eq!(spoiled(&|pooled| pooled.counts.truncate(4 * 9)), 1, "an answer left out");
    assert_eq!(spoiled(&|pooled| pooled.sums.clear()), 10, "no answers");
}
