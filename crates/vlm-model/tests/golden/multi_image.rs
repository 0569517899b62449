//! Several images per row. One test shows a difference on purpose, where the reference has a bug.

use tch::{IndexOp, Tensor};

use crate::fixtures::{
    IMAGE_TOKENS, assert_close, image_runs, max_difference, model, pixels, rows, tensors,
};

fn check(case: &str) {
    let model = model("dense");
    let data = tensors(&format!("multi_image/{case}.safetensors"));
    let rows = rows(&data["X"], &data["Y"], &data["loss_mask"], &data["image_index"]);
    let hidden = model.forward(&rows.batch, None, true).unwrap().hidden;
    let at = hidden.index_select(1, &data["logit_positions"]);
    assert_close(&format!("{case}: logits"), &model.lm().logits(&at), &data["logits_at"], 1e-4);

    let loss = model.loss(&rows.batch, &rows.supervised, &rows.targets, true).unwrap();
    let mean = loss.sum / loss.num_supervised as f64;
    assert_close(&format!("{case}: loss"), &mean.view([1]), &data["loss"].view([1]), 1e-5);
    mean.backward();
    for (name, tensor) in model.trainable() {
        let Some(golden) = data.get(&format!("grad/{name}")) else { continue };
        let scale = f64::try_from(golden.abs().max()).unwrap();
        let relative = max_difference(&tensor.grad(), golden) / scale;
        assert!(relative <= 1e-4, "{case}: {name}: gradient differs by {relative:e}");
    }
}

#[test]
fn two_images_per_row_equal_the_reference() {
    check("two_images");
}

#[test]
fn one_row_of_two_images_equals_the_reference() {
    check("two_images_batch1");
}

#[test]
fn two_turns_equal_the_reference() {
    check("two_turns");
}

#[test]
fn truncated_text_equals_the_reference() {
    check("trunc_mid_text");
}

#[test]
fn text_only_rows_beside_rows_with_images_equal_the_reference() {
    check("mixed_with_text_only");
}

#[test]
fn raw_placeholders_equal_the_reference() {
    // The data pipeline rejects such rows; the model computes them.
    check("three_placeholders_two_images");
    check("trunc_mid_second_image");
}

#[test]
fn adjacent_images_do_not_overwrite_each_other() {
    // The reference puts the second image one token after the start of the first. Here each image
    // has its own 196 placeholders.
    let model = model("dense");
    let data = tensors("multi_image/adjacent_images_asis_bug.safetensors");
    let rows = rows(&data["X"], &data["Y"], &data["loss_mask"], &data["image_index"]);
    let starts = image_runs(&Vec::<i64>::try_from(data["X"].i(0)).unwrap());
    assert_eq!(starts.len(), 2);
    assert_eq!(starts[1], starts[0] + IMAGE_TOKENS);
    let embedded = model.embed(&rows.batch).unwrap();
    for (start, image) in starts.iter().zip(Vec::<i64>::try_from(data["image_index"].i(0)).unwrap())
    {
        let alone = vlm_model::ModelBatch {
            input_ids: Tensor::full([1, IMAGE_TOKENS], 34, (tch::Kind::Int64, tch::Device::Cpu)),
            packed_lengths: None,
            images: vlm_model::ImageInput::Pixels(pixels(&Tensor::from_slice(&[image]))),
            image_starts: vec![(0, 0)],
        };
        let expected = model.embed(&alone).unwrap().i(0);
        let found = embedded.i(0).narrow(0, *start, IMAGE_TOKENS);
        assert_close("features of an adjacent image", &found, &expected, 1e-5);
    }
}
