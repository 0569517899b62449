//! `cargo xtask plan`: estimates the cost of a run without starting it. It counts parameters, bytes
//! and operations, and estimates times from rates, which it prints.

mod check;
mod checkpoint_size;
mod cost;
mod device;
mod report;
mod shape;

use std::ffi::OsString;
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Result;
use clap::parser::ValueSource;
use clap::{CommandFactory, FromArgMatches, Parser};
use vlm_config::with_dashes;
use vlm_shapes::{FreezePolicy, LmConfig, Memory, ProjectorKind, VisionConfig};

use crate::workspace::usage_error;
pub use check::speed;
use checkpoint_size::CheckpointSize;
use cost::{Load, Time, Work};
pub use device::Device;
use shape::{Shape, Tensor};

/// Estimate time, memory and network traffic of a run without starting it.
#[derive(Debug, Clone, Parser)]
#[command(name = "cargo xtask plan", args_override_self = true)]
struct PlanArgs {
    /// Number of processes, one per GPU.
    #[arg(long, value_name = "N", default_value_t = 1)]
    gpus: u64,
    /// Device: b200, h200, h100, a100, l40s, 4090, 3090, or cpu.
    #[arg(long, value_name = "NAME", default_value = "h100")]
    gpu: String,
    /// Number of GPUs per machine.
    #[arg(long, value_name = "N", default_value_t = 8)]
    gpus_per_node: u64,
    /// Network rate of a machine in one direction, in Gbit/s.
    #[arg(long, value_name = "GBIT", default_value_t = 400.0)]
    network_gbits: f64,
    /// Measured rate of matrix products in GFLOP/s, instead of that of the data sheet.
    #[arg(long, value_name = "GFLOPS")]
    gflops: Option<f64>,
    /// Measured memory rate in GB/s, instead of that of the data sheet.
    #[arg(long, value_name = "GBYTES")]
    memory_gbytes: Option<f64>,
    /// Hidden size.
    #[arg(long, default_value_t = 512)]
    dim: u64,
    /// Number of transformer blocks.
    #[arg(long, default_value_t = 8)]
    n_layers: u64,
    /// Number of query heads.
    #[arg(long, default_value_t = 8)]
    n_heads: u64,
    /// Number of key and value heads.
    #[arg(long, default_value_t = 2)]
    n_kv_heads: u64,
    /// Size of the vocabulary.
    #[arg(long, default_value_t = 6400)]
    vocab_size: u64,
    /// Use MiniMind's mixture of experts: 4 routed experts, 2 per token, and 1 shared.
    #[arg(
        long, value_name = "BOOL", num_args = 0..=1, default_value_t = false,
        default_missing_value = "true"
    )]
    use_moe: bool,
    /// Vision encoder: clip-vit-base-patch16, clip-vit-base-patch32, or cached for precomputed
    /// features.
    #[arg(long, default_value = "clip-vit-base-patch16")]
    vision: String,
    /// Side in pixels of the images for the vision encoder [default: that of the encoder].
    #[arg(long, value_name = "N")]
    image_size: Option<i64>,
    /// Rows per micro-batch of a process.
    #[arg(long, default_value_t = 16)]
    batch_size: u64,
    /// Micro-batches per update.
    #[arg(long, default_value_t = 1)]
    accumulation_steps: u64,
    /// Length of a row in tokens, with image tokens and padding.
    #[arg(long, default_value_t = 300)]
    seq_len: u64,
    /// Supervised tokens per row.
    #[arg(long, default_value_t = 30)]
    supervised: u64,
    /// Images per row.
    #[arg(long, default_value_t = 1)]
    images: u64,
    /// Number of rows in the data set.
    #[arg(long, default_value_t = 595_375)]
    rows: u64,
    /// Number of passes over the data set.
    #[arg(long, default_value_t = 4)]
    epochs: u64,
    /// Number of last blocks that are trained in addition to the projector.
    #[arg(long, default_value_t = 1)]
    unfreeze_last_layers: u64,
    /// Number of first blocks that are trained in addition to the projector.
    #[arg(long, default_value_t = 0)]
    unfreeze_first_layers: u64,
    /// Train the whole language model.
    #[arg(long)]
    train_lm: bool,
    /// Train the vision encoder too.
    #[arg(long)]
    train_vision: bool,
    /// Dtype of the matrix products: bfloat16 or float32 [default: bfloat16, on the CPU float32].
    #[arg(long)]
    dtype: Option<String>,
    /// Take the model, the batch and the data from the out-dir of a finished run, and compare the
    /// estimates with its measurements. With --gpu (or --gpus, --gflops, …) also print the plan of
    /// that run for this hardware.
    #[arg(long, value_name = "OUT_DIR")]
    from_run: Option<PathBuf>,
    /// Print the plan as JSON.
    #[arg(long)]
    json: bool,
}

/// The plan of a run: its inputs and the estimates.
#[derive(Debug, Clone)]
struct Plan {
    shape: Shape,
    freeze: FreezePolicy,
    load: Load,
    device: Device,
    tensors: Vec<Tensor>,
    work: Work,
    time: Time,
    memory: Memory,
    checkpoint: CheckpointSize,
    rows: u64,
    epochs: u64,
}

impl Plan {
    fn new(
        shape: Shape,
        freeze: FreezePolicy,
        load: Load,
        device: Device,
        (rows, epochs): (u64, u64),
    ) -> Self {
        let tensors = shape.tensors(&freeze);
        let work = Work::count(&shape, &freeze, &load, &tensors);
        Self {
            time: Time::of(&work, &load, &device),
            memory: Memory::estimate(
                &shape.lm,
                &shape.vision,
                &shape.projector,
                &freeze,
                &load.for_memory(),
            ),
            checkpoint: CheckpointSize::count(&shape, &tensors),
            shape,
            freeze,
            load,
            device,
            tensors,
            work,
            rows,
            epochs,
        }
    }

    /// Samples per second of all ranks.
    fn samples_per_sec(&self) -> f64 {
        (self.load.gpus * self.load.batch_size) as f64 / self.time.step()
    }
}

/// Runs the command.
pub fn run(args: Vec<OsString>) -> Result<ExitCode> {
    let name = OsString::from("cargo xtask plan");
    let words = std::iter::once(name).chain(args.into_iter().map(with_dashes));
    let matches = PlanArgs::command().get_matches_from(words);
    let args = PlanArgs::from_arg_matches(&matches).unwrap_or_else(|error| error.exit());
    if let Some(out_dir) = &args.from_run {
        let is_given = |name: &str| matches.value_source(name) == Some(ValueSource::CommandLine);
        print!("{}", check::run(out_dir, &args, &is_given)?);
        return Ok(ExitCode::SUCCESS);
    }
    let plan = plan(&args)?;
    if args.json {
        println!("{:#}", report::json(&plan));
    } else {
        print!("{}", report::text(&plan));
    }
    Ok(ExitCode::SUCCESS)
}

fn plan(args: &PlanArgs) -> Result<Plan> {
    let counts = [
        ("gpus", args.gpus),
        ("gpus-per-node", args.gpus_per_node),
        ("dim", args.dim),
        ("n-layers", args.n_layers),
        ("n-heads", args.n_heads),
        ("n-kv-heads", args.n_kv_heads),
        ("vocab-size", args.vocab_size),
        ("batch-size", args.batch_size),
        ("accumulation-steps", args.accumulation_steps),
        ("seq-len", args.seq_len),
        ("rows", args.rows),
        ("epochs", args.epochs),
    ];
    if let Some((name, _)) = counts.iter().find(|(_, value)| *value == 0) {
        return Err(usage_error(format!("--{name} is 0; it must be at least 1")));
    }
    if !args.dim.is_multiple_of(args.n_heads) || !args.n_heads.is_multiple_of(args.n_kv_heads) {
        return Err(usage_error(format!(
            "--dim {} must be a multiple of --n-heads {}, and that a multiple of --n-kv-heads {}",
            args.dim, args.n_heads, args.n_kv_heads
        )));
    }
    if args.supervised > args.seq_len {
        return Err(usage_error(format!(
            "--supervised {} is larger than --seq-len {}",
            args.supervised, args.seq_len
        )));
    }
    let (vision, features_are_cached) = match args.vision.as_str() {
        "clip-vit-base-patch16" => (clip_base(16), false),
        "clip-vit-base-patch32" => (clip_base(32), false),
        "cached" => (clip_base(16), true),
        other => {
            return Err(usage_error(format!(
                "--vision {other} is unknown; expected clip-vit-base-patch16, \
                 clip-vit-base-patch32 or cached"
            )));
        }
    };
    let vision = vision
        .with_image_size(args.image_size)
        .map_err(|error| usage_error(error.to_string().replace("`image_size`", "--image-size")))?;
    let num_patches = vision.num_patches().unsigned_abs();
    if args.images * num_patches > args.seq_len {
        return Err(usage_error(format!(
            "--seq-len {} is less than the {} tokens of --images {}",
            args.seq_len,
            args.images * num_patches,
            args.images
        )));
    }
    if features_are_cached && args.train_vision {
        return Err(usage_error(
            "--train-vision cannot be used with --vision cached: cached features do not change",
        ));
    }
    let is_bfloat16 = match args.dtype.as_deref() {
        Some("bfloat16") => true,
        Some("float32") => false,
        None => args.gpu != "cpu",
        Some(other) => {
            return Err(usage_error(format!(
                "--dtype {other} is unknown; expected bfloat16 or float32"
            )));
        }
    };
    let lm = LmConfig {
        dim: args.dim as i64,
        n_layers: args.n_layers as i64,
        n_heads: args.n_heads as i64,
        n_kv_heads: args.n_kv_heads as i64,
        vocab_size: args.vocab_size as i64,
        use_moe: args.use_moe,
        ..LmConfig::default()
    };
    let shape = Shape::new(lm, vision, ProjectorKind::Linear)?;
    let freeze = FreezePolicy {
        unfreeze_first_layers: args.unfreeze_first_layers as i64,
        unfreeze_last_layers: args.unfreeze_last_layers as i64,
        train_lm: args.train_lm,
        train_vision: args.train_vision,
    };
    let load = Load {
        batch_size: args.batch_size,
        seq_len: args.seq_len,
        supervised: args.supervised,
        images: args.images,
        features_are_cached,
        accumulation_steps: args.accumulation_steps,
        is_bfloat16,
        gpus: args.gpus,
        gpus_per_node: args.gpus_per_node,
        network_bytes_per_sec: args.network_gbits * 1e9 / 8.0,
    };
    let device = Device::find(&args.gpu, args.gflops, args.memory_gbytes)?;
    Ok(Plan::new(shape, freeze, load, device, (args.rows, args.epochs)))
}

/// CLIP's ViT-B at 224 pixels.
fn clip_base(patch_size: i64) -> VisionConfig {
    VisionConfig { patch_size, ..VisionConfig::default() }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::workspace::UsageError;

    fn of(text: &str) -> Result<Plan> {
        let words = text.split_whitespace().map(|word| with_dashes(word.into()));
        plan(&PlanArgs::try_parse_from(std::iter::once("plan".into()).chain(words))?)
    }

    #[test]
    fn flags_in_both_spellings_make_a_plan() {
        let plan = of("--gpus 8 --gpu h200 --n_layers 16 --dim=768 --use_moe").unwrap();
        assert_eq!((plan.shape.lm.n_layers, plan.load.gpus), (16, 8));
        assert!(plan.shape.lm.use_moe);
        let text = report::text(&plan);
        for part in ["step", "samples/s", "memory", "checkpoint", "assumed", "data sheet"] {
            assert!(text.contains(part), "{part} is not in:\n{text}");
        }
        assert!(report::json(&plan)["step_ms"].as_f64().unwrap() > 0.0);
    }

    #[test]
    fn impossible_settings_are_usage_errors() {
        for (wrong, said) in [
            ("--gpus 0", "at least 1"),
            ("--dim 500", "must be a multiple"),
            ("--seq-len 100", "is less than"),
            ("--supervised 400", "is larger than"),
            ("--vision resnet", "clip-vit-base-patch16"),
            ("--vision cached --train-vision", "do not change"),
            ("--dtype float8", "bfloat16"),
            ("--gpu cpu", "--gflops"),
        ] {
            let error = of(wrong).unwrap_err();
            assert!(error.is::<UsageError>() && error.to_string().contains(said), "{error}");
        }
    }

    #[test]
    fn larger_images_have_more_tokens() {
        let plan = of("--image-size 336 --seq-len 600").unwrap();
        assert_eq!(plan.shape.projector.tokens_per_image, 21 * 21);
        let error = of("--image-size 336").unwrap_err().to_string();
        assert!(error.contains("less than the 441 tokens"), "{error}");
        let error = of("--image-size 230").unwrap_err().to_string();
        assert!(error.contains("--image-size is 230") && error.contains("224 and 240"), "{error}");
    }

    #[test]
    fn more_gpus_are_faster_but_at_most_linearly() {
        let time = |text: &str| 1.0 / of(text).unwrap().samples_per_sec();
        let (one, eight) = (time("--gpus 1"), time("--gpus 8"));
        assert!(eight < one && eight >= one / 8.0);
    }
}
