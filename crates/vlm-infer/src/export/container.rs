//! The containers of other programs for a whole model: LLaVA, SmolVLM and LFM2-VL for Hugging Face's
//! transformers, GGUF for llama.cpp; and which of them holds a model exactly.
//!
//! A container is only used where it computes the same as the model. `docs/models.md` lists the
//! measured differences.

use serde_json::json;
use vlm_model::detect::projector_of;
use vlm_model::{ProjectorKind, VisionConfig, VisionFamily};

use super::parts::Parts;
use super::source::ExportSource;
use crate::InferError;

/// A format of other programs for a whole model.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Container {
    /// `LlavaForConditionalGeneration` of transformers.
    Llava,
    /// `SmolVLMForConditionalGeneration` of transformers 5.
    SmolVlm,
    /// `Lfm2VlForConditionalGeneration` of transformers.
    Lfm2Vl,
    /// A folder with `model.gguf` and, for a vision-language model, `mmproj.gguf` for llama.cpp.
    Gguf,
}

impl Container {
    /// All containers.
    pub const ALL: [Self; 4] = [Self::Llava, Self::SmolVlm, Self::Lfm2Vl, Self::Gguf];

    /// The name of the container, such as `llava`.
    pub fn name(self) -> &'static str {
        match self {
            Self::Llava => "llava",
            Self::SmolVlm => "smolvlm",
            Self::Lfm2Vl => "lfm2-vl",
            Self::Gguf => "gguf",
        }
    }

    /// Why the container does not hold a model with this encoder and projector exactly; `None` if
    /// it does.
    pub(super) fn reason_against(
        self,
        vision: &VisionConfig,
        projector: ProjectorKind,
    ) -> Option<String> {
        let is_clip = vision.family == VisionFamily::Clip;
        let encoder = if is_clip { "CLIP" } else { "SigLIP" };
        let found =
            format!("this model has a {encoder} encoder and a {} projector", name(projector));
        let only = |what: &str| Some(format!("{} holds only {what}, but {found}", self.name()));
        let cut = vision.image_size % vision.patch_size != 0;
        match (self, is_clip, projector) {
            (Self::Llava, true, ProjectorKind::Linear | ProjectorKind::Mlp2xGelu)
            | (Self::SmolVlm, false, ProjectorKind::PixelShuffle)
            | (Self::Lfm2Vl, false, ProjectorKind::Linear | ProjectorKind::Mlp)
            | (Self::Gguf, false, ProjectorKind::Linear)
                if !cut || self == Self::Llava =>
            {
                None
            }
            (Self::Llava, false, ProjectorKind::Linear) => Some(
                "transformers 5 computes LLaVA with a SigLIP encoder differently (logits differ \
                 by 4.9)"
                    .into(),
            ),
            (Self::Gguf, true, ProjectorKind::Linear) => Some(
                "llama.cpp computes CLIP encoders of its type mlp with the class token behind the \
                 patches and with shifted positions, so its captions differ"
                    .into(),
            ),
            (_, false, _) if cut => Some(format!(
                "the container needs an image size that is a multiple of the patch size, but this \
                 model has {} and {}",
                vision.image_size, vision.patch_size
            )),
            (Self::Llava, ..) => only("a CLIP encoder with a linear or mlp2x-gelu projector"),
            (Self::SmolVlm, ..) => only("a SigLIP encoder with a pixel-shuffle projector"),
            (Self::Lfm2Vl, ..) => only("a SigLIP encoder with a linear or mlp projector"),
            (Self::Gguf, ..) => only("a SigLIP encoder with a linear projector"),
        }
    }

    /// The container for the model of `source`: the first of [`Self::ALL`] that holds it exactly.
    ///
    /// # Errors
    /// No container holds it, with the reason; a part that cannot be found or read.
    pub fn for_model(source: &ExportSource) -> Result<Self, InferError> {
        let parts = Parts::find(source)?;
        match &parts.vision {
            Some((_, vision)) => Self::choose(vision, projector_kind(&parts)),
            None => Ok(Self::Gguf),
        }
    }

    /// The first container that holds a model with this encoder and projector exactly.
    ///
    /// # Errors
    /// No container holds it; the message says why.
    fn choose(vision: &VisionConfig, projector: ProjectorKind) -> Result<Self, InferError> {
        let holds = |container: &Self| container.reason_against(vision, projector).is_none();
        Self::ALL.into_iter().find(holds).ok_or_else(|| {
            let why = match projector {
                ProjectorKind::MergedMlp => {
                    "the merged-mlp projector joins 4 patches of one line, the containers join \
                     squares of patches"
                        .to_owned()
                }
                ProjectorKind::Mlp2xGelu => {
                    "the container with an mlp2x-gelu projector, llava, has a CLIP encoder"
                        .to_owned()
                }
                _ => format!(
                    "the containers with a {} projector have encoders without a class token, which \
                     CLIP has",
                    name(projector)
                ),
            };
            InferError::unusable(format!(
                "no container holds this model exactly: {why}; export it with `export_hf`, which \
                 this program reads"
            ))
        })
    }
}

fn name(kind: ProjectorKind) -> String {
    json!(kind).as_str().unwrap_or_default().to_owned()
}

/// The kind of the projector of a vision-language model.
pub(super) fn projector_kind(parts: &Parts) -> ProjectorKind {
    // `Parts::find` has checked that there is one.
    projector_of(&parts.weights).unwrap_or(ProjectorKind::Linear)
}

/// The error for a container that does not hold a model exactly for this `reason`, with the one that
/// does.
pub(super) fn refusal(
    container: Container,
    reason: &str,
    vision: &VisionConfig,
    projector: ProjectorKind,
) -> InferError {
    let advice = match Container::choose(vision, projector) {
        Ok(other) => format!("use {}", other.name()),
        Err(none) => none.to_string(),
    };
    let lm_alone = match container {
        Container::Gguf => "; or export the language model alone (`without_vision`)",
        _ => "",
    };
    InferError::unusable(format!(
        "the container {} does not hold this model exactly: {reason}; {advice}{lm_alone}",
        container.name()
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_combination_has_its_container_or_a_reason() {
        let clip = VisionConfig::default();
        let siglip = VisionConfig::siglip();
        let choose = |vision: &VisionConfig, kind| Container::choose(vision, kind).ok();
        assert_eq!(choose(&clip, ProjectorKind::Linear), Some(Container::Llava));
        assert_eq!(choose(&siglip, ProjectorKind::Linear), Some(Container::Lfm2Vl));
        assert_eq!(choose(&siglip, ProjectorKind::Mlp), Some(Container::Lfm2Vl));
        assert_eq!(choose(&siglip, ProjectorKind::PixelShuffle), Some(Container::SmolVlm));
        for kind in [ProjectorKind::Mlp, ProjectorKind::PixelShuffle] {
            let error = Container::choose(&clip, kind).unwrap_err().to_string();
            assert!(error.contains("class token"), "{error}");
        }
        let error = Container::choose(&siglip, ProjectorKind::MergedMlp).unwrap_err().to_string();
        assert!(error.contains("squares of patches"), "{error}");
        assert_eq!(choose(&clip, ProjectorKind::Mlp2xGelu), Some(Container::Llava));
        let error = Container::choose(&siglip, ProjectorKind::Mlp2xGelu).unwrap_err().to_string();
        assert!(error.contains("has a CLIP encoder"), "{error}");
    }

    #[test]
    fn a_container_that_differs_is_refused_with_the_one_that_fits() {
        let (vision, kind) = (VisionConfig::siglip(), ProjectorKind::Linear);
        let reason = Container::Llava.reason_against(&vision, kind).unwrap();
        let error = refusal(Container::Llava, &reason, &vision, kind).to_string();
        assert!(error.contains("transformers 5") && error.ends_with("use lfm2-vl"), "{error}");
        let clip = VisionConfig::default();
        let reason = Container::Gguf.reason_against(&clip, kind).unwrap();
        let error = refusal(Container::Gguf, &reason, &clip, kind).to_string();
        assert!(error.contains("class token") && error.contains("use llava"), "{error}");
    }
}
