//! Tells whether files are the same on two machines without reading large files whole. Only size
//! and content count, not names and times, which may differ between copies.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::Path;

/// Files up to this size are read whole.
const WHOLE_BYTES: u64 = 4 << 20;
/// Number of blocks that are read of a larger file, spread evenly. The last block of a Parquet file
/// describes all its parts.
const NUM_BLOCKS: u64 = 32;
const BLOCK_BYTES: u64 = 4096;

/// Adds the size and content of a file to `hasher`.
///
/// # Errors
/// A file that cannot be read.
pub(crate) fn hash_file(path: &Path, hasher: &mut blake3::Hasher) -> io::Result<()> {
    let file = File::open(path)?;
    let size = file.metadata()?.len();
    hasher.update(&size.to_le_bytes());
    if size <= WHOLE_BYTES {
        hasher.update_reader(&file)?;
        return Ok(());
    }
    let mut block = [0; BLOCK_BYTES as usize];
    for k in 0..NUM_BLOCKS {
        let start = k * ((size - BLOCK_BYTES) / (NUM_BLOCKS - 1));
        let start = if k + 1 == NUM_BLOCKS { size - BLOCK_BYTES } else { start };
        file.read_exact_at(&mut block, start)?;
        hasher.update(&block);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hash(bytes: &[u8]) -> blake3::Hash {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), bytes).unwrap();
        let mut hasher = blake3::Hasher::new();
        hash_file(file.path(), &mut hasher).unwrap();
        hasher.finalize()
    }

    #[test]
    fn a_file_of_another_size_or_another_byte_where_it_is_looked_at_has_another_hash() {
        let changed = |bytes: &[u8], at: usize| {
            let mut bytes = bytes.to_vec();
            bytes[at] ^= 1;
            bytes
        };
        let small = vec![7; 10_000];
        assert_eq!(hash(&small), hash(&small));
        assert_ne!(hash(&small), hash(&small[1..]));
        assert_ne!(hash(&small), hash(&changed(&small, 5_001)));
        let large = vec![7; 9_000_000];
        assert_eq!(hash(&large), hash(&large));
        assert_ne!(hash(&large), hash(&large[1..]));
        for at in [0, 8_999_999] {
            assert_ne!(hash(&large), hash(&changed(&large, at)), "byte {at}");
        }
    }
}
