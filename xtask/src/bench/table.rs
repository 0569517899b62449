//! A table of measurements in text form.

use std::fmt;

/// One measurement.
pub struct Line {
    /// What was measured.
    pub what: String,
    /// The result with its unit.
    pub found: String,
    /// The target, and whether it was reached.
    pub target: Option<(String, bool)>,
}

/// Measurements, one per line.
#[derive(Default)]
pub struct Table {
    lines: Vec<Line>,
}

impl Table {
    /// Adds a measurement without a target.
    pub fn push(&mut self, what: impl Into<String>, found: impl Into<String>) {
        self.lines.push(Line { what: what.into(), found: found.into(), target: None });
    }

    /// Adds a measurement with its target.
    pub fn push_with_target(
        &mut self,
        what: impl Into<String>,
        found: impl Into<String>,
        target: impl Into<String>,
        is_reached: bool,
    ) {
        let target = Some((target.into(), is_reached));
        self.lines.push(Line { what: what.into(), found: found.into(), target });
    }
}

impl fmt::Display for Table {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let width = |text: fn(&Line) -> &str| {
            self.lines.iter().map(|line| text(line).chars().count()).max().unwrap_or(0)
        };
        let (what, found) = (width(|line| &line.what), width(|line| &line.found));
        for line in &self.lines {
            write!(f, "{:what$}  {:>found$}", line.what, line.found)?;
            if let Some((target, is_reached)) = &line.target {
                write!(f, "  {target}: {}", if *is_reached { "reached" } else { "NOT reached" })?;
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
    fn columns_are_aligned_and_missed_targets_are_marked() {
        let mut table = Table::default();
        table.push("a", "10 rows/s");
        table.push_with_target("longer", "5 rows/s", ">= 7", false);
        assert_eq!(table.to_string(), "a       10 rows/s\nlonger   5 rows/s  >= 7: NOT reached\n");
    }
}
