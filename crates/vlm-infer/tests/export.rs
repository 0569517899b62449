//! A model with experts that is exported and opened again is the same model, bit for bit.

use std::path::{Path, PathBuf};

use tch::{Device, Kind, Tensor};
use vlm_infer::{ExportSource, LoadOptions, VisionLanguageModel, export_hf};
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

/// Rows of the demo's tokenizer.
const VOCABULARY: i64 = 689;

/// A small model of the family with experts, and random weights, those of the projector too.
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

/// Logits of two rows with a picture each, `[2, T, V]`.
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

/// Exports the model, in several shards, and opens what was written, which has all parts.
fn exported(model: &Vlm, expected_name: &str) -> VisionLanguageModel {
    let folder = tempfile::tempdir().unwrap();
    let (own, hf) = (folder.path().join("own"), folder.path().join("hf"));
    std::fs::create_dir(&own).unwrap();
    let lm = model.lm().config();
    let tensors = with_tied_output(model.params().named(), lm);
    save(&own.join("model.safetensors"), &tensors, Format::Safetensors).unwrap();
    std::fs::write(own.join("config.json"), lm.to_json().to_string()).unwrap();
    let source =
        ExportSource { model: own, vision: Some(vision_tower()), tokenizer: Some(demo_start()) };
    export_hf(&source, &hf, 100_000).unwrap();
    let weights = Weights::open(&hf).unwrap();
    assert!(weights.find(expected_name).is_some(), "no {expected_name}");
    let ties = lm.family == LmFamily::MiniMind;
    assert_eq!(weights.find(if ties { "output.weight" } else { "lm_head.weight" }).is_some(), ties);
    let mut options = LoadOptions::new(hf);
    options.device = "cpu".into();
    VisionLanguageModel::open(&options).unwrap()
}

#[test]
fn experts_of_every_form_come_back_from_an_export_with_the_same_logits() {
    let own = "layers.1.feed_forward.experts.3.w1.weight";
    let present = "model.layers.1.mlp.experts.2.gate_proj.weight";
    let usual = LmFamily::MiniMind3.default_config().moe;
    let forms = [
        (LmFamily::MiniMind, MoeConfig::default(), own),
        (LmFamily::MiniMind, MoeConfig { n_shared_experts: None, ..MoeConfig::default() }, own),
        (LmFamily::MiniMind3, usual.clone(), present),
        (
            LmFamily::MiniMind3,
            MoeConfig {
                n_routed_experts: 3,
                num_experts_per_tok: 2,
                norm_topk_prob: false,
                ..usual
            },
            present,
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
