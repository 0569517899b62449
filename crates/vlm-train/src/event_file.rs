//! TensorBoard event files `events.out.tfevents.*`: sequences of records that each hold one
//! `Event`.
//!
//! Both formats are TensorFlow's: the records of `core/lib/io/record_writer.h` and the messages of
//! `core/util/event.proto` and `core/framework/summary.proto`. Only the fields that scalars need
//! are written. This file does not depend on the names of metrics.

use std::fs::File;
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

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
}

impl EventFile {
    /// Creates a new file in `folder`. TensorBoard no longer shows the events of earlier files from
    /// `next_step` on: a run that continues from a checkpoint repeats these steps.
    ///
    /// # Errors
    /// A failure of the file system, with the path.
    pub fn create(folder: &Path, next_step: u64) -> Result<Self, TrainError> {
        let (path, file) = new_file(folder).map_err(|e| TrainError::at(folder, e))?;
        let mut events = Self { path, file };
        events.write(0, &Content::FileVersion)?;
        events.write(next_step, &Content::SessionStart)?;
        Ok(events)
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
    /// Appends every number of a log line or an evaluation, with the names of `metrics.jsonl`.
    ///
    /// # Errors
    /// A failure of the file system such as a full disk, with the path.
    fn event(&mut self, event: &Event) -> Result<(), TrainError> {
        let line = event.to_json_line().map_err(|e| TrainError::at(&self.path, e))?;
        let Some(line) = line else { return Ok(()) };
        let fields = line.as_object().into_iter().flatten();
        let scalars: Vec<(&str, f64)> = fields
            .filter(|(name, _)| *name != "step")
            .filter_map(|(name, value)| Some((name.as_str(), value.as_f64()?)))
            .collect();
        self.write(line["step"].as_u64().unwrap_or(0), &Content::Scalars(&scalars))
    }
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
    Scalars(&'a [(&'a str, f64)]),
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
        Content::Scalars(values) => {
            let mut summary = Vec::new();
            for (tag, value) in *values {
                let mut entry = Vec::new();
                put_bytes(&mut entry, 1, tag.as_bytes());
                // simple_value = 2, float.
                entry.push(0x15);
                entry.extend((*value as f32).to_le_bytes());
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
        let values = [("loss", 8.7654), ("lr", 4.4e-4)];
        let written = [
            record(&event(1764000000.25, 0, &Content::FileVersion)),
            record(&event(1764000001.5, 300, &Content::SessionStart)),
            record(&event(1764000002.75, 300, &Content::Scalars(&values))),
        ];
        assert_eq!(written.concat(), golden);
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
