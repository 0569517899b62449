//! Text for people, in the same form everywhere: tables with aligned columns, counts with their
//! nouns, long texts cut to fit, and names without control characters. Knows nothing of what is shown.

mod count;
mod plain;
mod shorten;
mod table;

pub use count::count;
pub use plain::plain;
pub use shorten::shorten;
pub use table::{Align, Table};
