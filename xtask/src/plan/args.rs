//! Flags of `cargo xtask plan`.

use std::path::PathBuf;

use clap::Parser;

/// Estimate time, memory and network traffic of a run without starting it.
#[derive(Debug, Clone, Parser)]
#[command(name = "cargo xtask plan", args_override_self = true)]
pub struct PlanArgs {
    /// Number of processes, one per GPU.
    #[arg(long, value_name = "N", default_value_t = 1)]
    pub gpus: u64,
    /// Device: b200, h200, h100, a100, l40s, 4090, 3090, or cpu.
    #[arg(long, value_name = "NAME", default_value = "h100")]
    pub gpu: String,
    /// Number of GPUs per machine.
    #[arg(long, value_name = "N", default_value_t = 8)]
    pub gpus_per_node: u64,
    /// Network rate of a machine in one direction, in Gbit/s.
    #[arg(long, value_name = "GBIT", default_value_t = 400.0)]
    pub network_gbits: f64,
    /// Measured rate of matrix products in GFLOP/s, instead of that of the data sheet.
    #[arg(long, value_name = "GFLOPS")]
    pub gflops: Option<f64>,
    /// Measured memory rate in GB/s, instead of that of the data sheet.
    #[arg(long, value_name = "GBYTES")]
    pub memory_gbytes: Option<f64>,
    /// Hidden size.
    #[arg(long, default_value_t = 512)]
    pub dim: u64,
    /// Number of transformer blocks.
    #[arg(long, default_value_t = 8)]
    pub n_layers: u64,
    /// Number of query heads.
    #[arg(long, default_value_t = 8)]
    pub n_heads: u64,
    /// Number of key and value heads.
    #[arg(long, default_value_t = 2)]
    pub n_kv_heads: u64,
    /// Size of the vocabulary.
    #[arg(long, default_value_t = 6400)]
    pub vocab_size: u64,
    /// Use MiniMind's mixture of experts: 4 routed experts, 2 per token, and 1 shared.
    #[arg(
        long, value_name = "BOOL", num_args = 0..=1, default_value_t = false,
        default_missing_value = "true"
    )]
    pub use_moe: bool,
    /// Vision encoder: clip-vit-base-patch16, clip-vit-base-patch32, or cached for precomputed
    /// features.
    #[arg(long, default_value = "clip-vit-base-patch16")]
    pub vision: String,
    /// Side in pixels of the images for the vision encoder [default: that of the encoder].
    #[arg(long, value_name = "N")]
    pub image_size: Option<i64>,
    /// Rows per micro-batch of a process.
    #[arg(long, default_value_t = 16)]
    pub batch_size: u64,
    /// Micro-batches per update.
    #[arg(long, default_value_t = 1)]
    pub accumulation_steps: u64,
    /// Length of a row in tokens, with image tokens and padding.
    #[arg(long, default_value_t = 300)]
    pub seq_len: u64,
    /// Supervised tokens per row.
    #[arg(long, default_value_t = 30)]
    pub supervised: u64,
    /// Images per row.
    #[arg(long, default_value_t = 1)]
    pub images: u64,
    /// Number of rows in the data set.
    #[arg(long, default_value_t = 595_375)]
    pub rows: u64,
    /// Number of passes over the data set.
    #[arg(long, default_value_t = 4)]
    pub epochs: u64,
    /// Number of last blocks that are trained in addition to the projector.
    #[arg(long, default_value_t = 1)]
    pub unfreeze_last_layers: u64,
    /// Number of first blocks that are trained in addition to the projector.
    #[arg(long, default_value_t = 0)]
    pub unfreeze_first_layers: u64,
    /// Train the whole language model.
    #[arg(long)]
    pub train_lm: bool,
    /// Train the vision encoder too.
    #[arg(long)]
    pub train_vision: bool,
    /// Dtype of the matrix products: bfloat16 or float32 [default: bfloat16, on the CPU float32].
    #[arg(long)]
    pub dtype: Option<String>,
    /// Take the model, the batch and the data from the out-dir of a finished run, and compare the
    /// estimates with its measurements. With --gpu (or --gpus, --gflops, …) also print the plan of
    /// that run for this hardware.
    #[arg(long, value_name = "OUT_DIR")]
    pub from_run: Option<PathBuf>,
    /// Print the plan as JSON.
    #[arg(long)]
    pub json: bool,
}
