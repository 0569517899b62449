//! Files that the fuzz targets or their readers found wanting, and files beyond a limit.

use std::path::Path;

use serde_json::{Value, json};
use vlm_data::{
    ChatTokenizer, FeatureCache, FeatureCacheWriter, FeatureKey, FeaturesDtype, ImagePlaceholder,
    ImageProcessor, ImageProcessorClass, RejectReason, Row, RowOptions, open_source,
    open_source_with,
};

use crate::tiny::{Folder, TOKENS_PER_IMAGE, write_tokenizer_with};

/// The crate `tokenizers` takes a merge apart by the length of the prefix, and panics.
#[test]
fn a_tokenizer_that_makes_its_reader_panic_is_refused() {
    let folder = Folder::new();
    let path = folder.path().join("tokenizer.json");
    let mut json: Value = serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
    json["model"]["continuing_subword_prefix"] = json!("longer than any token");
    json["model"]["merges"] = json!([["a", "b"]]);
    std::fs::write(&path, json.to_string()).unwrap();
    let message = ChatTokenizer::from_dir(folder.path()).unwrap_err().to_string();
    assert!(message.contains("tokenizer.json cannot be used: "), "{message}");
}

/// The crate `tokenizers` takes seconds for a token of 30 kB.
#[test]
fn a_tokenizer_with_a_token_as_long_as_a_page_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let open = |bytes: usize| {
        let long = "x".repeat(bytes);
        let tokens = [("<unk>", true), ("<s>", true), ("</s>", true), (&long, false)];
        write_tokenizer_with(
            folder.path(),
            &tokens,
            &json!({
                "eos_token": "</s>", "chat_template": crate::tiny::TEMPLATE,
            }),
        );
        ChatTokenizer::from_dir(folder.path()).map(drop).map_err(|e| e.to_string())
    };
    assert_eq!(open(1024), Ok(()));
    let message = open(1025).unwrap_err();
    assert!(message.contains("tokenizer.json: an added token has 1025 bytes"), "{message}");
}

/// Tokens that SmolVLM's processor writes around an image are no part of an answer.
#[test]
fn an_image_in_an_answer_is_not_learned_nor_are_the_tokens_around_it() {
    let folder = tempfile::tempdir().unwrap();
    let tokens = ["<unk>", "<s>", "</s>", "<fake>", "<global>"].map(|token| (token, true));
    let config = json!({
        "eos_token": "</s>", "image_token": "@", "fake_image_token": "<fake>",
        "global_image_token": "<global>", "chat_template": crate::tiny::TEMPLATE,
    });
    write_tokenizer_with(folder.path(), &tokens, &config);
    let placeholder = ImagePlaceholder::new("@");
    let tokenizer = ChatTokenizer::with_placeholder(folder.path(), placeholder).unwrap();
    let row = Row::from_json(
        r#"{"messages": [{"role": "assistant", "content": "a<image>b"},
            {"role": "user", "content": "q"}, {"role": "assistant", "content": "c"}], "image": "x"}"#,
    );
    let encoded = tokenizer.encode_row(&row.unwrap(), TOKENS_PER_IMAGE, 100).unwrap();
    let learned: Vec<String> = encoded
        .supervised
        .iter()
        .map(|span| tokenizer.decode_range(&encoded.input_ids, span.clone()))
        .collect();
    // The template ends an answer with a line break.
    assert_eq!(learned, ["a", "b</s>\n", "c</s>\n"]);
    let image = encoded.image_starts[0];
    let around = tokenizer.tokens(&encoded.input_ids[image - 2..image + TOKENS_PER_IMAGE + 1]);
    assert_eq!(around, ["<fake>", "<global>", "@", "@", "@", "@", "<fake>"]);
}

#[test]
fn numbers_of_a_damaged_feature_cache_size_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("cache");
    let key = || FeatureKey::new("e".into(), "p".into(), FeaturesDtype::Float32, 2, 4);
    let mut writer = FeatureCacheWriter::open(&path, key()).unwrap();
    writer.append(&[[1; 32]], &[0; 32]).unwrap();
    writer.finish().unwrap();
    let manifest = path.join("manifest.json");
    let text = std::fs::read_to_string(&manifest).unwrap();
    // 2⁵⁹ + 1 images of 32 bytes would be 32 bytes in 64 bits.
    let damaged = text.replace("\"num_images\": 1", "\"num_images\": 576460752303423489");
    assert_ne!(damaged, text);
    std::fs::write(&manifest, damaged).unwrap();
    let message = FeatureCache::open(&path, &key()).unwrap_err().to_string();
    assert!(message.contains("for 576460752303423489 images, found 32"), "{message}");
}

#[test]
fn an_image_beyond_the_limits_is_rejected() {
    let folder = Folder::new();
    folder.add_image("a.png", 7);
    folder.write_rows(&[crate::tiny::row("<image>q", "a", "a.png")]);
    let image = std::fs::read(folder.image_path("a.png")).unwrap();
    let processor = ImageProcessor::of_class(ImageProcessorClass::Clip, 8).unwrap();
    let mut limits = vlm_data::ImageLimits::default();
    assert!(processor.crop_u8(&image).is_ok());
    limits.max_pixels = 100;
    let reject = processor.with_limits(limits).crop_u8(&image).unwrap_err();
    assert_eq!(reject.reason, RejectReason::ImageTooLarge);
    assert!(ImageProcessor::of_class(ImageProcessorClass::Clip, 4097).is_err());

    let mut options = RowOptions::default();
    options.max_image_bytes = image.len() as u64 - 1;
    let (rows, images) = (folder.path().join("rows.jsonl"), folder.path().join("images"));
    let source = open_source_with(&rows, Some(&images), &options).unwrap();
    let row = source.row(0).unwrap();
    let reject = source.image_bytes(0, 0, &row.images[0]).unwrap_err().reject().unwrap();
    assert_eq!(reject.reason, RejectReason::ImageTooLarge);
}

/// Every byte of the pages is changed in turn. What the reader or the crate `parquet` makes of it
/// is the same text, another one, or an error about the row; it is never a panic.
#[test]
fn a_parquet_page_with_a_wrong_byte_anywhere_rejects_rows_at_worst() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("rows.parquet");
    let whole = std::fs::read(crate::golden("rows").join("captions.parquet")).unwrap();
    let mut num_rejected = 0;
    for at in (4..whole.len()).step_by(7) {
        let mut damaged = whole.clone();
        damaged[at] ^= 0x55;
        std::fs::write(&path, damaged).unwrap();
        num_rejected += rejected_rows(&path);
    }
    assert!(num_rejected > 10, "{num_rejected}");
}

fn rejected_rows(path: &Path) -> usize {
    let Ok(source) = open_source(path, None) else { return 0 };
    let is_rejected = |index: &usize| match source.row(*index) {
        Ok(_) => false,
        Err(error) => error.reject().is_some(),
    };
    (0..source.len().min(3)).filter(is_rejected).count()
}
