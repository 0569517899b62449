//! The format in which the rows are written.

use clap::ValueEnum;
use serde_json::{Value, json};

/// Format in which the rows are written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Form {
    /// LLaVA's JSON list, in `rows.json`
    Llava,
    /// JSON lines, in `rows.jsonl`
    Jsonl,
    /// JSON lines compressed with gzip, in `rows.jsonl.gz`
    JsonlGz,
    /// JSON lines compressed with Zstandard, in `rows.jsonl.zst`
    JsonlZst,
    /// JSON lines of OpenAI's `messages` with content parts, in `rows.jsonl`
    Messages,
    /// Images with captions, in `rows.csv`
    Csv,
    /// Hugging Face's imagefolder, with captions in `metadata.jsonl`
    #[value(name = "imagefolder")]
    ImageFolder,
    /// Parquet in MiniMind-V's form with the images inside, in `rows.parquet`
    Parquet,
    /// WebDataset: a tar with the images inside, in `rows.tar`
    Tar,
}

impl Form {
    /// Name of the file with the rows.
    pub(super) fn file_name(self) -> &'static str {
        match self {
            Self::Llava => "rows.json",
            Self::Jsonl | Self::Messages => "rows.jsonl",
            Self::JsonlGz => "rows.jsonl.gz",
            Self::JsonlZst => "rows.jsonl.zst",
            Self::Csv => "rows.csv",
            Self::ImageFolder => "metadata.jsonl",
            Self::Parquet => "rows.parquet",
            Self::Tar => "rows.tar",
        }
    }

    /// Whether the images are in the file with the rows.
    pub fn has_images_inside(self) -> bool {
        matches!(self, Self::Parquet | Self::Tar)
    }

    /// The row as JSON in this format; for formats with captions, without the question.
    pub(super) fn object(self, row: usize, image: Option<&str>, conversations: Value) -> Value {
        let answer = || conversations[1]["value"].clone();
        match self {
            Self::ImageFolder => json!({ "file_name": image, "text": answer() }),
            Self::Messages => {
                let question = conversations[0]["value"].as_str().unwrap_or_default();
                let text = json!({ "type": "text", "text": question.replace("<image>\n", "") });
                let content = match image {
                    Some(image) => json!([{ "type": "image", "image": image }, text]),
                    None => json!([text]),
                };
                json!({ "messages": [
                    { "role": "user", "content": content },
                    { "role": "assistant", "content": answer() },
                ] })
            }
            _ => {
                let mut object = json!({ "id": format!("{row:09}") });
                if let Some(image) = image {
                    object["image"] = image.into();
                }
                object["conversations"] = conversations;
                object
            }
        }
    }
}
