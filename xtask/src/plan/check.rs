//! Compares the estimates with a finished run: its `config.json`, `summary.json`, `metrics.jsonl`
//! and newest checkpoint.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use serde_json::{Value, json};
use vlm_display::{Align, Table};
use vlm_shapes::FreezePolicy;

use super::args::PlanArgs;
use super::cost::{Load, num_trained};
use super::device::Device;
use super::estimates::Plan;
use super::report;
use super::report::bytes;
use super::shape::Shape;
use crate::workspace::usage_error;

/// The model, settings and measurements of a finished run.
struct Measured {
    shape: Shape,
    freeze: FreezePolicy,
    load: Load,
    rows_and_epochs: (u64, u64),
    step_ms: f64,
    /// Whether `step_ms` is from the first line of the log, since there is no other.
    is_short: bool,
    peak_memory: u64,
    trainable_parameters: u64,
    gradient_bytes: Option<u64>,
    checkpoint: PathBuf,
}

/// Flags that describe the hardware. They may be given together with a finished run.
const DEVICE_FLAGS: [&str; 6] =
    ["gpu", "gpus", "gpus_per_node", "network_gbits", "gflops", "memory_gbytes"];
/// Flags that give the length of the run. They may be given together with a finished run.
const LENGTH_FLAGS: [&str; 2] = ["rows", "epochs"];
/// Flags that describe the model and the batch. A finished run already determines these.
const RUN_FLAGS: [&str; 18] = [
    "dim", "n_layers", "n_heads", "n_kv_heads", "vocab_size", "use_moe", "vision", "image_size",
    "batch_size", "accumulation_steps", "seq_len", "supervised", "images", "unfreeze_last_layers",
    "unfreeze_first_layers", "train_lm", "train_vision", "dtype",
];

/// The comparison with the run in `out_dir`, and the plan for other hardware if the flags name
/// some, as a table or JSON.
///
/// # Errors
/// A folder without a finished run; a flag of [`RUN_FLAGS`].
pub fn run(out_dir: &Path, args: &PlanArgs, is_given: &dyn Fn(&str) -> bool) -> Result<String> {
    if let Some(flag) = RUN_FLAGS.iter().find(|flag| is_given(flag)) {
        return Err(usage_error(format!(
            "--{} together with --from-run: the run in {} determines this; leave out one of them",
            flag.replace('_', "-"),
            out_dir.display()
        )));
    }
    let measured = Measured::read(out_dir)?;
    let elsewhere = DEVICE_FLAGS
        .iter()
        .chain(&LENGTH_FLAGS)
        .any(|flag| is_given(flag))
        .then(|| measured.plan_for(args, is_given))
        .transpose()?;
    if args.json {
        let mut found = measured.json()?;
        found["plan"] = elsewhere.as_ref().map_or(Value::Null, report::json);
        return Ok(format!("{found:#}\n"));
    }
    let mut text = measured.text()?;
    if let Some(plan) = &elsewhere {
        text += &format!("\nthe same run on other hardware:\n{}", report::text(plan));
    }
    Ok(text)
}

/// The median time of a step of a finished run in milliseconds, and the rate of its operations in
/// GFLOP/s.
///
/// # Errors
/// A folder without a finished run.
pub fn speed(out_dir: &Path) -> Result<(f64, f64)> {
    let measured = Measured::read(out_dir)?;
    let plan = measured.plan()?;
    Ok((measured.step_ms, measured.reached_gflops(&plan)))
}

/// Name of a quantity, its planned value, and the value in the run if it is known.
type Row = (&'static str, Option<u64>, Option<u64>);

impl Measured {
    /// The plan of this run on its own hardware. Only the counts are used, not the times, so the
    /// rate of the device does not matter.
    fn plan(&self) -> Result<Plan> {
        let device = Device::find("cpu", Some(1.0), None)?;
        let Self { shape, freeze, load, rows_and_epochs, .. } = self;
        Ok(Plan::new(shape.clone(), freeze.clone(), load.clone(), device, *rows_and_epochs))
    }

    /// The plan of this run on the hardware that the flags describe.
    fn plan_for(&self, args: &PlanArgs, is_given: &dyn Fn(&str) -> bool) -> Result<Plan> {
        let gpus = if is_given("gpus") { args.gpus } else { self.load.gpus };
        let load = Load {
            gpus,
            gpus_per_node: args.gpus_per_node,
            network_bytes_per_sec: args.network_gbits * 1e9 / 8.0,
            ..self.load.clone()
        };
        if gpus == 0 || args.gpus_per_node == 0 {
            return Err(usage_error("--gpus or --gpus-per-node is 0; it must be at least 1"));
        }
        let device = Device::find(&args.gpu, args.gflops, args.memory_gbytes)?;
        let (rows, epochs) = self.rows_and_epochs;
        let rows = if is_given("rows") { args.rows } else { rows };
        let epochs = if is_given("epochs") { args.epochs } else { epochs };
        Ok(Plan::new(self.shape.clone(), self.freeze.clone(), load, device, (rows, epochs)))
    }

    fn rows(&self, plan: &Plan) -> [Row; 4] {
        let size = |name: &str| fs::metadata(self.checkpoint.join(name)).map(|m| m.len()).ok();
        [
            (
                "trained parameters",
                Some(num_trained(&plan.shape, &plan.freeze, &plan.tensors)),
                Some(self.trainable_parameters),
            ),
            ("gradient bytes per update", Some(plan.memory.gradients), self.gradient_bytes),
            ("model.safetensors, bytes", Some(plan.checkpoint.model), size("model.safetensors")),
            (
                "optimizer.safetensors, bytes",
                Some(plan.checkpoint.optimizer),
                size("optimizer.safetensors"),
            ),
        ]
    }

    /// Operations per second that the run reached, in 1e9, if all its time was spent on them.
    fn reached_gflops(&self, plan: &Plan) -> f64 {
        plan.work.flops() / (self.step_ms * 1e-3) / 1e9
    }

    fn json(&self) -> Result<Value> {
        let plan = self.plan()?;
        let rows: Vec<Value> = self
            .rows(&plan)
            .iter()
            .map(|(name, planned, found)| json!({"what": name, "planned": planned, "found": found}))
            .collect();
        Ok(json!({
            "rows": rows,
            "step_ms": self.step_ms,
            "step_ms_includes_start": self.is_short,
            "reached_gflops": self.reached_gflops(&plan),
            "planned_memory_bytes": plan.memory.total(),
            "peak_memory_bytes": self.peak_memory,
        }))
    }

    fn text(&self) -> Result<String> {
        let plan = self.plan()?;
        let reached = self.reached_gflops(&plan);
        let mut table = Table::new(&[Align::Left, Align::Right, Align::Right, Align::Left])
            .with_head(&["", "planned", "found"]);
        for (name, planned, found) in self.rows(&plan) {
            let number = |n: Option<u64>| n.map_or("–".to_owned(), |n| n.to_string());
            let note = if planned == found || found.is_none() { "" } else { "differs" };
            table.push(&[&name, &number(planned), &number(found), &note]);
        }
        let peaks = [plan.memory.total(), self.peak_memory].map(bytes);
        let note = "(found: with program and libtorch)";
        table.push(&[&"memory, peak", &peaks[0], &peaks[1], &note]);
        let mut text = table.to_string();
        // The rate covers all the time of a step, so a plan must not add the time of memory
        // traffic.
        text += &format!(
            "a step took {:.1} ms for {:.2} G operations: {reached:.1} GFLOP/s in total; to plan \
             for this device use --gflops {reached:.1} --memory-gbytes 1e6\n",
            self.step_ms,
            plan.work.flops() / 1e9,
        );
        if self.is_short {
            text += "the run logged only its first step, which is slower than later ones: train \
                     longer or with a smaller --log-interval for a better estimate\n";
        }
        Ok(text)
    }

    fn read(out_dir: &Path) -> Result<Self> {
        let config = read_json(&out_dir.join("config.json"))?;
        let summary = read_json(&out_dir.join("summary.json"))?;
        let lines = metric_lines(&out_dir.join("metrics.jsonl"))?;
        let path = out_dir.join("config.json");
        let number = |pointer: &str| {
            config.pointer(pointer).and_then(Value::as_u64).with_context(|| {
                format!("{}: expected a whole number at {pointer}", path.display())
            })
        };
        let freeze: FreezePolicy = serde_json::from_value(config["run"]["model"]["freeze"].clone())
            .map_err(|e| usage_error(format!("{}: run/model/freeze: {e}", path.display())))?;
        let last = lines.last().cloned().unwrap_or_default();
        let of_last = |name: &str| last[name].as_f64().unwrap_or(0.0);
        let samples = of_last("samples").max(1.0);
        let shape = Shape::from_config(&config, &path)?;
        let load = Load {
            batch_size: number("/run/optim/batch_size")?,
            seq_len: (of_last("tokens") / samples).round() as u64,
            supervised: (of_last("supervised_tokens") / samples).round() as u64,
            images: 1,
            features_are_cached: config
                .pointer("/run/model/features")
                .is_some_and(Value::is_string),
            accumulation_steps: number("/run/optim/accumulation_steps")?,
            is_bfloat16: config["dtype"] == "bfloat16",
            gpus: summary["world_size"].as_u64().unwrap_or(1),
            gpus_per_node: 8,
            network_bytes_per_sec: 50e9,
        };
        let (step_ms, is_short) = typical_step_ms(&lines);
        Ok(Self {
            rows_and_epochs: (samples as u64, number("/run/optim/epochs")?),
            shape,
            freeze,
            load,
            step_ms,
            is_short,
            peak_memory: summary["peak_memory_bytes"].as_u64().unwrap_or(0),
            trainable_parameters: summary["trainable_parameters"].as_u64().unwrap_or(0),
            gradient_bytes: summary["gradient_bytes_per_update"].as_u64(),
            checkpoint: newest_checkpoint(&out_dir.join("checkpoints"))?,
        })
    }
}

/// The median time of a step in ms, and whether it is from the first line. The first steps start
/// threads and allocate memory, so the first line is used only if there is no other.
fn typical_step_ms(lines: &[Value]) -> (f64, bool) {
    let of = |lines: &[Value]| -> Vec<f64> {
        lines.iter().filter_map(|line| line["step_ms"].as_f64()).collect()
    };
    let mut later = of(lines.get(1..).unwrap_or_default());
    let is_short = later.is_empty();
    if is_short {
        later = of(lines);
    }
    later.sort_by(f64::total_cmp);
    (later.get(later.len() / 2).copied().unwrap_or(f64::NAN), is_short)
}

fn read_json(path: &Path) -> Result<Value> {
    let text = fs::read_to_string(path).map_err(|error| {
        usage_error(format!("{}: {error}; expected the out-dir of a finished run", path.display()))
    })?;
    serde_json::from_str(&text).with_context(|| format!("reading {}", path.display()))
}

/// The log lines of training steps, without those of evaluations.
fn metric_lines(path: &Path) -> Result<Vec<Value>> {
    let text = fs::read_to_string(path).with_context(|| format!("reading {}", path.display()))?;
    let mut lines: Vec<Value> =
        text.lines().filter_map(|line| serde_json::from_str(line).ok()).collect();
    lines.retain(|line| line["step_ms"].is_number());
    if lines.is_empty() {
        return Err(usage_error(format!(
            "{} has no line of a training step; expected the out-dir of a finished run",
            path.display()
        )));
    }
    Ok(lines)
}

/// The complete checkpoint with the largest step. The names sort by step.
fn newest_checkpoint(folder: &Path) -> Result<PathBuf> {
    let entries = fs::read_dir(folder).with_context(|| format!("reading {}", folder.display()))?;
    let is_complete = |path: &PathBuf| path.join("state.json").exists();
    entries
        .flatten()
        .map(|entry| entry.path())
        .filter(is_complete)
        .max()
        .ok_or_else(|| usage_error(format!("{} holds no checkpoint", folder.display())))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn first_line_is_used_only_if_there_is_no_other() {
        let lines = |times: &[f64]| -> Vec<Value> {
            times.iter().map(|ms| json!({"step_ms": ms})).collect()
        };
        assert_eq!(typical_step_ms(&lines(&[900.0, 100.0])), (100.0, false));
        assert_eq!(typical_step_ms(&lines(&[900.0, 100.0, 120.0, 110.0])), (110.0, false));
        assert_eq!(typical_step_ms(&lines(&[900.0])), (900.0, true));
    }
}
