//! `vlm init`: writes random weights of a given shape, for tests.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use clap::{Args, ValueEnum};
use serde_json::Value;
use tch::{Device, Tensor};
use vlm_data::{ImageProcessor, ImageProcessorClass};
use vlm_infer::write_json;
use vlm_model::lm::{CausalLm, with_tied_output};
use vlm_model::params::ParamStore;
use vlm_model::vision::VisionEncoder;
use vlm_model::weights::{self, Format};
use vlm_model::{LmConfig, LmFamily, Projector, ProjectorConfig, VisionConfig, VisionFamily};

use crate::error::CliError;
use crate::flag_values::parse_bool;

/// Flags of `vlm init`. Shapes that are not given are those of the family: MiniMind 26 M,
/// minimind-3 64 M or SmolLM2 135 M.
#[derive(Debug, Args)]
pub struct InitArgs {
    /// Folder for the weights.
    #[arg(long, value_name = "DIR", default_value = "out")]
    pub out_dir: PathBuf,
    /// Family of the language model.
    #[arg(long, value_enum, default_value_t = Family::Minimind)]
    pub family: Family,
    /// Hidden size [default: that of the family].
    #[arg(long, value_name = "N")]
    pub dim: Option<i64>,
    /// Number of transformer blocks [default: that of the family].
    #[arg(long, value_name = "N")]
    pub n_layers: Option<i64>,
    /// Number of query heads [default: that of the family].
    #[arg(long, value_name = "N")]
    pub n_heads: Option<i64>,
    /// Number of key and value heads [default: that of the family].
    #[arg(long, value_name = "N")]
    pub n_kv_heads: Option<i64>,
    /// Number of tokens of the vocabulary [default: that of the family].
    #[arg(long, value_name = "N")]
    pub vocab_size: Option<i64>,
    /// Use a mixture of experts.
    #[arg(long, value_name = "BOOL", num_args = 0..=1, default_missing_value = "true", value_parser = parse_bool)]
    pub use_moe: Option<bool>,
    /// Vision encoder: clip-vit-base-patch16, clip-vit-base-patch32, siglip-base-patch16-224,
    /// siglip2-base-patch16-256, siglip2-base-patch32-256 or none.
    #[arg(long, value_name = "NAME", default_value = "clip-vit-base-patch16")]
    pub vision: String,
    /// Add random weights of the family's projector to the file of the language model, so that
    /// several runs or programs start from the same ones.
    #[arg(long)]
    pub with_projector: bool,
    /// Seed of the weights.
    #[arg(long, value_name = "N", default_value_t = 1337)]
    pub seed: u64,
}

/// Families of language models.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Family {
    /// MiniMind of April 2025.
    Minimind,
    /// Current MiniMind (minimind-3).
    Minimind3,
    /// LLaMA in Hugging Face format.
    Llama,
}

/// Runs the command.
pub fn run(args: &InitArgs) -> Result<()> {
    let lm = lm_config(args);
    let vision = vision_config(&args.vision)?;
    let suffix = if lm.use_moe { "_moe" } else { "" };
    let lm_path = args.out_dir.join(format!("lm_{}{suffix}.pth", lm.dim));
    let vision_dir = args.out_dir.join(&args.vision);
    for path in [&lm_path, &vision_dir, &args.out_dir.join("config.json")] {
        if path.exists() {
            return Err(CliError::Usage(format!(
                "{} already exists and is not overwritten; choose another --out-dir",
                path.display()
            ))
            .into());
        }
    }
    lm.validate()?;
    let projector = match (&vision, args.with_projector) {
        (Some(vision), true) => Some((ProjectorConfig::default_for(&lm, vision)?, vision)),
        (None, true) => {
            let message = "--with-projector needs a vision encoder; leave out --vision none";
            return Err(CliError::Usage(message.to_owned()).into());
        }
        (_, false) => None,
    };
    std::fs::create_dir_all(&args.out_dir)
        .with_context(|| format!("creating {}", args.out_dir.display()))?;
    tch::manual_seed(args.seed as i64);
    let store = ParamStore::new(Device::Cpu);
    let _ = CausalLm::new(&store.root(), &lm);
    if let Some((projector, vision)) = projector {
        let _ = Projector::new(&store.root(), &projector, vision, lm.dim);
    }
    weights::save(&lm_path, &with_tied_output(store.named(), &lm), Format::Pth)?;
    write_json(&args.out_dir.join("config.json"), &lm.to_json())?;
    let millions = store.num_elements() as f64 / 1e6;
    println!("language model: {} ({millions:.1} M parameters)", lm_path.display());
    if let Some(config) = vision {
        let store = ParamStore::new(Device::Cpu);
        let _ = VisionEncoder::new(&store.root(), &config);
        write_vision(&vision_dir, &config, &store.named())?;
        let millions = store.num_elements() as f64 / 1e6;
        println!("vision encoder: {} ({millions:.1} M parameters)", vision_dir.display());
    }
    Ok(())
}

fn lm_config(args: &InitArgs) -> LmConfig {
    let defaults = match args.family {
        Family::Minimind => LmFamily::MiniMind,
        Family::Minimind3 => LmFamily::MiniMind3,
        Family::Llama => LmFamily::Llama,
    }
    .default_config();
    LmConfig {
        dim: args.dim.unwrap_or(defaults.dim),
        n_layers: args.n_layers.unwrap_or(defaults.n_layers),
        n_heads: args.n_heads.unwrap_or(defaults.n_heads),
        n_kv_heads: args.n_kv_heads.unwrap_or(defaults.n_kv_heads),
        vocab_size: args.vocab_size.unwrap_or(defaults.vocab_size),
        use_moe: args.use_moe.unwrap_or(false),
        // The family's feed-forward width is only for its own hidden size.
        hidden_dim: defaults.hidden_dim.filter(|_| args.dim.is_none_or(|dim| dim == defaults.dim)),
        ..defaults
    }
}

/// Writes the folder of a vision encoder in Hugging Face format, with the preprocessing of its
/// family.
fn write_vision(folder: &Path, config: &VisionConfig, named: &[(String, Tensor)]) -> Result<()> {
    std::fs::create_dir_all(folder).with_context(|| format!("creating {}", folder.display()))?;
    weights::save(&folder.join("model.safetensors"), named, Format::Safetensors)?;
    write_json(&folder.join("config.json"), &config.to_json())?;
    Ok(write_json(&folder.join("preprocessor_config.json"), &preprocessor(config)?)?)
}

/// The contents of `preprocessor_config.json`, as CLIP and SigLIP have it.
fn preprocessor(config: &VisionConfig) -> Result<Value> {
    let class = match config.family {
        VisionFamily::Clip => ImageProcessorClass::Clip,
        VisionFamily::Siglip => ImageProcessorClass::Siglip,
    };
    Ok(ImageProcessor::of_class(class, config.image_size.try_into()?)?.settings())
}

/// The configuration of the vision encoder with this name; `None` for `none`.
fn vision_config(name: &str) -> Result<Option<VisionConfig>> {
    let clip = |patch_size| VisionConfig { patch_size, ..VisionConfig::default() };
    let siglip =
        |patch_size, image_size| VisionConfig { patch_size, image_size, ..VisionConfig::siglip() };
    match name {
        "none" => Ok(None),
        "clip-vit-base-patch16" => Ok(Some(clip(16))),
        "clip-vit-base-patch32" => Ok(Some(clip(32))),
        "siglip-base-patch16-224" => Ok(Some(siglip(16, 224))),
        "siglip2-base-patch16-256" => Ok(Some(siglip(16, 256))),
        "siglip2-base-patch32-256" => Ok(Some(siglip(32, 256))),
        other => Err(CliError::Usage(format!(
            "--vision {other}: expected clip-vit-base-patch16, clip-vit-base-patch32, \
             siglip-base-patch16-224, siglip2-base-patch16-256, siglip2-base-patch32-256 or none"
        ))
        .into()),
    }
}
