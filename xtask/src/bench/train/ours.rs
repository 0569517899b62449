//! Runs `vlm pretrain` and reads its metrics.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail};
use serde_json::Value;

use super::args::TrainArgs;
use super::form::Form;
use super::inputs::Inputs;
use super::measured_run::Run;
use super::theirs::LEARNING_RATE;
use crate::program::output_of;
use crate::sys;

/// Our program and what it trains on.
pub struct Ours<'a> {
    pub vlm: &'a Path,
    pub inputs: &'a Inputs,
    pub dtype: &'a str,
}

impl Ours<'_> {
    /// Stores the features of all images and returns their folder.
    pub fn cache_features(&self) -> Result<PathBuf> {
        let folder = self.inputs.new_folder("features-")?;
        let mut command = Command::new(self.vlm);
        command
            .args(["cache-features", "--device", "cpu", "--data-path"])
            .arg(&self.inputs.rows)
            .arg("--images-path")
            .arg(&self.inputs.images)
            .arg("--vision")
            .arg(&self.inputs.vision)
            .arg("--output")
            .arg(&folder);
        output_of(&mut command, "vlm cache-features")?;
        Ok(folder)
    }

    /// The losses of the first `steps` steps in float32.
    pub fn losses(&self, steps: usize, batch_size: usize) -> Result<Vec<f64>> {
        let (lines, _, _) =
            self.train(&self.inputs.lossless_rows, steps, batch_size, "float32", None)?;
        lines.iter().map(|line| number(line, "loss")).collect()
    }

    /// Measures the steps after the warm-up.
    pub fn measure(&self, args: &TrainArgs, features: Option<&Path>) -> Result<Run> {
        let steps = args.warmup_steps + args.steps;
        let (lines, summary, peak_bytes) =
            self.train(&self.inputs.rows, steps, args.batch_size, self.dtype, features)?;
        let measured = &lines[args.warmup_steps..];
        let secs = |line: &Value| Ok(number(line, "step_ms")? * 1e-3);
        let flops = |line: &Value| Ok(number(line, "flops_per_sec")? * secs(line)?);
        Ok(Run {
            step_secs: measured.iter().map(secs).collect::<Result<_>>()?,
            peak_bytes,
            flops: Some(measured.iter().map(flops).collect::<Result<_>>()?),
            matrix_rate: summary["matrix_flops_per_sec"].as_f64(),
        })
    }

    /// Trains on `rows` for `steps` steps. Returns the lines of `metrics.jsonl`, one per step, the summary and
    /// the peak memory of the process.
    fn train(
        &self,
        rows: &Path,
        steps: usize,
        batch_size: usize,
        dtype: &str,
        features: Option<&Path>,
    ) -> Result<(Vec<Value>, Value, u64)> {
        let Inputs { form, images, lm, vision, tokenizer, .. } = self.inputs;
        let out = self.inputs.new_folder("ours-")?;
        let log = out.with_extension("log");
        let mut command = Command::new(self.vlm);
        command
            .args(["pretrain", "--no-shuffle", "--pack", "--no-tensorboard", "--device", "cpu"])
            .args(["--log-interval", "1", "--save-interval", "1000000000"])
            .args(["--max-seq-len", &form.max_seq_len().to_string()])
            .args(["--batch-size", &batch_size.to_string()])
            .args(["--max-steps", &steps.to_string()])
            .args(["--epochs", &self.inputs.epochs(steps, batch_size).to_string()])
            .args(["--learning-rate", &LEARNING_RATE.to_string()])
            .args(["--dtype", dtype])
            .args(match form {
                Form::April => &["--lr-schedule", "reference"][..],
                Form::Present => &["--lr-schedule", "minimind-3v", "--unfreeze-last-layers", "0"],
            });
        let paths: [(&str, &Path); 6] = [
            ("--data-path", rows),
            ("--images-path", images),
            ("--lm", lm),
            ("--vision", vision),
            ("--tokenizer", tokenizer),
            ("--out-dir", &out),
        ];
        for (flag, path) in paths.into_iter().chain(features.map(|path| ("--features", path))) {
            command.arg(flag).arg(path);
        }
        let child = command
            .stdout(Stdio::null())
            .stderr(File::create(&log).with_context(|| format!("writing {}", log.display()))?)
            .spawn()
            .with_context(|| format!("starting {}", self.vlm.display()))?;
        let (status, peak_bytes) = sys::wait_with_peak_memory(child)?;
        if !status.success() {
            bail!("vlm pretrain failed ({status}):\n{}", fs::read_to_string(&log)?.trim_end());
        }
        let read = |name: &str| {
            let path = out.join(name);
            fs::read_to_string(&path).with_context(|| format!("reading {}", path.display()))
        };
        let lines = read("metrics.jsonl")?;
        let lines: Vec<Value> =
            lines.lines().map(serde_json::from_str).collect::<Result<_, _>>()?;
        let summary = serde_json::from_str(&read("summary.json")?)?;
        fs::remove_dir_all(&out).with_context(|| format!("removing {}", out.display()))?;
        if lines.len() != steps {
            bail!(
                "metrics.jsonl has {} lines, expected one for each of {steps} steps",
                lines.len()
            );
        }
        Ok((lines, summary, peak_bytes))
    }
}

impl Inputs {
    /// Number of epochs that have at least `steps` steps.
    pub fn epochs(&self, steps: usize, batch_size: usize) -> usize {
        steps.div_ceil(self.num_rows.div_ceil(batch_size)).max(1)
    }
}

fn number(line: &Value, name: &str) -> Result<f64> {
    line[name]
        .as_f64()
        .with_context(|| format!("metrics.jsonl: expected a number {name:?} in {line}"))
}
