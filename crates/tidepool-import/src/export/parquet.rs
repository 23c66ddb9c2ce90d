//! Tables into Parquet: `id` (uint64) and `embedding` (list of float), zstd, no dictionary.

use std::{path::Path, sync::Arc};

use parquet::{
    basic::{Compression, LogicalType, Repetition, Type as Physical, ZstdLevel},
    data_type::{FloatType, Int64Type},
    errors::ParquetError,
    file::{
        properties::{EnabledStatistics, WriterProperties},
        writer::SerializedFileWriter,
    },
    schema::types::{Type, TypePtr},
};
use tidepool_kernels::RowKernel;
use tidepool_table::LayoutReader;

use super::NewFile;
use crate::{ImportError, ParquetColumns};

/// Values of a row group, in bytes: what is in memory at once, with as much again for pages on their way.
const GROUP_BYTES: usize = 32 << 20;
/// Rows of a row group at most.
const GROUP_ROWS: usize = 1 << 18;
/// Vectors handed to the writer at once.
const WRITE_ROWS: usize = 1 << 10;

/// Writes the values of all rows as one Parquet file with the columns `id` and `embedding`, row group by row
/// group, each of at most 32 MiB of values.
///
/// # Errors
/// [`ImportError`]: the file exists already, or cannot be written.
pub fn export_parquet(
    layout: &LayoutReader,
    to: &Path,
    progress: &mut dyn FnMut(u64),
) -> Result<(), ImportError> {
    let schema = &layout.manifest().schema;
    let dim = schema.dim as usize;
    let kernel = RowKernel::new(schema.format, schema.dim);
    let mut file = NewFile::create(to)?;
    let broken = |source| ImportError::Parquet { path: to.into(), source };
    let columns = message().map_err(broken)?;
    let mut writer =
        SerializedFileWriter::new(&mut file.out, columns, Arc::new(properties().map_err(broken)?))
            .map_err(broken)?;
    let group_rows = (GROUP_BYTES / size_of::<f32>() / dim).clamp(1, GROUP_ROWS);
    let mut ids: Vec<i64> = Vec::with_capacity(group_rows);
    let mut values: Vec<f32> = Vec::with_capacity(group_rows * dim);
    let mut entries = layout.entries();
    let mut done = 0;
    loop {
        ids.clear();
        values.clear();
        for (id, row) in entries.by_ref().take(group_rows) {
            ids.push(id.cast_signed());
            let end = values.len();
            values.resize(end + dim, 0.0);
            kernel.dequantize(row, &mut values[end..]);
        }
        if ids.is_empty() {
            break;
        }
        write_group(&mut writer, &ids, &values, dim).map_err(broken)?;
        done += ids.len() as u64;
        progress(done);
    }
    writer.close().map_err(broken)?;
    file.finish()
}

/// The schema. A required list of required elements: there are no nulls, and readers need look for none.
fn message() -> Result<TypePtr, ParquetError> {
    let columns = ParquetColumns::default();
    let id = Type::primitive_type_builder(&columns.id, Physical::INT64)
        .with_repetition(Repetition::REQUIRED)
        .with_logical_type(Some(LogicalType::integer(64, false)));
    let element =
        Type::primitive_type_builder("element", Physical::FLOAT).with_repetition(Repetition::REQUIRED);
    let list = Type::group_type_builder("list")
        .with_repetition(Repetition::REPEATED)
        .with_fields(vec![Arc::new(element.build()?)]);
    let embedding = Type::group_type_builder(&columns.vector)
        .with_repetition(Repetition::REQUIRED)
        .with_logical_type(Some(LogicalType::List))
        .with_fields(vec![Arc::new(list.build()?)]);
    let fields = vec![Arc::new(id.build()?), Arc::new(embedding.build()?)];
    Ok(Arc::new(Type::group_type_builder("schema").with_fields(fields).build()?))
}

fn properties() -> Result<WriterProperties, ParquetError> {
    // Values of rows of 4 bits repeat: zstd halves them and more, at the speed of most disks.
    Ok(WriterProperties::builder()
        .set_compression(Compression::ZSTD(ZstdLevel::try_new(1)?))
        .set_dictionary_enabled(false)
        .set_statistics_enabled(EnabledStatistics::None)
        .set_created_by(concat!("tidepool ", env!("CARGO_PKG_VERSION")).into())
        .build())
}

fn write_group<W: std::io::Write + Send>(
    writer: &mut SerializedFileWriter<W>,
    ids: &[i64],
    values: &[f32],
    dim: usize,
) -> Result<(), ParquetError> {
    let mut group = writer.next_row_group()?;
    if let Some(mut column) = group.next_column()? {
        column.typed::<Int64Type>().write_batch(ids, None, None)?;
        column.close()?;
    }
    if let Some(mut column) = group.next_column()? {
        let definitions = vec![1; WRITE_ROWS * dim];
        let mut repetitions = definitions.clone();
        repetitions.iter_mut().step_by(dim).for_each(|first| *first = 0);
        for values in values.chunks(WRITE_ROWS * dim) {
            let (definitions, repetitions) = (&definitions[..values.len()], &repetitions[..values.len()]);
            column.typed::<FloatType>().write_batch(values, Some(definitions), Some(repetitions))?;
        }
        column.close()?;
    }
    group.close()?;
    Ok(())
}
