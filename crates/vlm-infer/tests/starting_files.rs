//! Tests of the files that a run starts from: tensors that are missing, or that do not belong to
//! the model, are an error before the training.

use std::fs;
use std::path::{Path, PathBuf};

use serde_json::{Value, json};
use tch::{Device, Kind, Tensor};
use vlm_data::ChatTokenizer;
use vlm_infer::{ModelFiles, ShapeRequest, Shapes, build_model, settle_shapes};
use vlm_model::weights::{Format, Weights, save};
use vlm_model::{LmConfig, LmFamily, ProjectorConfig, VisionConfig, Vlm};

fn demo_start() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../data/demo-start")
}

fn vision_tower() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/golden/vision_tower")
}

/// The files of a small model with random weights.
struct Start {
    folder: tempfile::TempDir,
    config: Value,
    tensors: Vec<(String, Tensor)>,
    vision: Vec<(String, Tensor)>,
}

impl Start {
    fn new(lm: LmConfig) -> Self {
        let lm = LmConfig { dim: 32, n_layers: 2, n_heads: 4, n_kv_heads: 2, head_dim: None, ..lm };
        let tower = VisionConfig::from_file(&vision_tower().join("config.json")).unwrap();
        let projector = ProjectorConfig::default_for(&lm, &tower).unwrap();
        tch::manual_seed(7);
        let model = Vlm::without_encoder(&lm, &tower, &projector, Device::Cpu).unwrap();
        Self {
            folder: tempfile::tempdir().unwrap(),
            config: lm.to_json(),
            tensors: model.params().named(),
            vision: Weights::open(&vision_tower()).unwrap().all().unwrap(),
        }
    }

    /// Writes the files, and loads the model from them as a run does.
    fn open(&self) -> Result<(Shapes, Vlm), String> {
        let (lm, vision) = (self.folder.path().join("lm"), self.folder.path().join("vision"));
        for folder in [&lm, &vision] {
            fs::create_dir_all(folder).unwrap();
        }
        let save = |folder: &Path, tensors: &[(String, Tensor)]| {
            save(&folder.join("model.safetensors"), tensors, Format::Safetensors).unwrap();
        };
        save(&lm, &self.tensors);
        save(&vision, &self.vision);
        match &self.config {
            Value::Null => _ = fs::remove_file(lm.join("config.json")),
            config => fs::write(lm.join("config.json"), config.to_string()).unwrap(),
        }
        let config = "config.json";
        fs::copy(vision_tower().join(config), vision.join(config)).unwrap();
        let files = ModelFiles {
            lm: Some(lm),
            vision,
            image_size: None,
            tokenizer: demo_start(),
            image_token: None,
            projector: None,
        };
        let request = ShapeRequest {
            n_heads: Some(4),
            n_kv_heads: Some(2),
            n_layers: Some(2),
            dim: Some(32),
            ..ShapeRequest::default()
        };
        let tokenizer = ChatTokenizer::from_dir(&files.tokenizer).unwrap();
        let shapes = settle_shapes(&files, &request, &tokenizer, 64).map_err(|e| e.to_string())?;
        let model =
            build_model(&files, &shapes, true, 0, Device::Cpu).map_err(|e| e.to_string())?;
        Ok((shapes, model))
    }

    fn refusal(&self, parts: &[&str]) {
        let Err(error) = self.open() else { panic!("{parts:?} were not refused") };
        for part in parts {
            assert!(error.contains(part), "{error} does not say {part:?}");
        }
    }
}

fn llama() -> LmConfig {
    LmConfig { vocab_size: 689, hidden_dim: Some(48), ..LmFamily::Llama.default_config() }
}

fn one() -> Tensor {
    Tensor::ones([4], (Kind::Float, Device::Cpu))
}

#[test]
fn tensors_that_the_model_does_not_have_are_refused_by_name() {
    let whole = LmConfig { qkv_bias: true, ..llama() };
    let mut start = Start::new(whole.clone());
    assert!(start.open().unwrap().0.lm.qkv_bias);
    // A configuration without the biases that the file has, and the other way round.
    start.config = llama().to_json();
    start.config["hidden_size"] = json!(32);
    for (key, value) in [("num_attention_heads", 4), ("num_key_value_heads", 2), ("head_dim", 8)] {
        start.config[key] = json!(value);
    }
    start.config["num_hidden_layers"] = json!(2);
    start.refusal(&["6 of its tensors", "\"model.layers.0.self_attn.q_proj.bias\"", "config.json"]);
    let mut start = Start::new(whole);
    start.tensors.retain(|(name, _)| !name.ends_with("1.self_attn.k_proj.bias"));
    start.refusal(&["model.layers.1.self_attn.k_proj.bias: not in the file"]);
}

#[test]
fn unknown_tensors_are_refused_only_if_the_model_would_compute_with_them() {
    let with = |name: &str| {
        let mut start = Start::new(llama());
        start.tensors.push((name.to_owned(), one()));
        start
    };
    for name in
        ["model.layers.0.self_attn.rotary_emb.inv_freq", "score.weight", "model.vision_tower.x"]
    {
        assert!(with(name).open().is_ok(), "{name}");
    }
    for name in [
        "lm_head.bias",
        "model.norm.bias",
        "model.layers.1.mlp.shared_experts.0.up_proj.weight",
        "vision_proj.mlp.5.weight",
    ] {
        with(name).refusal(&["1 of its tensors", name]);
    }
    let mut encoder = Start::new(llama());
    encoder.vision.push(("vision_model.encoder.layers.0.lora.weight".into(), one()));
    encoder.refusal(&["LoRA adapter"]);
    let mut encoder = Start::new(llama());
    encoder.vision.push(("vision_model.encoder.layers.0.gamma".into(), one()));
    encoder.refusal(&["1 of its tensors", "vision_model.encoder.layers.0.gamma"]);
}

#[test]
fn an_incomplete_projector_is_refused() {
    let mut start = Start::new(llama());
    start.tensors.retain(|(name, _)| name != "vision_proj.mlp.1.bias");
    start.refusal(&["vision_proj.mlp.1.bias: not in the file"]);
    start.tensors.retain(|(name, _)| !name.starts_with("vision_proj."));
    assert!(start.open().is_ok());
}

#[test]
fn values_that_are_not_finite_are_refused_in_every_part() {
    let spoil = |tensors: &mut Vec<(String, Tensor)>, end: &str| {
        let (name, tensor) = tensors.iter_mut().find(|(name, _)| name.ends_with(end)).unwrap();
        *tensor = tensor.copy();
        let _ = tensor.view([-1]).narrow(0, 1, 1).fill_(f64::NAN);
        name.clone()
    };
    for end in ["1.mlp.up_proj.weight", "vision_proj.mlp.1.bias"] {
        let mut start = Start::new(llama());
        let name = spoil(&mut start.tensors, end);
        start.refusal(&[&name, "is not finite: 1 of its", "first at index"]);
    }
    let mut start = Start::new(llama());
    let name = spoil(&mut start.vision, "encoder.layers.1.mlp.fc1.bias");
    start.refusal(&[&name, "is not finite"]);
}

#[test]
fn minimind2_weights_are_recognised_without_a_configuration() {
    let of = |family: LmFamily, vocab_size| {
        let mut start = Start::new(LmConfig { vocab_size, ..family.default_config() });
        start.config = Value::Null;
        start
    };
    let lm = of(LmFamily::MiniMind2, 6400).open().unwrap().0.lm;
    assert_eq!((lm.family, lm.rope_theta, lm.norm_eps), (LmFamily::MiniMind2, 1e6, 1e-5));
    let lm = of(LmFamily::Llama, 49152).open().unwrap().0.lm;
    assert_eq!((lm.family, lm.rope_theta), (LmFamily::Llama, 1e5));
    let mut qwen2 = Start::new(LmConfig { qkv_bias: true, ..llama() });
    qwen2.config = Value::Null;
    qwen2.refusal(&["it has biases", "put the config.json"]);
}

#[test]
fn the_number_of_shared_experts_of_minimind2_comes_from_its_configuration() {
    let lm = LmConfig { use_moe: true, vocab_size: 6400, ..LmFamily::MiniMind2.default_config() };
    let mut start = Start::new(lm);
    let (shapes, model) = start.open().unwrap();
    assert_eq!(shapes.lm.moe.n_shared_experts, Some(1));
    let shared = "model.layers.0.mlp.shared_experts.0.gate_proj.weight";
    assert!(model.params().named().iter().any(|(name, _)| name == shared));
    start.config["n_shared_experts"] = json!(2);
    start.refusal(&["holds 1 shared experts a block, but 2 is asked for"]);
}
