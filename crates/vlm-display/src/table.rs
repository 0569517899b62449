//! A table for a terminal or a page.

use std::fmt;

use serde::Serialize;

/// Width up to which a column grows with its cells, in characters. A longer cell shifts the rest of
/// its line only.
const MAX_WIDTH: usize = 80;

/// The side of its column at which a cell begins.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Align {
    /// As words are.
    Left,
    /// As numbers are.
    Right,
}

/// Rows of cells, with names of the columns where `head` is not empty. Serialized without the
/// alignment.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Table {
    /// Names of the columns.
    pub head: Vec<String>,
    /// The cells of each row.
    pub rows: Vec<Vec<String>>,
    #[serde(skip)]
    columns: Vec<Align>,
}

impl Table {
    /// A table without rows. A row may have more cells than there are `columns`; these are aligned
    /// as the last column.
    pub fn new(columns: &[Align]) -> Self {
        Self { head: Vec::new(), rows: Vec::new(), columns: columns.to_vec() }
    }

    /// Names the columns.
    #[must_use]
    pub fn with_head(mut self, names: &[&str]) -> Self {
        self.head = names.iter().map(|&name| name.to_owned()).collect();
        self
    }

    /// Adds a row.
    pub fn push(&mut self, cells: &[&dyn fmt::Display]) {
        self.rows.push(cells.iter().map(ToString::to_string).collect());
    }
}

/// A line for each row, with two spaces between the columns and none at the end.
impl fmt::Display for Table {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        let lines = || [&self.head].into_iter().chain(&self.rows).filter(|line| !line.is_empty());
        let mut widths = Vec::new();
        for line in lines() {
            widths.resize(widths.len().max(line.len()), 0);
            for (width, cell) in widths.iter_mut().zip(line) {
                *width = cell.chars().count().min(MAX_WIDTH).max(*width);
            }
        }
        for line in lines() {
            let mut text = String::new();
            for (column, (cell, &width)) in line.iter().zip(&widths).enumerate() {
                text += if column == 0 { "" } else { "  " };
                text += &match self.columns.get(column).or(self.columns.last()) {
                    Some(Align::Right) => format!("{cell:>width$}"),
                    _ => format!("{cell:<width$}"),
                };
            }
            writeln!(f, "{}", text.trim_end())?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::Align::{Left, Right};
    use super::*;

    #[test]
    fn columns_are_aligned_and_lines_have_no_spaces_at_the_end() {
        let mut table = Table::new(&[Left, Right, Left]).with_head(&["name", "n"]);
        table.push(&[&"a", &100, &""]);
        table.push(&[&"longer", &7, &"a note"]);
        table.push(&[&"b", &7, &"x", &"y"]);
        let text = "name      n\na       100\nlonger    7  a note\nb         7  x       y\n";
        assert_eq!(table.to_string(), text);
    }

    #[test]
    fn a_very_long_cell_does_not_widen_its_column() {
        let mut table = Table::new(&[Left]);
        let long = "x".repeat(1000);
        table.push(&[&long, &"1"]);
        table.push(&[&"a", &"2"]);
        assert_eq!(table.to_string(), format!("{long}  1\na{}  2\n", " ".repeat(79)));
    }
}
