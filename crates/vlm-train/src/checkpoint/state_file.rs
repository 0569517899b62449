//! Reads and writes `state.json` of a checkpoint. The file holds a checksum of itself, so that a
//! changed or damaged file is detected.

use std::collections::BTreeMap;
use std::io::Write;
use std::path::Path;

use serde::{Deserialize, Serialize};

use super::load_error::LoadError;
use crate::TrainError;
use crate::train_state::TrainState;

/// The contents of `state.json`.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct StateFile {
    /// Version of the checkpoint format.
    pub(super) version: u32,
    /// Version of the program that wrote the checkpoint.
    pub(super) program: String,
    #[serde(rename = "position")]
    pub(super) train_state: TrainState,
    pub(super) identity: serde_json::Value,
    /// BLAKE3 of each file, in hexadecimal.
    pub(super) checksums: BTreeMap<String, String>,
}

/// Version of the format that is written. In version 1 `state.json` has no checksum of itself.
pub(super) const FORMAT_VERSION: u32 = 2;

/// The field that holds the checksum: the last one of the file.
const FIELD: &str = "\"checksum\": \"";
/// Value of the field while the checksum is computed.
const BLANK: &str = "0000000000000000000000000000000000000000000000000000000000000000";

/// Writes the file atomically.
pub(super) fn write(path: &Path, state: &StateFile) -> Result<(), TrainError> {
    let mut value = serde_json::to_value(state).map_err(|e| TrainError::at(path, e))?;
    value["checksum"] = BLANK.into();
    let text = serde_json::to_string_pretty(&value).map_err(|e| TrainError::at(path, e))? + "\n";
    let checksum = blake3::hash(text.as_bytes()).to_hex();
    let text = text.replace(&format!("{FIELD}{BLANK}"), &format!("{FIELD}{checksum}"));
    vlm_torch::write_atomically(path, |file| {
        file.write_all(text.as_bytes()).map_err(|e| TrainError::at(path, e))
    })
}

/// Reads the file and verifies its checksum.
pub(super) fn read(path: &Path) -> Result<StateFile, LoadError> {
    let damaged = |problem: String| LoadError::Damaged(format!("{}: {problem}", path.display()));
    let text = std::fs::read(path).map_err(|e| LoadError::from_io(path, e))?;
    let text = String::from_utf8(text).map_err(|e| damaged(format!("not text: {e}")))?;
    let is_checked = match checksum_in(&text) {
        None => false,
        Some(found) => {
            let blank = text.replacen(&format!("{FIELD}{found}"), &format!("{FIELD}{BLANK}"), 1);
            if blake3::hash(blank.as_bytes()).to_hex().as_str() != found {
                return Err(damaged(
                    "the checksum in the file differs from that of its contents: the file was \
                     changed or is damaged; continue from another checkpoint"
                        .into(),
                ));
            }
            true
        }
    };
    let state: StateFile = serde_json::from_str(&text)
        .map_err(|e| damaged(format!("not the state file of a checkpoint: {e}")))?;
    match state.version {
        1 => Ok(state),
        FORMAT_VERSION if is_checked => Ok(state),
        FORMAT_VERSION => Err(damaged("the file has no checksum".into())),
        other => Err(LoadError::OtherVersion(format!(
            "{}: checkpoint format {other}; this program reads formats 1 to {FORMAT_VERSION}",
            path.display()
        ))),
    }
}

/// The checksum in the text of the file, if there is one.
fn checksum_in(text: &str) -> Option<&str> {
    let start = text.rfind(FIELD)? + FIELD.len();
    text.get(start..start + BLANK.len())
}
