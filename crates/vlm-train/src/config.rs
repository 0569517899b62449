//! The configuration of a training run: each part owns its fields and defaults, one tree assembles
//! them. The resolved tree is written beside what the run makes.
//!
//! Says nothing about flags or files: the command line fills it.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};
use vlm_data::{DataPaths, Padding};
pub use vlm_infer::{Dtype, ShapeRequest};
use vlm_model::{FreezePolicy, ProjectorKind};

use crate::TrainError;

/// Everything a run needs to know.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TrainConfig {
    /// Which training this is.
    #[serde(default)]
    pub stage: Stage,
    /// Where rows come from and in what order.
    pub data: DataConfig,
    /// Which model, and what of it is trained.
    pub model: ModelConfig,
    /// The optimization.
    pub optim: OptimConfig,
    /// Where and how the run takes place.
    pub run: RunConfig,
    /// Judging the model on the way.
    #[serde(default)]
    pub eval: EvalConfig,
}

/// Which of the two trainings a run is.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Stage {
    /// Alignment on images with captions.
    #[default]
    Pretrain,
    /// Instruction rows, from what pretraining left.
    Sft,
}

impl Stage {
    /// What the stage's files are named after.
    pub fn name(self) -> &'static str {
        match self {
            Self::Pretrain => "pretrain",
            Self::Sft => "sft",
        }
    }

    /// The optimization where the user says nothing, as the reference has it.
    pub fn optim(self) -> OptimConfig {
        let pretrain = OptimConfig::default();
        match self {
            Self::Pretrain => pretrain,
            Self::Sft => OptimConfig { epochs: 6, batch_size: 8, learning_rate: 1e-6, ..pretrain },
        }
    }

    /// Tokens a row is cut at where the user says nothing, as the reference has it.
    pub fn max_seq_len(self) -> usize {
        match self {
            Self::Pretrain => 640,
            Self::Sft => 1536,
        }
    }

    /// Base name of the weights that a run leaves, as the reference names them.
    pub fn weights_name(self, dim: i64, use_moe: bool) -> String {
        vlm_infer::weights_name(self.name(), dim, use_moe)
    }
}

/// Where rows come from and in what order.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DataConfig {
    /// The rows: a data set, or several.
    pub data_path: DataPaths,
    /// Root of the image names in the rows.
    pub images_path: Option<PathBuf>,
    /// Tokens a row is cut at.
    pub max_seq_len: usize,
    /// To the longest row of the batch, or always to `max_seq_len`.
    pub padding: Padding,
    /// Whether the order is drawn anew each epoch, from (seed, epoch).
    pub shuffle: bool,
    /// Rows within which similar lengths are put together; 0: none.
    pub bucket_window: usize,
    /// Leave out an epoch's last batch when it is not full.
    pub drop_last: bool,
    /// Loader threads.
    pub num_workers: usize,
    /// Batches that may be ready or in the making.
    pub prefetch_batches: usize,
    /// The run stops when more than this share of the rows seen was rejected.
    pub max_rejected_fraction: f64,
}

/// Judging the model on the way, on rows it is not trained on.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct EvalConfig {
    /// The rows; `None`: no judging.
    pub data_path: Option<PathBuf>,
    /// Root of the image names in the rows; `None`: the training rows' root.
    pub images_path: Option<PathBuf>,
    /// Micro-batches between two judgements; `None`: as between two checkpoints.
    pub interval: Option<u64>,
    /// The loss is of all rows; this many are answered, too.
    pub max_captions: usize,
    /// Most new tokens an answer.
    pub max_new_tokens: usize,
}

impl Default for EvalConfig {
    fn default() -> Self {
        Self {
            data_path: None,
            images_path: None,
            interval: None,
            max_captions: 50,
            max_new_tokens: 128,
        }
    }
}

/// Which model, and what of it is trained.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ModelConfig {
    /// Language-model weights; `None`: random.
    pub lm: Option<PathBuf>,
    /// Vision encoder, a folder in Hugging Face form.
    pub vision: PathBuf,
    /// A cache of the encoder's features, in whose place the encoder is not loaded.
    pub features: Option<PathBuf>,
    /// Folder with `tokenizer.json` and `tokenizer_config.json`.
    pub tokenizer: PathBuf,
    /// How an image is spelled in the prompt; `None`: as the language model's family does.
    #[serde(default)]
    pub image_token: Option<String>,
    /// The projector; `None`: the one in the weights, else the family's own.
    #[serde(default)]
    pub projector: Option<ProjectorKind>,
    /// Shape asked for; what is `None` comes from `config.json` beside the weights, or the default.
    pub shape: ShapeRequest,
    /// What is trained beside the projector.
    #[serde(default)]
    pub freeze: FreezePolicy,
    /// Keep each block's input only, and compute the rest again in the backward pass.
    #[serde(default)]
    pub activation_checkpointing: bool,
}

/// How the loss of a micro-batch is averaged.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum LossAverage {
    /// Mean over the supervised tokens of each micro-batch, then over the micro-batches of an
    /// update, as the reference does.
    Batch,
    /// Mean over all supervised tokens of an update.
    Token,
}

/// The optimization.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct OptimConfig {
    /// Passes over the data.
    pub epochs: u64,
    /// Rows a micro-batch.
    pub batch_size: usize,
    /// The schedule's reference rate (see [`crate::schedule`]).
    pub learning_rate: f64,
    /// Micro-batches an update.
    pub accumulation_steps: u64,
    /// Largest gradient norm; 0: no clipping.
    pub grad_clip: f64,
    /// Micro-batches over which the rate rises linearly at the start.
    pub warmup_iters: u64,
    /// AdamW's decoupled weight decay.
    pub weight_decay: f64,
    /// How losses are averaged.
    pub loss_average: LossAverage,
    /// The run stops after this many updates in a row were skipped as not finite.
    pub max_skipped_in_a_row: u64,
}

impl Default for OptimConfig {
    fn default() -> Self {
        Self {
            epochs: 4,
            batch_size: 16,
            learning_rate: 4e-4,
            accumulation_steps: 1,
            grad_clip: 1.0,
            warmup_iters: 0,
            weight_decay: 0.01,
            loss_average: LossAverage::Batch,
            max_skipped_in_a_row: 10,
        }
    }
}

/// Where and how the run takes place.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RunConfig {
    /// Folder for all the run writes.
    pub out_dir: PathBuf,
    /// `auto`, `cpu`, `cuda` or `cuda:N`.
    pub device: String,
    /// Arithmetic of the forward pass; `None`: bfloat16 on CUDA, float32 on the CPU.
    pub dtype: Option<Dtype>,
    /// Seed of the weights and of the order of the rows.
    pub seed: u64,
    /// Micro-batches between two log lines.
    pub log_interval: u64,
    /// Micro-batches between two checkpoints.
    pub save_interval: u64,
    /// How many checkpoints are kept.
    pub keep_checkpoints: usize,
    /// Stop after this many micro-batches, whatever the epochs say.
    pub max_steps: Option<u64>,
    /// CPU arithmetic threads; `None`: one a core.
    pub num_threads: Option<i32>,
    /// Whether to show a progress bar on a terminal.
    pub progress: bool,
    /// Whether to write TensorBoard's event files beside `metrics.jsonl`.
    pub tensorboard: bool,
    /// Continue an earlier run.
    pub resume: Option<Resume>,
    /// Seconds that a rank waits for the others, at the start and in each operation.
    pub timeout_secs: u64,
    /// Make a process group even where the launch environment names one process only.
    pub ddp: bool,
}

/// Which checkpoint to continue from.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Resume {
    /// The newest good one in `out_dir`.
    Auto,
    /// This folder.
    Path(PathBuf),
}

impl TrainConfig {
    /// Checks the numbers against each other, before any file or device is touched.
    ///
    /// # Errors
    /// Names the setting, what it is and what it must be.
    pub fn validate(&self) -> Result<(), TrainError> {
        let OptimConfig { epochs, batch_size, accumulation_steps, .. } = self.optim;
        let counts = [
            ("epochs", epochs),
            ("batch-size", batch_size as u64),
            ("accumulation-steps", accumulation_steps),
            ("log-interval", self.run.log_interval),
            ("save-interval", self.run.save_interval),
            ("num-workers", self.data.num_workers as u64),
            ("prefetch-batches", self.data.prefetch_batches as u64),
            ("max-seq-len", self.data.max_seq_len as u64),
            ("max-steps", self.run.max_steps.unwrap_or(1)),
            ("keep-checkpoints", self.run.keep_checkpoints as u64),
            ("timeout-secs", self.run.timeout_secs),
            ("eval-interval", self.eval.interval.unwrap_or(1)),
        ];
        if let Some((name, _)) = counts.iter().find(|(_, value)| *value == 0) {
            return Err(TrainError::Usage(format!("--{name} is 0; it must be at least 1")));
        }
        if !(self.optim.learning_rate > 0.0 && self.optim.learning_rate.is_finite()) {
            return Err(TrainError::Usage(format!(
                "--learning-rate is {}; it must be a positive number",
                self.optim.learning_rate
            )));
        }
        if self.optim.grad_clip < 0.0 || self.optim.grad_clip.is_nan() {
            return Err(TrainError::Usage(format!(
                "--grad-clip is {}; it must be positive, or 0 for no clipping",
                self.optim.grad_clip
            )));
        }
        if self.data.bucket_window > 0 && !self.data.shuffle {
            return Err(TrainError::Usage(format!(
                "--bucket-window {} takes the rows in another order, and --no-shuffle asks for \
                 that of the file; leave one of them out",
                self.data.bucket_window
            )));
        }
        if self.model.features.is_some() && self.model.freeze.train_vision {
            return Err(TrainError::Usage(
                "--features holds what the vision encoder made, and --train-vision changes what it \
                 makes; leave one of them out"
                    .into(),
            ));
        }
        if self.model.features.is_some() && self.eval.data_path.is_some() {
            return Err(TrainError::Usage(
                "--eval-data is judged on its pictures, for which the vision encoder is needed, and \
                 with --features it is not loaded; leave one of them out, and use `vlm eval` on what \
                 the run leaves"
                    .into(),
            ));
        }
        if self.eval != EvalConfig::default() && self.eval.data_path.is_none() {
            return Err(TrainError::Usage(
                "--eval-interval, --eval-images-path and --eval-captions are for --eval-data, \
                 which is missing"
                    .into(),
            ));
        }
        let fraction = self.data.max_rejected_fraction;
        if !(0.0..=1.0).contains(&fraction) {
            return Err(TrainError::Usage(format!(
                "--max-rejected-fraction is {fraction}; it must be between 0 and 1"
            )));
        }
        Ok(())
    }
}
