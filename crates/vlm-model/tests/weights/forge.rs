//! Writes files as an attacker could: pickles byte by byte, and zip archives with any records.

use std::fs::File;
use std::io::Write;
use std::path::{Path, PathBuf};

use zip::write::SimpleFileOptions;
use zip::{CompressionMethod, ZipWriter};

/// A pickle that is being written.
#[derive(Default, Clone)]
pub struct Pickle(pub Vec<u8>);

impl Pickle {
    pub fn new() -> Self {
        Self(vec![0x80, 2])
    }

    pub fn raw(mut self, bytes: &[u8]) -> Self {
        self.0.extend(bytes);
        self
    }

    pub fn text(self, text: &str) -> Self {
        self.raw(b"X").raw(&(text.len() as u32).to_le_bytes()).raw(text.as_bytes())
    }

    pub fn int(self, value: i64) -> Self {
        self.raw(&[0x8a, 8]).raw(&value.to_le_bytes())
    }

    pub fn global(self, module: &str, name: &str) -> Self {
        self.raw(format!("c{module}\n{name}\n").as_bytes())
    }

    pub fn tuple(self, values: &[i64]) -> Self {
        values.iter().fold(self.raw(b"("), |pickle, &value| pickle.int(value)).raw(b"t")
    }

    pub fn storage(self, class: &str, key: &str, numel: i64) -> Self {
        self.raw(b"(")
            .text("storage")
            .global("torch", class)
            .text(key)
            .text("cpu")
            .int(numel)
            .raw(b"tQ")
    }

    /// A tensor on the storage `key` of `numel` float32.
    pub fn tensor(self, key: &str, numel: i64, offset: i64, shape: &[i64], stride: &[i64]) -> Self {
        self.global("torch._utils", "_rebuild_tensor_v2")
            .raw(b"(")
            .storage("FloatStorage", key, numel)
            .int(offset)
            .tuple(shape)
            .tuple(stride)
            .raw(b"\x89ccollections\nOrderedDict\n)RtR")
    }

    /// `{name: tensor}`, on a storage of four float32.
    pub fn one_tensor(name: &str) -> Self {
        Self::new().raw(b"}(").text(name).tensor("0", 4, 0, &[4], &[1]).raw(b"u.")
    }
}

/// Writes a zip archive of uncompressed records.
pub fn archive(path: &Path, records: &[(&str, &[u8])]) -> PathBuf {
    let mut zip = ZipWriter::new(File::create(path).unwrap());
    for (name, bytes) in records {
        zip.start_file(
            *name,
            SimpleFileOptions::default().compression_method(CompressionMethod::Stored),
        )
        .unwrap();
        zip.write_all(bytes).unwrap();
    }
    zip.finish().unwrap();
    path.to_owned()
}

/// Writes a `.pth` with this pickle and a storage of 16 bytes.
pub fn pth(path: &Path, pickle: &Pickle) -> PathBuf {
    archive(path, &[("w/data.pkl", &pickle.0), ("w/data/0", &[0; 16]), ("w/byteorder", b"little")])
}

/// Replaces every occurrence of `from` in the file by `to`.
pub fn patch(path: &Path, from: &[u8], to: &[u8]) {
    assert_eq!(from.len(), to.len());
    let mut bytes = std::fs::read(path).unwrap();
    let mut found = 0;
    for at in 0..bytes.len().saturating_sub(from.len() - 1) {
        if bytes[at..].starts_with(from) {
            bytes[at..at + to.len()].copy_from_slice(to);
            found += 1;
        }
    }
    assert!(found > 0, "nothing to patch");
    std::fs::write(path, bytes).unwrap();
}
