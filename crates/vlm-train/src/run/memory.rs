//! Checks before the start whether the run fits into the memory of the GPU.

use tch::Device;
use vlm_infer::{Dtype, Shapes};
use vlm_shapes::{Memory, MemoryLoad};

use crate::TrainError;
use crate::config::TrainConfig;
use crate::out_of_memory::{REMEDIES, mib};
use crate::parallel::World;

/// Checks that weights, gradients and optimizer state fit into the free memory of the GPU, and logs
/// an estimate of all parts. Nothing is checked on the CPU.
///
/// # Errors
/// They do not fit.
pub(super) fn check(
    config: &TrainConfig,
    shapes: &Shapes,
    device: Device,
    dtype: Dtype,
    world: &World,
) -> Result<(), TrainError> {
    let Device::Cuda(index) = device else { return Ok(()) };
    // The driver may not report it; the run then starts without this check.
    let Ok((free, total)) = vlm_torch::cuda_memory(index) else { return Ok(()) };
    let memory = estimate(config, shapes, dtype, world.world_size() as u64);
    let message = compare(&memory, free, total, config.optim.batch_size)?;
    if world.is_first_rank() {
        match message {
            Message::Fits(text) => tracing::info!("{text}"),
            Message::MayNotFit(text) => tracing::warn!("{text}"),
        }
    }
    Ok(())
}

fn estimate(config: &TrainConfig, shapes: &Shapes, dtype: Dtype, world_size: u64) -> Memory {
    let load = MemoryLoad {
        batch_size: config.optim.batch_size as u64,
        seq_len: config.data.max_seq_len as u64,
        supervised: config.data.max_seq_len.saturating_sub(shapes.tokens_per_image()) as u64,
        images: 1,
        features_are_cached: config.model.features.is_some(),
        is_half: dtype != Dtype::Float32,
        activation_checkpointing: config.model.activation_checkpointing,
        optimizer_shards: if config.run.shard_optimizer { world_size } else { 1 },
    };
    let Shapes { lm, vision, projector } = shapes;
    Memory::estimate(lm, vision, projector, &config.model.freeze, &load)
}

/// The result of the comparison, with its text.
#[derive(Debug)]
enum Message {
    Fits(String),
    MayNotFit(String),
}

fn compare(
    memory: &Memory,
    free: u64,
    total: u64,
    batch_size: usize,
) -> Result<Message, TrainError> {
    let Memory { weights, half_weights, gradients, optimizer, activations } = *memory;
    let parts = format!(
        "{} of weights, {} of gradients and {} of optimizer state",
        mib(weights),
        mib(gradients),
        mib(optimizer)
    );
    let gpu = format!("the GPU has {} free of {}", mib(free), mib(total));
    if memory.fixed() > free {
        return Err(TrainError::Usage(format!(
            "the run does not fit into the memory of the GPU: it needs {parts}, but {gpu}. Train \
             fewer blocks (`unfreeze_last_layers` instead of `train_lm`), use cached `features` \
             instead of the vision encoder, divide the optimizer state among several GPUs with \
             `shard_optimizer`, or end other programs on this GPU"
        )));
    }
    let text = format!(
        "estimated memory: {parts}, up to {} of weights in 16 bits and {} of activations for {} \
         rows of `max_seq_len` tokens; {gpu}",
        mib(half_weights),
        mib(activations),
        batch_size
    );
    Ok(if memory.total() <= free {
        Message::Fits(text)
    } else {
        Message::MayNotFit(format!("{text}. The run may run out of memory. {REMEDIES}"))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_run_that_cannot_fit_is_refused_and_one_that_may_not_fit_gets_a_warning() {
        let memory = Memory {
            weights: 400 << 20,
            half_weights: 200 << 20,
            gradients: 100 << 20,
            optimizer: 200 << 20,
            activations: 300 << 20,
        };
        let of = |free: u64| compare(&memory, free << 20, 2000 << 20, 16);
        let refused = of(699).unwrap_err();
        assert!(
            refused.is_usage() && refused.to_string().contains("`shard_optimizer`"),
            "{refused}"
        );
        assert!(refused.to_string().contains("400.0 MiB of weights"), "{refused}");
        assert!(matches!(of(700), Ok(Message::MayNotFit(text)) if text.contains("`batch_size`")));
        assert!(matches!(of(1200), Ok(Message::Fits(_))));
    }
}
