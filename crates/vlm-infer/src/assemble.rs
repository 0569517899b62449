//! Builds a model from files: reads configurations and weights, and checks that they fit each
//! other.

use std::path::Path;

use serde_json::{Value, json};
use tch::Device;
use vlm_data::{ChatTokenizer, ImagePlaceholder};
use vlm_model::detect::{check_tied, projector_config, projector_of};
use vlm_model::names::LmNames;
use vlm_model::weights::require_there;
use vlm_model::{
    LmConfig, LmFamily, ProjectorConfig, ProjectorKind, VisionConfig, Vlm, is_projector,
};
use vlm_shapes::ShapeRequest;

use crate::InferError;
use crate::foreign::{foreign_placeholder, open_lm, warn_of_differences, warn_of_missing_tags};
use crate::lm_shape::{adopt, starting_shape};
use crate::model_files::ModelFiles;
use crate::surplus::{refuse_surplus, warn_of_surplus};
use crate::vision_encoder::{load_vision, vision_config};

/// Shapes of the parts of a model, checked against each other and against the files.
#[derive(Debug, Clone)]
pub struct Shapes {
    /// The language model.
    pub lm: LmConfig,
    /// The vision encoder.
    pub vision: VisionConfig,
    /// The projector.
    pub projector: ProjectorConfig,
}

impl Shapes {
    /// Number of placeholder tokens of an image.
    pub fn tokens_per_image(&self) -> usize {
        self.projector.tokens_per_image as usize
    }

    /// The `config.json` of the model: that of the language model in the format of its family, with
    /// the other parts under separate keys, so that the folder can be used as `lm`, too.
    pub fn describe(&self, tokenizer: &ChatTokenizer) -> Value {
        let mut tree = self.lm.to_json();
        let image_token = tokenizer.placeholder().token();
        if matches!(self.lm.family, LmFamily::MiniMind2 | LmFamily::MiniMind3) {
            tree["model_type"] = json!("minimind-v");
            tree["architectures"] = json!(["MiniMindVLM"]);
            tree["image_special_token"] = json!(image_token);
            tree["image_ids"] = json!([tokenizer.image_token_id()]);
            tree["image_hidden_size"] = json!(self.vision.hidden_size);
            tree["image_token_len"] = json!(self.projector.tokens_per_image);
        }
        tree["vision"] = json!(self.vision);
        tree["projector"] = json!(self.projector);
        tree["image_token"] = json!(image_token);
        tree["eos_token_id"] = stop_token_ids(tokenizer);
        tree
    }
}

/// The ids of the tokens that end a generated text, in the form of `eos_token_id` in `config.json`:
/// an id, or a list of ids.
pub(crate) fn stop_token_ids(tokenizer: &ChatTokenizer) -> Value {
    match tokenizer.stop_token_ids() {
        [id] => json!(id),
        ids => json!(ids),
    }
}

/// Opens the tokenizer, with the image token of `files` or of the language model's family. The
/// tokens that `generation_config.json` in the folder of the weights names also end a generated
/// text.
///
/// # Errors
/// Files that cannot be read; an image token that is not a single token of the tokenizer.
pub fn open_tokenizer(files: &ModelFiles) -> Result<ChatTokenizer, InferError> {
    // Missing files are reported first, before errors that follow from them.
    let vision = Some(&files.vision).filter(|path| !path.as_os_str().is_empty());
    let given =
        [("lm", files.lm.as_ref()), ("vision", vision), ("tokenizer", Some(&files.tokenizer))];
    for (setting, path) in given {
        let Some(path) = path else { continue };
        require_there(path)
            .map_err(|error| InferError::setting(setting, format!("{setting} {error}")))?;
    }
    let mut tokenizer = open_with_placeholder(files)?;
    if let Some(lm) = &files.lm {
        let folder = if lm.is_dir() { Some(lm.as_path()) } else { lm.parent() };
        tokenizer.read_generation_config(folder.unwrap_or(Path::new(".")))?;
    }
    Ok(tokenizer)
}

fn open_with_placeholder(files: &ModelFiles) -> Result<ChatTokenizer, InferError> {
    if let Some(token) = &files.image_token {
        let placeholder = ImagePlaceholder::new(token.as_str());
        return Ok(ChatTokenizer::with_placeholder(&files.tokenizer, placeholder)?);
    }
    if let Some(placeholder) = foreign_placeholder(files)? {
        let tokenizer = ChatTokenizer::with_placeholder(&files.tokenizer, placeholder)?;
        warn_of_missing_tags(files, &tokenizer);
        return Ok(tokenizer);
    }
    let family = match &files.lm {
        Some(path) => starting_shape(path)?.0.family,
        None => LmFamily::default(),
    };
    let spellings = image_tokens(family).iter().map(|&token| ImagePlaceholder::new(token));
    let placeholders: Vec<_> = spellings.collect();
    let tokenizer = ChatTokenizer::with_first_placeholder(&files.tokenizer, &placeholders)?;
    tracing::debug!("the image token is {:?}", tokenizer.placeholder().token());
    Ok(tokenizer)
}

/// The image tokens of a family, in order of preference: the first one that the tokenizer has is
/// used. Their embeddings are not used, because the projected features replace them.
fn image_tokens(family: LmFamily) -> &'static [&'static str] {
    match family {
        LmFamily::MiniMind | LmFamily::MiniMind2 => &["@"],
        LmFamily::MiniMind3 => &["<|image_pad|>", "@"],
        // nanoVLM adds <|image|> to SmolLM2's tokenizer. <empty_output> is a token of that
        // tokenizer for source code, which chats do not use.
        LmFamily::Llama => &["<|image|>", "<image>", "<|image_pad|>", "<empty_output>", "@"],
    }
}

/// Determines the shapes of all parts: from `request`, else from `config.json` in the folder of the
/// weights, else from the names of the tensors. Creates no tensor.
///
/// # Errors
/// A configuration that cannot be read; a tokenizer with more tokens than the model has embeddings;
/// a requested shape that differs from that of the weights.
pub fn settle_shapes(
    files: &ModelFiles,
    request: &ShapeRequest,
    tokenizer: &ChatTokenizer,
    max_seq_len: usize,
) -> Result<Shapes, InferError> {
    let vision = vision_config(&files.vision, files.image_size)?;
    let (path, unread) = VisionConfig::unread_keys_in(&files.vision).map_err(InferError::file)?;
    warn_of_unread_keys(&path, &unread);
    let (mut lm, config_path) = match &files.lm {
        Some(path) => starting_shape(path)?,
        None => (LmConfig::default(), None),
    };
    let ShapeRequest { dim, n_layers, n_heads, n_kv_heads, dropout, use_moe } = request.clone();
    let reshaped = dim.is_some_and(|dim| dim != lm.dim);
    if reshaped {
        // The widths in a config.json are only for its own hidden size.
        (lm.hidden_dim, lm.head_dim) = (None, None);
    }
    lm.dim = dim.unwrap_or(lm.dim);
    lm.n_layers = n_layers.unwrap_or(lm.n_layers);
    lm.n_heads = n_heads.unwrap_or(lm.n_heads);
    lm.n_kv_heads = n_kv_heads.unwrap_or(lm.n_kv_heads);
    if let Some(dropout) = dropout {
        (lm.dropout, lm.attention_dropout) = (dropout, None);
    }
    lm.use_moe = use_moe.unwrap_or(lm.use_moe);
    lm.max_seq_len = lm.max_seq_len.max(max_seq_len as i64);
    if files.lm.is_none() {
        lm.vocab_size = tokenizer.vocab_size() as i64;
    }
    lm.validate().map_err(InferError::file)?;
    let (mut projector, mut lm_weights) = (files.projector, None);
    if let Some(path) = &files.lm {
        let weights = open_lm(path, &files.vision)?;
        if let Some(path) = &config_path {
            warn_of_unread_keys(path, &LmConfig::unread_keys_of(path).map_err(InferError::file)?);
        }
        warn_of_differences(path, &files.vision);
        adopt(&mut lm, &weights, config_path.as_deref())?;
        projector = projector.or(projector_of(&weights));
        lm_weights = Some(weights);
    }
    let kind = projector.unwrap_or(ProjectorKind::default_for(lm.family));
    let weights = lm_weights.as_ref().filter(|weights| projector_of(weights) == Some(kind));
    let projector = projector_config(kind, weights, &vision).map_err(InferError::file)?;
    check_vocabulary(tokenizer, &files.tokenizer, &lm)?;
    Ok(Shapes { lm, vision, projector })
}

/// Checks that every token of the tokenizer in `folder` has an embedding.
///
/// # Errors
/// The tokenizer has more tokens.
pub(crate) fn check_vocabulary(
    tokenizer: &ChatTokenizer,
    folder: &Path,
    lm: &LmConfig,
) -> Result<(), InferError> {
    if tokenizer.vocab_size() as i64 <= lm.vocab_size {
        return Ok(());
    }
    Err(InferError::unusable(format!(
        "the tokenizer {} has {} tokens, but the language model has {} embeddings; use the \
         tokenizer that the weights were trained with",
        folder.display(),
        tokenizer.vocab_size(),
        lm.vocab_size
    )))
}

/// Creates a model with random weights and loads those of the files. The projector may be missing
/// in the file of the language model; it then keeps its random weights.
///
/// # Errors
/// A tensor that is missing or has another shape, with its name and both shapes; a file that cannot
/// be read.
pub fn build_model(
    files: &ModelFiles,
    shapes: &Shapes,
    has_encoder: bool,
    seed: u64,
    device: Device,
) -> Result<Vlm, InferError> {
    tch::manual_seed(seed as i64);
    let Shapes { lm, vision, projector } = shapes;
    let model = if has_encoder {
        Vlm::with_projector(lm, vision, projector, device)?
    } else {
        Vlm::without_encoder(lm, vision, projector, device)?
    };
    if let Some(path) = &files.lm {
        load_lm(path, &files.vision, &model, projector.kind)?;
    }
    if has_encoder {
        load_vision(&files.vision, vision, model.vision_params())?;
    }
    Ok(model)
}

fn load_lm(path: &Path, vision: &Path, model: &Vlm, kind: ProjectorKind) -> Result<(), InferError> {
    let weights = open_lm(path, vision)?;
    // A file with a projector of this type must have all of its tensors.
    let has_projector = projector_of(&weights) == Some(kind);
    let report = weights
        .load_into(&model.params().named(), |name| !has_projector && is_projector(name))
        .map_err(InferError::file)?;
    if !report.missing.is_empty() {
        tracing::info!(
            "{} has no projector, so the projector starts with random weights",
            path.display()
        );
    }
    // A file that does not record tied tensors must at least have equal values for them.
    let lm = model.lm().config();
    check_tied(lm, &weights).map_err(InferError::file)?;
    let mut surplus = report.surplus;
    if lm.tie_word_embeddings {
        let output = LmNames::weight(lm.names().output);
        surplus.retain(|name| *name != output);
    }
    // The reference's checkpoints may contain the vision encoder, which is loaded from `vision`
    // here.
    surplus.retain(|name| !name.starts_with("vision_encoder."));
    let is_computed_from =
        |name: &str| lm.names().is_computed_from(name) || has_projector && is_projector(name);
    refuse_surplus(path, &surplus, is_computed_from)?;
    surplus.retain(|name| !lm.names().is_table(name));
    warn_of_surplus(path, &surplus);
    Ok(())
}

/// Warns of keys of a `config.json` that are not supported and were ignored.
fn warn_of_unread_keys(path: &Path, keys: &[String]) {
    if !keys.is_empty() {
        tracing::warn!("{}: unknown keys were ignored: {}", path.display(), keys.join(", "));
    }
}
