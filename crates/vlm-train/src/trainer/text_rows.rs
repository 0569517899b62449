//! What rows without images train. The parameters on the path of the images into the language model
//! get a gradient from rows with images only.

use tch::{Kind, Tensor};
use vlm_model::Vlm;

/// Whether only rows with images give a parameter of this name a gradient.
fn is_image_path(name: &str) -> bool {
    name.starts_with("vision_")
}

/// Whether rows without images give any trained parameter a gradient.
pub(super) fn learns_from_text(model: &Vlm) -> bool {
    model.params().trainable().iter().any(|(name, _)| !is_image_path(name))
}

/// A loss of zero, with which a rank that has nothing to learn from takes part in the average of the
/// gradients. It depends on a parameter that every row uses where there is one, so that the reducer
/// does not take an unused parameter for a used one.
pub(super) fn zero_loss(model: &Vlm) -> Tensor {
    let trainable = model.trainable();
    let used = trainable.iter().find(|(name, _)| !is_image_path(name));
    let (_, used) = used.unwrap_or(&trainable[0]);
    (used * 0.0).sum(Kind::Float)
}

/// The trained parameters in the order in which the forward pass uses them. Gradients are sent in the
/// reverse order, so a parameter whose gradient is computed last must come first: it would delay all
/// the others.
pub(super) fn in_order_of_use(model: &Vlm) -> Vec<(String, Tensor)> {
    let mut trainable = model.vision_params().trainable();
    let (image_path, text): (Vec<_>, Vec<_>) =
        model.params().trainable().into_iter().partition(|(name, _)| is_image_path(name));
    trainable.extend(image_path);
    trainable.extend(text);
    trainable
}
