//! Averages the gradients over the ranks during the backward pass. Does nothing for a single
//! process.

use serde_json::{Map, Value};
use tch::{Kind, Tensor};
use vlm_torch::{Reducer, ReducerOptions, clip_gradients, grad_norm, unscale_gradients};

use super::world::World;
use crate::TrainError;

/// Makes the gradients of all ranks equal.
#[derive(Debug)]
pub struct GradientSync<'a> {
    world: &'a World,
    reducer: Option<Reducer<'a>>,
}

impl<'a> GradientSync<'a> {
    /// Registers `params`, in the order in which the forward pass uses them. Collective: all ranks
    /// call it. With `is_sharded` the gradients are not averaged here, but by [`super::Shards`].
    ///
    /// # Errors
    /// Parameters that differ between the ranks; a rank that ended or hangs.
    pub fn new(
        world: &'a World,
        params: &[(String, Tensor)],
        is_sharded: bool,
    ) -> Result<Self, TrainError> {
        let Some(group) = world.group().filter(|_| !is_sharded) else {
            return Ok(Self { world, reducer: None });
        };
        let defaults = ReducerOptions::default();
        // A bucket is sent when all of its gradients are computed. With the default size the
        // buckets of a small model would be complete only at the end of the backward pass.
        let eighth = i64::try_from(gradient_bytes(params) / 8).unwrap_or(i64::MAX);
        let options = ReducerOptions {
            bucket_bytes: eighth.clamp(defaults.first_bucket_bytes, defaults.bucket_bytes),
            // A rank whose batch has no images computes no gradients for the projector.
            find_unused_parameters: true,
            ..defaults
        };
        let reducer =
            Reducer::new(group, params, &options).map_err(|e| world.with_rank_context(e))?;
        Ok(Self { world, reducer: Some(reducer) })
    }

    /// Call it before a forward pass whose gradients are to be averaged.
    ///
    /// # Errors
    /// A failure of libtorch.
    pub fn prepare_forward(&self) -> Result<(), TrainError> {
        let Some(reducer) = &self.reducer else { return Ok(()) };
        reducer.prepare_forward().map_err(|e| self.world.with_rank_context(e))
    }

    /// Runs the backward pass of this rank's `loss`. With `average`, which requires
    /// [`Self::prepare_forward`], the gradients are averaged over the ranks; a rank without a loss
    /// then uses `zero_loss`.
    ///
    /// # Errors
    /// A failure of libtorch; a rank that ended or hangs.
    pub fn backward(
        &self,
        loss: Option<Tensor>,
        average: bool,
        zero_loss: impl FnOnce() -> Tensor,
    ) -> Result<(), TrainError> {
        let reducer = self.reducer.as_ref().filter(|_| average);
        let loss = loss.or_else(|| reducer.map(|_| zero_loss()));
        let Some(loss) = loss else { return Ok(()) };
        if let Some(reducer) = reducer {
            reducer.prepare_backward(&loss).map_err(|e| self.world.with_rank_context(e))?;
        }
        loss.f_backward().map_err(|error| match reducer {
            Some(_) => self.world.with_rank_context(vlm_torch::plain_message(&error)),
            None => vlm_model::ModelError::from(error).into(),
        })?;
        self.world.check_not_aborted()
    }

    /// The norm of the gradients of `params`, a scalar on their device, which is the same on all
    /// ranks. The gradients are then clipped to `max_norm`.
    ///
    /// # Errors
    /// A failure of libtorch; a rank that ended or hangs.
    pub fn clip_grad_norm(&self, params: &[Tensor], max_norm: f64) -> Result<Tensor, TrainError> {
        let norm = grad_norm(params)?;
        if let Some(group) = self.world.group() {
            // All ranks use rank 0's norm. Their gradients are equal, but a rank with another number
            // of threads may sum the squares in another order, and ranks that clip or skip
            // differently no longer have equal weights.
            let sent = group.broadcast(&[norm.view([1])], 0);
            sent.map_err(|e| self.world.with_rank_context(e))?;
        }
        if max_norm.is_finite() {
            clip_gradients(params, &norm, max_norm)?;
        }
        Ok(norm)
    }

    /// The cost of the communication, for `summary.json`: number of ranks, bytes sent for each
    /// update, time spent, and how much of that time the backward pass hid. Empty for a single
    /// process.
    ///
    /// # Errors
    /// A failure of libtorch.
    pub fn statistics(&self) -> Result<Map<String, Value>, TrainError> {
        let Some(reducer) = &self.reducer else { return Ok(Map::new()) };
        let times = reducer.times()?;
        let (gradient_bytes, buckets) = reducer.bucket_bytes()?;
        let millis = |time: std::time::Duration| time.as_secs_f64() * 1e3;
        let hidden = times.hidden.as_secs_f64() / times.communication.as_secs_f64().max(1e-9);
        let value = serde_json::json!({
            "world_size": self.world.world_size(),
            "gradient_bytes_per_update": gradient_bytes,
            "gradient_buckets": buckets,
            "forward_ms": millis(times.forward),
            "backward_ms": millis(times.backward),
            "communication_ms": millis(times.communication),
            "communication_hidden_ms": millis(times.hidden),
            "communication_hidden_share": hidden,
        });
        Ok(value.as_object().cloned().unwrap_or_default())
    }
}

/// Multiplies the gradients of `params` by `factor`, without waiting for the device.
///
/// # Errors
/// A failure of libtorch.
pub fn scale_gradients(params: &[Tensor], factor: f64) -> Result<(), TrainError> {
    let Some(first) = params.first() else { return Ok(()) };
    let scalar = |value: f64| Tensor::full([1], value, (Kind::Float, first.device()));
    Ok(unscale_gradients(params, &scalar(factor), &mut scalar(0.0))?)
}

/// Size of the gradients of `params`, in bytes. In a ring all-reduce each rank sends
/// `2 · (world_size - 1) / world_size` times as much for each update.
pub fn gradient_bytes(params: &[(String, Tensor)]) -> u64 {
    params.iter().map(|(_, t)| (t.numel() * t.kind().elt_size_in_bytes()) as u64).sum()
}
