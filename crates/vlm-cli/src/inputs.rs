//! Checks that each path a user named is there, so that the first thing wrong is the thing named.

use std::path::Path;

use vlm_model::weights::hub_name;

use crate::error::CliError;

/// What a flag's path holds, which decides how it can be downloaded.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Holds {
    /// Weights, an encoder or a tokenizer.
    Model,
    /// Rows or images.
    Data,
}

/// # Errors
/// `path` does not exist; the message names the flag, and says how to download what looks like a
/// name on the Hugging Face Hub or an address.
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
            "; addresses are not read: download it first, and give the local path".to_owned()
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
        ". It looks like a name on the Hugging Face Hub, from which nothing is downloaded here: run \
         `hf download {name}{kind} --local-dir {folder}`, then give --{flag} {folder}"
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn message(flag: &str, path: &str, holds: Holds) -> String {
        require(flag, Path::new(path), holds, "a folder").unwrap_err().to_string()
    }

    #[test]
    fn a_path_that_is_not_there_is_named_with_its_flag() {
        let said = message("lm", "nowhere/lm_512.pth", Holds::Model);
        assert!(said.contains("--lm nowhere/lm_512.pth: there is no such file"), "{said}");
        assert!(said.contains("expected a folder"), "{said}");
        assert!(require("lm", Path::new("."), Holds::Model, "").is_ok());
    }

    #[test]
    fn hub_names_and_addresses_get_advice_how_to_download_them() {
        let said = message("vision", "openai/clip-vit-base-patch16", Holds::Model);
        assert!(said.contains("hf download openai/clip-vit-base-patch16 --local-dir"), "{said}");
        assert!(said.contains("--vision clip-vit-base-patch16"), "{said}");
        let said = message("data-path", "HuggingFaceM4/the_cauldron", Holds::Data);
        assert!(said.contains("--repo-type dataset"), "{said}");
        let said = message("data-path", "https://example.org/rows.jsonl", Holds::Data);
        assert!(said.contains("addresses are not read"), "{said}");
        for path in ["/data/clip", "./clip/base", "a/b/c", "data/rows.jsonl", "src/clip"] {
            assert!(!message("vision", path, Holds::Model).contains("hf download"), "{path}");
        }
    }
}
