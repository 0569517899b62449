//! Trains the demo's vision encoder: a small CLIP tower that learns to classify what each patch
//! shows.
//!
//! A linear layer reads the classes from the last hidden state and is discarded afterwards: what it
//! can read, the linear projector of the demo can read too. The squared error to one-hot targets
//! makes the features additive (colour + shape + size), so that they are also right for unseen
//! pairs of colour and shape; cross-entropy on the same outputs separates similar classes.
//!
//! Dimensions: N images · P patches · V vision width · R readouts

use std::ops::ControlFlow;
use std::thread;

use anyhow::Result;
use tch::{Device, Kind, Tensor};
use vlm_demo::{Colour, Layout, Shape, Size, Split, seeded_rng};
use vlm_model::VisionConfig;
use vlm_model::layers::Linear;
use vlm_model::params::{Init, ParamStore};
use vlm_model::vision::ClipVision;

use super::draw_ahead::draw_ahead;
use super::learner::{Learner, LearnerPlan};
use super::replica::Replica;
use super::vision_targets::{DrawnBatch, VisionBatch};

/// Mean of CLIP's preprocessing, from OpenAI's preprocessor_config.json.
pub(super) const MEAN: [f32; 3] = [0.481_454_66, 0.457_827_5, 0.408_210_73];
/// Standard deviation of CLIP's preprocessing, like [`MEAN`].
pub(super) const STD: [f32; 3] = [0.268_629_55, 0.261_302_6, 0.275_777_1];

/// Start and length of the readouts of a patch: whether there is an object, then its size, colour
/// and shape as one-hot groups.
const SIZES: (i64, i64) = (1, Size::ALL.len() as i64);
const COLOURS: (i64, i64) = (SIZES.0 + SIZES.1, Colour::ALL.len() as i64);
const SHAPES: (i64, i64) = (COLOURS.0 + COLOURS.1, Shape::ALL.len() as i64);
const NUM_READOUTS: i64 = SHAPES.0 + SHAPES.1;

/// Weight of empty patches in the loss: they are frequent and easy.
const WEIGHT_OF_EMPTY: f64 = 0.15;
/// Factor from a readout, whose target is 0 or 1, to a logit.
const LOGIT_SCALE: f64 = 8.0;
/// Fraction of the images with three or four objects.
const CROWDED: f64 = 0.7;
const NUM_SCORED: usize = 400;

/// Settings of the encoder's training.
#[derive(Debug, Clone)]
pub(super) struct VisionPlan {
    pub config: VisionConfig,
    pub learner: LearnerPlan,
}

/// Fractions of the patches with an object that are classified correctly, in images that were not
/// used for training.
#[derive(Debug, Clone, Copy, PartialEq, serde::Serialize)]
pub(super) struct VisionScores {
    pub size: f64,
    pub colour: f64,
    pub shape: f64,
}

/// A trained encoder.
#[derive(Debug)]
pub(super) struct VisionWeights {
    pub params: ParamStore,
    /// Number of images it was trained on; fewer than planned if the time limit was reached.
    pub num_images: usize,
    pub scores: VisionScores,
}

/// The encoder with the linear layer that reads the classes from its features.
#[derive(Debug)]
struct Reader {
    encoder: ClipVision,
    encoder_store: ParamStore,
    readout: Linear,
    readout_store: ParamStore,
}

impl Reader {
    fn new(config: &VisionConfig) -> Self {
        let (encoder_store, readout_store) =
            (ParamStore::new(Device::Cpu), ParamStore::new(Device::Cpu));
        let width = config.hidden_size;
        let init = Init::Normal(1.0 / (width as f64).sqrt());
        Self {
            encoder: ClipVision::new(&encoder_store.root(), config),
            readout: Linear::new(&readout_store.root(), width, NUM_READOUTS, init),
            encoder_store,
            readout_store,
        }
    }

    /// The readouts of all patches, `[N · P, R]`.
    fn read(&self, batch: &VisionBatch) -> Tensor {
        self.readout
            .forward(&self.encoder.patch_features(&batch.pixel_values))
            .view([-1, NUM_READOUTS])
    }

    fn loss(&self, drawn: &DrawnBatch) -> Result<Tensor> {
        let batch = drawn.to_tensors(MEAN, STD)?;
        Ok(loss(&self.read(&batch), &batch))
    }
}

/// Trains an encoder from random weights.
pub(super) fn train_vision(plan: &VisionPlan) -> Result<VisionWeights> {
    tch::manual_seed(plan.learner.seed as i64);
    let reader = Reader::new(&plan.config);
    shape_initial_weights(&reader.encoder_store, &plan.config);
    let mut learner =
        Learner::new(&[&reader.encoder_store, &reader.readout_store], plan.learner.clone());
    thread::scope(|scope| {
        let mut replica = Replica::spawn(scope, || {
            let copy = Reader::new(&plan.config);
            let stores = [&copy.encoder_store, &copy.readout_store];
            stores.iter().for_each(|store| store.set_trainable(|_| true));
            (params_in_order(&stores), move |drawn: &DrawnBatch| copy.loss(drawn))
        })?;
        let params = params_in_order(&[&reader.encoder_store, &reader.readout_store]);
        let draw = |step: usize| Ok(draw_halves(plan, step as u64));
        draw_ahead(
            plan.learner.num_steps(),
            plan.learner.num_threads,
            draw,
            |step, [first, second]: [DrawnBatch; 2]| {
                if learner.is_over() {
                    return Ok(ControlFlow::Break(()));
                }
                replica.start(&params, second)?;
                let loss = learner.backward(&reader.loss(&first)?)?;
                let loss = 0.5 * (loss + replica.finish(&params)?);
                learner.update(loss, plan.learner.batch_size)?;
                if step % 1000 == 999 {
                    tracing::info!("vision: {:?}", score(&reader, plan.learner.seed)?);
                }
                anyhow::Ok(ControlFlow::Continue(()))
            },
        )
    })?;
    let scores = score(&reader, plan.learner.seed)?;
    Ok(VisionWeights { params: reader.encoder_store, num_images: learner.samples(), scores })
}

fn params_in_order(stores: &[&ParamStore]) -> Vec<Tensor> {
    stores.iter().flat_map(|store| store.named()).map(|(_, tensor)| tensor).collect()
}

/// Initialises the filters of the patch embedding to be constant over 4×4 pixels: images are
/// smooth, and training would first have to remove the noise within these squares. Layers that
/// write into the residual stream start with smaller weights (Radford et al. 2019, section 2.3).
fn shape_initial_weights(store: &ParamStore, config: &VisionConfig) {
    let coarse = config.patch_size / 4;
    let residual = (2.0 * config.num_hidden_layers as f64).powf(-0.5);
    tch::no_grad(|| {
        for (name, mut tensor) in store.named() {
            if name.ends_with("patch_embedding.weight") {
                let options = (Kind::Float, tensor.device());
                let filters = Tensor::randn(
                    [config.hidden_size, config.num_channels, coarse, coarse],
                    options,
                ) * 0.02;
                tensor.copy_(
                    &filters
                        .repeat_interleave_self_int(4, 2, None)
                        .repeat_interleave_self_int(4, 3, None),
                );
            } else if name.ends_with("out_proj.weight") || name.ends_with("fc2.weight") {
                let _ = tensor.g_mul_scalar_(residual);
            }
        }
    });
}

/// Draws the two halves of the batch of a step.
fn draw_halves(plan: &VisionPlan, step: u64) -> [DrawnBatch; 2] {
    use rand::Rng;
    let mut rng = seeded_rng(plan.learner.seed.wrapping_mul(1_000_003).wrapping_add(step));
    let mut halves = [DrawnBatch::default(), DrawnBatch::default()];
    for index in 0..plan.learner.batch_size {
        let layout = if rng.random_bool(CROWDED) {
            Layout::crowded(&mut rng)
        } else {
            let num_objects = rng.random_range(1..=2);
            Layout::of(&Split::Starting.sample(num_objects, &mut rng), &mut rng)
        };
        halves[index % 2].push(&layout);
    }
    halves
}

/// The loss of `readouts` `[N · P, R]`, divided by the number of patches with an object.
fn loss(readouts: &Tensor, batch: &VisionBatch) -> Tensor {
    let is_object = batch.is_object.to_kind(Kind::Float).unsqueeze(-1);
    let is_empty = batch.is_empty.to_kind(Kind::Float).unsqueeze(-1);
    let num_objects = is_object.sum(Kind::Float).clamp_min(1.0);

    let one_hot =
        |classes: &Tensor, (_, count): (i64, i64)| classes.one_hot(count).to_kind(Kind::Float);
    let targets = Tensor::cat(
        &[
            Tensor::ones_like(&is_object),
            one_hot(&batch.sizes, SIZES),
            one_hot(&batch.colours, COLOURS),
            one_hot(&batch.shapes, SHAPES),
        ],
        -1,
    ) * &is_object;
    let weights = &is_object + is_empty * WEIGHT_OF_EMPTY;
    let squared = ((readouts - targets).square() * weights).sum(Kind::Float) / num_objects;

    let objects = batch.is_object.nonzero().squeeze_dim(-1);
    let logits = readouts.index_select(0, &objects) * LOGIT_SCALE;
    let cross_entropy = |(start, count): (i64, i64), classes: &Tensor| {
        logits.narrow(-1, start, count).cross_entropy_for_logits(&classes.index_select(0, &objects))
    };
    let classification = cross_entropy(SIZES, &batch.sizes)
        + cross_entropy(COLOURS, &batch.colours)
        + cross_entropy(SHAPES, &batch.shapes);

    squared + classification * 0.5
}

/// The scores on [`NUM_SCORED`] images that were not used for training.
fn score(reader: &Reader, seed: u64) -> Result<VisionScores> {
    let mut rng = seeded_rng(!seed);
    let mut drawn = DrawnBatch::default();
    for index in 0..NUM_SCORED {
        let scene = Split::Starting.sample(1 + index % 2, &mut rng);
        drawn.push(&Layout::of(&scene, &mut rng));
    }
    tch::no_grad(|| {
        let batch = drawn.to_tensors(MEAN, STD)?;
        let objects = batch.is_object.nonzero().squeeze_dim(-1);
        let readouts = reader.read(&batch).index_select(0, &objects);
        let share = |(start, count): (i64, i64), classes: &Tensor| -> Result<f64> {
            let right = readouts
                .narrow(-1, start, count)
                .argmax(-1, false)
                .eq_tensor(&classes.index_select(0, &objects));
            Ok(f64::try_from(right.to_kind(Kind::Float).mean(Kind::Float))?)
        };
        Ok(VisionScores {
            size: share(SIZES, &batch.sizes)?,
            colour: share(COLOURS, &batch.colours)?,
            shape: share(SHAPES, &batch.shapes)?,
        })
    })
}
