//! Runs the training loop of a checkout of the reference, with its own Python modules.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::thread::available_parallelism;

use anyhow::{Context, Result, bail};
use serde::{Deserialize, Serialize};

use super::args::TrainArgs;
use super::form::Form;
use super::inputs::Inputs;
use super::measured_run::Run;
use crate::sys;
use crate::workspace::usage_error;

/// The driver, which imports the modules of the checkout.
const DRIVER: &str = include_str!("../../../bench/reference_train.py");
/// Learning rate of both programs.
pub const LEARNING_RATE: f64 = 4e-4;

/// A checkout of the reference.
pub struct Reference {
    folder: PathBuf,
    pub form: Form,
}

/// The argument of the driver.
#[derive(Serialize)]
struct Request<'a> {
    form: Form,
    reference: &'a Path,
    rows: &'a Path,
    images: &'a Path,
    tokenizer: &'a Path,
    lm: &'a Path,
    vision: &'a Path,
    scratch: &'a Path,
    dim: usize,
    n_layers: usize,
    max_seq_len: usize,
    batch_size: usize,
    epochs: usize,
    steps: usize,
    learning_rate: f64,
    workers: usize,
}

/// The output of the driver.
#[derive(Deserialize)]
struct Output {
    losses: Vec<f64>,
    /// Times at which the steps started and the last one ended, in seconds.
    starts: Vec<f64>,
}

impl Reference {
    /// Detects the form of a checkout.
    ///
    /// # Errors
    /// A folder without either of the training scripts.
    pub fn detect(folder: &Path) -> Result<Self> {
        let forms = [
            ("train_pretrain_vlm.py", Form::April),
            ("trainer/train_pretrain_vlm.py", Form::Present),
        ];
        let found = forms.into_iter().find(|(script, _)| folder.join(script).is_file());
        let Some((_, form)) = found else {
            return Err(usage_error(format!(
                "--reference {}: expected a checkout of MiniMind-V with {} or {}",
                folder.display(),
                forms[0].0,
                forms[1].0
            )));
        };
        let folder =
            fs::canonicalize(folder).with_context(|| format!("resolving {}", folder.display()))?;
        Ok(Self { folder, form })
    }

    /// The folder of its tokenizer.
    pub fn tokenizer(&self) -> PathBuf {
        match self.form {
            Form::April => self.folder.join("model/minimind_tokenizer"),
            Form::Present => self.folder.join("model"),
        }
    }

    /// The losses of the first `steps` steps.
    pub fn losses(
        &self,
        inputs: &Inputs,
        python: &str,
        steps: usize,
        batch_size: usize,
    ) -> Result<Vec<f64>> {
        Ok(self.train(inputs, &inputs.lossless_rows, python, steps, batch_size)?.0.losses)
    }

    /// Measures the steps after the warm-up.
    pub fn measure(&self, inputs: &Inputs, args: &TrainArgs) -> Result<Run> {
        let steps = args.warmup_steps + args.steps;
        let (output, peak_bytes) =
            self.train(inputs, &inputs.rows, &args.python, steps, args.batch_size)?;
        let starts = &output.starts[args.warmup_steps..];
        let step_secs = starts.windows(2).map(|pair| pair[1] - pair[0]).collect();
        Ok(Run { step_secs, peak_bytes, flops: None, matrix_rate: None })
    }

    fn train(
        &self,
        inputs: &Inputs,
        rows: &Path,
        python: &str,
        steps: usize,
        batch_size: usize,
    ) -> Result<(Output, u64)> {
        let scratch = inputs.new_folder("reference-")?;
        let request = Request {
            form: self.form,
            reference: &self.folder,
            rows,
            images: &inputs.images,
            tokenizer: &inputs.tokenizer,
            lm: &inputs.lm,
            vision: &inputs.vision,
            scratch: &scratch,
            dim: inputs.dim,
            n_layers: inputs.n_layers,
            max_seq_len: self.form.max_seq_len(),
            batch_size,
            epochs: inputs.epochs(steps, batch_size),
            steps,
            learning_rate: LEARNING_RATE,
            workers: available_parallelism().map_or(1, usize::from),
        };
        let path = |name: &str| scratch.join(name);
        let (driver, out, log) = (path("driver.py"), path("stdout"), path("stderr"));
        fs::write(&driver, DRIVER).with_context(|| format!("writing {}", driver.display()))?;
        let file =
            |path: &Path| File::create(path).with_context(|| format!("writing {}", path.display()));
        let child = Command::new(python)
            .arg(&driver)
            .arg(serde_json::to_string(&request)?)
            .env("PYTHONDONTWRITEBYTECODE", "1")
            .stdout(Stdio::from(file(&out)?))
            .stderr(Stdio::from(file(&log)?))
            .spawn()
            .with_context(|| format!("starting {python}; choose another Python with --python"))?;
        let (status, peak_bytes) = sys::wait_with_peak_memory(child)?;
        let read = |path: &Path| {
            fs::read_to_string(path).with_context(|| format!("reading {}", path.display()))
        };
        if !status.success() {
            let log = read(&log)?;
            let lines: Vec<&str> = log.lines().collect();
            let tail = lines[lines.len().saturating_sub(15)..].join("\n");
            bail!("the reference in {} failed ({status}):\n{tail}", self.folder.display());
        }
        let printed = read(&out)?;
        let output: Output = serde_json::from_str(printed.lines().last().unwrap_or_default())
            .context("reading the output of the reference")?;
        if output.losses.len() != steps || output.starts.len() != steps + 1 {
            bail!("the reference did {} steps, expected {steps}", output.losses.len());
        }
        fs::remove_dir_all(&scratch).with_context(|| format!("removing {}", scratch.display()))?;
        Ok((output, peak_bytes))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_forms_of_a_checkout_are_detected_and_other_folders_are_not() {
        let folder = tempfile::tempdir().unwrap();
        let error = Reference::detect(folder.path()).err().unwrap().to_string();
        assert!(error.contains("trainer/train_pretrain_vlm.py"), "{error}");
        fs::create_dir(folder.path().join("trainer")).unwrap();
        fs::write(folder.path().join("trainer/train_pretrain_vlm.py"), "").unwrap();
        assert_eq!(Reference::detect(folder.path()).unwrap().form, Form::Present);
        fs::write(folder.path().join("train_pretrain_vlm.py"), "").unwrap();
        assert_eq!(Reference::detect(folder.path()).unwrap().form, Form::April);
    }
}
