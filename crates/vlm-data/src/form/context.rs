//! What the readers of all forms share: the options, the images folder, and the rejection of a row
//! that has no usable form.

use crate::image_root::ImageRoot;
use crate::row_options::RowOptions;

/// Everything besides its values that decides how a row is read.
#[derive(Debug, Clone, Copy)]
pub(crate) struct FormContext<'a> {
    pub(crate) options: &'a RowOptions,
    /// Folder of the images that rows name, if it is known.
    pub(crate) root: Option<&'a ImageRoot>,
}

impl FormContext<'_> {
    pub(super) fn has_image(&self, name: &str) -> bool {
        self.root.is_some_and(|root| root.has(name))
    }
}

/// Whether a key called `key` holds the ratings called `name`.
pub(crate) fn is_rating(key: &str, name: &str) -> bool {
    let suffix = key.strip_prefix(name);
    suffix.is_some_and(|suffix| ["", "_ratings", "_rating"].contains(&suffix))
}
