//! Rows from Parquet files, MiniMind-V's form first: a column `conversations` of JSON text and a
//! column `image_bytes` of pictures, one or a list a row.
//!
//! A row is had by decoding the page that holds it and no other; a few pages are kept, so that
//! neighbours cost nothing. Training from Parquet in a drawn order works, but decodes about a page
//! of each column for every row: `prepare-data` once is the faster way.

mod cache;
mod pages;

use std::path::{Path, PathBuf};
use std::sync::Arc;

use bytes::Bytes;
use parquet::basic::{ConvertedType, Type};
use parquet::schema::types::{ColumnDescriptor, SchemaDescriptor};

pub(crate) use cache::PageCache;
use pages::{Column, Pages};

use crate::error::DataError;
use crate::image_root::ImageRoot;
use crate::obstacle::{Obstacle, ReadError};
use crate::reject::{Reject, RejectReason};
use crate::row_text::{file_name, folder_of};
use crate::rows::{Row, RowImage, Turn, split_image_names};
use crate::source::RowSource;

const CONVERSATIONS: &str = "conversations";
const IMAGE_BYTES: &str = "image_bytes";
/// Columns that may hold names or, as Hugging Face's `datasets` writes them, `bytes` within.
const IMAGE_COLUMNS: [&str; 3] = ["image", "images", "image_path"];

/// The rows of one `.parquet` file.
#[derive(Debug)]
pub struct ParquetSource {
    path: PathBuf,
    pages: Pages,
    conversations: Column,
    images: Images,
    cache: Arc<PageCache>,
}

#[derive(Debug)]
enum Images {
    None,
    Bytes(Column),
    Names(Column, ImageRoot),
}

impl ParquetSource {
    /// Opens `path`. Image names, where the file has names, are relative to `images_root`, without
    /// one to the folder of `path`.
    ///
    /// # Errors
    /// A file that cannot be read or is not Parquet, columns that are not there or of another type,
    /// no rows.
    pub fn open(path: &Path, images_root: Option<&Path>) -> Result<Self, DataError> {
        Self::open_with(path, images_root, Arc::new(PageCache::default()))
    }

    pub(crate) fn open_with(
        path: &Path,
        images_root: Option<&Path>,
        cache: Arc<PageCache>,
    ) -> Result<Self, DataError> {
        let pages = Pages::open(path)?;
        if pages.num_rows() == 0 {
            return Err(DataError::content(path, "no rows in this file"));
        }
        let schema = pages.schema();
        let conversations = text_column(schema, CONVERSATIONS).ok_or_else(|| {
            DataError::content(
                path,
                format!(
                    "expected a column \"conversations\" of JSON text (and \"image_bytes\" of \
                     pictures, or \"image\" of their names); the file has: {}",
                    describe(schema)
                ),
            )
        })?;
        let images = match (bytes_column(schema), names_column(schema)) {
            (Some(column), _) => Images::Bytes(column),
            (None, Some(column)) => {
                let root = ImageRoot::open(images_root.unwrap_or(folder_of(path)))?;
                Images::Names(column, root)
            }
            (None, None) => Images::None,
        };
        Ok(Self { path: path.to_owned(), pages, conversations, images, cache })
    }

    /// The values of `column` in row `index`, nulls left out.
    fn values(&self, column: &Column, index: usize) -> Result<Vec<Bytes>, Obstacle> {
        let unreadable = |e: ReadError| {
            let told = |e: String| format!("column {:?}: {e}", column.name());
            e.in_file(&self.path, |e| Reject::new(RejectReason::InvalidRow, told(e)))
        };
        let page = self.pages.locate(column, index).map_err(unreadable)?;
        let key = (self.pages.id(), column.leaf(), page.group, page.number);
        let rows = self
            .cache
            .get_or_decode(key, || self.pages.decode(column, page))
            .map_err(unreadable)?;
        Ok(rows.row(page.row_in_page).map(Bytes::copy_from_slice).collect())
    }

    fn read_turns(&self, index: usize) -> Result<Vec<Turn>, Obstacle> {
        let invalid = |e: &str| Reject::new(RejectReason::InvalidRow, e);
        if index >= self.len() {
            return Err(invalid(&format!("row {index} of {}", self.len())).into());
        }
        let values = self.values(&self.conversations, index)?;
        let text = values.first().ok_or_else(|| invalid("\"conversations\" is null"))?;
        let text =
            std::str::from_utf8(text).map_err(|_| invalid("\"conversations\": not UTF-8"))?;
        Ok(Row::turns_from_json(text)?)
    }
}

impl RowSource for ParquetSource {
    fn len(&self) -> usize {
        self.pages.num_rows()
    }

    fn row(&self, index: usize) -> Result<Row, Obstacle> {
        let turns = self.read_turns(index)?;
        let images = match &self.images {
            Images::None => Vec::new(),
            Images::Bytes(column) => self
                .values(column, index)?
                .into_iter()
                .enumerate()
                .map(|(k, bytes)| RowImage {
                    name: format!("{}[{k}]", column.name()),
                    bytes: Some(bytes),
                    hash: None,
                })
                .collect(),
            Images::Names(column, _) => {
                let values = self.values(column, index)?;
                let text = |value: &Bytes| String::from_utf8_lossy(value).into_owned();
                let names = if column.is_list() {
                    values.iter().map(text).collect()
                } else {
                    values.first().map(text).as_deref().map(split_image_names).unwrap_or_default()
                };
                names.into_iter().map(RowImage::named).collect()
            }
        };
        Ok(Row { turns, images })
    }

    fn image_bytes(&self, _: usize, _: usize, image: &RowImage) -> Result<Bytes, Obstacle> {
        match (&image.bytes, &self.images) {
            (Some(bytes), _) => Ok(bytes.clone()),
            (None, Images::Names(_, root)) => root.read(&image.name).map(Bytes::from),
            (None, _) => Err(Obstacle::Row(Reject::new(
                RejectReason::MissingImage,
                format!("the row holds no picture {:?}", image.name),
            ))),
        }
    }

    fn locate(&self, index: usize) -> String {
        format!("{}[{index}]", file_name(&self.path))
    }

    fn turns(&self, index: usize) -> Result<Vec<Turn>, Obstacle> {
        self.read_turns(index)
    }
}

fn leaves(schema: &SchemaDescriptor) -> impl Iterator<Item = (usize, &ColumnDescriptor)> {
    schema
        .columns()
        .iter()
        .enumerate()
        .map(|(leaf, column)| (leaf, column.as_ref()))
        .filter(|(_, column)| column.physical_type() == Type::BYTE_ARRAY)
}

fn root_of(column: &ColumnDescriptor) -> &str {
    column.path().parts().first().map_or("", String::as_str)
}

fn is_text(column: &ColumnDescriptor) -> bool {
    matches!(column.converted_type(), ConvertedType::UTF8 | ConvertedType::JSON)
        || column.logical_type_ref().is_some()
}

/// The flat column `name`.
fn text_column(schema: &SchemaDescriptor, name: &str) -> Option<Column> {
    leaves(schema)
        .find(|(_, column)| column.path().parts() == [name])
        .map(|(leaf, column)| Column::new(leaf, column))
}

/// Pictures: `image_bytes`, flat or a list, or the `bytes` of Hugging Face's image columns.
fn bytes_column(schema: &SchemaDescriptor) -> Option<Column> {
    leaves(schema)
        .find(|(_, column)| {
            let is_struct = column.path().parts().last().is_some_and(|last| last == "bytes");
            let root = root_of(column);
            root == IMAGE_BYTES
                || IMAGE_COLUMNS.contains(&root)
                    && (is_struct || !is_text(column))
                    && column.path().parts().last().is_none_or(|last| last != "path")
        })
        .filter(|(_, column)| column.max_rep_level() <= 1)
        .map(|(leaf, column)| Column::new(leaf, column))
}

/// Names of image files: text, flat or a list.
fn names_column(schema: &SchemaDescriptor) -> Option<Column> {
    leaves(schema)
        .find(|(_, column)| IMAGE_COLUMNS.contains(&root_of(column)) && is_text(column))
        .filter(|(_, column)| column.max_rep_level() <= 1)
        .map(|(leaf, column)| Column::new(leaf, column))
}

/// `conversations (binary), image.bytes (binary)`
fn describe(schema: &SchemaDescriptor) -> String {
    let describe = |column: &Arc<ColumnDescriptor>| {
        format!("{} ({})", column.path().string(), column.physical_type())
    };
    schema.columns().iter().map(describe).collect::<Vec<_>>().join(", ")
}
