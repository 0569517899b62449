//! `vlm eval --per-row`: writes the loss of each row, and finds the rows with the highest loss.

use std::io::Write;
use std::path::Path;

use anyhow::Result;
use vlm_display::{Align, Table, plain};
use vlm_infer::VisionLanguageModel;
use vlm_infer::evaluation::{EvalReport, Evaluator, RowLoss};

use crate::error::CliError;

/// Number of rows with the highest loss that are shown.
const NUM_HIGHEST: usize = 5;

/// Evaluates a model and writes a JSON line for each row to `path`, completely or not at all.
/// Returns the scores, and the rows with the highest loss, the highest first.
pub fn evaluate(
    evaluator: &Evaluator,
    trained: &VisionLanguageModel,
    path: &Path,
) -> Result<(Option<EvalReport>, Vec<RowLoss>)> {
    // Before the evaluation, which may take hours.
    let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty());
    if path.is_dir() || folder.is_some_and(|folder| !folder.is_dir()) {
        let text = format!("--per-row {}: expected a file in a folder that exists", path.display());
        return Err(CliError::Usage(text).into());
    }
    let (mut report, mut highest) = (None, Highest::default());
    vlm_torch::write_atomically::<anyhow::Error>(path, |file| {
        let mut on_row = |row: RowLoss| -> Result<()> {
            serde_json::to_writer(&mut *file, &row)?;
            file.write_all(b"\n")?;
            highest.add(row);
            Ok(())
        };
        // This command can only be stopped by ending the process.
        report =
            evaluator.evaluate_rows(&trained.model, trained.dtype, &|| true, Some(&mut on_row))?;
        Ok(())
    })?;
    Ok((report, highest.0))
}

/// The rows with the highest loss so far, the highest first; of equal ones the first row.
#[derive(Default)]
struct Highest(Vec<RowLoss>);

impl Highest {
    fn add(&mut self, row: RowLoss) {
        let Some(loss) = row.loss else { return };
        // A loss that is not a number comes first: it is the worst.
        let is_higher = |other: &RowLoss| match other.loss {
            Some(other) => other.total_cmp(&loss).is_ge(),
            None => false,
        };
        let at = self.0.partition_point(is_higher);
        self.0.insert(at, row);
        self.0.truncate(NUM_HIGHEST);
    }
}

/// The lines about the file at `path` and the rows with the highest loss.
pub fn summary(path: &Path, highest: &[RowLoss]) -> String {
    let mut table = Table::new(&[Align::Right, Align::Left, Align::Left, Align::Right])
        .with_head(&["loss", "row", "location", "tokens", "images"]);
    for row in highest {
        let loss = row.loss.map_or("–".to_owned(), |loss| format!("{loss:.4}"));
        let (location, images) = (plain(&row.location), row.images.join(", "));
        table.push(&[&loss, &row.row, &location, &row.supervised_tokens, &plain(&images)]);
    }
    let rows = match highest {
        [] => String::new(),
        _ => format!("rows with the highest loss:\n{table}"),
    };
    format!("\nloss of each row: {}\n{rows}", path.display())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(row: usize, loss: Option<f64>) -> RowLoss {
        let location = format!("a.jsonl:{}", row + 1);
        let images = vec![format!("{row}.png")];
        RowLoss { row, location, loss, supervised_tokens: 3, images, rejected: None }
    }

    #[test]
    fn the_highest_losses_come_first_and_rejected_rows_have_none() {
        let mut highest = Highest::default();
        let losses = [1.0, 5.0, 2.0, 5.0, 0.5, f64::NAN, 3.0].map(Some);
        for (k, loss) in losses.into_iter().chain([None]).enumerate() {
            highest.add(row(k, loss));
        }
        let rows: Vec<usize> = highest.0.iter().map(|row| row.row).collect();
        assert_eq!(rows, [5, 1, 3, 6, 2]);
        let text = summary(Path::new("rows.out"), &highest.0[1..2]);
        assert!(text.contains("rows.out") && text.contains("5.0000  1    a.jsonl:2"), "{text}");
    }
}
