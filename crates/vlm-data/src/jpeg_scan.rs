//! Checks whether the compressed data of a JPEG is complete. Decoders fill missing data with grey
//! or noise without an error, and a model would be trained on such an image.

/// This many zero bytes in a row contain at least one whole block of a sequential scan, whatever
/// its tables: twice the longest length of a block that is filled by the shortest symbol.
const MAX_ZERO_BYTES: usize = 64;

const START_OF_SCAN: u8 = 0xDA;
const END_OF_IMAGE: u8 = 0xD9;
const HUFFMAN_TABLES: u8 = 0xC4;
const SEQUENTIAL_FRAMES: [u8; 2] = [0xC0, 0xC1];

/// Describes the damage of a JPEG; `None` if none is found. Only the image itself is checked, not a
/// thumbnail in its metadata.
///
/// It finds a missing end, and zero bytes within sequential data, which a failed disk or download
/// leaves. Zero bytes prove damage if a table gives its shortest code, which is all zeros, to a
/// coefficient: every block in that stretch would be filled with this one coefficient. If the table
/// gives it to the end of a block, the zeros may be a plain area, and no damage is reported.
pub(crate) fn damage(bytes: &[u8]) -> Option<&'static str> {
    const TRUNCATED: &str = "the JPEG is truncated: its end marker is missing";
    let mut at = 2;
    let mut num_components = None;
    // By the number of the table: whether its shortest code ends a block.
    let mut shortest_ends_block = [true; 4];
    while let Some([0xFF, marker]) = bytes.get(at..at + 2) {
        let marker = *marker;
        // Fill bytes come before a marker, and some markers have no length.
        match marker {
            0xFF => {
                at += 1;
                continue;
            }
            0x01 | 0xD0..=0xD8 => {
                at += 2;
                continue;
            }
            _ => {}
        }
        let Some(&[high, low]) = bytes.get(at + 2..at + 4) else { return Some(TRUNCATED) };
        let next = at + 2 + usize::from(u16::from_be_bytes([high, low]));
        let Some(segment) = bytes.get(at + 4..next) else { return Some(TRUNCATED) };
        match marker {
            HUFFMAN_TABLES => read_tables(segment, &mut shortest_ends_block),
            _ if SEQUENTIAL_FRAMES.contains(&marker) => num_components = segment.get(5).copied(),
            START_OF_SCAN => {
                let data = &bytes[next..];
                if !data.windows(2).any(|pair| pair == [0xFF, END_OF_IMAGE]) {
                    return Some(TRUNCATED);
                }
                // In a scan of all components, each stretch has blocks of each table.
                let is_whole = segment.first().copied() == num_components;
                let tables = segment.iter().skip(2).step_by(2);
                let num_tables = segment.first().map_or(0, |&count| usize::from(count));
                let zeros_are_damage = tables
                    .take(num_tables)
                    .any(|tables| !shortest_ends_block[usize::from(tables & 3)]);
                let zeros = is_whole && zeros_are_damage && has_zeros(data);
                return zeros
                    .then_some("the JPEG is damaged: its data has a long run of zero bytes");
            }
            _ => {}
        }
        at = next;
    }
    Some(TRUNCATED)
}

/// Reads the tables of coefficients in a segment: class and number, sixteen counts of codes by
/// length, the symbols.
fn read_tables(mut segment: &[u8], shortest_ends_block: &mut [bool; 4]) {
    const COEFFICIENTS: u8 = 1;
    while let [class_and_number, rest @ ..] = segment {
        let Some((counts, symbols)) = rest.split_at_checked(16) else { return };
        let num_symbols: usize = counts.iter().map(|&count| usize::from(count)).sum();
        let Some((symbols, next)) = symbols.split_at_checked(num_symbols) else { return };
        if class_and_number >> 4 == COEFFICIENTS {
            let shortest = symbols.first().copied().unwrap_or(0);
            shortest_ends_block[usize::from(class_and_number & 3)] = shortest == 0;
        }
        segment = next;
    }
}

/// Whether the compressed data before the end marker has a long run of zeros.
fn has_zeros(data: &[u8]) -> bool {
    let mut run = 0;
    for pair in data.windows(2) {
        if pair == [0xFF, END_OF_IMAGE] {
            return false;
        }
        run = if pair[0] == 0 { run + 1 } else { 0 };
        if run == MAX_ZERO_BYTES {
            return true;
        }
    }
    false
}

#[cfg(test)]
mod tests {
    use std::io::Cursor;

    use image::{DynamicImage, ImageFormat, Rgb, RgbImage};

    use super::*;

    fn jpeg(image: RgbImage) -> Vec<u8> {
        let mut bytes = Cursor::new(Vec::new());
        DynamicImage::from(image).write_to(&mut bytes, ImageFormat::Jpeg).unwrap();
        bytes.into_inner()
    }

    #[test]
    fn zeros_amid_the_data_are_damage_and_a_plain_picture_is_none() {
        let mut bytes =
            jpeg(RgbImage::from_fn(96, 96, |x, y| Rgb([(x * y) as u8, x as u8, y as u8])));
        assert_eq!(damage(&bytes), None);
        let middle = bytes.len() / 2 + 100;
        bytes[middle..middle + 2 * MAX_ZERO_BYTES].fill(0);
        assert!(damage(&bytes).is_some_and(|text| text.contains("zero bytes")));
        for shade in [0, 127, 255] {
            assert_eq!(damage(&jpeg(RgbImage::from_pixel(300, 300, Rgb([shade; 3])))), None);
        }
    }

    #[test]
    fn zeros_that_a_table_can_mean_are_left_alone() {
        // The same data, but with tables whose shortest code ends a block.
        let mut bytes = jpeg(RgbImage::from_pixel(96, 96, Rgb([1, 2, 3])));
        let end = bytes.len() - 2;
        bytes.splice(end..end, [0; 2 * MAX_ZERO_BYTES]);
        assert!(damage(&bytes).is_some());
        for at in 0..bytes.len() - 25 {
            let is_table = bytes[at..at + 2] == [0xFF, HUFFMAN_TABLES] && bytes[at + 4] >> 4 == 1;
            if is_table {
                bytes[at + 21] = 0;
            }
        }
        assert_eq!(damage(&bytes), None);
    }
}
