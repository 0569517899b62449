//! The model of a plan (language model, vision encoder and projector) and its tensors.

use std::path::Path;

use anyhow::Result;
use serde_json::Value;
use vlm_shapes::{
    FreezePolicy, LmConfig, LmNames, ProjectorConfig, ProjectorKind, ShapeError, TensorShape,
    VisionConfig,
};

use crate::workspace::usage_error;

/// A language model, its vision encoder, and the projector between them.
#[derive(Debug, Clone)]
pub struct Shape {
    /// The language model.
    pub lm: LmConfig,
    /// The vision encoder.
    pub vision: VisionConfig,
    /// The projector.
    pub projector: ProjectorConfig,
}

/// One float32 tensor of the language model or the projector.
#[derive(Debug, Clone)]
pub struct Tensor {
    /// Its name in the weights files of the family.
    pub name: String,
    /// Its dimensions.
    pub shape: Vec<u64>,
    /// Whether it is trained.
    pub is_trained: bool,
}

impl Tensor {
    /// Number of elements.
    pub fn numel(&self) -> u64 {
        self.shape.iter().product()
    }
}

impl Shape {
    /// A model with a projector of `kind`.
    ///
    /// # Errors
    /// The number of patches does not fit the projector.
    pub fn new(
        lm: LmConfig,
        vision: VisionConfig,
        kind: ProjectorKind,
    ) -> Result<Self, ShapeError> {
        let projector = ProjectorConfig::new(kind, &vision)?;
        Ok(Self { lm, vision, projector })
    }

    /// The model that the `config.json` of a run describes. `path` is its path for messages.
    ///
    /// # Errors
    /// A missing or invalid part of the configuration.
    pub fn from_config(config: &Value, path: &Path) -> Result<Self> {
        let wrong = |error: ShapeError| usage_error(format!("{}: {error}", path.display()));
        let kind = match &config["projector"]["kind"] {
            Value::Null => ProjectorKind::Linear,
            kind => serde_json::from_value(kind.clone())
                .map_err(|e| usage_error(format!("{}: projector: {e}", path.display())))?,
        };
        let lm = LmConfig::from_json(config).map_err(wrong)?;
        lm.validate().map_err(wrong)?;
        let vision = VisionConfig::from_json(&config["vision"]).map_err(wrong)?;
        // The number of tokens of a pixel-shuffle projector may be another than the default.
        match serde_json::from_value::<ProjectorConfig>(config["projector"].clone()) {
            Ok(projector) => Ok(Self { lm, vision, projector }),
            Err(_) => Self::new(lm, vision, kind).map_err(wrong),
        }
    }

    /// The tensors of the language model and the projector, in the order in which `vlm` creates
    /// them.
    pub fn tensors(&self, freeze: &FreezePolicy) -> Vec<Tensor> {
        let tensor = |TensorShape { name, shape }| Tensor {
            is_trained: freeze.trains(&self.lm, &name),
            shape: shape.into_iter().map(i64::unsigned_abs).collect(),
            name,
        };
        let of_projector = self.projector.tensors(&self.vision, self.lm.dim);
        self.lm.tensors().into_iter().chain(of_projector).map(tensor).collect()
    }

    /// Number of parameters of the vision encoder.
    pub fn num_vision_parameters(&self) -> u64 {
        self.vision.tensors().iter().map(|tensor| tensor.numel().unsigned_abs()).sum()
    }

    /// The names of the output and input embeddings if these are one tied tensor.
    pub fn tied_names(&self) -> Option<(String, String)> {
        let names = self.lm.names();
        let names = (LmNames::weight(names.output), LmNames::weight(names.embeddings));
        self.lm.tie_word_embeddings.then_some(names)
    }

    /// Number of routed experts of a block; 0 without a mixture of experts.
    pub fn num_routed_experts(&self) -> u64 {
        if self.lm.use_moe { self.lm.moe.n_routed_experts.unsigned_abs() } else { 0 }
    }
}
