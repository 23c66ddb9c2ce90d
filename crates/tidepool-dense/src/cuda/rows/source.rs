//! The text of the kernels: one for each kind of rows that a model takes.

use tidepool_types::RowFormat;

use super::RowsLayout;

/// Threads of a block, as the kernel has them.
pub(crate) const THREADS: u32 = 128;

/// How rows are stored: what a kernel is made for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Kind {
    pub(crate) format: RowFormat,
    pub(crate) dim: u32,
}

/// The kinds of rows of a layout, each once, in the order of the inputs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Kinds {
    pub(crate) kinds: Vec<Kind>,
    /// Of each input, the number of its kind.
    pub(crate) of_input: Vec<usize>,
}

impl Kinds {
    pub(crate) fn of(layout: &RowsLayout) -> Self {
        let mut kinds: Vec<Kind> = Vec::new();
        let number = |input: &super::RowInput| {
            let table = &layout.tables()[input.table];
            let kind = Kind { format: table.format, dim: table.dim };
            let known = kinds.iter().position(|known| *known == kind);
            known.unwrap_or_else(|| {
                kinds.push(kind);
                kinds.len() - 1
            })
        };
        let of_input = layout.inputs().iter().map(number).collect();
        Self { kinds, of_input }
    }
}

impl Kind {
    /// Vectors that a block makes: as many neighbouring threads make one as it has 32-bit words of codes, rounded up
    /// to a power of two, but 32 at most.
    pub(crate) fn vectors_per_block(self) -> u32 {
        let per_word = match self.format {
            RowFormat::Int4 => 8,
            RowFormat::Int8 => 4,
            RowFormat::F16 => 2,
            RowFormat::F32 => 1,
        };
        THREADS / self.dim.div_ceil(per_word).next_power_of_two().min(32)
    }
}

/// The name of the kernel of a kind.
pub(crate) fn kernel(kind: usize) -> String {
    format!("rows_pool_{kind}")
}

/// CUDA C of the kernels of these kinds.
pub(crate) fn source(kinds: &Kinds) -> String {
    let mut text = include_str!("../kernels/rows.cu").to_owned();
    for (number, kind) in kinds.kinds.iter().enumerate() {
        text += &format!("ROWS_KIND({number}, {}, {})\n", kind.format.as_str().to_uppercase(), kind.dim);
    }
    text
}
