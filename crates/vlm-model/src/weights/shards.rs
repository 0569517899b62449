//! Writes weights as shards with an index, as Hugging Face does for large models.

use std::collections::HashMap;
use std::io::Write;
use std::path::Path;

use serde_json::{Map, Value, json};
use tch::Tensor;

use super::error::WeightsError;
use super::save::{Format, save};
use super::tied::{View, view_of};

/// The name of a weights file that is not sharded.
const WHOLE: &str = "model.safetensors";

/// Writes named tensors to a folder: as `model.safetensors`, or, if they take more than
/// `max_bytes`, as `model-00001-of-0000N.safetensors` and so on with
/// `model.safetensors.index.json`. A tensor larger than `max_bytes` has a shard of its own; tied
/// tensors are in the same shard. Use a new folder, because shards that are already there are not
/// removed.
///
/// # Errors
/// A name occurs twice, the format does not support a dtype, or a file cannot be written.
pub fn save_shards(
    folder: &Path,
    tensors: &[(String, Tensor)],
    max_bytes: u64,
) -> Result<(), WeightsError> {
    let shards = split(tensors, max_bytes);
    let names: Vec<String> = match shards.len() {
        1 => vec![WHOLE.to_owned()],
        count => (1..=count).map(|k| format!("model-{k:05}-of-{count:05}.safetensors")).collect(),
    };
    let mut weight_map = Map::new();
    let mut total_size = 0;
    for (name, shard) in names.iter().zip(&shards) {
        save(&folder.join(name), shard, Format::Safetensors)?;
        for (tensor_name, tensor) in shard {
            weight_map.insert(tensor_name.clone(), json!(name));
            total_size += num_bytes(tensor);
        }
    }
    if names.len() > 1 {
        let index = folder.join(format!("{WHOLE}.index.json"));
        weight_map.sort_keys();
        let json = json!({"metadata": {"total_size": total_size}, "weight_map": weight_map});
        write_json(&index, &json)?;
    }
    Ok(())
}

/// Splits tensors, in their order, into shards of at most `max_bytes`.
fn split(tensors: &[(String, Tensor)], max_bytes: u64) -> Vec<Vec<(String, Tensor)>> {
    let mut bytes_of: HashMap<View, u64> = HashMap::new();
    for (_, tensor) in tensors.iter().filter(|(_, tensor)| tensor.numel() > 0) {
        *bytes_of.entry(view_of(tensor)).or_default() += num_bytes(tensor);
    }
    let mut shards: Vec<Vec<(String, Tensor)>> = vec![Vec::new()];
    let mut filled = 0;
    let mut shard_of: HashMap<View, usize> = HashMap::new();
    for (name, tensor) in tensors {
        let view = view_of(tensor);
        let entry = (name.clone(), tensor.shallow_clone());
        if let Some(&shard) = shard_of.get(&view) {
            shards[shard].push(entry);
            continue;
        }
        let bytes = bytes_of.get(&view).copied().unwrap_or(0);
        if filled > 0 && filled + bytes > max_bytes {
            shards.push(Vec::new());
            filled = 0;
        }
        filled += bytes;
        let last = shards.len() - 1;
        shards[last].push(entry);
        if bytes > 0 {
            shard_of.insert(view, last);
        }
    }
    shards
}

fn num_bytes(tensor: &Tensor) -> u64 {
    (tensor.numel() * tensor.kind().elt_size_in_bytes()) as u64
}

fn write_json(path: &Path, value: &Value) -> Result<(), WeightsError> {
    vlm_torch::write_atomically(path, |file| {
        let text = serde_json::to_string_pretty(value).unwrap_or_default() + "\n";
        file.write_all(text.as_bytes()).map_err(WeightsError::io(path))
    })
}
