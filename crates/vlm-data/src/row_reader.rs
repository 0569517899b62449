//! What all sources do with the values of a row: make a [`Row`] of them, and find its images.

use std::path::Path;
use std::sync::Arc;

use bytes::Bytes;

use crate::error::DataError;
use crate::form::{self, FormContext};
use crate::image_root::ImageRoot;
use crate::record::{Field, Record};
use crate::reject::Reject;
use crate::row_error::RowError;
use crate::row_options::RowOptions;
use crate::row_text::folder_of;
use crate::rows::{Row, RowImage};

/// Makes rows of values.
#[derive(Debug, Clone)]
pub(crate) struct RowReader {
    options: Arc<RowOptions>,
    root: ImageRoot,
}

impl RowReader {
    /// A reader for the rows of the file at `path`. Image names are relative to `images_root`, or
    /// to the folder of `path` if it is `None`.
    ///
    /// # Errors
    /// A folder that does not exist.
    pub(crate) fn new(
        path: &Path,
        images_root: Option<&Path>,
        options: &Arc<RowOptions>,
    ) -> Result<Self, DataError> {
        let root = match images_root {
            Some(root) => ImageRoot::with_options(root, options)?,
            None => ImageRoot::beside_rows(folder_of(path), options)?,
        };
        Ok(Self { options: Arc::clone(options), root })
    }

    pub(crate) fn options(&self) -> &RowOptions {
        &self.options
    }

    /// The row in `record`.
    ///
    /// # Errors
    /// A record that cannot be used.
    pub(crate) fn row(&self, record: &Record) -> Result<Row, Reject> {
        form::row(record, &self.context())
    }

    /// The bytes of an image of a row.
    ///
    /// # Errors
    /// An image that cannot be read.
    pub(crate) fn image_bytes(&self, image: &RowImage) -> Result<Bytes, RowError> {
        match &image.bytes {
            Some(bytes) => Ok(bytes.clone()),
            None => self.root.read(&image.name).map(Bytes::from),
        }
    }

    pub(crate) fn context(&self) -> FormContext<'_> {
        FormContext { options: &self.options, root: Some(&self.root) }
    }
}

/// The values of a row that is JSON text. A comma after it is ignored: lines that were cut out of a
/// list have one.
///
/// # Errors
/// Text that is not a JSON object.
pub(crate) fn json_record(text: &str) -> Result<Record, Reject> {
    let text = text.trim_end();
    Field::from_json(text.strip_suffix(',').unwrap_or(text))
        .and_then(Field::into_record)
        .map_err(Reject::invalid_row)
}
