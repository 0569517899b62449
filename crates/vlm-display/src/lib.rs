//! Text for people, in the same form everywhere: tables with aligned columns, and counts with their
//! nouns. Knows nothing of what is shown.

mod count;
mod table;

pub use count::count;
pub use table::{Align, Table};
