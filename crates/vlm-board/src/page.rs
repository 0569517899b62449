//! The page's text: its template, style, program and library for charts in one file that loads
//! nothing from elsewhere.

use std::path::Path;

use serde_json::{Value, json};

use crate::run_folder::{Images, RunFolder};

const TEMPLATE: &str = include_str!("../assets/page.html");
const STYLE: &str = include_str!("../assets/page.css");
const PROGRAM: &str = include_str!("../assets/page.js");
/// uPlot 1.6.32, whose licence asks for its text in every copy.
const CHARTS_PROGRAM: &str = include_str!("../assets/uplot/uPlot.iife.min.js");
const CHARTS_STYLE: &str = include_str!("../assets/uplot/uPlot.min.css");
const CHARTS_LICENCE: &str = include_str!("../assets/uplot/LICENSE");

/// The page of a board, which asks for its data.
pub(crate) fn live_html() -> String {
    html("vlm board", &Value::Null)
}

/// The page about the run in `out_dir`, with its data inside. It shows what the folder holds:
/// `metrics.jsonl`, `samples.jsonl` with the images in `samples`, `rejected.jsonl`, `config.json`,
/// `summary.json` and [`HELD_OUT_FILE`](crate::HELD_OUT_FILE). A file that cannot be read is named
/// in the page.
pub fn report_html(out_dir: &Path) -> String {
    let path = std::path::absolute(out_dir).unwrap_or_else(|_| out_dir.to_owned());
    let name = path.file_name().map_or("run".into(), |name| name.to_string_lossy());
    let mut run = RunFolder::new(out_dir, name.into_owned());
    run.refresh();
    let title = run.what().map_or(String::new(), |what| format!(" · {what}"));
    let title = format!("{}{title}", run.name());
    html(&title, &json!({ "runs": [run.to_json(Images::Embedded)] }))
}

/// The template with its parts in the places of their names.
fn html(title: &str, data: &Value) -> String {
    // In JSON, `<` occurs in strings only; this way none of them ends the script element.
    let data = data.to_string().replace('<', "\\u003c");
    let title = title.replace('&', "&amp;").replace('<', "&lt;");
    let mut page = String::new();
    for (index, part) in TEMPLATE.split("@@").enumerate() {
        page += match part {
            "TITLE" => &title,
            "STYLE" => STYLE,
            "CHARTS_STYLE" => CHARTS_STYLE,
            "CHARTS_LICENCE" => CHARTS_LICENCE,
            "CHARTS_PROGRAM" => CHARTS_PROGRAM,
            "PROGRAM" => PROGRAM,
            "DATA" => &data,
            text => {
                debug_assert!(index % 2 == 0, "the template names an unknown part: {text}");
                text
            }
        };
    }
    page
}

#[cfg(test)]
mod tests {
    use std::fs;

    use vlm_display::{Align, Table};

    use super::*;
    use crate::{Example, HELD_OUT_FILE, HeldOutSection};

    #[test]
    fn the_report_holds_its_data_and_fetches_nothing() {
        let folder = tempfile::tempdir().unwrap();
        let out = folder.path().join("first");
        fs::create_dir_all(out.join("samples")).unwrap();
        let write = |name: &str, text: &str| fs::write(out.join(name), text).unwrap();
        write("metrics.jsonl", "{\"step\":1,\"samples\":4,\"loss\":2.5}\nbroken\n");
        write("summary.json", "{\"status\":\"finished\",\"steps\":1}");
        write("config.json", "{\"run\":{\"stage\":\"sft\",\"note\":\"</script><b>\"}}");
        write("samples/0.png", "png");
        let sample = json!({"step": 1, "row": 0, "location": "a:1", "question": "What?",
                            "expected": "A star.", "generated": "A ring."});
        write("samples.jsonl", &format!("{sample}\n"));
        let mut scores = Table::new(&[Align::Right]).with_head(&["rows"]);
        scores.push(&[&"95.0%"]);
        let example = Example {
            png: b"other".into(),
            prompt: "Where?".into(),
            expected: "Left.".into(),
            generated: "Right.".into(),
        };
        let held_out = HeldOutSection { scores, examples: vec![example] };
        write(HELD_OUT_FILE, &serde_json::to_string(&held_out).unwrap());
        let page = report_html(&out);
        for part in [
            "<title>first · sft: ", "metrics.jsonl line 2", "data:image/png;base64,cG5n",
            "data:image/png;base64,b3RoZXI=", "95.0%", "Right.", "\\u003c/script>\\u003cb>",
            "Permission is hereby granted",
        ] {
            assert!(page.contains(part), "{part} is not in the page");
        }
        for link in [" src=\"", " href=\"", "@import", "url(", "@@"] {
            assert!(!page.contains(link), "the page has {link}");
        }
        assert_eq!(page.matches("</script>").count(), 3);
    }
}
