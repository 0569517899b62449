//! `vlm inspect`: what a weight file holds.

use anyhow::Result;
use serde_json::json;
use vlm_model::weights::Weights;

use crate::args::InspectArgs;

/// Runs the command.
pub fn run(args: &InspectArgs) -> Result<()> {
    let weights = Weights::open(&args.file)?;
    let rows = weights.summary()?;
    if args.json {
        for row in &rows {
            let info = &row.info;
            let line = json!({
                "name": info.name,
                "shape": info.shape,
                "dtype": dtype(info.kind),
                "sum": row.sum,
                "shared_with": info.shared_with,
            });
            println!("{line}");
        }
        return Ok(());
    }
    println!("{}", weights.path().display());
    if let Some(key) = weights.nested_under() {
        println!("under the key {key:?}:");
    }
    let width = rows.iter().map(|row| row.info.name.len()).max().unwrap_or(0);
    for row in &rows {
        let info = &row.info;
        let shape = format!("{:?}", info.shape);
        let shared = info.shared_with.as_ref().map_or(String::new(), |name| format!("  = {name}"));
        println!(
            "{:width$}  {shape:>18}  {:8}  sum {:.6}{shared}",
            info.name,
            dtype(info.kind),
            row.sum
        );
    }
    let owned = rows.iter().filter(|row| row.info.shared_with.is_none());
    let elements: i64 = owned.map(|row| row.info.shape.iter().product::<i64>()).sum();
    println!("{} tensors, {elements} elements", rows.len());
    Ok(())
}

/// A type's name as PyTorch and Hugging Face write it.
fn dtype(kind: tch::Kind) -> String {
    use tch::Kind;
    match kind {
        Kind::Float => "float32".into(),
        Kind::Double => "float64".into(),
        Kind::Half => "float16".into(),
        Kind::BFloat16 => "bfloat16".into(),
        Kind::Int64 => "int64".into(),
        Kind::Int => "int32".into(),
        Kind::Int16 => "int16".into(),
        Kind::Int8 => "int8".into(),
        Kind::Uint8 => "uint8".into(),
        Kind::Bool => "bool".into(),
        other => format!("{other:?}").to_lowercase(),
    }
}
