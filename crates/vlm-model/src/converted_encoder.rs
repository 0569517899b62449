//! The weights of a frozen vision encoder in the type in which autocast computes.

use tch::{Kind, Tensor};

use crate::ModelError;
use crate::params::ParamStore;

/// The original weights of a converted encoder
/// ([`Vlm::convert_frozen_encoder`](crate::Vlm::convert_frozen_encoder)), which are restored when
/// this is dropped.
#[derive(Debug)]
pub struct ConvertedEncoder(Vec<(Tensor, Tensor)>);

impl ConvertedEncoder {
    /// Converts the weights of `vision_store` that are factors of products to `kind`. Does nothing
    /// if any is trained.
    ///
    /// # Errors
    /// There is no memory left.
    pub(crate) fn convert(vision_store: &ParamStore, kind: Kind) -> Result<Self, ModelError> {
        let mut originals = Self(Vec::new());
        if !vision_store.trainable().is_empty() {
            return Ok(originals);
        }
        // These are added to activations or scale them in float32.
        let is_kept = |name: &str| {
            ["norm", "position_embedding", "class_embedding"].iter().any(|part| name.contains(part))
        };
        for (name, mut tensor) in vision_store.named() {
            if !is_kept(&name) {
                let (converted, original) = (tensor.f_to_kind(kind)?, tensor.f_detach()?);
                tensor.set_data(&converted);
                originals.0.push((tensor, original));
            }
        }
        Ok(originals)
    }
}

impl Drop for ConvertedEncoder {
    fn drop(&mut self) {
        for (tensor, original) in &mut self.0 {
            tensor.set_data(original);
        }
    }
}
