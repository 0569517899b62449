//! `vlm init`: random weights of a given shape, for trials.

use std::path::Path;

use anyhow::{Context, Result};
use serde_json::json;
use tch::{Device, Tensor};
use vlm_model::lm::{CausalLm, with_tied_output};
use vlm_model::params::ParamStore;
use vlm_model::vision::ClipVision;
use vlm_model::weights::{self, Format};
use vlm_model::{LmConfig, VisionConfig};
use vlm_train::TrainError;

use crate::args::InitArgs;

/// Runs the command.
pub fn run(args: &InitArgs) -> Result<()> {
    let lm = LmConfig {
        dim: args.dim,
        n_layers: args.n_layers,
        n_heads: args.n_heads,
        n_kv_heads: args.n_kv_heads,
        vocab_size: args.vocab_size,
        ..LmConfig::default()
    };
    let vision = vision_config(&args.vision)?;
    let lm_path = args.out_dir.join(format!("lm_{}.pth", args.dim));
    let vision_dir = args.out_dir.join(&args.vision);
    for path in [&lm_path, &vision_dir, &args.out_dir.join("config.json")] {
        if path.exists() {
            return Err(TrainError::Usage(format!(
                "{} is there already, and nothing is overwritten; choose another --out-dir",
                path.display()
            ))
            .into());
        }
    }
    lm.validate()?;
    std::fs::create_dir_all(&args.out_dir)
        .with_context(|| format!("making {}", args.out_dir.display()))?;
    tch::manual_seed(args.seed as i64);
    let store = ParamStore::new(Device::Cpu);
    let _ = CausalLm::new(&store.root(), &lm);
    weights::save(&lm_path, &with_tied_output(store.named(), &lm), Format::Pth)?;
    write_json(&args.out_dir.join("config.json"), &serde_json::to_value(&lm)?)?;
    let millions = store.num_elements() as f64 / 1e6;
    println!("language model: {} ({millions:.1} M parameters)", lm_path.display());
    if let Some(config) = vision {
        let store = ParamStore::new(Device::Cpu);
        let _ = ClipVision::new(&store.root(), &config);
        write_vision(&vision_dir, &config, &store.named())?;
        let millions = store.num_elements() as f64 / 1e6;
        println!("vision encoder: {} ({millions:.1} M parameters)", vision_dir.display());
    }
    Ok(())
}

/// Writes a vision encoder's folder in Hugging Face form, with CLIP's preprocessing.
fn write_vision(folder: &Path, config: &VisionConfig, named: &[(String, Tensor)]) -> Result<()> {
    std::fs::create_dir_all(folder).with_context(|| format!("making {}", folder.display()))?;
    weights::save(&folder.join("model.safetensors"), named, Format::Safetensors)?;
    let mut vision_config = serde_json::to_value(config)?;
    vision_config["model_type"] = "clip_vision_model".into();
    let whole = json!({
        "architectures": ["CLIPVisionModel"],
        "model_type": "clip",
        "vision_config": vision_config,
    });
    write_json(&folder.join("config.json"), &whole)?;
    let side = config.image_size;
    let preprocessor = json!({
        "image_processor_type": "CLIPImageProcessor",
        "do_resize": true,
        "size": { "shortest_edge": side },
        "resample": 3,
        "do_center_crop": true,
        "crop_size": { "height": side, "width": side },
        "do_rescale": true,
        "rescale_factor": 1.0 / 255.0,
        "do_normalize": true,
        "image_mean": [0.48145466, 0.4578275, 0.40821073],
        "image_std": [0.26862954, 0.26130258, 0.27577711],
        "do_convert_rgb": true,
    });
    write_json(&folder.join("preprocessor_config.json"), &preprocessor)
}

fn vision_config(name: &str) -> Result<Option<VisionConfig>> {
    match name {
        "none" => Ok(None),
        "clip-vit-base-patch16" => Ok(Some(VisionConfig::default())),
        "clip-vit-base-patch32" => {
            Ok(Some(VisionConfig { patch_size: 32, ..VisionConfig::default() }))
        }
        other => Err(TrainError::Usage(format!(
            "--vision {other}: known are clip-vit-base-patch16, clip-vit-base-patch32 and none"
        ))
        .into()),
    }
}

fn write_json(path: &Path, value: &serde_json::Value) -> Result<()> {
    let text = serde_json::to_string_pretty(value)? + "\n";
    std::fs::write(path, text).with_context(|| format!("writing {}", path.display()))
}
