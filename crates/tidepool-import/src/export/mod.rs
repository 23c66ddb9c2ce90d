//! Tables into files: Parquet, NPY (values, or rows as they are stored, with a file of ids beside it) and CSV.
//! Rows are written in the order of the table's files, as they are read, so memory does not grow with them.

mod parquet;

use std::{
    fs::{self, File},
    io::{self, BufWriter, Write},
    path::{Path, PathBuf},
};

use tidepool_kernels::RowKernel;
use tidepool_table::LayoutReader;

pub use self::parquet::export_parquet;
use crate::{ImportError, array::header_bytes, source::PROGRESS_ROWS};

const BUFFER_BYTES: usize = 1 << 20;

/// A file that appears under its name only when all of it is written, and leaves nothing behind otherwise.
struct NewFile {
    path: PathBuf,
    temp: PathBuf,
    out: BufWriter<File>,
    named: bool,
}

impl Drop for NewFile {
    fn drop(&mut self) {
        if !self.named {
            // Nobody is left to hear of it; the next export writes over it.
            let _ = fs::remove_file(&self.temp);
        }
    }
}

impl NewFile {
    fn create(path: &Path) -> Result<Self, ImportError> {
        if path.exists() {
            return Err(ImportError::Exists { path: path.into() });
        }
        let mut temp = path.as_os_str().to_owned();
        temp.push(".part");
        let temp = PathBuf::from(temp);
        let io = |source| ImportError::Io { action: "creating", path: temp.clone(), source };
        let out = BufWriter::with_capacity(BUFFER_BYTES, File::create(&temp).map_err(io)?);
        Ok(Self { path: path.into(), temp, out, named: false })
    }

    fn write(
        &mut self,
        write: impl FnOnce(&mut BufWriter<File>) -> io::Result<()>,
    ) -> Result<(), ImportError> {
        write(&mut self.out).map_err(|source| ImportError::Io {
            action: "writing",
            path: self.temp.clone(),
            source,
        })
    }

    fn finish(mut self) -> Result<(), ImportError> {
        self.write(|out| {
            out.flush()?;
            out.get_ref().sync_all()
        })?;
        fs::rename(&self.temp, &self.path).map_err(|source| ImportError::Io {
            action: "naming",
            path: self.path.clone(),
            source,
        })?;
        self.named = true;
        Ok(())
    }
}

/// Writes the values of all rows as a 2-D NPY array of f4, and the ids, in the same order, as a 1-D array of u8.
///
/// # Errors
/// [`ImportError`]: a file exists already, or cannot be written.
pub fn export_npy(
    layout: &LayoutReader,
    vectors: &Path,
    ids: &Path,
    progress: &mut dyn FnMut(u64),
) -> Result<(), ImportError> {
    let schema = &layout.manifest().schema;
    let kernel = RowKernel::new(schema.format, schema.dim);
    let mut values = vec![0.0; schema.dim as usize];
    let header = header_bytes("<f4", &[schema.rows, u64::from(schema.dim)]);
    two_arrays(layout, (vectors, header), ids, progress, |row, out| {
        kernel.dequantize(row, &mut values);
        values.iter().try_for_each(|value| out.write_all(&value.to_le_bytes()))
    })
}

/// Writes all rows as they are stored as a 2-D NPY array of u1 (int4 and int8 rows are FBGEMM's fused rows),
/// and the ids, in the same order, as a 1-D array of u8.
///
/// # Errors
/// As [`export_npy`].
pub fn export_stored(
    layout: &LayoutReader,
    rows: &Path,
    ids: &Path,
    progress: &mut dyn FnMut(u64),
) -> Result<(), ImportError> {
    let schema = &layout.manifest().schema;
    let header = header_bytes("|u1", &[schema.rows, schema.row_bytes() as u64]);
    two_arrays(layout, (rows, header), ids, progress, |row, out| out.write_all(row))
}

fn two_arrays(
    layout: &LayoutReader,
    (path, header): (&Path, Vec<u8>),
    ids_path: &Path,
    progress: &mut dyn FnMut(u64),
    mut write_row: impl FnMut(&[u8], &mut BufWriter<File>) -> io::Result<()>,
) -> Result<(), ImportError> {
    let mut rows = NewFile::create(path)?;
    let mut ids = NewFile::create(ids_path)?;
    rows.write(|out| out.write_all(&header))?;
    ids.write(|out| out.write_all(&header_bytes("<u8", &[layout.manifest().schema.rows])))?;
    for ((id, row), done) in layout.entries().zip(1..) {
        rows.write(|out| write_row(row, out))?;
        ids.write(|out| out.write_all(&id.to_le_bytes()))?;
        if done % PROGRESS_ROWS == 0 {
            progress(done);
        }
    }
    rows.finish()?;
    ids.finish()
}

/// Writes all rows as lines `id,v0,v1,...` after a header line. The shortest decimal of each value that reads
/// back as the same f32 is written.
///
/// # Errors
/// As [`export_npy`].
pub fn export_csv(
    layout: &LayoutReader,
    to: &Path,
    progress: &mut dyn FnMut(u64),
) -> Result<(), ImportError> {
    let schema = &layout.manifest().schema;
    let kernel = RowKernel::new(schema.format, schema.dim);
    let mut values = vec![0.0f32; schema.dim as usize];
    let mut file = NewFile::create(to)?;
    file.write(|out| {
        write!(out, "id")?;
        (0..schema.dim).try_for_each(|column| write!(out, ",v{column}"))?;
        writeln!(out)
    })?;
    for ((id, row), done) in layout.entries().zip(1..) {
        kernel.dequantize(row, &mut values);
        file.write(|out| {
            write!(out, "{id}")?;
            values.iter().try_for_each(|value| write!(out, ",{value}"))?;
            writeln!(out)
        })?;
        if done % PROGRESS_ROWS == 0 {
            progress(done);
        }
    }
    file.finish()
}
