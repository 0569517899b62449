//! The plan of a run.

use vlm_shapes::{FreezePolicy, Memory};

use super::checkpoint_size::CheckpointSize;
use super::cost::{Load, Time, Work};
use super::device::Device;
use super::shape::{Shape, Tensor};

/// The plan of a run: its inputs and the estimates.
#[derive(Debug, Clone)]
pub struct Plan {
    pub shape: Shape,
    pub freeze: FreezePolicy,
    pub load: Load,
    pub device: Device,
    pub tensors: Vec<Tensor>,
    pub work: Work,
    pub time: Time,
    pub memory: Memory,
    pub checkpoint: CheckpointSize,
    pub rows: u64,
    pub epochs: u64,
}

impl Plan {
    /// The plan of a run with the given shape, load and device, of `rows` rows in `epochs` epochs.
    pub fn new(
        shape: Shape,
        freeze: FreezePolicy,
        load: Load,
        device: Device,
        (rows, epochs): (u64, u64),
    ) -> Self {
        let tensors = shape.tensors(&freeze);
        let work = Work::count(&shape, &freeze, &load, &tensors);
        Self {
            time: Time::of(&work, &load, &device),
            memory: Memory::estimate(
                &shape.lm,
                &shape.vision,
                &shape.projector,
                &freeze,
                &load.for_memory(),
            ),
            checkpoint: CheckpointSize::count(&shape, &tensors),
            shape,
            freeze,
            load,
            device,
            tensors,
            work,
            rows,
            epochs,
        }
    }

    /// Samples per second of all ranks.
    pub fn samples_per_sec(&self) -> f64 {
        (self.load.gpus * self.load.batch_size) as f64 / self.time.step()
    }
}
