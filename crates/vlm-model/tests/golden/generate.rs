//! Greedy decoding with the key/value cache.

use tch::{IndexOp, Tensor};
use vlm_model::generate::{
    Decoded, DecodingBatch, GenerateOptions, NewRow, Prompt, RowEnd, generate,
};
use vlm_model::sampling::{Sampler, Sampling};
use vlm_model::{ImageInput, ModelBatch, Vlm};

use crate::fixtures::{assert_close, image_runs, json, model, pixels, tensors};

/// A golden prompt with its image, and the tokens and logits that the reference generated.
struct Case {
    prompt: Prompt,
    image: i64,
    tokens: Vec<i64>,
    logits: Tensor,
}

fn cases() -> Vec<Case> {
    let data = tensors("generate/generate.safetensors");
    let cases = json("generate/cases.json");
    let case = |(k, case): (usize, &serde_json::Value)| {
        let input_ids = Vec::<i64>::try_from(&data[&format!("prompt_{k}")]).unwrap();
        Case {
            prompt: Prompt { image_starts: vec![image_runs(&input_ids)[0]], input_ids },
            image: case["image_index"].as_i64().unwrap(),
            tokens: Vec::<i64>::try_from(&data[&format!("tokens_{k}")]).unwrap(),
            logits: data[&format!("logits_{k}")].shallow_clone(),
        }
    };
    cases.as_array().unwrap().iter().enumerate().map(case).collect()
}

fn generate_greedily(model: &Vlm, prompts: &[Prompt], images: &[i64]) -> Vec<Vec<i64>> {
    let options = GenerateOptions {
        max_new_tokens: 40,
        stop_token_ids: Vec::new(),
        sampling: Sampling::default(),
    };
    let images = ImageInput::Pixels(pixels(&Tensor::from_slice(images)));
    let mut streamed = vec![Vec::new(); prompts.len()];
    let generated =
        generate(model, prompts, images, &options, &mut |row, id| streamed[row].push(id)).unwrap();
    assert_eq!(streamed, generated, "each token is passed to the callback");
    generated
}

#[test]
fn greedy_tokens_equal_the_reference() {
    let model = model("dense");
    for (k, case) in cases().into_iter().enumerate() {
        let prompts = std::slice::from_ref(&case.prompt);
        let tokens = generate_greedily(&model, prompts, &[case.image]).remove(0);
        assert_eq!(tokens, case.tokens, "prompt {k}");

        // One forward pass over the whole text gives the logits of the cached steps.
        let mut whole = case.prompt.input_ids.clone();
        whole.extend(&case.tokens[..39]);
        let batch = ModelBatch {
            input_ids: Tensor::from_slice(&whole).unsqueeze(0),
            packed_lengths: None,
            images: ImageInput::Pixels(pixels(&Tensor::from_slice(&[case.image]))),
            image_starts: vec![(0, case.prompt.image_starts[0])],
        };
        let hidden = model.forward(&batch, None, false).unwrap().hidden;
        let from = case.prompt.input_ids.len() as i64 - 1;
        let logits = model.lm().logits(&hidden.i(0).narrow(0, from, 40));
        assert_close(&format!("logits of prompt {k}"), &logits, &case.logits, 1e-4);
    }
}

#[test]
fn prompts_of_different_lengths_in_a_batch_generate_the_same_tokens_as_alone() {
    let model = model("dense");
    let cases = cases();
    let images: Vec<i64> = cases.iter().map(|case| case.image).collect();
    // The golden prompts, each without some of its last tokens.
    let prompts: Vec<Prompt> = cases
        .iter()
        .enumerate()
        .map(|(k, case)| {
            let mut prompt = case.prompt.clone();
            prompt.input_ids.truncate(prompt.input_ids.len() - 2 * k);
            prompt
        })
        .collect();
    let lengths: Vec<usize> = prompts.iter().map(|prompt| prompt.input_ids.len()).collect();
    assert!(lengths.windows(2).any(|pair| pair[0] != pair[1]), "{lengths:?}");
    let together = generate_greedily(&model, &prompts, &images);
    for ((prompt, &image), together) in prompts.iter().zip(&images).zip(&together) {
        let alone = generate_greedily(&model, std::slice::from_ref(prompt), &[image]);
        assert_eq!(alone[0], *together);
    }
    assert_eq!(together[0], cases[0].tokens, "the prompt that was not shortened");
}

#[test]
fn a_row_that_ends_does_not_change_the_others() {
    let model = model("dense");
    let cases = cases();
    let prompts: Vec<Prompt> = cases.iter().map(|case| case.prompt.clone()).collect();
    let images: Vec<i64> = cases.iter().map(|case| case.image).collect();
    // Each row ends at the first of these two tokens.
    let ends = [cases[0].tokens[5], cases[1].tokens[9]];
    let options = GenerateOptions {
        max_new_tokens: 40,
        stop_token_ids: ends.to_vec(),
        sampling: Sampling::default(),
    };
    let images = ImageInput::Pixels(pixels(&Tensor::from_slice(&images)));
    let generated = generate(&model, &prompts, images, &options, &mut |_, _| ()).unwrap();
    for (tokens, case) in generated.iter().zip(&cases) {
        let len = case.tokens.iter().position(|id| ends.contains(id)).unwrap_or(40);
        assert_eq!(tokens[..], case.tokens[..len]);
    }
    assert!(generated[0].len() <= 5 && generated[1].len() <= 9);
}

#[test]
fn rows_that_join_a_running_batch_and_rows_that_are_removed_do_not_change_the_others() {
    let model = model("dense");
    let cases = cases();
    let mut tokens = vec![Vec::new(); cases.len()];
    let mut ends = vec![None; cases.len()];
    let mut batch = DecodingBatch::new(&model, Vec::new());
    let mut record = |decoded: Vec<Decoded>| {
        for Decoded { key, id, end } in decoded {
            tokens[key as usize].extend(id);
            ends[key as usize] = end;
        }
    };
    // The rows join seven steps apart, the shortest prompt first, and the second leaves again.
    let mut order: Vec<usize> = (0..cases.len()).collect();
    order.sort_by_key(|&k| cases[k].prompt.input_ids.len());
    let left = order[1];
    for &k in &order {
        let row = NewRow {
            key: k as u64,
            prompt: &cases[k].prompt,
            sampler: Sampler::new(&Sampling::default(), 0, &cases[k].prompt.input_ids),
            max_new_tokens: 40,
        };
        let images = ImageInput::Pixels(pixels(&Tensor::from_slice(&[cases[k].image])));
        record(batch.add(vec![row], images).unwrap());
        for _ in 0..7 {
            record(batch.step().unwrap());
        }
        if k != left {
            batch.retain(|key| key != left as u64);
        }
    }
    while !batch.is_empty() {
        record(batch.step().unwrap());
    }
    for (k, case) in cases.iter().enumerate() {
        let len = tokens[k].len();
        assert_eq!(tokens[k], case.tokens[..len], "prompt {k}");
        assert_eq!((len == 40, ends[k]), (k != left, (k != left).then_some(RowEnd::Length)));
    }
}

#[test]
fn a_row_without_further_positions_ends_alone() {
    let model = model("dense");
    let max_positions = model.lm().max_positions() as usize;
    let row = |key, prompt| NewRow {
        key,
        prompt,
        sampler: Sampler::new(&Sampling::default(), 0, &[]),
        max_new_tokens: 9,
    };
    let prompt = |len| Prompt { input_ids: vec![5; len], image_starts: Vec::new() };
    let (long, short) = (prompt(max_positions - 1), prompt(3));
    let mut batch = DecodingBatch::new(&model, Vec::new());
    let first = batch.add(vec![row(0, &long), row(1, &short)], ImageInput::None).unwrap();
    assert!(first.iter().all(|decoded| decoded.end.is_none()), "{first:?}");
    let second = batch.step().unwrap();
    assert_eq!((second[0].end, second[1].end), (Some(RowEnd::Length), None));
    let mut num_tokens = 2;
    while !batch.is_empty() {
        num_tokens += batch.step().unwrap().len();
    }
    assert_eq!(num_tokens, 9);
}
