//! Files of rows and images, prepared data, feature caches and image preprocessing.

use std::fs;
use std::io::{Cursor, Write};
use std::path::{Path, PathBuf};
use std::sync::{Arc, LazyLock};

use image::{DynamicImage, ImageFormat, RgbImage};
use serde_json::json;
use vlm_data::{
    FeatureCache, FeatureCacheWriter, FeatureKey, FeaturesDtype, ImageLimits, ImageProcessor,
    ImageProcessorClass, ImageStore, Manifest, PrepareSettings, RowOptions, RowSource,
    open_source_with, prepare,
};

use super::tokenizers;
use crate::Target;
use crate::scratch::{file, folder_with, golden};

const ROW: &[&str] = &[
    "conversations", "messages", "texts", "from", "value", "role", "content", "user", "assistant",
    "system", "tool", "gpt", "human", "image", "images", "\"bytes\"", "path", "question", "answer",
    "caption", "text", "image_url", "type", "<image>", "<image>\n", "data:image/png;base64,AA==",
    "[", "{\"a\":", "\"", "\\u0000", "\\ud800", "null", "a.png", "../a", "/dev/zero", "1e999",
    "tool_calls", "tools", "function", "choices", "\n", "\r\n", ",", "\t", "\u{feff}", "@",
];
const BINARY: &[&str] = &[
    "PAR1", "ARROW1", "\u{15}\0", "\0\0\0\0", "\u{7f}\u{7f}\u{7f}\u{7f}", "image", "bytes", "path",
    "conversations", "json", "jpg", "ustar", "00000000000", "77777777777",
];
const MANIFEST: &[&str] = &[
    "num_rows", "num_bytes", "shard-00000.arrow", "../x", "18446744073709551615", "num_images",
    "float16", "float32", "bfloat16", "version", "statistics", "made_with",
];

pub(super) fn targets() -> Vec<Target> {
    let row = |name, run, seeds| Target { name, run, seeds, dictionary: ROW };
    let binary = |name, run, seeds| Target { name, run, seeds, dictionary: BINARY };
    vec![
        row("jsonl", |data| read_rows(&file("jsonl", "rows.jsonl", data)), json_lines),
        row("json_list", |data| read_rows(&file("json_list", "rows.json", data)), json_lists),
        row("csv", |data| read_rows(&file("csv", "rows.csv", data)), tables),
        binary("packed_rows", |data| read_rows(&file("packed", "rows.jsonl.gz", data)), packed),
        binary(
            "parquet",
            |data| read_rows(&file("parquet", "rows.parquet", data)),
            || {
                [
                    golden("rows", &[".parquet"], 24 << 10),
                    golden("parquet", &[".parquet"], 24 << 10),
                ]
                .concat()
            },
        ),
        binary(
            "arrow",
            |data| read_rows(&file("arrow", "rows.arrow", data)),
            || golden("rows", &[".arrow", ".feather"], 48 << 10),
        ),
        binary("tar", |data| read_rows(&file("tar", "rows.tar", data)), archives),
        binary("shard", read_shard, || vec![PREPARED.1.clone()]),
        Target {
            name: "manifest",
            run: read_manifest,
            seeds: || vec![PREPARED.0.clone()],
            dictionary: MANIFEST,
        },
        Target {
            name: "feature_cache",
            run: read_feature_cache,
            seeds: || vec![CACHE[0].clone()],
            dictionary: MANIFEST,
        },
        binary("jpeg", read_image, || {
            [golden("preprocess/images", &[".jpg"], 8 << 10), vec![picture(ImageFormat::Jpeg)]]
                .concat()
        }),
        binary("image", read_image, || {
            let formats = [
                ImageFormat::Png,
                ImageFormat::WebP,
                ImageFormat::Gif,
                ImageFormat::Bmp,
                ImageFormat::Tiff,
            ];
            let made = formats.into_iter().map(picture).collect();
            [golden("preprocess/images", &[".png", ".gif", ".webp", ".tif"], 6 << 10), made]
                .concat()
        }),
        Target {
            name: "preprocessor",
            run: read_preprocessor,
            seeds: || golden("", &["preprocessor_config.json"], 4 << 10),
            dictionary: &[
                "size", "crop_size", "shortest_edge", "height", "width", "resample", "image_mean",
                "image_std", "do_resize", "do_center_crop", "image_processor_type",
                "rescale_factor", "SiglipImageProcessor", "CLIPImageProcessor",
                "LlavaImageProcessor", "4096", "4097", "image_processor", "longest_edge",
            ],
        },
    ]
}

/// Opens a file of rows, and reads and tokenizes some of them.
fn read_rows(path: &Path) {
    let mut options = RowOptions::default();
    options.max_unpacked_bytes = 16 << 20;
    options.max_row_bytes = 16 << 20;
    options.follow_links = false;
    let Ok(source) = open_source_with(path, None, &options) else { return };
    read_source(source.as_ref());
}

fn read_source(source: &dyn RowSource) {
    let len = source.len();
    for index in (0..len.min(4)).chain([len / 2, len.saturating_sub(1), len]) {
        let _ = (source.turns(index), source.prepared_row(index), source.num_tokens(index));
        source.locate(index);
        let Ok(row) = source.row(index) else { continue };
        for (k, image) in row.images.iter().enumerate().take(3) {
            let _ = source.image_bytes(index, k, image);
        }
        tokenizers::encode(&row);
    }
    source.describe();
}

/// A small picture that is not of one colour.
fn picture(format: ImageFormat) -> Vec<u8> {
    let image =
        RgbImage::from_fn(12, 9, |x, y| image::Rgb([x as u8 * 20, y as u8 * 25, (x * y) as u8]));
    let mut bytes = Cursor::new(Vec::new());
    DynamicImage::from(image).write_to(&mut bytes, format).expect("a picture can be encoded");
    bytes.into_inner()
}

fn rows() -> Vec<String> {
    let turns = |question: &str| json!([{ "role": "user", "content": question }, { "role": "assistant", "content": "An answer." }]);
    let base64 = "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAIAAACQd1PeAAAADElEQVQI12P4z8AAAAMBAQAY3Y2wAAAAAElFTkSuQmCC";
    [
        json!({ "conversations": turns("<image>\nWhat is this?"), "image": "a.png" }),
        json!({ "conversations": [{ "from": "human", "value": "q <image> and <image>" },
                                  { "from": "gpt", "value": "a" }], "images": ["a.png", "b.png"] }),
        json!({ "messages": [{ "role": "user", "content": [{ "type": "image", "image": "a.png" },
            { "type": "text", "text": "q" }] }, { "role": "assistant", "content": "a" }] }),
        json!({ "messages": [{ "role": "user", "content": [{ "type": "image_url", "image_url":
            { "url": format!("data:image/png;base64,{base64}") } }, { "type": "text", "text": "q" }] },
            { "role": "assistant", "content": [{ "type": "text", "text": "a" }] }] }),
        json!({ "texts": [{ "user": "q", "assistant": "a", "relevance_ratings": 3 }],
                "images": [{ "bytes": base64, "path": null }] }),
        json!({ "image": "a.png", "caption": "A caption." }),
        json!({ "file_name": "a.png", "text": ["one", "two"] }),
        json!({ "question": "q", "answer": "a", "choices": ["a", "b"], "image": "a.png" }),
        json!({ "messages": turns("q"), "tools": [{ "type": "function" }] }),
    ]
    .map(|row| row.to_string())
    .to_vec()
}

fn json_lines() -> Vec<Vec<u8>> {
    let rows = rows();
    rows.iter().cloned().chain([rows.join("\n")]).map(String::into_bytes).collect()
}

fn json_lists() -> Vec<Vec<u8>> {
    let rows = rows();
    let list = format!("[{}]", rows.join(",\n"));
    vec![
        format!("{{\"version\": 1, \"data\": {list}}}").into_bytes(),
        rows[1].replace(", ", ",\n ").into_bytes(),
        list.into_bytes(),
    ]
}

fn tables() -> Vec<Vec<u8>> {
    [
        "image,caption\na.png,\"one, \"\"two\"\"\n three\"\nb.png,x\n",
        "file_name\ttext\na.png\tA caption.\n",
        "\u{feff}question;answer;image\r\nq;a;a.png\r\n",
    ]
    .map(|text| text.as_bytes().to_vec())
    .to_vec()
}

/// JSON lines in gzip, zstd and UTF-16.
fn packed() -> Vec<Vec<u8>> {
    let text = rows().join("\n");
    let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    gzip.write_all(text.as_bytes()).expect("text can be compressed");
    let utf16 = [0xfeff].into_iter().chain(text.encode_utf16());
    vec![
        gzip.finish().expect("text can be compressed"),
        zstd::encode_all(text.as_bytes(), 3).expect("text can be compressed"),
        utf16.flat_map(u16::to_le_bytes).collect(),
    ]
}

fn archives() -> Vec<Vec<u8>> {
    let picture = picture(ImageFormat::Png);
    let row = rows()[0].clone();
    let members: [(&str, &[u8]); 5] = [
        ("a/0001.json", row.as_bytes()),
        ("a/0001.png", &picture),
        ("0002.txt", b"A caption."),
        ("0002.left.jpg", b"\xff\xd8"),
        ("0003.mp4", b"video"),
    ];
    let mut archive = tar::Builder::new(Vec::new());
    for (name, bytes) in members {
        let mut header = tar::Header::new_gnu();
        header.set_size(bytes.len() as u64);
        archive.append_data(&mut header, name, bytes).expect("an archive in memory");
    }
    vec![archive.into_inner().expect("an archive in memory")]
}

/// `manifest.json` and the shard of a prepared folder.
static PREPARED: LazyLock<(Vec<u8>, Vec<u8>)> = LazyLock::new(|| {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let path = folder.path().join("rows.jsonl");
    fs::write(folder.path().join("a.png"), picture(ImageFormat::Png)).expect("a file");
    fs::write(&path, rows().join("\n")).expect("a file");
    let output = folder.path().join("shards");
    let settings = PrepareSettings {
        row_options: RowOptions::default(),
        input_files: Vec::new(),
        tokenizer: tokenizers::tiny(),
        tokens_per_image: tokenizers::TOKENS_PER_IMAGE,
        max_seq_len: 200,
        image_store: ImageStore::Original,
        limits: ImageLimits::default(),
        rows_per_shard: 100,
        max_rejected_fraction: 1.0,
        num_workers: 1,
        output: output.clone(),
    };
    let source = open_source_with(&path, None, &settings.row_options).expect("rows");
    prepare(&source, &settings, &mut |_, _| ()).expect("rows can be prepared");
    let read = |name: &str| fs::read(output.join(name)).expect("a prepared folder");
    (read("manifest.json"), read("shard-00000.arrow"))
});

fn read_prepared(folder: &Path) {
    if let Ok(source) = open_source_with(folder, None, &RowOptions::default()) {
        read_source(source.as_ref());
    }
}

/// The input is a shard, whose manifest has the right size.
fn read_shard(data: &[u8]) {
    let folder = folder_with("shard", "shard-00000.arrow", data, |_| ());
    let mut manifest: serde_json::Value =
        serde_json::from_slice(&PREPARED.0).expect("a manifest is JSON");
    manifest["shards"][0]["num_bytes"] = data.len().into();
    fs::write(folder.join("manifest.json"), manifest.to_string()).expect("a file");
    read_prepared(&folder);
}

/// The input is a manifest beside a shard.
fn read_manifest(data: &[u8]) {
    let folder = folder_with("manifest", "manifest.json", data, |folder| {
        fs::write(folder.join("shard-00000.arrow"), &PREPARED.1).expect("a file");
    });
    if let Ok(manifest) = Manifest::read(&folder) {
        let _ = manifest.report(4);
    }
    read_prepared(&folder);
}

fn feature_key() -> FeatureKey {
    FeatureKey::new("encoder".into(), "preprocessing".into(), FeaturesDtype::Float32, 2, 3)
}

/// The manifest of a feature cache, its features, hashes and checksums.
static CACHE: LazyLock<[Vec<u8>; 4]> = LazyLock::new(|| {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let path = folder.path().join("cache");
    let mut writer = FeatureCacheWriter::open(&path, feature_key()).expect("a cache");
    writer.append(&[[1; 32], [2; 32]], &[0; 48]).expect("a cache");
    writer.finish().expect("a cache");
    let read = |name: &str| fs::read(path.join(name)).expect("a cache");
    ["manifest.json", "features.bin", "hashes.bin", "checksums.bin"].map(read)
});

fn read_feature_cache(data: &[u8]) {
    let folder = folder_with("cache", "manifest.json", data, |folder| {
        fs::write(folder.join("features.bin"), &CACHE[1]).expect("a file");
        fs::write(folder.join("hashes.bin"), &CACHE[2]).expect("a file");
        fs::write(folder.join("checksums.bin"), &CACHE[3]).expect("a file");
    });
    let Ok(cache) = FeatureCache::open(&folder, &feature_key()) else { return };
    if let Ok(Some(place)) = cache.find(&[2; 32]) {
        let mut bytes = vec![0; cache.key().bytes_per_image()];
        let _ = cache.read(place, &mut bytes);
    }
    let _ = cache.find(&[3; 32]);
}

/// An image processor for images of at most a megapixel, so that an execution is short.
static PROCESSOR: LazyLock<Arc<ImageProcessor>> = LazyLock::new(|| {
    let mut limits = ImageLimits::default();
    limits.max_pixels = 1 << 20;
    let processor = ImageProcessor::of_class(ImageProcessorClass::Clip, 8).expect("a size");
    Arc::new(processor.with_limits(limits))
});

fn read_image(data: &[u8]) {
    let _ = PROCESSOR.preprocess(data);
}

fn read_preprocessor(data: &[u8]) {
    let path: PathBuf = file("preprocessor", "preprocessor_config.json", data);
    let classes = [ImageProcessorClass::Clip, ImageProcessorClass::Siglip];
    for class in classes {
        let folder = path.parent().unwrap_or(Path::new("."));
        let Ok((processor, _)) = ImageProcessor::from_folder(folder, class, 8) else { continue };
        let _ = processor.settings();
        let scaled = processor.scaled_to(16);
        if processor.image_size() <= 512 {
            static IMAGE: LazyLock<Vec<u8>> = LazyLock::new(|| picture(ImageFormat::Png));
            let _ = processor.preprocess(&IMAGE);
            let _ = scaled.map(|scaled| scaled.preprocess(&IMAGE));
        }
    }
}
