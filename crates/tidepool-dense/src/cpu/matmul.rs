//! The matrix product of the plan: rows that come with a run by weights that the model fixes, which are packed once.
//!
//! An element of the result starts from a bias, or from what is in its place (the part that was computed once per
//! request), and adds its products one after the other in the order of `k`, each fused. A tile of sums stays in
//! registers from its start to the ReLU behind it, so neither costs a pass over memory. So a row's bits depend neither on the
//! rows beside it nor on the instruction set, which no library of matrix products promises: those choose their
//! blocks by the shapes of a call.

use tidepool_kernels::Isa;

use super::Cpu;

/// Columns of a panel: two registers of AVX-512. The last panel has half as many when that is enough.
pub(crate) const PANEL: usize = 32;
/// Elements of a cache line, which panels begin at.
const LINE: usize = 16;

/// A matrix `[k, n]` as panels of [`PANEL`] columns, row-major each, padded with zeros.
pub(crate) struct Packed {
    k: usize,
    n: usize,
    /// Where the first panel begins: at a cache line.
    start: usize,
    values: Vec<f32>,
}

/// How the rows of a product lie in memory: strides in elements.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Rows {
    /// Rows.
    pub(crate) count: usize,
    /// Stride between the rows of the left side.
    pub(crate) a_row: usize,
    /// Stride between its columns.
    pub(crate) a_k: usize,
    /// Stride between the rows of the result, whose columns lie side by side.
    pub(crate) c_row: usize,
}

/// What the sums of a product start from, and what becomes of them.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Sums<'a> {
    pub(crate) begin: Begin<'a>,
    /// Whether sums below 0 become 0.
    pub(crate) relu: bool,
}

/// What sums start from.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Begin<'a> {
    Zero,
    /// What is in the result's place.
    There,
    /// The same numbers for each row, one for each column at least.
    Record(&'a [f32]),
}

impl<'a> Sums<'a> {
    /// Of the columns from `first` on.
    pub(crate) fn from(self, first: usize) -> Self {
        let begin = match self.begin {
            Begin::Record(record) => Begin::Record(&record[first..]),
            other => other,
        };
        Self { begin, ..self }
    }
}

impl Packed {
    /// Packs `value(k, n)`.
    pub(crate) fn new(k: usize, n: usize, value: impl Fn(usize, usize) -> f32) -> Self {
        let panels = (0..n.div_ceil(PANEL)).map(|p| panel_width(n, p) * k);
        let mut values = vec![0.0; panels.sum::<usize>() + LINE - 1];
        let start = values.as_ptr().align_offset(LINE * size_of::<f32>()).min(LINE - 1);
        for column in 0..n {
            let (panel, width) = (column / PANEL, panel_width(n, column / PANEL));
            for row in 0..k {
                values[start + panel * PANEL * k + row * width + column % PANEL] = value(row, column);
            }
        }
        Self { k, n, start, values }
    }

    /// Nothing, to be packed anew again and again.
    pub(crate) fn empty() -> Self {
        Self { k: 0, n: 0, start: 0, values: Vec::new() }
    }

    /// Packs the matrix `[k, n]` whose elements lie `by_k` and `by_n` apart; it allocates only when it has not been as
    /// large before.
    pub(crate) fn refill(&mut self, (k, n): (usize, usize), values: &[f32], (by_k, by_n): (usize, usize)) {
        let panels = (0..n.div_ceil(PANEL)).map(|p| panel_width(n, p) * k);
        let needed = panels.sum::<usize>() + LINE - 1;
        if self.values.len() < needed {
            self.values.resize(needed, 0.0);
        }
        (self.k, self.n) = (k, n);
        self.start = self.values.as_ptr().align_offset(LINE * size_of::<f32>()).min(LINE - 1);
        for p in 0..n.div_ceil(PANEL) {
            let width = panel_width(n, p);
            let panel = &mut self.values[self.start + p * PANEL * k..][..k * width];
            let columns = (n - p * PANEL).min(width);
            for (row, line) in panel.chunks_exact_mut(width).enumerate() {
                let from = &values[row * by_k + p * PANEL * by_n..];
                for (column, x) in line[..columns].iter_mut().enumerate() {
                    *x = from[column * by_n];
                }
                line[columns..].fill(0.0);
            }
        }
    }

    /// Columns.
    pub(crate) fn columns(&self) -> usize {
        self.n
    }

    /// Rows.
    pub(crate) fn depth(&self) -> usize {
        self.k
    }

    /// The element of this row and column.
    pub(crate) fn at(&self, k: usize, n: usize) -> f32 {
        let (panel, width) = (n / PANEL, panel_width(self.n, n / PANEL));
        self.values[self.start + panel * PANEL * self.k + k * width + n % PANEL]
    }

    /// Bytes that it takes.
    pub(crate) fn bytes(&self) -> usize {
        self.values.len() * size_of::<f32>()
    }
}

/// What panel `p` of `n` columns has: 32, or 16 where the last has no more.
fn panel_width(n: usize, p: usize) -> usize {
    if n - p * PANEL <= LINE { LINE } else { PANEL }
}

/// Puts the sums of `a * b` into `c`.
///
/// # Panics
/// When `rows` reaches beyond `a` or `c`, rows of `c` overlap, or a record is too short: the plan is made so that none
/// of it happens.
pub(crate) fn multiply(cpu: Cpu, rows: Rows, a: &[f32], b: &Packed, c: &mut [f32], sums: Sums<'_>) {
    if rows.count == 0 || b.n == 0 {
        return;
    }
    let last = rows.count - 1;
    let end_of_a = last.checked_mul(rows.a_row).zip(b.k.saturating_sub(1).checked_mul(rows.a_k));
    let end_of_a = end_of_a.and_then(|(row, column)| row.checked_add(column));
    assert!(end_of_a.is_some_and(|end| end < a.len()), "the left side has {} elements: {rows:?}", a.len());
    let end_of_c = last.checked_mul(rows.c_row).and_then(|row| row.checked_add(b.n));
    assert!(end_of_c.is_some_and(|end| end <= c.len()), "the result has {} elements: {rows:?}", c.len());
    assert!(last == 0 || rows.c_row >= b.n, "rows of the result overlap: {rows:?}");
    if let Begin::Record(record) = sums.begin {
        assert!(record.len() >= b.n, "{} columns start from {} numbers", b.n, record.len());
    }
    for p in 0..b.n.div_ceil(PANEL) {
        let width = panel_width(b.n, p);
        let panel = &b.values[b.start + p * PANEL * b.k..][..b.k * width];
        let columns = (b.n - p * PANEL).min(width);
        let (c, sums) = (&mut c[p * PANEL..], sums.from(p * PANEL));
        match cpu.isa() {
            #[cfg(target_arch = "x86_64")]
            Isa::Avx512 => {
                // SAFETY: a `Cpu` is only made of an instruction set that was found here; that the rows lie within
                // `a` and `c` and that a record has all columns was checked above, and the panel has a row of `width`
                // for each `k`.
                unsafe { super::matmul_avx512::panel(rows, a, (panel, width), c, columns, sums) }
            }
            #[cfg(target_arch = "x86_64")]
            Isa::Avx2 => {
                // SAFETY: as above.
                unsafe { super::matmul_avx2::panel(rows, a, (panel, width), c, columns, sums) }
            }
            _ => scalar(rows, a, (panel, width), c, columns, sums),
        }
    }
}

/// The reference: one element after the other.
fn scalar(
    rows: Rows,
    a: &[f32],
    (panel, width): (&[f32], usize),
    c: &mut [f32],
    columns: usize,
    sums: Sums<'_>,
) {
    for row in 0..rows.count {
        for column in 0..columns {
            let place = &mut c[row * rows.c_row + column];
            let mut sum = match sums.begin {
                Begin::Zero => 0.0,
                Begin::There => *place,
                Begin::Record(record) => record[column],
            };
            for (k, b) in panel.chunks_exact(width).enumerate() {
                sum = a[row * rows.a_row + k * rows.a_k].mul_add(b[column], sum);
            }
            // NaN stays NaN.
            *place = if sums.relu && sum < 0.0 { 0.0 } else { sum };
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PLAIN: Sums<'static> = Sums { begin: Begin::There, relu: false };

    #[test]
    fn every_instruction_set_gives_the_bits_of_the_plain_loop() {
        let number = |i: usize| ((i * 2_654_435_761) % 1_000) as f32 * 1e-3 - 0.5;
        for (m, k, n) in
            [(1, 1, 1), (3, 7, 16), (12, 33, 17), (13, 5, 32), (25, 64, 49), (30, 2, 100), (5, 0, 3)]
        {
            let a: Vec<f32> = (0..m * (k + 3)).map(number).collect();
            let b: Vec<f32> = (0..k * n).map(|i| number(i + 77)).collect();
            let bias: Vec<f32> = (0..m * (n + 5)).map(|i| number(i + 5)).collect();
            let packed = Packed::new(k, n, |row, column| b[row * n + column]);
            for (a_row, a_k, relu) in [(k + 3, 1, false), (1, m, false), (k + 3, 1, true)] {
                let rows = Rows { count: m, a_row, a_k, c_row: n + 5 };
                for begin in [Begin::Zero, Begin::There, Begin::Record(&bias[3..3 + n])] {
                    let mut expected = bias.clone();
                    for row in 0..m {
                        for column in 0..n {
                            let place = &mut expected[row * (n + 5) + column];
                            let mut sum = match begin {
                                Begin::Zero => 0.0,
                                Begin::There => *place,
                                Begin::Record(record) => record[column],
                            };
                            for k in 0..k {
                                sum = a[row * a_row + k * a_k].mul_add(b[k * n + column], sum);
                            }
                            *place = if relu { sum.max(0.0) } else { sum };
                        }
                    }
                    for cpu in Cpu::available() {
                        let mut found = bias.clone();
                        multiply(cpu, rows, &a, &packed, &mut found, Sums { begin, relu });
                        assert_eq!(found, expected, "{cpu:?} {m} {k} {n} {begin:?} {relu}");
                    }
                }
            }
        }
    }

    #[test]
    fn relu_keeps_what_is_not_a_number() {
        let packed = Packed::new(1, 20, |_, _| 1.0);
        for cpu in Cpu::available() {
            let mut found = vec![0.0; 60];
            let rows = Rows { count: 3, a_row: 1, a_k: 1, c_row: 20 };
            let sums = Sums { begin: Begin::Zero, relu: true };
            multiply(cpu, rows, &[f32::NAN, f32::NEG_INFINITY, f32::INFINITY], &packed, &mut found, sums);
            assert!(found[..20].iter().all(|x| x.is_nan()), "{cpu:?}");
            assert!(found[20..40].iter().all(|x| *x == 0.0), "{cpu:?}");
            assert!(found[40..].iter().all(|x| *x == f32::INFINITY), "{cpu:?}");
        }
    }

    #[test]
    fn packing_anew_leaves_nothing_of_what_was_there() {
        let number = |i: usize| i as f32 * 0.5 - 3.0;
        let mut again = Packed::empty();
        for (k, n) in [(9, 70), (5, 33), (3, 7), (20, 40)] {
            let b: Vec<f32> = (0..k * n).map(number).collect();
            // As it lies, and turned.
            for (by_k, by_n) in [(n, 1), (1, k)] {
                again.refill((k, n), &b, (by_k, by_n));
                let once = Packed::new(k, n, |row, column| b[row * by_k + column * by_n]);
                let a: Vec<f32> = (0..4 * k).map(|i| number(i + 3)).collect();
                let rows = Rows { count: 4, a_row: k, a_k: 1, c_row: n };
                let (mut found, mut expected) = (vec![0.0; 4 * n], vec![0.0; 4 * n]);
                multiply(Cpu::detect(), rows, &a, &again, &mut found, PLAIN);
                multiply(Cpu::detect(), rows, &a, &once, &mut expected, PLAIN);
                assert_eq!(found, expected, "{k} {n} {by_k}");
            }
        }
    }

    #[test]
    fn a_row_has_the_same_bits_whatever_is_beside_it() {
        let number = |i: usize| ((i * 40_503) % 997) as f32 * 1e-2 - 4.0;
        let (m, k, n) = (37, 50, 40);
        let a: Vec<f32> = (0..m * k).map(number).collect();
        let packed = Packed::new(k, n, |row, column| number(row * n + column));
        let cpu = Cpu::detect();
        let mut whole = vec![0.25; m * n];
        let rows = Rows { count: m, a_row: k, a_k: 1, c_row: n };
        multiply(cpu, rows, &a, &packed, &mut whole, PLAIN);
        for row in 0..m {
            let mut alone = vec![0.25; n];
            let rows = Rows { count: 1, a_row: k, a_k: 1, c_row: n };
            multiply(cpu, rows, &a[row * k..], &packed, &mut alone, PLAIN);
            assert_eq!(alone, whole[row * n..][..n], "row {row}");
        }
    }
}
