//! Which files a path stands for, told by content and not by name.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io::Read;
use std::path::{Path, PathBuf};

use serde_json::Value;

use super::WeightsError;
use super::error::Refusal;

/// What the first bytes of a file say it is.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) enum Content {
    /// A zip, as `torch.save` writes.
    Pth,
    Safetensors,
    /// Hugging Face's JSON of which tensor is in which part.
    Index,
}

/// In a folder the first of these counts.
const USUAL_NAMES: [&str; 4] = [
    "model.safetensors",
    "model.safetensors.index.json",
    "pytorch_model.bin",
    "pytorch_model.bin.index.json",
];

/// An index lists names; the largest models' have a few megabytes.
const MAX_INDEX_BYTES: u64 = 256 << 20;

/// The weight file that a path means: itself, or the one in the folder. The same name as `.pth` and
/// `.safetensors`, as a run leaves them, is one: the `.pth`, which says more of tied weights.
/// # Errors
/// A folder with none, or with several of unusual names.
pub(super) fn resolve(path: &Path) -> Result<PathBuf, WeightsError> {
    if !fs::metadata(path).map_err(WeightsError::io(path))?.is_dir() {
        return Ok(path.to_owned());
    }
    if let Some(file) = USUAL_NAMES.iter().map(|name| path.join(name)).find(|file| file.is_file()) {
        return Ok(file);
    }
    let mut found = BTreeSet::new();
    for entry in fs::read_dir(path).map_err(WeightsError::io(path))? {
        let file = entry.map_err(WeightsError::io(path))?.path();
        if file.extension().is_some_and(|e| e == "safetensors" || e == "pth" || e == "bin") {
            found.insert(file);
        }
    }
    let has_twin = |file: &PathBuf| {
        file.extension().is_some_and(|e| e == "safetensors")
            && found.contains(&file.with_extension("pth"))
    };
    let found: BTreeSet<_> = found.iter().filter(|file| !has_twin(file)).cloned().collect();
    let message = match found.len() {
        0 => format!("the folder has no weights; expected one of {}", USUAL_NAMES.join(", ")),
        1 => return Ok(found.into_iter().next().unwrap_or_default()),
        count => format!("the folder has {count} weight files: name the one you mean"),
    };
    Err(Refusal(message).in_file(path))
}

/// # Errors
/// None of the known contents, with a guess at what it is.
pub(super) fn sniff(path: &Path) -> Result<Content, WeightsError> {
    let metadata = fs::metadata(path).map_err(WeightsError::io(path))?;
    if !metadata.is_file() {
        // Opening a named pipe would wait for ever.
        return Err(Refusal("it is no regular file".to_owned()).in_file(path));
    }
    let mut file = File::open(path).map_err(WeightsError::io(path))?;
    let file_bytes = metadata.len();
    let mut start = Vec::new();
    file.by_ref().take(64).read_to_end(&mut start).map_err(WeightsError::io(path))?;
    if start.starts_with(b"PK\x03\x04") {
        return Ok(Content::Pth);
    }
    if let Some((size, rest)) = start.split_first_chunk::<8>()
        && rest.first() == Some(&b'{')
        && u64::from_le_bytes(*size) <= file_bytes
    {
        return Ok(Content::Safetensors);
    }
    if start.trim_ascii_start().starts_with(b"{") {
        return Ok(Content::Index);
    }
    let message = if start.is_empty() {
        "the file is empty"
    } else if start.starts_with(b"version https://git-lfs") {
        "it is a Git LFS pointer, not the weights: run `git lfs pull`"
    } else if start.starts_with(b"\x80\x02\x8a\x0a") {
        "it is in the form before PyTorch 1.6; in Python: torch.save(torch.load(path, weights_only=True), path)"
    } else {
        "it is neither a .pth (zip) nor a .safetensors file, or its start is missing"
    };
    Err(Refusal(message.to_owned()).in_file(path))
}

/// The part files that an index names, each once, beside the index.
/// # Errors
/// JSON of another form; part names that leave the folder.
pub(super) fn parts(index: &Path) -> Result<Vec<(PathBuf, Vec<String>)>, WeightsError> {
    let refused = |message: String| Refusal(message).in_file(index);
    let size = fs::metadata(index).map_err(WeightsError::io(index))?.len();
    if size > MAX_INDEX_BYTES {
        return Err(refused(format!("the index has {size} bytes; that is no list of names")));
    }
    let text = fs::read(index).map_err(WeightsError::io(index))?;
    let json: Value = serde_json::from_slice(&text)
        .map_err(|error| refused(format!("the index is not JSON: {error}")))?;
    let Some(map) = json.get("weight_map").and_then(Value::as_object) else {
        return Err(refused(
            "the JSON has no \"weight_map\", so it is no index of weight files".to_owned(),
        ));
    };
    let mut parts: Vec<(PathBuf, Vec<String>)> = Vec::new();
    for (name, file) in map {
        let Some(file) = file.as_str().filter(|file| is_plain_name(file)) else {
            return Err(refused(format!(
                "tensor {name:?} is said to be in {file}; expected a file name, of a file in the \
                 same folder: nothing outside it was read"
            )));
        };
        let path = index.with_file_name(file);
        match parts.iter_mut().find(|(part, _)| *part == path) {
            Some((_, names)) => names.push(name.clone()),
            None => parts.push((path, vec![name.clone()])),
        }
    }
    Ok(parts)
}

fn is_plain_name(name: &str) -> bool {
    let mut components = Path::new(name).components();
    matches!((components.next(), components.next()), (Some(std::path::Component::Normal(_)), None))
}
