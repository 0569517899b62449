//! Rows from Parquet files: MiniMind-V's `conversations` of JSON text with `image_bytes`, and what
//! Hugging Face's `datasets` writes, as nested as it may be: `conversations` and `messages` as lists
//! of objects, `texts` with `images`, image columns of bytes and paths.
//!
//! A row is had by decoding the pages that hold it and no others; a few pages are kept, so that
//! neighbours cost nothing. Only columns that have a part in a row's form are read. Training from
//! Parquet in a drawn order works, but decodes about a page of each column for every row:
//! `prepare-data` once is the faster way.

mod assemble;
mod cache;
mod levels;
mod pages;

use std::path::{Path, PathBuf};
use std::sync::Arc;

use bytes::Bytes;
use parquet::basic::{ConvertedType, Type};
use parquet::schema::types::{ColumnDescriptor, SchemaDescriptor};

use assemble::TopColumn;
pub(crate) use cache::PageCache;
use levels::PageRows;
use pages::{Column, Pages};

use crate::error::DataError;
use crate::form;
use crate::record::{Field, Record};
use crate::reject::{Reject, RejectReason};
use crate::row_error::{ReadError, RowError};
use crate::row_options::RowOptions;
use crate::row_reader::{self, RowReader};
use crate::row_text::file_name;
use crate::rows::{Row, RowImage, Turn};
use crate::source::RowSource;

/// The rows of one `.parquet` file.
#[derive(Debug)]
pub struct ParquetSource {
    path: PathBuf,
    pages: Pages,
    /// Those that rows are read from.
    columns: Vec<UsedColumn>,
    reader: RowReader,
    cache: Arc<PageCache>,
}

#[derive(Debug)]
struct UsedColumn {
    top: TopColumn,
    leaves: Vec<Column>,
    holds_images: bool,
}

impl ParquetSource {
    /// Opens `path`. Image names, where the file has names, are relative to `images_root`, without
    /// one to the folder of `path`.
    ///
    /// # Errors
    /// A file that cannot be read or is not Parquet, columns that are of no known form, no rows.
    pub fn open(path: &Path, images_root: Option<&Path>) -> Result<Self, DataError> {
        let options = Arc::new(RowOptions::default());
        Self::open_with(path, images_root, &options, Arc::new(PageCache::default()))
    }

    pub(crate) fn open_with(
        path: &Path,
        images_root: Option<&Path>,
        options: &Arc<RowOptions>,
        cache: Arc<PageCache>,
    ) -> Result<Self, DataError> {
        let pages = Pages::open(path)?;
        if pages.num_rows() == 0 {
            return Err(DataError::content(path, "no rows in this file"));
        }
        let wrong = |problem: String| DataError::content(path, problem);
        let schema = pages.schema();
        let top = assemble::top_columns(schema).map_err(wrong)?;
        let (columns, options) = choose(top, schema, options).map_err(wrong)?;
        let problem = columns
            .iter()
            .flat_map(|column| &column.leaves)
            .find_map(|leaf| Some((leaf.name(), pages.problem(leaf.leaf())?)));
        if let Some((name, problem)) = problem {
            return Err(wrong(format!("the column {name:?} {problem}")));
        }
        let reader = RowReader::new(path, images_root, &options)?;
        Ok(Self { path: path.to_owned(), pages, columns, reader, cache })
    }

    /// The values of row `index`, with those of image columns or without.
    fn record(&self, index: usize, with_images: bool) -> Result<Record, RowError> {
        if index >= self.len() {
            let problem = format!("row {index} of {}", self.len());
            return Err(Reject::new(RejectReason::InvalidRow, problem).into());
        }
        let used = self.columns.iter().filter(|column| with_images || !column.holds_images);
        let value = |column: &UsedColumn| Ok((column.top.name.clone(), self.value(column, index)?));
        Ok(Record(used.map(value).collect::<Result<_, RowError>>()?))
    }

    fn value(&self, column: &UsedColumn, index: usize) -> Result<Field, RowError> {
        let unreadable = |e: ReadError| {
            let told = |e: String| format!("column {:?}: {e}", column.top.name);
            e.in_file(&self.path, |e| Reject::new(RejectReason::InvalidRow, told(e)))
        };
        let pages = column.leaves.iter().map(|leaf| self.page(leaf, index));
        let pages = pages.collect::<Result<Vec<_>, ReadError>>().map_err(unreadable)?;
        let cells: Vec<_> = pages.iter().map(|(page, row)| page.row(*row)).collect();
        column.top.assemble(&cells).map_err(|problem| unreadable(problem.into()))
    }

    /// The page of a leaf column in which row `index` begins, and the row's place in it.
    fn page(&self, leaf: &Column, index: usize) -> Result<(Arc<PageRows>, usize), ReadError> {
        let place = self.pages.locate(leaf, index)?;
        let key = (self.pages.id(), leaf.leaf(), place.group, place.number);
        let rows = self.cache.get_or_decode(key, || self.pages.decode(leaf, place))?;
        Ok((rows, place.row_in_page))
    }
}

impl RowSource for ParquetSource {
    fn len(&self) -> usize {
        self.pages.num_rows()
    }

    fn row(&self, index: usize) -> Result<Row, RowError> {
        Ok(self.reader.row(&self.record(index, true)?)?)
    }

    fn image_bytes(&self, _: usize, _: usize, image: &RowImage) -> Result<Bytes, RowError> {
        self.reader.image_bytes(image)
    }

    fn locate(&self, index: usize) -> String {
        format!("{}[{index}]", file_name(&self.path))
    }

    /// Images are read only where the text does not say where they stand: then their number decides.
    fn turns(&self, index: usize) -> Result<Vec<Turn>, RowError> {
        if let Ok(row) = self.reader.row(&self.record(index, false)?)
            && row.num_image_tags() > 0
        {
            return Ok(row.turns);
        }
        Ok(self.row(index)?.turns)
    }

    fn describe(&self) -> Vec<String> {
        let told = row_reader::describe(self, "Parquet", |index| self.record(index, true).ok());
        vec![format!("{}: {told}", self.path.display())]
    }
}

/// The columns to read; where an image column is known by its type alone, the options name it.
fn choose(
    top: Vec<TopColumn>,
    schema: &SchemaDescriptor,
    options: &Arc<RowOptions>,
) -> Result<(Vec<UsedColumn>, Arc<RowOptions>), String> {
    let is_known = |column: &TopColumn| form::is_known_column(&column.name, options);
    let is_image = |name: &str| form::is_image_column(name, &options.image_keys);
    let by_type: Vec<&str> = top
        .iter()
        .filter(|column| column.is_image_struct() && !is_known(column))
        .map(|column| column.name.as_str())
        .collect();
    let has_image = top.iter().any(|column| is_image(&column.name));
    let mut options = Arc::clone(options);
    match by_type[..] {
        [only] if !has_image && options.image_keys.is_empty() => {
            Arc::make_mut(&mut options).image_keys = vec![only.to_owned()];
        }
        [first, ..] if options.image_keys.is_empty() => {
            return Err(format!(
                "the column {first:?} looks like images and has no known name; call the \
                 column whose images the rows show \"image\", and drop others; the file has: {}",
                describe(schema)
            ));
        }
        _ => {}
    }
    let names: Vec<&str> = top.iter().map(|column| column.name.as_str()).collect();
    let known: Vec<&str> =
        names.iter().copied().filter(|name| form::is_known_column(name, &options)).collect();
    if !form::has_form(&known) {
        return Err(format!(
            "expected a column \"conversations\", \"messages\" or \"texts\", a question with an \
             answer, or a caption (and images as \"image\", \"images\" or \"image_bytes\"); the file \
             has: {}",
            describe(schema)
        ));
    }
    let has_image = known.iter().any(|name| form::is_image_column(name, &options.image_keys));
    let bytes = |column: &&TopColumn| {
        !form::is_known_column(&column.name, &options)
            && column.leaves.len() == 1
            && is_binary(&schema.column(column.leaves.start))
    };
    if let (false, Some(column)) = (has_image, top.iter().find(bytes)) {
        return Err(format!(
            "the column {:?} has bytes, which may be images, and no other column has any; call it \
             \"image\", or drop it",
            column.name
        ));
    }
    let has_rating = |name: &str| {
        let parts = schema.columns().iter().flat_map(|column| column.path().parts().to_vec());
        parts.into_iter().any(|part| form::is_rating(&part, name))
    };
    if let Some((name, _)) = options.min_ratings.iter().find(|(name, _)| !has_rating(name)) {
        return Err(format!(
            "there are no ratings called {name:?} (nor {name}_ratings); the file has: {}",
            describe(schema)
        ));
    }
    let used = top.into_iter().filter(|column| form::is_known_column(&column.name, &options));
    let used = used.map(|top| UsedColumn {
        leaves: top.leaves.clone().map(|leaf| Column::new(leaf, &schema.column(leaf))).collect(),
        holds_images: form::is_image_column(&top.name, &options.image_keys),
        top,
    });
    let used = used.collect();
    Ok((used, options))
}

/// Whether a column has bytes that are not said to be text.
fn is_binary(column: &ColumnDescriptor) -> bool {
    column.physical_type() == Type::BYTE_ARRAY
        && column.converted_type() == ConvertedType::NONE
        && column.logical_type_ref().is_none()
}

/// `conversations (BYTE_ARRAY), image.bytes (BYTE_ARRAY)`
fn describe(schema: &SchemaDescriptor) -> String {
    let describe = |column: &Arc<ColumnDescriptor>| {
        format!("{} ({})", column.path().string(), column.physical_type())
    };
    schema.columns().iter().map(describe).collect::<Vec<_>>().join(", ")
}
