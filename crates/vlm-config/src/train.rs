//! The configuration of a training run. Each part owns its fields and defaults, one tree assembles
//! them, and the resolved tree is written beside what the run makes.
//!
//! This is the only list of settings. A field declared here is a key of configuration files and
//! recipes, a flag of `vlm pretrain` and `vlm sft`, a row of `docs/flags.md`, a property of the JSON
//! schema, and, where its mark says so, a part of what all processes of a run must have in common.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};
use vlm_data::{DEFAULT_BUCKET_WINDOW, DEFAULT_MAX_REJECTED_FRACTION, DataPaths, Padding};
use vlm_shapes::{Dtype, FreezePolicy, ProjectorKind, ShapeRequest};

use crate::declare::{settings, settings_of};
use crate::setting::{Setting, shown, switch};

/// Everything that a training run needs to know.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
#[non_exhaustive]
pub struct TrainConfig {
    /// Which of the two trainings this is.
    pub stage: Stage,
    /// Where rows come from and in what order.
    pub data: DataConfig,
    /// Which model is trained, and which parts of it.
    pub model: ModelConfig,
    /// The optimization.
    pub optim: OptimConfig,
    /// Where and how the run takes place.
    pub run: RunConfig,
    /// Evaluation while the model is trained.
    pub eval: EvalConfig,
}

/// Which of the two trainings a run is.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Stage {
    /// Alignment on images with captions.
    #[default]
    Pretrain,
    /// Instruction rows, from the weights that pretraining left.
    Sft,
}

impl Stage {
    /// The name of the stage, which begins the names of its weight files.
    pub fn name(self) -> &'static str {
        match self {
            Self::Pretrain => "pretrain",
            Self::Sft => "sft",
        }
    }

    /// The settings whose defaults differ in this stage, as the reference has them, in the form of a
    /// recipe.
    pub(crate) fn recipe(self) -> &'static str {
        match self {
            Self::Pretrain => "",
            Self::Sft => {
                "epochs = 6\nbatch-size = 8\nlearning-rate = 1e-6\nmax-seq-len = 1536\n\
                 train-lm = true\n"
            }
        }
    }

    /// Base name of the weights that a run leaves, as the reference names them.
    pub fn weights_name(self, dim: i64, use_moe: bool) -> String {
        format!("{}_vlm_{dim}{}", self.name(), if use_moe { "_moe" } else { "" })
    }
}

settings! {
    /// Where rows come from and in what order.
    DataConfig at "data" under "Data" {
        parts {}
        /// Rows in any of the forms of docs/data.md: .jsonl, .json, .csv, .parquet, .arrow, .tar
        /// (WebDataset), a folder of these, or a prepared one. Several paths, or a quoted pattern
        /// such as 'data/*.parquet', are read one after another; with a weight each (PATH:0.7) they
        /// are mixed.
        data_path: DataPaths = DataPaths::default(), shown("PATH[:WEIGHT]")
            .default_is("the embedded demo")
            .of_data("rows to train on (docs/data.md lists their forms)");
        /// Root folder of the image names in the rows. Names may not lead out of it.
        images_path: Option<PathBuf> = None, shown("DIR")
            .default_is("the folder of the rows")
            .of_data("the root of the images");
        /// Keys or columns that hold the images of a row.
        image_key: Vec<String> = Vec::new(), shown("NAME")
            .default_is("the known names of docs/data.md")
            .decides_numbers()
            .newly_added();
        /// What the user says of an image, behind it, in rows that have a caption alone.
        caption_question: String = String::new(), shown("TEXT")
            .default_is("nothing but the image")
            .decides_numbers()
            .newly_added();
        /// Smallest rating of a turn in rows that have ratings, as relevance=3. A turn with a lower
        /// one is left out, and so is a row without any turn left.
        min_rating: Vec<String> = Vec::new(), shown("NAME=NUMBER")
            .default_is("every turn")
            .decides_numbers()
            .newly_added();
        /// Follow symbolic links that lead out of the folder of the images.
        follow_links: bool = true, switch().negatable();
        /// Length at which a row is cut. A row that is cut through an image is rejected.
        max_seq_len: usize = 640, shown("TOKENS").at_least(1.0).decides_numbers();
        /// How rows of different lengths share a micro-batch: filled up to the longest of them
        /// (longest), filled up to max-seq-len as the reference does (max), or end to end (none, as
        /// --pack).
        padding: Padding = Padding::Longest, shown("TO").decides_numbers();
        /// Draw the order of the rows anew each epoch, from the seed and the number of the epoch.
        shuffle: bool = true, switch().negatable().decides_numbers();
        /// Number of rows within which rows of similar length are put together; 0 for none.
        bucket_window: usize = DEFAULT_BUCKET_WINDOW, shown("ROWS")
            .default_is("2048, and 0 with --no-shuffle")
            .decides_numbers();
        /// Leave out the last batch of an epoch when it is not full.
        drop_last: bool = false, switch().negatable().decides_numbers();
        /// Threads that read rows, decode images and make batches.
        num_workers: usize = 1, shown("N").at_least(1.0).default_is("the number of cores");
        /// Batches that the loader makes ahead.
        prefetch_batches: usize = 4, shown("N").at_least(1.0);
        /// Fail when a larger share of the rows seen cannot be used; 0 allows none.
        max_rejected_fraction: f64 = DEFAULT_MAX_REJECTED_FRACTION, shown("SHARE")
            .at_least(0.0)
            .at_most(1.0)
            .same_on_all_ranks();
    }
}

settings! {
    /// Which model is trained, and which parts of it.
    ModelConfig at "model" under "Model" {
        parts {
            /// The shape asked for; what is `None` comes from `config.json` beside the weights, or
            /// the default.
            shape: ShapeRequest,
            /// The parts that are trained beside the projector.
            freeze: FreezePolicy,
        }
        /// Weights of the language model: .pth or .safetensors, a folder with them, the out-dir of a
        /// run, or "none" for random weights.
        lm: Option<PathBuf> = None, shown("PATH|none")
            .default_is("{out-dir}/lm_{dim}[_moe].pth; in sft {out-dir}/pretrain_vlm_{dim}[_moe].pth")
            .of_model("weights, a folder with them, or none for random ones");
        /// Vision encoder: a folder in Hugging Face form.
        vision: PathBuf = PathBuf::new(), shown("DIR")
            .default_is("the one that the weights of the language model were trained with")
            .of_model("a vision encoder's folder in Hugging Face form; `vlm init` makes a random one");
        /// Folder with tokenizer.json and tokenizer_config.json.
        tokenizer: PathBuf = PathBuf::new(), shown("DIR")
            .default_is("the one that the weights of the language model were trained with")
            .of_model("a folder with tokenizer.json and tokenizer_config.json");
        /// Features made by `vlm cache-features`. The encoder is then not loaded.
        features: Option<PathBuf> = None, shown("DIR").of_data("a folder of `vlm cache-features`");
        /// The token that stands for an image in the prompt, such as <|image_pad|>. It must be a
        /// single token of the tokenizer.
        image_token: Option<String> = None, shown("TOKEN")
            .default_is("that of the language model's family");
        /// How patch features become embeddings: linear (one layer), mlp (norm and two layers),
        /// merged-mlp (256 patches to 64 tokens, two layers), pixel-shuffle (squares of patches, one
        /// layer, as nanoVLM).
        projector: Option<ProjectorKind> = None, shown("KIND")
            .default_is("that of the weights, else of the language model's family");
        /// Keep only each block's input and compute the rest again in the backward pass: less
        /// memory, more time.
        activation_checkpointing: bool = false, switch();
    }
}

settings_of! {
    declared_shape: ShapeRequest, at "model.shape" under "Model" {
        /// Hidden size of the language model.
        dim: Option<i64>, shown("N")
            .or_named(&["hidden-size"])
            .default_is("that of config.json beside the weights, else 512");
        /// Number of transformer blocks.
        n_layers: Option<i64>, shown("N")
            .or_named(&["num-hidden-layers"])
            .default_is("that of config.json beside the weights, else 8");
        /// Number of query heads.
        n_heads: Option<i64>, shown("N")
            .or_named(&["num-attention-heads"])
            .default_is("that of config.json beside the weights, else 8");
        /// Number of key and value heads.
        n_kv_heads: Option<i64>, shown("N")
            .or_named(&["num-key-value-heads"])
            .default_is("that of config.json beside the weights, else 2");
        /// Probability of dropout.
        dropout: Option<f64>, shown("P")
            .at_least(0.0)
            .at_most(1.0)
            .default_is("that of config.json beside the weights, else 0");
        /// Use a mixture of experts.
        use_moe: Option<bool>, switch()
            .default_is("as config.json beside the weights says, else no");
    }
}

settings_of! {
    declared_freeze: FreezePolicy, at "model.freeze" under "Model" {
        /// Number of last blocks of the language model that are trained beside the projector.
        unfreeze_last_layers: i64, shown("N").decides_numbers();
        /// Number of first blocks of the language model that are trained beside the projector.
        unfreeze_first_layers: i64, shown("N").decides_numbers();
        /// Train all of the language model.
        train_lm: bool, switch().decides_numbers();
        /// Train the vision encoder, too.
        train_vision: bool, switch().decides_numbers();
    }
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

/// How the learning rate changes over a run.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum LrSchedule {
    /// A cosine from 1.1 to 0.1 of the rate: MiniMind-V of April 2025.
    Reference,
    /// A cosine from the rate to its smallest share.
    Cosine,
    /// The rate itself (warm-up, stable), then a linear decay to its smallest share at the end.
    Wsd,
    /// The rate itself.
    Constant,
    /// A straight line from the rate to its smallest share.
    Linear,
}

settings! {
    /// The optimization.
    OptimConfig at "optim" under "Optimization" {
        parts {}
        /// Number of passes over the data.
        epochs: u64 = 4, shown("N").at_least(1.0).decides_numbers();
        /// Rows in a micro-batch of each process.
        batch_size: usize = 16, shown("ROWS").at_least(1.0).decides_numbers();
        /// Number of micro-batches whose gradients make one update. What is left at the end of an
        /// epoch is applied, too.
        accumulation_steps: u64 = 1, shown("N").at_least(1.0).decides_numbers();
        /// Learning rate, from which the schedule starts.
        learning_rate: f64 = 4e-4, shown("RATE").above(0.0).decides_numbers();
        /// Learning rate of the projector, where it has its own.
        lr_projector: Option<f64> = None, shown("RATE")
            .above(0.0)
            .default_is("--learning-rate")
            .decides_numbers()
            .newly_added();
        /// Learning rate of the trained parts of the language model, where they have their own.
        lr_lm: Option<f64> = None, shown("RATE")
            .above(0.0)
            .default_is("--learning-rate")
            .decides_numbers()
            .newly_added();
        /// Learning rate of the vision encoder, where it is trained and has its own.
        lr_vision: Option<f64> = None, shown("RATE")
            .above(0.0)
            .default_is("--learning-rate")
            .decides_numbers()
            .newly_added();
        /// How the rate changes over the run: a cosine from 1.1 to 0.1 of it, as MiniMind-V of April
        /// 2025 (reference); from 1.0 of it down to its smallest share by a cosine (cosine), by a
        /// line (linear), or by a line in the last part of the run only (wsd: warm-up, stable,
        /// decay); or not at all (constant).
        lr_schedule: LrSchedule = LrSchedule::Reference, shown("KIND").decides_numbers().newly_added();
        /// Smallest share of the rate, which cosine, linear and wsd reach at the end.
        min_lr_ratio: Option<f64> = None, shown("SHARE")
            .at_least(0.0)
            .at_most(1.0)
            .default_is("0.1")
            .decides_numbers()
            .newly_added();
        /// Share of the run in which the rate of the schedule wsd falls.
        decay_fraction: Option<f64> = None, shown("SHARE")
            .above(0.0)
            .at_most(1.0)
            .default_is("0.2")
            .decides_numbers()
            .newly_added();
        /// Number of micro-batches in which the rate rises linearly at the start.
        warmup_iters: u64 = 0, shown("STEPS").decides_numbers();
        /// Share of the run in which the rate rises linearly at the start, instead of a number of
        /// micro-batches.
        warmup_fraction: Option<f64> = None, shown("SHARE")
            .at_least(0.0)
            .at_most(1.0)
            .decides_numbers()
            .newly_added();
        /// Largest norm of the gradients, to which larger ones are scaled down; 0 for no clipping.
        grad_clip: f64 = 1.0, shown("NORM").at_least(0.0).decides_numbers();
        /// Decoupled weight decay of AdamW.
        weight_decay: f64 = 0.01, shown("SHARE").at_least(0.0).decides_numbers();
        /// Decay of AdamW's averages of the gradients and of their squares.
        betas: [f64; 2] = [0.9, 0.999], shown("B1,B2")
            .at_least(0.0)
            .at_most(0.999_999_999)
            .decides_numbers()
            .newly_added();
        /// AdamW's epsilon, which is added to the root of the averaged squares.
        eps: f64 = 1e-8, shown("EPS").above(0.0).decides_numbers().newly_added();
        /// Keep an exponential moving average of the trained weights with this decay each update,
        /// and write it beside the weights as {stage}_vlm_{dim}_ema.
        ema_decay: Option<f64> = None, shown("DECAY")
            .above(0.0)
            .at_most(0.999_999_999)
            .default_is("no average")
            .decides_numbers()
            .newly_added();
        /// Over what losses are averaged: the mean of each micro-batch (batch), or per supervised
        /// token of the whole update (token).
        loss_average: LossAverage = LossAverage::Batch, shown("OVER").decides_numbers();
        /// Stop after this many consecutive updates were skipped because they were not finite.
        max_skipped_in_a_row: u64 = 10, shown("N")
            .named("max-skipped-updates")
            .same_on_all_ranks();
    }
}

settings! {
    /// Evaluation while the model is trained, on rows that it is not trained on.
    EvalConfig at "eval" under "Evaluation" {
        parts {}
        /// Rows to evaluate the model on while it is trained and at the end: loss, perplexity,
        /// captions. The training is not affected.
        data_path: Option<PathBuf> = None, shown("PATH").named("eval-data").of_data("rows to evaluate on");
        /// Root folder of the image names in the rows of the evaluation.
        images_path: Option<PathBuf> = None, shown("DIR")
            .named("eval-images-path")
            .default_is("that of the training rows")
            .of_data("a folder of images");
        /// Steps between two evaluations.
        interval: Option<u64> = None, shown("STEPS")
            .named("eval-interval")
            .at_least(1.0)
            .default_is("--save-interval")
            .same_on_all_ranks();
        /// Number of rows of the evaluation for which captions are generated, too.
        max_captions: usize = 50, shown("N").named("eval-captions");
        /// Largest number of new tokens in a caption.
        max_new_tokens: usize = 128, shown("TOKENS").named("eval-max-new-tokens").at_least(1.0);
    }
}

settings! {
    /// Where and how the run takes place.
    RunConfig at "run" under "Run" {
        parts {}
        /// Folder for everything that the run writes.
        out_dir: PathBuf = PathBuf::from("out"), shown("DIR");
        /// Continue an earlier run: "auto" for the newest good checkpoint in the out-dir, or the
        /// folder of a checkpoint. docs/reliability.md says what must be the same.
        resume: Option<Resume> = None, shown("auto|DIR");
        /// Where to compute: auto, cpu, cuda or cuda:N.
        device: String = "auto".to_owned(), shown("DEVICE");
        /// Type of the forward pass's matrix products.
        dtype: Option<Dtype> = None, shown("TYPE")
            .default_is("bfloat16 on CUDA, float32 on the CPU");
        /// Seed of random weights and of the order of the rows.
        seed: u64 = 1337, shown("N").decides_numbers();
        /// Stop after this many steps. The schedule stays that of all epochs.
        max_steps: Option<u64> = None, shown("STEPS").at_least(1.0).same_on_all_ranks();
        /// Steps between two lines of the log.
        log_interval: u64 = 100, shown("STEPS").at_least(1.0).same_on_all_ranks();
        /// Steps between two checkpoints.
        save_interval: u64 = 100, shown("STEPS").at_least(1.0).same_on_all_ranks();
        /// Number of checkpoints that are kept.
        keep_checkpoints: usize = 2, shown("N").at_least(1.0);
        /// Write event files for TensorBoard into the out-dir.
        tensorboard: bool = true, switch().negatable();
        /// Threads of the CPU's arithmetic.
        num_threads: Option<i32> = None, shown("N").at_least(1.0).default_is("the number of cores");
        /// Seconds that a process waits for the others of its run, at the start and in each
        /// operation.
        timeout_secs: u64 = 600, shown("SECS").at_least(1.0).same_on_all_ranks();
        /// Train in a process group even where there is one process only. With several processes the
        /// launch environment decides.
        ddp: bool = false, switch();
    }
}

/// Which checkpoint to continue from.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(from = "PathBuf", into = "PathBuf")]
pub enum Resume {
    /// The newest good one in the out-dir.
    Auto,
    /// The one in this folder.
    Path(PathBuf),
}

impl From<PathBuf> for Resume {
    fn from(path: PathBuf) -> Self {
        if path.as_os_str() == "auto" { Self::Auto } else { Self::Path(path) }
    }
}

impl From<Resume> for PathBuf {
    fn from(resume: Resume) -> Self {
        match resume {
            Resume::Auto => "auto".into(),
            Resume::Path(path) => path,
        }
    }
}

settings_of! {
    declared_shorthands: Shorthands, at "data" under "Data" {
        /// Put the rows of a micro-batch end to end, each seeing only itself, instead of filling
        /// them up: the same losses for less arithmetic. The same as --padding none.
        pack: Option<bool>, switch().default_is("no");
    }
}

/// Settings that say in another way what a field of the tree says.
#[derive(Default)]
struct Shorthands {
    pack: Option<bool>,
}

/// All settings, in the order in which they are listed.
pub fn settings() -> &'static [Setting] {
    static SETTINGS: std::sync::LazyLock<Vec<Setting>> = std::sync::LazyLock::new(|| {
        [
            DataConfig::declared(),
            declared_shorthands(),
            ModelConfig::declared(),
            declared_shape(),
            declared_freeze(),
            OptimConfig::declared(),
            EvalConfig::declared(),
            RunConfig::declared(),
        ]
        .concat()
    });
    &SETTINGS
}
