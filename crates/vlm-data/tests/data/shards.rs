//! Prepared data sets: what was written is read, and errors name the damaged file.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use vlm_data::{
    DataError, ImageLimits, ImageStore, PrepareSettings, RowError, RowSource, open_source, prepare,
};

use crate::tiny::{Folder, TOKENS_PER_IMAGE, row};

fn prepare_rows(folder: &Folder, rows: &[String]) -> PathBuf {
    try_to_prepare(folder, rows).unwrap()
}

fn try_to_prepare(folder: &Folder, rows: &[String]) -> Result<PathBuf, DataError> {
    folder.write_rows(rows);
    let output = folder.path().join("shards");
    let source: Arc<dyn RowSource> = folder.source();
    let settings = PrepareSettings {
        row_options: vlm_data::RowOptions::default(),
        input_files: Vec::new(),
        tokenizer: folder.tokenizer(),
        tokens_per_image: TOKENS_PER_IMAGE,
        max_seq_len: 80,
        image_store: ImageStore::Original,
        limits: ImageLimits::default(),
        rows_per_shard: 4,
        max_rejected_fraction: 1.0,
        num_workers: 1,
        output: output.clone(),
    };
    prepare(&source, &settings, &mut |_, _| ()).map(|_| output)
}

fn mixed_rows() -> Folder {
    let folder = Folder::new();
    folder.add_image("a.png", 10);
    folder.add_image("b.png", 200);
    folder
}

fn rows() -> Vec<String> {
    vec![
        row("q", "text alone", ""),
        row("<image>q", "one", "a.png"),
        row("<image><image>q", "two", "a.png,b.png"),
    ]
}

fn shard(output: &Path) -> PathBuf {
    output.join("shard-00000.arrow")
}

#[test]
fn rows_of_no_one_and_two_pictures_come_back_as_they_were() {
    let folder = mixed_rows();
    let output = prepare_rows(&folder, &rows());
    let (raw, prepared) = (folder.source(), open_source(&output, None).unwrap());
    assert_eq!(prepared.len(), 3);
    for index in 0..3 {
        let (before, after) = (raw.row(index).unwrap(), prepared.row(index).unwrap());
        assert_eq!((&after.turns, after.images.len()), (&before.turns, index));
        let num_tokens = folder.tokenizer().num_tokens(&before.turns, TOKENS_PER_IMAGE).unwrap();
        assert_eq!(prepared.num_tokens(index), Some(num_tokens));
        assert_eq!(prepared.locate(index), raw.locate(index));
        for (k, (a, b)) in before.images.iter().zip(&after.images).enumerate() {
            let picture = prepared.image_bytes(index, k, b).unwrap();
            assert_eq!(picture, raw.image_bytes(index, k, a).unwrap());
            assert_eq!(b.hash, Some(*blake3::hash(&picture).as_bytes()));
        }
    }
    assert!(prepared.row(3).is_err());
}

#[test]
fn a_data_set_of_rejected_rows_alone_is_not_made() {
    let folder = Folder::new();
    let error = try_to_prepare(&folder, &[row("<image>q", "a", "none.png")]).unwrap_err();
    let DataError::TooManyRejected(message) = error else { panic!("{error}") };
    assert!(message.contains("1 of 1 row cannot be used (1 missing-image)"), "{message}");
    assert!(open_source(&folder.path().join("shards"), None).is_err());
}

#[test]
fn numbers_of_a_damaged_manifest_size_nothing() {
    let folder = mixed_rows();
    let output = prepare_rows(&folder, &rows());
    let path = output.join("manifest.json");
    let text = std::fs::read_to_string(&path).unwrap();
    for damaged in [
        text.replace("\"num_rows\": 3", "\"num_rows\": 1000000000000000000"),
        text.replacen("\"num_rows\": 3", "\"num_rows\": 4", 1),
    ] {
        assert_ne!(damaged, text);
        std::fs::write(&path, damaged).unwrap();
        let error = open_source(&output, None).err().unwrap().to_string();
        assert!(error.contains("prepare the rows again"), "{error}");
    }
}

#[test]
fn a_missing_shard_does_not_reject_its_rows() {
    let folder = mixed_rows();
    let output = prepare_rows(&folder, &rows());
    let source = open_source(&output, None).unwrap();
    std::fs::remove_file(shard(&output)).unwrap();
    let Err(RowError::Fatal(error)) = source.prepared_row(0) else { panic!("expected a failure") };
    let message = error.to_string();
    assert!(message.contains("shard-00000.arrow: cannot read the rows: "), "{message}");
}

#[test]
fn a_shard_with_a_wrong_byte_anywhere_rejects_rows_at_worst() {
    let folder = mixed_rows();
    let output = prepare_rows(&folder, &rows());
    let whole = std::fs::read(shard(&output)).unwrap();
    let mut num_rejected = 0;
    for at in (0..whole.len()).step_by(11) {
        let mut damaged = whole.clone();
        damaged[at] ^= 0xFF;
        std::fs::write(shard(&output), damaged).unwrap();
        let source = open_source(&output, None).unwrap();
        for index in 0..source.len() {
            source.num_tokens(index);
            let row = source.prepared_row(index);
            num_rejected += usize::from(row.is_err());
            for (k, image) in
                row.ok().flatten().map_or(Vec::new(), |row| row.images).iter().enumerate()
            {
                let _ = source.image_bytes(index, k, image);
            }
        }
    }
    assert!(num_rejected > 0);
}
