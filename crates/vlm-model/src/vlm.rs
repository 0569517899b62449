//! The vision-language model: vision encoder → projector → language model.
//!
//! The projected features of each image replace the embeddings of its placeholder tokens in the
//! prompt. The caller gives the positions of the placeholders, which are checked here.
//!
//! Dimensions: B batch · T tokens · N images · P patches · V vision width · H hidden size

use tch::{Device, Kind, Tensor};
use vlm_display::count;
use vlm_shapes::{FreezePolicy, LmConfig, ProjectorConfig, VisionConfig};

use crate::converted_weights::ConvertedWeights;
use crate::equal_images::EqualImages;
use crate::fused_attention::attention_kernel;
use crate::indices::index_tensor;
use crate::kv_cache::KvCache;
use crate::lm::{CausalLm, LmOptions, LmOutput};
use crate::loss::{LossSum, RowLosses};
use crate::params::ParamStore;
use crate::projector::Projector;
use crate::shared_prefix::SharedPrefix;
use crate::vision::{VisionEncoder, is_product_weight};
use crate::{ImageInput, ModelBatch, ModelError};

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
    /// Builds the model with random weights on `device`, with the default projector of the language
    /// model's family. Call `tch::manual_seed` before for reproducible weights.
    ///
    /// # Errors
    /// A configuration is not valid.
    pub fn new(
        lm_config: &LmConfig,
        vision_config: &VisionConfig,
        device: Device,
    ) -> Result<Self, ModelError> {
        let projector = ProjectorConfig::default_for(lm_config, vision_config)?;
        Self::with_projector(lm_config, vision_config, &projector, device)
    }

    /// As [`Self::new`], with a given projector.
    ///
    /// # Errors
    /// A configuration is not valid.
    pub fn with_projector(
        lm_config: &LmConfig,
        vision_config: &VisionConfig,
        projector_config: &ProjectorConfig,
        device: Device,
    ) -> Result<Self, ModelError> {
        Self::build(lm_config, vision_config, projector_config, device, true)
    }

    /// As [`Self::with_projector`], without the vision encoder: images are given as
    /// [`ImageInput::Features`]. The other weights are the same for the same seed.
    ///
    /// # Errors
    /// A configuration is not valid.
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

    /// The device that the parameters are on.
    pub fn device(&self) -> Device {
        self.lm_store.device()
    }

    /// Number of placeholder tokens that one image takes.
    pub fn tokens_per_image(&self) -> i64 {
        self.projector.config().tokens_per_image
    }

    /// Parameters of the language model and the projector.
    pub fn params(&self) -> &ParamStore {
        &self.lm_store
    }

    /// Parameters of the vision encoder.
    pub fn vision_params(&self) -> &ParamStore {
        &self.vision_store
    }

    /// All parameters that are trained, in a fixed order.
    pub fn trainable(&self) -> Vec<(String, Tensor)> {
        let mut all = self.lm_store.trainable();
        all.extend(self.vision_store.trainable());
        all
    }

    /// Sets which parameters are trained; the projector always is.
    pub fn freeze(&self, policy: &FreezePolicy) {
        self.lm_store.set_trainable(|name| policy.trains(self.lm.config(), name));
        self.vision_store.set_trainable(|_| policy.train_vision);
    }

    /// Converts the frozen weights of products in the blocks of the language model and in the
    /// encoder to `kind`, the type in which autocast computes them: otherwise autocast converts them
    /// in every step. The copies take 2 bytes per parameter for a `kind` of 16 bits. Under autocast the results are bitwise the
    /// same, without it the model cannot be used until the result is dropped, which restores the
    /// weights. [`Self::params`] and [`Self::vision_params`] give the original weights throughout.
    ///
    /// # Errors
    /// There is no memory left.
    pub fn convert_frozen_weights(&self, kind: Kind) -> Result<ConvertedWeights, ModelError> {
        let mut converted = ConvertedWeights::default();
        converted.convert(&self.lm_store, kind, |name| self.lm.is_product_weight(name))?;
        converted.convert(&self.vision_store, kind, is_product_weight)?;
        Ok(converted)
    }

    /// The kernel with which libtorch computes the causal attention of this model, in training and
    /// in the type `kind`, for messages.
    ///
    /// # Errors
    /// libtorch fails.
    pub fn attention_kernel(&self, kind: Kind) -> Result<&'static str, ModelError> {
        attention_kernel(self.lm.config(), kind, self.device())
    }

    /// The vision encoder's patch features of `pixel_values`, `[N, 3, S, S]` → `[N, P, V]`. They
    /// have no gradient if the encoder is frozen.
    ///
    /// # Errors
    /// The shape of `pixel_values` is wrong, or the model has no vision encoder.
    pub fn encode_images(&self, pixel_values: &Tensor) -> Result<Tensor, ModelError> {
        let vision = self.vision.as_ref().ok_or_else(|| {
            ModelError::Shape(
                "this model has no vision encoder; pass image features instead of pixels".into(),
            )
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
        let _span = vlm_torch::span("vision encoder");
        let is_trained = !self.vision_store.trainable().is_empty();
        let features = |pixel_values: &Tensor| match is_trained {
            true => vision.patch_features(pixel_values),
            false => tch::no_grad(|| vision.patch_features(pixel_values)),
        };
        Ok(match EqualImages::find(pixel_values) {
            Some(equal) => equal.encode_once(pixel_values, features),
            None => features(pixel_values),
        })
    }

    /// The embeddings `[B, T, H]` of a batch, with each image's projected features in the place of
    /// its placeholders.
    ///
    /// # Errors
    /// Shapes do not agree, an image's placeholders do not fit in its row, or a token id is not in
    /// the vocabulary. Ids on a GPU are not checked, because that would wait for it in every step;
    /// the loader and the generator check theirs on the host.
    pub fn embed(&self, batch: &ModelBatch) -> Result<Tensor, ModelError> {
        batch.check_ids(self.lm.config().vocab_size)?;
        let embedded_bth = self.lm.embed(&batch.input_ids);
        let features_npv = match &batch.images {
            ImageInput::None => None,
            ImageInput::Pixels(pixels) => Some(self.encode_images(pixels)?),
            ImageInput::Features(features) => Some(features.shallow_clone()),
        };
        let num_images = features_npv.as_ref().map_or(0, |f| f.size()[0]);
        if num_images != batch.image_starts.len() as i64 {
            return Err(ModelError::Shape(format!(
                "the batch has {}, but positions for {}",
                count(num_images, "image"),
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
        let flat_starts = batch.flat_image_starts(self.tokens_per_image())?;
        Ok(self.put_features(&embedded_bth, &features_npv, &flat_starts))
    }

    fn put_features(
        &self,
        embedded_bth: &Tensor,
        features_npv: &Tensor,
        flat_starts: &[i64],
    ) -> Tensor {
        let _span = vlm_torch::span("projector");
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

    /// The hidden states of a batch before the last norm, `[B, T, H]`, and the auxiliary loss. Of a
    /// packed batch they are `[1, sum of lengths, H]`.
    ///
    /// # Errors
    /// As [`Self::embed`].
    pub fn forward(
        &self,
        batch: &ModelBatch,
        cache: Option<&mut KvCache>,
        train: bool,
    ) -> Result<LmOutput, ModelError> {
        if batch.packed_lengths.is_some() && cache.is_some() {
            return Err(ModelError::Shape(
                "a packed batch cannot be used with a key/value cache".into(),
            ));
        }
        let embedded_bth = self.embed_with_positions(batch, cache.as_deref())?;
        let _span = vlm_torch::span("language model");
        let packed_lengths = batch.packed_lengths.as_deref();
        let options = LmOptions { packed_lengths, train, ..LmOptions::default() };
        Ok(self.lm.forward_with(&embedded_bth, cache, &options))
    }

    /// As [`Self::embed`], if the model has positions for all tokens.
    fn embed_with_positions(
        &self,
        batch: &ModelBatch,
        cache: Option<&KvCache>,
    ) -> Result<Tensor, ModelError> {
        let embedded_bth = self.embed(batch)?;
        let longest = match &batch.packed_lengths {
            None => embedded_bth.size()[1],
            Some(lengths) => lengths.iter().copied().max().unwrap_or(0),
        };
        let total = longest + cache.map_or(0, KvCache::len);
        if total > self.lm.max_positions() {
            return Err(ModelError::Shape(format!(
                "the sequence has {total} tokens, but the model has {} positions; shorten the \
                 prompt or raise `max_seq_len`",
                self.lm.max_positions()
            )));
        }
        Ok(embedded_bth)
    }

    /// The hidden states of the positions `needed` `[S]` alone, `[1, S, H]`, and the auxiliary
    /// loss. What the tokens at the beginning of all rows have in common is computed once.
    fn forward_at(
        &self,
        batch: &ModelBatch,
        needed: &Tensor,
        train: bool,
    ) -> Result<LmOutput, ModelError> {
        let embedded_bth = self.embed_with_positions(batch, None)?;
        let _span = vlm_torch::span("language model");
        let packed_lengths = batch.packed_lengths.as_deref();
        let options = LmOptions { packed_lengths, train, ..LmOptions::default() };
        let prefix = match self.lm.shares_prefix(train) {
            true => SharedPrefix::find(batch, needed)?,
            false => None,
        };
        let Some(prefix) = prefix else {
            let options = LmOptions { needed: Some(needed), ..options };
            return Ok(self.lm.forward_with(&embedded_bth, None, &options));
        };
        let lengths = prefix.rest_lengths(packed_lengths);
        let options = LmOptions {
            packed_lengths: lengths.as_deref(),
            prefix_1ph: Some(self.lm.embed(&prefix.ids(batch))),
            needed: Some(&prefix.needed),
            ..options
        };
        Ok(self.lm.forward_with(&prefix.rest_of(&embedded_bth, packed_lengths), None, &options))
    }

    /// The cross-entropy of a batch, summed over its supervised positions.
    ///
    /// `supervised` `[S]` (i64) are indices into the flattened ids, and `targets` `[S]` (i64) the
    /// ids to be predicted there. Logits are computed for these positions only, so that no memory
    /// is used for the logits of padding.
    ///
    /// # Errors
    /// As [`Self::forward`], or `supervised` and `targets` have different shapes.
    pub fn loss(
        &self,
        batch: &ModelBatch,
        supervised: &Tensor,
        targets: &Tensor,
        train: bool,
    ) -> Result<LossSum, ModelError> {
        let (logits_sv, aux_loss) = self.supervised_logits(batch, supervised, targets, train)?;
        let _span = vlm_torch::span("logits and loss");
        Ok(LossSum::new(&logits_sv, targets, aux_loss))
    }

    /// As [`Self::loss`] outside of training, and besides the loss of each row.
    ///
    /// # Errors
    /// As [`Self::loss`].
    pub fn loss_by_row(
        &self,
        batch: &ModelBatch,
        supervised: &Tensor,
        targets: &Tensor,
    ) -> Result<(LossSum, RowLosses), ModelError> {
        let rows = batch.rows()?;
        let (logits_sv, aux_loss) = self.supervised_logits(batch, supervised, targets, false)?;
        let by_row = RowLosses::new(&logits_sv, supervised, targets, &rows);
        Ok((LossSum::new(&logits_sv, targets, aux_loss), by_row))
    }

    /// The logits `[S, vocab_size]` (f32) of the supervised positions, and the auxiliary loss.
    fn supervised_logits(
        &self,
        batch: &ModelBatch,
        supervised: &Tensor,
        targets: &Tensor,
        train: bool,
    ) -> Result<(Tensor, Option<Tensor>), ModelError> {
        if supervised.size() != targets.size() {
            return Err(ModelError::Shape(format!(
                "supervised has shape {:?}, but targets has {:?}",
                supervised.size(),
                targets.size()
            )));
        }
        let LmOutput { hidden: hidden_1sh, aux_loss } =
            self.forward_at(batch, supervised, train)?;
        let _span = vlm_torch::span("logits and loss");
        let hidden_sh = hidden_1sh.squeeze_dim(0);
        Ok((self.lm.logits(&hidden_sh).to_kind(Kind::Float), aux_loss))
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

    /// The loss of a batch with an image, and the gradients of all trained parameters.
    fn loss_and_gradients(model: &Vlm, kind: Option<Kind>) -> Vec<Tensor> {
        let run = model.tokens_per_image();
        let ids = Tensor::arange(run + 20, (Kind::Int64, Device::Cpu)).remainder(50);
        let pixels = Tensor::linspace(-1, 1, 3 * 32 * 32, (Kind::Float, Device::Cpu));
        let batch = ModelBatch {
            input_ids: ids.view([1, -1]),
            packed_lengths: None,
            images: ImageInput::Pixels(pixels.view([1, 3, 32, 32])),
            image_starts: vec![(0, 2)],
        };
        let supervised = Tensor::arange_start(run + 5, run + 19, (Kind::Int64, Device::Cpu));
        let targets = ids.index_select(0, &(&supervised + 1));
        let loss = || model.loss(&batch, &supervised, &targets, true).unwrap();
        let loss = vlm_torch::autocast(Device::Cpu, kind, loss).unwrap();
        let mean = loss.sum + loss.aux_loss.unwrap_or_else(|| Tensor::from(0.0f32));
        let trained: Vec<Tensor> = model.trainable().into_iter().map(|(_, t)| t).collect();
        let mut all = Tensor::run_backward(&[&mean], &trained, false, false);
        all.push(mean.detach());
        all
    }

    #[test]
    fn converted_weights_give_the_same_results_under_autocast_and_are_restored() {
        let families = [LmFamily::MiniMind, LmFamily::MiniMind3, LmFamily::Llama];
        for (index, family) in families.into_iter().enumerate() {
            let tower = if index == 0 { VisionConfig::default() } else { VisionConfig::siglip() };
            let vision = VisionConfig {
                hidden_size: 24,
                intermediate_size: 20,
                num_hidden_layers: 2,
                image_size: 32,
                ..tower
            };
            let lm = LmConfig {
                dim: 32,
                n_layers: 3,
                n_heads: 4,
                n_kv_heads: 2,
                vocab_size: 50,
                head_dim: None,
                hidden_dim: Some(40),
                use_moe: family == LmFamily::MiniMind3,
                qkv_bias: family == LmFamily::Llama,
                ..family.default_config()
            };
            tch::manual_seed(1);
            let model = Vlm::new(&lm, &vision, Device::Cpu).unwrap();
            let kind = Some(Kind::BFloat16);
            let (before, exact) =
                (loss_and_gradients(&model, kind), loss_and_gradients(&model, None));
            let converted = model.convert_frozen_weights(Kind::BFloat16).unwrap();
            assert_eq!(loss_and_gradients(&model, kind), before, "{family:?}");
            let is_float = |(_, tensor): &(String, Tensor)| tensor.kind() == Kind::Float;
            assert!(model.params().named().iter().all(is_float));
            assert!(model.vision_params().named().iter().all(is_float));
            let is_encoder_converted =
                model.vision_params().computing().iter().any(|param| !is_float(param));
            assert!(is_encoder_converted);
            let computes_in_16_bits =
                model.params().computing().iter().filter(|p| !is_float(p)).count();
            // Of two frozen blocks: four layers of attention, the three of the feed-forward layer or
            // of each expert, and the biases.
            let experts = if lm.use_moe { lm.moe.n_routed_experts as usize } else { 1 };
            let shared = if lm.use_moe { lm.num_shared_experts() as usize } else { 0 };
            let biases = if lm.qkv_bias { 3 } else { 0 };
            assert_eq!(
                computes_in_16_bits,
                2 * (4 + biases + 3 * (experts + shared)),
                "{family:?}"
            );
            drop(converted);
            assert_eq!(loss_and_gradients(&model, None), exact, "{family:?}");
        }
    }

    #[test]
    fn parameters_equal_the_list_of_the_configuration() {
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
            let projector = ProjectorConfig::new(ProjectorKind::ALL[index % 5], vision).unwrap();
            let model = Vlm::with_projector(lm, vision, &projector, Device::Cpu).unwrap();
            let listed = [lm.tensors(), projector.tensors(vision, lm.dim)].concat();
            assert_eq!(shapes(model.params()), listed, "{lm:?}, {projector:?}");
            assert_eq!(shapes(model.vision_params()), vision.tensors());
        }
    }

    #[test]
    fn a_token_id_outside_of_the_vocabulary_is_an_error() {
        let lm =
            LmConfig { dim: 8, n_layers: 1, n_heads: 2, vocab_size: 50, ..LmConfig::default() };
        let lm = LmConfig { n_kv_heads: 2, hidden_dim: Some(8), ..lm };
        let vision = VisionConfig {
            hidden_size: 8,
            num_attention_heads: 2,
            num_hidden_layers: 1,
            patch_size: 56,
            ..VisionConfig::default()
        };
        let model = Vlm::new(&lm, &vision, Device::Cpu).unwrap();
        let embed = |ids: &[i64]| {
            model.embed(&ModelBatch {
                input_ids: Tensor::from_slice(ids).view([1, -1]),
                packed_lengths: None,
                images: ImageInput::None,
                image_starts: Vec::new(),
            })
        };
        assert_eq!(embed(&[0, 49]).unwrap().size(), [1, 2, 8]);
        for id in [-1, 50] {
            let message = embed(&[0, id, 3]).unwrap_err().to_string();
            assert!(message.contains(&format!("token id {id} is not in")), "{message}");
        }
    }
}
