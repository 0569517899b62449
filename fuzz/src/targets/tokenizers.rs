//! The files of a tokenizer, and chat templates.

use std::fs;
use std::path::Path;
use std::sync::{Arc, LazyLock};

use serde_json::{Map, Value, json};
use vlm_data::{ChatTokenizer, Row, token_of_id};

use crate::Target;
use crate::scratch::{folder_with, golden};

pub(super) const TOKENS_PER_IMAGE: usize = 4;

const TEMPLATES: [&str; 4] = [
    "{% for m in messages %}{{ '<s>' + m['role'] + '\\n' + m['content'] + '</s>\\n' }}{% endfor %}\
     {% if add_generation_prompt %}{{ '<s>assistant\\n' }}{% endif %}",
    "{%- if messages[0].role == 'system' %}{{- messages[0].content ~ eos_token }}{%- endif %}\
     {%- for message in messages %}{%- if message.role == 'user' %}{{- bos_token ~ message.content }}\
     {%- elif message.role == 'assistant' %}{% generation %}{{ message.content | trim }}</s>\
     {% endgeneration %}{%- endif %}{%- endfor %}",
    "{% macro part(p) %}{% if p.type == 'image' %}@{% else %}{{ p.text }}{% endif %}{% endmacro %}\
     {% for m in messages %}<s>{% if m.content is string %}{{ m.content }}{% else %}\
     {% for p in m.content %}{{ part(p) }}{% endfor %}{% endif %}</s>{% endfor %}",
    "{% set ns = namespace(a=[], s='') %}{% for m in messages %}{% set ns.s = ns.s ~ m.content %}\
     {% set ns.a = ns.a + [m.content.split('x')[-1].strip()] %}{{ m | tojson(indent=2) }}\
     {{ ns.a | join(',') }}{{ '%s' | format(ns.s) }}</s>{% endfor %}",
];

pub(super) fn targets() -> Vec<Target> {
    vec![
        Target {
            name: "tokenizer",
            run: |data| open_with("tokenizer", "tokenizer.json", data),
            seeds: || {
                let made = [FILES.0.clone().into_bytes()];
                [golden("", &["tokenizer.json"], 16 << 10), made.to_vec()].concat()
            },
            dictionary: &[
                "BPE", "WordPiece", "Unigram", "WordLevel", "ByteLevel", "Metaspace", "Split",
                "Sequence", "Strip", "Prepend", "Replace", "NFC", "Regex", "String", "pattern",
                "merges", "vocab", "added_tokens", "content", "special", "id", "model", "type",
                "post_processor", "TemplateProcessing", "decoder", "normalizer", "pre_tokenizer",
                "unk_token", "unk_id", "max_input_chars_per_word", "ignore_merges", "dropout",
                "(a+)+$", "[", "\\p{L}", "4294967295", "trim_offsets", "byte_fallback",
                "Precompiled", "precompiled_charsmap", "Digits", "Punctuation", "BertNormalizer",
                "ByteFallback", "fuse_unk", "continuing_subword_prefix", "end_of_word_suffix",
                "Fuse", "CTC",
            ],
        },
        Target {
            name: "tokenizer_config",
            run: |data| open_with("tokenizer_config", "tokenizer_config.json", data),
            seeds: || {
                let made = [FILES.1.clone().into_bytes()];
                [golden("", &["tokenizer_config.json"], 8 << 10), made.to_vec()].concat()
            },
            dictionary: &[
                "chat_template", "bos_token", "eos_token", "pad_token", "<s>", "</s>", "content",
                "default", "name", "template", "image_token", "fake_image_token", "@",
                "global_image_token", "extra_special_tokens", "{{", "}}", "{%", "%}",
            ],
        },
        Target {
            name: "chat_template",
            run: |data| open_with("chat_template", "chat_template.jinja", data),
            seeds: || TEMPLATES.map(|template| template.as_bytes().to_vec()).to_vec(),
            dictionary: &[
                "{{",
                "}}",
                "{%",
                "%}",
                "{% for x in range(999999999) %}",
                "{% endfor %}",
                "{% set x =",
                "messages",
                "m.content",
                "m['role']",
                "loop.index0",
                "**1**1**1**1**1**1**1**1**1**1**1**1**1**1**1**1**1**1**1**1**1**1**1**1",
                "[0][0][0][0][0][0][0][0][0][0][0][0][0][0][0][0][0][0][0][0][0][0][0][0]",
                "{% elif a %}{% elif a %}{% elif a %}{% elif a %}{% elif a %}{% elif a %}",
                "add_generation_prompt",
                "| join(",
                "| tojson",
                "| replace('a', ",
                "| batch(9)",
                "| slice(9)",
                "| indent(9)",
                "| format(",
                "| map(attribute='content') | list",
                "| sum",
                "| sort",
                "| unique",
                "| groupby('role')",
                "| dictsort",
                "| center(999999999)",
                "| wordwrap(1)",
                "| round",
                "| list",
                "| length",
                "| reverse",
                "| selectattr('role')",
                "| default('', true)",
                "| string",
                "| pprint",
                "| title",
                ".split(",
                ".strip()",
                ".ljust(999999999)",
                ".center(999999999)",
                ".zfill(999999999)",
                ".expandtabs(999999999)",
                ".format(",
                "'{:>999999999}'",
                "'%999999999d'",
                "* 999999999",
                "** 999999999",
                "~",
                "+",
                "[::-1]",
                "[:5]",
                "range(0, 1000000, 1)",
                "namespace(",
                "dict(",
                "cycler(",
                "joiner(",
                "lipsum(",
                "raise_exception('x')",
                "strftime_now('%Y')",
                "strftime_now('%99999999d')",
                "{% macro f(x) %}",
                "{% endmacro %}",
                "{{ f(f) }}",
                "{% call f() %}",
                "{% include 'x' %}",
                "{% import 'x' as y %}",
                "{% extends 'x' %}",
                "{% generation %}",
                "{% endgeneration %}",
                "{% if",
                "{% endif %}",
                "is string",
                "is mapping",
                "is defined",
                "not",
                "in",
                "(",
                ")",
                "recursive",
                "loop(",
                "{% break %}",
                "{% raw %}",
                "{#",
                "#}",
                "none",
                "true",
                "-1",
                "9223372036854775807",
                "//",
                "%",
                "0",
            ],
        },
        Target {
            name: "generation_config",
            run: |data| open_with("generation_config", "generation_config.json", data),
            seeds: || {
                vec![br#"{"eos_token_id": [1, 2], "bos_token_id": 1, "pad_token_id": 0}"#.to_vec()]
            },
            dictionary: &["eos_token_id", "bos_token_id", "pad_token_id"],
        },
    ]
}

/// `tokenizer.json` and `tokenizer_config.json` of a tokenizer whose vocabulary is ASCII.
static FILES: LazyLock<(String, String)> = LazyLock::new(|| {
    let letters = ('!'..='~').chain(['Ġ', 'Ċ']).map(String::from);
    let words = ["<unk>", "<s>", "</s>"].map(str::to_owned).into_iter().chain(letters);
    let vocab: Map<String, Value> = words.zip(0..).map(|(word, id)| (word, json!(id))).collect();
    let added: Vec<Value> = ["<unk>", "<s>", "</s>"]
        .iter()
        .zip(0..)
        .map(|(content, id)| {
            json!({ "id": id, "content": content, "single_word": false, "lstrip": false,
                    "rstrip": false, "normalized": false, "special": true })
        })
        .collect();
    let bytes = json!({ "type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": true });
    let tokenizer = json!({
        "version": "1.0", "truncation": null, "padding": null, "added_tokens": added,
        "normalizer": null, "pre_tokenizer": bytes, "post_processor": bytes, "decoder": bytes,
        "model": { "type": "BPE", "dropout": null, "unk_token": "<unk>", "fuse_unk": false,
                   "continuing_subword_prefix": null, "end_of_word_suffix": null,
                   "byte_fallback": false, "ignore_merges": false, "vocab": vocab, "merges": [] },
    });
    let config = json!({ "bos_token": "<s>", "eos_token": { "content": "</s>" },
                         "pad_token": "<unk>", "chat_template": TEMPLATES[0] });
    (tokenizer.to_string(), config.to_string())
});

fn write_files(folder: &Path) {
    fs::write(folder.join("tokenizer.json"), &FILES.0).expect("a file");
    fs::write(folder.join("tokenizer_config.json"), &FILES.1).expect("a file");
}

/// A tokenizer with a simple chat template.
pub(super) fn tiny() -> Arc<ChatTokenizer> {
    static TINY: LazyLock<Arc<ChatTokenizer>> = LazyLock::new(|| {
        let folder = tempfile::tempdir().expect("a temporary folder");
        write_files(folder.path());
        Arc::new(ChatTokenizer::from_dir(folder.path()).expect("a tokenizer"))
    });
    Arc::clone(&TINY)
}

/// Makes token ids of a row.
pub(super) fn encode(row: &Row) {
    encode_with(&tiny(), row);
}

fn encode_with(tokenizer: &ChatTokenizer, row: &Row) {
    if let Ok(encoded) = tokenizer.encode_row(row, TOKENS_PER_IMAGE, 256) {
        let length = encoded.input_ids.len();
        assert!(encoded.supervised.iter().all(|span| span.start <= span.end && span.end <= length));
        // The tokens of an image are never learned.
        for start in encoded.image_starts {
            assert!(start + TOKENS_PER_IMAGE <= length, "an image is cut");
            let is_learned = |span: &std::ops::Range<usize>| {
                span.start < start + TOKENS_PER_IMAGE && start < span.end
            };
            assert!(!encoded.supervised.iter().any(is_learned), "an image is supervised");
        }
        tokenizer.decode(&encoded.input_ids);
        tokenizer.tokens(&encoded.input_ids);
    }
    let _ = tokenizer.num_tokens(&row.turns, TOKENS_PER_IMAGE);
    let _ = tokenizer.encode_prompt(&row.turns, row.images.len(), TOKENS_PER_IMAGE);
}

/// The input replaces one file of a tokenizer, which then encodes rows.
fn open_with(folder: &'static str, name: &str, data: &[u8]) {
    let folder = folder_with(folder, name, data, |folder| {
        write_files(folder);
        fs::write(folder.join(name), data).expect("a file");
    });
    let _ = token_of_id(&folder, 2);
    let Ok(mut tokenizer) = ChatTokenizer::from_dir(&folder) else { return };
    let _ = tokenizer.read_generation_config(&folder);
    for row in ROWS.iter() {
        // To tokenize a text of megabytes many times would take longer than an execution may.
        if tokenizer.render(&row.turns, false).is_ok_and(|text| text.len() > 128 << 10) {
            let _ = tokenizer.encode_row(row, TOKENS_PER_IMAGE, 256);
            break;
        }
        encode_with(&tokenizer, row);
    }
}

/// Conversations without an image, with one and with two.
static ROWS: LazyLock<Vec<Row>> = LazyLock::new(|| {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let path = folder.path().join("rows.jsonl");
    let row = |question: &str, images: &[&str]| {
        json!({ "conversations": [{ "role": "user", "content": question },
                                  { "role": "assistant", "content": "An answer.\n" },
                                  { "role": "user", "content": "And?" },
                                  { "role": "assistant", "content": "</s>x" }], "images": images })
        .to_string()
    };
    let rows =
        [row("A question", &[]), row("<image>q", &["a"]), row("<image> <image>", &["a", "b"])];
    fs::write(&path, rows.join("\n")).expect("a file");
    let source = vlm_data::open_source(&path, None).expect("rows");
    (0..source.len()).map(|index| source.row(index).expect("a row")).collect()
});
