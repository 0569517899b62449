//! Shortens what clap's messages repeat of the command line: a value may be a whole file that was
//! pasted by mistake. `vlm` and `xtask` share this file.

use clap::error::{ContextKind, ContextValue};
use vlm_display::shorten;

/// Largest number of characters of an argument that a message repeats.
const MAX_SHOWN: usize = 120;

/// The error with each longer argument cut, and the number of its characters behind it.
pub fn shortened(mut error: clap::Error) -> clap::Error {
    let long: Vec<(ContextKind, String)> = error
        .context()
        .filter_map(|(kind, value)| match value {
            ContextValue::String(text) if text.chars().count() > MAX_SHOWN => {
                Some((kind, shorten(text, MAX_SHOWN)))
            }
            _ => None,
        })
        .collect();
    for (kind, text) in long {
        error.insert(kind, ContextValue::String(text));
    }
    error
}
