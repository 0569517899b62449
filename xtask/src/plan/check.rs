//! Holds the model of the costs against a run that took place: its `config.json`, `summary.json`,
//! `metrics.jsonl` and checkpoint.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use serde_json::{Value, json};

use super::cost::Load;
use super::device::Device;
use super::report::bytes;
use super::shape::{Experts, Shape, Trained, Vision};
use super::{Plan, report};
use crate::workspace::usage_error;

/// What a finished run says of itself.
struct Measured {
    shape: Shape,
    trained: Trained,
    load: Load,
    rows_and_epochs: (u64, u64),
    step_ms: f64,
    peak_memory: u64,
    trainable_parameters: u64,
    gradient_bytes: Option<u64>,
    checkpoint: PathBuf,
}

/// The comparison, as a table or JSON.
/// # Errors
/// A folder that holds no finished run.
pub fn run(out_dir: &Path, as_json: bool) -> Result<String> {
    let measured = Measured::read(out_dir)?;
    let Measured { shape, trained, load, rows_and_epochs, .. } = &measured;
    // Only what is counted is looked at, so the rate may be any.
    let device = Device::find("cpu", Some(1.0), None)?;
    let plan = Plan::new(shape.clone(), *trained, load.clone(), device, *rows_and_epochs);
    let reached = plan.work.flops() / (measured.step_ms * 1e-3) / 1e9;
    let size = |name: &str| fs::metadata(measured.checkpoint.join(name)).map_or(0, |m| m.len());
    let model = size("model.safetensors");
    let optimizer = size("optimizer.safetensors");
    let planned = report::json(&plan);
    let rows = [
        (
            "trained parameters",
            planned["trainable_parameters"].as_u64(),
            Some(measured.trainable_parameters),
        ),
        ("gradient bytes an update", Some(plan.memory.gradients), measured.gradient_bytes),
        ("model.safetensors, bytes", Some(plan.checkpoint.model), Some(model)),
        ("optimizer.safetensors, bytes", Some(plan.checkpoint.optimizer), Some(optimizer)),
    ];
    if as_json {
        let rows: Vec<Value> = rows
            .iter()
            .map(|(name, planned, found)| json!({"what": name, "planned": planned, "found": found}))
            .collect();
        let found = json!({
            "rows": rows,
            "step_ms": measured.step_ms,
            "reached_gflops": reached,
            "planned_memory_bytes": plan.memory.total(),
            "peak_memory_bytes": measured.peak_memory,
        });
        return Ok(format!("{found:#}\n"));
    }
    let mut text = format!("{:<32}{:>16}{:>16}\n", "", "planned", "found");
    for (name, planned, found) in rows {
        let number = |n: Option<u64>| n.map_or("–".to_owned(), |n| n.to_string());
        let equal = if planned == found || found.is_none() { "" } else { "  differs" };
        text += &format!("{name:<32}{:>16}{:>16}{equal}\n", number(planned), number(found));
    }
    text += &format!(
        "memory of the parts, peak       {:>16}{:>16}  (found: with the program itself and libtorch)\n",
        bytes(plan.memory.total()),
        bytes(measured.peak_memory)
    );
    // All the time is put down to products here, so the memory's share must not count twice.
    text += &format!(
        "a step took {:.1} ms for {:.2} G operations: {reached:.1} GFLOP/s reached, all told; a plan \
         for this device: --gflops {reached:.1} --memory-gbytes 1e6\n",
        measured.step_ms,
        plan.work.flops() / 1e9,
    );
    Ok(text)
}

impl Measured {
    fn read(out_dir: &Path) -> Result<Self> {
        let config = read_json(&out_dir.join("config.json"))?;
        let summary = read_json(&out_dir.join("summary.json"))?;
        let metrics = last_lines(&out_dir.join("metrics.jsonl"))?;
        let number = |tree: &Value, path: &str| -> Result<u64> {
            tree.pointer(path).and_then(Value::as_u64).with_context(|| {
                format!("{}: no number at {path} of config.json", out_dir.display())
            })
        };
        let flag = |path: &str| config.pointer(path).and_then(Value::as_bool).unwrap_or(false);
        let dim = number(&config, "/dim")?;
        let shape = Shape {
            dim,
            n_layers: number(&config, "/n_layers")?,
            n_heads: number(&config, "/n_heads")?,
            n_kv_heads: number(&config, "/n_kv_heads")?,
            vocab_size: number(&config, "/vocab_size")?,
            intermediate_size: config["hidden_dim"]
                .as_u64()
                .unwrap_or_else(|| super::shape::intermediate_size(dim)),
            experts: flag("/use_moe").then(|| Experts {
                routed: config["n_routed_experts"].as_u64().unwrap_or(4),
                per_token: config["num_experts_per_tok"].as_u64().unwrap_or(2),
                shared: config["n_shared_experts"].as_u64().is_some_and(|n| n > 0),
            }),
            vision: Vision {
                hidden_size: number(&config, "/vision/hidden_size")?,
                intermediate_size: number(&config, "/vision/intermediate_size")?,
                num_hidden_layers: number(&config, "/vision/num_hidden_layers")?,
                image_size: number(&config, "/vision/image_size")?,
                patch_size: number(&config, "/vision/patch_size")?,
            },
        };
        let freeze = "/run/model/freeze";
        let trained = Trained {
            first_layers: number(&config, &format!("{freeze}/unfreeze_first_layers"))?,
            last_layers: number(&config, &format!("{freeze}/unfreeze_last_layers"))?,
            lm: flag(&format!("{freeze}/train_lm")),
            vision: flag(&format!("{freeze}/train_vision")),
        };
        let (first, last) = &metrics;
        let of_last = |name: &str| last[name].as_f64().unwrap_or(0.0);
        let samples = of_last("samples").max(1.0);
        let load = Load {
            batch_size: number(&config, "/run/optim/batch_size")?,
            seq_len: (of_last("tokens") / samples).round() as u64,
            supervised: (of_last("supervised_tokens") / samples).round() as u64,
            images: 1,
            features_are_cached: config
                .pointer("/run/model/features")
                .is_some_and(Value::is_string),
            accumulation_steps: number(&config, "/run/optim/accumulation_steps")?,
            is_bfloat16: config["dtype"] == "bfloat16",
            gpus: summary["world_size"].as_u64().unwrap_or(1),
            gpus_per_node: 8,
            network_bytes_per_sec: 50e9,
        };
        let step_ms = first.iter().chain([last]).filter_map(|line| line["step_ms"].as_f64());
        let mut step_ms: Vec<f64> = step_ms.collect();
        step_ms.sort_by(f64::total_cmp);
        let epochs = number(&config, "/run/optim/epochs")?;
        Ok(Self {
            rows_and_epochs: (samples as u64, epochs),
            shape,
            trained,
            load,
            // The median: the first steps allocate, and a busy machine makes outliers.
            step_ms: step_ms[step_ms.len() / 2],
            peak_memory: summary["peak_memory_bytes"].as_u64().unwrap_or(0),
            trainable_parameters: summary["trainable_parameters"].as_u64().unwrap_or(0),
            gradient_bytes: summary["gradient_bytes_per_update"].as_u64(),
            checkpoint: newest_checkpoint(&out_dir.join("checkpoints"))?,
        })
    }
}

fn read_json(path: &Path) -> Result<Value> {
    let text = fs::read_to_string(path).map_err(|error| {
        usage_error(format!("{}: {error}; expected the out-dir of a finished run", path.display()))
    })?;
    serde_json::from_str(&text).with_context(|| format!("reading {}", path.display()))
}

/// All lines of training but the last, and the last. Evaluations on the way have lines too.
fn last_lines(path: &Path) -> Result<(Vec<Value>, Value)> {
    let text = fs::read_to_string(path).with_context(|| format!("reading {}", path.display()))?;
    let mut lines: Vec<Value> =
        text.lines().filter_map(|line| serde_json::from_str(line).ok()).collect();
    lines.retain(|line| line["step_ms"].is_number());
    let last = lines.pop().ok_or_else(|| {
        usage_error(format!("{} is empty: expected a line a log step", path.display()))
    })?;
    Ok((lines, last))
}

/// The folder with the largest step; names sort as the steps do.
fn newest_checkpoint(folder: &Path) -> Result<PathBuf> {
    let entries = fs::read_dir(folder).with_context(|| format!("reading {}", folder.display()))?;
    let is_whole = |path: &PathBuf| path.join("state.json").exists();
    entries
        .flatten()
        .map(|entry| entry.path())
        .filter(is_whole)
        .max()
        .ok_or_else(|| usage_error(format!("{} holds no checkpoint", folder.display())))
}
