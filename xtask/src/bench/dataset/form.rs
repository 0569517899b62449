//! Writes rows in the formats in which data sets are published.

use std::fs::File;
use std::io::{BufWriter, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::{Context, Result};
use parquet::data_type::{ByteArray, ByteArrayType};
use parquet::file::properties::WriterProperties;
use parquet::file::writer::SerializedFileWriter;
use parquet::schema::parser::parse_message_type;
use serde_json::{Value, json};

use super::Form;

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
    target: Target,
}

enum Target {
    List(BufWriter<File>),
    Lines(BufWriter<File>),
    Parquet { file: SerializedFileWriter<File>, waiting: Vec<(String, Option<Vec<u8>>)> },
}

impl RowWriter {
    /// Creates the file in `folder`.
    pub fn create(folder: &Path, form: Form) -> Result<Self> {
        let path = folder.join(match form {
            Form::Llava => "rows.json",
            Form::Jsonl => "rows.jsonl",
            Form::Parquet => "rows.parquet",
        });
        let file = File::create(&path).with_context(|| path.display().to_string())?;
        let buffered = |file| BufWriter::with_capacity(1 << 20, file);
        let target = match form {
            Form::Llava => Target::List(buffered(file)),
            Form::Jsonl => Target::Lines(buffered(file)),
            Form::Parquet => {
                let schema = Arc::new(parse_message_type(PARQUET_SCHEMA)?);
                // Images are compressed already, and no two are equal.
                let properties = WriterProperties::builder().set_dictionary_enabled(false).build();
                let file = SerializedFileWriter::new(file, schema, Arc::new(properties))?;
                Target::Parquet { file, waiting: Vec::new() }
            }
        };
        Ok(Self { path, target })
    }

    /// Path of the file.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Writes row `row`. Parquet stores `image_bytes`; the other formats store the name `image`.
    pub fn write(
        &mut self,
        row: usize,
        image: Option<&str>,
        conversations: Value,
        image_bytes: Option<Vec<u8>>,
    ) -> Result<()> {
        let mut object = json!({ "id": format!("{row:09}") });
        if let Some(image) = image {
            object["image"] = image.into();
        }
        match &mut self.target {
            Target::List(file) => {
                object["conversations"] = conversations;
                let start = if row == 0 { "[\n" } else { ",\n" };
                write!(file, "{start}{object}").with_context(|| self.path.display().to_string())
            }
            Target::Lines(file) => {
                object["conversations"] = conversations;
                writeln!(file, "{object}").with_context(|| self.path.display().to_string())
            }
            Target::Parquet { file, waiting } => {
                // An image without a file is stored as null.
                waiting.push((conversations.to_string(), image_bytes));
                if waiting.len() == ROWS_PER_GROUP { write_group(file, waiting) } else { Ok(()) }
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
            Target::Parquet { mut file, mut waiting } => {
                write_group(&mut file, &mut waiting)?;
                file.close().with_context(in_file)?;
                Ok(())
            }
        }
    }
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
