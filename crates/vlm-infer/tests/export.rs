//! Tests that a model with experts that is exported and loaded again has bitwise equal logits.

#[allow(dead_code)]
#[path = "../examples/caption.rs"]
mod example;

use std::path::{Path, PathBuf};

use tch::{Device, Kind, Tensor};
use vlm_infer::{ExportSource, LoadOptions, VisionLanguageModel, export_hf, user_turn};
use vlm_model::config::MoeConfig;
use vlm_model::lm::with_tied_output;
use vlm_model::weights::{Format, Weights, save};
use vlm_model::{ImageInput, LmConfig, LmFamily, ModelBatch, VisionConfig, Vlm};

fn demo_start() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../data/demo-start")
}

fn vision_tower() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/golden/vision_tower")
}

/// Vocabulary size of the demo's tokenizer.
const VOCABULARY: i64 = 689;

/// A small model of the family with experts and random weights, including the projector.
fn with_experts(family: LmFamily, moe: MoeConfig) -> Vlm {
    let lm = LmConfig {
        dim: 32,
        n_layers: 2,
        n_heads: 4,
        n_kv_heads: 2,
        vocab_size: VOCABULARY,
        use_moe: true,
        moe,
        ..family.default_config()
    };
    lm.validate().unwrap();
    let vision = VisionConfig::from_file(&vision_tower().join("config.json")).unwrap();
    tch::manual_seed(7);
    let model = Vlm::new(&lm, &vision, Device::Cpu).unwrap();
    let encoder = Weights::open(&vision_tower()).unwrap();
    encoder.load_into(&model.vision_params().named(), |_| false).unwrap();
    model
}

/// Logits `[2, T, V]` of two rows with an image each.
fn logits(model: &Vlm) -> Tensor {
    tch::manual_seed(11);
    let num_tokens = 4 + model.tokens_per_image();
    let batch = ModelBatch {
        input_ids: Tensor::randint(VOCABULARY, [2, num_tokens], (Kind::Int64, Device::Cpu)),
        packed_lengths: None,
        images: ImageInput::Pixels(Tensor::randn([2, 3, 224, 224], (Kind::Float, Device::Cpu))),
        image_starts: vec![(0, 1), (1, 3)],
    };
    tch::no_grad(|| model.lm().logits(&model.forward(&batch, None, false).unwrap().hidden))
}

/// Exports the model to the folder `hf`, in several shards.
fn export(model: &Vlm, hf: &Path) {
    let folder = tempfile::tempdir().unwrap();
    let own = folder.path().join("own");
    std::fs::create_dir(&own).unwrap();
    let lm = model.lm().config();
    let tensors = with_tied_output(model.params().named(), lm);
    save(&own.join("model.safetensors"), &tensors, Format::Safetensors).unwrap();
    std::fs::write(own.join("config.json"), lm.to_json().to_string()).unwrap();
    let source = ExportSource {
        model: own,
        vision: Some(vision_tower()),
        tokenizer: Some(demo_start()),
        without_vision: false,
    };
    export_hf(&source, hf, 100_000).unwrap();
}

/// Exports the model and loads the exported folder.
fn exported(model: &Vlm, expected_name: &str) -> VisionLanguageModel {
    let folder = tempfile::tempdir().unwrap();
    let hf = folder.path().join("hf");
    export(model, &hf);
    let lm = model.lm().config();
    let weights = Weights::open(&hf).unwrap();
    assert!(weights.find(expected_name).is_some(), "no {expected_name}");
    let ties = lm.family == LmFamily::MiniMind;
    assert_eq!(weights.find(if ties { "output.weight" } else { "lm_head.weight" }).is_some(), ties);
    let mut options = LoadOptions::new(hf);
    options.device = "cpu".into();
    VisionLanguageModel::open(&options).unwrap()
}

#[test]
fn exported_models_with_experts_of_every_family_have_the_same_logits() {
    let own = "layers.1.feed_forward.experts.3.w1.weight";
    let current = "model.layers.1.mlp.experts.2.gate_proj.weight";
    let defaults = LmFamily::MiniMind3.default_config().moe;
    let forms = [
        (LmFamily::MiniMind, MoeConfig::default(), own),
        (LmFamily::MiniMind, MoeConfig { n_shared_experts: None, ..MoeConfig::default() }, own),
        (LmFamily::MiniMind3, defaults.clone(), current),
        (
            LmFamily::MiniMind3,
            MoeConfig {
                n_routed_experts: 3,
                num_experts_per_tok: 2,
                norm_topk_prob: false,
                ..defaults
            },
            current,
        ),
    ];
    for (family, moe, expected_name) in forms {
        let model = with_experts(family, moe);
        let opened = exported(&model, expected_name);
        assert_eq!(opened.model.lm().config().moe, model.lm().config().moe, "{family:?}");
        let (before, after) = (logits(&model), logits(&opened.model));
        assert_eq!(before.size(), after.size());
        assert!(f64::try_from(before.abs().max()).unwrap() > 0.0);
        assert_eq!(before, after, "{family:?}");
    }
}

#[test]
fn the_example_generates_the_same_text_as_the_model() {
    let folder = tempfile::tempdir().unwrap();
    let hf = folder.path().join("hf");
    let model = with_experts(LmFamily::MiniMind3, LmFamily::MiniMind3.default_config().moe);
    export(&model, &hf);
    let mut png = std::io::Cursor::new(Vec::new());
    image::RgbImage::from_pixel(40, 30, image::Rgb([200, 30, 30]))
        .write_to(&mut png, image::ImageFormat::Png)
        .unwrap();
    let text = example::caption(&hf.display().to_string(), png.get_ref()).unwrap();

    let opened = VisionLanguageModel::from_pretrained(&hf).unwrap();
    let generator = opened.generator();
    let prepared = generator.prepare(&[user_turn("Describe the image.", 1)], &[png.get_ref()]);
    let expected = generator.generate_batch(&[prepared.unwrap()]).unwrap();
    assert_eq!([text], expected[..]);
    // A model with random weights repeats the last token of the prompt, a line break, which is
    // trimmed from the text.
    let mut streamed = String::new();
    let turns = [user_turn("Describe the image.", 1)];
    let images = [png.get_ref()];
    generator.generate_streaming(&turns, &images, &mut |piece| streamed += piece).unwrap();
    assert!(!streamed.is_empty());
    let missing = VisionLanguageModel::from_pretrained(hf.join("gone")).err().unwrap();
    assert!(missing.to_string().contains("gone does not exist"), "{missing}");
}
