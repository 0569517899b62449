//! The paths that a user gave: checks that they exist, before anything else can fail, and reads
//! images.

use std::path::Path;

use anyhow::Result;
use vlm_infer::Generator;
use vlm_model::weights::hub_name;

use crate::error::CliError;

/// The contents of a path, for the advice on how to download it.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Holds {
    /// Weights, an encoder or a tokenizer.
    Model,
    /// Rows or images.
    Data,
}

/// Checks that `path`, the value of `flag`, exists. `expected` describes what it should be.
///
/// # Errors
/// The path does not exist. The message names the flag; for a name on the Hugging Face Hub or a URL
/// it says how to download it.
pub fn require(flag: &str, path: &Path, holds: Holds, expected: &str) -> Result<(), CliError> {
    let error = match path.metadata() {
        Ok(_) => return Ok(()),
        Err(error) => error,
    };
    let found = match error.kind() {
        std::io::ErrorKind::NotFound => "there is no such file or folder".to_owned(),
        _ => error.to_string(),
    };
    let name = path.display();
    let advice = match path.to_str() {
        Some(text) if text.contains("://") => {
            "; URLs cannot be read: download it first, and give the local path".to_owned()
        }
        _ => match hub_name(path) {
            Some(name) => download_advice(flag, name, holds),
            None => format!("; expected {expected}"),
        },
    };
    Err(CliError::Usage(format!("--{flag} {name}: {found}{advice}")))
}

fn download_advice(flag: &str, name: &str, holds: Holds) -> String {
    let folder = name.rsplit('/').next().unwrap_or(name);
    let kind = if holds == Holds::Data { " --repo-type dataset" } else { "" };
    format!(
        ". It looks like a name on the Hugging Face Hub, from which this program does not \
         download: run `hf download {name}{kind} --local-dir {folder}`, then give --{flag} {folder}"
    )
}

/// The encoded bytes of an image file that the user gave with `option`.
pub fn read_image(option: &str, path: &Path) -> Result<Vec<u8>> {
    let bytes = std::fs::read(path);
    Ok(bytes.map_err(|e| CliError::unusable(format!("{option} {}: {e}", path.display()), &e))?)
}

/// Checks that the model can be shown an image. Returns its pixels.
///
/// # Errors
/// The image cannot be decoded; the message names its file.
pub fn check_image(
    generator: &Generator,
    option: &str,
    path: &Path,
    bytes: &[u8],
) -> Result<Vec<f32>> {
    let pixels = generator.processor.preprocess(bytes);
    Ok(pixels.map_err(|e| CliError::unusable(format!("{option} {}: {e}", path.display()), &e))?)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn message(flag: &str, path: &str, holds: Holds) -> String {
        require(flag, Path::new(path), holds, "a folder").unwrap_err().to_string()
    }

    #[test]
    fn a_missing_path_is_named_with_its_flag() {
        let error = message("lm", "nowhere/lm_512.pth", Holds::Model);
        assert!(error.contains("--lm nowhere/lm_512.pth: there is no such file"), "{error}");
        assert!(error.contains("expected a folder"), "{error}");
        assert!(require("lm", Path::new("."), Holds::Model, "").is_ok());
    }

    #[test]
    fn hub_names_and_urls_get_advice_on_how_to_download_them() {
        let error = message("vision", "openai/clip-vit-base-patch16", Holds::Model);
        assert!(error.contains("hf download openai/clip-vit-base-patch16 --local-dir"), "{error}");
        assert!(error.contains("--vision clip-vit-base-patch16"), "{error}");
        let error = message("data-path", "HuggingFaceM4/the_cauldron", Holds::Data);
        assert!(error.contains("--repo-type dataset"), "{error}");
        let error = message("data-path", "https://example.org/rows.jsonl", Holds::Data);
        assert!(error.contains("URLs cannot be read"), "{error}");
        for path in ["/data/clip", "./clip/base", "a/b/c", "data/rows.jsonl", "src/clip"] {
            assert!(!message("vision", path, Holds::Model).contains("hf download"), "{path}");
        }
    }
}
