//! Reads the golden files.

use std::collections::HashMap;
use std::path::PathBuf;

use tch::{Device, IndexOp, Kind, Tensor};
use vlm_model::lm::CausalLm;
use vlm_model::{ImageInput, KvCache, LmConfig, ModelBatch, VisionConfig, Vlm};

/// Number of placeholder tokens of an image in the golden rows.
pub const IMAGE_TOKENS: i64 = 196;
/// Id of the placeholder token in the golden rows.
const IMAGE_TOKEN_ID: i64 = 34;

/// A file under `tests/golden`.
pub fn golden(name: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../tests/golden").join(name)
}

/// All tensors of a golden `.safetensors` file.
pub fn tensors(name: &str) -> HashMap<String, Tensor> {
    let path = golden(name);
    let read = Tensor::read_safetensors(&path);
    read.unwrap_or_else(|e| panic!("{}: {e}", path.display())).into_iter().collect()
}

/// A golden `.json` file.
pub fn json(name: &str) -> serde_json::Value {
    serde_json::from_str(&std::fs::read_to_string(golden(name)).unwrap()).unwrap()
}

/// The small model of a folder (`dense` or `moe`), with the small vision tower.
pub fn model(folder: &str) -> Vlm {
    let lm = LmConfig::from_file(&golden(&format!("{folder}/config.json"))).unwrap();
    let vision = VisionConfig::from_file(&golden("vision_tower/config.json")).unwrap();
    let model = Vlm::new(&lm, &vision, Device::Cpu).unwrap();
    let files = [
        (model.params(), format!("{folder}/lm_vlm.safetensors")),
        (model.vision_params(), "vision_tower/model.safetensors".to_owned()),
    ];
    for (params, file) in files {
        let source = tensors(&file);
        for (name, mut tensor) in params.named() {
            let from = source.get(&name).unwrap_or_else(|| panic!("{file} has no {name}"));
            tch::no_grad(|| tensor.copy_(from));
        }
    }
    model
}

/// Pixels of the golden images with these indices, `[N, 3, 224, 224]`, float32.
pub fn pixels(indices: &Tensor) -> Tensor {
    let pool = tensors("pixels.safetensors").remove("pixel_values").unwrap();
    pool.to_kind(Kind::Float).index_select(0, &indices.flatten(0, -1))
}

/// A golden batch as the model takes it.
pub struct Rows {
    pub batch: ModelBatch,
    /// Indices into the flattened ids where the loss mask is 1.
    pub supervised: Tensor,
    pub targets: Tensor,
}

/// Builds the batch from `X`, `Y`, `loss_mask` `[B, T]` and `image_index` `[B, num]`. The k-th run
/// of 196 placeholders in a row takes the row's k-th image. A run without an image, or an image
/// without a run, is ignored, as in the reference.
pub fn rows(x: &Tensor, y: &Tensor, mask: &Tensor, image_index: &Tensor) -> Rows {
    let supervised = mask.flatten(0, -1).nonzero().flatten(0, -1);
    let targets = y.flatten(0, -1).index_select(0, &supervised);
    let (mut image_starts, mut shown) = (Vec::new(), Vec::new());
    for row in 0..x.size()[0] {
        let ids = Vec::<i64>::try_from(x.i(row)).unwrap();
        let images = Vec::<i64>::try_from(image_index.i(row)).unwrap();
        for (start, image) in image_runs(&ids).into_iter().zip(images) {
            image_starts.push((row, start));
            shown.push(image);
        }
    }
    let batch = ModelBatch {
        input_ids: x.shallow_clone(),
        packed_lengths: None,
        images: ImageInput::Pixels(pixels(&Tensor::from_slice(&shown))),
        image_starts,
    };
    Rows { batch, supervised, targets }
}

/// The start of each image's placeholders in a row; 392 placeholders in sequence are two images.
pub fn image_runs(ids: &[i64]) -> Vec<i64> {
    let (mut starts, mut at) = (Vec::new(), 0);
    let width = IMAGE_TOKENS as usize;
    while at + width <= ids.len() {
        if ids[at..at + width].iter().all(|&id| id == IMAGE_TOKEN_ID) {
            starts.push(at as i64);
            at += width;
        } else {
            at += 1;
        }
    }
    starts
}

/// The largest absolute difference.
pub fn max_difference(a: &Tensor, b: &Tensor) -> f64 {
    assert_eq!(a.size(), b.size());
    f64::try_from((a - b).abs().max()).unwrap()
}

/// Asserts that `a` and `b` differ by at most `tolerance`, and prints the largest difference.
pub fn assert_close(what: &str, a: &Tensor, b: &Tensor, tolerance: f64) {
    let difference = max_difference(a, b);
    println!("{what}: max |d| {difference:.2e} (tolerance {tolerance:.0e})");
    assert!(difference <= tolerance, "{what}: {difference:e} is over {tolerance:e}");
}

/// The logits `[B, T, vocabulary]` of `input_ids` `[B, T]`.
pub fn logits(lm: &CausalLm, input_ids: &Tensor) -> Tensor {
    tch::no_grad(|| lm.logits(&lm.forward(&lm.embed(input_ids), None, false).hidden))
}

/// Asserts that the hidden states of a text that is read in pieces with a key/value cache differ by
/// at most `tolerance` from those of one pass.
pub fn assert_cached_steps_equal_one_pass(what: &str, lm: &CausalLm, tolerance: f64) {
    let ids = Tensor::randint(lm.config().vocab_size, [2, 7], (Kind::Int64, Device::Cpu));
    let whole = lm.forward(&lm.embed(&ids), None, false).hidden;
    let mut cache = KvCache::default();
    for (start, len) in [(0, 4), (4, 1), (5, 2)] {
        let piece = lm.embed(&ids.narrow(1, start, len));
        let found = lm.forward(&piece, Some(&mut cache), false).hidden;
        assert_close(what, &found, &whole.narrow(1, start, len), tolerance);
    }
}
