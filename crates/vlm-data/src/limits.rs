//! The largest sizes that are accepted from files, in one place. `docs/reliability.md` lists them.
//! [`RowOptions`](crate::RowOptions) and [`ImageLimits`](crate::ImageLimits) are defaults that a
//! caller may change; the others are far above what real files have.

/// Largest text of a row in bytes.
pub(crate) const MAX_ROW_BYTES: u64 = 64 << 20;

/// Largest encoded image in bytes.
pub(crate) const MAX_IMAGE_BYTES: u64 = 256 << 20;

/// Longest side of an image in pixels.
pub(crate) const MAX_IMAGE_SIDE: u32 = 16_384;

/// Largest number of pixels of an image.
pub(crate) const MAX_IMAGE_PIXELS: u64 = 64 << 20;

/// Largest number of bytes of a row of samples in a TIFF: 16,384 pixels with 255 samples of 16 bits
/// have an eighth of it.
pub(crate) const MAX_TIFF_ROW_BYTES: u64 = 64 << 20;

/// Largest size in bytes of a compressed file of rows after decompression.
pub(crate) const MAX_UNPACKED_BYTES: u64 = 256 << 30;

/// Largest number of encodings of a file of rows that are removed, such as compressed UTF-16.
pub(crate) const MAX_ENCODINGS: usize = 3;

/// Largest number of members of a tar archive.
pub(crate) const MAX_ARCHIVE_MEMBERS: usize = 50_000_000;

/// Deepest nesting of a column of Parquet or Arrow.
pub(crate) const MAX_COLUMN_DEPTH: usize = 32;

/// Deepest nesting of the schema of a Parquet file, in which a list takes up to three levels.
pub(crate) const MAX_SCHEMA_DEPTH: usize = 128;

/// Largest plausible number of rows of a Parquet file per byte; even a table of one repeated value
/// has fewer.
pub(crate) const MAX_ROWS_A_BYTE: u64 = 1 << 6;

/// Largest number of values in a page of Parquet. Writers make pages of about a megabyte, or of
/// 20,000 rows.
pub(crate) const MAX_PAGE_VALUES: usize = 1 << 22;

/// Longest header of a message of Arrow or of a page of Parquet in bytes.
pub(crate) const MAX_HEADER_BYTES: u64 = 64 << 20;

/// Largest buffer of Arrow in bytes after decompression.
pub(crate) const MAX_BUFFER_BYTES: u64 = 2 << 30;

/// Largest side of an image after preprocessing: more than any encoder takes.
pub(crate) const MAX_CROP_SIDE: u32 = 4096;

/// Longest token in bytes that is added to a vocabulary. The search for them in a text is prepared
/// byte by byte, which takes seconds for one of 30 kB.
pub(crate) const MAX_ADDED_TOKEN_BYTES: usize = 1024;

/// Largest chat template in bytes. Known templates have at most some ten thousand.
pub(crate) const MAX_TEMPLATE_BYTES: usize = 1 << 18;

/// Largest number of tokens in one `{{ … }}` or `{% … %}` of a chat template. Known templates have
/// at most some hundred.
pub(crate) const MAX_TAG_TOKENS: usize = 2000;

/// Largest number of `elif` in a chat template. Known templates have at most some dozen.
pub(crate) const MAX_ELIFS: usize = 500;

/// Largest number of instructions in one rendering of a chat template. Known templates need a few
/// hundred per turn.
pub(crate) const MAX_TEMPLATE_STEPS: u64 = 500_000;

/// Largest number of bytes that one rendering of a chat template may build, including its output.
/// The text of a row counts several times.
pub(crate) const MAX_RENDERED_BYTES: usize = 128 << 20;

/// Longest text that a chat template may build or give to a filter, in bytes: several times
/// [`MAX_CONVERSATION_BYTES`].
pub(crate) const MAX_TEMPLATE_TEXT_BYTES: usize = 1 << 21;

/// Longest text of a conversation in bytes, before its chat template is applied and after it. The
/// crate `tokenizers` takes up to 400 bytes of memory for each of them, so that a longer text could
/// fill the memory.
pub(crate) const MAX_CONVERSATION_BYTES: usize = 1 << 19;

/// Deepest nesting of lists in a chat template; macros may call each other four times as deep.
pub(crate) const MAX_TEMPLATE_DEPTH: usize = 64;

/// Size from which a buffer must not be more than [`MAX_RATIO`] times larger than its compressed
/// form.
const LARGE_BUFFER: u64 = 64 << 20;

/// Largest plausible ratio of compression of a large buffer.
const MAX_RATIO: u64 = 1000;

/// Whether a buffer of `packed` bytes that claims to have `unpacked` after decompression would fill
/// the memory without having the data.
pub(crate) fn is_bomb(packed: u64, unpacked: u64) -> bool {
    unpacked > LARGE_BUFFER && unpacked / MAX_RATIO > packed
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_large_buffer_of_almost_nothing_is_a_bomb() {
        assert!(!is_bomb(1, LARGE_BUFFER));
        assert!(!is_bomb(LARGE_BUFFER / 100, 2 * LARGE_BUFFER));
        assert!(is_bomb(LARGE_BUFFER / 1000, 2 * LARGE_BUFFER));
        assert!(is_bomb(0, u64::MAX));
    }
}
