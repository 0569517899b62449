//! Checks that a TIFF has the values that its tags claim to have. A decoder allocates room for them
//! before it reads them, so that a file of 500 bytes could ask for hundreds of megabytes.

/// The tags that a decoder reads for the pixels themselves. Wrong lengths of others, such as a
/// description, do no harm.
const READ_TAGS: [u16; 20] = [
    256, // ImageWidth
    257, // ImageLength
    258, // BitsPerSample
    259, // Compression
    262, // PhotometricInterpretation
    273, // StripOffsets
    277, // SamplesPerPixel
    278, // RowsPerStrip
    279, // StripByteCounts
    284, // PlanarConfiguration
    317, // Predictor
    320, // ColorMap
    322, // TileWidth
    323, // TileLength
    324, // TileOffsets
    325, // TileByteCounts
    338, // ExtraSamples
    339, // SampleFormat
    347, // JPEGTables
    530, // YCbCrSubSampling
];

/// Describes the first tag of the first page whose value would be longer than the whole file;
/// `None` if there is none, or if the bytes are no TIFF.
///
/// # Source
/// TIFF 6.0, section 2; BigTIFF has 64-bit offsets and counts, and entries of 20 bytes.
pub(crate) fn damage(bytes: &[u8]) -> Option<String> {
    let file = Tiff::open(bytes)?;
    (0..file.num_entries).find_map(|index| {
        let entry = file.first_entry.checked_add(index.checked_mul(file.entry_bytes)?)?;
        let tag = file.integer(entry, 2)?;
        let kind = file.integer(entry + 2, 2)?;
        let count = file.integer(entry + 4, file.word)?;
        let size = count.saturating_mul(value_bytes(kind));
        let is_read = READ_TAGS.iter().any(|&read| u64::from(read) == tag);
        (is_read && size > bytes.len() as u64).then(|| {
            format!(
                "the TIFF is damaged: tag {tag} claims {size} bytes, the whole file has {}",
                bytes.len()
            )
        })
    })
}

/// The first directory of a TIFF.
struct Tiff<'a> {
    bytes: &'a [u8],
    is_little_endian: bool,
    /// Bytes of an offset or a count: 4, in a BigTIFF 8.
    word: u64,
    entry_bytes: u64,
    num_entries: u64,
    first_entry: u64,
}

impl<'a> Tiff<'a> {
    fn open(bytes: &'a [u8]) -> Option<Self> {
        let (is_little_endian, is_big) = match bytes.get(..4)? {
            b"II*\0" => (true, false),
            b"MM\0*" => (false, false),
            b"II+\0" => (true, true),
            b"MM\0+" => (false, true),
            _ => return None,
        };
        let (word, entry_bytes) = if is_big { (8, 20) } else { (4, 12) };
        let mut file =
            Self { bytes, is_little_endian, word, entry_bytes, num_entries: 0, first_entry: 0 };
        let directory = file.integer(word, word)?;
        let count_bytes = if is_big { 8 } else { 2 };
        file.num_entries = file.integer(directory, count_bytes)?;
        file.first_entry = directory.checked_add(count_bytes)?;
        Some(file)
    }

    /// The unsigned integer of `len` bytes at `at`.
    fn integer(&self, at: u64, len: u64) -> Option<u64> {
        let at = usize::try_from(at).ok()?;
        let digits = self.bytes.get(at..at.checked_add(usize::try_from(len).ok()?)?)?;
        let add = |value: u64, digit: &u8| value << 8 | u64::from(*digit);
        Some(if self.is_little_endian {
            digits.iter().rev().fold(0, add)
        } else {
            digits.iter().fold(0, add)
        })
    }
}

/// Bytes of a value by the number of its type.
fn value_bytes(kind: u64) -> u64 {
    match kind {
        3 | 8 => 2,
        4 | 9 | 11 | 13 => 4,
        5 | 10 | 12 | 16..=18 => 8,
        _ => 1,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A directory with one entry, at the place where each form has it first.
    fn tiff(mark: &[u8; 4], tag: u16, kind: u16, count: u64) -> Vec<u8> {
        let (is_little, is_big) = (mark[0] == b'I', mark.contains(&b'+'));
        let mut bytes = mark.to_vec();
        let mut put = |value: u64, len: usize| {
            let start = bytes.len();
            bytes.extend(&value.to_be_bytes()[8 - len..]);
            if is_little {
                bytes[start..].reverse();
            }
        };
        if is_big {
            put(8, 2);
            put(0, 2);
            put(16, 8);
            put(1, 8);
        } else {
            put(8, 4);
            put(1, 2);
        }
        put(u64::from(tag), 2);
        put(u64::from(kind), 2);
        put(count, if is_big { 8 } else { 4 });
        put(0, 8);
        bytes
    }

    #[test]
    fn a_value_longer_than_the_file_is_found_in_every_form() {
        for mark in [b"II*\0", b"MM\0*", b"II+\0", b"MM\0+"] {
            assert_eq!(damage(&tiff(mark, 339, 3, 3)), None, "{mark:?}");
            assert_eq!(damage(&tiff(mark, 270, 2, 200_000_000)), None, "a description");
            let message = damage(&tiff(mark, 339, 2, 200_000_000)).unwrap();
            assert!(message.contains("tag 339 claims 200000000 bytes"), "{message}");
            let message = damage(&tiff(mark, 273, 4, 50_000_000)).unwrap();
            assert!(message.contains("tag 273 claims 200000000 bytes"), "{message}");
        }
        assert!(damage(&tiff(b"II+\0", 273, 16, u64::MAX)).is_some());
    }

    #[test]
    fn what_ends_early_or_is_no_tiff_is_left_to_the_decoder() {
        let bytes = tiff(b"MM\0+", 273, 4, 50_000_000);
        for len in 0..bytes.len() - 8 {
            assert_eq!(damage(&bytes[..len]), None, "{len}");
        }
        assert_eq!(damage(b"II*\0\xff\xff\xff\xff"), None);
        assert_eq!(damage(b"MM\0+\0\x08\0\0\xff\xff\xff\xff\xff\xff\xff\xff"), None);
        assert_eq!(damage(b"\x89PNG"), None);
    }
}
