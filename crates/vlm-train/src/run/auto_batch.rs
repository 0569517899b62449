//! The setting `auto_batch_size`: finds the largest micro-batch that fits into the memory of the GPU,
//! by a trial with the largest rows that the settings allow.

use std::path::Path;

use serde_json::Value;
use tch::{Device, Kind, Tensor};
use vlm_data::{Batch, Features, FeaturesDtype, ImageData, ImagePosition, Padding};
use vlm_infer::autocast_kind;
use vlm_infer::device_batch::Transfer;
use vlm_model::{ModelError, Vlm};

use super::parts::Parts;
use crate::TrainError;
use crate::config::{OptimConfig, TrainConfig};
use crate::optimizer::AdamW;
use crate::out_of_memory::{is_out_of_memory, with_memory_advice};
use crate::parallel::World;

/// Fraction of the memory that the trial leaves free: for NCCL, for memory that is divided into parts
/// too small to be used, and for the CUDA context.
const RESERVE: f64 = 0.05;

/// Divides the micro-batches of `config` so that they fit into the memory of the GPU. A run that is
/// resumed keeps the division of the run to continue. Returns whether the configuration was changed.
/// Collective.
///
/// # Errors
/// There is no GPU; a single row does not fit; a batch size that cannot be halved.
pub(super) fn fit(
    config: &mut TrainConfig,
    parts: &Parts,
    world: &World,
) -> Result<bool, TrainError> {
    if !config.optim.auto_batch_size {
        return Ok(false);
    }
    let given = config.optim.batch_size;
    // The trial would have its own memory on the CPU, where memory ends with the end of the process.
    let Device::Cuda(_) = parts.device else {
        return Err(TrainError::Usage(
            "`auto_batch_size` needs a GPU, but `device` is the CPU; set `batch_size` and \
             `accumulation_steps`"
                .to_owned(),
        ));
    };
    if config.run.resume.is_some() {
        let recorded = world.is_first_rank().then(|| recorded(config)).flatten();
        if let Some(factor) = world.broadcast(recorded)? {
            divide(&mut config.optim, &mut config.run.max_steps, factor);
            return Ok(factor > 1);
        }
    }
    let own = largest_factor(config, parts, world);
    let factor = world.all_ready(own)?;
    let factor = world.gather(&factor)?.into_iter().max().unwrap_or(factor);
    divide(&mut config.optim, &mut config.run.max_steps, factor);
    if world.is_first_rank() {
        let OptimConfig { batch_size, accumulation_steps, .. } = config.optim;
        tracing::info!(
            "`auto_batch_size`: micro-batches of {batch_size} rows, of which {accumulation_steps} \
             make an update (`batch_size` is {given})"
        );
    }
    Ok(factor > 1)
}

/// Makes the micro-batches smaller by `factor`, without a change of the rows of an update. Lengths in
/// micro-batches grow by the same factor.
fn divide(optim: &mut OptimConfig, max_steps: &mut Option<u64>, factor: u64) {
    optim.batch_size /= factor as usize;
    optim.accumulation_steps *= factor;
    optim.warmup_iters *= factor;
    *max_steps = max_steps.map(|steps| steps * factor);
}

/// The factor by which the run in the out-dir divided its micro-batches, if there is such a run with
/// the same number of rows in an update.
fn recorded(config: &TrainConfig) -> Option<u64> {
    let text = std::fs::read_to_string(Path::new(&config.run.out_dir).join("config.json")).ok()?;
    let recorded: Value = serde_json::from_str(&text).ok()?;
    let number = |name: &str| recorded.pointer(name)?.as_u64();
    let factor = config.optim.batch_size as u64 / number("/run/optim/batch_size")?.max(1);
    let is_same = factor > 0
        && number("/run/optim/batch_size")? * factor == config.optim.batch_size as u64
        && number("/run/optim/accumulation_steps")? == config.optim.accumulation_steps * factor;
    is_same.then_some(factor)
}

/// The smallest power of two by which the micro-batch must be divided to fit.
fn largest_factor(config: &TrainConfig, parts: &Parts, world: &World) -> Result<u64, TrainError> {
    let mut factor = 1;
    loop {
        let batch_size = config.optim.batch_size / factor;
        let tried = with_memory_advice(None, || try_step(config, parts, world, batch_size));
        vlm_torch::empty_cache(parts.device)?;
        match tried {
            Ok(()) => return Ok(factor as u64),
            Err(error) if !is_out_of_memory(&error.to_string()) => return Err(error),
            Err(error) if batch_size % 2 == 1 => {
                return Err(error.during(&format!(
                    "`auto_batch_size`: a micro-batch of {batch_size} rows does not fit, and it \
                     cannot be halved"
                )));
            }
            Err(_) => factor *= 2,
        }
    }
}

/// Makes a step with a model of the same shapes.
fn try_step(
    config: &TrainConfig,
    parts: &Parts,
    world: &World,
    batch_size: usize,
) -> Result<(), TrainError> {
    let shapes = &parts.shapes;
    let build = match config.model.features {
        None => Vlm::with_projector,
        Some(_) => Vlm::without_encoder,
    };
    let mut model = build(&shapes.lm, &shapes.vision, &shapes.projector, parts.device)?;
    model.freeze(&config.model.freeze);
    model.set_activation_checkpointing(config.model.activation_checkpointing);
    let Device::Cuda(index) = parts.device else { return Ok(()) };
    let (_, total) = vlm_torch::cuda_memory(index)?;
    let bytes = |bytes: u64| {
        Tensor::f_empty([bytes as i64], (Kind::Uint8, parts.device)).map_err(ModelError::from)
    };
    let _reserve = bytes((total as f64 * RESERVE) as u64)?;
    let _optimizer_state: (Option<AdamW>, Option<Tensor>) = match config.run.shard_optimizer {
        false => (Some(AdamW::of_model(&model, &config.optim)), None),
        true => {
            let weights = crate::parallel::gradient_bytes(&model.trainable());
            // The moments of a part of the weights, and its gradients.
            (None, Some(bytes(3 * weights / world.world_size() as u64)?))
        }
    };
    let batch = largest_batch(config, parts, batch_size);
    let sent = Transfer::new(parts.device, &parts.processor).send(&batch)?;
    let loss = vlm_torch::autocast(parts.device, autocast_kind(parts.dtype), || {
        model.loss(&sent.model, &sent.supervised, &sent.targets, true)
    })
    .map_err(TrainError::from)??;
    loss.sum.f_backward().map_err(ModelError::from)?;
    // Errors of the device are reported here.
    f64::try_from(&loss.sum).map_err(ModelError::from)?;
    Ok(())
}

/// A batch of rows of `max_seq_len` tokens, each with one image; all other tokens are supervised.
fn largest_batch(config: &TrainConfig, parts: &Parts, batch_size: usize) -> Batch {
    let (lm, vision) = (&parts.shapes.lm, &parts.shapes.vision);
    let num_image_tokens = parts.shapes.tokens_per_image();
    let seq_len = config.data.max_seq_len.saturating_sub(1).max(num_image_tokens + 1);
    let label = |at: usize| {
        if at % seq_len < num_image_tokens {
            vlm_data::IGNORE_INDEX
        } else {
            at as i64 % lm.vocab_size
        }
    };
    let num_tokens = batch_size * seq_len;
    let image_data = match config.model.features {
        None => {
            let side = parts.processor.image_size();
            ImageData::Pixels(vec![0; batch_size * side * side * 3])
        }
        Some(_) => {
            let (num_patches, hidden_size) =
                (vision.num_patches() as usize, vision.hidden_size as usize);
            ImageData::Features(Features {
                bytes: vec![0; batch_size * num_patches * hidden_size * 4].into(),
                dtype: FeaturesDtype::Float32,
                num_patches,
                hidden_size,
            })
        }
    };
    Batch {
        rows: (0..batch_size).collect(),
        batch_size,
        seq_len,
        is_packed: config.data.padding == Padding::None,
        input_ids: (0..num_tokens).map(|at| at as i64 % lm.vocab_size).collect(),
        labels: (0..num_tokens).map(label).collect(),
        lengths: vec![seq_len; batch_size],
        image_data,
        images: (0..batch_size).map(|row| ImagePosition { row, start: 0 }).collect(),
        num_supervised: batch_size * (seq_len - num_image_tokens),
        ..Batch::default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn smaller_micro_batches_make_the_same_updates() {
        let mut config = TrainConfig::default();
        config.optim.batch_size = 16;
        config.optim.accumulation_steps = 3;
        config.optim.warmup_iters = 10;
        config.run.max_steps = Some(100);
        divide(&mut config.optim, &mut config.run.max_steps, 4);
        let OptimConfig { batch_size, accumulation_steps, warmup_iters, .. } = config.optim;
        assert_eq!((batch_size, accumulation_steps, warmup_iters), (4, 12, 40));
        assert_eq!(config.run.max_steps, Some(400));
    }

    #[test]
    fn a_resumed_run_keeps_the_division_of_the_run_to_continue() {
        let folder = tempfile::tempdir().unwrap();
        let mut config = TrainConfig::default();
        config.run.out_dir = folder.path().to_owned();
        config.optim.batch_size = 16;
        assert_eq!(recorded(&config), None);
        let write = |batch_size: u64, accumulation_steps: u64| {
            let optim = serde_json::json!({
                "batch_size": batch_size, "accumulation_steps": accumulation_steps,
            });
            let text = serde_json::json!({"run": {"optim": optim}}).to_string();
            std::fs::write(folder.path().join("config.json"), text).unwrap();
        };
        write(4, 4);
        assert_eq!(recorded(&config), Some(4));
        write(4, 2);
        assert_eq!(recorded(&config), None);
    }
}
