//! The joined model: vision encoder → projector → language model.
//!
//! The features of each image take the place of its run of placeholder tokens in the prompt. Where
//! those runs are is the data's to know; this file is told, and checks.
//!
//! Dimensions: B batch · T tokens · N images · P patches · V vision width · H hidden size

use tch::{Device, Kind, Reduction, Tensor};

use crate::ModelError;
use crate::indices::index_tensor;
use crate::kv_cache::KvCache;
use crate::lm::{CausalLm, LmOutput};
use crate::params::ParamStore;
use crate::projector::Projector;
use crate::vision::VisionEncoder;
use vlm_shapes::{FreezePolicy, LmConfig, ProjectorConfig, VisionConfig};

/// What to show the model of its images.
#[derive(Debug)]
pub enum ImageInput {
    /// Text alone.
    None,
    /// Normalised pixels `[N, 3, S, S]`, for the model's own encoder.
    Pixels(Tensor),
    /// Patch features `[N, P, V]` made before.
    Features(Tensor),
}

/// A batch on the model's device.
#[derive(Debug)]
pub struct ModelBatch {
    /// `[B, T]`, i64; padded on the right. Packed `[1, sum of lengths]`.
    pub input_ids: Tensor,
    /// The rows' lengths, `[B]`, where they are packed: they lie end to end.
    pub packed_lengths: Option<Vec<i64>>,
    /// The images, in the order of `image_starts`.
    pub images: ImageInput,
    /// Where each image's placeholder run starts: `(row, position in the row)`.
    pub image_starts: Vec<(i64, i64)>,
}

impl ModelBatch {
    /// Where each row begins, flat, and how many tokens it has.
    ///
    /// # Errors
    /// Ids of another shape than they should have.
    fn rows(&self) -> Result<Vec<(i64, i64)>, ModelError> {
        let size = self.input_ids.size();
        match (&self.packed_lengths, size.as_slice()) {
            (None, &[rows, len]) => Ok((0..rows).map(|row| (row * len, len)).collect()),
            (Some(lengths), &[1, total]) if lengths.iter().sum::<i64>() == total => {
                let start = |end: &mut i64, &len: &i64| {
                    *end += len;
                    Some((*end - len, len))
                };
                Ok(lengths.iter().scan(0, start).collect())
            }
            (None, _) => {
                Err(ModelError::Shape(format!("input_ids have shape {size:?}; expected [B, T]")))
            }
            (Some(lengths), _) => Err(ModelError::Shape(format!(
                "input_ids have shape {size:?}; expected [1, {}], for packed rows of {lengths:?} \
                 tokens",
                lengths.iter().sum::<i64>()
            ))),
        }
    }
}

/// The summed loss of the supervised positions.
#[derive(Debug)]
pub struct LossSum {
    /// Cross-entropy summed over the supervised positions, in nats; scalar float32.
    pub sum: Tensor,
    /// How many positions that was.
    pub num_supervised: i64,
    /// The experts' auxiliary loss, scalar; in training with experts only.
    pub aux_loss: Option<Tensor>,
}

/// A vision-language model.
#[derive(Debug)]
pub struct Vlm {
    lm_store: ParamStore,
    vision_store: ParamStore,
    lm: CausalLm,
    projector: Projector,
    vision: Option<VisionEncoder>,
    vision_dim: i64,
    num_patches: i64,
}

impl Vlm {
    /// Builds the model with random weights on `device` (seed it with `tch::manual_seed` before),
    /// with the projector that the language model's family has.
    ///
    /// # Errors
    /// A configuration that makes no model.
    pub fn new(
        lm_config: &LmConfig,
        vision_config: &VisionConfig,
        device: Device,
    ) -> Result<Self, ModelError> {
        let projector = ProjectorConfig::default_for(lm_config, vision_config)?;
        Self::with_projector(lm_config, vision_config, &projector, device)
    }

    /// As [`Self::new`], with a projector of one's choice.
    ///
    /// # Errors
    /// A configuration that makes no model.
    pub fn with_projector(
        lm_config: &LmConfig,
        vision_config: &VisionConfig,
        projector_config: &ProjectorConfig,
        device: Device,
    ) -> Result<Self, ModelError> {
        Self::build(lm_config, vision_config, projector_config, device, true)
    }

    /// The same without the encoder: images come as [`ImageInput::Features`]. The other weights
    /// are those that [`Self::with_projector`] would draw.
    ///
    /// # Errors
    /// A configuration that makes no model.
    pub fn without_encoder(
        lm_config: &LmConfig,
        vision_config: &VisionConfig,
        projector_config: &ProjectorConfig,
        device: Device,
    ) -> Result<Self, ModelError> {
        Self::build(lm_config, vision_config, projector_config, device, false)
    }

    fn build(
        lm_config: &LmConfig,
        vision_config: &VisionConfig,
        projector_config: &ProjectorConfig,
        device: Device,
        has_encoder: bool,
    ) -> Result<Self, ModelError> {
        lm_config.validate()?;
        let (lm_store, vision_store) = (ParamStore::new(device), ParamStore::new(device));
        let lm = CausalLm::new(&lm_store.root(), lm_config);
        let (vision_dim, num_patches) = (vision_config.hidden_size, vision_config.num_patches());
        let model = Self {
            projector: Projector::new(
                &lm_store.root(),
                projector_config,
                vision_config,
                lm_config.dim,
            ),
            lm,
            vision: has_encoder.then(|| VisionEncoder::new(&vision_store.root(), vision_config)),
            lm_store,
            vision_store,
            vision_dim,
            num_patches,
        };
        model.freeze(&FreezePolicy::default());
        Ok(model)
    }

    /// The language model.
    pub fn lm(&self) -> &CausalLm {
        &self.lm
    }

    /// Sets the language model's [`CausalLm::set_activation_checkpointing`].
    pub fn set_activation_checkpointing(&mut self, on: bool) {
        self.lm.set_activation_checkpointing(on);
    }

    /// The device that the parameters live on.
    pub fn device(&self) -> Device {
        self.lm_store.device()
    }

    /// Number of placeholder tokens that one image takes.
    pub fn tokens_per_image(&self) -> i64 {
        self.projector.config().tokens_per_image
    }

    /// Parameters of the language model and the projector: what a checkpoint holds.
    pub fn params(&self) -> &ParamStore {
        &self.lm_store
    }

    /// Parameters of the vision encoder.
    pub fn vision_params(&self) -> &ParamStore {
        &self.vision_store
    }

    /// Everything that is trained, in a fixed order.
    pub fn trainable(&self) -> Vec<(String, Tensor)> {
        let mut all = self.lm_store.trainable();
        all.extend(self.vision_store.trainable());
        all
    }

    /// Chooses what is trained; the projector always is.
    pub fn freeze(&self, policy: &FreezePolicy) {
        self.lm_store.set_trainable(|name| policy.trains(self.lm.config(), name));
        self.vision_store.set_trainable(|_| policy.train_vision);
    }

    /// The encoder's patch features of `pixel_values` `[N, 3, S, S]`: `[N, P, V]`. No gradient is
    /// kept when the encoder is frozen.
    ///
    /// # Errors
    /// Another shape; a model without an encoder.
    pub fn encode_images(&self, pixel_values: &Tensor) -> Result<Tensor, ModelError> {
        let vision = self.vision.as_ref().ok_or_else(|| {
            ModelError::Shape("this model was built without a vision encoder; give features".into())
        })?;
        let config = vision.config();
        let expected = [config.num_channels, config.image_size, config.image_size];
        let found = pixel_values.size();
        if found.len() != 4 || found[1..] != expected {
            return Err(ModelError::Shape(format!(
                "pixel_values have shape {found:?}; the vision encoder expects [N, {}, {}, {}]",
                expected[0], expected[1], expected[2]
            )));
        }
        let is_trained = !self.vision_store.trainable().is_empty();
        Ok(if is_trained {
            vision.patch_features(pixel_values)
        } else {
            tch::no_grad(|| vision.patch_features(pixel_values))
        })
    }

    /// Embeddings `[B, T, H]` of a batch, each image's projected features in the place of its
    /// placeholders.
    ///
    /// # Errors
    /// Shapes that do not agree, an image run that does not fit its row, token ids outside of the
    /// vocabulary (only checked on the CPU, where it costs nothing).
    pub fn embed(&self, batch: &ModelBatch) -> Result<Tensor, ModelError> {
        let rows = batch.rows()?;
        let embedded_bth = self.lm.embed(&batch.input_ids);
        let features_npv = match &batch.images {
            ImageInput::None => None,
            ImageInput::Pixels(pixels) => Some(self.encode_images(pixels)?),
            ImageInput::Features(features) => Some(features.shallow_clone()),
        };
        let num_images = features_npv.as_ref().map_or(0, |f| f.size()[0]);
        if num_images != batch.image_starts.len() as i64 {
            return Err(ModelError::Shape(format!(
                "{num_images} images for {} placeholder runs",
                batch.image_starts.len()
            )));
        }
        let Some(features_npv) = features_npv.filter(|_| num_images > 0) else {
            return Ok(embedded_bth);
        };
        let expected = [num_images, self.num_patches, self.vision_dim];
        if features_npv.size() != expected {
            return Err(ModelError::Shape(format!(
                "image features have shape {:?}; expected {expected:?}",
                features_npv.size()
            )));
        }
        let run = self.tokens_per_image();
        let mut flat_starts = Vec::with_capacity(batch.image_starts.len());
        for &(row, start) in &batch.image_starts {
            let of_row = usize::try_from(row).ok().and_then(|row| rows.get(row));
            match of_row.filter(|(_, len)| start >= 0 && start + run <= *len) {
                Some((row_start, _)) => flat_starts.push(row_start + start),
                None => {
                    return Err(ModelError::Shape(format!(
                        "an image run of {run} tokens at row {row}, position {start} does not fit \
                         a batch of {} rows{}",
                        rows.len(),
                        of_row.map_or(String::new(), |(_, len)| format!(" ({len} tokens there)")),
                    )));
                }
            }
        }
        Ok(self.put_features(&embedded_bth, &features_npv, &flat_starts))
    }

    fn put_features(
        &self,
        embedded_bth: &Tensor,
        features_npv: &Tensor,
        flat_starts: &[i64],
    ) -> Tensor {
        let size = embedded_bth.size();
        let (hidden, run) = (size[2], self.tokens_per_image());
        let places: Vec<i64> = flat_starts.iter().flat_map(|&start| start..start + run).collect();
        let places = index_tensor(&places, embedded_bth.device());
        let projected = self.projector.forward(features_npv).view([-1, hidden]);
        embedded_bth
            .view([-1, hidden])
            .index_copy(0, &places, &projected.to_kind(embedded_bth.kind()))
            .view(size.as_slice())
    }

    /// Hidden states `[B, T, H]` (packed `[1, sum of lengths, H]`) of a batch, before the last norm, and the auxiliary loss.
    ///
    /// # Errors
    /// As [`Self::embed`].
    pub fn forward(
        &self,
        batch: &ModelBatch,
        cache: Option<&mut KvCache>,
        train: bool,
    ) -> Result<LmOutput, ModelError> {
        let embedded_bth = self.embed(batch)?;
        let longest = match &batch.packed_lengths {
            None => embedded_bth.size()[1],
            Some(lengths) => lengths.iter().copied().max().unwrap_or(0),
        };
        let total = longest + cache.as_deref().map_or(0, KvCache::len);
        if total > self.lm.max_positions() {
            return Err(ModelError::Shape(format!(
                "{total} tokens, but there are rotary angles for {}; shorten the prompt or raise \
                 max_seq_len",
                self.lm.max_positions()
            )));
        }
        match (&batch.packed_lengths, &cache) {
            (None, _) => Ok(self.lm.forward(&embedded_bth, cache, train)),
            (Some(lengths), None) => Ok(self.lm.forward_packed(&embedded_bth, lengths, train)),
            (Some(_), Some(_)) => {
                Err(ModelError::Shape("packed rows have no cache; give them side by side".into()))
            }
        }
    }

    /// Cross-entropy of a batch, summed over its supervised positions.
    ///
    /// `supervised` `[S]` (i64) are flat positions in the ids, `targets` `[S]` the token each
    /// should predict. Logits are made for these positions alone, so memory does not follow
    /// vocabulary × padding.
    ///
    /// # Errors
    /// As [`Self::embed`]; `supervised` and `targets` of different lengths.
    pub fn loss(
        &self,
        batch: &ModelBatch,
        supervised: &Tensor,
        targets: &Tensor,
        train: bool,
    ) -> Result<LossSum, ModelError> {
        if supervised.size() != targets.size() {
            return Err(ModelError::Shape(format!(
                "{:?} supervised positions for {:?} targets",
                supervised.size(),
                targets.size()
            )));
        }
        let LmOutput { hidden: hidden_bth, aux_loss } = self.forward(batch, None, train)?;
        let hidden_sh = hidden_bth.view([-1, self.lm.config().dim]).index_select(0, supervised);
        let logits_sv = self.lm.logits(&hidden_sh).to_kind(Kind::Float);
        let sum = logits_sv.cross_entropy_loss(targets, None::<Tensor>, Reduction::Sum, -100, 0.0);
        Ok(LossSum { sum, num_supervised: targets.size()[0], aux_loss })
    }
}

#[cfg(test)]
mod tests {
    use vlm_shapes::{LmFamily, MoeConfig, ProjectorKind, TensorShape};

    use super::*;

    fn shapes(store: &ParamStore) -> Vec<TensorShape> {
        let shape = |(name, tensor): (String, Tensor)| TensorShape { name, shape: tensor.size() };
        store.named().into_iter().map(shape).collect()
    }

    #[test]
    fn parameters_are_those_that_the_configuration_lists() {
        let towers = [VisionConfig::default(), VisionConfig::siglip()].map(|tower| VisionConfig {
            hidden_size: 12,
            intermediate_size: 20,
            num_hidden_layers: 2,
            image_size: 256,
            ..tower
        });
        let small = |family: LmFamily| LmConfig {
            dim: 32,
            n_layers: 2,
            n_heads: 4,
            n_kv_heads: 2,
            vocab_size: 50,
            hidden_dim: None,
            ..family.default_config()
        };
        let (minimind, minimind2) = (small(LmFamily::MiniMind), small(LmFamily::MiniMind2));
        let (minimind3, llama) = (small(LmFamily::MiniMind3), small(LmFamily::Llama));
        let several = MoeConfig { n_shared_experts: Some(2), ..MoeConfig::default() };
        let configs = [
            LmConfig { use_moe: true, moe: several.clone(), ..minimind.clone() },
            LmConfig { use_moe: true, moe: several, ..minimind2.clone() },
            LmConfig { use_moe: true, ..minimind3.clone() },
            LmConfig { qkv_bias: true, tie_word_embeddings: false, ..llama.clone() },
            LmConfig {
                qkv_bias: true,
                attention_output_bias: true,
                mlp_bias: true,
                head_dim: Some(6),
                ..llama
            },
            minimind,
            minimind2,
            minimind3,
        ];
        for (index, lm) in configs.iter().enumerate() {
            let vision = &towers[index % 2];
            let projector = ProjectorConfig::new(ProjectorKind::ALL[index % 4], vision).unwrap();
            let model = Vlm::with_projector(lm, vision, &projector, Device::Cpu).unwrap();
            let listed = [lm.tensors(), projector.tensors(vision, lm.dim)].concat();
            assert_eq!(shapes(model.params()), listed, "{lm:?}, {projector:?}");
            assert_eq!(shapes(model.vision_params()), vision.tensors());
        }
    }
}
