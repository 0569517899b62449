//! Opens the weights of a language model or a vision encoder whose names have the prefixes of other
//! programs.
//!
//! PyTorch's wrappers (`module.`, `_orig_mod.`) and vision-language models
//! (`model.language_model.`, `vision_tower.`) add prefixes to the names. A part is found by the
//! name of its embeddings, and its tensors are renamed to the names in this crate's models.

use std::path::Path;

use crate::weights::{Transform, Weights, WeightsError};
use crate::{LmFamily, containers, open_clip, vision};
use vlm_shapes::{ForeignModel, LmNames, OpenClip, VisionConfig};

/// Components that PyTorch's wrappers add to names, at any place.
const WRAPPERS: [&str; 4] =
    ["_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module", "_forward_module"];

/// The prefix that `DistributedDataParallel` and DeepSpeed add to all names.
const OUTER_WRAPPER: &str = "module.";

/// Largest number of names that a message lists.
const LISTED_NAMES: usize = 6;

/// Opens the weights of a language model, whose file may also hold other parts. The language
/// model's tensors are renamed to the names of [`LmNames`]; those of other parts lose only the
/// prefix that all tensors have. Of a [`ForeignModel`] the projector is read too, under this
/// crate's names.
///
/// # Errors
/// As [`Weights::open`]. The file is a LoRA adapter, or has no embeddings of a supported name; the
/// message lists its names. The projector of a [`ForeignModel`] is not supported.
pub fn open_language_model(path: &Path) -> Result<Weights, WeightsError> {
    let weights = without_wrappers(Weights::open(path)?)?;
    refuse_adapter(&weights)?;
    let Some(model) = ForeignModel::beside(path) else { return language_model(weights) };
    let kind = containers::projector_of(&weights, &model)?;
    language_model(containers::language_model(weights, &model, Some(kind))?)
}

/// As [`open_language_model`], without the projector of a [`ForeignModel`].
///
/// # Errors
/// As [`open_language_model`].
pub fn open_language_model_alone(path: &Path) -> Result<Weights, WeightsError> {
    let weights = without_wrappers(Weights::open(path)?)?;
    refuse_adapter(&weights)?;
    match ForeignModel::beside(path) {
        Some(model) => language_model(containers::language_model(weights, &model, None)?),
        None => language_model(weights),
    }
}

fn language_model(weights: Weights) -> Result<Weights, WeightsError> {
    let minimind = LmNames::of(LmFamily::MiniMind);
    let hugging_face = LmNames::of(LmFamily::Llama);
    if let Some(prefix) = prefix_before(&weights, minimind.embeddings)? {
        log_prefix(&weights, &prefix, "");
        return weights.renamed(|name| without(name, &prefix).to_owned());
    }
    // Of `model.embed_tokens`, `model.` is the name of the module around the blocks.
    let (body, embeddings) = hugging_face.embeddings.rsplit_once('.').unwrap_or_default();
    let body = format!("{body}.");
    let Some(prefix) = prefix_before(&weights, embeddings)? else {
        return Err(weights.refused(format!(
            "it has no embeddings of a supported language model; expected {:?} or {:?}, with any \
             prefix, found {}",
            LmNames::weight(hugging_face.embeddings),
            LmNames::weight(minimind.embeddings),
            listed(weights.names())
        )));
    };
    log_prefix(&weights, &prefix, &body);
    if let Some(whole) = prefix.strip_suffix(&body) {
        return weights.renamed(|name| without(name, whole).to_owned());
    }
    let parts = ["embed_tokens.", "layers.", "norm.", "rotary_emb."];
    let head = prefix_before(&weights, hugging_face.output)?;
    weights.renamed(|name| {
        if let Some(rest) = name.strip_prefix(&prefix)
            && parts.iter().any(|part| rest.starts_with(part))
        {
            return format!("{body}{rest}");
        }
        head.as_deref()
            .and_then(|head| name.strip_prefix(head))
            .filter(|rest| without(rest, hugging_face.output).starts_with('.'))
            .unwrap_or(name)
            .to_owned()
    })
}

/// Opens the weights of a vision encoder, whose file may also hold other parts. The encoder's
/// tensors are renamed to Hugging Face's names of CLIP and SigLIP; those of an [`OpenClip`], too.
///
/// # Errors
/// As [`Weights::open`]. The file is a LoRA adapter, or has no supported encoder; the message lists
/// its names.
pub fn open_vision_encoder(path: &Path) -> Result<Weights, WeightsError> {
    let mut weights = without_wrappers(Weights::open(path)?)?;
    refuse_adapter(&weights)?;
    if let Some(model) = ForeignModel::beside(path) {
        weights = containers::vision_encoder(weights, &model)?;
    }
    let tower = OpenClip::beside(path).map_err(|error| weights.refused(error.to_string()))?;
    if let Some(tower) = tower {
        weights = open_clip::vision_encoder(weights, &tower)?;
    }
    let Some(prefix) = prefix_before(&weights, vision::PATCH_EMBEDDING)? else {
        return Err(weights.refused(format!(
            "it has no supported vision encoder; expected \"vision_model.{}.weight\", with any \
             prefix, found {}",
            vision::PATCH_EMBEDDING,
            listed(weights.names())
        )));
    };
    let scope = vision::scope();
    log_prefix(&weights, &prefix, &scope);
    weights.renamed(|name| match name.strip_prefix(&prefix) {
        Some(rest) if vision::is_within_tower(rest) => format!("{scope}{rest}"),
        _ => name.to_owned(),
    })
}

/// As [`open_vision_encoder`], for the encoder in `folder` with the number of patches of `config`:
/// if it was trained with another one, its position embeddings are interpolated.
///
/// # Errors
/// As [`open_vision_encoder`]. The configuration in the folder is not that of the weights.
pub fn open_vision_encoder_as(
    folder: &Path,
    config: &VisionConfig,
) -> Result<Weights, WeightsError> {
    let weights = open_vision_encoder(folder)?;
    let trained = VisionConfig::from_folder(folder);
    let trained = trained.map_err(|error| weights.refused(error.to_string()))?;
    let (from, to) = (trained.patches_per_side(), config.patches_per_side());
    if from == to {
        return Ok(weights);
    }
    let table = vision::position_embedding();
    let before = trained.num_positions() - trained.num_patches();
    tracing::info!(
        "{}: the position embeddings are interpolated from {from} × {from} to {to} × {to} patches",
        folder.display()
    );
    weights.derived(|info| {
        let is_table = info.name == table;
        let grid = is_table.then_some(Transform::Grid { before, from, to });
        vec![(info.name.clone(), grid.into_iter().collect())]
    })
}

/// The first few of `names`, for a message.
pub fn listed<'a>(names: impl Iterator<Item = &'a str>) -> String {
    let names: Vec<&str> = names.collect();
    let first: Vec<String> =
        names.iter().take(LISTED_NAMES).map(|name| format!("{name:?}")).collect();
    match names.len() {
        0 => "no tensors".to_owned(),
        count if count > LISTED_NAMES => {
            format!("{} and {} more", first.join(", "), count - LISTED_NAMES)
        }
        _ => first.join(", "),
    }
}

fn without<'a>(name: &'a str, prefix: &str) -> &'a str {
    name.strip_prefix(prefix).unwrap_or(name)
}

fn without_wrappers(weights: Weights) -> Result<Weights, WeightsError> {
    weights.renamed(|name| {
        let parts: Vec<&str> = name.split('.').filter(|part| !WRAPPERS.contains(part)).collect();
        let mut name = parts.join(".");
        while let Some(rest) = name.strip_prefix(OUTER_WRAPPER) {
            name = rest.to_owned();
        }
        name
    })
}

/// The prefix before `part` in the name of its weight; `None` if there is no such tensor.
fn prefix_before(weights: &Weights, part: &str) -> Result<Option<String>, WeightsError> {
    let weight = LmNames::weight(part);
    let prefixes: Vec<&str> = weights
        .names()
        .filter_map(|name| name.strip_suffix(&weight))
        .filter(|prefix| prefix.is_empty() || prefix.ends_with('.'))
        .collect();
    match prefixes.as_slice() {
        [] => Ok(None),
        [prefix] => Ok(Some((*prefix).to_owned())),
        several => {
            let names: Vec<String> = several.iter().map(|p| format!("{p}{weight}")).collect();
            Err(weights.refused(format!(
                "it has several models ({}); save the one to be loaded to a file of its own",
                listed(names.iter().map(String::as_str))
            )))
        }
    }
}

fn refuse_adapter(weights: &Weights) -> Result<(), WeightsError> {
    let is_adapter =
        |name: &str| name.split('.').any(|part| part == "lora" || part.starts_with("lora_"));
    match weights.names().find(|name| is_adapter(name)) {
        None => Ok(()),
        Some(name) => Err(weights.refused(format!(
            "it is a LoRA adapter ({name:?}), which is not supported; merge it into its model \
             first, in Python: PeftModel.from_pretrained(model, folder).merge_and_unload()\
             .save_pretrained(merged)"
        ))),
    }
}

fn log_prefix(weights: &Weights, found: &str, expected: &str) {
    if found != expected {
        tracing::info!(
            "{}: the prefix {found:?} of its names is read as {expected:?}",
            weights.path().display()
        );
    }
}
