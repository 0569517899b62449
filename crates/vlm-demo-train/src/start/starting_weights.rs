//! Trains the starting weights and writes them into a folder.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Instant;

use anyhow::{Context, Result, anyhow};
use serde_json::{Value, json};
use tch::{Kind, Tensor};
use vlm_infer::write_json;
use vlm_model::params::ParamStore;
use vlm_model::weights::{Format, save};
use vlm_model::{LmConfig, VisionConfig};

use super::language_weights::{LanguagePlan, train_language};
use super::learner::LearnerPlan;
use super::tokenizer::write_demo_tokenizer;
use super::vision_weights::{MEAN, STD, VisionPlan, train_vision};

/// Samples per update.
const BATCH_SIZE: usize = 32;
const WEIGHT_DECAY: f64 = 0.05;

/// A part of the starting weights.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Part {
    /// The vision encoder.
    Vision,
    /// The tokenizer and the language model.
    Language,
}

/// Settings of [`make_starting_weights`].
#[derive(Debug, Clone)]
pub struct StartingWeightsOptions {
    /// The parts to make, in this order.
    pub parts: Vec<Part>,
    /// Number of images on which the encoder is trained; each is used once.
    pub num_images: usize,
    /// Number of conversations on which the language model is trained; each is used once.
    pub num_chats: usize,
    /// Weights of a language model of the same shape to continue from; `None` for random weights.
    pub language_from: Option<PathBuf>,
    /// Seed of the initial weights, the scenes and their order.
    pub seed: u64,
    /// Number of threads for computing, and number of additional threads for drawing.
    pub num_threads: usize,
    /// Time limit for each part in seconds, to which the schedule of the learning rate is
    /// shortened.
    pub max_secs: Option<f64>,
}

impl Default for StartingWeightsOptions {
    fn default() -> Self {
        Self {
            parts: vec![Part::Language, Part::Vision],
            num_images: 400_000,
            num_chats: 100_000,
            language_from: None,
            seed: 1337,
            num_threads: 2,
            max_secs: None,
        }
    }
}

/// Trains the demo's language model (on text alone) and its vision encoder (separately), and writes
/// them into the folder `output`: `tokenizer.json`, `tokenizer_config.json`, `lm.safetensors` with
/// its `config.json`, and `vision/` in Hugging Face form. Beside each weights file a
/// `training.json` has the settings, the duration and the scores. Held-out scenes are not used.
///
/// # Errors
/// A file cannot be read or written; a loss is not finite.
pub fn make_starting_weights(output: &Path, options: &StartingWeightsOptions) -> Result<()> {
    let create = |folder: &Path| {
        fs::create_dir_all(folder).with_context(|| format!("create {}", folder.display()))
    };
    create(output)?;
    tch::set_num_threads(options.num_threads as i32);
    for part in &options.parts {
        match part {
            Part::Language => make_language(output, options)?,
            Part::Vision => {
                create(&output.join("vision"))?;
                make_vision(&output.join("vision"), options)?;
            }
        }
    }
    Ok(())
}

fn make_language(folder: &Path, options: &StartingWeightsOptions) -> Result<()> {
    let started = Instant::now();
    write_demo_tokenizer(folder)
        .map_err(|error| anyhow!("write the tokenizer to {}: {error}", folder.display()))?;
    let plan = LanguagePlan {
        config: LmConfig {
            dim: 128,
            n_layers: 4,
            n_heads: 4,
            n_kv_heads: 2,
            max_seq_len: 256,
            ..LmConfig::default()
        },
        start_from: options.language_from.clone(),
        learner: LearnerPlan {
            name: "language",
            num_samples: options.num_chats,
            batch_size: BATCH_SIZE,
            learning_rate: 2e-3,
            weight_decay: WEIGHT_DECAY,
            warmup_steps: 100,
            seed: options.seed,
            num_threads: options.num_threads,
            max_secs: options.max_secs,
        },
    };
    let made = train_language(&plan, folder)?;
    save_halved(&folder.join("lm.safetensors"), &made.params, Vec::new())?;
    write_json(&folder.join("config.json"), &json!(made.config))?;
    let record = json!({
        "chats": made.num_chats, "batch_size": plan.learner.batch_size, "learning_rate": plan.learner.learning_rate,
        "seed": plan.learner.seed, "continued_from_earlier_weights": plan.start_from.is_some(),
        "wall_secs": started.elapsed().as_secs(), "scores": made.scores,
    });
    tracing::info!("language: {record}");
    Ok(write_json(&folder.join("training.json"), &record)?)
}

fn make_vision(folder: &Path, options: &StartingWeightsOptions) -> Result<()> {
    let started = Instant::now();
    let plan = VisionPlan {
        config: VisionConfig {
            hidden_size: 192,
            intermediate_size: 384,
            num_hidden_layers: 4,
            num_attention_heads: 6,
            patch_size: 32,
            ..VisionConfig::default()
        },
        learner: LearnerPlan {
            name: "vision",
            num_samples: options.num_images,
            batch_size: BATCH_SIZE,
            learning_rate: 1.2e-3,
            weight_decay: WEIGHT_DECAY,
            warmup_steps: 200,
            seed: options.seed,
            num_threads: options.num_threads,
            max_secs: options.max_secs,
        },
    };
    let made = train_vision(&plan)?;
    // Hugging Face's class expects a norm for the pooled output, which is not used here.
    let width = [plan.config.hidden_size];
    let post_layernorm = |name: &str, value: f64| {
        let tensor = Tensor::full(width, value, (Kind::Half, tch::Device::Cpu));
        (format!("vision_model.post_layernorm.{name}"), tensor)
    };
    let unused = vec![post_layernorm("weight", 1.0), post_layernorm("bias", 0.0)];
    save_halved(&folder.join("model.safetensors"), &made.params, unused)?;
    let mut config = plan.config.to_json();
    config["torch_dtype"] = json!("float16");
    write_json(&folder.join("config.json"), &config)?;
    write_json(
        &folder.join("preprocessor_config.json"),
        &preprocessor_config(plan.config.image_size),
    )?;
    let record = json!({
        "pictures": made.num_images, "batch_size": plan.learner.batch_size, "learning_rate": plan.learner.learning_rate,
        "seed": plan.learner.seed, "wall_secs": started.elapsed().as_secs(), "patches_right": made.scores,
    });
    tracing::info!("vision: {record}");
    Ok(write_json(&folder.join("training.json"), &record)?)
}

fn preprocessor_config(side: i64) -> Value {
    json!({
        "image_processor_type": "CLIPImageProcessor",
        "do_resize": true, "size": { "shortest_edge": side }, "resample": 3,
        "do_center_crop": true, "crop_size": { "height": side, "width": side },
        "do_rescale": true, "rescale_factor": 1.0 / 255.0,
        "do_normalize": true, "image_mean": MEAN, "image_std": STD,
        "do_convert_rgb": true,
    })
}

/// Saves the weights and the tensors `more` in float16, to halve the size in the repository.
fn save_halved(path: &Path, params: &ParamStore, more: Vec<(String, Tensor)>) -> Result<()> {
    let mut tensors: Vec<_> = params
        .named()
        .into_iter()
        .map(|(name, tensor)| (name, tensor.detach().to_kind(Kind::Half)))
        .collect();
    tensors.extend(more);
    save(path, &tensors, Format::Safetensors).with_context(|| format!("write {}", path.display()))
}
