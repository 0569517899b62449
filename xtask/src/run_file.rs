//! The configuration file of a run, as far as the preparation of its data needs it. `vlm pretrain`
//! reads the same file; libtorch is not needed here.

use std::path::{Path, PathBuf};

use anyhow::Result;
use serde::Deserialize;
use serde_json::Value;
use toml::Table;
use vlm_data::DataPaths;

use crate::workspace::usage_error;

/// Every name that `vlm pretrain` takes in its configuration file. A test of the whole program holds
/// them against its help.
const NAMES: [&str; 56] = [
    "accumulation-steps",
    "activation-checkpointing",
    "batch-size",
    "bucket-window",
    "data-path",
    "ddp",
    "device",
    "dim",
    "drop-last",
    "dropout",
    "dtype",
    "epochs",
    "eval-captions",
    "eval-data",
    "eval-images-path",
    "eval-interval",
    "features",
    "grad-clip",
    "image-token",
    "images-path",
    "keep-checkpoints",
    "learning-rate",
    "lm",
    "log-interval",
    "loss-average",
    "max-rejected-fraction",
    "max-seq-len",
    "max-skipped-updates",
    "max-steps",
    "n-heads",
    "n-kv-heads",
    "n-layers",
    "no-drop-last",
    "no-shuffle",
    "no-tensorboard",
    "num-threads",
    "num-workers",
    "out-dir",
    "pack",
    "padding",
    "prefetch-batches",
    "projector",
    "resume",
    "save-interval",
    "seed",
    "shuffle",
    "tensorboard",
    "timeout-secs",
    "tokenizer",
    "train-lm",
    "train-vision",
    "unfreeze-first-layers",
    "unfreeze-last-layers",
    "use-moe",
    "vision",
    "warmup-iters",
];

/// What decides how a run's rows become token ids.
#[derive(Debug, Default, Deserialize)]
#[serde(default, rename_all = "kebab-case")]
pub struct RunFile {
    pub data_path: Option<DataPaths>,
    pub images_path: Option<PathBuf>,
    lm: Option<PathBuf>,
    pub vision: Option<PathBuf>,
    pub tokenizer: Option<PathBuf>,
    pub image_token: Option<String>,
    projector: Option<Projector>,
    pub max_seq_len: Option<usize>,
    pub batch_size: Option<usize>,
}

/// What joins encoder and language model, under the names that `--projector` takes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Projector {
    /// One token a patch, as `mlp`.
    #[default]
    Linear,
    Mlp,
    MergedMlp,
    PixelShuffle,
}

impl RunFile {
    /// # Errors
    /// A file that cannot be read, is no TOML, or has a name or value that `vlm pretrain` would not
    /// take.
    pub fn read(path: &Path) -> Result<Self> {
        let wrong = |e: String| usage_error(format!("--config {}: {e}", path.display()));
        let text = std::fs::read_to_string(path).map_err(|e| wrong(e.to_string()))?;
        Self::parse(&text).map_err(wrong)
    }

    fn parse(text: &str) -> Result<Self, String> {
        let table: Table = toml::from_str(text).map_err(|e| e.to_string())?;
        if let Some(name) = table.keys().find(|name| !NAMES.contains(&name.as_str())) {
            return Err(format!(
                "unknown field `{name}`; the names are the flags of `vlm pretrain`, without --: {}",
                NAMES.join(", ")
            ));
        }
        table.try_into().map_err(|e: toml::de::Error| e.to_string())
    }

    /// The folder `name` of the one that `lm` names, where the file `mark` says that it is there: an
    /// exported model holds all parts.
    pub fn within_lm(&self, name: &str, mark: &str) -> Option<PathBuf> {
        let folder = self.lm.as_deref()?.join(name);
        folder.join(mark).is_file().then_some(folder)
    }

    /// The projector asked for, else that of the model that the run starts from, where its
    /// `config.json` tells.
    pub fn projector(&self) -> Option<Projector> {
        let of_lm = || {
            let lm = self.lm.as_deref()?;
            let folder = if lm.is_dir() { lm } else { lm.parent()? };
            let text = std::fs::read_to_string(folder.join("config.json")).ok()?;
            let config: Value = serde_json::from_str(&text).ok()?;
            serde_json::from_value(config["projector"]["kind"].clone()).ok()
        };
        self.projector.or_else(of_lm)
    }
}

impl Projector {
    /// Tokens of an image of `side` × `side` patches.
    ///
    /// # Errors
    /// Patches that it cannot put together.
    pub fn tokens(self, side: usize) -> Result<usize, String> {
        /// Of MiniMind's `merged-mlp`.
        const MERGED: usize = 64;
        let patches = side * side;
        // nanoVLM shuffles larger squares where there are many patches.
        let square = if side < 32 { 2 } else { 4 };
        match self {
            Self::Linear | Self::Mlp => Ok(patches),
            Self::MergedMlp if patches.is_multiple_of(MERGED) => Ok(MERGED),
            Self::PixelShuffle if side.is_multiple_of(square) => Ok(patches / (square * square)),
            Self::MergedMlp | Self::PixelShuffle => Err(format!(
                "an image has {side} × {side} patches there, which projector {self:?} cannot put \
                 together; take another encoder or projector"
            )),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_decides_token_ids_is_taken_from_a_runs_file() {
        let run = RunFile::parse(
            "data-path = [\"a.jsonl:0.7\", \"b.jsonl:0.3\"]\nmax-seq-len = 288\nepochs = 3\n\
             projector = \"merged-mlp\"\nimage-token = \"@\"",
        )
        .unwrap();
        let paths = |paths: &[&str]| {
            Some(DataPaths::from(paths.iter().map(|&path| path.to_owned()).collect::<Vec<_>>()))
        };
        assert_eq!(run.data_path, paths(&["a.jsonl:0.7", "b.jsonl:0.3"]));
        assert_eq!((run.max_seq_len, run.batch_size), (Some(288), None));
        assert_eq!(run.projector().unwrap().tokens(16), Ok(64));
        assert_eq!(RunFile::parse("data-path = \"a\"").unwrap().data_path, paths(&["a"]));
    }

    #[test]
    fn unknown_names_and_wrong_values_are_errors() {
        for (text, part) in [
            ("max-seq-lens = 8", "max-seq-lens"),
            ("max_seq_len = 8", "max_seq_len"),
            ("max-seq-len = \"8\"", "max-seq-len"),
            ("projector = \"square\"", "square"),
            ("epochs", "line 1"),
        ] {
            let error = RunFile::parse(text).unwrap_err();
            assert!(error.contains(part), "{text}: {error}");
        }
    }

    #[test]
    fn the_projector_of_the_starting_model_counts_where_none_is_asked_for() {
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(
            folder.path().join("config.json"),
            "{\"projector\": {\"kind\": \"pixel-shuffle\", \"tokens_per_image\": 49}}",
        )
        .unwrap();
        let lm = format!("lm = {:?}", folder.path());
        assert_eq!(RunFile::parse(&lm).unwrap().projector(), Some(Projector::PixelShuffle));
        let asked = RunFile::parse(&format!("{lm}\nprojector = \"mlp\"")).unwrap();
        assert_eq!(asked.projector(), Some(Projector::Mlp));
        assert_eq!(Projector::PixelShuffle.tokens(14), Ok(49));
        assert!(Projector::PixelShuffle.tokens(15).is_err());
    }
}
