//! The vision encoder, compared with Hugging Face's `CLIPVisionModel`.

use tch::Kind;

use crate::fixtures::{assert_close, model, tensors};

#[test]
fn last_hidden_state_equals_hugging_face() {
    let pixels = tensors("pixels.safetensors").remove("pixel_values").unwrap();
    let expected =
        tensors("vision_last_hidden_state.safetensors").remove("last_hidden_state").unwrap();
    let features = model("dense").encode_images(&pixels.to_kind(Kind::Float)).unwrap();
    // The class token comes first and is not a patch feature.
    assert_close("patch features", &features, &expected.narrow(1, 1, 196), 5e-5);
}
