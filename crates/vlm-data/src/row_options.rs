//! The options of reading rows, with their defaults.

use std::path::PathBuf;

use crate::limits;

/// How rows are read. Change fields of [`RowOptions::default`].
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub struct RowOptions {
    /// What the user says after the image, in rows that have only a caption. Empty: the user shows
    /// the image and says nothing.
    pub caption_question: String,
    /// Keys or columns that hold a row's images. Empty: the known names.
    pub image_keys: Vec<String>,
    /// Smallest rating by name, such as `("relevance", 3.0)`: a turn of `texts` whose
    /// `relevance_ratings` is lower is left out, and so is a row without any turn left.
    pub min_ratings: Vec<(String, f64)>,
    /// Another folder in which images are searched, and in its folder `images`, if they are not
    /// beside their rows: the folder that holds the files of rows.
    pub images_beside: Option<PathBuf>,
    /// Whether symbolic links in the images folder may lead out of it.
    pub follow_links: bool,
    /// Largest text of a row in bytes; a row with a longer one is rejected without reading it.
    pub max_row_bytes: u64,
    /// Largest encoded image in bytes; a larger one is rejected without reading it.
    pub max_image_bytes: u64,
    /// Largest size in bytes of a compressed file after decompression; a larger one is refused.
    pub max_unpacked_bytes: u64,
    /// Largest number of members of a tar archive; an archive with more is refused.
    pub max_archive_members: usize,
}

impl RowOptions {
    /// The options that decide which turns a row has and differ from the default, as
    /// `caption_question = "…"`.
    pub(crate) fn named_differences(&self) -> String {
        let defaults = Self::default();
        let mut found = Vec::new();
        if self.caption_question != defaults.caption_question {
            found.push(format!("caption_question = {:?}", self.caption_question));
        }
        if self.image_keys != defaults.image_keys {
            found.push(format!("image_keys = {:?}", self.image_keys));
        }
        if self.min_ratings != defaults.min_ratings {
            found.push(format!("min_ratings = {:?}", self.min_ratings));
        }
        found.join(", ")
    }
}

impl Default for RowOptions {
    /// No caption question, no ratings, links are followed, 64 MiB per row, 256 MiB per image, 256
    /// GiB decompressed, 50 million members.
    fn default() -> Self {
        Self {
            caption_question: String::new(),
            image_keys: Vec::new(),
            min_ratings: Vec::new(),
            images_beside: None,
            follow_links: true,
            max_row_bytes: limits::MAX_ROW_BYTES,
            max_image_bytes: limits::MAX_IMAGE_BYTES,
            max_unpacked_bytes: limits::MAX_UNPACKED_BYTES,
            max_archive_members: limits::MAX_ARCHIVE_MEMBERS,
        }
    }
}
