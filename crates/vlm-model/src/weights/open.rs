//! Finds the weights files that a path refers to, and recognises their format by their content.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io::Read;
use std::path::{Path, PathBuf};

use serde_json::Value;

use super::error::Refusal;
use super::safetensors::MAX_HEADER_BYTES;
use super::{WeightsError, foreign};

/// Format of a file, recognised by its first bytes.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) enum Content {
    /// A zip archive as `torch.save` writes it.
    Pth,
    Safetensors,
    /// Hugging Face's JSON that lists the shard of each tensor.
    Index,
}

/// Names of weights in a folder, in order of precedence.
const DEFAULT_NAMES: [&str; 6] = [
    "model.safetensors", "model.safetensors.index.json", "pytorch_model.bin",
    "pytorch_model.bin.index.json", "open_clip_model.safetensors", "open_clip_pytorch_model.bin",
];

/// Extensions of weights files.
const EXTENSIONS: [&str; 5] = ["safetensors", "pth", "pt", "ckpt", "bin"];

/// Prefixes of the names of other files that trainers save beside the weights.
const BESIDE_WEIGHTS: [&str; 6] =
    ["optimizer", "scheduler", "scaler", "rng_state", "training_args", "random_states"];

/// Largest size of an index; those of the largest models have a few megabytes.
const MAX_INDEX_BYTES: u64 = 256 << 20;

/// The files that a path refers to.
#[derive(Debug)]
pub(super) enum Resolved {
    /// One file, or the index of several.
    File(PathBuf),
    /// All shards of a model without an index.
    Shards(Vec<PathBuf>),
}

/// The weights files that a path refers to: itself, or those in the folder. Of two files that
/// differ only in the extensions `.pth` and `.safetensors`, as a run saves them, it is the `.pth`.
///
/// # Errors
/// The path does not exist. The folder has no weights, several weights files without a default
/// name, only some of a model's shards, or weights in an unsupported format, which the message
/// names.
pub(super) fn resolve(path: &Path) -> Result<Resolved, WeightsError> {
    require_there(path)?;
    if !fs::metadata(path).map_err(WeightsError::io(path))?.is_dir() {
        return Ok(Resolved::File(path.to_owned()));
    }
    if let Some(file) = DEFAULT_NAMES.iter().map(|name| path.join(name)).find(|file| file.is_file())
    {
        return Ok(Resolved::File(file));
    }
    let mut all = BTreeSet::new();
    for entry in fs::read_dir(path).map_err(WeightsError::io(path))? {
        all.insert(
            entry.map_err(WeightsError::io(path))?.file_name().to_string_lossy().into_owned(),
        );
    }
    if let Some(message) = foreign::of_folder(&all) {
        return Err(Refusal(message).in_file(path));
    }
    let is_weights = |name: &&String| {
        let extension = Path::new(name.as_str()).extension().and_then(|e| e.to_str());
        extension.is_some_and(|extension| EXTENSIONS.contains(&extension))
            && !BESIDE_WEIGHTS.iter().any(|start| name.starts_with(start))
    };
    let has_twin = |name: &str| {
        let stem = name.strip_suffix(".safetensors");
        stem.is_some_and(|stem| all.contains(&format!("{stem}.pth")))
    };
    let found: Vec<&str> =
        all.iter().filter(is_weights).map(String::as_str).filter(|name| !has_twin(name)).collect();
    match found.as_slice() {
        [] => Err(Refusal(format!(
            "the folder has no weights; expected one of {}, or one file that ends in .{}",
            DEFAULT_NAMES.join(", "),
            EXTENSIONS.join(", .")
        ))
        .in_file(path)),
        [name] if shard_of(name).is_none() => Ok(Resolved::File(path.join(name))),
        names => shards(path, names),
    }
}

/// All shards of a model, recognised by their names.
fn shards(folder: &Path, names: &[&str]) -> Result<Resolved, WeightsError> {
    let of_model: Vec<(usize, usize, &str)> = names
        .iter()
        .filter_map(|name| shard_of(name).map(|(number, count)| (number, count, *name)))
        .collect();
    let count = of_model.first().map_or(0, |&(_, count, _)| count);
    if of_model.len() < names.len() || of_model.iter().any(|&(_, other, _)| other != count) {
        let listed: Vec<&str> = names.iter().take(5).copied().collect();
        let message = format!(
            "the folder has {} weights files ({}{}); pass the path of one of them",
            names.len(),
            listed.join(", "),
            if names.len() > listed.len() { ", …" } else { "" }
        );
        return Err(Refusal(message).in_file(folder));
    }
    let is_there = |number: &usize| of_model.iter().any(|&(n, ..)| n == *number);
    let missing: Vec<String> = (1..=count)
        .filter(|n| !is_there(n))
        .take(5)
        .map(|n| format!("{n:05}-of-{count:05}"))
        .collect();
    if !missing.is_empty() || of_model.len() != count {
        let message = format!(
            "the folder has {} of a model's {count} shards and no index of them; missing: {}; \
             download the whole folder again",
            of_model.len(),
            missing.join(", ")
        );
        return Err(Refusal(message).in_file(folder));
    }
    Ok(Resolved::Shards(of_model.iter().map(|&(.., name)| folder.join(name)).collect()))
}

/// Number and count in the name of a shard, such as `…-00001-of-00003.safetensors`.
fn shard_of(name: &str) -> Option<(usize, usize)> {
    const MAX_SHARDS: usize = 99_999;
    let (stem, _) = name.rsplit_once('.')?;
    let (rest, count) = stem.rsplit_once("-of-")?;
    let (_, number) = rest.rsplit_once('-')?;
    let count = count.parse().ok().filter(|count| *count <= MAX_SHARDS)?;
    Some((number.parse().ok()?, count))
}

/// Checks that a path exists.
///
/// # Errors
/// [`WeightsError::Refused`] if it does not. If it looks like the name of a model on the Hugging
/// Face Hub, the message has the command that downloads it.
pub fn require_there(path: &Path) -> Result<(), WeightsError> {
    match fs::metadata(path) {
        Ok(_) => Ok(()),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            let mut message = "there is no such file or folder".to_owned();
            if let Some(name) = hub_name(path) {
                let folder = name.rsplit('/').next().unwrap_or(name);
                message += &format!(
                    "; models are not downloaded. If it is the name of a model on the Hugging Face \
                     Hub, run `hf download {name} --local-dir {folder}` and pass that folder"
                );
            }
            Err(Refusal(message).in_file(path))
        }
        Err(source) => Err(WeightsError::io(path)(source)),
    }
}

/// The path as a name on the Hugging Face Hub, `owner/name`, if it looks like one: it does not have
/// the extension of a file, and `owner` is not a folder. For paths that do not exist.
pub fn hub_name(path: &Path) -> Option<&str> {
    let name = path.to_str()?;
    let (owner, model) = name.split_once('/')?;
    let is_plain = |part: &str| {
        !part.is_empty()
            && !part.starts_with('.')
            && part.bytes().all(|b| b.is_ascii_alphanumeric() || b"-_.".contains(&b))
    };
    let extension = Path::new(model).extension().and_then(|e| e.to_str()).unwrap_or_default();
    let is_file = EXTENSIONS.contains(&extension)
        || ["json", "jsonl", "parquet", "tar", "csv", "gguf", "onnx"].contains(&extension);
    let is_in_folder = Path::new(owner).is_dir();
    (is_plain(owner) && is_plain(model) && !is_file && !is_in_folder).then_some(name)
}

/// The format of a file, recognised by its first bytes.
///
/// # Errors
/// The format is not supported; the message names it if it is recognised.
pub(super) fn sniff(path: &Path) -> Result<Content, WeightsError> {
    let metadata = fs::metadata(path).map_err(WeightsError::io(path))?;
    if !metadata.is_file() {
        // Opening a named pipe would wait forever.
        return Err(Refusal("it is not a regular file".to_owned()).in_file(path));
    }
    let mut file = File::open(path).map_err(WeightsError::io(path))?;
    let file_bytes = metadata.len();
    let mut start = Vec::new();
    file.by_ref().take(64).read_to_end(&mut start).map_err(WeightsError::io(path))?;
    if start.starts_with(b"PK\x03\x04") {
        return Ok(Content::Pth);
    }
    if safetensors_header_bytes(&start).is_some_and(|header_bytes| header_bytes <= file_bytes) {
        return Ok(Content::Safetensors);
    }
    if start.trim_ascii_start().starts_with(b"{") {
        return Ok(Content::Index);
    }
    if let Some(message) = foreign::of_content(&start, path) {
        return Err(Refusal(message).in_file(path));
    }
    if let Some(header_bytes) = safetensors_header_bytes(&start)
        && header_bytes <= MAX_HEADER_BYTES
    {
        let message = format!(
            "the file has {file_bytes} bytes, fewer than its own safetensors header of \
             {header_bytes}: it was cut; copy or download it again"
        );
        return Err(Refusal(message).in_file(path));
    }
    let message = if start.is_empty() {
        "the file is empty"
    } else if start.starts_with(b"version https://git-lfs") {
        "it is a Git LFS pointer, not the weights: run `git lfs pull`"
    } else if start.starts_with(b"\x80\x02\x8a\x0a") {
        "it is in the format before PyTorch 1.6; convert it in Python: \
         torch.save(torch.load(path, weights_only=True), path)"
    } else {
        "it is neither a .pth (zip) nor a .safetensors file, or its beginning is missing"
    };
    Err(Refusal(message.to_owned()).in_file(path))
}

/// Size of the header of a `.safetensors` file, as its first bytes give it; `None` if they are not
/// the start of such a file.
fn safetensors_header_bytes(start: &[u8]) -> Option<u64> {
    let (size, rest) = start.split_first_chunk::<8>()?;
    let size = u64::from_le_bytes(*size);
    (rest.first() == Some(&b'{')).then_some(size)
}

/// The shards that an index lists, with the names of their tensors.
///
/// # Errors
/// The file is not an index, or a shard is not in the index's folder.
pub(super) fn parts(index: &Path) -> Result<Vec<(PathBuf, Vec<String>)>, WeightsError> {
    let refused = |message: String| Refusal(message).in_file(index);
    let size = fs::metadata(index).map_err(WeightsError::io(index))?.len();
    if size > MAX_INDEX_BYTES {
        return Err(refused(format!("the index has {size} bytes, too many for a list of names")));
    }
    let text = fs::read(index).map_err(WeightsError::io(index))?;
    let json: Value = serde_json::from_slice(&text)
        .map_err(|error| refused(format!("the index is not JSON: {error}")))?;
    let Some(map) = json.get("weight_map").and_then(Value::as_object) else {
        return Err(refused(
            "the JSON has no \"weight_map\", so it is not an index of weights files".to_owned(),
        ));
    };
    let mut parts: Vec<(PathBuf, Vec<String>)> = Vec::new();
    for (name, file) in map {
        let Some(file) = file.as_str().filter(|file| is_plain_name(file)) else {
            return Err(refused(format!(
                "the index lists tensor {name:?} in {file}; expected a file name of the same \
                 folder: nothing outside of it was read"
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shards_are_recognised_by_their_names() {
        assert_eq!(shard_of("model-00002-of-00003.safetensors"), Some((2, 3)));
        assert_eq!(shard_of("pytorch_model-00001-of-00002.bin"), Some((1, 2)));
        assert_eq!(shard_of("model.safetensors"), None);
        assert_eq!(shard_of("best-of-times.pt"), None);
    }

    #[test]
    fn names_on_the_hub_are_distinguished_from_paths() {
        assert_eq!(
            hub_name(Path::new("openai/clip-vit-base-patch16")),
            Some("openai/clip-vit-base-patch16")
        );
        for path in ["lm.pth", "out/lm.pth", "/models/clip", "a/b/c", "../clip", "./clip", "src/x"]
        {
            assert_eq!(hub_name(Path::new(path)), None, "{path}");
        }
    }
}
