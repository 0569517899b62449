//! The example of this crate, as a user would run it.

use std::path::Path;

#[allow(dead_code)]
#[path = "../../examples/first_batch.rs"]
mod first_batch;

#[test]
fn the_example_prints_a_batch_of_json_lines_and_names_a_rejected_row() {
    let start = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../data/demo-start");
    let folder = tempfile::tempdir().unwrap();
    image::RgbImage::from_pixel(40, 30, image::Rgb([200, 30, 30]))
        .save(folder.path().join("red.png"))
        .unwrap();
    let row = |image: &str| {
        serde_json::json!({"image": image, "conversations": [
            {"role": "user", "content": "<image>\nDescribe the image."},
            {"role": "assistant", "content": "A red circle."},
        ]})
    };
    let rows = folder.path().join("rows.jsonl");
    std::fs::write(&rows, format!("{}\n{}\n", row("red.png"), row("gone.png"))).unwrap();
    let path = |path: &Path| path.display().to_string();
    let args = [
        path(&rows),
        path(folder.path()),
        path(&start),
        path(&start.join("vision/preprocessor_config.json")),
        "49".to_owned(),
    ];
    let text = first_batch::first_batch(&args).unwrap();
    for part in ["2 rows, 1 batch", "learns", "A red circle.", "gone.png"] {
        assert!(text.contains(part), "{part} is not in:\n{text}");
    }
}
