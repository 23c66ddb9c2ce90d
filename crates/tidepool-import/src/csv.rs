//! CSV: one row per line, `id,v0,v1,...`, with or without a header line.
//!
//! The first line is a header when its first field is `id` or empty, or when nothing in it is a number;
//! so a first row with a broken id is an error and not a header. A field may stand in double quotes and
//! among blanks; empty lines are skipped. Numbers contain neither commas nor quotes nor line ends, so a
//! line is split at its commas and every error can name the line an editor would show.

use std::{
    fs::File,
    io::{BufRead, BufReader, Read},
    path::{Path, PathBuf},
    str::FromStr,
};

use tidepool_types::RowFormat;

use crate::{
    ImportError,
    source::{Position, RowSource},
};

/// The longest line, in bytes: a thousand bytes for each element of the widest row.
const MAX_LINE_BYTES: usize = 1 << 20;
/// What is read from the file at once.
const BUFFER_BYTES: usize = 1 << 18;
/// What some programs put before UTF-8 text.
const BYTE_ORDER_MARK: &[u8] = b"\xef\xbb\xbf";

/// A CSV file of rows.
#[derive(Debug)]
pub struct CsvSource {
    path: PathBuf,
    dim: u32,
    reader: BufReader<File>,
    /// The line in hand, without blanks around it and its end.
    text: Vec<u8>,
    /// Its number, from 1.
    line: u64,
    /// Whether it is the first row, read to learn the dimension and not given out yet.
    pending: bool,
}

impl CsvSource {
    /// Opens a file and reads its first line, which tells the dimension.
    ///
    /// # Errors
    /// [`ImportError`] when it cannot be read, is empty, or has rows of a dimension that no table may have.
    pub fn open(path: &Path) -> Result<Self, ImportError> {
        let file = File::open(path).map_err(|source| ImportError::Io {
            action: "opening",
            path: path.into(),
            source,
        })?;
        let mut source = Self {
            path: path.into(),
            dim: 0,
            reader: BufReader::with_capacity(BUFFER_BYTES, file),
            text: Vec::new(),
            line: 0,
            pending: false,
        };
        if !source.read_line()? {
            return Err(ImportError::NoRows { path: path.into() });
        }
        source.dim = RowFormat::check_dim(fields(&source.text).count() as u64 - 1)
            .map_err(|error| ImportError::Dim { path: path.into(), source: error })?;
        source.pending = !is_header(&source.text);
        Ok(source)
    }

    /// Reads the next line that is not empty; false at the end.
    fn read_line(&mut self) -> Result<bool, ImportError> {
        loop {
            self.text.clear();
            self.line += 1;
            let limit = MAX_LINE_BYTES as u64 + 1;
            let read =
                self.reader.by_ref().take(limit).read_until(b'\n', &mut self.text).map_err(|source| {
                    ImportError::Io { action: "reading", path: self.path.clone(), source }
                })?;
            if read > MAX_LINE_BYTES {
                return Err(ImportError::LineTooLong {
                    path: self.path.clone(),
                    line: self.line,
                    limit_bytes: MAX_LINE_BYTES,
                });
            }
            if self.line == 1 && self.text.starts_with(BYTE_ORDER_MARK) {
                self.text.drain(..BYTE_ORDER_MARK.len());
            }
            if !self.text.trim_ascii().is_empty() {
                return Ok(true);
            }
            if read == 0 {
                return Ok(false);
            }
        }
    }

    fn parse_line(&self, values: &mut [f32]) -> Result<u64, ImportError> {
        let (path, line) = (&self.path, self.line);
        let expected = self.dim as usize + 1;
        let found = fields(&self.text).count();
        if found != expected {
            return Err(ImportError::Columns { path: path.clone(), line, found, expected });
        }
        let mut fields = fields(&self.text);
        let first = fields.next().unwrap_or_default();
        let id =
            parse(first).ok_or_else(|| ImportError::Id { path: path.clone(), line, text: shown(first) })?;
        for (column, (value, field)) in (2..).zip(values.iter_mut().zip(fields)) {
            *value = parse(field).filter(|v: &f32| v.is_finite()).ok_or_else(|| ImportError::Value {
                path: path.clone(),
                line,
                id,
                column,
                text: shown(field),
            })?;
        }
        Ok(id)
    }
}

impl RowSource for CsvSource {
    fn path(&self) -> &Path {
        &self.path
    }

    fn dim(&self) -> u32 {
        self.dim
    }

    fn rows_hint(&self) -> Option<u64> {
        None
    }

    fn next_row(&mut self, values: &mut [f32]) -> Result<Option<u64>, ImportError> {
        if !std::mem::take(&mut self.pending) && !self.read_line()? {
            return Ok(None);
        }
        self.parse_line(values).map(Some)
    }

    fn position(&self) -> Position {
        Position::Line(self.line)
    }
}

/// The fields of a line, without the blanks and the quotes around them.
fn fields(line: &[u8]) -> impl Iterator<Item = &[u8]> {
    line.split(|&byte| byte == b',').map(|field| {
        let field = field.trim_ascii();
        match field {
            [b'"', within @ .., b'"'] => within.trim_ascii(),
            _ => field,
        }
    })
}

fn is_header(line: &[u8]) -> bool {
    let first = fields(line).next().unwrap_or_default();
    first.is_empty()
        || first.eq_ignore_ascii_case(b"id")
        || fields(line).all(|field| parse::<f32>(field).is_none())
}

fn parse<T: FromStr>(field: &[u8]) -> Option<T> {
    std::str::from_utf8(field).ok()?.parse().ok()
}

/// A field as an error shows it: not more than fits a line.
fn shown(field: &[u8]) -> String {
    const LONGEST: usize = 40;
    let text = String::from_utf8_lossy(&field[..field.len().min(4 * LONGEST)]);
    let mut shown: String = text.chars().take(LONGEST).collect();
    if field.len() > 4 * LONGEST || shown.len() < text.len() {
        shown.push('…');
    }
    shown
}
