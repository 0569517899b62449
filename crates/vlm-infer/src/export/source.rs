//! The model that is exported.

use std::path::PathBuf;

/// The model to export.
#[derive(Debug, Clone)]
pub struct ExportSource {
    /// The folder of a run, a weights file, or a folder with one.
    pub model: PathBuf,
    /// Folder of the vision encoder; `None` for the one that `config.json` names.
    pub vision: Option<PathBuf>,
    /// Folder of the tokenizer; `None` for the one that `config.json` names.
    pub tokenizer: Option<PathBuf>,
    /// Export only the language model.
    pub without_vision: bool,
}
