//! TensorBoard event files `events.out.tfevents.*`: sequences of records that each hold one
//! `Event`.
//!
//! Both formats are TensorFlow's: the records of `core/lib/io/record_writer.h` and the messages of
//! `core/util/event.proto` and `core/framework/summary.proto`. Only the fields that scalars,
//! texts and images need are written.

use std::fs::File;
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use vlm_data::IMAGE_TAG;
use vlm_infer::evaluation::EvalSample;

use crate::TrainError;
use crate::events::{Event, EventSink};
use crate::machine::host_name;

/// Version of the format. It is the first record of every file.
const FILE_VERSION: &str = "brain.Event:2";

/// An event file with the scalars of a run. Each process that writes to a folder has its own file.
#[derive(Debug)]
pub struct EventFile {
    path: PathBuf,
    file: File,
    /// Rows of samples whose images are in the file.
    shown_rows: Vec<usize>,
}

impl EventFile {
    /// Creates a new file in `folder`. TensorBoard no longer shows the events of earlier files from
    /// `next_step` on: a run that continues from a checkpoint repeats these steps.
    ///
    /// # Errors
    /// A failure of the file system, with the path.
    pub fn create(folder: &Path, next_step: u64) -> Result<Self, TrainError> {
        let (path, file) = new_file(folder).map_err(|e| TrainError::at(folder, e))?;
        let mut events = Self { path, file, shown_rows: Vec::new() };
        events.write(0, &Content::FileVersion)?;
        events.write(next_step, &Content::SessionStart)?;
        Ok(events)
    }

    /// Writes the answers to rows as texts, and the images of the rows when the file has none of
    /// them yet.
    fn write_samples(&mut self, step: u64, samples: &[EvalSample]) -> Result<(), TrainError> {
        let mut values = Vec::new();
        for sample in samples {
            let EvalSample { row, question, expected, generated, png, .. } = sample;
            let question = question.replace(IMAGE_TAG, "");
            let question = question.trim();
            // TensorBoard renders Markdown; a line of its own needs an empty one before it.
            let text = format!("{question}\n\nexpected: {expected}\n\n**{generated}**");
            values.push((format!("samples/row {row}"), Value::Text(text)));
            if let Some(png) = png.as_ref().filter(|_| !self.shown_rows.contains(row)) {
                self.shown_rows.push(*row);
                values.push((format!("samples/image of row {row}"), Value::Image(png.clone())));
            }
        }
        self.write(step, &Content::Summary(&values))
    }

    fn write(&mut self, step: u64, content: &Content) -> Result<(), TrainError> {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let record = record(&event(now.as_secs_f64(), step, content));
        self.file
            .write_all(&record)
            .map_err(|e| TrainError::at(&self.path, format!("cannot write events: {e}")))
    }
}

impl EventSink for EventFile {
    /// Appends every number of a log line or an evaluation, with its name in `metrics.jsonl` in a
    /// group (see `tag`), and the samples of an evaluation as texts and images.
    ///
    /// # Errors
    /// A failure of the file system such as a full disk, with the path.
    fn event(&mut self, event: &Event) -> Result<(), TrainError> {
        if let Event::Samples { step, samples } = event {
            return self.write_samples(*step, samples);
        }
        let line = event.to_json_line().map_err(|e| TrainError::at(&self.path, e))?;
        let Some(line) = line else { return Ok(()) };
        let fields = line.as_object().into_iter().flatten();
        let is_evaluation = matches!(event, Event::Evaluation(_));
        // The lines of steps have update and epoch, too.
        let is_repeated = |name: &str| is_evaluation && !name.starts_with("eval_");
        let values: Vec<(String, Value)> = fields
            .filter(|(name, _)| *name != "step" && !is_repeated(name))
            .filter_map(|(name, value)| Some((tag(name), Value::Scalar(value.as_f64()? as f32))))
            .collect();
        self.write(line["step"].as_u64().unwrap_or(0), &Content::Summary(&values))
    }
}

/// The tag of a number, in a group of TensorBoard: `eval/` for the scores of evaluations, `train/`
/// for what is learned, `data/` for rows and tokens, and `perf/` for times and memory.
fn tag(name: &str) -> String {
    let group = match name {
        "loss" | "aux_loss" | "lr" | "grad_norm" | "update" | "epoch" | "skipped_updates" => {
            "train"
        }
        "samples" | "tokens" | "supervised_tokens" | "rejected_rows" | "data_wait_ms" => "data",
        _ => match name.strip_prefix("eval_") {
            Some(name) => return format!("eval/{name}"),
            None => "perf",
        },
    };
    format!("{group}/{name}")
}

/// Creates a file `events.out.tfevents.{seconds}.{host}.{process}.{number}`. TensorBoard reads the
/// files of a folder in the order of their names.
fn new_file(folder: &Path) -> io::Result<(PathBuf, File)> {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
    let host: String = host_name().chars().filter(|c| c.is_ascii_alphanumeric()).collect();
    let process = std::process::id();
    let mut number = 0;
    loop {
        let path = folder.join(format!("events.out.tfevents.{now:010}.{host}.{process}.{number}"));
        match File::create_new(&path) {
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => number += 1,
            other => return other.map(|file| (path, file)),
        }
    }
}

/// The content of an event.
enum Content<'a> {
    FileVersion,
    SessionStart,
    /// Values by their tags.
    Summary(&'a [(String, Value)]),
}

/// A value of a summary.
enum Value {
    Scalar(f32),
    /// Markdown.
    Text(String),
    /// A PNG file.
    Image(Vec<u8>),
}

impl Value {
    /// The fields of a `Summary.Value` message except the tag.
    fn fields(&self) -> Vec<u8> {
        let mut fields = Vec::new();
        match self {
            Self::Scalar(value) => {
                // simple_value = 2, float.
                fields.push(0x15);
                fields.extend(value.to_le_bytes());
            }
            Self::Text(text) => {
                // tensor = 8: dtype = 1 set to DT_STRING = 7, tensor_shape = 2 with one dim = 2 of
                // size = 1, string_val = 8.
                let shape = message(|shape| put_bytes(shape, 2, &[0x08, 1]));
                let tensor = message(|tensor| {
                    tensor.extend([0x08, 7]);
                    put_bytes(tensor, 2, &shape);
                    put_bytes(tensor, 8, text.as_bytes());
                });
                put_bytes(&mut fields, 8, &tensor);
                // metadata = 9: plugin_data = 1: plugin_name = 1.
                let name = message(|name| put_bytes(name, 1, b"text"));
                put_bytes(&mut fields, 9, &message(|metadata| put_bytes(metadata, 1, &name)));
            }
            Self::Image(png) => {
                // The header of a PNG file has width and height after 16 bytes.
                let side = |at: usize| {
                    let bytes = png.get(at..at + 4).and_then(|bytes| bytes.try_into().ok());
                    bytes.map_or(0, u32::from_be_bytes).into()
                };
                // image = 4: height = 1, width = 2, colorspace = 3 (RGB), encoded_image_string = 4.
                let image = message(|image| {
                    image.push(0x08);
                    put_varint(image, side(20));
                    image.push(0x10);
                    put_varint(image, side(16));
                    image.extend([0x18, 3]);
                    put_bytes(image, 4, png);
                });
                put_bytes(&mut fields, 4, &image);
            }
        }
        fields
    }
}

fn message(write: impl FnOnce(&mut Vec<u8>)) -> Vec<u8> {
    let mut bytes = Vec::new();
    write(&mut bytes);
    bytes
}

/// A serialized `Event` message. `wall_time` is in seconds since 1970.
fn event(wall_time: f64, step: u64, content: &Content) -> Vec<u8> {
    let mut event = Vec::new();
    // wall_time = 1, double.
    event.push(0x09);
    event.extend(wall_time.to_le_bytes());
    if step > 0 {
        // step = 2, int64.
        event.push(0x10);
        put_varint(&mut event, step);
    }
    match content {
        Content::FileVersion => put_bytes(&mut event, 3, FILE_VERSION.as_bytes()),
        // session_log = 7, with status = 1 set to START = 1.
        Content::SessionStart => put_bytes(&mut event, 7, &[0x08, 1]),
        Content::Summary(values) => {
            let mut summary = Vec::new();
            for (tag, value) in *values {
                let mut entry = message(|entry| put_bytes(entry, 1, tag.as_bytes()));
                entry.extend(value.fields());
                put_bytes(&mut summary, 1, &entry);
            }
            put_bytes(&mut event, 5, &summary);
        }
    }
    event
}

/// Appends a length-delimited field: its number, its length and its bytes.
fn put_bytes(to: &mut Vec<u8>, field: u8, bytes: &[u8]) {
    to.push(field << 3 | 2);
    put_varint(to, bytes.len() as u64);
    to.extend(bytes);
}

fn put_varint(to: &mut Vec<u8>, mut value: u64) {
    while value >= 0x80 {
        to.push(value as u8 | 0x80);
        value >>= 7;
    }
    to.push(value as u8);
}

/// A record: length, checksum of the length, payload, checksum of the payload.
fn record(payload: &[u8]) -> Vec<u8> {
    let length = (payload.len() as u64).to_le_bytes();
    let mut record = length.to_vec();
    record.extend(masked_crc(&length).to_le_bytes());
    record.extend(payload);
    record.extend(masked_crc(payload).to_le_bytes());
    record
}

/// The masked CRC-32C of `record_writer.h`. It is masked because the CRC of data that contains CRCs
/// is weak.
fn masked_crc(bytes: &[u8]) -> u32 {
    crc32c::crc32c(bytes).rotate_right(15).wrapping_add(0xa282_ead8)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_bytes_equal_those_of_tensorboards_writer() {
        let golden = include_bytes!("../../../tests/golden/events/events.golden");
        let numbers =
            [("train/loss".to_owned(), Value::Scalar(8.7654)), (tag("lr"), Value::Scalar(4.4e-4))];
        let mut png = b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR".to_vec();
        png.extend([0, 0, 1, 44, 0, 0, 0, 200]);
        let samples = [
            ("samples/row 3".to_owned(), Value::Text("**A cat.**".into())),
            ("samples/image of row 3".to_owned(), Value::Image(png)),
        ];
        let written = [
            record(&event(1764000000.25, 0, &Content::FileVersion)),
            record(&event(1764000001.5, 300, &Content::SessionStart)),
            record(&event(1764000002.75, 300, &Content::Summary(&numbers))),
            record(&event(1764000003.0, 300, &Content::Summary(&samples))),
        ];
        assert_eq!(written.concat(), golden);
    }

    #[test]
    fn numbers_are_in_groups() {
        let names = ["loss", "mfu", "step_ms", "rejected_rows", "eval_image_gain"];
        let tags =
            ["train/loss", "perf/mfu", "perf/step_ms", "data/rejected_rows", "eval/image_gain"];
        assert_eq!(names.map(tag), tags);
    }

    #[test]
    fn files_created_in_the_same_second_do_not_overwrite_each_other() {
        let folder = tempfile::tempdir().unwrap();
        for _ in 0..3 {
            EventFile::create(folder.path(), 1).unwrap();
        }
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 3);
    }
}
