//! Where `tidepool table build` takes rows from: which file, which columns or arrays of it, and what they are.

use std::path::{Path, PathBuf};

use anyhow::{Result, bail};
use clap::{Args, value_parser};
use tidepool_import::{
    ArrayPath, ArraySource, CsvSource, ParquetColumns, ParquetSource, RowSource, ScaleBias, StoredLayout,
    StoredSource, StringIds,
};
use tidepool_types::RowFormat;

/// What the arrays of an .npz or .safetensors file are called unless something else is said.
const IDS: &str = "ids";
/// And the vectors.
const VECTORS: &str = "vectors";

#[derive(Args)]
pub(super) struct SourceArgs {
    /// A .parquet file, or a folder of them; a .npy, .npz or .safetensors file (vectors as the rows of an
    /// array); or a .csv file (an id, then the vector).
    #[arg(long, value_name = "FILE|DIR")]
    pub(super) from: PathBuf,
    /// With an array: a .npy file of one id per row. Without ids they are the row numbers.
    #[arg(long, value_name = "FILE", conflicts_with = "id_column")]
    ids: Option<PathBuf>,
    /// The column of ids of a .parquet file [default: id], or the array of ids of an .npz or .safetensors file
    /// [default: ids, if it is there].
    #[arg(long, value_name = "NAME")]
    id_column: Option<String>,
    /// The column of vectors (lists) of a .parquet file [default: embedding], or the array of an .npz or
    /// .safetensors file [default: vectors].
    #[arg(long, value_name = "NAME")]
    vector_column: Option<String>,
    /// What makes ids of strings: xxh3 (XXH3, 64 bits, seed 0, of the UTF-8 bytes). Without it strings are refused.
    #[arg(long, value_name = "HASH")]
    string_ids: Option<StringIds>,
    /// The array has rows as FBGEMM and TorchRec store them (uint8), int4 or int8: they are taken to the byte.
    #[arg(long, value_name = "FORMAT", conflicts_with_all = ["format", "quantizer"])]
    pub(super) stored: Option<RowFormat>,
    /// With --stored, where scale and bias stand: `last` (fused rowwise: f16 for int4, f32 for int8), `first` (f16:
    /// TBE inference) or `last-f16` (8 bits with half-precision scale and bias).
    #[arg(long, value_name = "WHERE", requires = "stored", default_value = "last")]
    scale_bias: ScaleBias,
    /// With --stored: rows are padded to a multiple of so many bytes (16 in tables for GPUs). Needs --dim.
    #[arg(long, value_name = "BYTES", requires = "stored", default_value_t = 1, value_parser = value_parser!(u32).range(1..))]
    row_align: u32,
    /// With --stored: elements of a row. It follows from the bytes of a row that is not padded.
    #[arg(long, requires = "stored")]
    dim: Option<u32>,
}

/// An open source.
pub(super) enum Source {
    /// Vectors, to be quantized.
    Values(Box<dyn RowSource>),
    /// Rows as they are stored.
    Stored(Box<StoredSource>),
}

impl Source {
    /// Elements of a row, and the number of rows where the file says it.
    pub(super) fn size(&self) -> (u32, Option<u64>) {
        match self {
            Self::Values(rows) => (rows.dim(), rows.rows_hint()),
            Self::Stored(rows) => (rows.dim(), Some(rows.rows())),
        }
    }
}

impl SourceArgs {
    /// Opens the source. With it comes what people should know of its ids, if anything.
    pub(super) fn open(&self) -> Result<(Source, Option<String>)> {
        let from = self.from.as_path();
        let array: fn(PathBuf, String) -> ArrayPath = match extension(from) {
            "npy" => |file, _| ArrayPath::Npy(file),
            "npz" => |file, member| ArrayPath::Npz { file, member },
            "safetensors" => |file, tensor| ArrayPath::Safetensors { file, tensor },
            "csv" | "parquet" => return Ok((self.columns()?, None)),
            _ if from.is_dir() => return Ok((self.columns()?, None)),
            _ => bail!(
                "{}: a .parquet, .npy, .npz, .safetensors or .csv file is wanted, or a folder of .parquet files",
                from.display()
            ),
        };
        if self.string_ids.is_some() {
            bail!("--string-ids goes with .parquet files; arrays have no strings");
        }
        let named = |name: &Option<String>, default: &str| {
            array(from.to_owned(), name.clone().unwrap_or_else(|| default.to_owned()))
        };
        if extension(from) == "npy" && (self.id_column.is_some() || self.vector_column.is_some()) {
            bail!("a .npy file has one array and no names: --ids FILE has the ids");
        }
        let vectors = named(&self.vector_column, VECTORS);
        let default_ids = named(&self.id_column, IDS);
        let ids = match &self.ids {
            Some(file) => Some(ArrayPath::Npy(file.clone())),
            None if extension(from) == "npy" => None,
            None => (self.id_column.is_some() || default_ids.exists()?).then_some(default_ids),
        };
        let note = ids.is_none().then(|| format!("{}: no ids, so they are the row numbers", from.display()));
        let source = match self.layout() {
            None => Source::Values(Box::new(ArraySource::open(&vectors, ids.as_ref())?)),
            Some(layout) => Source::Stored(Box::new(StoredSource::open(&vectors, ids.as_ref(), layout)?)),
        };
        Ok((source, note))
    }

    /// Opens what has its ids in a column.
    fn columns(&self) -> Result<Source> {
        if self.stored.is_some() {
            bail!("--stored goes with an array: a .npy, .npz or .safetensors file");
        }
        if self.ids.is_some() {
            bail!("--ids goes with an array; other files have the ids in a column");
        }
        if extension(&self.from) != "csv" {
            let default = ParquetColumns::default();
            let columns = ParquetColumns {
                id: self.id_column.clone().unwrap_or(default.id),
                vector: self.vector_column.clone().unwrap_or(default.vector),
                string_ids: self.string_ids,
            };
            return Ok(Source::Values(Box::new(ParquetSource::open(&self.from, &columns)?)));
        }
        if self.id_column.is_some() || self.vector_column.is_some() || self.string_ids.is_some() {
            bail!("a .csv file has a number as id in its first column, and the vector in all others");
        }
        Ok(Source::Values(Box::new(CsvSource::open(&self.from)?)))
    }

    fn layout(&self) -> Option<StoredLayout> {
        let (scale_bias, align_bytes, dim) = (self.scale_bias, self.row_align, self.dim);
        self.stored.map(|format| StoredLayout { format, scale_bias, align_bytes, dim })
    }
}

fn extension(path: &Path) -> &str {
    path.extension().and_then(|extension| extension.to_str()).unwrap_or_default()
}
