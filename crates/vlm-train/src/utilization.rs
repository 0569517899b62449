//! Model FLOPs utilisation (MFU, Chowdhery et al. 2022, appendix B): the operations that a step
//! needs, per second, as a share of those that the devices could do.

use std::time::Duration;

use serde_json::{Map, Value, json};
use tch::{Device, Kind};
use vlm_data::{Batch, ImageData};
use vlm_infer::{Dtype, Shapes, autocast_kind};
use vlm_model::FreezePolicy;
use vlm_model::config::{BatchShape, GpuPeak, StepFlops};

use crate::TrainError;
use crate::parallel::World;

/// Time of the measurement of the matrix rate.
const MEASUREMENT: Duration = Duration::from_millis(200);
/// Largest number of rows of a measured product on the CPU, where it is enough to reach the full
/// rate, and on a GPU.
const MAX_ROWS: [i64; 2] = [512, 8192];

/// Counts the operations of the steps of a run, and knows the rate of its devices.
#[derive(Debug)]
pub struct Utilization {
    shapes: Shapes,
    freeze: FreezePolicy,
    /// Rate of matrix products of the devices of all ranks together, in operations per second;
    /// `None` if that of any rank is unknown.
    matrix_rate: Option<f64>,
    /// Where the rate is from.
    source: String,
}

impl Utilization {
    /// Determines the rate of the devices for products of `dtype`: from the data sheet of a known
    /// GPU, else by a measurement of 0.2 s on sizes of the model. Collective: all ranks call it.
    ///
    /// # Errors
    /// A rank that ended or hangs.
    pub fn new(
        shapes: &Shapes,
        freeze: &FreezePolicy,
        device: Device,
        dtype: Dtype,
        world: &World,
    ) -> Result<Self, TrainError> {
        let (own, source) = match data_sheet_rate(device, dtype) {
            Some((rate, name)) => (Some(rate), format!("data sheet of {name}")),
            None => (measured_rate(shapes, device, dtype), "measured".to_owned()),
        };
        let [sum, num_unknown] = world.sum([own.unwrap_or(0.0), f64::from(own.is_none())])?;
        Ok(Self {
            shapes: shapes.clone(),
            freeze: freeze.clone(),
            matrix_rate: (num_unknown == 0.0).then_some(sum),
            source,
        })
    }

    /// Rate of matrix products of all devices of the run, in operations per second.
    pub fn matrix_rate(&self) -> Option<f64> {
        self.matrix_rate
    }

    /// Number of operations that forward and backward pass of `batch` need.
    pub fn flops(&self, batch: &Batch) -> u64 {
        let shape = BatchShape {
            lengths: &batch.lengths,
            supervised: batch.num_supervised,
            images: batch.images.len(),
            encodes_images: matches!(batch.image_data, ImageData::Pixels(_)),
        };
        let Shapes { lm, vision, projector } = &self.shapes;
        StepFlops::count(lm, vision, projector, &self.freeze, &shape).total() as u64
    }

    /// The rate and its source, for `summary.json`; empty if it is unknown.
    pub fn entries(&self) -> Map<String, Value> {
        let entry =
            |rate| json!({"matrix_flops_per_sec": rate, "matrix_flops_source": self.source});
        self.matrix_rate.map(entry).and_then(|entry| entry.as_object().cloned()).unwrap_or_default()
    }
}

/// The peak rate of a known GPU, and its name.
fn data_sheet_rate(device: Device, dtype: Dtype) -> Option<(f64, &'static str)> {
    let Device::Cuda(index) = device else { return None };
    let gpu = GpuPeak::of_device(&vlm_torch::cuda_device_name(index)?)?;
    let rate = if dtype == Dtype::Float32 { gpu.float32 } else { gpu.half };
    Some((rate, gpu.name))
}

/// The rate of products of the widths of the feed-forward layers; `None` if it cannot be measured.
fn measured_rate(shapes: &Shapes, device: Device, dtype: Dtype) -> Option<f64> {
    let rows = MAX_ROWS[usize::from(device.is_cuda())];
    let products = [
        [rows, shapes.lm.dim, shapes.lm.intermediate_size()],
        [rows, shapes.vision.hidden_size, shapes.vision.intermediate_size],
    ];
    let kind = autocast_kind(dtype).unwrap_or(Kind::Float);
    vlm_torch::matrix_rate(device, kind, &products, MEASUREMENT)
        .inspect_err(|error| tracing::debug!("the matrix rate is unknown: {error}"))
        .ok()
        .flatten()
}
