//! A table for a page or a terminal.

use std::fmt;

use serde::Serialize;

/// Rows of cells, with names of the columns where `head` is not empty.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct Table {
    /// Names of the columns.
    pub head: Vec<String>,
    /// The cells of each row.
    pub rows: Vec<Vec<String>>,
}

impl Table {
    /// Two columns without a head: names and values.
    pub fn of_pairs(pairs: impl IntoIterator<Item = (String, String)>) -> Self {
        let rows = pairs.into_iter().map(|(name, value)| vec![name, value]).collect();
        Self { head: Vec::new(), rows }
    }
}

/// As text with a line for each row; the first column is aligned to the left, the others to the
/// right.
impl fmt::Display for Table {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        let lines = || [&self.head].into_iter().chain(&self.rows).filter(|line| !line.is_empty());
        let num_columns = lines().map(Vec::len).max().unwrap_or(0);
        let width = |column: usize| {
            lines().filter_map(|line| line.get(column)).map(|cell| cell.chars().count()).max()
        };
        let widths: Vec<usize> = (0..num_columns).map(|c| width(c).unwrap_or(0)).collect();
        for line in lines() {
            for (column, (cell, &width)) in line.iter().zip(&widths).enumerate() {
                match column {
                    0 => write!(f, "{cell:<width$}")?,
                    _ => write!(f, "  {cell:>width$}")?,
                }
            }
            writeln!(f)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_are_aligned() {
        let cells = |cells: [&str; 2]| cells.map(str::to_owned).to_vec();
        let table = Table { head: cells(["name", "n"]), rows: vec![cells(["a", "100"])] };
        assert_eq!(table.to_string(), "name    n\na     100\n");
    }
}
