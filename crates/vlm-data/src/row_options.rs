//! What a user may set about reading rows, with the defaults.

use std::path::PathBuf;

/// How rows are read.
#[derive(Debug, Clone, PartialEq)]
pub struct RowOptions {
    /// What the user says of an image whose row has a caption alone, behind the image. Empty: the
    /// user shows the image and says nothing.
    pub caption_question: String,
    /// The keys or columns that hold a row's images. Empty: those of the table of known names.
    pub image_keys: Vec<String>,
    /// The least rating by name, as `("relevance", 3.0)`: a turn of `texts` whose
    /// `relevance_ratings` is lower is left out, and so is a row without any turn left.
    pub min_ratings: Vec<(String, f64)>,
    /// A folder in which images are looked for, and in its `images`, when they are not beside their
    /// rows: the folder that holds the files of rows.
    pub images_beside: Option<PathBuf>,
    /// Whether symbolic links in the images folder may lead out of it.
    pub follow_links: bool,
    /// A row whose text is longer, in bytes, is rejected unread.
    pub max_row_bytes: u64,
    /// An encoded image that is longer, in bytes, is rejected unread.
    pub max_image_bytes: u64,
    /// A compressed file that is longer when it is unpacked, in bytes, is refused.
    pub max_unpacked_bytes: u64,
    /// Members of a tar archive; one with more is refused.
    pub max_archive_members: usize,
}

impl RowOptions {
    /// What of it decides which turns a row has and is not the default, as `caption_question = "…"`.
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
    /// No words beside the image of a caption, no ratings, links are followed, 64 MiB a row, 256 MiB an
    /// image, 256 GiB unpacked, 50 million members.
    fn default() -> Self {
        Self {
            caption_question: String::new(),
            image_keys: Vec::new(),
            min_ratings: Vec::new(),
            images_beside: None,
            follow_links: true,
            max_row_bytes: 64 << 20,
            max_image_bytes: 256 << 20,
            max_unpacked_bytes: 256 << 30,
            max_archive_members: 50_000_000,
        }
    }
}
