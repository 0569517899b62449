//! `cargo xtask plan`: estimates the cost of a run without starting it. It counts parameters, bytes
//! and operations, and estimates times from rates, which it prints.

mod args;
mod check;
mod checkpoint_size;
mod cost;
mod device;
mod estimates;
mod report;
mod shape;

use std::ffi::OsString;
use std::process::ExitCode;

use anyhow::Result;
use clap::parser::ValueSource;
use clap::{CommandFactory, FromArgMatches};
use vlm_config::with_dashes;
use vlm_shapes::{FreezePolicy, LmConfig, ProjectorKind, VisionConfig};

use crate::workspace::usage_error;
use args::PlanArgs;
pub use check::speed;
use cost::Load;
pub use device::Device;
use estimates::Plan;
use shape::Shape;

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
    use clap::Parser;

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
