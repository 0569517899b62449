//! Which files a path stands for, told by content and not by name.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io::Read;
use std::path::{Path, PathBuf};

use serde_json::Value;

use super::error::Refusal;
use super::{WeightsError, foreign};

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
const USUAL_NAMES: [&str; 6] = [
    "model.safetensors", "model.safetensors.index.json", "pytorch_model.bin",
    "pytorch_model.bin.index.json", "open_clip_model.safetensors", "open_clip_pytorch_model.bin",
];

/// Extensions of weight files.
const EXTENSIONS: [&str; 5] = ["safetensors", "pth", "pt", "ckpt", "bin"];

/// What trainers leave beside the weights, by the start of the name.
const BESIDE_WEIGHTS: [&str; 6] =
    ["optimizer", "scheduler", "scaler", "rng_state", "training_args", "random_states"];

/// An index lists names; the largest models' have a few megabytes.
const MAX_INDEX_BYTES: u64 = 256 << 20;

/// The files that a path stands for.
#[derive(Debug)]
pub(super) enum Resolved {
    /// One file, or the index of several.
    File(PathBuf),
    /// All shards of one model, whose index is missing.
    Shards(Vec<PathBuf>),
}

/// The weight files that a path means: itself, or those in the folder. The same name as `.pth` and
/// `.safetensors`, as a run leaves them, is one: the `.pth`, which says more of tied weights.
/// # Errors
/// Nothing at the path; a folder with none, with several of unusual names, or with shards of which
/// some are missing; a form of other programs, by name.
pub(super) fn resolve(path: &Path) -> Result<Resolved, WeightsError> {
    require_there(path)?;
    if !fs::metadata(path).map_err(WeightsError::io(path))?.is_dir() {
        return Ok(Resolved::File(path.to_owned()));
    }
    if let Some(file) = USUAL_NAMES.iter().map(|name| path.join(name)).find(|file| file.is_file()) {
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
            USUAL_NAMES.join(", "),
            EXTENSIONS.join(", .")
        ))
        .in_file(path)),
        [name] if shard_of(name).is_none() => Ok(Resolved::File(path.join(name))),
        names => shards(path, names),
    }
}

/// All shards of one model, by their names.
fn shards(folder: &Path, names: &[&str]) -> Result<Resolved, WeightsError> {
    let of_model: Vec<(usize, usize, &str)> = names
        .iter()
        .filter_map(|name| shard_of(name).map(|(number, count)| (number, count, *name)))
        .collect();
    let count = of_model.first().map_or(0, |&(_, count, _)| count);
    if of_model.len() < names.len() || of_model.iter().any(|&(_, other, _)| other != count) {
        let listed: Vec<&str> = names.iter().take(5).copied().collect();
        let message = format!(
            "the folder has {} weight files ({}{}): name the one you mean",
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
            "the folder has {} of a model's {count} shards and no index of them; missing: {}. \
             Fetch the whole folder again",
            of_model.len(),
            missing.join(", ")
        );
        return Err(Refusal(message).in_file(folder));
    }
    Ok(Resolved::Shards(of_model.iter().map(|&(.., name)| folder.join(name)).collect()))
}

/// Number and count of a shard that is called `…-00001-of-00003.safetensors`.
fn shard_of(name: &str) -> Option<(usize, usize)> {
    const MAX_SHARDS: usize = 99_999;
    let (stem, _) = name.rsplit_once('.')?;
    let (rest, count) = stem.rsplit_once("-of-")?;
    let (_, number) = rest.rsplit_once('-')?;
    let count = count.parse().ok().filter(|count| *count <= MAX_SHARDS)?;
    Some((number.parse().ok()?, count))
}

/// Checks that there is something at a path that a user gave.
/// # Errors
/// [`WeightsError::Refused`]; for what looks like the name of a model on the Hugging Face Hub, with
/// how to download it.
pub fn require_there(path: &Path) -> Result<(), WeightsError> {
    match fs::metadata(path) {
        Ok(_) => Ok(()),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            let mut message = "there is no such file or folder".to_owned();
            if let Some(name) = hub_name(path) {
                let folder = name.rsplit('/').next().unwrap_or(name);
                message += &format!(
                    "; nothing is downloaded here. If it is a model's name on the Hugging Face \
                     Hub, run `hf download {name} --local-dir {folder}` and give that folder"
                );
            }
            Err(Refusal(message).in_file(path))
        }
        Err(source) => Err(WeightsError::io(path)(source)),
    }
}

/// The name on the Hugging Face Hub, `owner/name`, that a path may be meant as: nothing is there, it has
/// no extension of a file, and `owner` is no folder.
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
    if let Some(message) = foreign::of_content(&start, path) {
        return Err(Refusal(message).in_file(path));
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shards_are_told_by_their_names() {
        assert_eq!(shard_of("model-00002-of-00003.safetensors"), Some((2, 3)));
        assert_eq!(shard_of("pytorch_model-00001-of-00002.bin"), Some((1, 2)));
        assert_eq!(shard_of("model.safetensors"), None);
        assert_eq!(shard_of("best-of-times.pt"), None);
    }

    #[test]
    fn names_on_the_hub_are_told_from_paths() {
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
