//! Writes rows in the formats in which data sets are published.

use std::fs::File;
use std::io::{BufWriter, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::{Context, Result};
use flate2::Compression;
use flate2::write::GzEncoder;
use parquet::data_type::{ByteArray, ByteArrayType};
use parquet::file::properties::WriterProperties;
use parquet::file::writer::SerializedFileWriter;
use parquet::schema::parser::parse_message_type;
use serde_json::{Value, json};

use super::form::Form;

const PARQUET_SCHEMA: &str = "message rows {
    required binary conversations (UTF8);
    optional binary image_bytes;
}";
/// Rows per row group. A group is held in memory until it is complete, so this is far below
/// pyarrow's default.
const ROWS_PER_GROUP: usize = 2048;

/// Writes rows to a file, one at a time.
pub struct RowWriter {
    path: PathBuf,
    form: Form,
    target: Target,
}

enum Target {
    List(BufWriter<File>),
    Lines(Box<dyn Write>),
    Gzip(GzEncoder<BufWriter<File>>),
    Zstd(zstd::Encoder<'static, BufWriter<File>>),
    Parquet { file: SerializedFileWriter<File>, waiting: Vec<(String, Option<Vec<u8>>)> },
    Tar(Box<tar::Builder<BufWriter<File>>>),
}

impl RowWriter {
    /// Creates the file in `folder`.
    pub fn create(folder: &Path, form: Form) -> Result<Self> {
        let path = folder.join(form.file_name());
        let in_file = || path.display().to_string();
        let file = File::create(&path).with_context(in_file)?;
        let buffered = |file| BufWriter::with_capacity(1 << 20, file);
        let target = match form {
            Form::Llava => Target::List(buffered(file)),
            Form::Jsonl | Form::Messages | Form::ImageFolder => {
                Target::Lines(Box::new(buffered(file)))
            }
            Form::Csv => {
                let mut file = buffered(file);
                writeln!(file, "image,caption").with_context(in_file)?;
                Target::Lines(Box::new(file))
            }
            Form::JsonlGz => Target::Gzip(GzEncoder::new(buffered(file), Compression::default())),
            Form::JsonlZst => {
                Target::Zstd(zstd::Encoder::new(buffered(file), 0).with_context(in_file)?)
            }
            Form::Parquet => {
                let schema = Arc::new(parse_message_type(PARQUET_SCHEMA)?);
                // Images are compressed already, and no two are equal.
                let properties = WriterProperties::builder().set_dictionary_enabled(false).build();
                let file = SerializedFileWriter::new(file, schema, Arc::new(properties))?;
                Target::Parquet { file, waiting: Vec::new() }
            }
            Form::Tar => Target::Tar(Box::new(tar::Builder::new(buffered(file)))),
        };
        Ok(Self { path, form, target })
    }

    /// Path of the file.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Writes row `row`. Parquet and tar store `image_bytes`; the other formats store the name
    /// `image`.
    pub fn write(
        &mut self,
        row: usize,
        image: Option<&str>,
        conversations: Value,
        image_bytes: Option<Vec<u8>>,
    ) -> Result<()> {
        let form = self.form;
        let in_file = || self.path.display().to_string();
        match &mut self.target {
            Target::List(file) => {
                let start = if row == 0 { "[\n" } else { ",\n" };
                let object = form.object(row, image, conversations);
                write!(file, "{start}{object}").with_context(in_file)
            }
            // The generated texts have no quotation marks and no line breaks.
            Target::Lines(file) if form == Form::Csv => {
                let answer = conversations[1]["value"].as_str().unwrap_or_default();
                writeln!(file, "{},\"{answer}\"", image.unwrap_or_default()).with_context(in_file)
            }
            Target::Lines(file) => {
                writeln!(file, "{}", form.object(row, image, conversations)).with_context(in_file)
            }
            Target::Gzip(file) => {
                writeln!(file, "{}", form.object(row, image, conversations)).with_context(in_file)
            }
            Target::Zstd(file) => {
                writeln!(file, "{}", form.object(row, image, conversations)).with_context(in_file)
            }
            Target::Parquet { file, waiting } => {
                // An image without a file is stored as null.
                waiting.push((conversations.to_string(), image_bytes));
                if waiting.len() == ROWS_PER_GROUP { write_group(file, waiting) } else { Ok(()) }
            }
            Target::Tar(file) => {
                let text = json!({ "conversations": conversations }).to_string();
                let members = [("json", Some(text.into_bytes())), ("jpg", image_bytes)].into_iter();
                for (extension, bytes) in members {
                    let Some(bytes) = bytes else { continue };
                    append(file, &format!("{row:09}.{extension}"), &bytes).with_context(in_file)?;
                }
                Ok(())
            }
        }
    }

    /// Writes the remaining rows and closes the file.
    pub fn finish(self) -> Result<()> {
        let in_file = || self.path.display().to_string();
        match self.target {
            Target::List(mut file) => {
                file.write_all(b"\n]\n").and_then(|()| file.flush()).with_context(in_file)
            }
            Target::Lines(mut file) => file.flush().with_context(in_file),
            Target::Gzip(file) => {
                file.finish().and_then(|mut file| file.flush()).with_context(in_file)
            }
            Target::Zstd(file) => {
                file.finish().and_then(|mut file| file.flush()).with_context(in_file)
            }
            Target::Parquet { mut file, mut waiting } => {
                write_group(&mut file, &mut waiting)?;
                file.close().with_context(in_file)?;
                Ok(())
            }
            Target::Tar(file) => {
                file.into_inner().and_then(|mut file| file.flush()).with_context(in_file)
            }
        }
    }
}

/// Appends a member to a tar without time and owner, so that the same rows make the same bytes.
fn append(
    file: &mut tar::Builder<BufWriter<File>>,
    name: &str,
    bytes: &[u8],
) -> std::io::Result<()> {
    let mut header = tar::Header::new_gnu();
    header.set_size(bytes.len() as u64);
    header.set_mode(0o644);
    header.set_mtime(0);
    file.append_data(&mut header, name, bytes)
}

fn write_group(
    file: &mut SerializedFileWriter<File>,
    waiting: &mut Vec<(String, Option<Vec<u8>>)>,
) -> Result<()> {
    if waiting.is_empty() {
        return Ok(());
    }
    let rows = std::mem::take(waiting);
    let present: Vec<i16> = rows.iter().map(|(_, image)| image.is_some().into()).collect();
    let (texts, images): (Vec<_>, Vec<_>) = rows.into_iter().unzip();
    let texts: Vec<ByteArray> = texts.into_iter().map(|text| text.into_bytes().into()).collect();
    let images: Vec<ByteArray> = images.into_iter().flatten().map(ByteArray::from).collect();
    let mut group = file.next_row_group()?;
    for (values, levels) in [(texts, None), (images, Some(&present[..]))] {
        let mut column = group.next_column()?.context("the schema has two columns")?;
        column.typed::<ByteArrayType>().write_batch(&values, levels, None)?;
        column.close()?;
    }
    group.close()?;
    Ok(())
}
