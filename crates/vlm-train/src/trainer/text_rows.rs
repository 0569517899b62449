//! Handles rows without images: only rows with images give the vision encoder and the projector a
//! gradient.

use tch::{Kind, Tensor};
use vlm_model::Vlm;

/// Whether a parameter with this name gets a gradient only from rows with images.
fn is_image_path(name: &str) -> bool {
    name.starts_with("vision_")
}

/// Whether any trained parameter gets a gradient from rows without images.
pub(super) fn learns_from_text(model: &Vlm) -> bool {
    model.params().trainable().iter().any(|(name, _)| !is_image_path(name))
}

/// A loss of zero, with which a rank without a loss takes part in the averaging of the gradients.
/// If possible it depends on a parameter that every row uses, so that the reducer does not treat a
/// parameter as used that no rank uses.
pub(super) fn zero_loss(model: &Vlm) -> Tensor {
    let trainable = model.trainable();
    let used = trainable.iter().find(|(name, _)| !is_image_path(name));
    let (_, used) = used.unwrap_or(&trainable[0]);
    (used * 0.0).sum(Kind::Float)
}

/// The trained parameters in the order in which the forward pass uses them. The gradients are sent
/// in the reverse order, which is the order in which the backward pass computes them.
pub(super) fn in_order_of_use(model: &Vlm) -> Vec<(String, Tensor)> {
    let mut trainable = model.vision_params().trainable();
    let (image_path, text): (Vec<_>, Vec<_>) =
        model.params().trainable().into_iter().partition(|(name, _)| is_image_path(name));
    trainable.extend(image_path);
    trainable.extend(text);
    trainable
}
