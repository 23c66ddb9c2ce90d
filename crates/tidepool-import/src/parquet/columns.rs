//! The two columns of one row group, read in step: so many ids, so many vectors.

use std::path::Path;

use half::f16;
use parquet::{
    column::reader::{ColumnReader, ColumnReaderImpl},
    data_type::{
        ByteArrayType, DataType, DoubleType, FixedLenByteArrayType, FloatType, Int32Type, Int64Type,
    },
    errors::ParquetError,
};

use super::{
    files::guarded,
    schema::{ElementKind, IdKind, ListLevels},
};
use crate::{ImportError, StringIds, array::single};

/// What is wrong with rows, before file and column are named.
#[derive(Debug)]
pub(super) enum Wrong {
    /// They cannot be decoded.
    Bytes(ParquetError),
    /// A null, a list of another length, a number that cannot be: in the row at this place of those asked for.
    Row(usize, WrongRow),
}

/// What is wrong with a row.
#[derive(Debug)]
pub(super) enum WrongRow {
    Null,
    NullElement(usize),
    /// A definition level above that of a value.
    Level(i16),
    Length(usize),
    Negative(i64),
    TooLarge(usize, f64),
}

impl From<ParquetError> for Wrong {
    fn from(error: ParquetError) -> Self {
        Self::Bytes(error)
    }
}

impl Wrong {
    /// The error for rows that begin at `first` in a file.
    pub(super) fn at(self, path: &Path, column: &str, first: u64, dim: u32) -> ImportError {
        let (path, column) = (path.to_path_buf(), column.to_owned());
        let (at, problem) = match self {
            Self::Bytes(source) => return ImportError::ParquetColumn { path, column, row: first, source },
            Self::Row(at, problem) => (first + at as u64, problem),
        };
        match problem {
            WrongRow::Null => ImportError::Null { path, row: at, column },
            WrongRow::NullElement(element) => ImportError::NullElement { path, row: at, column, element },
            WrongRow::Level(found) => {
                let source = ParquetError::General(format!("no value has the definition level {found}"));
                ImportError::ParquetColumn { path, column, row: at, source }
            }
            WrongRow::Length(found) => {
                ImportError::VectorLength { path, row: at, column, found, expected: dim }
            }
            WrongRow::Negative(id) => ImportError::NegativeId { path, row: at, id },
            WrongRow::TooLarge(column, value) => ImportError::TooLarge { path, row: at, column, value },
        }
    }
}

/// Reads the values of up to so many records, and their levels.
struct Leaf<T: DataType> {
    reader: ColumnReaderImpl<T>,
    values: Vec<T::T>,
    definitions: Vec<i16>,
    repetitions: Vec<i16>,
}

impl<T: DataType> Leaf<T> {
    fn new(reader: ColumnReader) -> Option<Self> {
        let reader = T::get_column_reader(reader)?;
        Some(Self { reader, values: Vec::new(), definitions: Vec::new(), repetitions: Vec::new() })
    }

    /// Gives the number of records; fewer than asked for only at the end.
    fn read(&mut self, records: usize) -> Result<usize, ParquetError> {
        self.values.clear();
        self.definitions.clear();
        self.repetitions.clear();
        let (definitions, repetitions) = (&mut self.definitions, &mut self.repetitions);
        let read = guarded(|| {
            self.reader.read_records(records, Some(definitions), Some(repetitions), &mut self.values)
        })?;
        Ok(read.0)
    }

    /// Of a column without lists: that none is null.
    fn all_defined(&self, level: i16) -> Result<(), Wrong> {
        match undefined(&self.definitions, level) {
            Some((at, found)) if found < level => Err(Wrong::Row(at, WrongRow::Null)),
            Some((at, found)) => Err(Wrong::Row(at, WrongRow::Level(found))),
            None => Ok(()),
        }
    }
}

/// The first definition level that is not a value's, and where. The library gives values for exactly those that
/// are; in a damaged file some are above it.
fn undefined(definitions: &[i16], level: i16) -> Option<(usize, i16)> {
    definitions.iter().copied().enumerate().find(|&(_, definition)| definition != level)
}

/// The ids of a row group.
pub(super) struct Ids {
    leaf: IdLeaf,
    defined: i16,
}

enum IdLeaf {
    Int32(Leaf<Int32Type>, bool),
    Int64(Leaf<Int64Type>, bool),
    Strings(Leaf<ByteArrayType>, StringIds),
}

impl Ids {
    /// `None` when the reader is of another type than the schema.
    pub(super) fn new(reader: ColumnReader, kind: IdKind, defined: i16) -> Option<Self> {
        let leaf = match kind {
            IdKind::Int32 { signed } => IdLeaf::Int32(Leaf::new(reader)?, signed),
            IdKind::Int64 { signed } => IdLeaf::Int64(Leaf::new(reader)?, signed),
            IdKind::Strings(hash) => IdLeaf::Strings(Leaf::new(reader)?, hash),
        };
        Some(Self { leaf, defined })
    }

    /// Puts the next ids into `ids`, in place of what is there, and gives their number.
    pub(super) fn read(&mut self, rows: usize, ids: &mut Vec<u64>) -> Result<usize, Wrong> {
        ids.clear();
        let negative = |at, id| Wrong::Row(at, WrongRow::Negative(id));
        match &mut self.leaf {
            IdLeaf::Int32(leaf, signed) => {
                leaf.read(rows)?;
                leaf.all_defined(self.defined)?;
                for (at, &id) in leaf.values.iter().enumerate() {
                    let unsigned = u64::from(id.cast_unsigned());
                    let id = if *signed {
                        u64::try_from(id).map_err(|_| negative(at, id.into()))?
                    } else {
                        unsigned
                    };
                    ids.push(id);
                }
            }
            IdLeaf::Int64(leaf, signed) => {
                leaf.read(rows)?;
                leaf.all_defined(self.defined)?;
                for (at, &id) in leaf.values.iter().enumerate() {
                    let unsigned = id.cast_unsigned();
                    let id =
                        if *signed { u64::try_from(id).map_err(|_| negative(at, id))? } else { unsigned };
                    ids.push(id);
                }
            }
            IdLeaf::Strings(leaf, hash) => {
                leaf.read(rows)?;
                leaf.all_defined(self.defined)?;
                ids.extend(leaf.values.iter().map(|text| hash.id(text.data())));
            }
        }
        Ok(ids.len())
    }
}

/// The vectors of a row group.
pub(super) struct Vectors {
    leaf: VectorLeaf,
    levels: ListLevels,
}

enum VectorLeaf {
    Half(Leaf<FixedLenByteArrayType>),
    Float(Leaf<FloatType>),
    Double(Leaf<DoubleType>),
}

impl Vectors {
    /// `None` when the reader is of another type than the schema.
    pub(super) fn new(reader: ColumnReader, element: ElementKind, levels: ListLevels) -> Option<Self> {
        let leaf = match element {
            ElementKind::Half => VectorLeaf::Half(Leaf::new(reader)?),
            ElementKind::Float => VectorLeaf::Float(Leaf::new(reader)?),
            ElementKind::Double => VectorLeaf::Double(Leaf::new(reader)?),
        };
        Some(Self { leaf, levels })
    }

    /// Puts the elements of the next vectors into `values`, in place of what is there, and gives the number of
    /// vectors. All have `dim` elements; without a `dim`, as many as the first one.
    pub(super) fn read(
        &mut self,
        rows: usize,
        dim: Option<usize>,
        values: &mut Vec<f32>,
    ) -> Result<usize, Wrong> {
        values.clear();
        match &mut self.leaf {
            VectorLeaf::Float(leaf) => {
                let read = leaf.read(rows)?;
                check_lists(self.levels, &leaf.definitions, &leaf.repetitions, dim)?;
                std::mem::swap(values, &mut leaf.values);
                Ok(read)
            }
            VectorLeaf::Half(leaf) => {
                let read = leaf.read(rows)?;
                check_lists(self.levels, &leaf.definitions, &leaf.repetitions, dim)?;
                values.extend(leaf.values.iter().map(|half| {
                    half.data().first_chunk().map_or(f32::NAN, |bytes| f16::from_le_bytes(*bytes).to_f32())
                }));
                Ok(read)
            }
            VectorLeaf::Double(leaf) => {
                let read = leaf.read(rows)?;
                check_lists(self.levels, &leaf.definitions, &leaf.repetitions, dim)?;
                let dim = (leaf.values.len() / read.max(1)).max(1);
                for (at, &exact) in leaf.values.iter().enumerate() {
                    let too_large = || Wrong::Row(at / dim, WrongRow::TooLarge(at % dim, exact));
                    values.push(single(exact).ok_or_else(too_large)?);
                }
                Ok(read)
            }
        }
    }
}

/// Checks that no list and no element is null, and that all lists have `dim` elements (without a `dim`, as many
/// as the first one).
fn check_lists(
    levels: ListLevels,
    definitions: &[i16],
    repetitions: &[i16],
    dim: Option<usize>,
) -> Result<(), Wrong> {
    let mut lists = definitions.len();
    let starts = repetitions.iter().enumerate().filter(|&(_, &repetition)| repetition == 0);
    let mut starts = starts.map(|(at, _)| at).peekable();
    let mut dim = dim;
    let mut row = 0;
    while let Some(start) = starts.next() {
        let end = starts.peek().copied().unwrap_or(definitions.len());
        let list = definitions.get(start..end).unwrap_or_default();
        let wrong = |problem| Err(Wrong::Row(row, problem));
        match list {
            [first] if *first < levels.element - 1 => return wrong(WrongRow::Null),
            [first] if *first < levels.element => return wrong(WrongRow::Length(0)),
            list => match undefined(list, levels.value) {
                Some((element, found)) if found < levels.value => {
                    return wrong(WrongRow::NullElement(element));
                }
                Some((_, found)) => return wrong(WrongRow::Level(found)),
                None => {}
            },
        }
        if *dim.get_or_insert(list.len()) != list.len() {
            return wrong(WrongRow::Length(list.len()));
        }
        lists -= list.len();
        row += 1;
    }
    // Levels before the first list: the library splits records at these, so there are none.
    if lists == 0 { Ok(()) } else { Err(Wrong::Bytes(ParquetError::General("a list does not begin".into()))) }
}
