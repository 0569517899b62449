use std::path::Path;

use tch::{Device, Kind, Tensor};
use vlm_model::weights::{Format, Weights, save, save_shards};

use crate::forge::{Pickle, pth};
use crate::{golden, named};

/// A tensor of each dtype, tensors of unusual shapes and strides, and a tied pair.
fn samples() -> Vec<(String, Tensor)> {
    tch::manual_seed(3);
    let normal = Tensor::randn([3, 5], (Kind::Float, Device::Cpu));
    let tied = Tensor::randn([4, 2], (Kind::Float, Device::Cpu)).set_requires_grad(true);
    let mut tensors = vec![
        ("tok_embeddings.weight", tied.shallow_clone()),
        ("f32", normal.shallow_clone()),
        ("transposed", normal.tr()),
        ("part", normal.slice(0, 1, 3, 1)),
        ("scalar", Tensor::from(2.5f32)),
        ("empty", Tensor::zeros([0, 4], (Kind::Float, Device::Cpu))),
        ("nan", Tensor::from_slice(&[f32::NAN, f32::NEG_INFINITY, -0.0])),
    ];
    let kinds = [
        ("f64", Kind::Double),
        ("f16", Kind::Half),
        ("bf16", Kind::BFloat16),
        ("i64", Kind::Int64),
        ("i32", Kind::Int),
        ("i16", Kind::Int16),
        ("i8", Kind::Int8),
        ("u8", Kind::Uint8),
        ("bool", Kind::Bool),
    ];
    let hundredfold = normal.abs() * 100.0;
    tensors.extend(kinds.map(|(name, kind)| (name, hundredfold.to_kind(kind))));
    tensors.push(("output.weight", tied));
    named(tensors)
}

fn assert_same_bits(name: &str, a: &Tensor, b: &Tensor) {
    assert_eq!((a.size(), a.kind()), (b.size(), b.kind()), "{name}");
    assert_eq!(
        vlm_torch::tensor_to_bytes(a).unwrap(),
        vlm_torch::tensor_to_bytes(b).unwrap(),
        "{name}"
    );
}

/// Saves and opens the samples, and checks that values, shapes and dtypes are the same bit by bit.
fn round_trip(path: &Path, format: Format) -> Weights {
    let tensors = samples();
    save(path, &tensors, format).unwrap();
    let weights = Weights::open(path).unwrap();
    assert_eq!(weights.names().count(), tensors.len());
    for (name, tensor) in &tensors {
        assert_eq!(weights.shape(name), Some(tensor.size().as_slice()));
        assert_eq!(weights.kind(name), Some(tensor.kind()));
        assert_same_bits(name, &weights.get(name).unwrap(), tensor);
    }
    weights
}

#[test]
fn pth_keeps_every_bit_and_ties() {
    let folder = tempfile::tempdir().unwrap();
    let weights = round_trip(&folder.path().join("w.pth"), Format::Pth);
    let shared: Vec<_> = weights
        .infos()
        .iter()
        .filter_map(|i| Some((i.name.as_str(), i.shared_with.as_deref()?)))
        .collect();
    assert_eq!(shared, [("output.weight", "tok_embeddings.weight")]);
    assert_eq!(weights.names().next(), Some("tok_embeddings.weight"));
    // The pair is still tied when it is written and read again.
    let again = folder.path().join("again.pth");
    save(&again, &weights.all().unwrap(), Format::Pth).unwrap();
    let info = Weights::open(&again).unwrap().find("output.weight").cloned().unwrap();
    assert_eq!(info.shared_with.as_deref(), Some("tok_embeddings.weight"));
}

#[test]
fn safetensors_keeps_every_bit() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("w.safetensors");
    round_trip(&path, Format::Safetensors);
    // An independent reader finds the same values.
    let read = Tensor::read_safetensors(&path).unwrap();
    let tensors = samples();
    assert_eq!(read.len(), tensors.len());
    for (name, tensor) in &read {
        let (_, ours) = tensors.iter().find(|(n, _)| n == name).unwrap();
        assert_same_bits(name, tensor, ours);
    }
}

#[test]
fn tied_tensors_stay_tied_in_safetensors() {
    let folder = tempfile::tempdir().unwrap();
    let (first, second) = (folder.path().join("w.safetensors"), folder.path().join("w.pth"));
    save(&first, &samples(), Format::Safetensors).unwrap();
    let shared_with = |path: &Path| {
        let info = Weights::open(path).unwrap().find("output.weight").cloned().unwrap();
        info.shared_with
    };
    assert_eq!(shared_with(&first).as_deref(), Some("tok_embeddings.weight"));
    // Converted to `.pth`, they are tied there too.
    save(&second, &Weights::open(&first).unwrap().all().unwrap(), Format::Pth).unwrap();
    assert_eq!(shared_with(&second).as_deref(), Some("tok_embeddings.weight"));
}

#[test]
fn the_same_tensors_make_the_same_file() {
    let folder = tempfile::tempdir().unwrap();
    let tensors = samples();
    let bytes = |k: usize| {
        let path = folder.path().join(format!("{k}.safetensors"));
        save(&path, &tensors, Format::Safetensors).unwrap();
        std::fs::read(&path).unwrap()
    };
    let first = bytes(0);
    assert!((1..8).all(|k| bytes(k) == first));
}

#[test]
fn shards_have_the_same_tensors_as_one_file() {
    let tensors = samples();
    let folders: Vec<_> = (0..3).map(|_| tempfile::tempdir().unwrap()).collect();
    // One file; a few shards; a shard for each tensor, with the tied pair in one.
    for (folder, (max_bytes, num_files)) in folders.iter().zip([(1 << 20, 1), (200, 4), (1, 15)]) {
        save_shards(folder.path(), &tensors, max_bytes).unwrap();
        let names = std::fs::read_dir(folder.path()).unwrap().map(|e| e.unwrap().file_name());
        let names: Vec<_> = names.map(|name| name.into_string().unwrap()).collect();
        let shards = names.iter().filter(|name| name.ends_with(".safetensors")).count();
        assert_eq!(shards, num_files, "{names:?}");
        assert_eq!(names.len(), num_files + usize::from(num_files > 1), "{names:?}");
        let weights = Weights::open(folder.path()).unwrap();
        assert_eq!(weights.names().count(), tensors.len());
        for (name, tensor) in &tensors {
            assert_same_bits(name, &weights.get(name).unwrap(), tensor);
        }
        let tied = weights.find("output.weight").unwrap();
        assert_eq!(tied.shared_with.as_deref(), Some("tok_embeddings.weight"));
    }
}

#[test]
fn tensors_that_are_read_share_no_memory() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("w.pth");
    save(&path, &samples(), Format::Pth).unwrap();
    let weights = Weights::open(&path).unwrap();
    let _ = weights.get("output.weight").unwrap().zero_();
    assert_same_bits("tok", &weights.get("tok_embeddings.weight").unwrap(), &samples()[0].1);
}

#[test]
fn pth_and_safetensors_written_by_python_have_the_same_values() {
    let pth = Weights::open(&golden("dense/lm_vlm.pth")).unwrap();
    let safe = Weights::open(&golden("dense/lm_vlm.safetensors")).unwrap();
    let (mut a, mut b): (Vec<_>, Vec<_>) = (pth.names().collect(), safe.names().collect());
    a.sort_unstable();
    b.sort_unstable();
    assert_eq!(a, b);
    assert!(a.len() > 20);
    for name in a {
        assert_same_bits(name, &pth.get(name).unwrap(), &safe.get(name).unwrap());
    }
    let tied = pth.find("output.weight").unwrap();
    assert_eq!(tied.shared_with.as_deref(), Some("tok_embeddings.weight"));
}

#[test]
fn format_is_recognised_by_content_and_not_by_name() {
    let folder = tempfile::tempdir().unwrap();
    for (name, format) in
        [("pytorch_model.bin", Format::Safetensors), ("model.safetensors", Format::Pth)]
    {
        let path = folder.path().join(name);
        save(&path, &samples(), format).unwrap();
        assert_eq!(Weights::open(&path).unwrap().infos().len(), samples().len());
    }
    // In a folder, the default name takes precedence.
    assert_eq!(
        Weights::open(folder.path()).unwrap().path(),
        folder.path().join("model.safetensors")
    );
    // Of one name in both formats, the `.pth` is opened.
    let run = tempfile::tempdir().unwrap();
    for (name, format) in [("w.safetensors", Format::Safetensors), ("w.pth", Format::Pth)] {
        save(&run.path().join(name), &samples(), format).unwrap();
    }
    assert_eq!(Weights::open(run.path()).unwrap().path(), run.path().join("w.pth"));
}

#[test]
fn shards_are_read_through_their_index() {
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name);
    let tensors = samples();
    let (front, back) = tensors.split_at(4);
    let own = |part: &[(String, Tensor)]| {
        part.iter().map(|(n, t)| (n.clone(), t.shallow_clone())).collect::<Vec<_>>()
    };
    save(&at("a.safetensors"), &own(front), Format::Safetensors).unwrap();
    save(&at("b.bin"), &own(back), Format::Pth).unwrap();
    let entry =
        |file: &'static str| move |(name, _): &(String, Tensor)| (name.clone(), file.into());
    let map: serde_json::Map<_, _> =
        front.iter().map(entry("a.safetensors")).chain(back.iter().map(entry("b.bin"))).collect();
    let write_index = |map: &serde_json::Map<String, serde_json::Value>| {
        let index = serde_json::json!({ "metadata": {}, "weight_map": map });
        std::fs::write(at("model.safetensors.index.json"), index.to_string()).unwrap();
    };
    write_index(&map);
    let weights = Weights::open(folder.path()).unwrap();
    for (name, tensor) in &tensors {
        assert_same_bits(name, &weights.get(name).unwrap(), tensor);
    }
    let mut wrong = map.clone();
    wrong.insert("ghost".to_owned(), "a.safetensors".into());
    write_index(&wrong);
    let error = Weights::open(folder.path()).unwrap_err().to_string();
    assert!(
        error.ends_with("the index lists tensor \"ghost\" in this file; it is not there"),
        "{error}"
    );
}

#[test]
fn thousands_of_tensors_are_read_back_in_both_formats() {
    let folder = tempfile::tempdir().unwrap();
    let own = |k: i64| (format!("model.layers.{k}.mlp.experts.{k}.gate.weight"), Tensor::from(k));
    let tensors: Vec<_> = (0..2000).map(own).collect();
    for (name, format) in [("w.safetensors", Format::Safetensors), ("w.pth", Format::Pth)] {
        let path = folder.path().join(name);
        save(&path, &tensors, format).unwrap();
        let weights = Weights::open(&path).unwrap();
        assert_eq!(weights.names().count(), 2000);
        let last = weights.get("model.layers.1999.mlp.experts.1999.gate.weight").unwrap();
        assert_eq!(i64::try_from(last).unwrap(), 1999);
    }
    let bytes = std::fs::read(folder.path().join("w.safetensors")).unwrap();
    let header = u64::from_le_bytes(*bytes.first_chunk::<8>().unwrap());
    assert!(header > u64::from(u16::MAX) && header.is_multiple_of(8), "{header}");
}

#[test]
fn weights_in_a_nested_dict_are_found_and_its_key_is_reported() {
    let folder = tempfile::tempdir().unwrap();
    let model = Pickle::new().raw(b"}(").text("epoch").int(3).text("model").raw(b"}(").text("a");
    let pickle = model.tensor("0", 4, 0, &[2, 2], &[2, 1]).raw(b"uu.");
    let weights = Weights::open(&pth(&folder.path().join("w.pth"), &pickle)).unwrap();
    assert_eq!(
        (weights.nested_under(), weights.shape("a")),
        (Some("model"), Some([2, 2].as_slice()))
    );
    assert_eq!(Weights::open(&golden("dense/lm_vlm.pth")).unwrap().nested_under(), None);
}

#[test]
fn summary_sums_in_float64() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("w.pth");
    let half = Tensor::from_slice(&[60000f32, 60000.0]).to_kind(Kind::Half);
    save(&path, &named(vec![("h", half), ("i", Tensor::from_slice(&[1i64, 2]))]), Format::Pth)
        .unwrap();
    let rows = Weights::open(&path).unwrap().summary().unwrap();
    assert_eq!(rows.iter().map(|row| row.sum).collect::<Vec<_>>(), [120_000.0, 3.0]);
    assert_eq!(rows[0].info.kind, Kind::Half);
}

#[test]
fn format_to_write_follows_from_the_extension() {
    assert_eq!(Format::of(Path::new("a/w.pth")).unwrap(), Format::Pth);
    assert_eq!(Format::of(Path::new("w.safetensors")).unwrap(), Format::Safetensors);
    let error = Format::of(Path::new("w.onnx")).unwrap_err().to_string();
    assert_eq!(error, "w.onnx: its name must end in .pth or .safetensors");
}
