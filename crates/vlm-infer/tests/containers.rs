//! Tests that exported containers compute in Hugging Face's transformers what this program
//! computes.

use std::path::{Path, PathBuf};
use std::process::Command;

use image::{Rgb, RgbImage};
use serde_json::{Value, json};
use tch::{Device, Kind, Tensor};
use vlm_infer::{
    Container, ExportSource, LoadOptions, VisionLanguageModel, export_hf, export_to, user_turn,
};
use vlm_model::config::MoeConfig;
use vlm_model::lm::with_tied_output;
use vlm_model::weights::{Format, Weights, save};
use vlm_model::{ImageInput, LmConfig, LmFamily, ModelBatch, VisionConfig, Vlm};
use vlm_model::{ProjectorConfig, ProjectorKind, VisionFamily};

/// The largest difference of a logit between float32 computations in another order. Logits are
/// around 1.
const TOLERANCE: f64 = 1e-4;

const QUESTION: &str = "How many stars are in the image?";
const MAX_NEW_TOKENS: usize = 12;
const SIDE: i64 = 32;

fn demo_start() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../data/demo-start")
}

/// A small language model of the family for the demo's tokenizer.
fn language_model(family: LmFamily) -> LmConfig {
    LmConfig {
        dim: 32,
        n_layers: 2,
        n_heads: 4,
        n_kv_heads: 2,
        head_dim: None,
        hidden_dim: Some(48),
        vocab_size: 689,
        max_seq_len: 256,
        ..family.default_config()
    }
}

fn vision(family: VisionFamily) -> VisionConfig {
    let base = match family {
        VisionFamily::Clip => VisionConfig::default(),
        VisionFamily::Siglip => VisionConfig::siglip(),
    };
    VisionConfig {
        image_size: SIDE,
        patch_size: 8,
        hidden_size: 24,
        intermediate_size: 40,
        num_hidden_layers: 2,
        num_attention_heads: 2,
        ..base
    }
}

/// Writes a model with random weights as a folder of this program, and returns the folder.
fn write_model(lm: &LmConfig, vision: &VisionConfig, kind: ProjectorKind, to: &Path) -> PathBuf {
    tch::manual_seed(5);
    let projector = ProjectorConfig::new(kind, vision).unwrap();
    let model = Vlm::with_projector(lm, vision, &projector, Device::Cpu).unwrap();
    // Larger than the initialisation, so that image and text change the logits. Norms and biases
    // are not at their neutral values.
    for (_, tensor) in model.params().named().iter().chain(&model.vision_params().named()) {
        let noise = Tensor::randn(tensor.size(), (Kind::Float, Device::Cpu)) * 0.2;
        let _ = tch::no_grad(|| tensor.shallow_clone().g_add_(&noise));
    }
    let own = to.join("own");
    let encoder = to.join("vision");
    std::fs::create_dir_all(&own).unwrap();
    std::fs::create_dir_all(&encoder).unwrap();
    let tensors = with_tied_output(model.params().named(), lm);
    save(&own.join("model.safetensors"), &tensors, Format::Safetensors).unwrap();
    std::fs::write(own.join("config.json"), lm.to_json().to_string()).unwrap();
    let named = model.vision_params().named();
    save(&encoder.join("model.safetensors"), &named, Format::Safetensors).unwrap();
    std::fs::write(encoder.join("config.json"), vision.to_json().to_string()).unwrap();
    let source = ExportSource {
        model: own,
        vision: Some(encoder),
        tokenizer: Some(demo_start()),
        without_vision: false,
    };
    let hf = to.join("hf");
    export_hf(&source, &hf, u64::MAX).unwrap();
    hf
}

/// Writes what this program computes for [`QUESTION`] about an image of `width` × [`SIDE`] pixels.
fn write_expected(hf: &Path, container: &Path, width: u32, to: &Path) -> String {
    std::fs::create_dir_all(to).unwrap();
    let image = RgbImage::from_fn(width, SIDE as u32, |x, y| {
        Rgb([(x * 5) as u8, (y * 7) as u8, (x * y) as u8])
    });
    image.save(to.join("image.png")).unwrap();
    let png = std::fs::read(to.join("image.png")).unwrap();
    let mut options = LoadOptions::new(hf);
    options.device = "cpu".into();
    let opened = VisionLanguageModel::open(&options).unwrap();
    let mut generator = opened.generator();
    generator.max_new_tokens = MAX_NEW_TOKENS;
    let turns = [user_turn(QUESTION, 1)];
    let prepared = generator.prepare(&turns, &[&png]).unwrap();
    let text = generator.generate(&turns, &[&png]).unwrap();
    let ids = prepared.prompt.input_ids;
    let start = prepared.prompt.image_starts[0];
    let batch = ModelBatch {
        input_ids: Tensor::from_slice(&ids).unsqueeze(0),
        packed_lengths: None,
        images: ImageInput::Pixels(Tensor::from_slice(&prepared.pixels).view([1, 3, SIDE, SIDE])),
        image_starts: vec![(0, start)],
    };
    let logits = tch::no_grad(|| {
        let hidden = opened.model.forward(&batch, None, false).unwrap().hidden;
        opened.model.lm().logits(&hidden).squeeze_dim(0)
    });
    let logits = [("logits".to_owned(), logits)];
    save(&to.join("logits.safetensors"), &logits, Format::Safetensors).unwrap();
    let config: Value =
        serde_json::from_slice(&std::fs::read(container.join("config.json")).unwrap()).unwrap();
    let image_token_id = config["image_token_id"].as_i64().unwrap();
    let mut expected_ids = ids;
    let first = start as usize;
    expected_ids[first..first + opened.model.tokens_per_image() as usize].fill(image_token_id);
    let expected = json!({
        "question": QUESTION, "input_ids": expected_ids, "max_new_tokens": MAX_NEW_TOKENS,
    });
    std::fs::write(to.join("expected.json"), expected.to_string()).unwrap();
    text
}

/// Exports a model of these parts, loads it in transformers and compares ids, logits and text.
fn compare(lm: &LmConfig, family: VisionFamily, kind: ProjectorKind, container: Container) {
    let folder = tempfile::tempdir().unwrap();
    let hf = write_model(lm, &vision(family), kind, folder.path());
    let exported = folder.path().join("exported");
    let source =
        ExportSource { model: hf.clone(), vision: None, tokenizer: None, without_vision: false };
    assert_eq!(Container::for_model(&source).unwrap(), container);
    export_to(&source, container, &exported, u64::MAX).unwrap();
    // Only LLaVA's processor preprocesses images that are not square as this program does.
    let width = if container == Container::Llava { 48 } else { SIDE as u32 };
    let expected = folder.path().join("expected");
    let text = write_expected(&hf, &exported, width, &expected);

    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/containers.py");
    let python = std::env::var_os("VLM_TRANSFORMERS_PYTHON").unwrap_or_else(|| "python3".into());
    let output = Command::new(python).arg(script).args([&exported, &expected]).output().unwrap();
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{container:?}: {stderr}");
    let stdout = String::from_utf8_lossy(&output.stdout).into_owned();
    let report: Value = serde_json::from_str(stdout.trim().lines().last().unwrap()).unwrap();
    println!("{:?} {kind:?} {:?}: {report}", lm.family, container);
    assert_eq!(report["same_ids"], true, "{report}");
    assert!(report["difference"].as_f64().unwrap() < TOLERANCE, "{report}");
    assert!(report["largest"].as_f64().unwrap() > 0.1, "{report}");
    assert_eq!(report["text"].as_str().unwrap().trim(), text.trim());
    assert!(!text.trim().is_empty(), "{report}");
}

fn experts(family: LmFamily, shared: Option<i64>) -> LmConfig {
    let lm = language_model(family);
    let moe = MoeConfig { n_shared_experts: shared, ..lm.moe.clone() };
    LmConfig { use_moe: true, moe, ..lm }
}

#[test]
#[ignore = "needs a Python with transformers 5 (VLM_TRANSFORMERS_PYTHON)"]
fn transformers_computes_the_same_for_a_clip_encoder_with_a_linear_projector() {
    for lm in [
        language_model(LmFamily::MiniMind),
        language_model(LmFamily::MiniMind2),
        language_model(LmFamily::MiniMind3),
        LmConfig { qkv_bias: true, ..language_model(LmFamily::Llama) },
        LmConfig { tie_word_embeddings: false, ..language_model(LmFamily::Llama) },
    ] {
        compare(&lm, VisionFamily::Clip, ProjectorKind::Linear, Container::Llava);
    }
    let lm = language_model(LmFamily::Llama);
    compare(&lm, VisionFamily::Clip, ProjectorKind::Mlp2xGelu, Container::Llava);
}

#[test]
#[ignore = "needs a Python with transformers 5 (VLM_TRANSFORMERS_PYTHON)"]
fn transformers_computes_the_same_for_experts() {
    for lm in [
        experts(LmFamily::MiniMind, Some(1)),
        experts(LmFamily::MiniMind, None),
        experts(LmFamily::MiniMind2, Some(2)),
        experts(LmFamily::MiniMind3, None),
    ] {
        compare(&lm, VisionFamily::Clip, ProjectorKind::Linear, Container::Llava);
    }
}

#[test]
#[ignore = "needs a Python with transformers 5 (VLM_TRANSFORMERS_PYTHON)"]
fn transformers_computes_the_same_for_siglip_encoders() {
    let (siglip, lm) = (VisionFamily::Siglip, language_model(LmFamily::MiniMind3));
    compare(&lm, siglip, ProjectorKind::Linear, Container::Lfm2Vl);
    compare(&lm, siglip, ProjectorKind::Mlp, Container::Lfm2Vl);
    compare(&lm, siglip, ProjectorKind::PixelShuffle, Container::SmolVlm);
    let lm = language_model(LmFamily::MiniMind);
    compare(&lm, siglip, ProjectorKind::Mlp, Container::Lfm2Vl);
}

#[test]
fn a_container_is_complete_and_its_experts_are_joined() {
    let folder = tempfile::tempdir().unwrap();
    let lm = experts(LmFamily::MiniMind2, Some(2));
    let hf = write_model(&lm, &vision(VisionFamily::Clip), ProjectorKind::Linear, folder.path());
    let source =
        ExportSource { model: hf.clone(), vision: None, tokenizer: None, without_vision: false };
    let to = folder.path().join("llava");
    export_to(&source, Container::Llava, &to, u64::MAX).unwrap();
    for name in [
        "README.md", "chat_template.jinja", "config.json", "generation_config.json",
        "model.safetensors", "preprocessor_config.json", "processor_config.json", "tokenizer.json",
        "tokenizer_config.json",
    ] {
        assert!(to.join(name).is_file(), "no {name}");
    }
    let (own, exported) = (Weights::open(&hf).unwrap(), Weights::open(&to).unwrap());
    let shared = "model.layers.1.mlp.shared_expert";
    let joined = exported.get(&format!("language_model.{shared}.gate_proj.weight")).unwrap();
    let parts = [0, 1].map(|k| own.get(&format!("{shared}s.{k}.gate_proj.weight")).unwrap());
    assert_eq!(joined, Tensor::cat(&parts, 0));
    let down = exported.get(&format!("language_model.{shared}.down_proj.weight")).unwrap();
    let parts = [0, 1].map(|k| own.get(&format!("{shared}s.{k}.down_proj.weight")).unwrap());
    assert_eq!(down, Tensor::cat(&parts, 1) * 2);
    // The image token has a row of its own, a copy of that of the placeholder "@".
    let name = "language_model.model.embed_tokens.weight";
    let table = exported.get(name).unwrap();
    assert_eq!(table.size(), [690, 32]);

    let error = export_to(&source, Container::Lfm2Vl, &to, u64::MAX).unwrap_err();
    assert!(error.to_string().contains("use llava"), "{error}");
}

#[test]
fn gguf_files_hold_all_tensors() {
    let folder = tempfile::tempdir().unwrap();
    let lm = language_model(LmFamily::MiniMind);
    let hf = write_model(&lm, &vision(VisionFamily::Siglip), ProjectorKind::Linear, folder.path());
    let mut source =
        ExportSource { model: hf, vision: None, tokenizer: None, without_vision: false };
    let to = folder.path().join("gguf");
    export_to(&source, Container::Gguf, &to, u64::MAX).unwrap();
    let count = |name: &str| {
        let bytes = std::fs::read(to.join(name)).unwrap();
        assert_eq!(&bytes[..4], b"GGUF");
        u64::from_le_bytes(bytes[8..16].try_into().unwrap())
    };
    // Embeddings, nine tensors in each of two blocks, and the last norm.
    assert_eq!(count("model.gguf"), 1 + 2 * 9 + 1);
    // Patches and positions, 16 tensors in each of two blocks, the last norm, and the projector.
    assert_eq!(count("mmproj.gguf"), 3 + 2 * 16 + 2 + 4);
    source.without_vision = true;
    let alone = folder.path().join("alone");
    export_to(&source, Container::Gguf, &alone, u64::MAX).unwrap();
    assert!(!alone.join("mmproj.gguf").exists());
    assert_eq!(
        std::fs::read(alone.join("model.gguf")).unwrap(),
        std::fs::read(to.join("model.gguf")).unwrap()
    );
}

/// The logits of a prompt about an image, and the generated text.
fn logits_and_text(folder: &Path) -> (Tensor, String) {
    let mut options = LoadOptions::new(folder);
    options.device = "cpu".into();
    let opened = VisionLanguageModel::open(&options).unwrap();
    let mut generator = opened.generator();
    generator.max_new_tokens = MAX_NEW_TOKENS;
    let image =
        RgbImage::from_fn(SIDE as u32, SIDE as u32, |x, y| Rgb([(x * 5) as u8, y as u8, 90]));
    let mut png = std::io::Cursor::new(Vec::new());
    image.write_to(&mut png, image::ImageFormat::Png).unwrap();
    let (turns, png) = ([user_turn(QUESTION, 1)], png.into_inner());
    let prepared = generator.prepare(&turns, &[&png]).unwrap();
    let batch = ModelBatch {
        input_ids: Tensor::from_slice(&prepared.prompt.input_ids).unsqueeze(0),
        packed_lengths: None,
        images: generator.image_input(&prepared.pixels),
        image_starts: vec![(0, prepared.prompt.image_starts[0])],
    };
    let hidden = tch::no_grad(|| opened.model.forward(&batch, None, false)).unwrap().hidden;
    // The container has one token more, for images.
    let logits = opened.model.lm().logits(&hidden).narrow(-1, 0, 689);
    (logits, generator.generate(&turns, &[&png]).unwrap())
}

#[test]
fn an_exported_container_is_read_again_as_the_same_model() {
    let (clip, siglip) = (VisionFamily::Clip, VisionFamily::Siglip);
    let minimind3 = language_model(LmFamily::MiniMind3);
    let qwen2 = LmConfig { qkv_bias: true, ..language_model(LmFamily::Llama) };
    for (lm, family, kind, container) in [
        (language_model(LmFamily::MiniMind), clip, ProjectorKind::Linear, Container::Llava),
        (qwen2.clone(), clip, ProjectorKind::Linear, Container::Llava),
        (qwen2, clip, ProjectorKind::Mlp2xGelu, Container::Llava),
        (experts(LmFamily::MiniMind, Some(1)), clip, ProjectorKind::Linear, Container::Llava),
        (experts(LmFamily::MiniMind2, Some(2)), clip, ProjectorKind::Linear, Container::Llava),
        (experts(LmFamily::MiniMind3, None), clip, ProjectorKind::Linear, Container::Llava),
        (minimind3.clone(), siglip, ProjectorKind::Linear, Container::Lfm2Vl),
        (minimind3.clone(), siglip, ProjectorKind::Mlp, Container::Lfm2Vl),
        (minimind3, siglip, ProjectorKind::PixelShuffle, Container::SmolVlm),
    ] {
        let folder = tempfile::tempdir().unwrap();
        let hf = write_model(&lm, &vision(family), kind, folder.path());
        let source = ExportSource {
            model: hf.clone(),
            vision: None,
            tokenizer: None,
            without_vision: false,
        };
        let exported = folder.path().join("exported");
        export_to(&source, container, &exported, u64::MAX).unwrap();
        let ((logits, text), (expected, expected_text)) =
            (logits_and_text(&exported), logits_and_text(&hf));
        let difference = f64::try_from((logits - expected).abs().max()).unwrap();
        println!("{:?} {kind:?} {container:?}: logits within {difference:.1e}", lm.family);
        assert!(difference < 1e-5, "{:?} {kind:?} {container:?}: {difference:e}", lm.family);
        assert_eq!(text, expected_text);
    }
}

#[test]
fn a_tokenizer_with_more_tokens_than_embeddings_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let lm = LmConfig { vocab_size: 688, ..language_model(LmFamily::MiniMind) };
    let own = folder.path().join("own");
    std::fs::create_dir(&own).unwrap();
    let model = Vlm::new(&lm, &vision(VisionFamily::Clip), Device::Cpu).unwrap();
    let tensors = with_tied_output(model.params().named(), &lm);
    save(&own.join("model.safetensors"), &tensors, Format::Safetensors).unwrap();
    std::fs::write(own.join("config.json"), lm.to_json().to_string()).unwrap();
    let source = ExportSource {
        model: own,
        vision: None,
        tokenizer: Some(demo_start()),
        without_vision: true,
    };
    let to = folder.path().join("gguf");
    let error = export_to(&source, Container::Gguf, &to, u64::MAX).unwrap_err().to_string();
    assert!(error.contains("689 tokens") && error.contains("688 embeddings"), "{error}");
    assert!(!to.exists());
}
