//! Nested Parquet and Arrow files in the form of Hugging Face's `datasets`, made by `make.py` in
//! tests/golden/rows, are read in any order, whatever their pages and batches.

use std::path::Path;
use std::sync::Arc;

use vlm_data::{Row, RowOptions, RowSource, open_source, open_source_with};

use crate::golden;

fn open(name: &str) -> Arc<dyn RowSource> {
    open_source(&golden("rows").join(name), None).unwrap()
}

/// The texts of a row, and the heights of its images, which tell them apart.
fn content(source: &dyn RowSource, index: usize) -> (Vec<String>, Vec<u32>) {
    let Row { turns, images } = source.row(index).unwrap();
    assert_eq!(source.turns(index).unwrap(), turns, "{index}");
    let height = |(k, image): (usize, &vlm_data::RowImage)| {
        let bytes = source.image_bytes(index, k, image).unwrap();
        image::load_from_memory(&bytes).unwrap().height()
    };
    let heights = images.iter().enumerate().map(height).collect();
    (turns.into_iter().map(|turn| turn.content).collect(), heights)
}

/// All rows of a source in an order that jumps between its pages.
fn jumping(source: &dyn RowSource) -> impl Iterator<Item = usize> + use<> {
    let num_rows = source.len();
    (0..num_rows).map(move |k| k * 7 % num_rows)
}

fn heights(k: usize) -> Vec<u32> {
    (k..k + k % 3).map(|k| 1 + k as u32 % 4).collect()
}

#[test]
fn lists_of_turns_and_an_image_column_are_rows() {
    for name in ["conversations.parquet", "conversations_lz4.feather", "conversations_zstd.feather"]
    {
        let source = open(name);
        assert_eq!(source.len(), 20, "{name}");
        for index in jumping(source.as_ref()) {
            // Every third row was left out.
            let k = index / 2 * 3 + index % 2;
            let (texts, images) = content(source.as_ref(), index);
            let expected = format!("{}question {k}", "<image>\n".repeat(k % 3));
            assert_eq!(texts, [expected, format!("answer {k}")], "{name} {index}");
            assert_eq!(images, heights(k), "{name} {index}");
        }
    }
}

#[test]
fn images_of_the_cauldron_stand_in_front_of_the_first_question() {
    for name in ["texts.parquet", "texts.arrow"] {
        let source = open(name);
        assert_eq!(source.len(), 30, "{name}");
        for k in jumping(source.as_ref()) {
            let (texts, images) = content(source.as_ref(), k);
            let mut expected =
                vec![format!("{}question {k}", "<image>\n".repeat(k % 3)), format!("answer {k}")];
            if k % 2 == 1 {
                expected.extend(["and?".to_owned(), "more".to_owned()]);
            }
            assert_eq!((texts, images), (expected, heights(k)), "{name} {k}");
        }
    }
}

#[test]
fn turns_rated_too_low_are_left_out() {
    let mut options = RowOptions::default();
    options.min_ratings = vec![("relevance".into(), 3.0)];
    let open = |name: &str| open_source_with(&golden("rows").join(name), None, &options).unwrap();
    for source in [open("texts.parquet"), open("texts.arrow")] {
        // Row k is rated k % 5; odd rows have a second turn, rated 3. Even ones below 3 are left out.
        assert_eq!(source.len(), 15 + 6);
        let find = |k: usize| {
            let is_it = |row: &usize| source.locate(*row).ends_with(&format!("[{k}]"));
            (0..source.len()).find(is_it)
        };
        let (texts, _) = content(source.as_ref(), find(3).unwrap());
        assert_eq!(texts.len(), 4);
        let (texts, images) = content(source.as_ref(), find(5).unwrap());
        assert_eq!(texts, ["<image>\n<image>\nand?", "more"]);
        assert_eq!(images.len(), 2);
        assert_eq!(find(6), None);
    }
    let mut options = RowOptions::default();
    options.min_ratings = vec![("beauty".into(), 3.0)];
    for name in ["texts.parquet", "texts.arrow"] {
        let error = open_source_with(&golden("rows").join(name), None, &options).err().unwrap();
        assert!(error.to_string().contains("\"beauty\""), "{error}");
    }
}

#[test]
fn parts_of_messages_carry_their_images() {
    for name in ["messages.parquet", "messages_v2.parquet", "messages.arrow"] {
        let source = open(name);
        for k in jumping(source.as_ref()) {
            let (texts, images) = content(source.as_ref(), k);
            let expected = format!("{}question {k}", "<image>".repeat(k % 3));
            assert_eq!(texts, [expected, format!("answer {k}")], "{name} {k}");
            assert_eq!(images, heights(k), "{name} {k}");
        }
    }
}

#[test]
fn captions_answer_the_question_of_the_options() {
    let source = open("captions.parquet");
    let (texts, images) = content(source.as_ref(), 6);
    assert_eq!(texts, ["<image>", "answer 6"]);
    assert_eq!(images, [3]);
    let mut options = RowOptions::default();
    options.caption_question = String::new();
    let path = golden("rows/captions.parquet");
    let source = open_source_with(&path, None, &options).unwrap();
    assert_eq!(content(source.as_ref(), 6).0[0], "<image>");
}

#[test]
fn image_columns_that_no_reader_knows_are_used_or_named() {
    assert_eq!(content(open("only_by_type.parquet").as_ref(), 1).1, [2]);
    let kept_rows = |options: &RowOptions| {
        let source = open_source_with(&golden("rows/two_images.parquet"), None, options);
        source.map(|source| content(source.as_ref(), 1).1).map_err(|e| e.to_string())
    };
    let error = kept_rows(&RowOptions::default()).unwrap_err();
    assert!(error.contains("\"mystery\"") && error.contains("drop the others"), "{error}");
    let mut options = RowOptions::default();
    options.image_keys = vec!["mystery".into()];
    assert_eq!(kept_rows(&options).unwrap(), [2]);
}

#[test]
fn a_compression_that_is_not_read_is_refused_at_opening() {
    let error = open_source(&golden("rows/brotli.parquet"), None).err().unwrap().to_string();
    assert!(error.contains("brotli.parquet") && error.contains("BROTLI"), "{error}");
}

#[test]
fn damaged_files_do_not_panic() {
    let folder = tempfile::tempdir().unwrap();
    for name in ["messages.parquet", "texts.arrow", "conversations_lz4.feather"] {
        let whole = std::fs::read(golden("rows").join(name)).unwrap();
        let path = folder.path().join(name);
        let try_all = |bytes: &[u8]| {
            std::fs::write(&path, bytes).unwrap();
            if let Ok(source) = open_source(&path, None) {
                (0..source.len().min(100)).for_each(|k| drop(source.row(k)));
            }
        };
        for k in 0..200 {
            // Another byte each time, all over the file.
            let mut bytes = whole.clone();
            let at = k * 7919 % bytes.len();
            bytes[at] = bytes[at].wrapping_add(1 + (k % 255) as u8);
            try_all(&bytes);
        }
        for length in (0..whole.len()).step_by(whole.len() / 40) {
            try_all(&whole[..length]);
        }
    }
}

#[test]
fn another_number_of_rows_in_a_page_header_is_named_and_moves_no_rows() {
    let name = "messages_v2.parquet";
    let whole = open(name);
    let bytes = std::fs::read(golden("rows").join(name)).unwrap();
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join(name);
    let mut num_errors = 0;
    for at in 0..bytes.len() - 7 {
        // The header of a page of version 2, with the numbers of its values, nulls and rows, each of
        // one byte and doubled.
        let [0x5c, 0x15, _, 0x15, _, 0x15, rows, 0x15] = bytes[at..at + 8] else { continue };
        for changed_rows in [rows - 2, rows + 2] {
            let mut changed = bytes.clone();
            changed[at + 6] = changed_rows;
            std::fs::write(&path, &changed).unwrap();
            let source = open_source(&path, None).unwrap();
            for index in 0..source.len() {
                match source.turns(index) {
                    Ok(turns) => assert_eq!(turns, whole.turns(index).unwrap(), "byte {at}"),
                    Err(error) => {
                        let message = error.to_string();
                        assert!(message.contains("the file's footer says"), "{message}");
                        num_errors += 1;
                    }
                }
            }
        }
    }
    assert!(num_errors > 0);
}

#[test]
fn a_row_says_where_it_lies_and_a_file_which_reader_reads_it() {
    let source = open("texts.arrow");
    assert_eq!(source.locate(3), "texts.arrow[3]");
    let described = source.describe().join("\n");
    for part in ["texts.arrow: Arrow, 30 rows", "turns from \"texts\"", "images from \"images\""] {
        assert!(described.contains(part), "{described}");
    }
    assert!(Path::new(&golden("rows/make.py")).is_file());
}
