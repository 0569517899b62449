//! The names of the files and folders that an export writes.

use crate::model_files::PREPROCESSOR;

/// Files of a tokenizer. A tokenizer need not have all of them.
pub(super) const TOKENIZER_FILES: [&str; 8] = [
    "tokenizer.json", "tokenizer_config.json", "chat_template.jinja", "chat_template.json",
    "special_tokens_map.json", "added_tokens.json", "vocab.json", "merges.txt",
];

/// Folders with named chat templates.
pub(super) const TEMPLATE_FOLDERS: [&str; 2] = ["chat_templates", "additional_chat_templates"];

/// The file with the tokens that end a generated text.
pub(super) const GENERATION_CONFIG: &str = "generation_config.json";

/// Files that only containers have.
const CONTAINER_FILES: [&str; 4] =
    ["processor_config.json", "README.md", "model.gguf", "mmproj.gguf"];

/// Whether [`export_hf`](super::export_hf) or [`export_to`](super::export_to) writes a file or folder with this name, other than
/// weights in the format of Hugging Face.
pub fn is_exported_name(name: &str) -> bool {
    ["config.json", PREPROCESSOR, "vision", GENERATION_CONFIG].contains(&name)
        || CONTAINER_FILES.contains(&name)
        || TOKENIZER_FILES.contains(&name)
        || TEMPLATE_FOLDERS.contains(&name)
}
