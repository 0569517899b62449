use std::fs;
use std::io::Write;

use vlm_model::weights::Weights;
use zip::write::SimpleFileOptions;
use zip::{CompressionMethod, ZipWriter};

use crate::forge::{Pickle, archive, patch, pth};
use crate::refusal;

/// The error of opening a `.pth` with this pickle.
fn refused(pickle: &Pickle) -> String {
    let folder = tempfile::tempdir().unwrap();
    refusal(&pth(&folder.path().join("w.pth"), pickle))
}

fn assert_says(message: &str, expected: &str) {
    assert!(message.contains(expected), "{message:?} does not say {expected:?}");
}

#[test]
fn forged_files_without_a_defect_can_be_read() {
    let folder = tempfile::tempdir().unwrap();
    let path = pth(&folder.path().join("w.pth"), &Pickle::one_tensor("a"));
    assert_eq!(Weights::open(&path).unwrap().get("a").unwrap().size(), [4]);
}

#[test]
fn other_functions_and_classes_are_refused_by_name() {
    let folder = tempfile::tempdir().unwrap();
    let victim = folder.path().join("touched");
    let command = format!("touch {}", victim.display());
    let pickle = Pickle::new().global("os", "system").raw(b"(").text(&command).raw(b"tR.");
    assert_says(&refused(&pickle), "the pickle uses os.system, which weights do not need");
    assert!(!victim.exists());
    // The newer opcode, with the name on the stack.
    let pickle = Pickle::new().text("builtins").text("eval").raw(b"\x93.");
    assert_says(&refused(&pickle), "builtins.eval");
    // A class that is not called.
    let pickle = Pickle::new().raw(b"}(").text("a").global("torch.nn", "Linear").raw(b"u.");
    assert_says(&refused(&pickle), "torch.nn.Linear");
}

#[test]
fn tensors_that_exceed_their_storage_are_refused() {
    let cases: [(i64, &[i64], &[i64]); 6] = [
        (0, &[5], &[1]),
        (1, &[4], &[1]),
        (0, &[2, 2], &[i64::MAX, 1]),
        (i64::MAX, &[2], &[1]),
        (0, &[1 << 40], &[0]),
        (0, &[i64::MAX, i64::MAX], &[0, 0]),
    ];
    for (offset, shape, stride) in cases {
        let pickle =
            Pickle::new().raw(b"}(").text("a").tensor("0", 4, offset, shape, stride).raw(b"u.");
        assert_says(&refused(&pickle), "does not fit into storage 0 of 4 elements");
    }
    let negative = Pickle::new().raw(b"}(").text("a").tensor("0", 4, 3, &[2], &[-1]).raw(b"u.");
    assert_says(&refused(&negative), "a tensor's stride has the number -1");
    let uneven = Pickle::new().raw(b"}(").text("a").tensor("0", 4, 0, &[4], &[]).raw(b"u.");
    assert_says(&refused(&uneven), "has shape [4], stride []");
}

#[test]
fn storages_longer_than_their_record_are_refused() {
    let pickle = Pickle::new().raw(b"}(").text("a").tensor("0", 5, 0, &[5], &[1]).raw(b"u.");
    assert_says(&refused(&pickle), "tensor \"a\": storage 0 has 16 bytes, its 5 elements take 20");
    let huge = i64::MAX / 4;
    let pickle = Pickle::new().raw(b"}(").text("a").tensor("0", huge, 0, &[huge], &[1]).raw(b"u.");
    assert_says(&refused(&pickle), "storage 0 has 16 bytes");
    let pickle = Pickle::new().raw(b"}(").text("a").tensor("7", 4, 0, &[4], &[1]).raw(b"u.");
    assert_says(&refused(&pickle), "there is no record w/data/7");
}

#[test]
fn persistent_ids_of_other_kinds_are_refused() {
    let text = Pickle::new().text("module").raw(b"Q.");
    assert_says(&refused(&text), "the persistent id is a string");
    let tag = Pickle::new().raw(b"(").text("module").global("torch", "FloatStorage");
    let tag = tag.text("0").text("cpu").int(4).raw(b"tQ.");
    assert_says(&refused(&tag), "the persistent id is a \"module\"; expected a \"storage\"");
    let climbing = Pickle::new().storage("FloatStorage", "../../etc/passwd", 4).raw(b".");
    assert_says(&refused(&climbing), "the storage key \"../../etc/passwd\" is not a plain name");
    let negative = Pickle::new().storage("FloatStorage", "0", -1).raw(b".");
    assert_says(&refused(&negative), "storage 0 has -1 elements");
}

#[test]
fn pickles_without_tensors_are_refused() {
    assert_says(&refused(&Pickle::new().int(3).raw(b".")), "it holds an integer; expected a dict");
    assert_says(&refused(&Pickle::new().raw(b"}.")), "it has no named tensors");
    let far_down = "abcd"
        .chars()
        .fold(Pickle::new().raw(b"}("), |pickle, key| pickle.text(&key.to_string()).raw(b"}("));
    let far_down = far_down.text("e").tensor("0", 4, 0, &[4], &[1]).raw(b"uuuuu.");
    assert_says(
        &refused(&far_down),
        "neither at the top nor in nested dicts; found the keys \"a\"",
    );
    let one = |pickle: Pickle, key: &str| {
        pickle.text(key).raw(b"}(").text("w").tensor("0", 4, 0, &[4], &[1]).raw(b"u")
    };
    let two = one(one(Pickle::new().raw(b"}("), "generator"), "critic").raw(b"u.");
    assert_says(&refused(&two), "several of its dicts have tensors (generator, critic)");
}

#[test]
fn truncated_files_are_refused_at_every_length() {
    let folder = tempfile::tempdir().unwrap();
    let path = pth(&folder.path().join("w.pth"), &Pickle::one_tensor("a"));
    let whole = fs::read(&path).unwrap();
    for length in (0..whole.len()).step_by(7) {
        fs::write(&path, &whole[..length]).unwrap();
        let message = refusal(&path);
        assert!(message.contains("w.pth: "), "{message}");
    }
    // A truncated pickle in a complete zip archive.
    let pickle = Pickle(Pickle::one_tensor("a").0[..60].to_vec());
    assert_says(&refused(&pickle), "in the middle of a value");
}

#[test]
fn changed_values_are_detected_by_their_checksum() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("w.pth");
    let values = [7u8; 16];
    archive(&path, &[("w/data.pkl", &Pickle::one_tensor("a").0), ("w/data/0", &values)]);
    patch(&path, &values, &[8; 16]);
    let error = Weights::open(&path).unwrap().get("a").unwrap_err().to_string();
    assert_says(&error, "record w/data/0: Invalid checksum");
}

#[test]
fn zip_bombs_are_refused_without_unpacking() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("w.pth");
    let mut zip = ZipWriter::new(fs::File::create(&path).unwrap());
    let deflated = SimpleFileOptions::default().compression_method(CompressionMethod::Deflated);
    zip.start_file("w/data.pkl", deflated).unwrap();
    zip.write_all(&vec![b'N'; 32 << 20]).unwrap();
    zip.finish().unwrap();
    assert_says(&refusal(&path), "record w/data.pkl claims to unpack");

    // An uncompressed record whose headers claim almost 4 GB.
    let path = pth(&path, &Pickle::one_tensor("a"));
    let size = (Pickle::one_tensor("a").0.len() as u32).to_le_bytes();
    patch(&path, &[size, size].concat(), &[0xfe, 0xff, 0xff, 0xff, 0xfe, 0xff, 0xff, 0xff]);
    assert_says(&refusal(&path), "record w/data.pkl claims 4294967294 bytes");
}

#[test]
fn lists_of_tensors_beyond_the_limits_are_refused_unread() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("w.pth");
    let mut zip = ZipWriter::new(fs::File::create(&path).unwrap());
    let stored = SimpleFileOptions::default().compression_method(CompressionMethod::Stored);
    zip.start_file("w/data.pkl", stored).unwrap();
    zip.write_all(&vec![b'N'; (64 << 20) + 1]).unwrap();
    zip.finish().unwrap();
    assert_says(&refusal(&path), "data.pkl has 67108865 bytes, too many for a list of tensors");

    // Files without content beyond their first bytes take no space on the disk.
    let path = folder.path().join("w.safetensors");
    let write = |header_bytes: u64| {
        fs::write(&path, [&header_bytes.to_le_bytes()[..], b"{}"].concat()).unwrap();
        fs::File::options().write(true).open(&path).unwrap().set_len(200_000_000).unwrap();
    };
    write(100_000_001);
    assert_says(&refusal(&path), "the header claims 100000001 bytes; the limit is 100000000");
    write(200_000_000);
    assert_says(&refusal(&path), "the header claims 200000000 bytes");
    write(99_999_999);
    assert_says(&refusal(&path), "header is not valid");

    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("model.safetensors.index.json");
    fs::write(&path, "{").unwrap();
    fs::File::options().write(true).open(&path).unwrap().set_len((256 << 20) + 1).unwrap();
    assert_says(&refusal(folder.path()), "the index has 268435457 bytes");
}

#[test]
fn record_names_that_leave_the_archive_are_refused() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("w.pth");
    for name in ["../../evil", "/etc/evil", "w/../../evil", "w\\..\\evil"] {
        archive(&path, &[("w/data.pkl", &Pickle::one_tensor("a").0), (name, b"x")]);
        assert_says(&refusal(&path), "leaves the archive");
    }
}

#[test]
fn other_archives_are_recognised() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("w.pth");
    let pickle = Pickle::one_tensor("a").0;
    archive(&path, &[("a.txt", b"x")]);
    assert_says(&refusal(&path), "has no data.pkl");
    archive(&path, &[("w/data.pkl", &pickle), ("w/constants.pkl", b"x")]);
    assert_says(&refusal(&path), "TorchScript");
    archive(&path, &[("w/data.pkl", &pickle), ("v/data.pkl", &pickle)]);
    assert_says(&refusal(&path), "2 records called data.pkl");
    archive(&path, &[("w/data.pkl", &pickle), ("w/byteorder", b"big")]);
    assert_says(&refusal(&path), "big-endian");
}

#[test]
fn other_files_are_recognised() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("w.safetensors");
    let cases: [(&[u8], &str); 8] = [
        (b"", "the file is empty"),
        (b"version https://git-lfs.github.com/spec/v1\n", "git lfs pull"),
        (b"\x80\x02\x8a\x0al\xfc\x9c\x46\xf9\x20\x6a\xa8\x50\x19", "before PyTorch 1.6"),
        (b"\x89PNG\r\n\x1a\n", "neither a .pth"),
        (b"\x02\0\0\0\0\0\0\0{}\0\0", "describes 0 bytes of tensors, the file has 2"),
        (b"\x03\0\0\0\0\0\0\0{,}", "header is not valid"),
        (b"\x40\0\0\0\0\0\0\0{\"a\":", "safetensors header of 64: it was cut"),
        (b"{\"weight_map\": {\"a\": \"../x\"}}", "expected a file name"),
    ];
    for (bytes, expected) in cases {
        fs::write(&path, bytes).unwrap();
        assert_says(&refusal(&path), expected);
    }
    assert_says(&refusal(folder.path().join("none").as_path()), "no such file or folder");
}

#[test]
fn a_named_pipe_is_refused_without_waiting() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("w.pth");
    assert!(std::process::Command::new("mkfifo").arg(&path).status().unwrap().success());
    assert_says(&refusal(&path), "w.pth: it is not a regular file");
}

#[test]
fn inconsistent_safetensors_headers_are_refused() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("w.safetensors");
    let write = |header: &str, data: usize| {
        let mut bytes = (header.len() as u64).to_le_bytes().to_vec();
        bytes.extend(header.as_bytes());
        bytes.resize(bytes.len() + data, 0);
        fs::write(&path, bytes).unwrap();
    };
    write(r#"{"a":{"dtype":"F32","shape":[3],"data_offsets":[0,8]}}"#, 8);
    assert_says(&refusal(&path), "header is not valid");
    write(r#"{"a":{"dtype":"F32","shape":[4294967296,4294967296],"data_offsets":[0,8]}}"#, 8);
    assert_says(&refusal(&path), "header is not valid");
    write(r#"{"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}}"#, 4);
    assert_says(&refusal(&path), "describes 8 bytes of tensors, the file has 4");
    write(r#"{"a":{"dtype":"U64","shape":[1],"data_offsets":[0,8]}}"#, 8);
    assert_says(&refusal(&path), "tensor \"a\" is of dtype U64");
}

#[test]
fn wrong_ties_are_refused() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("w.safetensors");
    let write = |tied: &str| {
        let header = format!(
            r#"{{"__metadata__":{{"vlm.tied":"{tied}"}},"a":{{"dtype":"U8","shape":[2],"data_offsets":[0,2]}},"b":{{"dtype":"U8","shape":[2],"data_offsets":[2,4]}}}}"#
        );
        let mut bytes = (header.len() as u64).to_le_bytes().to_vec();
        bytes.extend(header.as_bytes());
        bytes.extend([1, 2, 1, 3]);
        fs::write(&path, bytes).unwrap();
    };
    write(r#"{\"b\":\"a\"}"#);
    assert_says(&refusal(&path), "it ties \"b\" to \"a\", but the two differ");
    write(r#"{\"b\":\"b\"}"#);
    assert_says(&refusal(&path), "but the two differ");
    write(r#"{\"b\":\"c\"}"#);
    assert_says(&refusal(&path), "but does not have both");
    write("b = a");
    assert_says(&refusal(&path), "the metadata \"vlm.tied\"");
}

#[test]
fn indices_that_refer_to_another_folder_are_refused() {
    let folder = tempfile::tempdir().unwrap();
    let outside = folder.path().join("secret.safetensors");
    fs::write(&outside, b"not to be read").unwrap();
    let inside = folder.path().join("model");
    fs::create_dir(&inside).unwrap();
    let index = inside.join("model.safetensors.index.json");
    for part in
        ["../secret.safetensors", outside.to_str().unwrap(), "a/../../secret.safetensors", ".."]
    {
        let json = serde_json::json!({ "weight_map": { "a": part } });
        fs::write(&index, json.to_string()).unwrap();
        assert_says(&refusal(&inside), "expected a file name");
    }
}
