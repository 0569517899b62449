//! The configuration of a training run. Each part declares its fields and defaults, and
//! [`TrainConfig`] contains all parts. The resolved configuration is saved in the out-dir.
//!
//! This is the only list of settings. A field that is declared here is a key of configuration files
//! and recipes, a flag of `vlm pretrain` and `vlm sft`, a row of `docs/flags.md`, and a property of
//! the JSON schema. Its scope says whether it must be the same on all ranks or in a continued run.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};
use vlm_data::{DEFAULT_BUCKET_WINDOW, DEFAULT_MAX_REJECTED_FRACTION, DataPaths, Padding};
use vlm_shapes::{FreezePolicy, ProjectorKind, ShapeRequest};

use crate::declare::{settings, settings_of};
use crate::setting::{Setting, shown, switch};
use crate::values::{DtypeChoice, LossAverage, LrSchedule, OnSaveError, Resume, Seconds};

/// Largest number of threads of one kind: for arithmetic, or for reading rows.
pub const MAX_THREADS: u32 = 1024;

/// The configuration of a training run.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
#[non_exhaustive]
pub struct TrainConfig {
    /// The stage of the training.
    pub stage: Stage,
    /// The dataset and the order of its rows.
    pub data: DataConfig,
    /// The model, and which parts of it are trained.
    pub model: ModelConfig,
    /// The optimizer and the learning rate.
    pub optim: OptimConfig,
    /// The out-dir, checkpoints, device and processes of the run.
    pub run: RunConfig,
    /// Evaluation during the training.
    pub eval: EvalConfig,
}

/// The stage of a training.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Stage {
    /// Pretraining: alignment on images with captions.
    #[default]
    Pretrain,
    /// Supervised finetuning on instruction rows, starting from the weights of the pretraining.
    Sft,
}

impl Stage {
    /// The name of the stage, with which the names of its weights files begin.
    pub fn name(self) -> &'static str {
        match self {
            Self::Pretrain => "pretrain",
            Self::Sft => "sft",
        }
    }

    /// The settings with other defaults in this stage, as in the reference, as the text of a
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

    /// Base name of the weights files of a run, as in the reference.
    pub fn weights_name(self, dim: i64, use_moe: bool) -> String {
        format!("{}_vlm_{dim}{}", self.name(), if use_moe { "_moe" } else { "" })
    }
}

settings! {
    /// The dataset and the order of its rows.
    DataConfig at "data" under "Data" {
        parts {}
        /// Rows to train on, in one of the formats of docs/data.md: .jsonl, .json, .csv, .parquet,
        /// .arrow, .tar (WebDataset), a folder of these, or prepared rows. Several paths, or a
        /// quoted pattern such as 'data/*.parquet', are joined (and shuffled together, unless
        /// shuffling is off); if each has a weight (PATH:0.7), they are mixed.
        data_path: DataPaths = DataPaths::default(), shown("PATH[:WEIGHT]")
            .default_is("the embedded demo")
            .of_data("rows to train on (docs/data.md lists the formats)");
        /// Folder that the image names in the rows are relative to. A row with an image outside
        /// this folder is rejected.
        images_path: Option<PathBuf> = None, shown("DIR")
            .default_is("the folder of the rows")
            .of_data("a folder of images");
        /// Keys or columns that hold the images of a row.
        image_key: Vec<String> = Vec::new(), shown("NAME")
            .default_is("the known names of docs/data.md")
            .decides_numbers()
            .newly_added();
        /// Text of the user's turn, after the image, for rows that have only a caption.
        caption_question: String = String::new(), shown("TEXT")
            .default_is("only the image")
            .decides_numbers()
            .newly_added();
        /// Lowest rating of a turn in rows with ratings, such as relevance=3. Turns with a lower
        /// rating are removed; a row whose turns are all removed is rejected.
        min_rating: Vec<String> = Vec::new(), shown("NAME=NUMBER")
            .default_is("every turn")
            .decides_numbers()
            .newly_added();
        /// Fraction of the rows that keep the empty `<think>` blocks with which the chat template
        /// begins answers; the other rows are trained on without them. Which rows these are depends
        /// on the seed and the epoch.
        empty_think_ratio: f64 = 1.0, shown("FRACTION")
            .at_least(0.0)
            .at_most(1.0)
            .decides_numbers()
            .newly_added();
        /// Fraction of the rows without a system turn that get one of the texts of `system_prompt`
        /// as their system turn. Which rows these are depends on the seed and the epoch.
        add_system_ratio: Option<f64> = None, shown("FRACTION")
            .at_least(0.0)
            .at_most(1.0)
            .default_is("0")
            .decides_numbers()
            .newly_added();
        /// System prompts for `add_system_ratio`, which are equally likely.
        system_prompt: Vec<String> = Vec::new(), shown("TEXT")
            .default_is("none")
            .decides_numbers()
            .newly_added();
        /// Follow symbolic links that lead out of the folder of the images.
        follow_links: bool = true, switch().negatable();
        /// Number of tokens to which a row is truncated. A row that would lose tokens of an image
        /// is rejected.
        max_seq_len: usize = 640, shown("TOKENS").at_least(1.0).decides_numbers();
        /// How rows of different lengths are batched: padded to the longest row of the micro-batch
        /// (longest), padded to `max_seq_len` as in the reference (max), or packed without padding
        /// (none, the same as `pack`).
        padding: Padding = Padding::Longest, shown("MODE").decides_numbers();
        /// Shuffle the rows in each epoch. The order depends on the seed and the epoch.
        shuffle: bool = true, switch().negatable().decides_numbers();
        /// Number of shuffled rows within which rows of similar length are batched together, to
        /// save padding; less than two batches of all processes, such as 0, turns this off.
        bucket_window: usize = DEFAULT_BUCKET_WINDOW, shown("ROWS")
            .default_is("2048, and 0 with `no_shuffle`")
            .decides_numbers();
        /// Leave out the last batch of an epoch if it is not full.
        drop_last: bool = false, switch().negatable().decides_numbers();
        /// Number of threads that read rows, decode images and make batches.
        num_workers: usize = 1, shown("N")
            .at_least(1.0)
            .at_most(MAX_THREADS as f64)
            .default_is("the number of cores");
        /// Largest number of batches that the loader makes in advance.
        prefetch_batches: usize = 4, shown("N").at_least(1.0);
        /// Largest fraction of rejected rows in an epoch. The run ends with an error if there are
        /// more. 0 allows none.
        max_rejected_fraction: f64 = DEFAULT_MAX_REJECTED_FRACTION, shown("FRACTION")
            .at_least(0.0)
            .at_most(1.0)
            .same_on_all_ranks();
    }
}

settings! {
    /// The model, and which parts of it are trained.
    ModelConfig at "model" under "Model" {
        parts {
            /// The shape of the language model. A field that is `None` is taken from `config.json`
            /// in the folder of the weights, or has its default.
            shape: ShapeRequest,
            /// The parts that are trained besides the projector.
            freeze: FreezePolicy,
        }
        /// Whole vision-language model to start from: a folder of transformers (LLaVA, SmolVLM,
        /// Idefics3, LFM2-VL; docs/models.md lists the forms) or of nanoVLM, the out-dir of a run,
        /// or a folder of `vlm convert`. It is the same as giving its parts with `lm`, `vision` and
        /// `tokenizer`, and its projector is needed; `vision` and `tokenizer` have precedence.
        init_from: Option<PathBuf> = None, shown("DIR")
            .of_model("a folder with a whole vision-language model");
        /// Weights of the language model: a .pth or .safetensors file, a folder with one, the
        /// out-dir of a run, or "none" for random weights.
        lm: Option<PathBuf> = None, shown("PATH|none")
            .default_is("{out-dir}/lm_{dim}[_moe].pth; in sft {out-dir}/pretrain_vlm_{dim}[_moe].pth")
            .of_model("weights, a folder with them, or none for random weights");
        /// Folder of the vision encoder, in the format of Hugging Face or open_clip.
        vision: PathBuf = PathBuf::new(), shown("DIR")
            .default_is("the one that the weights of the language model were trained with")
            .of_model(
                "the folder of a vision encoder in Hugging Face format; `vlm init` makes a random \
                 one",
            );
        /// Side in pixels of the images for the vision encoder, a multiple of the patch size. If it
        /// is not the one that the encoder was trained with, the position embeddings are
        /// interpolated.
        image_size: Option<i64> = None, shown("N")
            .at_least(1.0)
            .at_most(4096.0)
            .default_is("that of the encoder");
        /// Folder with tokenizer.json and tokenizer_config.json.
        tokenizer: PathBuf = PathBuf::new(), shown("DIR")
            .default_is("the one that the weights of the language model were trained with")
            .of_model("a folder with tokenizer.json and tokenizer_config.json");
        /// Folder with features that `vlm cache-features` made. The vision encoder is then not
        /// loaded.
        features: Option<PathBuf> = None, shown("DIR").of_data("a folder of `vlm cache-features`");
        /// Token that stands for an image in the prompt, such as `<|image_pad|>`. It must be a single
        /// token of the tokenizer.
        image_token: Option<String> = None, shown("TOKEN")
            .default_is("that of the language model's family");
        /// Type of the projector, which maps patch features to token embeddings: linear (one
        /// layer), mlp (norm and two layers), merged-mlp (two layers, 256 patches to 64 tokens),
        /// pixel-shuffle (one layer, several patches to one token, as in nanoVLM), mlp2x-gelu (two
        /// layers, as in LLaVA-1.5).
        projector: Option<ProjectorKind> = None, shown("KIND")
            .default_is("that of the weights, else of the language model's family");
        /// Keep only the input of each block and compute the block again in the backward pass. This
        /// needs less memory and more time.
        activation_checkpointing: bool = false, switch();
    }
}

settings_of! {
    declared_shape: ShapeRequest, at "model.shape" under "Model" {
        /// Hidden size of the language model.
        dim: Option<i64>, shown("N")
            .or_named(&["hidden-size"])
            .default_is("from config.json in the folder of the weights, else 512");
        /// Number of transformer blocks of the language model.
        n_layers: Option<i64>, shown("N")
            .or_named(&["num-hidden-layers"])
            .default_is("from config.json in the folder of the weights, else 8");
        /// Number of query heads.
        n_heads: Option<i64>, shown("N")
            .or_named(&["num-attention-heads"])
            .default_is("from config.json in the folder of the weights, else 8");
        /// Number of key and value heads.
        n_kv_heads: Option<i64>, shown("N")
            .or_named(&["num-key-value-heads"])
            .default_is("from config.json in the folder of the weights, else 2");
        /// Dropout probability.
        dropout: Option<f64>, shown("P")
            .at_least(0.0)
            .at_most(1.0)
            .default_is("from config.json in the folder of the weights, else 0");
        /// Use a mixture of experts.
        use_moe: Option<bool>, switch()
            .default_is("from config.json in the folder of the weights, else no");
    }
}

settings_of! {
    declared_freeze: FreezePolicy, at "model.freeze" under "Model" {
        /// Number of last blocks of the language model that are trained besides the projector. If it
        /// is given, the whole language model is trained only if `train_lm` is given, too.
        unfreeze_last_layers: i64, shown("N").decides_numbers();
        /// Number of first blocks of the language model that are trained besides the projector. If
        /// it is given, the whole language model is trained only if `train_lm` is given, too.
        unfreeze_first_layers: i64, shown("N").decides_numbers();
        /// Train the whole language model.
        train_lm: bool, switch().decides_numbers();
        /// Train the vision encoder.
        train_vision: bool, switch().decides_numbers();
    }
}

settings! {
    /// The optimizer and the learning rate.
    OptimConfig at "optim" under "Optimization" {
        parts {}
        /// Number of passes over the dataset.
        epochs: u64 = 4, shown("N").at_least(1.0).at_most(1e6).decides_numbers();
        /// Number of rows in a micro-batch of each process.
        batch_size: usize = 16, shown("ROWS").at_least(1.0).decides_numbers();
        /// Halve the micro-batches until the largest rows that the settings allow fit into the memory
        /// of the GPU, and raise `accumulation_steps` by the same factor, so that an update has the
        /// same rows.
        auto_batch_size: bool = false, switch().negatable().same_on_all_ranks();
        /// Number of micro-batches whose gradients are accumulated for one update of the weights.
        /// The last update of an epoch may have fewer.
        accumulation_steps: u64 = 1, shown("N").at_least(1.0).decides_numbers();
        /// Learning rate, to which the schedule is applied.
        learning_rate: f64 = 4e-4, shown("RATE").above(0.0).decides_numbers();
        /// Learning rate of the projector.
        lr_projector: Option<f64> = None, shown("RATE")
            .above(0.0)
            .default_is("`learning_rate`")
            .decides_numbers()
            .newly_added();
        /// Learning rate of the trained parts of the language model.
        lr_lm: Option<f64> = None, shown("RATE")
            .above(0.0)
            .default_is("`learning_rate`")
            .decides_numbers()
            .newly_added();
        /// Learning rate of the vision encoder, if it is trained.
        lr_vision: Option<f64> = None, shown("RATE")
            .above(0.0)
            .default_is("`learning_rate`")
            .decides_numbers()
            .newly_added();
        /// Schedule of the learning rate: a cosine from 1.1 to 0.1 times the rate, as in MiniMind-V
        /// of April 2025 (reference); a decay from the rate to `min_lr_ratio` times the rate, as a
        /// cosine (cosine), as a cosine that is one step ahead, as in current MiniMind-V
        /// (minimind-3v), or linearly (linear); a constant rate with a linear decay at the end
        /// (wsd: warm-up, stable, decay); or a constant rate (constant).
        lr_schedule: LrSchedule = LrSchedule::Reference, shown("KIND")
            .decides_numbers()
            .newly_added();
        /// Final learning rate of the schedules cosine, minimind-3v, linear and wsd, as a fraction
        /// of the learning rate.
        min_lr_ratio: Option<f64> = None, shown("FRACTION")
            .at_least(0.0)
            .at_most(1.0)
            .default_is("0.1")
            .decides_numbers()
            .newly_added();
        /// Length of the decay of the schedule wsd, as a fraction of the run.
        decay_fraction: Option<f64> = None, shown("FRACTION")
            .above(0.0)
            .at_most(1.0)
            .default_is("0.2")
            .decides_numbers()
            .newly_added();
        /// Length of the linear warm-up of the learning rate, in micro-batches.
        warmup_iters: u64 = 0, shown("STEPS").decides_numbers();
        /// Length of the linear warm-up of the learning rate, as a fraction of the run.
        warmup_fraction: Option<f64> = None, shown("FRACTION")
            .at_least(0.0)
            .at_most(1.0)
            .decides_numbers()
            .newly_added();
        /// Largest norm of the gradients; larger gradients are scaled down to it. 0 turns clipping
        /// off.
        grad_clip: f64 = 1.0, shown("NORM").at_least(0.0).decides_numbers();
        /// Decoupled weight decay of AdamW.
        weight_decay: f64 = 0.01, shown("DECAY").at_least(0.0).decides_numbers();
        /// Apply `weight_decay` to the weights of norms and to biases too, as PyTorch's AdamW does.
        /// Without it they have none, as in the trainer of Hugging Face.
        decay_norms_and_biases: bool = true, switch().negatable().decides_numbers().newly_added();
        /// Decay rates of AdamW's moving averages of the gradients and of their squares.
        betas: [f64; 2] = [0.9, 0.999], shown("B1,B2")
            .at_least(0.0)
            .at_most(0.999_999_999)
            .decides_numbers()
            .newly_added();
        /// Epsilon of AdamW, which is added to the square root of the second moment.
        eps: f64 = 1e-8, shown("EPS").above(0.0).decides_numbers().newly_added();
        /// Give trained parameters that an update does not use (the projector, if none of its rows has
        /// an image) a gradient of zero, as in current MiniMind-V, so that the momentum and the
        /// weight decay of AdamW change them. Otherwise such an update does not change them.
        zero_unused_gradients: bool = false, switch().negatable().decides_numbers().newly_added();
        /// Keep an exponential moving average of the trained weights with this decay per update,
        /// and save it as `{stage}_vlm_{dim}[_moe]_ema`, next to the weights.
        ema_decay: Option<f64> = None, shown("DECAY")
            .above(0.0)
            .at_most(0.999_999_999)
            .default_is("no average")
            .decides_numbers()
            .newly_added();
        /// Report a micro-batch whose loss is more than this factor times the median of the last 32
        /// losses, with its rows, in a warning and in loss_spikes.jsonl.
        loss_spike_factor: Option<f64> = None, shown("FACTOR")
            .above(1.0)
            .default_is("no report")
            .same_on_all_ranks();
        /// Skip the updates of the micro-batches that `loss_spike_factor` reports.
        skip_loss_spikes: bool = false, switch().negatable().decides_numbers().newly_added();
        /// How the loss of an update is averaged: over the tokens of each micro-batch and then over
        /// the micro-batches (batch), or over all supervised tokens of the update (token).
        loss_average: LossAverage = LossAverage::Batch, shown("UNIT").decides_numbers();
        /// Abort the run after this many consecutive updates were skipped because their loss or
        /// gradient was not finite.
        max_skipped_in_a_row: u64 = 10, shown("N")
            .at_least(1.0)
            .named("max-skipped-updates")
            .same_on_all_ranks();
    }
}

settings! {
    /// Evaluation during the training, on rows that the model is not trained on.
    EvalConfig at "eval" under "Evaluation" {
        parts {}
        /// Rows on which the model is evaluated during and after the training: loss, perplexity,
        /// image gain and captions. The evaluation does not change the training.
        data_path: Option<PathBuf> = None, shown("PATH")
            .named("eval-data")
            .of_data("rows to evaluate on");
        /// Folder that the image names in the evaluation rows are relative to.
        images_path: Option<PathBuf> = None, shown("DIR")
            .named("eval-images-path")
            .default_is("that of the training rows")
            .of_data("a folder of images");
        /// Number of steps (micro-batches) between two evaluations.
        interval: Option<u64> = None, shown("STEPS")
            .named("eval-interval")
            .at_least(1.0)
            .default_is("`save_interval`")
            .same_on_all_ranks();
        /// Number of evaluation rows for which captions are generated.
        max_captions: usize = 50, shown("N").named("eval-captions");
        /// Number of evaluation rows, the first ones, that are answered in each evaluation: question,
        /// expected and generated answer are written to samples.jsonl. 0 turns this off.
        num_samples: usize = 4, shown("N").named("eval-samples");
        /// Largest number of tokens of a generated caption.
        max_new_tokens: usize = 128, shown("TOKENS").named("eval-max-new-tokens").at_least(1.0);
    }
}

settings! {
    /// The out-dir, checkpoints, device and processes of the run.
    RunConfig at "run" under "Run" {
        parts {}
        /// Folder for all files of the run.
        out_dir: PathBuf = PathBuf::from("out"), shown("DIR");
        /// Continue an earlier run: "auto" for the newest healthy checkpoint in the out-dir, or the
        /// folder of a checkpoint. docs/reliability.md lists the settings that must be the same.
        resume: Option<Resume> = None, shown("auto|DIR");
        /// Device of the training: auto, cpu, cuda or cuda:N.
        device: String = "auto".to_owned(), shown("DEVICE");
        /// Type of the matrix products in the forward pass: float32, bfloat16 or float16. "auto"
        /// measures on the CPU whether bfloat16 is faster than float32 there, logs both rates and
        /// takes bfloat16 if it is at least 1.3 times as fast; on CUDA it is bfloat16.
        dtype: Option<DtypeChoice> = None, shown("TYPE")
            .default_is("bfloat16 on CUDA, float32 on the CPU");
        /// Seed of random weights, dropout, the order of the rows and their random changes.
        seed: u64 = 1337, shown("N").decides_numbers();
        /// Stop after this many steps (micro-batches, not updates). The schedule of the learning rate is still that of all
        /// epochs.
        max_steps: Option<u64> = None, shown("STEPS").at_least(1.0).same_on_all_ranks();
        /// Number of steps (micro-batches) between two log lines.
        log_interval: u64 = 100, shown("STEPS").at_least(1.0).same_on_all_ranks();
        /// Number of steps (micro-batches) between two checkpoints.
        save_interval: u64 = 100, shown("STEPS").at_least(1.0).same_on_all_ranks();
        /// Number of checkpoints to keep.
        keep_checkpoints: usize = 2, shown("N").at_least(1.0);
        /// Write checkpoints in a thread while the training continues. Each save needs host memory
        /// for a copy of the trained weights and of the optimizer state until it is written.
        background_saves: bool = true, switch().negatable();
        /// What happens when a checkpoint cannot be written: the run ends with an error (stop), or
        /// it continues with a warning (continue). If the last checkpoint of the run cannot be
        /// written, the run ends with an error in both cases.
        on_save_error: OnSaveError = OnSaveError::Stop, shown("ACTION");
        /// Save and end before this time has passed since the start, as after Ctrl-C: a number of
        /// seconds, or numbers with the units d, h, m and s, such as 90m or 1h30m.
        time_limit: Option<Seconds> = None, shown("TIME").at_least(1.0);
        /// Write event files for TensorBoard to the out-dir.
        tensorboard: bool = true, switch().negatable();
        /// Profile this many steps: trace.json in the out-dir (for chrome://tracing or Perfetto) has
        /// their operators, and profile.txt shows where their time goes. 0 turns this off.
        profile_steps: u64 = 0, shown("STEPS").named("profile");
        /// Number of CPU threads for arithmetic.
        num_threads: Option<i32> = None, shown("N")
            .at_least(1.0)
            .at_most(MAX_THREADS as f64)
            .default_is("the number of cores");
        /// Number of seconds that a process waits for the others of its run, at the start and in
        /// each collective operation.
        timeout_secs: u64 = 600, shown("SECS").at_least(1.0).same_on_all_ranks();
        /// Divide the state of the optimizer among the processes (ZeRO stage 1), which then each need
        /// less memory. The results and the checkpoints are the same.
        shard_optimizer: bool = false, switch().negatable().same_on_all_ranks();
        /// Use only algorithms that give bitwise equal results in every run. On CUDA this is slower,
        /// and without it a resumed run is not bitwise equal to one that was not interrupted.
        deterministic: bool = false, switch().negatable().same_on_all_ranks();
        /// Use a process group even with a single process. With several processes there always is
        /// one.
        ddp: bool = false, switch();
    }
}

settings_of! {
    declared_shorthands: Shorthands, at "data" under "Data" {
        /// Pack the rows of a micro-batch without padding. Each row attends only to itself, so the
        /// losses are the same with less computation. The same as `padding = none`.
        pack: Option<bool>, switch().default_is("no");
    }
}

/// Shorthands for values of other settings.
#[derive(Default)]
struct Shorthands {
    pack: Option<bool>,
}

/// All settings, in the order of help texts and `docs/flags.md`.
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
