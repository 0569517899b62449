//! The same data set gives the same rows in every file format.

use std::path::Path;
use std::sync::Arc;

use bytes::Bytes;
use serde_json::Value;
use vlm_data::{RowSource, open_source};

use crate::golden;

fn open(path: &Path) -> Arc<dyn RowSource> {
    open_source(path, None).unwrap()
}

/// Turns and images of row `index`.
fn content(source: &dyn RowSource, index: usize) -> (Vec<String>, Vec<Bytes>) {
    let row = source.row(index).unwrap();
    let images = row.images.iter().enumerate();
    let images = images.map(|(k, image)| source.image_bytes(index, k, image).unwrap());
    (row.turns.iter().map(|turn| turn.content.clone()).collect(), images.collect())
}

#[test]
fn parquet_files_of_pyarrow_are_read_in_any_order_whatever_their_pages() {
    // Written by `make.py` in the same folder: row k asks "question k" and has one image, or k % 4.
    let flat = open(&golden("parquet/flat.parquet"));
    assert_eq!(flat.len(), 40);
    let flat_images: Vec<Bytes> = (0..40).map(|k| content(flat.as_ref(), k).1.remove(0)).collect();
    for (k, bytes) in flat_images.iter().enumerate() {
        let decoded = image::load_from_memory(bytes).unwrap().to_rgb8();
        assert_eq!((decoded.width() as usize, decoded.height()), (12 + k % 3, 9));
        assert_eq!(decoded.get_pixel(0, 0).0[1] as usize, 255 - k * 7 % 256);
    }
    for name in ["lists.parquet", "lists_v2.parquet"] {
        let source = open(&golden("parquet").join(name));
        assert_eq!(source.len(), 40);
        for k in (0..40).map(|k| k * 27 % 40) {
            let (turns, images) = content(source.as_ref(), k);
            assert!(turns[0].ends_with(&format!("question {k}")), "{name} {k}: {turns:?}");
            assert!(turns[1].starts_with(&format!("answer {k} ")));
            // After row 39 the flat file has no image to compare with.
            let known = (k..k + k % 4).take_while(|&j| j < 40);
            assert_eq!(images.len(), k % 4, "{name} {k}");
            for (image, j) in images.iter().zip(known) {
                assert!(image == &flat_images[j], "{name} {k}");
            }
            assert_eq!(source.turns(k).unwrap(), source.row(k).unwrap().turns);
        }
        assert_eq!(source.locate(3), format!("{name}[3]"));
    }
    assert_eq!(open(&golden("parquet/names.parquet")).row(2).unwrap().images[0].name, "2.png");
}

#[test]
fn a_folder_of_parquet_files_is_one_data_set() {
    let folder = tempfile::tempdir().unwrap();
    for name in ["a.parquet", "b.parquet"] {
        std::fs::copy(golden("parquet/flat.parquet"), folder.path().join(name)).unwrap();
    }
    let source = open(folder.path());
    assert_eq!((source.len(), source.locate(45)), (80, "b.parquet[5]".to_owned()));
    assert_eq!(content(source.as_ref(), 45), content(source.as_ref(), 5));
}

#[test]
fn parquet_that_is_cut_off_or_of_other_columns_is_named() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("cut.parquet");
    let whole = std::fs::read(golden("parquet/flat.parquet")).unwrap();
    std::fs::write(&path, &whole[..whole.len() / 2]).unwrap();
    let error = open_source(&path, None).err().unwrap().to_string();
    assert!(error.contains("cut.parquet: cannot be read as Parquet"), "{error}");
    // A damaged page rejects rows; it does not panic.
    let mut damaged = whole;
    damaged[100..200].fill(0xAB);
    std::fs::write(&path, damaged).unwrap();
    let source = open(&path);
    assert!((0..40).any(|k| source.row(k).is_err()));
}

#[test]
fn what_is_no_data_set_is_refused_with_what_is_supported() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("rows.bin");
    for (content, found) in [
        (&b"a,b\n1,2\n"[..], "neither JSON"),
        (b"\x7fELF\0\0", "a program"),
        (b"\x01\x02\0\0", "unknown format"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "git lfs pull"),
        (b" <!DOCTYPE html><html>", "HTML page"),
        (b"", "is empty"),
        (b"PK\x03\x04...", "zip archive"),
        (b"\x80\x04\x95\0", "pickle"),
        (b"[{'from': 'human'}]", "json.dumps"),
        (b"\xff\xfe\0\0", "UTF-32"),
        (b"BZh91AY", "bzip2"),
        (&[0; 600], "zero bytes"),
    ] {
        std::fs::write(&path, content).unwrap();
        let error = open_source(&path, None).err().unwrap().to_string();
        assert!(error.contains("rows.bin") && error.contains(found), "{error}");
        assert!(error.contains(".parquet") && error.contains(".jsonl"), "{error}");
    }
    let error = open_source(folder.path(), None).err().unwrap().to_string();
    assert!(error.contains("1 file "), "{error}");
    for (content, found) in [
        (&b"\x1f\x8b\x08\x00"[..], "cannot be decoded as gzip"),
        (b"ARROW1\0\0", "cannot be read as Arrow"),
    ] {
        std::fs::write(&path, content).unwrap();
        let error = open_source(&path, None).err().unwrap().to_string();
        assert!(error.contains("rows.bin") && error.contains(found), "{error}");
    }
}

#[test]
fn a_json_list_is_distinguished_from_json_lines_by_its_content() {
    let folder = tempfile::tempdir().unwrap();
    let row: Value = serde_json::json!({ "conversations": [{ "content": "q" }] });
    for (name, text) in [
        ("list", format!("[{row}, {row}]")),
        ("lines", format!("{row}\n{row}")),
        ("a.jsonl", format!("broken\n{row}")),
    ] {
        std::fs::write(folder.path().join(name), text).unwrap();
        assert_eq!(open(&folder.path().join(name)).len(), 2, "{name}");
    }
}
