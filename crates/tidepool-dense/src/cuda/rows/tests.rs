//! The layout to the byte, what the writer refuses, and what the twin makes of it.

use tidepool_kernels::RowKernel;
use tidepool_types::{Combine, RowFormat, mix64};

use super::*;

fn table(format: RowFormat, dim: u32, rows: u32) -> RowTable {
    RowTable { format, dim, rows }
}

fn input(pool: Pool, bags: u32, ids: u32) -> RowInput {
    RowInput {
        table: 0,
        bags,
        ids,
        pool,
        weighted: false,
        hashes: 1,
        combine: Combine::Concat,
        default_row: Vec::new(),
    }
}

/// Rows of one element each, as f32: the numbers themselves.
fn numbers(pool: Pool, weighted: bool, default: f32) -> RowsLayout {
    let input = RowInput { weighted, default_row: vec![default], ..input(pool, 4, 8) };
    RowsLayout::new(vec![table(RowFormat::F32, 1, 4)], vec![input], 4).unwrap()
}

/// A batch of so many bags, with all the room that there is.
fn begin<'a>(
    layout: &'a RowsLayout,
    staging: &'a mut [u8],
    bags: &[u32],
    tally: &'a mut Tally,
) -> Result<RowsWriter<'a>, RowsError> {
    RowsWriter::begin(layout, staging, [0, layout.head()], layout.room(), bags, tally)
}

#[test]
fn the_layout_is_what_it_was() {
    let tables = vec![table(RowFormat::Int4, 32, 100), table(RowFormat::Int4, 34, 3)];
    let user = RowInput { weighted: true, ..input(Pool::Mean, 2, 50) };
    let items = RowInput {
        table: 1,
        hashes: 2,
        combine: Combine::Concat,
        ..input(Pool::Sequence { max_len: 5, mask: true }, 60, 70)
    };
    let layout = RowsLayout::new(tables, vec![user, items], 40).unwrap();
    assert_eq!((layout.head(), RowsLayout::input_head(1)), (96, 64));
    assert_eq!((layout.tables()[0].stride(), layout.tables()[1].stride()), (20, 24));
    let mut places = layout::Places::default();
    let arrays = |places: &layout::Places| {
        let at = |of: &layout::InputAt| [of.offsets, of.positions, of.weights];
        (
            places.ids,
            places.tags,
            places.rows.clone(),
            places.inputs.iter().map(at).collect::<Vec<_>>(),
            places.end,
        )
    };
    layout.place(layout.room(), &[2, 60], 96, &mut places);
    let inputs = vec![[2656, 2672, 2880], [3088, 3344, 3904]];
    assert_eq!(arrays(&places), (96, 416, vec![576, 2576], inputs, 3904));
    assert_eq!((layout.bytes(), layout.most(90)), (3904, 3904));
    // As long as a batch needs it, behind what others have.
    let counts = RowCounts { rows: vec![3, 0], ids: vec![2, 0], keys: 1 };
    layout.place(&counts, &[1, 0], 1000, &mut places);
    let inputs = vec![[1104, 1120, 1136], [1152, 1168, 1168]];
    assert_eq!(arrays(&places), (1008, 1024, vec![1040, 1104], inputs, 1168));
    assert_eq!((layout.width(0), layout.width(1), layout.vectors(0), layout.vectors(1)), (32, 68, 2, 300));
}

#[test]
fn a_batch_is_written_as_it_was() {
    let layout = numbers(Pool::Mean, true, 0.0);
    let mut staging = vec![0xee; layout.most(80)];
    let mut tally = Tally::default();
    let counts = RowCounts { rows: vec![4], ids: vec![4], keys: 1 };
    let places = [16, 80];
    let mut writer = RowsWriter::begin(&layout, &mut staging, places, &counts, &[3], &mut tally).unwrap();
    writer.resident_at(0x1122_3344_5566_7788, &[Some(7)]);
    let one = writer.row(0, &1.0f32.to_le_bytes()).unwrap();
    let two = writer.rows(0, &[2.0f32.to_le_bytes(), 3.0f32.to_le_bytes()].concat()).unwrap();
    let key = writer.key(0, 0x0102_0304_0506_0708).unwrap();
    writer.bag(0, &[one, RowsWriter::behind(two, 1), Position::MISSING], &[0.5, 2.0, 1.0]).unwrap();
    writer.bag(0, &[], &[]).unwrap();
    writer.bag(0, &[key], &[]).unwrap();
    let staged = writer.finish().unwrap();
    assert_eq!((staged.keys, staged.bags, staged.end), (1, vec![3], 176));
    assert_eq!(staged.bytes, 12 + 3 * 4 + 4 * 4 + 4 * 8);
    let words = |at: usize, count: usize| -> Vec<u32> {
        staging[at..at + 4 * count].chunks(4).map(|b| u32::from_le_bytes(b.try_into().unwrap())).collect()
    };
    assert_eq!(words(16, 8), [0x5566_7788, 0x1122_3344, 1, 80 / 16, 96 / 16, 0, 0, 0]);
    assert_eq!(words(48, 8), [3, 1, 7, 112 / 16, 128 / 16, 144 / 16, 160 / 16, 0]);
    assert_eq!((words(80, 2), words(96, 1)), (vec![0x0506_0708, 0x0102_0304], vec![7]));
    assert_eq!(words(112, 3), [1.0f32, 2.0, 3.0].map(f32::to_bits));
    assert_eq!(words(128, 4), [0, 3, 3, 4]);
    assert_eq!(words(144, 4), [0, 2, u32::MAX, 1 << 31]);
    assert_eq!(words(160, 4), [0.5f32, 2.0, 1.0, 1.0].map(f32::to_bits));
    assert_eq!(words(176, 1), [0xeeee_eeee], "what is behind is not touched");
    // The twin has the head first.
    let staging: Vec<u8> = [&staging[16..80], &[0; 16], &staging[80..]].concat();
    let made = expand(&layout, &staging, 0, |tag, id| {
        assert_eq!((tag, id), (7, 0x0102_0304_0506_0708));
        Some(&[0, 0, 0xa0, 0x40])
    });
    assert_eq!(made.values, [(0.5 + 6.0) / 2.5, 0.0, 5.0]);
    assert_eq!((made.state, made.lost), (vec![2, DEFAULTED, 1], 0));
}

#[test]
fn what_does_not_fit_is_refused_before_anything_travels() {
    let layout = numbers(Pool::Sum, false, 0.0);
    let mut staging = vec![0; layout.bytes()];
    let mut tally = Tally::default();
    let error = begin(&layout, &mut staging[1..], &[4], &mut tally).unwrap_err();
    let needed = layout.bytes();
    assert_eq!(error, RowsError::Staging { found: needed - 1, needed });
    let error = begin(&layout, &mut staging, &[5], &mut tally).unwrap_err();
    assert_eq!(error.to_string(), "input 0: there is room for 4 bags");
    let mut writer = begin(&layout, &mut staging, &[4], &mut tally).unwrap();
    let said = |error: Result<Position, RowsError>| error.unwrap_err().to_string();
    assert_eq!(said(writer.row(0, &[0; 5])), "table 0: a row of 5 bytes, its rows have 4");
    assert_eq!(said(writer.row(1, &[0; 4])), "table 1: there are 1");
    assert_eq!(said(writer.rows(0, &[0; 20])), "table 0: there is room for 4 unique rows");
    assert_eq!(said(writer.key(0, 1)), "table 0: the resident set has none of its rows");
    writer.rows(0, &[0; 16]).unwrap();
    assert_eq!(said(writer.row(0, &[0; 4])), "table 0: there is room for 4 unique rows");
    writer.resident_at(1, &[Some(0)]);
    for id in 0..4 {
        writer.key(0, id).unwrap();
    }
    assert_eq!(said(writer.key(0, 4)), "resident set: there is room for 4 keys");
    let row = Position(3);
    let said = |error: Result<(), RowsError>| error.unwrap_err().to_string();
    assert_eq!(said(writer.bag(1, &[], &[])), "input 1: there are 1");
    assert_eq!(said(writer.bag(0, &[row; 9], &[])), "input 0: there is room for 8 ids");
    assert_eq!(said(writer.bag(0, &[row], &[1.0])), "input 0: 1 weights for 1 ids; the input has none");
    // What nothing was staged at: the kernel would read past the rows.
    for outside in [Position(4), Position(Position::RESIDENT | 4), Position(u32::MAX - 1)] {
        let text = said(writer.bag(0, &[row, outside], &[]));
        assert!(text.starts_with("input 0: nothing of its table is staged at position"), "{text}");
    }
    for _ in 0..4 {
        writer.bag(0, &[row, row], &[]).unwrap();
    }
    assert_eq!(said(writer.bag(0, &[], &[])), "input 0: there is room for 4 bags");
    let _staged = writer.finish().unwrap();
    // What a batch has said beforehand is the room that it has.
    let counts = RowCounts { rows: vec![2], ids: vec![3], keys: 0 };
    let places = [0, layout.head()];
    let mut writer = RowsWriter::begin(&layout, &mut staging, places, &counts, &[2], &mut tally).unwrap();
    let row = writer.row(0, &[0; 4]).unwrap();
    let refused = writer.rows(0, &[0; 8]).unwrap_err().to_string();
    assert_eq!(refused, "table 0: there is room for 2 unique rows");
    writer.resident_at(1, &[Some(0)]);
    assert_eq!(writer.key(0, 1).unwrap_err().to_string(), "resident set: there is room for 0 keys");
    assert_eq!(said(writer.bag(0, &[row; 4], &[])), "input 0: there is room for 3 ids");
    writer.bag(0, &[row; 3], &[]).unwrap();
    assert_eq!(writer.finish().unwrap_err().to_string(), "input 0: 1 bags were written, the batch has 2");
}

#[test]
fn a_key_of_another_table_is_no_position() {
    let tables = vec![table(RowFormat::F32, 1, 4), table(RowFormat::F32, 2, 4)];
    let layout = RowsLayout::new(tables, vec![input(Pool::Sum, 1, 2)], 2).unwrap();
    let mut staging = vec![0; layout.bytes()];
    let mut tally = Tally::default();
    let mut writer = begin(&layout, &mut staging, &[1], &mut tally).unwrap();
    writer.resident_at(1, &[Some(0), Some(1)]);
    let key = writer.key(1, 5).unwrap();
    assert!(matches!(writer.bag(0, &[key], &[]), Err(RowsError::Mismatch { .. })));
}

#[test]
fn layouts_that_the_kernel_cannot_work_with_are_refused() {
    let refused = |tables: Vec<RowTable>, input: RowInput| {
        RowsLayout::new(tables, vec![input], 0).unwrap_err().to_string()
    };
    let fine = || vec![table(RowFormat::F32, 2, 4)];
    let sum = || input(Pool::Sum, 1, 1);
    assert_eq!(
        refused(vec![table(RowFormat::F32, 0, 1)], sum()),
        "table 0: dimension 0, it must be 1 to 1024"
    );
    assert!(refused(vec![table(RowFormat::F32, 2, 1 << 31)], sum()).contains("room for 2147483648 rows"));
    assert_eq!(refused(vec![], sum()), "input 0: its table is number 0, there are 0");
    assert!(refused(fine(), RowInput { hashes: 0, ..sum() }).contains("0 rows per id"));
    assert!(refused(fine(), RowInput { ids: u32::MAX, hashes: 64, ..sum() }).contains("members are more"));
    assert!(refused(fine(), RowInput { default_row: vec![0.0], ..sum() }).contains("a vector has 2"));
    let sequence = |max_len| Pool::Sequence { max_len, mask: false };
    assert!(refused(fine(), input(sequence(0), 1, 1)).contains("a sequence of no ids"));
    assert!(refused(fine(), input(sequence(9), u32::MAX, 1)).contains("vectors are more"));
    assert!(refused(fine(), RowInput { weighted: true, ..input(sequence(9), 1, 1) }).contains("no weights"));
}

/// One bag of rows that hold these numbers, pooled.
fn pooled(pool: Pool, rows: &[Option<f32>], weights: &[f32]) -> Expanded {
    let layout = numbers(pool, !weights.is_empty(), -9.0);
    let mut staging = vec![0xee; layout.bytes()];
    let mut tally = Tally::default();
    let mut writer = begin(&layout, &mut staging, &[1], &mut tally).unwrap();
    let position = |row: &Option<f32>| match row {
        Some(row) => writer.row(0, &row.to_le_bytes()).unwrap(),
        None => Position::MISSING,
    };
    let members: Vec<_> = rows.iter().map(position).collect();
    writer.bag(0, &members, weights).unwrap();
    let _staged = writer.finish().unwrap();
    expand(&layout, &staging, 0, |_, _| None)
}

#[test]
fn vectors_are_those_of_the_merge() {
    let one = |made: Expanded| (made.values[0], made.state[0]);
    assert_eq!(one(pooled(Pool::Sum, &[Some(1.0), None, Some(2.0)], &[])), (3.0, 2));
    assert_eq!(one(pooled(Pool::Mean, &[Some(1.0), None, Some(2.0)], &[])), (1.5, 2));
    assert_eq!(one(pooled(Pool::Mean, &[Some(1.0), None, Some(2.0)], &[1.0, 7.0, 3.0])), (1.75, 2));
    assert_eq!(one(pooled(Pool::Mean, &[None, None], &[])), (-9.0, DEFAULTED));
    assert_eq!(one(pooled(Pool::Sum, &[], &[])), (-9.0, DEFAULTED));
    // Weights that add up to nothing, or beyond f32, and a sum beyond f32.
    assert_eq!(one(pooled(Pool::Mean, &[Some(1.0), Some(1.0)], &[1.0, -1.0])), (-9.0, 2 | DEFAULTED));
    let large = [f32::MAX, f32::MAX];
    assert_eq!(one(pooled(Pool::Mean, &[Some(1.0), Some(1.0)], &large)), (-9.0, 2 | DEFAULTED));
    assert_eq!(one(pooled(Pool::Sum, &large.map(Some), &[])), (-9.0, 2 | DEFAULTED));
    let sequence = pooled(Pool::Sequence { max_len: 4, mask: true }, &[Some(1.0), None, Some(3.0)], &[]);
    assert_eq!(sequence.values, [1.0, -9.0, 3.0, 0.0]);
    assert_eq!(sequence.mask, [1.0, 1.0, 1.0, 0.0]);
    assert_eq!(sequence.state, [1, DEFAULTED, 1, 0]);
}

#[test]
fn ids_with_several_rows_follow_each_other_or_are_added_up() {
    for (combine, pool, order, expected) in [
        // Two ids with rows a1 a2 and b1 b2: first all of hash 1, then all of hash 2.
        (Combine::Concat, Pool::Sum, [0, 2, 1, 3], vec![1.0 + 3.0, 2.0 + 4.0]),
        (Combine::Concat, Pool::Mean, [0, 2, 1, 3], vec![2.0, 3.0]),
        (Combine::Sum, Pool::Sum, [0, 1, 2, 3], vec![10.0]),
        // By ids, not by rows.
        (Combine::Sum, Pool::Mean, [0, 1, 2, 3], vec![5.0]),
        (Combine::Concat, Pool::Sequence { max_len: 2, mask: false }, [0, 1, 2, 3], vec![1.0, 2.0, 3.0, 4.0]),
        (Combine::Sum, Pool::Sequence { max_len: 2, mask: false }, [0, 1, 2, 3], vec![3.0, 7.0]),
    ] {
        let input = RowInput { hashes: 2, combine, ..input(pool, 1, 2) };
        let layout = RowsLayout::new(vec![table(RowFormat::F32, 1, 4)], vec![input], 0).unwrap();
        let mut made = Vec::new();
        for missing in [false, true] {
            let mut staging = vec![0xee; layout.bytes()];
            let mut tally = Tally::default();
            let mut writer = begin(&layout, &mut staging, &[1], &mut tally).unwrap();
            let bytes: Vec<u8> = [1.0f32, 2.0, 3.0, 4.0].iter().flat_map(|n| n.to_le_bytes()).collect();
            let first = writer.rows(0, &bytes).unwrap();
            let mut members = order.map(|by| RowsWriter::behind(first, by));
            if missing {
                members[3] = Position::MISSING;
            }
            writer.bag(0, &members, &[]).unwrap();
            let _staged = writer.finish().unwrap();
            made.push(expand(&layout, &staging, 0, |_, _| None));
        }
        assert_eq!(made[0].values, expected, "{combine:?} {pool:?}");
        // A vector that lacks a row is none.
        assert!(made[1].state.iter().any(|state| state & DEFAULTED != 0), "{combine:?} {pool:?}");
    }
}

#[test]
fn rows_are_read_as_the_reference_reads_them() {
    for format in RowFormat::ALL {
        for dim in [1, 2, 3, 7, 34, 100] {
            let kernel = RowKernel::new(format, dim);
            let row_of = |seed: u64| {
                let value = |at: u32| (mix64(seed * 2048 + u64::from(at)) >> 40) as f32 / 1e7 - 0.5;
                let mut row = vec![0; kernel.row_bytes()];
                kernel.quantize(&(0..dim).map(value).collect::<Vec<_>>(), &mut row).unwrap();
                row
            };
            let layout =
                RowsLayout::new(vec![table(format, dim, 2)], vec![input(Pool::Sum, 1, 3)], 0).unwrap();
            let mut staging = vec![0xee; layout.bytes()];
            let mut tally = Tally::default();
            let mut writer = begin(&layout, &mut staging, &[1], &mut tally).unwrap();
            let rows = [row_of(1), row_of(2)];
            let first = writer.rows(0, &rows.concat()).unwrap();
            let second = RowsWriter::behind(first, 1);
            writer.bag(0, &[second, first, second], &[]).unwrap();
            let _staged = writer.finish().unwrap();
            let mut expected = vec![0.0; dim as usize];
            kernel.accumulate(&[&rows[1], &rows[0], &rows[1]], &[], &mut expected);
            assert_eq!(expand(&layout, &staging, 0, |_, _| None).values, expected, "{format} {dim}");
        }
    }
}

/// The kernel divides by multiplying in f64, so that it needs no function for unusual numbers; the same here.
fn divided(x: f32, by: f32) -> f32 {
    let wide = f64::from(by).abs();
    let mut y = f64::from_bits(0x7fde_6238_22fc_16e6 - wide.to_bits());
    for _ in 0..5 {
        y = y.mul_add((-wide).mul_add(y, 1.0), y);
    }
    let inverse = if by < 0.0 { -y } else { y };
    let quotient = f64::from(x) * inverse;
    let rest = (-quotient).mul_add(f64::from(by), f64::from(x));
    rest.mul_add(inverse, quotient) as f32
}

#[test]
fn the_kernels_division_is_that_of_the_cpu() {
    let mut seed = 0;
    let mut next = || {
        seed += 1;
        mix64(seed)
    };
    for _ in 0..2_000_000 {
        let (x, by) = (f32::from_bits(next() as u32), f32::from_bits(next() as u32));
        if x.is_finite() && by.is_finite() && by != 0.0 {
            assert_eq!(divided(x, by), x / by, "{x:e} / {by:e}");
        }
        // Counts, and sums of the size of rows.
        let (x, by) = ((next() >> 40) as f32 / 1e6 - 8.0, (next() % 1000 + 1) as f32);
        assert_eq!(divided(x, by).to_bits(), (x / by).to_bits(), "{x:e} / {by}");
        // Quotients that are no normal numbers.
        let (x, by) = (f32::from_bits(next() as u32 % (1 << 24)), (next() % 100 + 1) as f32 / 8.0);
        assert_eq!(divided(x, by).to_bits(), (x / by).to_bits(), "{x:e} / {by}");
    }
}
