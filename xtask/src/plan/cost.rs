//! The cost of a step (operations, memory traffic, kernels, network traffic), and its time on a
//! device.
//!
//! The time of a step is the larger of (matrix products + memory traffic + update) and the time to
//! launch its kernels, plus the communication that does not overlap with the backward pass.

use vlm_shapes::{BatchShape, FreezePolicy, MemoryLoad, StepFlops};

use super::device::Device;
use super::shape::{Shape, Tensor};

/// Bytes of a float32 number.
const F32: f64 = 4.0;
/// Number of kernels in the forward pass of a language-model block, counted in `lm.rs`: norms,
/// seven products with their casts, rotary embedding, attention, SwiGLU, sums. The backward pass
/// has about twice as many.
const LM_BLOCK_KERNELS: f64 = 36.0;
/// Number of kernels in the forward pass of a vision block, counted in `clip.rs`.
const VISION_BLOCK_KERNELS: f64 = 26.0;
/// Number of all other kernels: embedding, logits, loss, clipping, update, the copy of the batch.
const OTHER_KERNELS: f64 = 80.0;
/// Fraction of the rate of a link or network that an all-reduce reaches. Assumed.
pub const NETWORK_SHARE: f64 = 0.7;
/// Latency of an exchange between two ranks, in seconds. Assumed.
const EXCHANGE_SECS: f64 = 10e-6;
/// Sizes of the buckets of PyTorch's gradient reducer: of all but the first, and of the first.
const BUCKET_BYTES: [f64; 2] = [(25 << 20) as f64, (1 << 20) as f64];

/// The micro-batch of a rank, and the number of ranks.
#[derive(Debug, Clone, PartialEq)]
pub struct Load {
    /// Number of rows in a micro-batch.
    pub batch_size: u64,
    /// Length of a row in tokens, with image tokens and padding.
    pub seq_len: u64,
    /// Number of supervised tokens in a row; logits are computed only for these.
    pub supervised: u64,
    /// Number of images in a row.
    pub images: u64,
    /// Whether the features of the vision encoder are read from a cache.
    pub features_are_cached: bool,
    /// Number of micro-batches per update.
    pub accumulation_steps: u64,
    /// Whether matrix products are computed in bfloat16; otherwise in float32.
    pub is_bfloat16: bool,
    /// Number of ranks, one per GPU.
    pub gpus: u64,
    /// Number of ranks on each machine.
    pub gpus_per_node: u64,
    /// Network rate of a machine in one direction, in bytes per second.
    pub network_bytes_per_sec: f64,
}

impl Load {
    /// The micro-batch, for an estimate of the memory.
    pub fn for_memory(&self) -> MemoryLoad {
        MemoryLoad {
            batch_size: self.batch_size,
            seq_len: self.seq_len,
            supervised: self.supervised,
            images: self.images,
            features_are_cached: self.features_are_cached,
            is_half: self.is_bfloat16,
            activation_checkpointing: false,
            optimizer_shards: 1,
        }
    }
}

/// The cost of one micro-batch on one rank.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Work {
    /// Operations of the forward pass of the vision encoder.
    pub vision_flops: f64,
    /// Operations of the forward pass of the language model and the projector.
    pub lm_flops: f64,
    /// Operations of the backward pass.
    pub backward_flops: f64,
    /// Bytes that are read and written outside matrix products, in both passes.
    pub traffic_bytes: f64,
    /// Number of kernels, with those of the update.
    pub kernels: f64,
    /// Number of trained parameters.
    pub num_trained: f64,
}

impl Work {
    /// Counts the work of a micro-batch; [`StepFlops`] says which operations count.
    pub fn count(shape: &Shape, freeze: &FreezePolicy, load: &Load, tensors: &[Tensor]) -> Self {
        let number = |n: u64| n as f64;
        let size = |n: i64| n as f64;
        let (lm, vision) = (&shape.lm, &shape.vision);
        let rows = load.batch_size;
        let lengths = vec![load.seq_len as usize; rows as usize];
        let batch = BatchShape {
            lengths: &lengths,
            supervised: (rows * load.supervised).max(1) as usize,
            images: (rows * load.images) as usize,
            encodes_images: !load.features_are_cached,
        };
        let flops = StepFlops::count(lm, vision, &shape.projector, freeze, &batch);

        let positions = number(rows * load.seq_len);
        let supervised = number(rows * load.supervised);
        let (dim, width) = (size(lm.dim), size(lm.intermediate_size()));
        let ffs = size(lm.feed_forwards_per_token());
        let router = number(shape.num_routed_experts());
        let half = if load.is_bfloat16 { 2.0 } else { F32 };
        let (vision_traffic, vision_kernels) = if load.features_are_cached {
            (0.0, 0.0)
        } else {
            let tokens = number(rows * load.images) * size(vision.num_positions());
            let (v, inner) = (size(vision.hidden_size), size(vision.intermediate_size));
            let layers = size(vision.num_hidden_layers);
            // Two norms and two sums in float32, and four passes of the activation.
            let traffic = layers * tokens * (10.0 * v * F32 + 8.0 * inner * half);
            (traffic, layers * VISION_BLOCK_KERNELS)
        };
        // Two norms, rotary embedding and two sums in float32, and SwiGLU's silu and product.
        let block_traffic = positions * (14.0 * dim * F32 + ffs * 5.0 * width * half);
        let logit_traffic = supervised * size(lm.vocab_size) * F32 * 6.0;
        let passes = if freeze.train_vision { 3.0 } else { 1.0 };
        let expert_kernels = if lm.use_moe { router * 6.0 + 30.0 } else { 0.0 };
        Self {
            vision_flops: flops.vision,
            lm_flops: flops.lm,
            backward_flops: flops.backward,
            traffic_bytes: 3.0 * size(lm.n_layers) * block_traffic
                + logit_traffic
                + passes * vision_traffic,
            kernels: 3.0 * size(lm.n_layers) * (LM_BLOCK_KERNELS + expert_kernels)
                + passes * vision_kernels
                + OTHER_KERNELS,
            num_trained: number(num_trained(shape, freeze, tensors)),
        }
    }

    /// Total number of operations.
    pub fn flops(&self) -> f64 {
        self.vision_flops + self.lm_flops + self.backward_flops
    }
}

/// Number of trained parameters, with those of the vision encoder if it is trained.
pub fn num_trained(shape: &Shape, freeze: &FreezePolicy, tensors: &[Tensor]) -> u64 {
    let vision = if freeze.train_vision { shape.num_vision_parameters() } else { 0 };
    tensors.iter().filter(|t| t.is_trained).map(Tensor::numel).sum::<u64>() + vision
}

/// Time of one micro-batch by part, in seconds. The time of an update is divided among its
/// micro-batches.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Time {
    /// Forward pass, backward pass and update.
    pub compute: f64,
    /// The part of `compute` for matrix products.
    pub products: f64,
    /// The part of `compute` for memory traffic.
    pub traffic: f64,
    /// Time to launch all kernels; `compute` is at least this.
    pub launches: f64,
    /// Time of all communication.
    pub communication: f64,
    /// The part of `communication` that does not overlap with the backward pass.
    pub exposed: f64,
}

impl Time {
    /// The time of `work` on `device`.
    pub fn of(work: &Work, load: &Load, device: &Device) -> Self {
        let updates = 1.0 / load.accumulation_steps as f64;
        let flops = device.reached_flops(load.is_bfloat16);
        let products = work.flops() / flops;
        // AdamW reads the parameter, its gradient and two moments and writes all but the gradient;
        // clipping reads and writes the gradient.
        let update = work.num_trained * F32 * (7.0 + 2.0) / device.reached_memory() * updates;
        let traffic = work.traffic_bytes / device.reached_memory() + update;
        let launches = work.kernels * device.launch_secs;
        let compute = (products + traffic).max(launches);
        let communication = communication_secs(work, load, device) * updates;
        // The last bucket has the gradients of the projector, which are computed last, so its
        // communication cannot overlap with the backward pass.
        let backward = compute * work.backward_flops / work.flops();
        let gradients = work.num_trained * F32;
        let last_bucket = gradients.min(BUCKET_BYTES[0]) / gradients.max(1.0);
        let exposed = (communication - backward).max(communication * last_bucket.min(1.0));
        Self { compute, products, traffic, launches, communication, exposed }
    }

    /// Total time of a micro-batch in seconds.
    pub fn step(&self) -> f64 {
        self.compute + self.exposed
    }
}

/// Bytes that a rank sends per update: in a ring all-reduce of n ranks each sends 2 (n - 1) / n
/// times the size of the gradients.
pub fn bytes_per_update(num_trained: f64, gpus: u64) -> f64 {
    2.0 * (gpus as f64 - 1.0) / gpus as f64 * num_trained * F32
}

fn communication_secs(work: &Work, load: &Load, device: &Device) -> f64 {
    if load.gpus == 1 {
        return 0.0;
    }
    let bytes = bytes_per_update(work.num_trained, load.gpus);
    let buckets =
        1.0 + ((work.num_trained * F32 - BUCKET_BYTES[1]) / BUCKET_BYTES[0]).max(0.0).ceil();
    // The ring leaves each machine once, so the network carries the traffic of one link.
    let rate = if load.gpus > load.gpus_per_node {
        device.link_bytes_per_sec.min(load.network_bytes_per_sec)
    } else {
        device.link_bytes_per_sec
    };
    bytes / (rate * NETWORK_SHARE) + buckets * 2.0 * (load.gpus as f64 - 1.0) * EXCHANGE_SECS
}

#[cfg(test)]
mod tests {
    use vlm_shapes::ProjectorKind;

    use super::*;

    fn shape() -> Shape {
        let (lm, vision) = (Default::default(), Default::default());
        Shape::new(lm, vision, ProjectorKind::Linear).unwrap()
    }

    fn all_trained() -> FreezePolicy {
        FreezePolicy { train_lm: true, ..FreezePolicy::default() }
    }

    fn load(gpus: u64) -> Load {
        Load {
            batch_size: 16,
            seq_len: 300,
            supervised: 30,
            images: 1,
            features_are_cached: false,
            accumulation_steps: 1,
            is_bfloat16: true,
            gpus,
            gpus_per_node: 8,
            network_bytes_per_sec: 50e9,
        }
    }

    fn work(load: &Load, freeze: &FreezePolicy) -> Work {
        Work::count(&shape(), freeze, load, &shape().tensors(freeze))
    }

    #[test]
    fn frozen_blocks_save_the_gradients_of_their_weights() {
        let load = load(1);
        let (one, all) = (work(&load, &FreezePolicy::default()), work(&load, &all_trained()));
        assert_eq!(one.lm_flops, all.lm_flops);
        assert!(one.backward_flops < 0.7 * all.backward_flops);
    }

    #[test]
    fn ring_all_reduce_sends_nearly_twice_the_gradients() {
        assert_eq!(bytes_per_update(3e6, 1), 0.0);
        assert_eq!(bytes_per_update(3e6, 2), 12e6);
        assert_eq!(bytes_per_update(3e6, 4), 18e6);
    }

    #[test]
    fn communication_is_slower_between_machines_and_rarer_with_accumulation() {
        let device = Device::find("h100", None, None).unwrap();
        let time = |load: &Load| Time::of(&work(load, &FreezePolicy::default()), load, &device);
        let (one, eight, sixteen) = (time(&load(1)), time(&load(8)), time(&load(16)));
        assert_eq!((one.communication, one.exposed), (0.0, 0.0));
        assert!(eight.communication > 0.0 && sixteen.communication > 2.0 * eight.communication);
        assert!(eight.exposed <= eight.communication);
        let rarely = time(&Load { accumulation_steps: 4, ..load(16) });
        assert!((rarely.communication * 4.0 / sixteen.communication - 1.0).abs() < 1e-9);
    }
}
