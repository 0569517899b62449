//! Tests of whole models of other programs: their folders, as those programs wrote them, are opened
//! without further settings, and give the logits and the loss that those programs computed. The
//! folders are made by `tests/golden/foreign_models.py`.

use std::collections::HashMap;
use std::fs;
use std::path::{Path, PathBuf};

use serde_json::{Value, json};
use tch::{Device, Kind, Tensor};
use vlm_infer::{
    InferError, LoadOptions, ModelFiles, ShapeRequest, VisionLanguageModel, build_model,
    image_processor, open_tokenizer, settle_shapes, user_turn, write_preprocessor,
};
use vlm_model::part_files::{open_language_model, open_vision_encoder};
use vlm_model::weights::{Format, Weights, save};
use vlm_model::{ImageInput, ModelBatch, ProjectorKind, VisionConfig};

/// Tolerance of logits and of the loss in float32. The largest difference that was observed is
/// 5e-6, with logits up to 5.
const TOLERANCE: f64 = 1e-5;

/// Position of the image in the golden rows.
const IMAGE_START: i64 = 5;

/// Number of tokens after the image, which the golden loss is the mean of.
const NUM_TARGETS: i64 = 9;

fn golden() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/golden/foreign_models")
}

fn expected(name: &str) -> HashMap<String, Tensor> {
    let path = golden().join(name).join("expected.safetensors");
    Tensor::read_safetensors(path).unwrap().into_iter().collect()
}

/// A copy of a golden folder, with the tokenizer's files in it.
fn whole_folder(name: &str) -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    for from in [golden().join(name), golden().join("tokenizer")] {
        for entry in fs::read_dir(from).unwrap() {
            let entry = entry.unwrap();
            fs::copy(entry.path(), folder.path().join(entry.file_name())).unwrap();
        }
    }
    fs::remove_file(folder.path().join("expected.safetensors")).unwrap();
    folder
}

fn options(folder: &Path) -> LoadOptions {
    let mut options = LoadOptions::new(folder);
    options.device = "cpu".into();
    options
}

fn open(folder: &Path) -> Result<VisionLanguageModel, InferError> {
    VisionLanguageModel::open(&options(folder))
}

/// Compares a model with the golden numbers of `name`.
fn assert_equals_golden(name: &str, opened: &VisionLanguageModel) {
    let golden = expected(name);
    let input_ids = golden["input_ids"].shallow_clone();
    let batch = ModelBatch {
        input_ids: input_ids.shallow_clone(),
        packed_lengths: None,
        images: ImageInput::Pixels(golden["pixel_values"].to_kind(Kind::Float)),
        image_starts: vec![(0, IMAGE_START)],
    };
    let output = tch::no_grad(|| opened.model.forward(&batch, None, false)).unwrap();
    let logits = opened.model.lm().logits(&output.hidden);
    let difference = f64::try_from((&logits - &golden["logits"]).abs().max()).unwrap();
    let length = input_ids.size()[1];
    let targets = input_ids.narrow(1, length - NUM_TARGETS, NUM_TARGETS).flatten(0, -1);
    let predicted = logits.narrow(1, length - NUM_TARGETS - 1, NUM_TARGETS).flatten(0, 1);
    let loss = predicted.cross_entropy_for_logits(&targets).double_value(&[]);
    let off = (loss - golden["loss"].double_value(&[0])).abs();
    println!("{name}: logits within {difference:.1e}, loss within {off:.1e}");
    assert!(difference <= TOLERANCE && off <= TOLERANCE, "{name}: {difference:e}, {off:e}");
    assert_eq!(opened.model.tokens_per_image(), length - 14, "{name}");
}

#[test]
fn folders_of_transformers_give_its_logits() {
    for name in [
        "llava_linear", "llava_1_5", "llava_qwen2", "llava_qwen3_moe", "llava_qwen2_moe",
        "smolvlm", "idefics3", "lfm2_vl",
    ] {
        let folder = whole_folder(name);
        let opened = open(folder.path()).unwrap_or_else(|error| panic!("{name}: {error}"));
        assert_eq!(opened.tokenizer.placeholder().token(), "<image>", "{name}");
        assert_eq!(opened.processor.image_size() as i64, expected(name)["pixel_values"].size()[2]);
        assert_equals_golden(name, &opened);
    }
}

#[test]
fn a_folder_of_nanovlm_needs_a_tokenizer_and_gives_its_logits() {
    let error = open(&golden().join("nanovlm")).err().unwrap().to_string();
    for part in ["set `tokenizer`", "SmolLM2-360M-Instruct", "vlm_extra_tokens"] {
        assert!(error.contains(part), "{error}");
    }
    let mut options = options(&golden().join("nanovlm"));
    options.tokenizer = Some(golden().join("tokenizer"));
    let opened = VisionLanguageModel::open(&options).unwrap();
    assert_equals_golden("nanovlm", &opened);
    // Its pixels are from 0 to 1.
    let levels = opened.processor.levels();
    assert_eq!((levels[0][0], levels[2][255]), (0.0, 1.0));
}

#[test]
fn a_minimind_v_needs_its_encoder_and_gives_the_logits_of_the_two() {
    let folder = whole_folder("minimind3v");
    let error = open(folder.path()).err().unwrap().to_string();
    assert!(error.contains("set `vision`") && error.contains("the width 24"), "{error}");
    let mut options = options(folder.path());
    options.vision = Some(golden().join("minimind3v-encoder"));
    assert_equals_golden("minimind3v", &VisionLanguageModel::open(&options).unwrap());
}

#[test]
fn a_model_saved_again_under_our_names_is_the_same() {
    // What a run writes: weights in our own names, the tokenizer and the encoder beside them.
    for name in ["llava_1_5", "idefics3", "llava_qwen2_moe", "lfm2_vl"] {
        let folder = whole_folder(name);
        let opened = open(folder.path()).unwrap();
        let files = ModelFiles {
            lm: Some(folder.path().to_owned()),
            vision: folder.path().to_owned(),
            image_size: None,
            tokenizer: folder.path().to_owned(),
            image_token: None,
            projector: None,
        };
        let tokenizer = open_tokenizer(&files).unwrap();
        let shapes = settle_shapes(&files, &ShapeRequest::default(), &tokenizer, 0).unwrap();
        let again = whole_folder(name);
        let encoder = again.path().join("vision");
        fs::create_dir(&encoder).unwrap();
        let write = |folder: &Path, tensors: &[(String, Tensor)], config: &Value| {
            save(&folder.join("model.safetensors"), tensors, Format::Safetensors).unwrap();
            fs::write(folder.join("config.json"), config.to_string()).unwrap();
        };
        write_preprocessor(folder.path(), &shapes.vision, &encoder).unwrap();
        write(&encoder, &opened.model.vision_params().named(), &shapes.vision.to_json());
        let config = shapes.describe(&tokenizer);
        write(again.path(), &opened.model.params().named(), &config);
        let own = open(again.path()).unwrap_or_else(|error| panic!("{name}: {error}"));
        assert_eq!(own.processor.hash(), opened.processor.hash(), "{name}");
        assert_equals_golden(name, &own);
    }
}

#[test]
fn the_projector_of_another_program_is_used_only_with_its_own_encoder() {
    let folder = whole_folder("llava_1_5");
    let other = whole_folder("llava_linear");
    let files = |projector| ModelFiles {
        lm: Some(folder.path().to_owned()),
        vision: other.path().to_owned(),
        image_size: None,
        tokenizer: golden().join("tokenizer"),
        image_token: Some("<image>".into()),
        projector,
    };
    let tokenizer = open_tokenizer(&files(None)).unwrap();
    let settle = |projector| {
        settle_shapes(&files(projector), &ShapeRequest::default(), &tokenizer, 0).unwrap()
    };
    let shapes = settle(None);
    assert_eq!(shapes.projector.kind, ProjectorKind::Mlp);
    build_model(&files(None), &shapes, true, 0, Device::Cpu).unwrap();
    let mut options = options(folder.path());
    options.vision = Some(other.path().to_owned());
    let error = VisionLanguageModel::open(&options).err().unwrap().to_string();
    assert!(error.contains("have no projector"), "{error}");
}

/// The error of opening the golden folder `name` after a change of its `config.json` and of one of
/// its tensors.
fn refusal(name: &str, change: impl Fn(&mut Value), tensor: Option<(&str, f64)>) -> String {
    let folder = whole_folder(name);
    let path = folder.path().join("config.json");
    let mut config: Value = serde_json::from_str(&fs::read_to_string(&path).unwrap()).unwrap();
    change(&mut config);
    fs::write(path, config.to_string()).unwrap();
    if let Some((end, added)) = tensor {
        let mut tensors = Weights::open(folder.path()).unwrap().all().unwrap();
        let (_, changed) = tensors.iter_mut().find(|(name, _)| name.ends_with(end)).unwrap();
        *changed = &*changed + added;
        save(&folder.path().join("model.safetensors"), &tensors, Format::Safetensors).unwrap();
    }
    open(folder.path()).err().map_or_else(|| panic!("{name} was not refused"), |e| e.to_string())
}

#[test]
fn what_is_not_exact_is_refused_by_name() {
    let unchanged = |_: &mut Value| {};
    for (name, tensor, part) in [
        ("llava_linear", ("linear_2.weight", 0.5), "projector_hidden_act is \"linear\""),
        ("llava_linear", ("linear_2.bias", 0.5), "linear_2.bias changes its input"),
        ("llava_qwen2_moe", ("shared_expert_gate.weight", 0.5), "shared_expert_gate.weight"),
        ("llava_qwen2_moe", ("1.self_attn.k_proj.bias", 0.5), "with biases are not supported"),
    ] {
        let error = refusal(name, unchanged, Some(tensor));
        assert!(error.contains(part), "{name}: {error}");
    }
    type Change = fn(&mut Value);
    let cases: [(&str, Change, &str); 4] = [
        ("llava_1_5", |c| c["vision_feature_layer"] = json!([-2, -1]), "vision_feature_layer"),
        ("lfm2_vl", |c| c["text_config"]["model_type"] = json!("lfm2"), "\"lfm2\""),
        ("lfm2_vl", |c| c["downsample_factor"] = json!(2), "downsample_factor is 2"),
        ("smolvlm", |c| c["image_token_id"] = json!(9000), "the image token 9000"),
    ];
    for (name, change, part) in cases {
        let error = refusal(name, change, None);
        assert!(error.contains(part), "{name}: {error}");
    }
}

#[test]
fn processors_of_tiles_are_read_as_one_tile() {
    for (name, side) in [("smolvlm", 32), ("idefics3", 30), ("lfm2_vl", 32)] {
        let folder = golden().join(name);
        let vision = VisionConfig::from_file(&folder.join("config.json")).unwrap();
        let processor = image_processor(&folder, &vision).unwrap();
        let settings = processor.settings();
        assert_eq!(settings["size"], json!({"height": side, "width": side}), "{name}");
        assert_eq!(settings["image_mean"], json!([0.5, 0.5, 0.5]), "{name}");
        assert_eq!(settings["image_processor_type"], "SiglipImageProcessor", "{name}");
    }
}

#[test]
fn tokens_around_an_image_are_in_the_prompt_if_the_tokenizer_names_them() {
    let folder = whole_folder("smolvlm");
    let path = folder.path().join("tokenizer_config.json");
    let turns = [user_turn("<image>Hi", 1)];
    let prompt = || {
        let tokenizer = open(folder.path()).unwrap().tokenizer;
        let (ids, starts) = tokenizer.encode_prompt(&turns, 1, 4).unwrap();
        let id = |token| tokenizer.token_to_id(token).unwrap();
        let tags = (id("<fake_token_around_image>"), id("<global-img>"));
        (ids, starts[0], tags, tokenizer.hash().to_owned())
    };
    let (without, start, (fake, global), hash) = prompt();
    let mut config: Value = serde_json::from_str(&fs::read_to_string(&path).unwrap()).unwrap();
    config["extra_special_tokens"] = json!({
        "image_token": "<image>", "fake_image_token": "<fake_token_around_image>",
        "global_image_token": "<global-img>",
    });
    fs::write(&path, config.to_string()).unwrap();
    let (with, tagged_start, _, tagged_hash) = prompt();
    let (before, image_and_rest) = without.split_at(start);
    let (image, rest) = image_and_rest.split_at(4);
    assert_eq!(with, [before, &[fake, global], image, &[fake], rest].concat());
    assert_eq!(tagged_start, start + 2);
    assert_ne!(hash, tagged_hash);
}

#[test]
fn only_the_parts_that_are_used_are_opened() {
    let llava = golden().join("llava_1_5");
    let encoder = open_vision_encoder(&llava).unwrap();
    let blocks = encoder.names().filter(|name| name.ends_with("layer_norm1.weight")).count();
    assert_eq!(blocks, 2, "the projector takes the output of the last block but one");
    let lm = open_language_model(&llava).unwrap();
    assert!(!lm.names().any(|name| name.starts_with("vision_model")));
    assert!(lm.find("vision_proj.linear_2.bias").is_some());
    let stacked = open_vision_encoder(&golden().join("nanovlm")).unwrap();
    let key = "vision_model.encoder.layers.1.self_attn.k_proj.bias";
    assert_eq!(stacked.shape(key), Some(&[24][..]));
}
