//! A trained tensor with the state that AdamW has of it.

use std::ops::Range;

use tch::{Kind, Tensor};

use crate::config::OptimConfig;
use crate::model_part::ModelPart;

/// A trained tensor, or this rank's piece of one, with its optimizer state.
#[derive(Debug)]
pub(crate) struct Slot {
    pub(crate) name: String,
    pub(crate) part: ModelPart,
    pub(crate) param: Tensor,
    /// Whether the whole tensor has at most one dimension: the weight of a norm, or a bias.
    pub(crate) is_norm_or_bias: bool,
    /// If the slot is a piece of a tensor.
    pub(crate) piece: Option<SlotPiece>,
    pub(crate) exp_avg: Tensor,
    pub(crate) exp_avg_sq: Tensor,
    pub(crate) step: Tensor,
    /// The exponential moving average of the tensor, if `ema_decay` is set.
    pub(crate) ema: Option<Tensor>,
}

/// What is known about a piece of a tensor.
#[derive(Debug)]
pub(crate) struct SlotPiece {
    /// The index of the tensor among all trained tensors.
    pub(crate) tensor: usize,
    /// The elements of the flattened tensor.
    pub(crate) elements: Range<i64>,
    pub(crate) gradient: Tensor,
    /// Whether any rank has a gradient of the tensor.
    pub(crate) has_gradient: bool,
}

impl Slot {
    /// A slot with the state before the first update, for a tensor with `num_dims` dimensions of
    /// which `param` is a flattened piece if there is a `piece`.
    pub(crate) fn new(
        name: String,
        param: Tensor,
        num_dims: usize,
        part: ModelPart,
        piece: Option<SlotPiece>,
        has_ema: bool,
    ) -> Self {
        Self {
            is_norm_or_bias: num_dims <= 1,
            exp_avg: param.zeros_like().set_requires_grad(false),
            exp_avg_sq: param.zeros_like().set_requires_grad(false),
            step: Tensor::zeros([], (Kind::Float, param.device())),
            ema: has_ema.then(|| param.detach().copy()),
            name,
            part,
            param,
            piece,
        }
    }

    /// The configured learning rate and weight decay of the tensor.
    pub(crate) fn rate_and_decay(&self, optim: &OptimConfig) -> (f64, f64) {
        let has_decay = optim.decay_norms_and_biases || !self.is_norm_or_bias;
        (self.part.learning_rate(optim), if has_decay { optim.weight_decay } else { 0.0 })
    }

    /// The gradient; `None` if there is none.
    pub(crate) fn gradient(&self) -> Option<Tensor> {
        match &self.piece {
            Some(piece) => piece.has_gradient.then(|| piece.gradient.shallow_clone()),
            None => Some(self.param.grad()).filter(Tensor::defined),
        }
    }

    /// The kinds of state that have the shape of the tensor, with their names in a checkpoint.
    pub(crate) fn tensors(&self) -> Vec<(&'static str, &Tensor)> {
        let mut all = vec![("exp_avg", &self.exp_avg), ("exp_avg_sq", &self.exp_avg_sq)];
        all.extend(self.ema.as_ref().map(|ema| ("ema", ema)));
        all
    }

    /// Copies this slot's part of a tensor of a checkpoint.
    pub(crate) fn restore(&mut self, kind: &str, whole: &Tensor) {
        let piece = match &self.piece {
            Some(piece) if kind != "step" => {
                let Range { start, end } = piece.elements;
                whole.reshape([-1]).narrow(0, start, end - start)
            }
            _ => whole.shallow_clone(),
        };
        let own = match (kind, &mut self.ema) {
            ("exp_avg", _) => &mut self.exp_avg,
            ("exp_avg_sq", _) => &mut self.exp_avg_sq,
            ("ema", Some(ema)) => ema,
            _ => &mut self.step,
        };
        tch::no_grad(|| own.copy_(&piece));
    }
}

/// The kinds of state that have the shape of their tensor, as [`Slot::tensors`].
pub(crate) fn kinds_of_state(optim: &OptimConfig) -> Vec<&'static str> {
    let mut kinds = vec!["exp_avg", "exp_avg_sq"];
    kinds.extend(optim.ema_decay.map(|_| "ema"));
    kinds
}
