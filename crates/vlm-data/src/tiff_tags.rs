//! Checks that a TIFF has the values that its tags claim to have. A decoder allocates room for them
//! before it reads them, so that a file of 500 bytes could ask for hundreds of megabytes. It also
//! allocates a row of samples, whose length is a product of such values.

use crate::limits::MAX_TIFF_ROW_BYTES;

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

/// Describes the first tag of the first page whose value would be longer than the whole file, or
/// rows of samples that would be longer than [`MAX_TIFF_ROW_BYTES`]; `None` if there is nothing of
/// that kind, or if the bytes are no TIFF. A BigTIFF is not looked at, because none is decoded.
///
/// # Source
/// TIFF 6.0, section 2.
pub(crate) fn damage(bytes: &[u8]) -> Option<String> {
    let file = Tiff::open(bytes)?;
    let (mut width, mut samples, mut bits) = (1, 1, 1);
    for index in 0..file.num_entries {
        let entry = file.directory + 2 + ENTRY_BYTES * index;
        let (Some(tag), Some(size)) = (file.integer(entry, 2), file.value_size(entry)) else {
            continue;
        };
        if READ_TAGS.iter().all(|&read| u64::from(read) != tag) {
            continue;
        }
        if size > bytes.len() as u64 {
            return Some(format!(
                "the TIFF is damaged: tag {tag} claims {size} bytes, the whole file has {}",
                bytes.len()
            ));
        }
        let value = file.first_value(entry).unwrap_or(0);
        match tag {
            IMAGE_WIDTH | TILE_WIDTH => width = value.max(width),
            SAMPLES_PER_PIXEL => samples = value.max(samples),
            BITS_PER_SAMPLE => bits = value.max(bits),
            _ => {}
        }
    }
    let row_bytes = width.saturating_mul(samples).saturating_mul(bits).div_ceil(8);
    (row_bytes > MAX_TIFF_ROW_BYTES).then(|| {
        format!(
            "the TIFF is damaged: a row of {width} pixels with {samples} samples of {bits} bits \
             would have {row_bytes} bytes; the limit is {MAX_TIFF_ROW_BYTES}"
        )
    })
}

const IMAGE_WIDTH: u64 = 256;
const BITS_PER_SAMPLE: u64 = 258;
const SAMPLES_PER_PIXEL: u64 = 277;
const TILE_WIDTH: u64 = 322;

/// Bytes of an entry of a directory: tag, type, count, and the value or its offset.
const ENTRY_BYTES: u64 = 12;

/// The first directory of a TIFF.
struct Tiff<'a> {
    bytes: &'a [u8],
    is_little_endian: bool,
    directory: u64,
    num_entries: u64,
}

impl<'a> Tiff<'a> {
    fn open(bytes: &'a [u8]) -> Option<Self> {
        let is_little_endian = match bytes.get(..4)? {
            b"II*\0" => true,
            b"MM\0*" => false,
            _ => return None,
        };
        let mut file = Self { bytes, is_little_endian, directory: 0, num_entries: 0 };
        file.directory = file.integer(4, 4)?;
        file.num_entries = file.integer(file.directory, 2)?;
        Some(file)
    }

    /// Bytes of all values of an entry.
    fn value_size(&self, entry: u64) -> Option<u64> {
        let count = self.integer(entry + 4, 4)?;
        Some(count * value_bytes(self.integer(entry + 2, 2)?))
    }

    /// The first value of an entry as an unsigned integer. Values of up to four bytes are in the
    /// entry itself.
    fn first_value(&self, entry: u64) -> Option<u64> {
        let is_inside = self.value_size(entry)? <= 4;
        let at = if is_inside { entry + 8 } else { self.integer(entry + 8, 4)? };
        self.integer(at, value_bytes(self.integer(entry + 2, 2)?))
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
    use crate::decode::{ImageLimits, RgbImage, image_size};

    const ASCII: u64 = 2;
    const SHORT: u64 = 3;
    const LONG: u64 = 4;
    const LONG8: u64 = 16;

    /// A TIFF of one directory at byte 8 with entries of tag, type, count, and value or offset,
    /// sorted by tag. A value is written in the number of bytes that its type has.
    fn tiff(is_little_endian: bool, entries: &[[u64; 4]], data: &[u8]) -> Vec<u8> {
        let mut bytes = if is_little_endian { b"II*\0" } else { b"MM\0*" }.to_vec();
        let mut put = |value: u64, len: usize| {
            let start = bytes.len();
            bytes.extend(&value.to_be_bytes()[8 - len..]);
            if is_little_endian {
                bytes[start..].reverse();
            }
        };
        put(8, 4);
        put(entries.len() as u64, 2);
        for &[tag, kind, count, value] in entries {
            put(tag, 2);
            put(kind, 2);
            put(count, 4);
            let len = if count == 1 { value_bytes(kind).min(4) } else { 4 };
            put(value, len as usize);
            put(0, 4 - len as usize);
        }
        put(0, 4);
        bytes.extend(data);
        bytes
    }

    /// An image of 1×1 pixels with one sample more than its colour has, in one tile.
    fn tiled(width: u64, samples: u64, tile_width: u64) -> Vec<u8> {
        let data_at = 8 + 2 + 12 * ENTRY_BYTES + 4;
        tiff(
            true,
            &[
                [IMAGE_WIDTH, LONG, 1, width],
                [257, LONG, 1, 1],
                [BITS_PER_SAMPLE, SHORT, 1, 8],
                [259, SHORT, 1, 1],
                [262, SHORT, 1, 2],
                [SAMPLES_PER_PIXEL, SHORT, 1, samples],
                [284, SHORT, 1, 1],
                [TILE_WIDTH, LONG, 1, tile_width],
                [323, LONG, 1, 1],
                [324, LONG, 1, data_at],
                [325, LONG, 1, 64],
                [338, SHORT, 1, 0],
            ],
            &[7; 64],
        )
    }

    fn decode(bytes: &[u8]) -> Result<Vec<u8>, String> {
        let image = RgbImage::decode(bytes, &ImageLimits::default());
        image.map(|image| image.pixels).map_err(|reject| reject.detail)
    }

    #[test]
    fn a_value_longer_than_the_file_is_found_in_both_byte_orders() {
        for is_little_endian in [true, false] {
            let one = |tag, kind, count| tiff(is_little_endian, &[[tag, kind, count, 0]], &[]);
            assert_eq!(damage(&one(339, SHORT, 3)), None);
            assert_eq!(damage(&one(270, ASCII, 200_000_000)), None, "a description");
            for (bytes, tag) in [
                (one(339, ASCII, 200_000_000), 339),
                (one(273, LONG, 50_000_000), 273),
                (one(325, LONG8, 25_000_000), 325),
            ] {
                let message = damage(&bytes).unwrap();
                let expected = format!("tag {tag} claims 200000000 bytes, the whole file has 26");
                assert!(message.contains(&expected), "{message}");
                assert_eq!(decode(&bytes), Err(message));
                assert_eq!(image_size(&bytes), None);
            }
        }
    }

    #[test]
    fn rows_that_are_longer_than_any_image_has_are_refused() {
        // The decoder would allocate a row of a tile, however small the file and the image are.
        assert_eq!(decode(&tiled(1, 4, 16)), Ok(vec![7; 3]));
        let bytes = tiled(1, 4, u64::from(u32::MAX));
        let message = damage(&bytes).unwrap();
        assert!(message.contains("4294967295 pixels with 4 samples of 8 bits"), "{message}");
        assert_eq!(decode(&bytes), Err(message));
        assert_eq!(image_size(&bytes), None);
        assert!(damage(&tiled(1, 4, 1 << 24)).is_none());
        assert!(damage(&tiled(1, 4, (1 << 24) + 1)).is_some());
        assert!(damage(&tiled(16_384, 65_535, 16)).is_some());
    }

    #[test]
    fn what_ends_early_or_is_no_tiff_is_left_to_the_decoder() {
        let bytes = tiff(false, &[[273, LONG, 50_000_000, 0]], &[]);
        assert!(damage(&bytes).is_some());
        for len in 0..18 {
            assert_eq!(damage(&bytes[..len]), None, "{len}");
        }
        assert_eq!(damage(b"II*\0\xff\xff\xff\xff"), None);
        assert_eq!(damage(b"\x89PNG"), None);
    }

    #[test]
    fn a_big_tiff_of_countless_entries_takes_no_time() {
        let bytes = b"MM\0+\0\x08\0\0\0\0\0\0\0\0\0\x10\xff\xff\xff\xff\xff\xff\xff\xff";
        assert_eq!(image_size(bytes), None);
        assert!(decode(bytes).unwrap_err().contains("BigTIFF"));
    }
}
