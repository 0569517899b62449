//! A [`RowSource`] over one file of any format. The reader of a format ([`RecordReader`]) only
//! finds the values of a row; making a row of them and finding its images is the same for all
//! formats.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use bytes::Bytes;
use vlm_display::count;

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

/// A file whose rows are to be found by the reader of its format.
#[derive(Debug)]
pub(crate) struct RowFile<'a> {
    pub(crate) plain: PlainFile,
    /// Folder that image names are relative to; `None` for the folder of the file.
    pub(crate) images_root: Option<&'a Path>,
    pub(crate) options: Arc<RowOptions>,
}

impl<'a> RowFile<'a> {
    /// Opens the file at `path` and removes its encodings.
    ///
    /// # Errors
    /// As for [`PlainFile::open`].
    pub(crate) fn open(
        path: &Path,
        images_root: Option<&'a Path>,
        options: &Arc<RowOptions>,
    ) -> Result<Self, DataError> {
        let plain = PlainFile::open(path, options)?;
        Ok(Self { plain, images_root, options: Arc::clone(options) })
    }

    /// What makes rows of the values in this file.
    ///
    /// # Errors
    /// A folder of images that does not exist.
    pub(crate) fn row_reader(&self) -> Result<RowReader, DataError> {
        RowReader::new(&self.plain.path, self.images_root, &self.options)
    }

    /// The rows that `records` reads as text from this file of `format`.
    ///
    /// # Errors
    /// As for [`Self::row_reader`].
    pub(crate) fn source<R>(
        self,
        format: &str,
        records: impl FnOnce(RowTexts) -> R,
    ) -> Result<FileSource<R>, DataError> {
        let (reader, format) = (self.row_reader()?, self.plain.format(format));
        let path = self.plain.path.clone();
        let records = records(RowTexts::new(self.plain, &self.options));
        Ok(FileSource { path, records, reader, format })
    }
}

/// The rows of one file.
#[derive(Debug)]
pub(crate) struct FileSource<R> {
    pub(crate) path: PathBuf,
    pub(crate) records: R,
    pub(crate) reader: RowReader,
    /// The format's name for messages.
    pub(crate) format: String,
}

impl<R: RecordReader> FileSource<R> {
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
            Some((_, rows)) => *rows += 1,
            None => forms.push((form, 1)),
        }
        num_images += source.row(index).map_or(0, |row| row.images.len());
    }
    let forms: Vec<String> = match &forms[..] {
        [(form, _)] => vec![form.clone()],
        several => several.iter().map(|(form, rows)| format!("{form} ({rows})")).collect(),
    };
    format!(
        "{format}, {}; the first {num_read}: {}, {}",
        count(source.len(), "row"),
        forms.join("; "),
        count(num_images, "image")
    )
}
