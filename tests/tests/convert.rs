//! `vlm convert`: lossless in both directions, never overwrites a file unasked, and refuses
//! malicious files.

use std::collections::BTreeMap;
use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};

use serde_json::{Value, json};
use zip::write::SimpleFileOptions;
use zip::{CompressionMethod, ZipWriter};

use crate::support::{demo_start, golden, vlm};

fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

fn convert(input: &Path, output: &Path, more: &[&str]) {
    let mut args = vec!["convert", text(input), text(output)];
    args.extend(more);
    vlm(&args).assert_success();
}

/// The output of `vlm inspect --json`, by tensor name.
fn inspect(path: &Path) -> BTreeMap<String, Value> {
    let ended = vlm(&["inspect", "--json", text(path)]);
    ended.assert_success();
    let rows = ended.stdout.lines().map(|line| serde_json::from_str::<Value>(line).unwrap());
    rows.map(|row| (row["name"].as_str().unwrap().to_owned(), row)).collect()
}

/// Dtype, shape and bytes of every tensor of a `.safetensors` file.
fn contents(path: &Path) -> BTreeMap<String, (String, Vec<usize>, Vec<u8>)> {
    let bytes = fs::read(path).unwrap();
    let file = safetensors::SafeTensors::deserialize(&bytes).unwrap();
    let entry = |(name, view): (String, safetensors::tensor::TensorView)| {
        let dtype = format!("{:?}", view.dtype());
        (name, (dtype, view.shape().to_vec(), view.data().to_vec()))
    };
    file.tensors().into_iter().map(entry).collect()
}

/// Writes tensors of every dtype that weights have, with values that a conversion to another dtype
/// would change.
fn write_mixed(path: &Path) {
    use safetensors::tensor::{Dtype, TensorView};
    let bytes: Vec<u8> = (0..48).map(|k| (k * 37 % 251) as u8).collect();
    let tensors = [
        ("f32", Dtype::F32, vec![3, 4]),
        ("bf16", Dtype::BF16, vec![24]),
        ("f16", Dtype::F16, vec![2, 12]),
        ("i64", Dtype::I64, vec![6]),
        ("scalar", Dtype::F32, vec![]),
    ];
    let views = tensors.iter().map(|(name, dtype, shape)| {
        let length = shape.iter().product::<usize>() * dtype.bitsize() / 8;
        (*name, TensorView::new(*dtype, shape.clone(), &bytes[..length]).unwrap())
    });
    safetensors::serialize_to_file(views, None, path).unwrap();
}

#[test]
fn weights_are_converted_in_both_directions_bit_for_bit() {
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name);
    write_mixed(&at("a.safetensors"));
    convert(&at("a.safetensors"), &at("new/b.pth"), &[]);
    convert(&at("new/b.pth"), &at("c.safetensors"), &[]);
    assert_eq!(contents(&at("a.safetensors")), contents(&at("c.safetensors")));
    assert_eq!(contents(&at("a.safetensors")).len(), 5);

    // Tied weights stay tied from a file of Python to safetensors, to shards, and back.
    convert(&golden("dense/lm_vlm.pth"), &at("d.safetensors"), &[]);
    convert(&at("d.safetensors"), &at("shards"), &["--max-shard-size", "100KB"]);
    assert!(at("shards/model.safetensors.index.json").is_file());
    convert(&at("shards"), &at("e.pth"), &[]);
    let (first, last) = (inspect(&golden("dense/lm_vlm.pth")), inspect(&at("e.pth")));
    assert_eq!(first, last);
    assert_eq!(last["output.weight"]["shared_with"], "tok_embeddings.weight");
    convert(&at("e.pth"), &at("f.safetensors"), &[]);
    assert_eq!(contents(&at("d.safetensors")), contents(&at("f.safetensors")));
    assert_eq!(contents(&golden("dense/lm_vlm.safetensors")), contents(&at("f.safetensors")));
}

#[test]
fn nothing_is_overwritten_without_force() {
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name);
    write_mixed(&at("a.safetensors"));
    fs::write(at("b.pth"), "kept").unwrap();
    let refused = |output: &str, more: &[&str], parts: &[&str]| {
        let (from, to) = (at("a.safetensors"), at(output));
        let mut args = vec!["convert", text(&from), text(&to)];
        args.extend(more);
        vlm(&args).assert_error(2, parts);
    };
    refused("b.pth", &[], &["b.pth", "--force"]);
    assert_eq!(fs::read(at("b.pth")).unwrap(), b"kept");
    convert(&at("a.safetensors"), &at("b.pth"), &["--force"]);
    assert_eq!(inspect(&at("b.pth")).len(), 5);
    // A folder with other files is not replaced even with --force.
    fs::create_dir(at("mine")).unwrap();
    fs::write(at("mine/thesis.txt"), "kept").unwrap();
    refused("mine", &[], &["mine", "--force"]);
    refused("mine", &["--force"], &["thesis.txt"]);
    assert!(at("mine/thesis.txt").is_file());
    refused("c.onnx", &[], &[".pth or .safetensors"]);
    refused("c.pth", &["--max-shard-size", "1MB"], &["folder"]);
    vlm(&["convert", text(&at("a.safetensors"))]).assert_error(2, &["OUTPUT"]);
    // No temporary file remains.
    let num_files = fs::read_dir(folder.path()).unwrap().count();
    assert_eq!(num_files, 3);
}

#[test]
fn a_whole_model_is_exported_to_the_container_that_holds_it_and_others_are_refused() {
    let folder = tempfile::tempdir().unwrap();
    let own = folder.path().join("own");
    vlm(&[
        "init",
        "--out-dir",
        text(&own),
        "--dim",
        "32",
        "--n-layers",
        "1",
        "--n-heads",
        "2",
        "--n-kv-heads",
        "1",
        "--vocab-size",
        "689",
        "--vision",
        "none",
    ])
    .assert_success();
    let (start, own) = (demo_start(""), text(&own));
    let parts = ["--tokenizer", text(&start)];
    let to = |more: &[&str]| vlm(&[&["convert", own], more, &parts].concat());
    // A language model alone.
    to(&["--to", "llava"]).assert_error(2, &["for transformers use --export-hf"]);
    to(&["--to", "auto"]).assert_success();
    assert!(folder.path().join("own-gguf/model.gguf").is_file());
    to(&["--to", "auto"]).assert_error(2, &["own-gguf already exists", "--force"]);
    to(&["--to", "gguf", "--force"]).assert_success();
    to(&["--to", "onnx"]).assert_error(2, &["expected llava, smolvlm, lfm2-vl, gguf or auto"]);
    to(&["--to", "llava", "--without-vision"]).assert_error(2, &["for --to gguf"]);
}

/// Writes a zip archive like those of `torch.save`, with these records.
fn archive(path: &Path, records: &[(&str, &[u8])], method: CompressionMethod) {
    let mut zip = ZipWriter::new(fs::File::create(path).unwrap());
    for (name, bytes) in records {
        let options = SimpleFileOptions::default().compression_method(method);
        zip.start_file(*name, options).unwrap();
        zip.write_all(bytes).unwrap();
    }
    zip.finish().unwrap();
}

/// The pickle of `{"a": tensor}`, with a tensor of `numel` float32 elements in storage 0.
fn pickle(numel: u8) -> Vec<u8> {
    let mut bytes = b"\x80\x02}X\x01\0\0\0actorch._utils\n_rebuild_tensor_v2\n((".to_vec();
    bytes.extend(b"X\x07\0\0\0storagectorch\nFloatStorage\nX\x01\0\0\x000X\x03\0\0\0cpu");
    bytes.extend([b'K', numel, b't', b'Q', b'K', 0, b'K', numel, 0x85, b'K', 1, 0x85]);
    bytes.extend(b"\x89ccollections\nOrderedDict\n)RtRs.");
    bytes
}

/// Five malicious files, and the reason for which each must be refused.
fn malicious(folder: &Path) -> Vec<(PathBuf, &'static str)> {
    let at = |name: &str| folder.join(name);
    let (stored, deflated) = (CompressionMethod::Stored, CompressionMethod::Deflated);
    let good = pickle(4);
    let run = b"\x80\x02cos\nsystem\nX\x0d\0\0\0touch /tmp/pwn\x85R.".as_slice();
    archive(&at("global.pth"), &[("w/data.pkl", run), ("w/data/0", &[0; 16])], stored);
    archive(&at("size.pth"), &[("w/data.pkl", &pickle(200)), ("w/data/0", &[0; 16])], stored);
    let zeros = vec![b'N'; 32 << 20];
    archive(&at("bomb.pth"), &[("w/data.pkl", &zeros)], deflated);
    let climbing: &[(&str, &[u8])] =
        &[("w/data.pkl", &good), ("w/data/0", &[0; 16]), ("w/../../evil", b"x")];
    archive(&at("path.pth"), climbing, stored);
    fs::create_dir(at("index")).unwrap();
    let index = json!({"weight_map": {"a": "../secret.safetensors"}});
    fs::write(at("index/model.safetensors.index.json"), index.to_string()).unwrap();
    write_mixed(&at("secret.safetensors"));
    archive(&at("good.pth"), &[("w/data.pkl", &good), ("w/data/0", &[0; 16])], stored);
    vec![
        (at("global.pth"), "the pickle uses os.system"),
        (at("size.pth"), "storage 0 has 16 bytes, its 200 elements take 800"),
        (at("bomb.pth"), "record w/data.pkl claims to unpack"),
        (at("path.pth"), "\"w/../../evil\" leaves the archive"),
        (at("index"), "\"../secret.safetensors\"; expected a file name"),
    ]
}

#[test]
fn control_characters_in_names_are_escaped_and_long_names_are_shown() {
    use safetensors::tensor::{Dtype, TensorView};
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("a.safetensors");
    let names = ["\x1b[2J\x1b]0;owned\x07".to_owned(), "n".repeat(70_000)];
    let views = names.map(|name| (name, TensorView::new(Dtype::F32, vec![1], &[0; 4]).unwrap()));
    safetensors::serialize_to_file(views, None, &path).unwrap();
    let ended = vlm(&["inspect", text(&path)]);
    ended.assert_success();
    assert!(!ended.stdout.contains('\x1b') && ended.stdout.contains("u{1b}[2J"));
    assert!(ended.stdout.contains("2 tensors, 2 elements"), "{}", ended.stdout);
}

#[test]
fn malicious_files_are_refused_with_the_reason() {
    let folder = tempfile::tempdir().unwrap();
    let output = folder.path().join("out.safetensors");
    let files = malicious(folder.path());
    assert_eq!(files.len(), 5);
    for (path, reason) in files {
        let name = path.file_name().unwrap().to_str().unwrap();
        for args in [vec!["inspect", text(&path)], vec!["convert", text(&path), text(&output)]] {
            let ended = vlm(&args);
            println!("{} {name}: {}", args[0], ended.stderr.trim());
            ended.assert_error(2, &[name, reason]);
        }
        assert!(!output.exists());
    }
    // A correct file that is made in the same way is accepted.
    vlm(&["inspect", text(&folder.path().join("good.pth"))]).assert_success();
}
