//! The table of a benchmark.

use vlm_display::{Align, Table};

/// A table of measurements: what was measured, the result with its unit, and a [`target`] if there
/// is one.
pub fn table() -> Table {
    Table::new(&[Align::Left, Align::Right, Align::Left])
}

/// The cell of a target.
pub fn target(target: &str, is_reached: bool) -> String {
    format!("{target}: {}", if is_reached { "reached" } else { "NOT reached" })
}
