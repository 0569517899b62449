//! Text for people, in the same form everywhere: tables with aligned columns, counts with their
//! nouns, and long texts cut to fit. Knows nothing of what is shown.

mod count;
mod shorten;
mod table;

pub use count::count;
pub use shorten::shorten;
pub use table::{Align, Table};
