//! Finds and checks the parts of a model that is to be exported.

use std::path::PathBuf;

use serde_json::{Value, json};
use tch::{Kind, Tensor};
use vlm_data::ChatTokenizer;
use vlm_model::detect::{check_tied, projector_config, projector_of};
use vlm_model::names::LmNames;
use vlm_model::part_files::open_language_model;
use vlm_model::weights::Weights;
use vlm_model::{LmConfig, LmFamily, VisionConfig, is_projector};

use super::source::ExportSource;
use crate::InferError;
use crate::assemble::{Shapes, check_vocabulary, open_tokenizer, stop_token_ids};
use crate::json_file::read_json;
use crate::lm_shape::{adopt, starting_shape};
use crate::model_files::ModelFiles;
use crate::model_folder::ModelFolder;
use crate::preprocessor::image_processor;
use crate::vision_encoder::vision_config;

/// The parts to export, which are found and checked before anything is written.
pub(super) struct Parts {
    pub(super) weights: Weights,
    pub(super) lm: LmConfig,
    /// Folder of the tokenizer.
    pub(super) tokenizer_folder: PathBuf,
    pub(super) tokenizer: ChatTokenizer,
    /// Folder and shape of the vision encoder; `None` for a language model alone.
    pub(super) vision: Option<(PathBuf, VisionConfig)>,
    /// The exported `config.json` in the format of the family.
    pub(super) config: Value,
    /// The settings of the run that trained the model; null if they are unknown.
    pub(super) run: Value,
}

impl Parts {
    /// Finds the parts of `source` and checks that they fit each other.
    ///
    /// # Errors
    /// A part that cannot be found, with the setting that names it; parts that do not fit each
    /// other.
    pub(super) fn find(source: &ExportSource) -> Result<Self, InferError> {
        let folder = ModelFolder::find(&source.model)?;
        let (run_config, path) = (&folder.config, folder.weights.clone());
        let weights = open_language_model(&path).map_err(InferError::file)?;
        let (mut lm, config_path) = starting_shape(&path)?;
        adopt(&mut lm, &weights, config_path.as_deref())?;
        check_tied(&lm, &weights).map_err(InferError::file)?;
        let tokenizer = folder.part(&source.tokenizer, "tokenizer")?;
        let has_vision = !source.without_vision
            && (source.vision.is_some() || weights.names().any(is_projector));
        let vision = has_vision.then(|| folder.part(&source.vision, "vision"));
        let vision = vision.transpose()?;
        let opened = open_tokenizer(&ModelFiles {
            lm: Some(path),
            vision: vision.clone().unwrap_or_default(),
            image_size: folder.image_size(),
            tokenizer: tokenizer.clone(),
            image_token: run_config["image_token"].as_str().map(str::to_owned),
            projector: None,
        })?;
        let image_size = folder.image_size();
        let vision = vision.map(|path| read_vision(path, image_size, &weights)).transpose()?;
        check_vocabulary(&opened, &tokenizer, &lm)?;
        let config = describe(&lm, vision.as_ref().map(|(_, config)| config), &weights, &opened)?;
        Ok(Self {
            weights,
            lm,
            tokenizer_folder: tokenizer,
            tokenizer: opened,
            vision,
            config,
            run: folder.config["run"].clone(),
        })
    }

    /// All tensors of the language model and the projector. In the formats of Hugging Face, tied
    /// tensors are written once.
    pub(super) fn tensors(&self) -> Result<Vec<(String, Tensor)>, InferError> {
        let mut tensors = self.weights.all()?;
        // A file may also hold other parts, such as the vision encoder.
        let names = self.lm.names();
        tensors.retain(|(name, _)| names.is_computed_from(name) || is_projector(name));
        if self.lm.family != LmFamily::MiniMind && self.lm.tie_word_embeddings {
            let output = LmNames::weight(self.lm.names().output);
            tensors.retain(|(name, _)| *name != output);
        }
        Ok(tensors)
    }

    /// The contents of the tokenizer's `tokenizer.json`.
    ///
    /// # Errors
    /// The file cannot be read or is not JSON.
    pub(super) fn tokenizer_json(&self) -> Result<Value, InferError> {
        read_json(&self.tokenizer_folder.join("tokenizer.json"))
    }
}

/// Reads the shape of the vision encoder for images of `image_size`, and checks it against its
/// preprocessing and the projector.
fn read_vision(
    folder: PathBuf,
    image_size: Option<i64>,
    weights: &Weights,
) -> Result<(PathBuf, VisionConfig), InferError> {
    let config = vision_config(&folder, image_size)?;
    image_processor(&folder, &config)?;
    if projector_of(weights).is_none() {
        return Err(InferError::unusable(format!(
            "`vision` {}: {} has no projector, so the encoder cannot be used; leave `vision` out",
            folder.display(),
            weights.path().display()
        )));
    }
    Ok((folder, config))
}

/// The exported `config.json`.
fn describe(
    lm: &LmConfig,
    vision: Option<&VisionConfig>,
    weights: &Weights,
    tokenizer: &ChatTokenizer,
) -> Result<Value, InferError> {
    let mut tree = match (vision, projector_of(weights)) {
        (Some(vision), Some(kind)) => {
            let projector = projector_config(kind, Some(weights), vision)?;
            Shapes { lm: lm.clone(), vision: vision.clone(), projector }.describe(tokenizer)
        }
        _ => lm.to_json(),
    };
    if lm.family == LmFamily::MiniMind {
        tree["model_type"] = json!("minimind");
    }
    tree["eos_token_id"] = stop_token_ids(tokenizer);
    tree["pad_token_id"] = json!(tokenizer.pad_token_id());
    let dtype = weights.kind(&LmNames::weight(lm.names().embeddings));
    tree["torch_dtype"] = json!(match dtype {
        Some(Kind::BFloat16) => "bfloat16",
        Some(Kind::Half) => "float16",
        _ => "float32",
    });
    Ok(tree)
}
