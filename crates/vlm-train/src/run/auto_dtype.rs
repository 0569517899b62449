//! `dtype = auto`: on the CPU, the type in which the matrix products of the run are faster. Whether
//! that is bfloat16 depends on the CPU's instructions (AMX, AVX512-BF16) and on libtorch.

use std::time::{Duration, Instant};

use tch::{Device, Kind, Tensor};
use vlm_infer::{Dtype, Shapes, autocast_kind, default_dtype};

use crate::config::TrainConfig;
use crate::{TrainError, checkpoint};

/// Time for the measurement.
const BUDGET: Duration = Duration::from_millis(200);

/// Smallest number of rounds. The first compiles the products.
const MIN_ROUNDS: u32 = 4;

/// Number of rows of each product.
const ROWS: i64 = 256;

/// Bfloat16 is chosen if its products are faster by this factor, because losses are less exact in
/// bfloat16, and the rest of a step is hardly faster.
const MIN_SPEEDUP: f64 = 1.3;

/// The type for `dtype = auto`: that of the run to continue, which a measurement could miss. On the
/// CPU it is otherwise measured, and the rates of both types are logged; elsewhere it is the default
/// type.
///
/// # Errors
/// No memory left.
pub(super) fn choose(
    config: &TrainConfig,
    shapes: &Shapes,
    device: Device,
) -> Result<Dtype, TrainError> {
    if let Some(before) = dtype_to_resume(config) {
        return Ok(before);
    }
    if device != Device::Cpu {
        return Ok(default_dtype(device));
    }
    let products = Products::new(shapes, config.model.features.is_none());
    let [float32, bfloat16] = products.rates([Dtype::Float32, Dtype::Bfloat16])?;
    let chosen = if bfloat16 >= MIN_SPEEDUP * float32 { Dtype::Bfloat16 } else { Dtype::Float32 };
    let name = if chosen == Dtype::Bfloat16 { "bfloat16" } else { "float32" };
    tracing::info!(
        "`dtype` auto: {name} (matrix products: {float32:.0} GFLOP/s in float32, {bfloat16:.0} \
         GFLOP/s in bfloat16)"
    );
    Ok(chosen)
}

fn dtype_to_resume(config: &TrainConfig) -> Option<Dtype> {
    let folder = config.run.out_dir.join("checkpoints");
    let identity = checkpoint::identity_to_resume(config.run.resume.as_ref()?, &folder)?;
    serde_json::from_value(identity["dtype"].clone()).ok()
}

/// Inputs and weights of the largest products of the run's models.
struct Products {
    inputs_and_weights: Vec<(Tensor, Tensor)>,
    flops: f64,
}

impl Products {
    fn new(shapes: &Shapes, has_encoder: bool) -> Self {
        let (lm, vision) = (&shapes.lm, &shapes.vision);
        let mut sizes = vec![
            (lm.dim, lm.intermediate_size()),
            (lm.intermediate_size(), lm.dim),
            (lm.dim, lm.n_heads * lm.head_dim()),
        ];
        if has_encoder {
            let (width, inner) = (vision.hidden_size, vision.intermediate_size);
            sizes.extend([(width, inner), (inner, width), (width, width)]);
        }
        // Values do not matter for the time, and random ones would change those of the run.
        let ones = |shape: [i64; 2]| Tensor::ones(shape, (Kind::Float, Device::Cpu));
        let tensors = |&(from, to): &(i64, i64)| (ones([ROWS, from]), ones([to, from]));
        Self {
            flops: sizes.iter().map(|(from, to)| (2 * ROWS * from * to) as f64).sum(),
            inputs_and_weights: sizes.iter().map(tensors).collect(),
        }
    }

    /// GFLOP/s of the products in each type, from the fastest time of each product in several
    /// rounds: a product takes so little time that other load on the machine rarely interrupts it.
    fn rates<const N: usize>(&self, dtypes: [Dtype; N]) -> Result<[f64; N], TrainError> {
        let mut fastest = [(); N].map(|()| vec![f64::INFINITY; self.inputs_and_weights.len()]);
        let start = Instant::now();
        let mut round = 0;
        while round < MIN_ROUNDS || start.elapsed() < BUDGET {
            for (&dtype, fastest) in dtypes.iter().zip(&mut fastest) {
                let kind = autocast_kind(dtype);
                vlm_torch::autocast(Device::Cpu, kind, || self.round(fastest))??;
            }
            round += 1;
        }
        Ok(fastest.map(|seconds| self.flops / seconds.iter().sum::<f64>() / 1e9))
    }

    /// Computes each product, and lowers its fastest time.
    fn round(&self, fastest: &mut [f64]) -> Result<(), vlm_torch::Error> {
        for ((input, weight), fastest) in self.inputs_and_weights.iter().zip(fastest) {
            let start = Instant::now();
            drop(vlm_torch::linear(input, weight, None)?);
            *fastest = fastest.min(start.elapsed().as_secs_f64());
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use vlm_model::config::{LmConfig, ProjectorConfig, VisionConfig};

    use super::*;

    #[test]
    fn auto_chooses_a_type_that_needs_no_loss_scaling_and_measures_both() {
        let (lm, vision) = (LmConfig { dim: 32, ..LmConfig::default() }, VisionConfig::default());
        let projector = ProjectorConfig::default_for(&lm, &vision).unwrap();
        let shapes = Shapes { lm, vision, projector };
        let products = Products::new(&shapes, true);
        assert_eq!(products.inputs_and_weights.len(), 6);
        let rates = products.rates([Dtype::Float32, Dtype::Bfloat16]).unwrap();
        assert!(rates.iter().all(|rate| rate.is_finite() && *rate > 0.0), "{rates:?}");
        let chosen = choose(&TrainConfig::default(), &shapes, Device::Cpu).unwrap();
        assert_ne!(chosen, Dtype::Float16);
        assert_eq!(
            choose(&TrainConfig::default(), &shapes, Device::Cuda(0)).unwrap(),
            Dtype::Bfloat16
        );
    }
}
