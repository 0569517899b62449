//! Rows from Arrow files and streams, as Hugging Face's `datasets` and Feather write them, with the
//! same columns as Parquet files. Rows are read by position: a row costs a few small reads,
//! for any size of its record batch. Of a compressed batch the needed buffers are
//! decompressed, and the last ones are kept in memory. The file is not memory-mapped, so that a
//! truncated file gives an error that names it.

pub(crate) mod batches;
mod layout;
mod values;

use std::path::PathBuf;

use batches::Batches;
use layout::Layout;

use crate::error::DataError;
use crate::file_source::{Columns, FileSource, RecordReader, RowFile};
use crate::record::Record;
use crate::row_error::{ReadError, RowError};
use crate::row_reader::RowReader;
use crate::table_columns::{self, UsedColumns};

/// The rows of one Arrow file or stream.
#[derive(Debug)]
pub(crate) struct ArrowTable {
    batches: Batches,
    /// The columns that rows are read from.
    columns: UsedColumns<Layout>,
    path: PathBuf,
}

impl ArrowTable {
    /// Finds the record batches and chooses the columns.
    ///
    /// # Errors
    /// A file that is damaged, has no rows, or has no columns of a known form.
    pub(crate) fn open(file: RowFile) -> Result<FileSource<Self>, DataError> {
        let RowFile { plain, images_root, options } = file;
        let (path, format) = (plain.path.clone(), plain.format("Arrow"));
        let wrong = |problem: String| DataError::content(&path, problem);
        let (batches, schema) = Batches::open(plain.file).map_err(|e| match e {
            ReadError::Content(problem) => {
                wrong(format!("cannot be read as Arrow: {problem}; fetch it again"))
            }
            e @ ReadError::System(_) => e.into_data_error(&path),
        })?;
        if batches.num_rows() == 0 {
            return Err(wrong("no rows in this file".into()));
        }
        let all = layout::columns(&schema).map_err(wrong)?;
        let described: Vec<_> = all.iter().map(Layout::table_column).collect();
        let options = table_columns::resolve_options(&described, &layout::describe(&all), &options)
            .map_err(wrong)?;
        let named = all.into_iter().map(|layout| (layout.name().to_owned(), layout));
        let columns = UsedColumns::of(named, &options);
        let reader = RowReader::new(&path, images_root, &options)?;
        let records = Self { batches, columns, path: path.clone() };
        Ok(FileSource { path, records, reader, format })
    }
}

impl RecordReader for ArrowTable {
    const HAS_IMAGE_COLUMNS: bool = true;

    fn num_rows(&self) -> usize {
        self.batches.num_rows()
    }

    fn record(&self, index: usize, columns: Columns) -> Result<Record, RowError> {
        let value = |layout: &Layout| values::value(&self.batches, layout, index);
        self.columns.record(&self.path, columns, value)
    }
}
