//! Rows from Arrow files and streams, as Hugging Face's `datasets` and Feather write them, with the
//! same columns as Parquet files. Read by position: a row costs some small reads, whatever the size of
//! its record batch, unless the batch is compressed; then its buffers are unpacked and the last ones
//! kept. Memory is not mapped: a file that is cut off is an error with a name.

mod batches;
mod layout;

use std::path::{Path, PathBuf};
use std::sync::Arc;

use bytes::Bytes;

use batches::Batches;
use layout::Layout;

use crate::error::DataError;
use crate::form;
use crate::plain_file::PlainFile;
use crate::record::{Field, Record};
use crate::reject::{Reject, RejectReason};
use crate::row_error::{ReadError, RowError};
use crate::row_options::RowOptions;
use crate::row_reader::{self, RowReader};
use crate::row_text::file_name;
use crate::rows::{Row, RowImage, Turn};
use crate::source::RowSource;

/// The rows of one Arrow file.
#[derive(Debug)]
pub(crate) struct ArrowSource {
    path: PathBuf,
    batches: Batches,
    columns: Vec<Layout>,
    reader: RowReader,
    format: String,
}

impl ArrowSource {
    /// The rows of a file that is opened already.
    ///
    /// # Errors
    /// A file that is broken, of no known columns, or without rows.
    pub(crate) fn of_plain(
        plain: PlainFile,
        images_root: Option<&Path>,
        options: &Arc<RowOptions>,
    ) -> Result<Self, DataError> {
        let path = plain.path.clone();
        let wrong = |problem: String| DataError::content(&path, problem);
        let format = plain.format("Arrow");
        let (batches, schema) = Batches::open(plain.file).map_err(|e| match e {
            ReadError::Content(problem) => {
                wrong(format!("cannot be read as Arrow: {problem}; fetch it anew"))
            }
            e @ ReadError::System(_) => e.of_file(&path),
        })?;
        if batches.num_rows() == 0 {
            return Err(wrong("no rows in this file".into()));
        }
        let all = layout::columns(&schema).map_err(wrong)?;
        let by_type: Vec<&str> = all
            .iter()
            .filter(|column| {
                column.is_image_struct() && !form::is_known_column(column.name(), options)
            })
            .map(Layout::name)
            .collect();
        let is_image = |column: &Layout| form::is_image_column(column.name(), &options.image_keys);
        let mut options = Arc::clone(options);
        if let [first, ..] = by_type[..]
            && options.image_keys.is_empty()
        {
            if by_type.len() > 1 || all.iter().any(is_image) {
                return Err(wrong(format!(
                    "the column {first:?} looks like images and has no known name; call the \
                     column whose images the rows show \"image\", and drop others; the file has: {}",
                    layout::describe(&all)
                )));
            }
            Arc::make_mut(&mut options).image_keys = vec![first.to_owned()];
        }
        let described = layout::describe(&all);
        let has_rating =
            |name: &str| all.iter().any(|column| column.has(&|part| form::is_rating(part, name)));
        if let Some((name, _)) = options.min_ratings.iter().find(|(name, _)| !has_rating(name)) {
            return Err(wrong(format!(
                "there are no ratings called {name:?} (nor {name}_ratings); the file has: {described}"
            )));
        }
        let known = |column: &Layout| form::is_known_column(column.name(), &options);
        let columns: Vec<Layout> = all.into_iter().filter(known).collect();
        let names: Vec<&str> = columns.iter().map(Layout::name).collect();
        if !form::has_form(&names) {
            return Err(wrong(format!(
                "expected a column \"conversations\", \"messages\" or \"texts\", a question with an \
                 answer, or a caption (and images as \"image\" or \"images\"); the file has: {described}"
            )));
        }
        let reader = RowReader::new(&path, images_root, &options)?;
        Ok(Self { path, batches, columns, reader, format })
    }

    fn record(&self, index: usize, with_images: bool) -> Result<Record, RowError> {
        let rejected = |problem: String| Reject::new(RejectReason::InvalidRow, problem);
        if index >= self.len() {
            return Err(rejected(format!("row {index} of {}", self.len())).into());
        }
        let chosen = &self.reader.options().image_keys;
        let used = self
            .columns
            .iter()
            .filter(|column| with_images || !form::is_image_column(column.name(), chosen));
        used.map(|column| {
            let value = self.batches.value(column, index).map_err(|e| {
                let told = |e: String| rejected(format!("column {:?}: {e}", column.name()));
                e.in_file(&self.path, told)
            })?;
            Ok((column.name().to_owned(), value))
        })
        .collect::<Result<_, RowError>>()
        .map(Record)
    }
}

impl RowSource for ArrowSource {
    fn len(&self) -> usize {
        self.batches.num_rows()
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

    /// Images are read only where the text does not say where they stand.
    fn turns(&self, index: usize) -> Result<Vec<Turn>, RowError> {
        if let Ok(row) = self.reader.row(&self.record(index, false)?)
            && row.num_image_tags() > 0
        {
            return Ok(row.turns);
        }
        Ok(self.row(index)?.turns)
    }

    fn describe(&self) -> Vec<String> {
        let told = row_reader::describe(self, &self.format, |index| self.record(index, true).ok());
        vec![format!("{}: {told}", self.path.display())]
    }
}

/// What a value that nobody can read is.
fn unsupported(name: &str, kind: &str) -> Result<Field, ReadError> {
    Err(format!("{name:?} is of the type {kind}, which is not read").into())
}
