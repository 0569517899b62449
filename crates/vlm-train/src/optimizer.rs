//! AdamW with a state of its own, so that it can be saved and continued.

use tch::{Kind, Tensor};
use vlm_torch::{AdamWStep, LossScale, fused_adamw_step};

use crate::TrainError;

/// One trained tensor and what Adam remembers of its gradients.
#[derive(Debug)]
struct Slot {
    name: String,
    param: Tensor,
    exp_avg: Tensor,
    exp_avg_sq: Tensor,
    step: Tensor,
}

/// AdamW (Loshchilov and Hutter 2019) with PyTorch's defaults: betas 0.9 and 0.999, eps 1e-8,
/// decoupled weight decay on every trained tensor.
#[derive(Debug)]
pub struct AdamW {
    slots: Vec<Slot>,
    weight_decay: f64,
}

impl AdamW {
    /// An optimizer with zero moments over named tensors, in their order.
    pub fn new(params: Vec<(String, Tensor)>, weight_decay: f64) -> Self {
        let slots = params
            .into_iter()
            .map(|(name, param)| Slot {
                exp_avg: param.zeros_like().set_requires_grad(false),
                exp_avg_sq: param.zeros_like().set_requires_grad(false),
                step: Tensor::zeros([], (Kind::Float, param.device())),
                name,
                param,
            })
            .collect();
        Self { slots, weight_decay }
    }

    /// The tensors that are trained.
    pub fn params(&self) -> Vec<Tensor> {
        self.slots.iter().map(|slot| slot.param.shallow_clone()).collect()
    }

    /// One update from the gradients at hand. Tensors without a gradient are left as they are.
    ///
    /// # Errors
    /// What libtorch says.
    pub fn step(&mut self, learning_rate: f64) -> Result<(), TrainError> {
        let live = || self.slots.iter().filter(|slot| slot.param.grad().defined());
        let list = |of: fn(&Slot) -> Tensor| live().map(of).collect::<Vec<_>>();
        let numbers = AdamWStep {
            lr: learning_rate,
            weight_decay: self.weight_decay,
            ..AdamWStep::default()
        };
        fused_adamw_step(
            &list(|slot| slot.param.shallow_clone()),
            &list(|slot| slot.param.grad()),
            &list(|slot| slot.exp_avg.shallow_clone()),
            &list(|slot| slot.exp_avg_sq.shallow_clone()),
            &list(|slot| slot.step.shallow_clone()),
            &numbers,
            LossScale::default(),
        )?;
        Ok(())
    }

    /// The moments and step counts as named tensors, for a checkpoint.
    pub fn state(&self) -> Vec<(String, Tensor)> {
        let of = |slot: &Slot| {
            [
                (format!("exp_avg/{}", slot.name), slot.exp_avg.shallow_clone()),
                (format!("exp_avg_sq/{}", slot.name), slot.exp_avg_sq.shallow_clone()),
                (format!("step/{}", slot.name), slot.step.shallow_clone()),
            ]
        };
        self.slots.iter().flat_map(of).collect()
    }

    /// Takes back what [`Self::state`] gave.
    ///
    /// # Errors
    /// A tensor that is missing or has another shape.
    pub fn load_state(&mut self, state: &[(String, Tensor)]) -> Result<(), TrainError> {
        for (name, mut own) in self.state() {
            let (_, saved) = state.iter().find(|(n, _)| *n == name).ok_or_else(|| {
                TrainError::Failed(format!(
                    "the checkpoint's optimizer has no {name}: other layers were trained then"
                ))
            })?;
            if saved.size() != own.size() {
                return Err(TrainError::Failed(format!(
                    "the checkpoint's {name} has shape {:?}; this run's has {:?}",
                    saved.size(),
                    own.size()
                )));
            }
            tch::no_grad(|| own.copy_(saved));
        }
        Ok(())
    }
}
