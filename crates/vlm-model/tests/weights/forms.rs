//! Weights files of other programs: prefixes, nested dicts, shards, and unsupported formats.

use std::fs;
use std::path::Path;

use tch::{Kind, Tensor};
use vlm_model::part_files::{open_language_model, open_vision_encoder};
use vlm_model::weights::{Format, Weights, WeightsError, save};

use crate::forge::{Pickle, pth};
use crate::{golden, named, refusal};

/// The tensors of a golden file, renamed by `rename`; a tensor for which it returns `None` is left
/// out.
fn renamed(file: &str, rename: impl Fn(&str) -> Option<String>) -> Vec<(String, Tensor)> {
    let weights = Weights::open(&golden(file)).unwrap();
    let all = weights.all().unwrap().into_iter();
    all.filter_map(|(name, tensor)| Some((rename(&name)?, tensor))).collect()
}

/// The sorted names that [`open_language_model`] gives to these tensors.
fn names_of_language_model(tensors: &[(String, Tensor)]) -> Result<Vec<String>, String> {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("lm.pth");
    save(&path, tensors, Format::Pth).unwrap();
    let opened = open_language_model(&path).map_err(|error| error.to_string())?;
    // Every tensor can be read under its new name.
    for name in opened.names() {
        assert!(opened.get(name).is_ok());
    }
    let mut names: Vec<String> = opened.names().map(str::to_owned).collect();
    names.sort();
    Ok(names)
}

fn names_in(file: &str) -> Vec<String> {
    let mut names: Vec<_> =
        renamed(file, |name| Some(name.to_owned())).into_iter().map(|(name, _)| name).collect();
    names.sort();
    names
}

#[test]
fn a_language_model_is_found_under_any_prefix() {
    const FILE: &str = "hugging_face/llama.safetensors";
    let expected = names_in(FILE);
    let body = |name: &str, prefix: &str| match name.strip_prefix("model.") {
        Some(rest) => format!("{prefix}{rest}"),
        None => name.to_owned(),
    };
    type Rename = Box<dyn Fn(&str) -> String>;
    let forms: Vec<Rename> = vec![
        Box::new(str::to_owned),
        Box::new(|name| format!("module.{name}")),
        Box::new(|name| format!("_orig_mod.{name}")),
        Box::new(|name| format!("module._orig_mod.module.{name}")),
        Box::new(|name| format!("model.{name}")),
        Box::new(|name| format!("language_model.{name}")),
        Box::new(|name| name.replacen("model.layers.", "model.layers._orig_mod.", 1)),
        Box::new(move |name| body(name, "model.language_model.")),
        Box::new(move |name| body(name, "language_model.")),
        Box::new(move |name| body(name, "model.text_model.")),
        Box::new(move |name| body(name, "")),
    ];
    for (number, rename) in forms.iter().enumerate() {
        let found = names_of_language_model(&renamed(FILE, |name| Some(rename(name))));
        assert_eq!(found.as_ref(), Ok(&expected), "form {number}");
    }
}

#[test]
fn other_parts_of_a_vision_language_model_keep_their_names() {
    let mut tensors = renamed("hugging_face/llama.safetensors", |name| {
        Some(match name.strip_prefix("model.") {
            Some(rest) => format!("model.language_model.{rest}"),
            None => name.to_owned(),
        })
    });
    let other = "model.vision_tower.vision_model.encoder.layers.0.mlp.fc1.weight";
    tensors.extend(named(vec![(other, Tensor::from(1f32))]));
    let mut expected = names_in("hugging_face/llama.safetensors");
    expected.push(other.to_owned());
    expected.sort();
    assert_eq!(names_of_language_model(&tensors), Ok(expected));
}

#[test]
fn minimind_of_april_is_found_under_a_prefix_too() {
    const FILE: &str = "dense/lm_vlm.safetensors";
    for prefix in ["module.", "_orig_mod.", "model."] {
        let tensors = renamed(FILE, |name| Some(format!("{prefix}{name}")));
        assert_eq!(names_of_language_model(&tensors), Ok(names_in(FILE)), "{prefix}");
    }
}

#[test]
fn an_encoder_is_found_under_any_prefix() {
    const FILE: &str = "siglip/model.safetensors";
    for prefix in ["", "vision_tower.vision_model.", "model.vision_model.", "module.vision_model."]
    {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("model.safetensors");
        let tensors = renamed(FILE, |name| Some(name.replacen("vision_model.", prefix, 1)));
        save(&path, &tensors, Format::Safetensors).unwrap();
        let opened = open_vision_encoder(folder.path()).unwrap();
        let mut found: Vec<_> = opened.names().map(str::to_owned).collect();
        found.sort();
        assert_eq!(found, names_in(FILE), "{prefix}");
    }
}

#[test]
fn errors_list_the_found_and_the_expected_names() {
    let error =
        names_of_language_model(&named(vec![("transformer.wte.weight", Tensor::from(1f32))]));
    let error = error.unwrap_err();
    assert!(error.contains("found \"transformer.wte.weight\""), "{error}");
    assert!(error.contains("expected \"model.embed_tokens.weight\""), "{error}");
    let two = names_of_language_model(&named(vec![
        ("a.embed_tokens.weight", Tensor::from(1f32)),
        ("b.embed_tokens.weight", Tensor::from(2f32)),
    ]));
    assert!(two.unwrap_err().contains("several models (\"a.embed_tokens.weight\""));
    let both = names_of_language_model(&named(vec![
        ("norm.weight", Tensor::from(1f32)),
        ("module.norm.weight", Tensor::from(2f32)),
    ]));
    assert!(both.unwrap_err().contains("are both \"norm.weight\" without their prefixes"));
    let lora = "base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight";
    let adapter = names_of_language_model(&named(vec![(lora, Tensor::from(1f32))])).unwrap_err();
    assert!(adapter.contains("LoRA adapter") && adapter.contains("merge_and_unload"), "{adapter}");
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("e.safetensors");
    save(&path, &named(vec![("visual.conv1", Tensor::from(1f32))]), Format::Safetensors).unwrap();
    let error = open_vision_encoder(&path).unwrap_err().to_string();
    assert!(error.contains("found \"visual.conv1\""), "{error}");
}

/// A dict with one tensor called `name`.
fn dict(pickle: Pickle, name: &str) -> Pickle {
    pickle.raw(b"}(").text(name).tensor("0", 4, 0, &[4], &[1]).raw(b"u")
}

#[test]
fn weights_are_found_in_nested_dicts() {
    let folder = tempfile::tempdir().unwrap();
    let open = |pickle: Pickle| {
        let weights =
            Weights::open(&pth(&folder.path().join("w.pth"), &pickle.raw(b"u."))).unwrap();
        let names: Vec<String> = weights.names().map(str::to_owned).collect();
        (names.join(" "), weights.nested_under().unwrap_or_default().to_owned())
    };
    let top = || Pickle::new().raw(b"}(");
    for key in ["state_dict", "model", "model_state_dict", "module", "ema"] {
        let found = open(dict(top().text("epoch").int(3).text(key), "w"));
        assert_eq!(found, ("w".to_owned(), key.to_owned()));
    }
    let both = dict(dict(top().text("ema"), "averaged").text("model"), "w");
    assert_eq!(open(both), ("w".to_owned(), "model".to_owned()));
    // A loss that is saved as a tensor does not hide the dict of weights.
    let two = top().text("loss").tensor("0", 4, 0, &[1], &[1]).text("model").raw(b"}(");
    let two = two.text("a").tensor("0", 4, 0, &[4], &[1]).text("b");
    let two = two.tensor("0", 4, 0, &[4], &[1]).raw(b"u");
    assert_eq!(open(two), ("a b".to_owned(), "model".to_owned()));
    let deep = dict(top().text("module").raw(b"}(").text("state_dict"), "w").raw(b"u");
    assert_eq!(open(deep), ("w".to_owned(), "module.state_dict".to_owned()));
    // DeepSpeed saves a set of names, and dtypes, beside the weights.
    let names = top().text("buffer_names").global("__builtin__", "set").raw(b"(](");
    let names = names.text("b").raw(b"etR").text("dtype").global("torch", "bfloat16");
    let device = names.text("device").global("torch", "device").raw(b"(").text("cuda").raw(b"tR");
    assert_eq!(open(dict(device.text("module"), "w")), ("w".to_owned(), "module".to_owned()));
}

#[test]
fn weights_with_any_supported_extension_are_found_in_a_folder() {
    for name in ["lm.pt", "last.ckpt", "weights.bin", "lm.pth", "lm.safetensors"] {
        let folder = tempfile::tempdir().unwrap();
        let format = if name.ends_with("safetensors") { Format::Safetensors } else { Format::Pth };
        let path = folder.path().join(name);
        save(&path, &named(vec![("w", Tensor::from(1f32))]), format).unwrap();
        // Other files that trainers save.
        for beside in ["optimizer.pt", "training_args.bin", "rng_state.pth"] {
            fs::write(folder.path().join(beside), "PK\x03\x04").unwrap();
        }
        assert_eq!(Weights::open(folder.path()).unwrap().path(), path);
    }
}

#[test]
fn shards_without_an_index_are_opened_and_a_missing_one_is_named() {
    let folder = tempfile::tempdir().unwrap();
    let shard =
        |number: usize| folder.path().join(format!("model-{number:05}-of-00003.safetensors"));
    for number in 1..=3 {
        let name = format!("w{number}");
        let tensor = named(vec![(&name, Tensor::from(number as f32))]);
        save(&shard(number), &tensor, Format::Safetensors).unwrap();
    }
    let weights = Weights::open(folder.path()).unwrap();
    assert_eq!(weights.names().collect::<Vec<_>>(), ["w1", "w2", "w3"]);
    assert_eq!(f64::try_from(weights.get("w3").unwrap()).unwrap(), 3.0);
    fs::remove_file(shard(2)).unwrap();
    let error = refusal(folder.path());
    assert!(
        error.contains("2 of a model's 3 shards") && error.contains("00002-of-00003"),
        "{error}"
    );
    fs::remove_file(shard(3)).unwrap();
    assert!(refusal(folder.path()).contains("1 of a model's 3 shards"));
    fs::rename(shard(1), folder.path().join("a.safetensors")).unwrap();
    save(&folder.path().join("b.pt"), &named(vec![("w", Tensor::from(1f32))]), Format::Pth)
        .unwrap();
    let error = refusal(folder.path());
    assert!(error.contains("2 weights files (a.safetensors, b.pt); pass the path"), "{error}");
}

#[test]
fn unsupported_formats_are_named() {
    for (name, content, expected) in [
        ("model.gguf", "GGUF\x03", "gguf_file=name"),
        ("model.onnx", "\x08\x07", "ONNX"),
        ("tf_model.h5", "HDF", "from_tf=True"),
        ("flax_model.msgpack", "\x01", "from_flax=True"),
        ("adapter_model.safetensors", "", "LoRA adapter"),
        ("zero_pp_rank_0_mp_rank_00_optim_states.pt", "", "zero_to_fp32.py"),
        ("__0_0.distcp", "", "dcp_to_torch"),
        ("notes.txt", "", "expected one of model.safetensors"),
    ] {
        let folder = tempfile::tempdir().unwrap();
        fs::write(folder.path().join(name), content).unwrap();
        let error = refusal(folder.path());
        assert!(error.contains(expected), "{name}: {error}");
    }
    let folder = tempfile::tempdir().unwrap();
    let gguf = folder.path().join("weights.bin");
    fs::write(&gguf, "GGUF\x03").unwrap();
    assert!(refusal(&gguf).contains("llama.cpp"));
}

#[test]
fn a_missing_path_that_looks_like_a_hub_name_gives_the_download_command() {
    let error = refusal(Path::new("openai/clip-vit-base-patch16"));
    let command = "hf download openai/clip-vit-base-patch16 --local-dir clip-vit-base-patch16";
    assert!(error.contains(command), "{error}");
    let error = refusal(Path::new("out/nothere.pth"));
    assert!(error.ends_with("there is no such file or folder"), "{error}");
}

#[test]
fn values_that_are_not_finite_are_refused_with_their_index() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("w.pth");
    let values = Tensor::from_slice(&[1.0, 2.0, f64::NAN, 3.0, f64::INFINITY, 1e300]).view([2, 3]);
    save(&path, &named(vec![("layers.0.w", values)]), Format::Pth).unwrap();
    let weights = Weights::open(&path).unwrap();
    let load = |kind| {
        let variable = Tensor::zeros([2, 3], (kind, tch::Device::Cpu));
        weights.load_into(&named(vec![("layers.0.w", variable)]), |_| false).unwrap_err()
    };
    let WeightsError::NotFinite { name, count, numel, first, .. } = load(Kind::Double) else {
        panic!("another error")
    };
    assert_eq!((name.as_str(), count, numel, first), ("layers.0.w", 2, 6, vec![0, 2]));
    // 1e300 is infinite in the variable's dtype.
    let message = load(Kind::Float).to_string();
    assert!(message.contains("\"layers.0.w\" is not finite: 3 of its 6"), "{message}");
    assert!(message.contains("index [0, 2]"), "{message}");
}
