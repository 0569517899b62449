//! The contents of the files of a run besides its checkpoints and metrics: weights, `config.json`,
//! summary and report.

use std::io::Write;

use tch::Tensor;
use vlm_board::{HELD_OUT_FILE, HeldOutSection, report_html};
use vlm_display::count;
use vlm_model::lm::with_tied_output;

use super::{Run, Summary};
use crate::TrainError;
use crate::machine::device_name;

impl Run {
    /// Base name of the weights files that the run writes: `pretrain_vlm_{dim}[_moe]` or
    /// `sft_vlm_{dim}[_moe]`.
    pub fn weights_name(&self) -> String {
        self.config.stage.weights_name(self.shapes.lm.dim, self.shapes.lm.use_moe)
    }

    /// All weights except those of the vision encoder, by name. A tensor in `replaced` is used
    /// instead of the model's tensor with the same name.
    pub(super) fn weights_with(
        &self,
        mut replaced: Vec<(String, Tensor)>,
    ) -> Vec<(String, Tensor)> {
        let mut named = self.model.params().named();
        for (name, tensor) in &mut named {
            if let Some(index) = replaced.iter().position(|(other, _)| other == name) {
                *tensor = replaced.swap_remove(index).1;
            }
        }
        with_tied_output(named, &self.shapes.lm)
    }

    /// Writes `report.html` on rank 0, from the files of the out-dir, including `summary.json`.
    /// Before that, `held_out` becomes one of these files. An error is logged as a warning.
    pub fn write_report(&self, held_out: Option<&HeldOutSection>) {
        if !self.is_first_rank() {
            return;
        }
        if let Some(section) = held_out
            && let Err(error) = self.out_dir.write_json(HELD_OUT_FILE, section)
        {
            tracing::warn!("{HELD_OUT_FILE} was not written: {error}");
        }
        let page = report_html(self.out_dir.path());
        let path = self.out_dir.join("report.html");
        let written = vlm_torch::write_atomically(&path, |file| {
            file.write_all(page.as_bytes()).map_err(|e| TrainError::at(&path, e))
        });
        if let Err(error) = written {
            tracing::warn!("report.html was not written: {error}");
        }
    }

    /// Writes `summary.json` on rank 0.
    ///
    /// # Errors
    /// A failure of the file system, with the path.
    pub fn write_summary(&self, summary: &Summary) -> Result<(), TrainError> {
        if !self.is_first_rank() {
            return Ok(());
        }
        self.out_dir.check_not_replaced()?;
        self.out_dir.unless_replaced(self.out_dir.write_json("summary.json", summary))
    }

    /// The contents of `config.json`: the resolved configuration and the shape of the model.
    pub(super) fn describe(&self) -> serde_json::Value {
        let mut tree = self.shapes.describe(&self.tokenizer);
        let mut config = self.config.clone();
        // An absolute path is valid in any working directory.
        for part in [&mut config.model.vision, &mut config.model.tokenizer] {
            *part = std::path::absolute(&*part).unwrap_or_else(|_| part.clone());
        }
        tree["run"] = serde_json::to_value(&config).unwrap_or_default();
        tree["dtype"] = serde_json::to_value(self.dtype).unwrap_or_default();
        let all_steps = self.config.optim.epochs * self.loader.batches_per_epoch() as u64;
        tree["last_step"] = all_steps.min(self.config.run.max_steps.unwrap_or(u64::MAX)).into();
        tree["program"] = env!("CARGO_PKG_VERSION").into();
        tree
    }

    /// Logs the number of trained parameters, the size of the dataset, the device and the out-dir.
    pub(super) fn announce(&self, num_trainable: i64) {
        let device = device_name(self.model.device());
        let encoder = match self.model.vision_params().num_elements() as f64 / 1e6 {
            0.0 => "cached features replace the vision encoder".to_owned(),
            millions if self.config.model.freeze.train_vision => {
                format!("the vision encoder ({millions:.1} M) is trained, too")
            }
            millions => format!("the vision encoder ({millions:.1} M) is frozen"),
        };
        tracing::info!(
            "{} of {} parameters are trained ({:.3} M); {encoder}",
            num_trainable,
            self.model.params().num_elements(),
            num_trainable as f64 / 1e6,
        );
        tracing::info!(
            "{}, {} per epoch, {}; {device}, {}; writing to {}",
            count(self.loader.num_rows(), "row"),
            count(self.loader.batches_per_epoch(), "batch"),
            count(self.config.optim.epochs, "epoch"),
            format!("{:?}", self.dtype).to_lowercase(),
            self.out_dir.path().display()
        );
    }
}
