//! Rows from Parquet files: MiniMind-V's `conversations` as JSON text with `image_bytes`, and
//! nested columns as Hugging Face's `datasets` writes them: `conversations` and `messages` as lists
//! of structs, `texts` with `images`, image columns of bytes and paths.
//!
//! To read a row, only the pages that hold it are decoded. The last few pages are kept, so that
//! neighbouring rows are cheap. Only columns that the form of a row uses are read. Training from
//! Parquet in shuffled order works, but decodes about one page of each column per row; running
//! `prepare-data` once is faster.

mod assemble;
mod footer;
mod levels;
mod pages;

use std::path::PathBuf;
use std::sync::Arc;

use parquet::basic::{ConvertedType, Type};
use parquet::schema::types::{ColumnDescriptor, SchemaDescriptor};

use assemble::TopColumn;
use levels::PageRows;
use pages::{Column, Pages};

use crate::error::DataError;
use crate::file_source::{Columns, FileSource, RecordReader, RowFile};
use crate::recent_cache::RecentCache;
use crate::record::{Field, Record};
use crate::row_error::{ReadError, RowError};
use crate::row_reader::RowReader;
use crate::table_columns::{self, TableColumn, UsedColumns};

/// Decoded pages by file, column, row group and page.
pub(crate) type PageCache = RecentCache<(usize, usize, usize, usize), PageRows>;

/// A cache without pages.
pub(crate) fn page_cache() -> PageCache {
    RecentCache::new(PageRows::num_bytes)
}

/// The rows of one `.parquet` file.
#[derive(Debug)]
pub(crate) struct ParquetTable {
    path: PathBuf,
    pages: Pages,
    /// The columns that rows are read from.
    columns: UsedColumns<UsedColumn>,
    cache: Arc<PageCache>,
}

#[derive(Debug)]
struct UsedColumn {
    top: TopColumn,
    leaves: Vec<Column>,
}

impl ParquetTable {
    /// Reads the footer and chooses the columns.
    ///
    /// # Errors
    /// A file that cannot be read, is not Parquet, has no rows, or has no columns of a known form.
    pub(crate) fn open(
        file: RowFile,
        cache: Arc<PageCache>,
    ) -> Result<FileSource<Self>, DataError> {
        let RowFile { plain, images_root, options } = file;
        let path = plain.path;
        let pages = Pages::open(&path)?;
        if pages.num_rows() == 0 {
            return Err(DataError::content(&path, "no rows in this file"));
        }
        let wrong = |problem: String| DataError::content(&path, problem);
        let schema = pages.schema();
        let top = assemble::top_columns(schema).map_err(wrong)?;
        let described: Vec<_> = top.iter().map(|column| table_column(column, schema)).collect();
        let options = table_columns::resolve_options(&described, &describe(schema), &options)
            .map_err(wrong)?;
        let leaf = |leaf| Column::new(leaf, &schema.column(leaf));
        let named = top.into_iter().map(|top| {
            let leaves = top.leaves.clone().map(leaf).collect();
            (top.name.clone(), UsedColumn { leaves, top })
        });
        let columns = UsedColumns::of(named, &options);
        let problem = columns
            .iter()
            .flat_map(|column| &column.leaves)
            .find_map(|leaf| Some((leaf.name(), pages.problem(leaf.leaf())?)));
        if let Some((name, problem)) = problem {
            return Err(wrong(format!("the column {name:?} {problem}")));
        }
        let reader = RowReader::new(&path, images_root, &options)?;
        let records = Self { path: path.clone(), pages, columns, cache };
        Ok(FileSource { path, records, reader, format: "Parquet".into() })
    }

    fn value(&self, column: &UsedColumn, index: usize) -> Result<Field, ReadError> {
        let pages = column.leaves.iter().map(|leaf| self.page(leaf, index));
        let pages = pages.collect::<Result<Vec<_>, ReadError>>()?;
        let cells: Vec<_> = pages.iter().map(|(page, row)| page.row(*row)).collect();
        Ok(column.top.assemble(&cells)?)
    }

    /// The page of a leaf column in which row `index` begins, and the row's index in that page.
    fn page(&self, leaf: &Column, index: usize) -> Result<(Arc<PageRows>, usize), ReadError> {
        let place = self.pages.locate(leaf, index)?;
        let key = (self.pages.id(), leaf.leaf(), place.group, place.number);
        let rows = self.cache.get_or_make(key, || self.pages.decode(leaf, place))?;
        Ok((rows, place.row_in_page))
    }
}

impl RecordReader for ParquetTable {
    const HAS_IMAGE_COLUMNS: bool = true;

    fn num_rows(&self) -> usize {
        self.pages.num_rows()
    }

    fn record(&self, index: usize, columns: Columns) -> Result<Record, RowError> {
        self.columns.record(&self.path, columns, |column| self.value(column, index))
    }
}

/// The description by which [`table_columns`] chooses columns.
fn table_column<'a>(column: &'a TopColumn, schema: &'a SchemaDescriptor) -> TableColumn<'a> {
    let leaves = || column.leaves.clone().map(|leaf| &schema.columns()[leaf]);
    TableColumn {
        name: &column.name,
        is_image_struct: column.is_image_struct(),
        is_binary: column.leaves.len() == 1 && leaves().all(|leaf| is_binary(leaf)),
        parts: leaves().flat_map(|leaf| leaf.path().parts()).map(String::as_str).collect(),
    }
}

/// Whether a column has bytes that are not marked as text.
fn is_binary(column: &ColumnDescriptor) -> bool {
    column.physical_type() == Type::BYTE_ARRAY
        && column.converted_type() == ConvertedType::NONE
        && column.logical_type_ref().is_none()
}

/// Lists the columns: `conversations (BYTE_ARRAY), image.bytes (BYTE_ARRAY)`.
fn describe(schema: &SchemaDescriptor) -> String {
    let describe = |column: &Arc<ColumnDescriptor>| {
        format!("{} ({})", column.path().string(), column.physical_type())
    };
    schema.columns().iter().map(describe).collect::<Vec<_>>().join(", ")
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use parquet::file::metadata::{
        FileMetaData, ParquetMetaData, ParquetMetaDataWriter, RowGroupMetaData,
    };
    use parquet::schema::parser::parse_message_type;
    use parquet::schema::types::SchemaDescriptor;

    use super::pages::Pages;
    use crate::limits::MAX_ROWS_A_BYTE;

    #[test]
    fn a_row_group_that_claims_more_rows_than_its_bytes_can_have_is_refused() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let write = |num_rows: i64| {
            let schema = Arc::new(parse_message_type("message m { }").unwrap());
            let schema = Arc::new(SchemaDescriptor::new(schema));
            let group = RowGroupMetaData::builder(Arc::clone(&schema)).set_num_rows(num_rows);
            let of_file = FileMetaData::new(1, num_rows, None, None, schema, None);
            let metadata = ParquetMetaData::new(of_file, vec![group.build().unwrap()]);
            let mut bytes = b"PAR1".to_vec();
            ParquetMetaDataWriter::new(&mut bytes, &metadata).finish().unwrap();
            std::fs::write(file.path(), &bytes).unwrap();
            bytes.len() as u64
        };
        // The length of the numbers in the file depends on their size.
        let mut most = 1;
        while write(most) as i64 * MAX_ROWS_A_BYTE as i64 != most {
            most = write(most) as i64 * MAX_ROWS_A_BYTE as i64;
        }
        Pages::open(file.path()).unwrap();
        write(most + 1);
        let message = Pages::open(file.path()).unwrap_err().to_string();
        assert!(message.contains(&format!("claims to have {} rows", most + 1)), "{message}");
    }
}
