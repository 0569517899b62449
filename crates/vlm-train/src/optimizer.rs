//! AdamW with a state that can be saved and restored, and with an exponential moving average of the
//! weights.

use tch::{Kind, Tensor};
use vlm_model::{Vlm, is_projector};
use vlm_torch::{AdamWStep, LossScale, fused_adamw_step};

use crate::TrainError;
use crate::config::OptimConfig;

/// A part of the model that can have its own learning rate.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ModelPart {
    /// The projector.
    Projector,
    /// The language model.
    Lm,
    /// The vision encoder.
    Vision,
}

impl ModelPart {
    /// The configured learning rate of this part, to which the schedule is applied.
    pub fn learning_rate(self, optim: &OptimConfig) -> f64 {
        let own = match self {
            Self::Projector => optim.lr_projector,
            Self::Lm => optim.lr_lm,
            Self::Vision => optim.lr_vision,
        };
        own.unwrap_or(optim.learning_rate)
    }
}

/// A trained tensor with its optimizer state.
#[derive(Debug)]
struct Slot {
    name: String,
    part: ModelPart,
    param: Tensor,
    exp_avg: Tensor,
    exp_avg_sq: Tensor,
    step: Tensor,
    /// The exponential moving average of the tensor, if `ema_decay` is set.
    ema: Option<Tensor>,
}

/// AdamW (Loshchilov and Hutter 2019) with decoupled weight decay on every trained tensor. Its
/// defaults are PyTorch's: betas 0.9 and 0.999, eps 1e-8.
#[derive(Debug)]
pub struct AdamW {
    slots: Vec<Slot>,
    optim: OptimConfig,
}

impl AdamW {
    /// An optimizer for all trained parameters of `model`.
    pub fn of_model(model: &Vlm, optim: &OptimConfig) -> Self {
        let of_lm = model.params().trainable().into_iter().map(|(name, tensor)| {
            let part = if is_projector(&name) { ModelPart::Projector } else { ModelPart::Lm };
            (name, tensor, part)
        });
        let of_vision = model.vision_params().trainable().into_iter();
        let of_vision = of_vision.map(|(name, tensor)| (name, tensor, ModelPart::Vision));
        Self::new(of_lm.chain(of_vision).collect(), optim)
    }

    /// An optimizer for named tensors, with zero moments. It uses these settings of `optim`: the
    /// learning rates, `weight_decay`, `betas`, `eps` and `ema_decay`.
    pub fn new(params: Vec<(String, Tensor, ModelPart)>, optim: &OptimConfig) -> Self {
        let slot = |(name, param, part): (String, Tensor, ModelPart)| Slot {
            exp_avg: param.zeros_like().set_requires_grad(false),
            exp_avg_sq: param.zeros_like().set_requires_grad(false),
            step: Tensor::zeros([], (Kind::Float, param.device())),
            ema: optim.ema_decay.map(|_| param.detach().copy()),
            name,
            part,
            param,
        };
        Self { slots: params.into_iter().map(slot).collect(), optim: optim.clone() }
    }

    /// The tensors that are trained.
    pub fn params(&self) -> Vec<Tensor> {
        self.slots.iter().map(|slot| slot.param.shallow_clone()).collect()
    }

    /// Updates the tensors from their gradients. `rate` maps a configured learning rate to the
    /// current one (see `Schedule::rate`). Tensors without a gradient are not changed, unless
    /// `zero_unused_gradients` gives them one of zero.
    ///
    /// # Errors
    /// A failure of libtorch.
    pub fn step(&mut self, rate: impl Fn(f64) -> f64) -> Result<(), TrainError> {
        let mut rates: Vec<f64> =
            self.slots.iter().map(|slot| slot.part.learning_rate(&self.optim)).collect();
        rates.sort_by(f64::total_cmp);
        rates.dedup();
        for base in rates {
            self.step_with_rate(base, rate(base))?;
        }
        self.update_averages();
        Ok(())
    }

    /// Updates all tensors whose configured learning rate is `base`.
    fn step_with_rate(&self, base: f64, learning_rate: f64) -> Result<(), TrainError> {
        let zeroes = self.optim.zero_unused_gradients;
        let is_changed = |slot: &&Slot| {
            slot.part.learning_rate(&self.optim) == base && (zeroes || slot.param.grad().defined())
        };
        let list = |of: fn(&Slot) -> Tensor| {
            self.slots.iter().filter(is_changed).map(of).collect::<Vec<_>>()
        };
        let gradient = |slot: &Slot| {
            let grad = slot.param.grad();
            if grad.defined() { grad } else { slot.exp_avg.zeros_like() }
        };
        let [beta1, beta2] = self.optim.betas;
        let numbers = AdamWStep {
            lr: learning_rate,
            betas: (beta1, beta2),
            weight_decay: self.optim.weight_decay,
            eps: self.optim.eps,
        };
        fused_adamw_step(
            &list(|slot| slot.param.shallow_clone()),
            &list(gradient),
            &list(|slot| slot.exp_avg.shallow_clone()),
            &list(|slot| slot.exp_avg_sq.shallow_clone()),
            &list(|slot| slot.step.shallow_clone()),
            &numbers,
            LossScale::default(),
        )?;
        Ok(())
    }

    /// Updates the moving averages: `ema ← decay · ema + (1 − decay) · weights`.
    fn update_averages(&mut self) {
        let Some(decay) = self.optim.ema_decay else { return };
        tch::no_grad(|| {
            for slot in &mut self.slots {
                if let Some(ema) = &mut slot.ema {
                    _ = ema.lerp_(&slot.param, 1.0 - decay);
                }
            }
        });
    }

    /// The moving averages of the trained weights by name; `None` without `ema_decay`.
    pub fn averages(&self) -> Option<Vec<(String, Tensor)>> {
        self.optim.ema_decay?;
        let average = |slot: &Slot| Some((slot.name.clone(), slot.ema.as_ref()?.shallow_clone()));
        Some(self.slots.iter().filter_map(average).collect())
    }

    /// Moments, step counts and averages as named tensors, for a checkpoint.
    pub fn state(&self) -> Vec<(String, Tensor)> {
        let of = |slot: &Slot| {
            let mut state = vec![
                (format!("exp_avg/{}", slot.name), slot.exp_avg.shallow_clone()),
                (format!("exp_avg_sq/{}", slot.name), slot.exp_avg_sq.shallow_clone()),
                (format!("step/{}", slot.name), slot.step.shallow_clone()),
            ];
            let ema = slot.ema.as_ref().map(Tensor::shallow_clone);
            state.extend(ema.map(|ema| (format!("ema/{}", slot.name), ema)));
            state
        };
        self.slots.iter().flat_map(of).collect()
    }

    /// Restores a state that [`Self::state`] returned.
    ///
    /// # Errors
    /// A tensor that is missing or has another shape.
    pub fn load_state(&mut self, state: &[(String, Tensor)]) -> Result<(), TrainError> {
        for (name, mut own) in self.state() {
            let (_, saved) = state.iter().find(|(n, _)| *n == name).ok_or_else(|| {
                TrainError::Failed(format!(
                    "the checkpoint has no optimizer state {name}: its run trained other layers"
                ))
            })?;
            if saved.size() != own.size() {
                return Err(TrainError::Failed(format!(
                    "the checkpoint's optimizer state {name} has shape {:?}, expected {:?}",
                    saved.size(),
                    own.size()
                )));
            }
            tch::no_grad(|| own.copy_(saved));
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// One tensor of each part, all 1, with gradient 1.
    fn optimizer(optim: &OptimConfig) -> AdamW {
        let parts = [ModelPart::Projector, ModelPart::Lm, ModelPart::Vision];
        let params = parts.map(|part| {
            let param = Tensor::ones([2], (Kind::Float, tch::Device::Cpu)).set_requires_grad(true);
            param.sum(Kind::Float).backward();
            (format!("{part:?}"), param, part)
        });
        AdamW::new(params.into(), optim)
    }

    fn values(optimizer: &AdamW) -> Vec<f64> {
        optimizer.params().iter().map(|param| param.double_value(&[0])).collect()
    }

    #[test]
    fn each_part_is_updated_with_its_own_learning_rate() {
        let mut optim = OptimConfig::default();
        optim.learning_rate = 0.1;
        optim.lr_projector = Some(0.2);
        optim.lr_vision = Some(0.05);
        optim.weight_decay = 0.0;
        let mut optimizer = optimizer(&optim);
        optimizer.step(|rate| rate / 2.0).unwrap();
        // The first step of Adam is as large as the learning rate, for any gradient.
        for (found, expected) in values(&optimizer).iter().zip([0.9, 0.95, 0.975]) {
            assert!((found - expected).abs() < 1e-6, "{found} for {expected}");
        }
    }

    #[test]
    fn configured_weight_decay_betas_and_eps_give_the_values_of_torch() {
        // torch 2.11: p = torch.ones(2, requires_grad=True); o = torch.optim.AdamW([p], lr=0.1,
        // betas=(0.5, 0.6), eps=0.3, weight_decay=0.2); two steps with p.grad = 1 and 0.25.
        let mut optim = OptimConfig::default();
        optim.learning_rate = 0.1;
        optim.betas = [0.5, 0.6];
        optim.eps = 0.3;
        optim.weight_decay = 0.2;
        let mut optimizer = optimizer(&optim);
        optimizer.step(|rate| rate).unwrap();
        for param in optimizer.params() {
            _ = param.grad().fill_(0.25);
        }
        optimizer.step(|rate| rate).unwrap();
        assert!(
            (values(&optimizer)[0] - 0.832_019_925_117_492_7).abs() < 1e-6,
            "{:?}",
            values(&optimizer)
        );
    }

    #[test]
    fn a_gradient_of_zero_changes_a_tensor_by_momentum_and_no_gradient_does_not() {
        for (zeroes, expected) in [(false, 0.9), (true, 0.833)] {
            let mut optim = OptimConfig::default();
            optim.learning_rate = 0.1;
            optim.weight_decay = 0.0;
            optim.zero_unused_gradients = zeroes;
            let mut optimizer = optimizer(&optim);
            optimizer.step(|rate| rate).unwrap();
            vlm_torch::set_grad_none(&optimizer.params()).unwrap();
            optimizer.step(|rate| rate).unwrap();
            // torch 2.11: two steps of AdamW([p], lr=0.1, weight_decay=0) with p.grad = 1 and 0.
            let found = values(&optimizer)[0];
            assert!((found - expected).abs() < 1e-4, "{found} with {zeroes}");
        }
    }

    #[test]
    fn the_moving_average_is_updated_and_restored_with_the_state() {
        let mut optim = OptimConfig::default();
        optim.learning_rate = 0.1;
        optim.weight_decay = 0.0;
        optim.ema_decay = Some(0.75);
        let mut trained = optimizer(&optim);
        trained.step(|rate| rate).unwrap();
        let averages = trained.averages().unwrap();
        // 0.75 · 1 + 0.25 · 0.9
        assert!((averages[0].1.double_value(&[0]) - 0.975).abs() < 1e-6);
        let mut again = optimizer(&optim);
        again.load_state(&trained.state()).unwrap();
        assert!((again.averages().unwrap()[0].1.double_value(&[1]) - 0.975).abs() < 1e-6);
        assert!(optimizer(&OptimConfig::default()).averages().is_none());
    }
}
