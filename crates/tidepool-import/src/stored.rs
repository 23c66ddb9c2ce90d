//! Rows as FBGEMM and TorchRec store them: an array of u1, one row after the other, taken and given back to
//! the byte; or, on request, turned from another of their layouts into ours.

use std::str::FromStr;

use half::f16;
use tidepool_table::TableBuilder;
use tidepool_types::{MAX_DIM, RowFormat};

use crate::{
    ImportError,
    array::{Array, ArrayPath, IdElement, open_ids},
    source::{PROGRESS_ROWS, Position},
};

/// Bytes of a scale and a bias of half precision.
const HALF_PAIR_BYTES: usize = 4;

/// Where the scale and the bias of a coded row stand.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum ScaleBias {
    /// Behind the codes: f16 for int4, f32 for int8. These are our rows, and FBGEMM's fused rowwise ones.
    #[default]
    Last,
    /// Before the codes, f16: the rows of FBGEMM's TBE inference (`scale_bias_last = false`).
    First,
    /// Behind the codes, f16: what `FloatToFusedNBitRowwiseQuantizedSBHalf` makes, of 8 bits too. For int4 the
    /// same as `Last`.
    LastHalf,
}

impl FromStr for ScaleBias {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "last" => Ok(Self::Last),
            "first" => Ok(Self::First),
            "last-f16" => Ok(Self::LastHalf),
            _ => Err(format!("{text:?}: last, first or last-f16 is wanted")),
        }
    }
}

/// How the rows of an array are laid out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StoredLayout {
    /// What they are.
    pub format: RowFormat,
    /// Where scale and bias stand.
    pub scale_bias: ScaleBias,
    /// Rows are padded at their end to a multiple of so many bytes: 1 on CPUs, 16 in FBGEMM's tables on GPUs.
    pub align_bytes: u32,
    /// The dimension. Without padding it follows from the bytes of a row, and is checked; with padding it must be
    /// given.
    pub dim: Option<u32>,
}

impl StoredLayout {
    /// Rows exactly as ours.
    #[must_use]
    pub const fn ours(format: RowFormat) -> Self {
        Self { format, scale_bias: ScaleBias::Last, align_bytes: 1, dim: None }
    }

    const fn code_bytes(self, dim: u32) -> usize {
        match self.format {
            RowFormat::Int4 => dim as usize / 2,
            _ => dim as usize,
        }
    }

    /// Bytes of a row with its padding.
    fn row_bytes(self, dim: u32) -> u64 {
        let bytes = match self.scale_bias {
            ScaleBias::Last => self.format.row_bytes(dim),
            ScaleBias::First | ScaleBias::LastHalf => self.code_bytes(dim) + HALF_PAIR_BYTES,
        };
        (bytes as u64).next_multiple_of(self.align_bytes.max(1).into())
    }

    /// Turns a row of this layout into one of ours. Half precision becomes single precision exactly.
    fn convert(self, dim: u32, theirs: &[u8], ours: &mut Vec<u8>) {
        ours.clear();
        let codes = self.code_bytes(dim);
        let (codes, pair) = match self.scale_bias {
            ScaleBias::Last => return ours.extend_from_slice(&theirs[..self.format.row_bytes(dim)]),
            ScaleBias::First => (&theirs[HALF_PAIR_BYTES..][..codes], &theirs[..HALF_PAIR_BYTES]),
            ScaleBias::LastHalf => (&theirs[..codes], &theirs[codes..][..HALF_PAIR_BYTES]),
        };
        ours.extend_from_slice(codes);
        match self.format {
            RowFormat::Int4 => ours.extend_from_slice(pair),
            _ => pair.as_chunks().0.iter().for_each(|half| {
                ours.extend(f16::from_le_bytes(*half).to_f32().to_le_bytes());
            }),
        }
    }
}

/// An array of stored rows, with or without an array of ids.
pub struct StoredSource {
    rows: Array,
    ids: Option<(Array, IdElement)>,
    layout: StoredLayout,
    count: u64,
    dim: u32,
    row: Vec<u8>,
}

impl StoredSource {
    /// Opens a 2-D array of u1, `(rows, bytes of a row)`, of rows laid out so, and where there is one the
    /// array of their ids; without it the ids are 0, 1, 2 and so on.
    ///
    /// # Errors
    /// [`ImportError`]: a file cannot be read or is not what its name says; an array has another type, shape or
    /// order than it should, or another length than its header says; the two differ in length; no dimension, or
    /// not the one given, has such rows; the layout is none for the format, or needs a dimension.
    pub fn open(
        rows: &ArrayPath,
        ids: Option<&ArrayPath>,
        layout: StoredLayout,
    ) -> Result<Self, ImportError> {
        let coded = matches!(layout.format, RowFormat::Int4 | RowFormat::Int8);
        if layout.scale_bias != ScaleBias::Last && !coded {
            return Err(ImportError::NoScale { format: layout.format });
        }
        let mut rows = rows.open()?;
        if !matches!(rows.dtype.as_str(), "|u1" | "U8") {
            return Err(rows.wrong_dtype("uint8 (|u1; U8)"));
        }
        let &[count, row_bytes] = rows.shape.as_slice() else {
            return Err(rows.wrong_shape("(rows, bytes of a row)"));
        };
        if layout.align_bytes > 1 && layout.dim.is_none() {
            return Err(ImportError::StoredDim { path: rows.path, align_bytes: layout.align_bytes });
        }
        let mut dims = (2..=MAX_DIM).step_by(2).filter(|&dim| layout.dim.is_none_or(|given| given == dim));
        let dim = dims.find(|&dim| layout.row_bytes(dim) == row_bytes).ok_or_else(|| {
            let (path, format, dim) = (rows.path.clone(), layout.format, layout.dim);
            ImportError::StoredBytes { path, found: row_bytes, format, dim }
        })?;
        rows.check_length(count, row_bytes)?;
        let ids = ids.map(|ids| open_ids(ids, count)).transpose()?;
        let row = vec![0; usize::try_from(row_bytes).unwrap_or_default()];
        Ok(Self { rows, ids, layout, count, dim, row })
    }

    /// Elements of a row.
    #[must_use]
    pub const fn dim(&self) -> u32 {
        self.dim
    }

    /// How many rows there are.
    #[must_use]
    pub const fn rows(&self) -> u64 {
        self.count
    }
}

/// Pushes every row of `source` into `builder` and gives their number. `progress` is told how many are
/// done, now and then and at the end. Nothing is quantized, so one thread copies rows as fast as they are read.
///
/// # Errors
/// [`ImportError`]: the files are not what they should be, the builder refuses a row (because its format has
/// rows of another length, for example), or there is no row at all.
pub fn import_stored(
    mut source: StoredSource,
    builder: &mut TableBuilder,
    progress: &mut dyn FnMut(u64),
) -> Result<u64, ImportError> {
    let mut ours = Vec::new();
    for at in 0..source.count {
        source.rows.read_exact(&mut source.row)?;
        let id = match &mut source.ids {
            None => at,
            Some((ids, element)) => element.read(ids, at)?,
        };
        source.layout.convert(source.dim, &source.row, &mut ours);
        builder.push_stored(id, &ours).map_err(|error| ImportError::Row {
            path: source.rows.path.clone(),
            position: Position::Row(at),
            source: Box::new(error),
        })?;
        if (at + 1) % PROGRESS_ROWS == 0 {
            progress(at + 1);
        }
    }
    if source.count == 0 {
        return Err(ImportError::NoRows { path: source.rows.path });
    }
    source.rows.finish()?;
    if let Some((ids, _)) = &mut source.ids {
        ids.finish()?;
    }
    progress(source.count);
    Ok(source.count)
}
