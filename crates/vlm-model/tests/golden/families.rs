//! The families of language models and encoders, compared with the software that defines them. The
//! files are made by `tests/golden/families.py`.

use tch::{Device, Tensor};
use vlm_model::detect::{adopt_shapes, default_config_for, projector_of};
use vlm_model::lm::CausalLm;
use vlm_model::params::ParamStore;
use vlm_model::vision::VisionEncoder;
use vlm_model::weights::Weights;
use vlm_model::{
    ImageInput, LmConfig, LmFamily, ModelBatch, Projector, ProjectorConfig, ProjectorKind,
    VisionConfig, Vlm,
};

use crate::fixtures::{assert_cached_steps_equal_one_pass, assert_close, golden, logits, tensors};

/// Tolerance of logits and features in float32, for tiny models whose numbers are near 1.
const TOLERANCE: f64 = 1e-4;

/// The language model of a golden folder, with its `config.json` and its weights.
fn language_model(folder: &str) -> (LmConfig, ParamStore, CausalLm) {
    let config = LmConfig::from_file(&golden(&format!("{folder}/config.json"))).unwrap();
    let store = ParamStore::new(Device::Cpu);
    let lm = CausalLm::new(&store.root(), &config);
    let weights = Weights::open(&golden(folder)).unwrap();
    weights.load_into(&store.named(), |_| false).unwrap();
    (config, store, lm)
}

/// The `minimind-3v` of a golden folder. Its encoder has random weights, because the features are
/// in the golden files.
fn minimind3v(folder: &str) -> (LmConfig, Vlm) {
    let lm = LmConfig::from_file(&golden(&format!("{folder}/config.json"))).unwrap();
    let weights = Weights::open(&golden(folder)).unwrap();
    let kind = projector_of(&weights).unwrap();
    let side = if kind == ProjectorKind::MergedMlp { 16 } else { 8 };
    let vision = VisionConfig {
        hidden_size: 24,
        num_attention_heads: 2,
        num_hidden_layers: 1,
        intermediate_size: 24,
        patch_size: 2,
        image_size: 2 * side,
        ..VisionConfig::siglip()
    };
    let projector = ProjectorConfig::new(kind, &vision).unwrap();
    let model = Vlm::with_projector(&lm, &vision, &projector, Device::Cpu).unwrap();
    weights.load_into(&model.params().named(), |_| false).unwrap();
    assert_eq!(model.tokens_per_image(), 64);
    (lm, model)
}

/// The golden rows with one image each, in the place of the tokens with id 12.
fn batch(expected: &std::collections::HashMap<String, Tensor>) -> ModelBatch {
    ModelBatch {
        input_ids: expected["input_ids"].shallow_clone(),
        packed_lengths: None,
        images: ImageInput::Features(expected["features"].shallow_clone()),
        image_starts: vec![(0, 3), (1, 9)],
    }
}

fn assert_minimind3v(folder: &str) {
    let (lm, model) = minimind3v(folder);
    assert_eq!((lm.family, lm.qk_norm), (LmFamily::MiniMind3, true));
    let expected = tensors(&format!("{folder}/expected.safetensors"));
    let text = expected["input_ids"].narrow(1, 0, 40);
    assert_close(
        &format!("{folder} logits of text"),
        &logits(model.lm(), &text),
        &expected["text_logits"],
        TOLERANCE,
    );
    let output = tch::no_grad(|| model.forward(&batch(&expected), None, true).unwrap());
    assert_close(
        &format!("{folder} logits with an image"),
        &tch::no_grad(|| model.lm().logits(&output.hidden)),
        &expected["logits"],
        TOLERANCE,
    );
    assert_eq!(output.aux_loss.is_some(), lm.use_moe);
    if let Some(aux_loss) = output.aux_loss {
        let found = aux_loss.view([1]);
        assert_close(&format!("{folder} auxiliary loss"), &found, &expected["aux_loss"], 1e-7);
    }
}

#[test]
fn siglip_equals_hugging_face() {
    let config = VisionConfig::from_file(&golden("siglip/config.json")).unwrap();
    let store = ParamStore::new(Device::Cpu);
    let encoder = VisionEncoder::new(&store.root(), &config);
    let weights = Weights::open(&golden("siglip")).unwrap();
    weights.load_into(&store.named(), |_| false).unwrap();
    let expected = tensors("siglip/expected.safetensors");
    let features = tch::no_grad(|| encoder.patch_features(&expected["pixel_values"]));
    // 16 patches of 7 pixels; two rows and columns of pixels are left over.
    assert_eq!(features.size(), [2, 16, 32]);
    assert_close("siglip", &features, &expected["last_hidden_state"], TOLERANCE);
}

#[test]
fn llama_with_tied_embeddings_equals_hugging_face() {
    let (config, _store, lm) = language_model("llama");
    assert_eq!((config.family, config.tie_word_embeddings), (LmFamily::Llama, true));
    let expected = tensors("llama/expected.safetensors");
    assert_close("llama", &logits(&lm, &expected["input_ids"]), &expected["logits"], TOLERANCE);
}

#[test]
fn qwen3_with_its_own_output_embeddings_equals_hugging_face() {
    let (config, store, lm) = language_model("qwen3");
    assert_eq!((config.qk_norm, config.head_dim()), (true, 16));
    assert!(store.named().iter().any(|(name, _)| name == "lm_head.weight"));
    let expected = tensors("qwen3/expected.safetensors");
    assert_close("qwen3", &logits(&lm, &expected["input_ids"]), &expected["logits"], TOLERANCE);
}

#[test]
fn minimind3_equals_the_reference() {
    assert_minimind3v("minimind3");
}

#[test]
fn the_projector_that_merges_patches_equals_the_reference() {
    assert_minimind3v("minimind3/merged");
}

#[test]
fn pixel_shuffle_equals_nano_vlm() {
    let golden = tensors("pixel_shuffle.safetensors");
    let vision = VisionConfig { image_size: 96, hidden_size: 5, ..VisionConfig::siglip() };
    let config = ProjectorConfig::new(ProjectorKind::PixelShuffle, &vision).unwrap();
    assert_eq!(config.tokens_per_image, 9);
    let store = ParamStore::new(Device::Cpu);
    let projector = Projector::new(&store.root(), &config, &vision, 7);
    let (name, mut weight) = store.named().remove(0);
    tch::no_grad(|| weight.copy_(&golden[&name]));
    let found = projector.forward(&golden["features"]);
    assert_close("pixel shuffle", &found, &golden["projected"], 1e-5);
}

#[test]
fn experts_of_minimind3_equal_the_reference() {
    assert_minimind3v("minimind3/experts");
    assert_minimind3v("minimind3/experts_top2");
}

#[test]
fn families_are_recognised_by_names_alone() {
    for (folder, family, tied) in [
        ("dense", LmFamily::MiniMind, true),
        ("moe", LmFamily::MiniMind, true),
        ("minimind3", LmFamily::MiniMind3, true),
        ("minimind3/experts", LmFamily::MiniMind3, true),
        ("llama", LmFamily::Llama, true),
        // Without a config.json, normalised queries and keys are taken for MiniMind's.
        ("qwen3", LmFamily::MiniMind3, false),
    ] {
        let by_folder = golden(folder).join("model.safetensors");
        let file =
            if by_folder.exists() { by_folder } else { golden(folder).join("lm_vlm.safetensors") };
        let weights = Weights::open(&file).unwrap();
        let config = default_config_for(&weights).unwrap();
        assert_eq!((config.family, config.tie_word_embeddings), (family, tied), "{folder}");
        let has_experts = folder.contains("moe") || folder.contains("experts");
        assert_eq!(config.use_moe, has_experts, "{folder}");
    }
    let encoder = Weights::open(&golden("vision_tower")).unwrap();
    let error = default_config_for(&encoder).unwrap_err().to_string();
    assert!(error.contains("not the weights of a supported language model"), "{error}");
}

#[test]
fn numbers_that_differ_from_the_weights_are_named() {
    let weights = Weights::open(&golden("qwen3")).unwrap();
    let config = LmConfig::from_file(&golden("qwen3/config.json")).unwrap();
    let disagreement = |change: fn(&mut LmConfig)| {
        let mut changed = config.clone();
        change(&mut changed);
        adopt_shapes(&mut changed, &weights).map_err(|d| (d.field, d.found, d.expected))
    };
    assert_eq!(disagreement(|_| ()), Ok(()));
    assert_eq!(disagreement(|c| c.dim = 64), Err(("dim", 48, 64)));
    assert_eq!(disagreement(|c| c.n_layers = 3), Err(("n_layers", 2, 3)));
    assert_eq!(disagreement(|c| c.n_heads = 8), Err(("n_heads", 4, 8)));
    assert_eq!(disagreement(|c| c.n_kv_heads = 4), Err(("n_kv_heads", 2, 4)));
    // This number of experts would not fit into memory: it is compared before a model is built.
    let experts = Weights::open(&golden("minimind3/experts")).unwrap();
    let mut config = LmConfig::from_file(&golden("minimind3/experts/config.json")).unwrap();
    assert_eq!(adopt_shapes(&mut config, &experts), Ok(()));
    let held = std::mem::replace(&mut config.moe.n_routed_experts, 3_000_000_000);
    let disagreement = adopt_shapes(&mut config, &experts).unwrap_err();
    assert_eq!((disagreement.field, disagreement.found), ("n_routed_experts", held));
}

#[test]
fn cached_steps_equal_one_pass_in_every_family() {
    for folder in ["llama", "qwen3", "minimind3", "minimind3/experts"] {
        let config = LmConfig::from_file(&golden(&format!("{folder}/config.json"))).unwrap();
        tch::manual_seed(5);
        let store = ParamStore::new(Device::Cpu);
        let lm = CausalLm::new(&store.root(), &config);
        assert_cached_steps_equal_one_pass(folder, &lm, 1e-5);
    }
}
