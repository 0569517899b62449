//! Files of weights, and checkpoints.

use std::fs;
use std::io::{Cursor, Write};
use std::path::Path;

use vlm_model::weights::Weights;
use zip::write::SimpleFileOptions;
use zip::{CompressionMethod, ZipWriter};

use crate::Target;
use crate::scratch::{file, folder_with, golden};

pub(super) fn targets() -> Vec<Target> {
    let pickle: &[&str] = &[
        "\u{80}\u{2}",
        "}",
        "(",
        "t",
        "R",
        "Q",
        "u",
        ".",
        "]",
        "a",
        "e",
        "N",
        "q\0",
        "h\0",
        "0",
        "1",
        "2",
        "ctorch._utils\n_rebuild_tensor_v2\n",
        "ctorch\nFloatStorage\n",
        "X\u{1}\0\0\0a",
        "K\u{4}",
        "M\0\u{1}",
        "ccollections\nOrderedDict\n",
        "storage",
        "cpu",
        "state_dict",
        "\u{85}",
        "\u{86}",
        "ctorch\nBFloat16Storage\n",
        "ctorch._utils\n_rebuild_parameter\n",
        "cos\nsystem\n",
    ];
    vec![
        Target { name: "pickle", run: read_pickle, seeds: pickles, dictionary: pickle },
        Target {
            name: "pth",
            run: |data| read_all(&file("pth", "w.pth", data)),
            seeds: || {
                let made = pickles().iter().map(|pickle| archive(pickle)).collect::<Vec<_>>();
                [made, vec![deflated(), saved()]].concat()
            },
            dictionary: &[
                "PK\u{3}\u{4}", "PK\u{1}\u{2}", "PK\u{5}\u{6}", "PK\u{6}\u{6}", "w/data/0", "../",
            ],
        },
        Target {
            name: "safetensors",
            run: |data| read_all(&file("safetensors", "w.safetensors", data)),
            seeds: tensors,
            dictionary: &[
                "dtype", "shape", "data_offsets", "F32", "BF16", "F16", "I64", "U8", "BOOL",
                "F8_E4M3", "__metadata__", "vlm.tied", "[0,0]", "18446744073709551615", "{", "}",
                "0",
            ],
        },
        Target {
            name: "index",
            run: read_index,
            seeds: || {
                vec![
                    br#"{"metadata": {"total_size": 8}, "weight_map": {"a": "x.safetensors"}}"#
                        .to_vec(),
                ]
            },
            dictionary: &[
                "weight_map", "metadata", "x.safetensors", "../x", "/", "a", "",
                "model.safetensors", "x.pth", ".", "..",
            ],
        },
        Target {
            name: "checkpoint",
            run: read_checkpoint,
            seeds: || vec![STATE.as_bytes().to_vec()],
            dictionary: &[
                "version", "position", "identity", "checksums", "checksum", "scaler", "counters",
                "model.safetensors", "optimizer.safetensors", "../x", "next_batch", "epoch", "1",
                "2",
            ],
        },
        Target {
            name: "checkpoint_tensors",
            run: read_checkpoint_tensors,
            seeds: tensors,
            dictionary: &[
                "dtype", "shape", "data_offsets", "F32", "BF16", "F16", "I64", "U8", "BOOL",
                "F8_E4M3",
            ],
        },
    ]
}

fn read_all(path: &Path) {
    if let Ok(weights) = Weights::open(path) {
        let _ = weights.all();
    }
}

/// A dict of one tensor, as `torch.save` writes it, and one with nested dicts and a tied tensor.
fn pickles() -> Vec<Vec<u8>> {
    let text = |out: &mut Vec<u8>, text: &str| {
        out.push(b'X');
        out.extend((text.len() as u32).to_le_bytes());
        out.extend(text.as_bytes());
    };
    let tensor = |out: &mut Vec<u8>, shape: [u8; 2]| {
        out.extend(b"ctorch._utils\n_rebuild_tensor_v2\n((");
        text(out, "storage");
        out.extend(b"ctorch\nFloatStorage\n");
        text(out, "0");
        text(out, "cpu");
        out.extend(b"K\x04tQK\0");
        out.extend([b'K', shape[0], b'K', shape[1], 0x86, b'K', shape[1], b'K', 1, 0x86, 0x89]);
        out.extend(b"ccollections\nOrderedDict\n)RtR");
    };
    let (mut flat, mut nested) = (b"\x80\x02}q\0(".to_vec(), b"\x80\x02}(".to_vec());
    text(&mut flat, "a");
    tensor(&mut flat, [2, 2]);
    flat.extend(b"u.");
    text(&mut nested, "epoch");
    nested.extend(b"K\x07");
    text(&mut nested, "state_dict");
    nested.extend(b"ccollections\nOrderedDict\n)R(");
    for name in ["a", "b"] {
        text(&mut nested, name);
        tensor(&mut nested, [1, 4]);
    }
    nested.extend(b"uu.");
    vec![flat, nested]
}

fn zip_of(pickle: &[u8], method: CompressionMethod) -> Vec<u8> {
    let mut zip = ZipWriter::new(Cursor::new(Vec::new()));
    let options = SimpleFileOptions::default().compression_method(method);
    let records: [(&str, &[u8]); 3] =
        [("w/data.pkl", pickle), ("w/data/0", &[0; 16]), ("w/byteorder", b"little")];
    for (name, bytes) in records {
        zip.start_file(name, options).expect("an archive in memory");
        zip.write_all(bytes).expect("an archive in memory");
    }
    zip.finish().expect("an archive in memory").into_inner()
}

fn archive(pickle: &[u8]) -> Vec<u8> {
    zip_of(pickle, CompressionMethod::Stored)
}

fn deflated() -> Vec<u8> {
    zip_of(&pickles()[0], CompressionMethod::Deflated)
}

/// An archive in the form in which this program writes weights.
fn saved() -> Vec<u8> {
    let tensor = |bytes: &[u8]| {
        vlm_torch::tensor_from_bytes(bytes, &[2, 2], tch::Kind::Uint8).expect("a tensor")
    };
    let tensors = [("a".to_owned(), tensor(&[1, 2, 3, 4])), ("b".to_owned(), tensor(&[5; 4]))];
    let folder = tempfile::tempdir().expect("a temporary folder");
    let path = folder.path().join("w.pth");
    vlm_torch::save_pth(&path, &tensors).expect("weights can be written");
    fs::read(path).expect("a file")
}

/// The input is the pickle in a valid archive.
fn read_pickle(data: &[u8]) {
    read_all(&file("pickle", "w.pth", &archive(data)));
}

fn safetensors(header: &str, data: usize) -> Vec<u8> {
    let mut bytes = (header.len() as u64).to_le_bytes().to_vec();
    bytes.extend(header.as_bytes());
    bytes.resize(bytes.len() + data, 1);
    bytes
}

fn tensors() -> Vec<Vec<u8>> {
    let two = r#"{"a":{"dtype":"F32","shape":[2,1],"data_offsets":[0,8]},"b":{"dtype":"BF16","shape":[2],"data_offsets":[8,12]}}"#;
    let tied = r#"{"__metadata__":{"vlm.tied":"{\"b\":\"a\"}"},"a":{"dtype":"U8","shape":[2],"data_offsets":[0,2]},"b":{"dtype":"U8","shape":[2],"data_offsets":[2,4]}}"#;
    let small = golden("encoders", &["expected.safetensors"], 8 << 10);
    [vec![safetensors(two, 12), safetensors(tied, 4)], small].concat()
}

/// The input is the index of a folder with one shard.
fn read_index(data: &[u8]) {
    let folder = folder_with("index", "model.safetensors.index.json", data, |folder| {
        fs::write(folder.join("x.safetensors"), &tensors()[0]).expect("a file");
    });
    read_all(&folder);
}

const STATE: &str = r#"{"version": 1, "program": "0.1.0", "position": {"epoch": 0, "next_batch": 3,
  "counters": {"step": 3, "update": 3, "samples": 12, "tokens": 400, "supervised_tokens": 100,
  "skipped_updates": 0, "empty_steps": 0, "rejected_rows": 0}, "last_loss": 1.5,
  "skipped_in_a_row": 0, "scaler": null}, "identity": {"seed": 1}, "checksums": {}}"#;

/// The input is `state.json` beside valid tensors.
fn read_checkpoint(data: &[u8]) {
    let folder = folder_with("checkpoint", "state.json", data, |folder| {
        for name in ["model.safetensors", "optimizer.safetensors"] {
            fs::write(folder.join(name), &tensors()[0]).expect("a file");
        }
    });
    let _ = vlm_train::load_checkpoint(&folder);
}

/// The input is a file of tensors beside a `state.json` without checksums, as version 1 may have.
fn read_checkpoint_tensors(data: &[u8]) {
    let folder = folder_with("checkpoint_tensors", "model.safetensors", data, |folder| {
        fs::write(folder.join("optimizer.safetensors"), &tensors()[0]).expect("a file");
        fs::write(folder.join("state.json"), STATE).expect("a file");
    });
    let _ = vlm_train::load_checkpoint(&folder);
}
