//! Rows that cannot be trained on are rejected with a reason, and the loader continues.

use std::collections::HashMap;

use vlm_data::{DataError, RejectLog, RejectReason, Rejected};

use crate::tiny::{Folder, config, row, with};

/// The header of a 24-bit BMP of `side` × `side` pixels that has no pixels.
fn bmp_header(side: u32) -> Vec<u8> {
    let mut bytes = b"BM".to_vec();
    bytes.extend([0; 8]);
    bytes.extend(54_u32.to_le_bytes());
    bytes.extend(40_u32.to_le_bytes());
    bytes.extend(side.to_le_bytes());
    bytes.extend(side.to_le_bytes());
    bytes.extend([1, 0, 24, 0]);
    bytes.extend([0; 24]);
    bytes
}

/// One row for each way in which a row can be bad, and what it is called.
fn bad_rows(folder: &Folder) -> Vec<(String, RejectReason)> {
    let write = |name: &str, bytes: &[u8]| std::fs::write(folder.image_path(name), bytes).unwrap();
    folder.add_image("good.png", 100);
    folder.add_image("whole.jpg", 100);
    let jpeg = std::fs::read(folder.image_path("whole.jpg")).unwrap();
    write("cut.jpg", &jpeg[..jpeg.len() * 3 / 4]);
    write("page.jpg", b"<html><body>404</body></html>");
    write("empty.png", b"");
    write("bomb.bmp", &bmp_header(20_000));
    std::fs::create_dir(folder.image_path("folder.png")).unwrap();
    std::fs::write(folder.path().join("outside.png"), b"secret").unwrap();
    let long = "long ".repeat(20);
    let asks = |image: &str| row("<image>", "a", image);
    let alone = r#"{"conversations":[{"role":"user","content":"hello"}]}"#;
    vec![
        (asks("none.png"), RejectReason::MissingImage),
        (asks("../outside.png"), RejectReason::ImageOutsideRoot),
        (asks("/etc/hostname"), RejectReason::ImageOutsideRoot),
        (asks("cut.jpg"), RejectReason::UnreadableImage),
        (asks("page.jpg"), RejectReason::UnreadableImage),
        (asks("empty.png"), RejectReason::UnreadableImage),
        (asks("folder.png"), RejectReason::UnreadableImage),
        (asks("bomb.bmp"), RejectReason::ImageTooLarge),
        ("not a row".into(), RejectReason::InvalidRow),
        ("[]".into(), RejectReason::InvalidRow),
        (row("one <image>", "a", "good.png, good.png"), RejectReason::ImageWithoutPlaceholder),
        (row("<image><image>", "a", "good.png"), RejectReason::PlaceholderWithoutImage),
        (row("@<image>", "a", "good.png"), RejectReason::PlaceholderInText),
        (row("@@@@@@ <image>", "a", "good.png"), RejectReason::PlaceholderInText),
        (row(&format!("{long}<image>"), "a", "good.png"), RejectReason::CutThroughImage),
        (row(&long, "a", ""), RejectReason::NoSupervisedToken),
        (alone.into(), RejectReason::NoSupervisedToken),
    ]
}

#[test]
fn every_kind_of_bad_row_is_rejected_by_name_and_the_rest_is_used() {
    let folder = Folder::new();
    let bad = bad_rows(&folder);
    let mut rows: Vec<_> = bad.iter().map(|(row, _)| row.clone()).collect();
    rows.extend(std::iter::repeat_n(row("<image>", "a", "good.png"), 6));
    image::RgbImage::new(1, 1).save(folder.image_path("one.png")).unwrap();
    rows.push(row("<image>", "a single pixel", "one.png"));
    folder.write_rows(&rows);

    let loader = folder.loader(config());
    let mut found: HashMap<usize, Rejected> = HashMap::new();
    let mut usable = Vec::new();
    for batch in loader.epoch(0, 0) {
        let batch = batch.unwrap();
        usable.extend(batch.rows);
        found.extend(batch.rejected.into_iter().map(|rejected| (rejected.row, rejected)));
    }
    usable.sort_unstable();
    assert_eq!(usable, (bad.len()..rows.len()).collect::<Vec<_>>());
    for (index, (row, reason)) in bad.iter().enumerate() {
        let rejected = &found[&index];
        assert_eq!(rejected.reason, *reason, "{row}: {}", rejected.detail);
        assert_eq!(rejected.location, format!("rows.jsonl:{}", index + 1));
        assert!(!rejected.detail.is_empty());
    }
    assert_eq!(found.len(), bad.len());
}

#[test]
fn the_log_holds_each_rejected_row_once_after_two_epochs() {
    let folder = Folder::new();
    let bad = bad_rows(&folder);
    let mut rows: Vec<_> = bad.iter().map(|(row, _)| row.clone()).collect();
    rows.push(row("<image>", "a", "good.png"));
    folder.write_rows(&rows);
    let loader = folder.loader(config());
    let path = folder.path().join("rejected.jsonl");
    let mut log = RejectLog::open(&path).unwrap();
    for epoch in 0..2 {
        for batch in loader.epoch(epoch, 0) {
            for rejected in &batch.unwrap().rejected {
                log.record(rejected).unwrap();
            }
        }
    }
    let text = std::fs::read_to_string(&path).unwrap();
    assert_eq!(text.lines().count(), bad.len());
}

#[test]
fn a_batch_without_a_usable_row_is_still_a_batch() {
    let folder = Folder::new();
    folder.write_rows(&[row("q", "a", "none.png"), row("q", "a", "none.png"), row("q", "a", "")]);
    let loader = folder.loader(with(config(), |c| {
        c.batch_size = 1;
        c.shuffle = false;
    }));
    let sizes: Vec<_> = loader.epoch(0, 0).map(|batch| batch.unwrap().batch_size).collect();
    assert_eq!(sizes, [0, 0, 1]);
}

#[test]
fn too_many_rejected_rows_end_the_epoch_with_counts_and_examples() {
    let folder = Folder::new();
    let mut rows = vec![row("<image>", "a", "none.png"); 12];
    rows.extend(vec![row("q", "a", ""); 12]);
    folder.write_rows(&rows);
    let config = with(config(), |c| {
        c.shuffle = false;
        c.max_rejected_fraction = 0.3;
    });
    let results: Vec<_> = folder.loader(config).epoch(0, 0).collect();
    assert_eq!(results.len(), 3);
    let Err(DataError::TooManyRejected(message)) = &results[2] else { panic!("{results:?}") };
    assert!(message.contains("12 of 12 rows") && message.contains("12 missing-image"), "{message}");
    assert!(message.contains("rows.jsonl:1: missing-image"), "{message}");
    assert!(message.contains("the limit is 30%.") && message.ends_with("_fraction`."), "{message}");
}

#[test]
fn an_epoch_of_bad_rows_alone_ends_with_an_error_however_few_they_are() {
    let folder = Folder::new();
    folder.write_rows(&[row("<image>", "a", "none.png")]);
    let results: Vec<_> = folder.loader(config()).epoch(0, 0).collect();
    assert_eq!(results[0].as_ref().unwrap().batch_size, 0);
    assert!(matches!(results[1], Err(DataError::TooManyRejected(_))));
    assert_eq!(results.len(), 2);
    // Where all may be rejected, there is no more to allow.
    let config = with(config(), |c| c.max_rejected_fraction = 1.0);
    let last = folder.loader(config).epoch(0, 0).last().unwrap().unwrap_err().to_string();
    assert!(last.contains("1 of 1 row ") && !last.contains("fraction"), "{last}");
}
