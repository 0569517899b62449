//! Linear and normalisation layers that the language model, the encoders and the projector share.

use tch::{Kind, Tensor};

use crate::params::{Init, Scope};

/// `x Wᵀ + b`, see [`vlm_torch::linear`].
///
/// # Panics
/// When there is no memory left, as every tensor operation of a forward pass.
pub(crate) fn linear(x: &Tensor, weight: &Tensor, bias: Option<&Tensor>) -> Tensor {
    vlm_torch::linear(x, weight, bias).unwrap_or_else(|error| panic!("{error}"))
}

/// The type in which linear layers compute with `x`: that of autocast, or its own. What several
/// layers read is converted once.
pub(crate) fn product_kind(x: &Tensor) -> Kind {
    vlm_torch::autocast_kind(x.device()).ok().flatten().unwrap_or(x.kind())
}

/// `x + y` in the type of `x`; in the memory of `y` where it has that type.
pub(crate) fn add_residual(x: &Tensor, mut y: Tensor) -> Tensor {
    if y.kind() != x.kind() {
        return vlm_torch::mixed_sum(x, &y).unwrap_or_else(|error| panic!("{error}"));
    }
    y += x;
    y
}

/// The vectors `[1, S, H]` of `x` `[B, T, H]` at the positions `at` `[S]`, which are indices (i64)
/// into the flattened `B · T` positions.
pub(crate) fn select_positions(x: &Tensor, at: &Tensor) -> Tensor {
    x.flatten(0, 1).index_select(0, at).unsqueeze(0)
}

/// `y = x Wᵀ + b`, PyTorch's `nn.Linear` with its parameter names.
#[derive(Debug)]
pub struct Linear {
    weight: Tensor,
    bias: Option<Tensor>,
}

impl Linear {
    /// A layer without bias: `weight` `[out, in]`.
    pub fn without_bias(scope: &Scope, in_dim: i64, out_dim: i64, init: Init) -> Self {
        Self { weight: scope.param("weight", &[out_dim, in_dim], init), bias: None }
    }

    /// A layer with bias: `weight` `[out, in]`, `bias` `[out]` (starts at 0).
    pub fn new(scope: &Scope, in_dim: i64, out_dim: i64, init: Init) -> Self {
        let weight = scope.param("weight", &[out_dim, in_dim], init);
        Self { weight, bias: Some(scope.param("bias", &[out_dim], Init::Const(0.0))) }
    }

    /// A layer with or without bias.
    pub fn with_bias_if(
        has_bias: bool,
        scope: &Scope,
        in_dim: i64,
        out_dim: i64,
        init: Init,
    ) -> Self {
        let make = if has_bias { Self::new } else { Self::without_bias };
        make(scope, in_dim, out_dim, init)
    }

    /// `[…, in]` → `[…, out]`.
    pub fn forward(&self, x: &Tensor) -> Tensor {
        linear(x, &self.weight, self.bias.as_ref())
    }
}

/// Layer normalisation over the last dimension, with weight and bias (Ba et al. 2016).
#[derive(Debug)]
pub struct LayerNorm {
    weight: Tensor,
    bias: Tensor,
    eps: f64,
}

impl LayerNorm {
    /// `weight` and `bias` `[dim]`.
    pub fn new(scope: &Scope, dim: i64, eps: f64) -> Self {
        Self {
            weight: scope.param("weight", &[dim], Init::Const(1.0)),
            bias: scope.param("bias", &[dim], Init::Const(0.0)),
            eps,
        }
    }

    /// `[…, dim]` → `[…, dim]`.
    pub fn forward(&self, x: &Tensor) -> Tensor {
        x.layer_norm(self.weight.size(), Some(&self.weight), Some(&self.bias), self.eps, true)
    }

    /// As [`Self::forward`], in the type in which linear layers compute.
    pub(crate) fn forward_for_products(&self, x: &Tensor) -> Tensor {
        self.forward(x).to_kind(product_kind(x))
    }
}

/// Root-mean-square normalisation over the last dimension (Zhang and Sennrich 2019).
#[derive(Debug)]
pub struct RmsNorm {
    weight: Tensor,
    eps: f64,
}

impl RmsNorm {
    /// `weight` `[dim]`.
    pub fn new(scope: &Scope, dim: i64, eps: f64) -> Self {
        Self { weight: scope.param("weight", &[dim], Init::Const(1.0)), eps }
    }

    /// `[…, dim]` → `[…, dim]`, computed in float32 and returned in the input's type.
    pub fn forward(&self, x: &Tensor) -> Tensor {
        self.forward_as(x, x.kind())
    }

    /// As [`Self::forward`], in the type in which linear layers compute.
    pub(crate) fn forward_for_products(&self, x: &Tensor) -> Tensor {
        self.forward_as(x, product_kind(x))
    }

    fn forward_as(&self, x: &Tensor, kind: Kind) -> Tensor {
        let normed = vlm_torch::rms_norm(&x.to_kind(Kind::Float), &self.weight, self.eps, kind);
        // As `linear`, it fails only when there is no memory left.
        normed.unwrap_or_else(|error| panic!("{error}"))
    }
}
