//! Which leaves of a Parquet schema are the ids and the vectors, and whether they are what they must be.

use std::path::Path;

use parquet::{
    basic::{ConvertedType, LogicalType, Repetition, Type as Physical},
    schema::types::{ColumnDescriptor, SchemaDescriptor},
};

use crate::{ImportError, StringIds};

/// The columns that make a table.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ParquetColumns {
    /// The column of ids.
    pub id: String,
    /// The column of vectors.
    pub vector: String,
    /// What makes ids of strings; without it strings are refused.
    pub string_ids: Option<StringIds>,
}

impl Default for ParquetColumns {
    /// `id` and `embedding`, and no strings: the columns that [`export_parquet`](crate::export_parquet) writes.
    fn default() -> Self {
        Self { id: "id".into(), vector: "embedding".into(), string_ids: None }
    }
}

/// How the ids of a file are stored.
#[derive(Clone, Copy, Debug)]
pub(super) enum IdKind {
    Int32 { signed: bool },
    Int64 { signed: bool },
    Strings(StringIds),
}

/// How the elements of the vectors of a file are stored.
#[derive(Clone, Copy, Debug)]
pub(super) enum ElementKind {
    Half,
    Float,
    Double,
}

/// The two leaves of a file.
#[derive(Clone, Copy, Debug)]
pub(super) struct Leaves {
    pub(super) id: usize,
    pub(super) id_kind: IdKind,
    /// Definition level of an id that is there.
    pub(super) id_defined: i16,
    pub(super) vector: usize,
    pub(super) element: ElementKind,
    pub(super) list: ListLevels,
}

/// What the definition levels of a list's elements mean.
#[derive(Clone, Copy, Debug)]
pub(super) struct ListLevels {
    /// Of an element that is there.
    pub(super) value: i16,
    /// Of an element at all, null or not. One less is an empty list, still less a null one.
    pub(super) element: i16,
}

impl Leaves {
    pub(super) fn find(
        schema: &SchemaDescriptor,
        columns: &ParquetColumns,
        path: &Path,
    ) -> Result<Self, ImportError> {
        let id = leaf(schema, &columns.id, path)?;
        let wrong_id = || ImportError::ColumnType {
            path: path.into(),
            column: columns.id.clone(),
            found: type_of(schema, &columns.id, id),
            expected: "whole numbers of 32 or 64 bits, or strings",
        };
        let id_column = id.map(|id| schema.column(id)).ok_or_else(wrong_id)?;
        if id_column.max_rep_level() > 0 || id_column.path().parts().len() != 1 {
            return Err(wrong_id());
        }
        let id_kind =
            match (id_column.physical_type(), is_string(&id_column), signed(&id_column)) {
                (Physical::INT32, _, Some(signed)) => IdKind::Int32 { signed },
                (Physical::INT64, _, Some(signed)) => IdKind::Int64 { signed },
                (Physical::BYTE_ARRAY, true, _) => IdKind::Strings(columns.string_ids.ok_or_else(|| {
                    ImportError::StringIds { path: path.into(), column: columns.id.clone() }
                })?),
                _ => return Err(wrong_id()),
            };

        let vector = leaf(schema, &columns.vector, path)?;
        let wrong_vector = || ImportError::ColumnType {
            path: path.into(),
            column: columns.vector.clone(),
            found: type_of(schema, &columns.vector, vector),
            expected: "lists of half, single or double precision",
        };
        let vector_column = vector.map(|vector| schema.column(vector)).ok_or_else(wrong_vector)?;
        // A repeated leaf alone, in a group (two levels), or in a group in a group (three).
        if vector_column.max_rep_level() != 1 || vector_column.path().parts().len() > 3 {
            return Err(wrong_vector());
        }
        let half = vector_column.logical_type_ref() == Some(&LogicalType::Float16);
        let element = match vector_column.physical_type() {
            Physical::FLOAT => ElementKind::Float,
            Physical::DOUBLE => ElementKind::Double,
            Physical::FIXED_LEN_BYTE_ARRAY if half && vector_column.type_length() == 2 => ElementKind::Half,
            _ => return Err(wrong_vector()),
        };
        let value = vector_column.max_def_level();
        let leaf_repeats = vector_column.self_type().get_basic_info().repetition() == Repetition::REPEATED;
        let element_at = if leaf_repeats { value } else { vector_column.repeated_ancestor_def_level() };
        Ok(Self {
            id: id.unwrap_or_default(),
            id_kind,
            id_defined: id_column.max_def_level(),
            vector: vector.unwrap_or_default(),
            element,
            list: ListLevels { value, element: element_at },
        })
    }
}

/// The leaf of a column of this name, if it has only one.
fn leaf(schema: &SchemaDescriptor, column: &str, path: &Path) -> Result<Option<usize>, ImportError> {
    let mut leaves = (0..schema.num_columns()).filter(|&leaf| schema.get_column_root(leaf).name() == column);
    match (leaves.next(), leaves.next()) {
        (None, _) => {
            let fields = schema.root_schema().get_fields();
            let found = fields.iter().map(|field| field.name()).collect::<Vec<_>>().join(", ");
            Err(ImportError::NoColumn { path: path.into(), column: column.into(), found })
        }
        (one, None) => Ok(one),
        (Some(_), Some(_)) => Ok(None),
    }
}

/// A column's type, as an error names it.
fn type_of(schema: &SchemaDescriptor, column: &str, leaf: Option<usize>) -> String {
    let Some(leaf) = leaf else { return format!("{column} is a group of several columns") };
    let leaf = schema.column(leaf);
    let parts = leaf.path().parts();
    let list = if leaf.max_rep_level() > 0 { "list of " } else { "" };
    let meaning = leaf.logical_type_ref().map(|logical| format!(" ({logical:?})")).unwrap_or_default();
    format!("{list}{}{meaning} at {}", leaf.physical_type(), parts.join("."))
}

fn is_string(column: &ColumnDescriptor) -> bool {
    matches!(column.logical_type_ref(), None | Some(LogicalType::String | LogicalType::Enum))
        && matches!(column.converted_type(), ConvertedType::NONE | ConvertedType::UTF8 | ConvertedType::ENUM)
}

/// Whether a column of whole numbers has a sign; `None` of what is a time, a date or a decimal.
fn signed(column: &ColumnDescriptor) -> Option<bool> {
    match (column.logical_type_ref(), column.converted_type()) {
        (Some(LogicalType::Integer(integer)), _) => Some(integer.is_signed),
        (Some(_), _) => None,
        (None, ConvertedType::UINT_8 | ConvertedType::UINT_16) => Some(false),
        (None, ConvertedType::UINT_32 | ConvertedType::UINT_64) => Some(false),
        (None, ConvertedType::INT_8 | ConvertedType::INT_16 | ConvertedType::INT_32) => Some(true),
        (None, ConvertedType::INT_64 | ConvertedType::NONE) => Some(true),
        (None, _) => None,
    }
}
