//! The mixture of experts, compared with the reference without its cast to float16.

use tch::{IndexOp, Tensor};

use crate::fixtures::{Rows, assert_close, max_difference, model, rows, tensors};

fn first_batch() -> Rows {
    let inputs = tensors("moe/inputs.safetensors");
    rows(
        &inputs["X"].i(0),
        &inputs["Y"].i(0),
        &inputs["loss_mask"].i(0),
        &inputs["image_index"].i(0),
    )
}

#[test]
fn logits_and_losses_equal_the_reference() {
    let (model, rows) = (model("moe"), first_batch());
    let expected = tensors("moe/forward_f32.safetensors");
    let hidden = model.forward(&rows.batch, None, true).unwrap().hidden;
    let at = hidden.index_select(1, &expected["logit_positions"]);
    assert_close("logits", &model.lm().logits(&at), &expected["logits_at"], 1e-4);
    // Evaluation gives the same hidden states and has no auxiliary loss.
    let evaluated = model.forward(&rows.batch, None, false).unwrap();
    assert!(evaluated.aux_loss.is_none());
    assert_close("hidden states in evaluation", &evaluated.hidden, &hidden, 1e-5);

    let loss = model.loss(&rows.batch, &rows.supervised, &rows.targets, true).unwrap();
    let mean = (loss.sum / loss.num_supervised as f64).view([1]);
    assert_close("cross-entropy", &mean, &expected["ce"], 1e-5);
    assert_close("auxiliary loss", &loss.aux_loss.unwrap().view([1]), &expected["aux_loss"], 1e-5);
}

#[test]
fn gradients_equal_the_reference() {
    let (model, rows) = (model("moe"), first_batch());
    let loss = model.loss(&rows.batch, &rows.supervised, &rows.targets, true).unwrap();
    (loss.sum / loss.num_supervised as f64 + loss.aux_loss.unwrap()).backward();
    let expected = tensors("moe/grads_f32.safetensors");
    let trainable = model.trainable();
    assert_eq!(trainable.len(), expected.len());
    for (name, tensor) in &trainable {
        let golden = &expected[name];
        let scale = f64::try_from(golden.abs().max()).unwrap();
        let relative = max_difference(&tensor.grad(), golden) / scale;
        assert!(relative <= 1e-4, "{name}: gradient differs by {relative:e} of its largest");
    }
}

#[test]
fn the_gradient_of_an_expert_without_tokens_is_zero() {
    let model = model("moe");
    let ids = Tensor::full([1, 1], 7, (tch::Kind::Int64, tch::Device::Cpu));
    let batch = vlm_model::ModelBatch {
        input_ids: ids,
        packed_lengths: None,
        images: vlm_model::ImageInput::None,
        image_starts: Vec::new(),
    };
    // One token goes to two of the four experts.
    let at = Tensor::from_slice(&[0i64]);
    let loss = model.loss(&batch, &at, &at, true).unwrap();
    loss.sum.backward();
    let experts = model.trainable().into_iter().filter(|(name, _)| name.contains(".experts."));
    let idle = experts
        .map(|(name, tensor)| {
            assert!(tensor.grad().defined(), "{name} has no gradient");
            f64::try_from(tensor.grad().abs().max()).unwrap()
        })
        .filter(|&largest| largest == 0.0)
        .count();
    assert_eq!(idle, 2 * 3, "two experts of three matrices each");
}
