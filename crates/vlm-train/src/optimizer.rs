//! AdamW with a state that can be saved and restored, and with an exponential moving average of the
//! weights. With [`Shards`], a rank has only the state of its part of the weights.

use std::collections::BTreeMap;

use tch::{Kind, Tensor};
use vlm_model::Vlm;
use vlm_torch::{AdamWStep, LossScale, fused_adamw_step};

use crate::TrainError;
use crate::config::OptimConfig;
pub use crate::model_part::ModelPart;
use crate::model_part::named_parts;
use crate::optimizer_slot::{Slot, SlotPiece, kinds_of_state};
use crate::parallel::{Shards, World};

/// AdamW (Loshchilov and Hutter 2019) with decoupled weight decay on every trained tensor, or on
/// all but norms and biases. Its defaults are PyTorch's: betas 0.9 and 0.999, eps 1e-8.
#[derive(Debug)]
pub struct AdamW {
    params: Vec<Tensor>,
    slots: Vec<Slot>,
    optim: OptimConfig,
}

impl AdamW {
    /// An optimizer for all trained parameters of `model`.
    pub fn of_model(model: &Vlm, optim: &OptimConfig) -> Self {
        Self::new(named_parts(model), optim)
    }

    /// An optimizer for this rank's part of the trained parameters of `model`, which `shards`
    /// divides.
    pub fn sharded(model: &Vlm, shards: &Shards, optim: &OptimConfig) -> Self {
        let params: Vec<_> = named_parts(model);
        let parts: BTreeMap<&str, ModelPart> =
            params.iter().map(|(name, _, part)| (name.as_str(), *part)).collect();
        let tensors: Vec<(&str, &[i64])> = shards.shapes().collect();
        let slot = |(piece, param, gradient): (crate::parallel::Piece, Tensor, Tensor)| {
            let (name, shape) = tensors[piece.tensor];
            let own = SlotPiece {
                tensor: piece.tensor,
                elements: piece.elements,
                gradient,
                has_gradient: false,
            };
            let has_ema = optim.ema_decay.is_some();
            Slot::new(name.to_owned(), param, shape.len(), parts[name], Some(own), has_ema)
        };
        let slots = shards.pieces().into_iter().map(slot).collect();
        let params = params.into_iter().map(|(_, tensor, _)| tensor).collect();
        Self { params, slots, optim: optim.clone() }
    }

    /// An optimizer for named tensors, with zero moments. It uses these settings of `optim`: the
    /// learning rates, `weight_decay`, `decay_norms_and_biases`, `betas`, `eps` and `ema_decay`.
    pub fn new(params: Vec<(String, Tensor, ModelPart)>, optim: &OptimConfig) -> Self {
        let tensors = params.iter().map(|(_, tensor, _)| tensor.shallow_clone()).collect();
        let slot = |(name, param, part): (String, Tensor, ModelPart)| {
            let num_dims = param.dim();
            Slot::new(name, param, num_dims, part, None, optim.ema_decay.is_some())
        };
        let slots = params.into_iter().map(slot).collect();
        Self { params: tensors, slots, optim: optim.clone() }
    }

    /// The tensors that are trained, on all ranks.
    pub fn params(&self) -> Vec<Tensor> {
        self.params.iter().map(Tensor::shallow_clone).collect()
    }

    /// Sets which tensors have a gradient, in the result of [`Shards::reduce`].
    pub fn set_used(&mut self, is_used: &[bool]) {
        for piece in self.slots.iter_mut().filter_map(|slot| slot.piece.as_mut()) {
            piece.has_gradient = is_used[piece.tensor];
        }
    }

    /// Updates the tensors from their gradients. `rate` maps a configured learning rate to the
    /// current one (see `Schedule::rate`). Tensors without a gradient are not changed, unless
    /// `zero_unused_gradients` gives them one of zero. If `found_inf` (one float32 on the device) is
    /// 1, the step changes nothing; it must be `None` with `ema_decay`.
    ///
    /// # Errors
    /// A failure of libtorch.
    pub fn step(
        &mut self,
        rate: impl Fn(f64) -> f64,
        found_inf: Option<&Tensor>,
    ) -> Result<(), TrainError> {
        let mut groups: Vec<(f64, f64)> =
            self.slots.iter().map(|slot| slot.rate_and_decay(&self.optim)).collect();
        groups.sort_by(|(rate, decay), other| {
            rate.total_cmp(&other.0).then(decay.total_cmp(&other.1))
        });
        groups.dedup();
        for group in groups {
            self.step_of_group(group, rate(group.0), found_inf)?;
        }
        self.update_averages();
        Ok(())
    }

    /// Updates all tensors with this configured learning rate and weight decay.
    fn step_of_group(
        &self,
        group: (f64, f64),
        learning_rate: f64,
        found_inf: Option<&Tensor>,
    ) -> Result<(), TrainError> {
        let zeroes = self.optim.zero_unused_gradients;
        let is_changed = |slot: &&Slot| {
            slot.rate_and_decay(&self.optim) == group && (zeroes || slot.gradient().is_some())
        };
        let list = |of: fn(&Slot) -> Tensor| {
            self.slots.iter().filter(is_changed).map(of).collect::<Vec<_>>()
        };
        let gradient = |slot: &Slot| slot.gradient().unwrap_or_else(|| slot.exp_avg.zeros_like());
        let [beta1, beta2] = self.optim.betas;
        let numbers = AdamWStep {
            lr: learning_rate,
            betas: (beta1, beta2),
            weight_decay: group.1,
            eps: self.optim.eps,
        };
        fused_adamw_step(
            &list(|slot| slot.param.shallow_clone()),
            &list(gradient),
            &list(|slot| slot.exp_avg.shallow_clone()),
            &list(|slot| slot.exp_avg_sq.shallow_clone()),
            &list(|slot| slot.step.shallow_clone()),
            &numbers,
            LossScale { found_inf, ..LossScale::default() },
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

    /// Moments, step counts and averages as named tensors, for a checkpoint. Without [`Shards`].
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

    /// The same state as that of [`Self::state`], from the pieces of all ranks; on rank 0 only.
    /// Collective.
    ///
    /// # Errors
    /// See [`World`].
    pub fn gather_state(
        &self,
        world: &World,
        shards: &Shards,
    ) -> Result<Vec<(String, Tensor)>, TrainError> {
        let mut state = Vec::new();
        for kind in kinds_of_state(&self.optim) {
            let of_kind = |slot: &Slot| {
                let found = slot.tensors().into_iter().find(|(name, _)| *name == kind);
                found.map(|(_, tensor)| tensor.to_device(tch::Device::Cpu))
            };
            let own: Vec<Tensor> = self.slots.iter().filter_map(of_kind).collect();
            let whole = shards.gather(&own)?;
            state
                .extend(whole.into_iter().map(|(name, tensor)| (format!("{kind}/{name}"), tensor)));
        }
        // All pieces of a tensor have made the same steps.
        let mut steps = BTreeMap::new();
        for slot in &self.slots {
            let step = f64::try_from(&slot.step).map_err(vlm_model::ModelError::from)?;
            steps.insert(slot.name.clone(), step);
        }
        for (name, step) in world.gather(&steps)?.into_iter().flatten() {
            steps.insert(name, step);
        }
        let named = |(name, step)| (format!("step/{name}"), Tensor::from(step as f32));
        state.extend(steps.into_iter().map(named));
        Ok(if world.is_first_rank() { state } else { Vec::new() })
    }

    /// Restores on all ranks the `state` of rank 0, which has the form of [`Self::state`].
    /// Collective.
    ///
    /// # Errors
    /// See [`World`].
    pub fn scatter_state(
        &mut self,
        world: &World,
        shards: &Shards,
        state: &[(String, Tensor)],
    ) -> Result<(), TrainError> {
        let kinds = kinds_of_state(&self.optim);
        for (name, shape) in shards.shapes() {
            for (kind, shape) in kinds.iter().map(|&kind| (kind, shape)).chain([("step", &[][..])])
            {
                let key = format!("{kind}/{name}");
                let saved = state.iter().find(|(saved, _)| *saved == key).map(|(_, tensor)| tensor);
                let whole = match saved {
                    Some(saved) => saved.to_device(tch::Device::Cpu).to_kind(Kind::Float).copy(),
                    None => Tensor::zeros(shape, (Kind::Float, tch::Device::Cpu)),
                };
                world.send_to_all(&whole)?;
                for slot in self.slots.iter_mut().filter(|slot| slot.name == name) {
                    slot.restore(kind, &whole);
                }
            }
        }
        Ok(())
    }

    /// Restores a state that [`Self::state`] returned.
    ///
    /// # Errors
    /// A tensor that is missing or has another shape.
    pub fn load_state(&mut self, state: &[(String, Tensor)]) -> Result<(), TrainError> {
        for (name, mut own) in self.state() {
            let saved = find_state(state, &name, &own.size())?;
            tch::no_grad(|| own.copy_(saved));
        }
        Ok(())
    }

    /// Checks that a state in the form of [`Self::state`] has all tensors that `shards` divides.
    ///
    /// # Errors
    /// As [`Self::load_state`].
    pub fn check_state(
        &self,
        shards: &Shards,
        state: &[(String, Tensor)],
    ) -> Result<(), TrainError> {
        for (name, shape) in shards.shapes() {
            for kind in kinds_of_state(&self.optim) {
                find_state(state, &format!("{kind}/{name}"), shape)?;
            }
            find_state(state, &format!("step/{name}"), &[])?;
        }
        Ok(())
    }
}

/// The tensor `name` of a saved state.
fn find_state<'a>(
    state: &'a [(String, Tensor)],
    name: &str,
    shape: &[i64],
) -> Result<&'a Tensor, TrainError> {
    let (_, saved) = state.iter().find(|(found, _)| found == name).ok_or_else(|| {
        TrainError::Failed(format!(
            "the checkpoint has no optimizer state {name}: its run trained other layers"
        ))
    })?;
    if saved.size() != shape {
        return Err(TrainError::Failed(format!(
            "the checkpoint's optimizer state {name} has shape {:?}, expected {shape:?}",
            saved.size(),
        )));
    }
    Ok(saved)
}

/// The moving averages in a state, by the names of their weights; `None` without `ema_decay`.
pub fn averages_in(state: &[(String, Tensor)]) -> Option<Vec<(String, Tensor)>> {
    let average = |(name, tensor): &(String, Tensor)| {
        Some((name.strip_prefix("ema/")?.to_owned(), tensor.shallow_clone()))
    };
    let averages: Vec<_> = state.iter().filter_map(average).collect();
    (!averages.is_empty()).then_some(averages)
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
        optimizer.step(|rate| rate / 2.0, None).unwrap();
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
        optimizer.step(|rate| rate, None).unwrap();
        for param in optimizer.params() {
            _ = param.grad().fill_(0.25);
        }
        optimizer.step(|rate| rate, None).unwrap();
        assert!(
            (values(&optimizer)[0] - 0.832_019_925_117_492_7).abs() < 1e-6,
            "{:?}",
            values(&optimizer)
        );
    }

    #[test]
    fn norms_and_biases_can_be_without_weight_decay() {
        let mut optim = OptimConfig::default();
        optim.learning_rate = 0.1;
        optim.weight_decay = 0.5;
        let weights_after_a_step = |optim: &OptimConfig| {
            let params = [vec![2], vec![2, 1]].map(|shape: Vec<i64>| {
                let param = Tensor::ones(&shape, (Kind::Float, tch::Device::Cpu));
                let param = param.set_requires_grad(true);
                param.sum(Kind::Float).backward();
                (format!("{shape:?}"), param, ModelPart::Lm)
            });
            let mut optimizer = AdamW::new(params.into(), optim);
            optimizer.step(|rate| rate, None).unwrap();
            optimizer.params().iter().map(|p| p.sum(Kind::Double).double_value(&[]) / 2.0).collect()
        };
        // torch 2.11: one step of AdamW([{"params": [bias], "weight_decay": d}, {"params":
        // [matrix]}], lr=0.1, weight_decay=0.5) on ones with gradient 1: 0.95 - 0.1, or 1 - 0.1.
        let both: Vec<f64> = weights_after_a_step(&optim);
        assert!((both[0] - 0.85).abs() < 1e-6 && (both[1] - 0.85).abs() < 1e-6, "{both:?}");
        optim.decay_norms_and_biases = false;
        let matrix_alone: Vec<f64> = weights_after_a_step(&optim);
        let [bias, matrix] = matrix_alone[..] else { panic!("{matrix_alone:?}") };
        assert!((bias - 0.9).abs() < 1e-6 && (matrix - 0.85).abs() < 1e-6, "{matrix_alone:?}");
    }

    #[test]
    fn a_gradient_of_zero_changes_a_tensor_by_momentum_and_no_gradient_does_not() {
        for (zeroes, expected) in [(false, 0.9), (true, 0.833)] {
            let mut optim = OptimConfig::default();
            optim.learning_rate = 0.1;
            optim.weight_decay = 0.0;
            optim.zero_unused_gradients = zeroes;
            let mut optimizer = optimizer(&optim);
            optimizer.step(|rate| rate, None).unwrap();
            vlm_torch::set_grad_none(&optimizer.params()).unwrap();
            optimizer.step(|rate| rate, None).unwrap();
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
        trained.step(|rate| rate, None).unwrap();
        let averages = averages_in(&trained.state()).unwrap();
        // 0.75 · 1 + 0.25 · 0.9
        assert!((averages[0].1.double_value(&[0]) - 0.975).abs() < 1e-6);
        let mut again = optimizer(&optim);
        again.load_state(&trained.state()).unwrap();
        assert!(
            (averages_in(&again.state()).unwrap()[0].1.double_value(&[1]) - 0.975).abs() < 1e-6
        );
        assert!(averages_in(&optimizer(&OptimConfig::default()).state()).is_none());
    }
}
