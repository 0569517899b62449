//! The projector, which maps patch features to the hidden size of the language model.
//!
//! Dimensions: N images · P patches · V vision width · T tokens per image · H hidden size

use tch::Tensor;
use vlm_shapes::{PROJECTOR_SCOPE, ProjectorConfig, ProjectorKind, VisionConfig};

use crate::layers::{LayerNorm, Linear};
use crate::params::{Init, Scope};

/// PyTorch's default epsilon of layer normalisation, which MiniMind-V uses.
const LAYER_NORM_EPS: f64 = 1e-5;

/// A projector of any kind, with MiniMind-V's parameter names.
#[derive(Debug)]
pub struct Projector {
    config: ProjectorConfig,
    norm: Option<LayerNorm>,
    first: Linear,
    /// The layer after the GELU.
    second: Option<Linear>,
}

impl Projector {
    /// A projector from the patch features of `vision` to `hidden_size` H, initialised as PyTorch
    /// initialises an `nn.Linear`.
    pub fn new(
        scope: &Scope,
        config: &ProjectorConfig,
        vision: &VisionConfig,
        hidden_size: i64,
    ) -> Self {
        let scope = scope.sub(PROJECTOR_SCOPE);
        let vision_dim = vision.hidden_size;
        let linear = |scope: Scope, in_dim: i64| {
            let bound = 1.0 / (in_dim as f64).sqrt();
            Linear::new(&scope, in_dim, hidden_size, Init::Uniform(bound))
        };
        let mlp = scope.sub("mlp");
        let (norm, first, second) = match config.kind {
            ProjectorKind::Linear => {
                (None, linear(scope.sub(PROJECTOR_SCOPE).sub(0), vision_dim), None)
            }
            ProjectorKind::Mlp => (
                Some(LayerNorm::new(&mlp.sub(0), vision_dim, LAYER_NORM_EPS)),
                linear(mlp.sub(1), vision_dim),
                Some(linear(mlp.sub(3), hidden_size)),
            ),
            ProjectorKind::MergedMlp => {
                let merged = config.merged_width(vision);
                (None, linear(mlp.sub(0), merged), Some(linear(mlp.sub(2), hidden_size)))
            }
            ProjectorKind::Mlp2xGelu => (
                None,
                linear(scope.sub("linear_1"), vision_dim),
                Some(linear(scope.sub("linear_2"), hidden_size)),
            ),
            ProjectorKind::PixelShuffle => {
                let merged = config.merged_width(vision);
                let bound = 1.0 / (merged as f64).sqrt();
                let init = Init::Uniform(bound);
                let proj = scope.sub("proj");
                (None, Linear::without_bias(&proj, merged, hidden_size, init), None)
            }
        };
        Self { config: config.clone(), norm, first, second }
    }

    /// The configuration of this projector.
    pub fn config(&self) -> &ProjectorConfig {
        &self.config
    }

    /// `[N, P, V]` → `[N, T, H]`.
    pub fn forward(&self, patches_npv: &Tensor) -> Tensor {
        let images = patches_npv.size()[0];
        let mut x = match self.config.kind {
            ProjectorKind::PixelShuffle => squares(patches_npv, self.config.tokens_per_image),
            // Concatenates P / T neighbours in reading order; nothing changes where P = T.
            _ => patches_npv.reshape([images, self.config.tokens_per_image, -1]),
        };
        if let Some(norm) = &self.norm {
            x = norm.forward(&x);
        }
        x = self.first.forward(&x);
        match &self.second {
            Some(second) => second.forward(&x.gelu("none")),
            None => x,
        }
    }
}

/// Concatenates the features of squares of patches: `[N, P, V]` → `[N, T, V P / T]`. The squares,
/// and the patches in a square, are in reading order.
fn squares(patches_npv: &Tensor, tokens: i64) -> Tensor {
    let (images, patches, width) = patches_npv.size3().expect("[N, P, V] by construction");
    let root = |square: i64| (square as f64).sqrt().round() as i64;
    let (across, square) = (root(tokens), root(patches / tokens));
    patches_npv
        .reshape([images, across, square, across, square, width])
        .permute([0, 1, 3, 2, 4, 5])
        .reshape([images, tokens, square * square * width])
}
