//! Configurations: `config.json` of every family and of other programs, and settings of a run.

use std::path::Path;

use serde_json::Value;
use vlm_config::{Layers, RECIPES, Stage, read_file};
use vlm_shapes::{ForeignModel, LmConfig, OpenClip, ProjectorConfig, ProjectorKind, VisionConfig};

use crate::Target;
use crate::scratch::{file, golden};

pub(super) fn targets() -> Vec<Target> {
    let keys: &[&str] = &[
        "model_type", "llama", "qwen2", "qwen3", "minimind", "minimind-v", "llava", "idefics3",
        "smolvlm", "lfm2_vl", "clip", "siglip", "text_config", "vision_config", "hidden_size",
        "dim", "num_hidden_layers", "n_layers", "num_attention_heads", "num_key_value_heads",
        "head_dim", "rope_scaling", "rope_parameters", "rope_type", "yarn", "llama3", "linear",
        "factor", "vocab_size", "image_size", "patch_size", "layer_types", "scale_factor",
        "use_moe", "n_routed_experts", "n_shared_experts", "first_k_dense_replace", "multiple_of",
        "vision_feature_layer", "vision_feature_select_strategy", "intermediate_size",
        "quantization_config", "vit_img_size", "mp_pixel_shuffle_factor", "lm_n_blocks",
        "architectures", "torch_dtype", "max_position_embeddings", "timm_model_name", "layers",
        "width", "head_width", "mlp_ratio", "embed_dim", "preprocess_cfg", "model_cfg",
        "vision_cfg",
    ];
    vec![
        Target {
            name: "config",
            run: read_config,
            seeds: || golden("", &["config.json"], 8 << 10),
            dictionary: keys,
        },
        Target {
            name: "open_clip",
            run: read_open_clip,
            seeds: || golden("encoders", &["open_clip_config.json"], 8 << 10),
            dictionary: keys,
        },
        Target {
            name: "settings",
            run: read_settings,
            seeds: || {
                RECIPES.iter().map(|recipe| recipe.text.as_bytes().to_vec()).chain([
                b"batch-size = 8\n[data]\nmax_seq_len = 450\n[sft]\nepochs = 2\n".to_vec(),
                br#"{"run": {"optim": {"batch_size": 8}, "data": {"padding": "max"}}, "dim": 8}"#.to_vec(),
            ]).collect()
            },
            dictionary: &[
                "data", "model", "optim", "eval", "run", "shape", "freeze", "stage", "sft",
                "pretrain", "batch_size", "learning-rate", "epochs", "[", "]", "[[", "=", "\"",
                "'''", "a.b.c.", "1e999", "nan", "inf", "0x", "1979-05-27", "description", "lm",
                "vision", "none",
            ],
        },
    ]
}

fn read_config(data: &[u8]) {
    let path = file("config", "config.json", data);
    let folder = path.parent().unwrap_or(Path::new("."));
    if let Ok(config) = LmConfig::from_file(&path) {
        config.tensors();
        let _ = LmConfig::from_json(&config.to_json());
        let _ = config.to_transformers_json();
        let _ = (config.intermediate_size(), config.max_positions());
    }
    let _ = LmConfig::unread_keys_of(&path);
    if let Ok(vision) = VisionConfig::from_folder(folder) {
        vision.tensors();
        read_projectors(&vision);
        let _ = vision.with_image_size(Some(96));
    }
    let _ = VisionConfig::unread_keys_in(folder);
    let Ok(json) = serde_json::from_slice::<Value>(data) else { return };
    let _ = LmConfig::is_language_model(&json);
    let Some(model) = ForeignModel::of(&json) else { return };
    let _ = (model.name(), model.unread_keys(), model.image_token_id(), model.difference());
    let _ = (model.tokenizer_advice(), model.gated_shared_experts(), model.vision());
    if let Ok(language) = model.language()
        && let Ok(config) = LmConfig::from_json(&language)
        && config.validate().is_ok()
    {
        config.tensors();
        if let (Ok(vision), Ok(projector)) = (model.vision(), model.projector()) {
            projector.tensors(&vision, config.dim);
        }
    }
}

fn read_projectors(vision: &VisionConfig) {
    for kind in [
        ProjectorKind::Linear,
        ProjectorKind::Mlp,
        ProjectorKind::Mlp2xGelu,
        ProjectorKind::MergedMlp,
        ProjectorKind::PixelShuffle,
    ] {
        if let Ok(projector) = ProjectorConfig::new(kind, vision) {
            projector.tensors(vision, 64);
        }
    }
}

fn read_open_clip(data: &[u8]) {
    let path = file("open_clip", "open_clip_config.json", data);
    let folder = path.parent().unwrap_or(Path::new("."));
    let Ok(Some(tower)) = OpenClip::beside(folder) else { return };
    let _ = (tower.is_timm(), tower.unread_keys(), tower.preprocessing());
    if let Ok(vision) = tower.vision() {
        vision.tensors();
        read_projectors(&vision);
    }
}

fn read_settings(data: &[u8]) {
    let path = file("settings", "run.toml", data);
    for stage in [Stage::Pretrain, Stage::Sft] {
        let _ = read_file(&path, stage);
    }
    if let Ok(mut layers) = Layers::of_file(&path) {
        let _ = layers.settle();
        let _ = layers.resolve();
    }
}
