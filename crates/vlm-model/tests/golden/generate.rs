//! Greedy answers with the key/value cache.

use tch::{IndexOp, Tensor};
use vlm_model::generate::{GenerateOptions, generate_greedy};
use vlm_model::{ImageInput, ModelBatch};

use crate::fixtures::{assert_close, image_runs, json, model, pixels, tensors};

#[test]
fn greedy_tokens_equal_the_reference() {
    let model = model("dense");
    let data = tensors("generate/generate.safetensors");
    let cases = json("generate/cases.json");
    for (k, case) in cases.as_array().unwrap().iter().enumerate() {
        let prompt = &data[&format!("prompt_{k}")];
        let start = image_runs(&Vec::<i64>::try_from(prompt).unwrap())[0];
        let image = case["image_index"].as_i64().unwrap();
        let batch = |ids: &Tensor| ModelBatch {
            input_ids: ids.unsqueeze(0),
            images: ImageInput::Pixels(pixels(&Tensor::from_slice(&[image]))),
            image_starts: vec![(0, start)],
        };
        let options = GenerateOptions { max_new_tokens: 40, eos_token_id: None };
        let answer = generate_greedy(&model, &batch(prompt), &options).unwrap().remove(0);
        let expected = &data[&format!("tokens_{k}")];
        assert_eq!(answer, Vec::<i64>::try_from(expected).unwrap(), "prompt {k}");

        // The whole text in one pass gives the logits that the cached steps were taken from.
        let whole = Tensor::cat(&[prompt, &expected.narrow(0, 0, 39)], 0);
        let hidden = model.forward(&batch(&whole), None, false).unwrap().hidden;
        let logits = model.lm().logits(&hidden.i(0).narrow(0, prompt.size()[0] - 1, 40));
        assert_close(
            &format!("logits of answer {k}"),
            &logits,
            &data[&format!("logits_{k}")],
            1e-4,
        );
    }
}
