//! A tokenizer whose vocabulary is bytes, with a chat template like MiniMind's, and a folder of
//! rows.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde_json::{Map, Value, json};
use tempfile::TempDir;
use tokenizers::pre_tokenizers::byte_level::ByteLevel;
use vlm_data::{ChatTokenizer, ImageProcessor, Loader, LoaderConfig, RowSource, open_source};

pub const TEMPLATE: &str = "{% for m in messages %}{% if m['role'] == 'user' %}\
    {{ '<s>user\\n' + m['content'] + '</s>\\n<s>assistant\\n' }}\
    {% elif m['role'] == 'assistant' %}{{ m['content'] + '</s>\\n' }}\
    {% else %}{{ '<s>system\\n' + m['content'] + '</s>\\n' }}{% endif %}{% endfor %}";

pub const TOKENS_PER_IMAGE: usize = 4;

/// Writes the tokenizer's files into `dir`; `config` is merged into `tokenizer_config.json`.
pub fn write_tokenizer(dir: &Path, config: Value) {
    let mut full = json!({ "bos_token": "<s>", "eos_token": { "content": "</s>" },
                           "pad_token": "<unk>", "chat_template": TEMPLATE });
    for (key, value) in config.as_object().unwrap() {
        full[key] = value.clone();
    }
    write_tokenizer_with(dir, &[("<unk>", true), ("<s>", true), ("</s>", true)], &full);
}

/// Writes a tokenizer of bytes with `added` tokens, special or not, as the first ids; `config` is
/// its `tokenizer_config.json`.
pub fn write_tokenizer_with(dir: &Path, added: &[(&str, bool)], config: &Value) {
    let mut alphabet: Vec<char> = ByteLevel::alphabet().into_iter().collect();
    alphabet.sort_unstable();
    let words =
        added.iter().map(|(s, _)| (*s).to_owned()).chain(alphabet.iter().map(char::to_string));
    let vocab: Map<String, Value> = words.enumerate().map(|(id, word)| (word, json!(id))).collect();
    let added: Vec<_> = added
        .iter()
        .enumerate()
        .map(|(id, (content, special))| {
            json!({ "id": id, "content": content, "single_word": false, "lstrip": false,
                    "rstrip": false, "normalized": false, "special": special })
        })
        .collect();
    let byte_level = json!({ "type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": true });
    let tokenizer = json!({
        "version": "1.0", "truncation": { "max_length": 3, "strategy": "LongestFirst", "stride": 0, "direction": "Right" },
        "padding": null, "added_tokens": added, "normalizer": null,
        "pre_tokenizer": byte_level, "post_processor": byte_level, "decoder": byte_level,
        "model": { "type": "BPE", "dropout": null, "unk_token": null, "continuing_subword_prefix": null,
                   "end_of_word_suffix": null, "fuse_unk": false, "byte_fallback": false,
                   "ignore_merges": false, "vocab": vocab, "merges": [] },
    });
    std::fs::write(dir.join("tokenizer.json"), tokenizer.to_string()).unwrap();
    std::fs::write(dir.join("tokenizer_config.json"), config.to_string()).unwrap();
}

/// A folder with a tokenizer, preprocessing settings of side 8, and what a test puts there.
pub struct Folder {
    dir: TempDir,
}

impl Folder {
    pub fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        write_tokenizer(dir.path(), json!({}));
        let settings = r#"{"size": 8, "crop_size": 8}"#;
        std::fs::write(dir.path().join("preprocessor_config.json"), settings).unwrap();
        std::fs::create_dir(dir.path().join("images")).unwrap();
        Self { dir }
    }

    pub fn path(&self) -> &Path {
        self.dir.path()
    }

    pub fn image_path(&self, name: &str) -> PathBuf {
        self.path().join("images").join(name)
    }

    /// Writes a image of one shade.
    pub fn add_image(&self, name: &str, shade: u8) {
        image::RgbImage::from_pixel(12, 9, image::Rgb([shade; 3]))
            .save(self.image_path(name))
            .unwrap();
    }

    pub fn write_rows(&self, rows: &[String]) {
        std::fs::write(self.path().join("rows.jsonl"), rows.join("\n")).unwrap();
    }

    pub fn tokenizer(&self) -> Arc<ChatTokenizer> {
        Arc::new(ChatTokenizer::from_dir(self.path()).unwrap())
    }

    pub fn processor(&self) -> Arc<ImageProcessor> {
        let path = self.path().join("preprocessor_config.json");
        Arc::new(ImageProcessor::from_file(&path).unwrap())
    }

    pub fn source(&self) -> Arc<dyn RowSource> {
        let images = self.path().join("images");
        open_source(&self.path().join("rows.jsonl"), Some(&images)).unwrap()
    }

    pub fn loader(&self, config: LoaderConfig) -> Loader {
        Loader::new(self.source(), self.tokenizer(), Some(self.processor()), config).unwrap()
    }
}

/// A row of one question and one answer.
pub fn row(question: &str, answer: &str, image: &str) -> String {
    json!({ "conversations": [{ "role": "user", "content": question },
                              { "role": "assistant", "content": answer }],
            "image": image })
    .to_string()
}

pub fn config() -> LoaderConfig {
    let mut config = LoaderConfig::default();
    config.batch_size = 4;
    config.max_seq_len = 80;
    config.tokens_per_image = TOKENS_PER_IMAGE;
    config.num_workers = 2;
    config.prefetch_batches = 3;
    config.max_rejected_fraction = 1.0;
    config
}

/// `config` after `change`.
pub fn with(mut config: LoaderConfig, change: impl FnOnce(&mut LoaderConfig)) -> LoaderConfig {
    change(&mut config);
    config
}
