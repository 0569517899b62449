//! A row gives the same result in each of its JSON forms.

use base64_text as base64;
use vlm_data::{RejectReason, Row, RowOptions, Turn, open_source, open_source_with};

/// A PNG of one black pixel, and one of 8 × 8 of them.
fn png(side: u32) -> Vec<u8> {
    let mut bytes = std::io::Cursor::new(Vec::new());
    let image = image::DynamicImage::from(image::RgbImage::new(side, side));
    image.write_to(&mut bytes, image::ImageFormat::Png).unwrap();
    bytes.into_inner()
}

/// Base64 by hand: what the rows of other people carry.
mod base64_text {
    pub fn encode(bytes: &[u8]) -> String {
        const ALPHABET: &[u8; 64] =
            b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
        let encode = |chunk: &[u8]| {
            let value = chunk.iter().fold(0_u32, |value, &byte| value << 8 | u32::from(byte));
            let value = value << (8 * (3 - chunk.len()));
            let letter = |k: usize| char::from(ALPHABET[(value >> (18 - 6 * k)) as usize & 63]);
            let letter = |k| if k > chunk.len() { '=' } else { letter(k) };
            (0..4).map(letter).collect::<String>()
        };
        bytes.chunks(3).map(encode).collect()
    }
}

fn row(text: &str) -> Row {
    Row::from_json(text).unwrap_or_else(|reject| panic!("{text}: {reject}"))
}

fn texts(row: &Row) -> Vec<(&'static str, &str)> {
    row.turns.iter().map(|turn: &Turn| (turn.role.name(), turn.content.as_str())).collect()
}

fn names(row: &Row) -> Vec<&str> {
    row.images.iter().map(|image| image.name.as_str()).collect()
}

#[test]
fn every_form_of_a_question_with_an_image_is_the_same_row() {
    for text in [
        r#"{"conversations": [{"from": "human", "value": "<image>\nq"}, {"from": "gpt", "value": "a"}], "image": "x.jpg"}"#,
        r#"{"conversations": [{"from": "human", "value": "q"}, {"from": "gpt", "value": "a"}], "images": ["x.jpg"]}"#,
        r#"{"conversations": "[{\"from\": \"human\", \"value\": \"q\"}, {\"from\": \"gpt\", \"value\": \"a\"}]", "image": "x.jpg"}"#,
        r#"{"conversations": {"from": ["human", "gpt"], "value": ["q", "a"]}, "image": "x.jpg"}"#,
        r#"{"conversation": [{"role": "User", "content": "q"}, {"role": "Assistant", "content": "a"}], "img": "x.jpg"}"#,
        r#"{"messages": [{"role": "user", "content": "<image>\nq"}, {"role": "assistant", "content": "a"}], "images": ["x.jpg"]}"#,
        r#"{"messages": [{"role": "user", "content": [{"type": "image", "image": "x.jpg"}, {"type": "text", "text": "\nq"}]}, {"role": "assistant", "content": [{"type": "text", "text": "a"}]}]}"#,
        r#"{"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x.jpg"}}, {"type": "text", "text": "\nq"}]}, {"role": "assistant", "content": "a"}]}"#,
        r#"{"messages": [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "\nq"}]}, {"role": "assistant", "content": "a"}], "image": "x.jpg"}"#,
        r#"{"messages": [{"role": "user", "content": [{"image": "x.jpg"}, {"text": "\nq"}]}, {"role": "assistant", "content": "a"}]}"#,
        r#"{"messages": [{"role": "user", "content": "q", "images": ["x.jpg"]}, {"role": "assistant", "content": "a"}]}"#,
        r#"{"query": "q", "response": "a", "images": ["x.jpg"]}"#,
        r#"{"question": "q", "answer": "a", "image_path": "x.jpg"}"#,
        r#"{"question": "<image>\nq", "answers": ["a", "b"], "image_file": "x.jpg"}"#,
        r#"{"instruction": "q", "input": "", "output": "a", "image": ["x.jpg"]}"#,
        r#"{"prompt": "q", "completion": "a", "picture": "x.jpg"}"#,
        r#"{"prompt": [{"role": "user", "content": "q"}], "completion": [{"role": "assistant", "content": "a"}], "images": ["x.jpg"]}"#,
        r#"{"texts": [{"user": "q", "assistant": "a", "source": "s"}], "images": ["x.jpg"]}"#,
        r#"{"Question": "q", "Answer": "a", "Image": "x.jpg"}"#,
        r#"{"conversations": [{"from": "human", "value": "<ImageHere>\nq"}, {"from": "bot", "value": "a"}], "photo": "x.jpg"}"#,
        r#"{"conversations": [{"from": "human", "value": "<img>x.jpg</img>\nq"}, {"from": "model", "value": "a"}]}"#,
        r#"{"conversations": [{"from": "human", "value": "q"}, {"from": "chatgpt", "value": "a"}], "pixel_values_path": "x.jpg"}"#,
        r#"{"conversations": [{"from": "human", "value": "q"}, {"from": "gpt", "value": "a"}], "image": {"path": "x.jpg", "bytes": null}}"#,
        r#"{"conversations": [{"from": "human", "value": "q"}, {"from": "gpt", "value": "a"}], "image": "x.jpg", "images": ["x.jpg"], "video": null, "url": "http://h/x.jpg"}"#,
    ] {
        let row = row(text);
        assert_eq!(texts(&row), [("user", "<image>\nq"), ("assistant", "a")], "{text}");
        assert_eq!(names(&row), ["x.jpg"], "{text}");
    }
}

#[test]
fn captions_systems_histories_and_tools_are_turns() {
    for (text, expected) in [
        (r#"{"image": "x.jpg", "caption": "c"}"#, vec![("user", "<image>"), ("assistant", "c")]),
        (r#"{"file_name": "x.jpg", "text": "c"}"#, vec![("user", "<image>"), ("assistant", "c")]),
        (
            r#"{"system": "s", "instruction": "q", "input": "i", "output": "a"}"#,
            vec![("system", "s"), ("user", "q\ni"), ("assistant", "a")],
        ),
        (
            r#"{"query": "q", "response": "a", "history": [["p", "b"]]}"#,
            vec![("user", "p"), ("assistant", "b"), ("user", "q"), ("assistant", "a")],
        ),
        (
            r#"{"conversations": [{"from": "human", "value": "q"}, {"from": "function_call", "value": "f"}, {"from": "observation", "value": "o"}, {"from": "gpt", "value": 3.5}]}"#,
            vec![("user", "q"), ("assistant", "f"), ("tool", "o"), ("assistant", "3.5")],
        ),
        (
            r#"{"conversations": [{"human": "q", "assistant": "a"}]}"#,
            vec![("user", "q"), ("assistant", "a")],
        ),
        (
            r#"{"messages": [{"role": "developer", "content": "s"}, {"role": "HUMAN", "content": ""}, {"role": "Bing", "content": ""}]}"#,
            vec![("system", "s"), ("user", ""), ("assistant", "")],
        ),
    ] {
        assert_eq!(texts(&row(text)), expected, "{text}");
    }
}

#[test]
fn a_tag_in_an_answer_is_text() {
    let asked = r#"{"conversations": [{"content": "<image>\nq"}, {"content": "see <image>"}], "image": "x.jpg"}"#;
    assert_eq!(row(asked).num_image_tags(), 1);
    let untagged =
        r#"{"conversations": [{"content": "q"}, {"content": "see <image>"}], "image": "x.jpg"}"#;
    assert_eq!(row(untagged).turns[0].content, "<image>\nq");
    assert_eq!(row(untagged).turns[1].content, "see <image>");
}

#[test]
fn images_within_the_row_are_decoded() {
    let bytes = png(9);
    let text = base64::encode(&bytes);
    for image in [
        format!("\"data:image/png;base64,{text}\""),
        format!("\"{text}\""),
        format!("[\"data:image/png;base64,{text}\"]"),
        format!("{{\"bytes\": \"{text}\"}}"),
        format!("{{\"url\": \"data:image/png;base64,{}\"}}", text.trim_end_matches('=')),
    ] {
        let row = row(&format!(r#"{{"query": "q", "response": "a", "image": {image}}}"#));
        assert_eq!(row.images.len(), 1, "{image}");
        assert_eq!(row.images[0].bytes.as_deref(), Some(&bytes[..]), "{image}");
        assert!(row.images[0].name.len() < 100, "{}", row.images[0].name);
    }
    // MiniMind-V's rows of text alone carry a black image of 8 × 8 pixels.
    let text = base64::encode(&png(8));
    let with = |question: &str| {
        let image = format!("data:image/png;base64,{text}");
        row(&format!(r#"{{"query": "{question}", "response": "a", "image": "{image}"}}"#))
    };
    assert_eq!((with("q").images.len(), with("q").turns[0].content.as_str()), (0, "q"));
    assert_eq!(with("<image>q").images.len(), 1, "where the text shows it, it is an image");
}

#[test]
fn what_is_declared_and_cannot_be_used_rejects_the_row_by_name() {
    for (rest, reason, named) in [
        (r#""video": "v.mp4""#, RejectReason::UnsupportedMedia, "\"video\""),
        (r#""videos": ["v.mp4"], "image": "x.jpg""#, RejectReason::UnsupportedMedia, "\"videos\""),
        (
            r#""audio": {"path": "s.wav", "bytes": null}"#,
            RejectReason::UnsupportedMedia,
            "\"audio\"",
        ),
        (r#""depiction": "x.jpg""#, RejectReason::AmbiguousImages, "\"depiction\""),
        (r#""image": "x.jpg", "mask": "m.png""#, RejectReason::AmbiguousImages, "\"mask\""),
        (
            r#""image": "x.jpg", "images": ["y.jpg", "z.jpg"]"#,
            RejectReason::AmbiguousImages,
            "\"image\"",
        ),
        (r#""image": 7"#, RejectReason::InvalidRow, "a number"),
        (r#""pixel_values": [[0.1]]"#, RejectReason::InvalidRow, "\"pixel_values\""),
        (r#""image": "data:image/png;base64,???""#, RejectReason::UnreadableImage, "base64"),
        (r#""images": [null]"#, RejectReason::InvalidRow, "null"),
    ] {
        let text = format!(r#"{{"query": "q", "response": "a", {rest}}}"#);
        let expected_null = rest.contains("[null]");
        match Row::from_json(&text) {
            // Nothing but nulls is nothing.
            Ok(row) => assert!(expected_null && row.images.is_empty(), "{text}"),
            Err(reject) => {
                assert_eq!(reject.reason, reason, "{text}: {reject}");
                assert!(reject.detail.contains(named), "{text}: {reject}");
            }
        }
    }
    for (text, named) in [
        (r#"{"question": "q", "choices": ["a", "b"], "answer": "a"}"#, "\"choices\""),
        (r#"{"prompt": "q", "chosen": "a", "rejected": "b"}"#, "preference"),
        (
            r#"{"messages": [{"role": "user", "content": [{"type": "video", "video": "v.mp4"}]}]}"#,
            "video",
        ),
        (
            r#"{"messages": [{"role": "assistant", "content": null, "tool_calls": [{"id": 1}]}]}"#,
            "tool",
        ),
        (r#"{"conversations": "[{'from': 'human'}]"}"#, "json.dumps"),
    ] {
        let reject = Row::from_json(text).unwrap_err();
        assert!(reject.detail.contains(named), "{text}: {reject}");
    }
}

#[test]
fn numbered_and_sided_keys_are_one_rows_images_in_order() {
    let of = |images: &str| row(&format!(r#"{{"query": "q", "response": "a", {images}}}"#));
    assert_eq!(names(&of(r#""image_2": "b.jpg", "image_1": "a.jpg""#)), ["a.jpg", "b.jpg"]);
    assert_eq!(names(&of(r#""right_image": "b.jpg", "left_image": "a.jpg""#)), ["a.jpg", "b.jpg"]);
}

#[test]
fn a_name_with_a_comma_is_one_name_where_there_is_such_a_file() {
    let folder = tempfile::tempdir().unwrap();
    let write = |name: &str, text: &str| std::fs::write(folder.path().join(name), text).unwrap();
    write("Paris, France.jpg", "x");
    let row = |image: &str| format!(r#"{{"query": "q", "response": "a", "image": "{image}"}}"#);
    write("rows.jsonl", &[row("Paris, France.jpg"), row("a.jpg, b.jpg")].join("\n"));
    let source = open_source(&folder.path().join("rows.jsonl"), None).unwrap();
    assert_eq!(names(&source.row(0).unwrap()), ["Paris, France.jpg"]);
    assert_eq!(names(&source.row(1).unwrap()), ["a.jpg", "b.jpg"]);
}

#[test]
fn files_are_recognised_by_their_content_whatever_their_names() {
    let folder = tempfile::tempdir().unwrap();
    let row = |k: usize| format!(r#"{{"query": "q{k}", "response": "a", "score": NaN}}"#);
    let utf16: Vec<u8> = [0xfeff]
        .into_iter()
        .chain(format!("{}\r\n{}\r\n", row(0), row(1)).encode_utf16())
        .flat_map(u16::to_le_bytes)
        .collect();
    let csv = "image,caption\r\nx.jpg,\"one, \"\"two\"\"\"\r\ny.jpg,three\r\n";
    for (name, content) in [
        ("list.jsonl", format!("[\n  {},\n  {},\n]\n", row(0), row(1)).into_bytes()),
        ("lines.json", format!("{}\n{}", row(0), row(1)).into_bytes()),
        ("commas.jsonl", format!("{},\n{},\n", row(0), row(1)).into_bytes()),
        ("wrapped.json", format!("{{\"data\": [{}, {}]}}", row(0), row(1)).into_bytes()),
        ("pretty.txt", format!("{}\n{}", row(0), row(1)).replace(", ", ",\n ").into_bytes()),
        ("utf16.json", utf16),
        ("marked.jsonl", format!("\u{feff}{}\r\n\r\n{}\r\n", row(0), row(1)).into_bytes()),
        (
            "zstd.jsonl.zst",
            zstd::encode_all(format!("{}\n{}", row(0), row(1)).as_bytes(), 1).unwrap(),
        ),
        ("table", csv.into()),
        ("table.tsv", csv.replace(',', "\t").into()),
    ] {
        let path = folder.path().join(name);
        std::fs::write(&path, content).unwrap();
        let source = open_source(&path, None).unwrap_or_else(|e| panic!("{name}: {e}"));
        assert_eq!(source.len(), 2, "{name}");
        for k in 0..2 {
            let row = source.row(k).unwrap_or_else(|e| panic!("{name}: {e}"));
            assert_eq!(row.turns.len(), 2, "{name}");
            assert_eq!(source.describe().len(), 1, "{name}");
        }
    }
    let source = open_source(&folder.path().join("table"), None).unwrap();
    assert_eq!(source.row(0).unwrap().turns[1].content, "one, \"two\"");
    let one = folder.path().join("one.json");
    std::fs::write(&one, row(0)).unwrap();
    assert_eq!(open_source(&one, None).unwrap().len(), 1, "a single row");
}

#[test]
fn a_folder_of_files_is_one_data_set_with_its_images() {
    let folder = tempfile::tempdir().unwrap();
    let root = folder.path();
    for name in ["a/rows.jsonl", "b/rows.json", "images/sub/x.jpg", "README.md"] {
        std::fs::create_dir_all(root.join(name).parent().unwrap()).unwrap();
        std::fs::write(root.join(name), "image bytes").unwrap();
    }
    let row = r#"{"query": "q", "response": "a", "image": "sub/x.jpg"}"#;
    std::fs::write(root.join("a/rows.jsonl"), format!("{row}\n{row}\n")).unwrap();
    std::fs::write(root.join("b/rows.json"), format!("[{row}]")).unwrap();
    let source = open_source(root, None).unwrap();
    assert_eq!(source.len(), 3);
    for k in 0..3 {
        let row = source.row(k).unwrap();
        assert_eq!(source.image_bytes(k, 0, &row.images[0]).unwrap(), &b"image bytes"[..]);
    }
    std::fs::write(root.join("c.parquet"), "x").unwrap();
    let error = open_source(root, None).err().unwrap().to_string();
    assert!(error.contains("several kinds") && error.contains("c.parquet"), "{error}");
}

#[test]
fn a_row_longer_than_the_limit_is_rejected_unread() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("rows.jsonl");
    let row = |text: &str| format!(r#"{{"query": "{text}", "response": "a"}}"#);
    std::fs::write(&path, [row("q"), row(&"long ".repeat(100))].join("\n")).unwrap();
    let mut options = RowOptions::default();
    options.max_row_bytes = 100;
    let source = open_source_with(&path, None, &options).unwrap();
    assert!(source.row(0).is_ok());
    let reject = source.row(1).unwrap_err().reject().unwrap();
    assert!(reject.detail.contains("the limit is 100"), "{reject}");
}
