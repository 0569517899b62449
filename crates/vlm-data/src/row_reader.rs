//! What all sources do with a row once its values are read: make a [`Row`] of them, find its images.

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
use crate::source::RowSource;

/// Rows that are looked at to tell which form a file has.
const NUM_DESCRIBED: usize = 16;

/// Makes rows of values.
#[derive(Debug, Clone)]
pub(crate) struct RowReader {
    options: Arc<RowOptions>,
    root: ImageRoot,
}

impl RowReader {
    /// For the rows of the file at `path`. Image names are relative to `images_root`, without one to
    /// the folder of `path`.
    ///
    /// # Errors
    /// A folder that is not there.
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

    /// The row that JSON text is. A comma behind it, as in lines that were cut out of a list, is left
    /// out.
    ///
    /// # Errors
    /// Why it cannot be used.
    pub(crate) fn row_of_json(&self, text: &str) -> Result<Row, Reject> {
        Row::from_field(json(text), &self.context())
    }

    /// The row that `record` is.
    ///
    /// # Errors
    /// Why it cannot be used.
    pub(crate) fn row(&self, record: &Record) -> Result<Row, Reject> {
        form::row(record, &self.context())
    }

    /// The bytes of an image of a row.
    ///
    /// # Errors
    /// Why it cannot be had.
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

/// What a line is.
///
/// # Errors
/// What is wrong with the text.
pub(crate) fn json(text: &str) -> Result<Field, String> {
    let text = text.trim_end();
    Field::from_json(text.strip_suffix(',').unwrap_or(text))
}

/// Which forms the rows of `source` have, and how its images are marked, by its first rows:
/// `record` has the values of a row.
pub(crate) fn describe(
    source: &dyn RowSource,
    format: &str,
    record: impl Fn(usize) -> Option<Record>,
) -> String {
    let num_looked_at = NUM_DESCRIBED.min(source.len());
    let mut forms: Vec<(String, usize)> = Vec::new();
    let mut num_images = 0;
    for index in 0..num_looked_at {
        let form = record(index).map_or("unreadable".to_owned(), |record| form::describe(&record));
        match forms.iter_mut().find(|(known, _)| *known == form) {
            Some((_, count)) => *count += 1,
            None => forms.push((form, 1)),
        }
        num_images += source.row(index).map_or(0, |row| row.images.len());
    }
    let forms: Vec<String> = match &forms[..] {
        [(form, _)] => vec![form.clone()],
        several => several.iter().map(|(form, count)| format!("{form} ({count})")).collect(),
    };
    format!(
        "{format}, {} rows; the first {num_looked_at}: {}, {num_images} images",
        source.len(),
        forms.join("; ")
    )
}
