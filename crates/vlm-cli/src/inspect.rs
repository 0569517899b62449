//! `vlm inspect`: shows the contents of weights files and of datasets.

use std::fs::read_dir;
use std::path::{Path, PathBuf};

use anyhow::{Result, anyhow};
use clap::Args;
use serde_json::{Value, json};
use vlm_data::{MANIFEST_FILE, Manifest, open_source_with, verify};
use vlm_display::{Align, Table, plain};
use vlm_model::weights::{Weights, WeightsError};
use vlm_model::{ForeignModel, LmConfig, OpenClip, VisionConfig};

use crate::error::CliError;
use crate::inspect_row::{self, InspectRowArgs};
use crate::row_args::RowArgs;

/// Flags of `vlm inspect`.
#[derive(Debug, Args)]
pub struct InspectArgs {
    /// A .pth or .safetensors file, an index of shards, a folder with one of these, a folder of
    /// prepared rows, or a dataset.
    pub file: PathBuf,
    /// Print JSON: one object for each tensor, the manifest of prepared rows, or one object for the
    /// row of --row.
    #[arg(long)]
    pub json: bool,
    /// For prepared rows: read every shard and verify its checksum.
    #[arg(long, conflicts_with = "row")]
    pub verify: bool,
    /// For prepared rows: batch size for the estimate of the padding.
    #[arg(long, value_name = "N", default_value_t = 16)]
    pub batch_size: usize,
    #[command(flatten)]
    pub one_row: InspectRowArgs,
    #[command(flatten)]
    pub rows: RowArgs,
}

/// Runs the command.
pub fn run(args: &InspectArgs) -> Result<()> {
    if let Some(row) = args.one_row.row {
        return inspect_row::run(&args.one_row, row, &args.file, &args.rows, args.json);
    }
    if args.file.join(MANIFEST_FILE).exists() {
        args.rows.refuse("the rows were prepared with their own settings")?;
        let manifest = Manifest::read(&args.file)?;
        if args.json {
            println!("{}", serde_json::to_string(&manifest)?);
        } else {
            print!("{}\n{}", args.file.display(), manifest.report(args.batch_size));
        }
        if args.verify {
            // Damaged data is a failure and not a usage error.
            verify(&manifest, &args.file).map_err(|error| anyhow!("{error}"))?;
            let num_bytes: u64 = manifest.shards.iter().map(|shard| shard.num_bytes).sum();
            eprintln!(
                "verified: {} shards, {:.1} MB",
                manifest.shards.len(),
                num_bytes as f64 / 1e6
            );
        }
        return Ok(());
    }
    if args.verify {
        return Err(CliError::Usage(format!(
            "--verify is for prepared rows, but {} has no {MANIFEST_FILE}",
            args.file.display()
        ))
        .into());
    }
    let weights = match Weights::open(&args.file) {
        Ok(weights) => weights,
        Err(error) => return inspect_rows(args, error),
    };
    args.rows.refuse("the file holds weights, not rows")?;
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
    let mut table = Table::new(&[Align::Left, Align::Right, Align::Left]);
    for row in &rows {
        let info = &row.info;
        let shape = format!("{:?}", info.shape);
        let sum = format!("sum {:.6}", row.sum);
        let shared = info.shared_with.as_ref();
        let shared = shared.map_or(String::new(), |name| format!("= {}", plain(name)));
        table.push(&[&plain(&info.name), &shape, &dtype(info.kind), &sum, &shared]);
    }
    print!("{table}");
    let owned = rows.iter().filter(|row| row.info.shared_with.is_none());
    let elements: i64 = owned.map(|row| row.info.shape.iter().product::<i64>()).sum();
    println!("{} tensors, {elements} elements", rows.len());
    let folder = if args.file.is_dir() { Some(args.file.as_path()) } else { args.file.parent() };
    for line in folder.map(describe_config).unwrap_or_default() {
        println!("{line}");
    }
    Ok(())
}

/// Extensions of files that can only hold rows.
const ROW_EXTENSIONS: [&str; 9] =
    ["jsonl", "ndjson", "parquet", "arrow", "tar", "csv", "tsv", "gz", "zst"];

fn has_row_extension(path: &Path) -> bool {
    let extension = path.extension().and_then(|e| e.to_str()).unwrap_or_default();
    ROW_EXTENSIONS.contains(&extension.to_ascii_lowercase().as_str())
}

/// Shows the contents of a file or folder of rows.
///
/// # Errors
/// `not_weights`, if the path does not hold rows either; rows that cannot be read.
fn inspect_rows(args: &InspectArgs, not_weights: WeightsError) -> Result<()> {
    let is_list = args.file.extension().is_some_and(|extension| extension == "json");
    let holds_rows = if args.file.is_dir() {
        let entries = [args.file.clone(), args.file.join("data")].into_iter().flat_map(read_dir);
        entries.flatten().any(|entry| entry.is_ok_and(|entry| has_row_extension(&entry.path())))
    } else {
        is_list || has_row_extension(&args.file)
    };
    if !holds_rows {
        return Err(not_weights.into());
    }
    let source = match open_source_with(&args.file, None, &args.rows.options()?) {
        Ok(source) => source,
        Err(_) if is_list => return Err(not_weights.into()),
        Err(error) => return Err(error.into()),
    };
    if args.json {
        let line = json!({
            "rows": source.len(),
            "readers": source.describe(),
        });
        println!("{line}");
    } else {
        println!("{}: {} rows", args.file.display(), source.len());
        for line in source.describe() {
            println!("{line}");
        }
    }
    Ok(())
}

fn describe_encoder(vision: &VisionConfig) -> String {
    format!(
        "vision encoder: {:?}, width {}, {} blocks, {} patches of {} pixels",
        vision.family,
        vision.hidden_size,
        vision.num_hidden_layers,
        vision.num_patches(),
        vision.patch_size
    )
}

/// Lines that describe the models in the folder's `config.json`, or the encoder of open_clip in it;
/// empty if it has no known model.
fn describe_config(folder: &Path) -> Vec<String> {
    if let Ok(Some(tower)) = OpenClip::beside(folder) {
        let encoder = tower.vision().map_or_else(
            |error| format!("vision encoder: not supported: {error}"),
            |vision| describe_encoder(&vision),
        );
        return vec![format!("{}:", tower.path().display()), encoder];
    }
    let path = folder.join("config.json");
    let text = std::fs::read_to_string(&path).unwrap_or_default();
    let Ok(json) = serde_json::from_str::<Value>(&text) else { return Vec::new() };
    let mut lines = Vec::new();
    let foreign = ForeignModel::of(&json);
    if let Some(model) = &foreign {
        lines.push(format!("whole model of the form {}", model.name()));
    }
    let lm = LmConfig::from_json(&json);
    if let (Some(_), Err(error)) = (&foreign, &lm) {
        lines.push(format!("language model: not supported: {error}"));
    }
    if let Ok(lm) = lm {
        lines.push(format!(
            "language model: {:?}{}, hidden size {}, {} blocks, {} heads of {} ({} for keys and \
             values), feed-forward {}, vocabulary {}",
            lm.family,
            if lm.use_moe { " with experts" } else { "" },
            lm.dim,
            lm.n_layers,
            lm.n_heads,
            lm.head_dim(),
            lm.n_kv_heads,
            lm.intermediate_size(),
            lm.vocab_size
        ));
    }
    // The config.json of an encoder, or that of a run, which describes the encoder under `vision`.
    let tower = if json["vision"].is_object() { &json["vision"] } else { &json };
    if let Some(vision) =
        VisionConfig::from_json(tower).ok().filter(|_| foreign.is_some() || has_type(tower))
    {
        lines.push(describe_encoder(&vision));
    }
    match foreign.as_ref().map(ForeignModel::projector) {
        Some(Ok(projector)) => lines.push(format!(
            "projector: {}, {} tokens per image",
            json!(projector.kind).as_str().unwrap_or_default(),
            projector.tokens_per_image
        )),
        Some(Err(error)) => lines.push(format!("projector: not supported: {error}")),
        None => {}
    }
    if let Some(tokens) = json["projector"]["tokens_per_image"].as_i64() {
        let kind = json["projector"]["kind"].as_str().unwrap_or_default();
        let token = json["image_token"].as_str().unwrap_or_default();
        lines.push(format!("projector: {kind}, {tokens} tokens per image, image token {token:?}"));
    }
    if !lines.is_empty() {
        lines.insert(0, format!("{}:", path.display()));
    }
    lines
}

/// Whether the configuration names its class.
fn has_type(json: &Value) -> bool {
    !json["model_type"].is_null()
}

/// The name of a type, as PyTorch and Hugging Face write it.
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
