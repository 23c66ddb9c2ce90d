//! Stored rows, expanded and pooled by the kernels, are what the twin makes of them, to the bit.

use std::{collections::HashMap, sync::Arc};

use tidepool_dense::{
    resident::{Key, ResidentOptions, ResidentSet, Segment},
    rows::{
        Expanded, Pool, Position, RowCounts, RowExpander, RowInput, RowTable, RowsLayout, RowsWriter, expand,
    },
};
use tidepool_kernels::RowKernel;
use tidepool_types::{Combine, RowFormat};

use crate::{
    device,
    random::{Random, version},
};

fn table(format: RowFormat, dim: u32, rows: u32) -> RowTable {
    RowTable { format, dim, rows }
}

fn input(table: usize, pool: Pool, bags: u32, ids: u32) -> RowInput {
    let (hashes, combine) = (1, Combine::Concat);
    RowInput { table, bags, ids, pool, weighted: false, hashes, combine, default_row: Vec::new() }
}

/// Random inputs over tables of every format: dims that fill words and dims that do not.
fn random_layout(random: &mut Random) -> RowsLayout {
    let dims = [1, 2, 3, 7, 8, 16, 31, 32, 34, 64, 66, 130, 256];
    let tables: Vec<_> = (0..1 + random.below(4))
        .map(|_| {
            let dim = dims[random.below(dims.len() as u64) as usize];
            table(random.format(), dim, 1 + random.below(30) as u32)
        })
        .collect();
    let inputs = (0..1 + random.below(6)).map(|_| {
        let of = random.below(tables.len() as u64) as usize;
        let pool = match random.below(4) {
            0 => Pool::Sum,
            1 | 2 => Pool::Mean,
            _ => Pool::Sequence { max_len: 1 + random.below(5) as u32, mask: random.below(2) == 0 },
        };
        let hashes = if random.below(3) == 0 { 2 + random.below(3) as u32 } else { 1 };
        let combine = if random.below(2) == 0 { Combine::Concat } else { Combine::Sum };
        let weighted = random.below(2) == 0 && !matches!(pool, Pool::Sequence { .. });
        let parts = if combine == Combine::Concat { hashes } else { 1 };
        let width = parts * tables[of].dim;
        let default_row = match random.below(2) {
            0 => Vec::new(),
            _ => (0..width).map(|_| random.number()).collect(),
        };
        let bags = 1 + random.below(20) as u32;
        RowInput { table: of, bags, ids: bags * 6, pool, weighted, hashes, combine, default_row }
    });
    let inputs = inputs.collect();
    RowsLayout::new(tables, inputs, 40).unwrap()
}

/// What one bag of an input has: of each member its row among those of its table, and the weights.
type Bag = (Vec<Option<usize>>, Vec<f32>);

/// Rows of each table, and bags of each input.
struct Batch {
    rows: Vec<Vec<Vec<u8>>>,
    bags: Vec<Vec<Bag>>,
}

fn random_batch(random: &mut Random, layout: &RowsLayout) -> Batch {
    let rows = layout.tables().iter().map(|table| {
        let kernel = RowKernel::new(table.format, table.dim);
        (0..random.below(u64::from(table.rows) + 1)).map(|_| random.row(&kernel)).collect()
    });
    let rows: Vec<Vec<Vec<u8>>> = rows.collect();
    let bags = layout.inputs().iter().map(|input| {
        let known = rows[input.table].len() as u64;
        let most = match input.pool {
            Pool::Sequence { max_len, .. } => u64::from(max_len.min(5)),
            _ => 5,
        };
        let bag = |random: &mut Random| {
            let ids = random.below(most + 1);
            let member = |random: &mut Random| {
                (known > 0 && random.below(8) > 0).then(|| random.below(known.max(1)) as usize)
            };
            let members = (0..ids * u64::from(input.hashes)).map(|_| member(random)).collect();
            let weights = match input.weighted && random.below(3) > 0 {
                // Also such that add up to nothing.
                true => (0..ids).map(|_| (random.below(5) as f32 - 2.0) * 0.5).collect(),
                false => Vec::new(),
            };
            (members, weights)
        };
        (0..random.below(u64::from(input.bags) + 1)).map(|_| bag(random)).collect()
    });
    let bags = bags.collect();
    Batch { rows, bags }
}

impl Batch {
    fn bags(&self) -> Vec<u32> {
        self.bags.iter().map(|bags| bags.len() as u32).collect()
    }

    /// What it stages, of which every `resident`th row of each table as a key.
    fn counts(&self, layout: &RowsLayout, resident: Option<usize>) -> RowCounts {
        let keys = |rows: &[Vec<u8>]| resident.map_or(0, |every| rows.len().div_ceil(every));
        let ids = self.bags.iter().zip(layout.inputs()).map(|(bags, input)| {
            bags.iter().map(|(members, _)| members.len()).sum::<usize>() / input.hashes as usize
        });
        RowCounts {
            rows: self.rows.iter().map(|rows| rows.len() - keys(rows)).collect(),
            ids: ids.collect(),
            keys: self.rows.iter().map(|rows| keys(rows)).sum(),
        }
    }

    /// Stages it; of each table every `resident`th row as a key.
    fn write(&self, layout: &RowsLayout, writer: &mut RowsWriter<'_>, resident: Option<usize>) {
        let tables = self.rows.iter().enumerate().map(|(table, rows)| {
            let one = |(at, row): (usize, &Vec<u8>)| match resident {
                Some(every) if at % every == 0 => writer.key(table, 1000 + at as u64).unwrap(),
                _ => writer.row(table, row).unwrap(),
            };
            rows.iter().enumerate().map(one).collect::<Vec<_>>()
        });
        let places: Vec<Vec<Position>> = tables.collect();
        for (number, bags) in self.bags.iter().enumerate() {
            let table = layout.inputs()[number].table;
            for (members, weights) in bags {
                let members: Vec<_> =
                    members.iter().map(|m| m.map_or(Position::MISSING, |at| places[table][at])).collect();
                writer.bag(number, &members, weights).unwrap();
            }
        }
    }
}

fn same(made: &[Expanded], expected: &[Expanded], seed: u64) {
    let bits = |values: &[f32]| values.iter().map(|value| value.to_bits()).collect::<Vec<_>>();
    for (input, (made, expected)) in made.iter().zip(expected).enumerate() {
        assert_eq!(made.state, expected.state, "seed {seed}, input {input}: what was found");
        assert_eq!(bits(&made.values), bits(&expected.values), "seed {seed}, input {input}: vectors");
        assert_eq!(made.mask, expected.mask, "seed {seed}, input {input}: mask");
    }
    let lost = |all: &[Expanded]| all.iter().map(|one| one.lost).sum::<u32>();
    assert_eq!(lost(made), lost(expected), "seed {seed}: lost rows");
}

#[test]
fn random_bags_of_all_formats_are_the_twins() {
    let device = device();
    for seed in 0..25 {
        let mut random = Random(seed);
        let layout = random_layout(&mut random);
        let mut expander = RowExpander::new(&device, layout.clone(), None).unwrap();
        for number in 0..3 {
            // The second batch finds what the first has left in the buffers.
            let batch = random_batch(&mut random, &layout);
            // As long as it needs to be, and with all the room that there is.
            let exact = batch.counts(&layout, None);
            let counts = if number % 2 == 0 { &exact } else { layout.room() };
            let made = expander
                .run(counts, &batch.bags(), |writer| {
                    batch.write(&layout, writer, None);
                    Ok(())
                })
                .unwrap();
            let staging = expander.staging().unwrap();
            let expected: Vec<_> =
                (0..batch.bags.len()).map(|input| expand(&layout, &staging, input, |_, _| None)).collect();
            same(&made, &expected, seed);
        }
    }
}

#[test]
fn bags_mix_rows_that_were_fetched_and_resident_ones() {
    let device = device();
    for seed in 100..110 {
        let mut random = Random(seed);
        let layout = random_layout(&mut random);
        let batch = random_batch(&mut random, &layout);
        let every = 1 + random.below(3) as usize;
        // What the set has of each table; one row is promised and not there.
        let (mut ids, mut rows, mut held) = (Vec::new(), Vec::new(), HashMap::new());
        let names: Vec<_> = (0..layout.tables().len()).map(|at| version(&format!("t{at}"))).collect();
        let mut numbers = Vec::new();
        for table in &batch.rows {
            let kept: Vec<usize> = (0..table.len()).filter(|at| at % every == 0 && *at != 6).collect();
            numbers.push((!kept.is_empty()).then(|| numbers.iter().flatten().count() as u32));
            if let Some(number) = numbers[numbers.len() - 1] {
                kept.iter().for_each(|at| {
                    held.insert((number, 1000 + *at as u64), table[*at].clone());
                });
            }
            ids.push(kept.iter().map(|at| 1000 + *at as u64).collect::<Vec<_>>());
            rows.push(kept.iter().flat_map(|at| table[*at].clone()).collect::<Vec<u8>>());
        }
        let segments: Vec<_> = (0..names.len())
            .map(|at| {
                let RowTable { format, dim, .. } = layout.tables()[at];
                Segment { table: &names[at], format, dim, whole: false, ids: &ids[at], rows: &rows[at] }
            })
            .collect();
        let options = ResidentOptions::new(1 << 20, seed);
        let set = Arc::new(ResidentSet::build(&device, &segments, &options).unwrap());
        let of_set: Vec<_> = names.iter().map(|name| set.number(name)).collect();
        assert_eq!(of_set, numbers);
        let mut expander = RowExpander::new(&device, layout.clone(), None).unwrap();
        let made = expander
            .run(&batch.counts(&layout, Some(every)), &batch.bags(), |writer| {
                writer.resident(set.clone(), &of_set)?;
                batch.write(&layout, writer, Some(every));
                Ok(())
            })
            .unwrap();
        let staging = expander.staging().unwrap();
        let resident = |number: u32, id: u64| {
            assert_eq!(
                set.keys().find(Key { table: number, id }).is_some(),
                held.contains_key(&(number, id))
            );
            held.get(&(number, id)).map(Vec::as_slice)
        };
        let expected: Vec<_> =
            (0..batch.bags.len()).map(|input| expand(&layout, &staging, input, resident)).collect();
        same(&made, &expected, seed);
    }
}

#[test]
fn nothing_and_rows_that_are_no_numbers_give_default_rows() {
    let device = device();
    let default_row = vec![0.5; 4];
    let inputs = vec![
        RowInput { default_row: default_row.clone(), ..input(0, Pool::Sum, 3, 3) },
        RowInput { default_row: default_row.clone(), weighted: true, ..input(0, Pool::Mean, 3, 3) },
    ];
    let layout = RowsLayout::new(vec![table(RowFormat::F32, 4, 3)], inputs, 0).unwrap();
    let mut expander = RowExpander::new(&device, layout.clone(), None).unwrap();
    let none =
        expander.run(&RowCounts { rows: vec![0], ids: vec![0; 2], keys: 0 }, &[0, 0], |_| Ok(())).unwrap();
    assert!(none.iter().all(|made| made.values.is_empty()));
    let large = [f32::MAX; 4].map(f32::to_le_bytes).concat();
    let made = expander
        .run(layout.room(), &[3, 3], |writer| {
            let row = writer.row(0, &large)?;
            let one = writer.row(0, &[1.0f32; 4].map(f32::to_le_bytes).concat())?;
            writer.bag(0, &[row, row], &[])?;
            writer.bag(0, &[], &[])?;
            writer.bag(0, &[one], &[])?;
            writer.bag(1, &[one], &[0.0])?;
            writer.bag(1, &[one], &[f32::MAX])?;
            writer.bag(1, &[row], &[0.5])
        })
        .unwrap();
    let staging = expander.staging().unwrap();
    let expected: Vec<_> = (0..2).map(|input| expand(&layout, &staging, input, |_, _| None)).collect();
    same(&made, &expected, 0);
    assert_eq!(made[0].values[..8], [default_row.clone(), default_row].concat());
    assert_eq!(made[1].values[4..], [[1.0; 4], [f32::MAX; 4]].concat());
}
