//! A [`RowSource`] over one file of any format. The reader of a format ([`RecordReader`]) only
//! finds the values of a row; making a row of them and finding its images is the same for all
//! formats.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use bytes::Bytes;

use crate::error::DataError;
use crate::form;
use crate::plain_file::PlainFile;
use crate::record::Record;
use crate::reject::Reject;
use crate::row_error::RowError;
use crate::row_options::RowOptions;
use crate::row_reader::RowReader;
use crate::row_text::{RowTexts, file_name};
use crate::rows::{Row, RowImage, Turn};
use crate::source::RowSource;

/// Number of rows that are read to find out which forms a file has.
const NUM_DESCRIBED: usize = 16;

/// The columns that are read of a row.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Columns {
    /// All columns.
    All,
    /// All but those that hold images, if the format can leave columns out.
    Text,
}

/// The reader of one format.
pub(crate) trait RecordReader: Send + Sync {
    /// Whether [`Columns::Text`] saves reading image bytes.
    const HAS_IMAGE_COLUMNS: bool = false;

    /// Number of rows.
    fn num_rows(&self) -> usize;

    /// The values of row `index`, which is below the number of rows.
    ///
    /// # Errors
    /// A row that cannot be used, or a disk that fails.
    fn record(&self, index: usize, columns: Columns) -> Result<Record, RowError>;

    /// The text that follows the file's name in the location of row `index`: `[17]`.
    fn location(&self, index: usize) -> String {
        format!("[{index}]")
    }
}

/// The rows of one file.
#[derive(Debug)]
pub(crate) struct FileSource<R> {
    path: PathBuf,
    pub(crate) records: R,
    reader: RowReader,
    /// The format's name for messages.
    format: String,
}

impl<R: RecordReader> FileSource<R> {
    /// The rows that `records` reads from the file at `path`. Image names are relative to
    /// `images_root`, or to the folder of `path` if it is `None`.
    ///
    /// # Errors
    /// A folder of images that does not exist.
    pub(crate) fn new(
        path: &Path,
        records: R,
        format: String,
        images_root: Option<&Path>,
        options: &Arc<RowOptions>,
    ) -> Result<Self, DataError> {
        let reader = RowReader::new(path, images_root, options)?;
        Ok(Self { path: path.to_owned(), records, reader, format })
    }

    /// Like [`Self::new`], for the rows that `records` finds in `plain`.
    pub(crate) fn from_plain_file(
        plain: PlainFile,
        format: &str,
        images_root: Option<&Path>,
        options: &Arc<RowOptions>,
        records: impl FnOnce(RowTexts) -> R,
    ) -> Result<Self, DataError> {
        let (path, format) = (plain.path.clone(), plain.format(format));
        Self::new(&path, records(RowTexts::new(plain, options)), format, images_root, options)
    }

    fn record(&self, index: usize, columns: Columns) -> Result<Record, RowError> {
        if index >= self.len() {
            return Err(Reject::no_such_row(index, self.len()).into());
        }
        self.records.record(index, columns)
    }
}

impl<R: RecordReader> RowSource for FileSource<R> {
    fn len(&self) -> usize {
        self.records.num_rows()
    }

    fn row(&self, index: usize) -> Result<Row, RowError> {
        Ok(self.reader.row(&self.record(index, Columns::All)?)?)
    }

    fn image_bytes(&self, _: usize, _: usize, image: &RowImage) -> Result<Bytes, RowError> {
        self.reader.image_bytes(image)
    }

    fn locate(&self, index: usize) -> String {
        format!("{}{}", file_name(&self.path), self.records.location(index))
    }

    /// Image columns are read only if the text has no image tags: then the number of images decides
    /// how many tags are put in front of it.
    fn turns(&self, index: usize) -> Result<Vec<Turn>, RowError> {
        if R::HAS_IMAGE_COLUMNS
            && let Ok(row) = self.reader.row(&self.record(index, Columns::Text)?)
            && row.num_image_tags() > 0
        {
            return Ok(row.turns);
        }
        Ok(self.row(index)?.turns)
    }

    fn describe(&self) -> Vec<String> {
        let record = |index| self.record(index, Columns::All).ok();
        let described = describe(self, &self.format, record);
        vec![format!("{}: {described}", self.path.display())]
    }
}

/// Describes the forms of the first rows of `source` and the number of their images; `record`
/// returns the values of a row.
pub(crate) fn describe(
    source: &dyn RowSource,
    format: &str,
    record: impl Fn(usize) -> Option<Record>,
) -> String {
    let num_read = NUM_DESCRIBED.min(source.len());
    let mut forms: Vec<(String, usize)> = Vec::new();
    let mut num_images = 0;
    for index in 0..num_read {
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
        "{format}, {} rows; the first {num_read}: {}, {num_images} images",
        source.len(),
        forms.join("; ")
    )
}
