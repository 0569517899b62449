//! The page's text: HTML with its style inside, for light and dark screens.

use super::chart::escape;
use super::{Example, Table};

const STYLE: &str = "
:root { --paper:#fafaf8; --card:#fff; --ink:#1c1e21; --soft:#6b7077; --rule:#e3e4e0; --mark:#2f6fb3;
        --band:#2f6fb333; --good:#19784a; --wait:#a0651b; }
@media (prefers-color-scheme: dark) {
  :root { --paper:#15171a; --card:#1d2024; --ink:#e7e8ea; --soft:#9aa0a8; --rule:#30343a;
          --mark:#6fb1f2; --band:#6fb1f233; --good:#5cc78f; --wait:#e0a458; } }
* { box-sizing:border-box; }
body { margin:0 auto; padding:2.5rem 1.5rem 4rem; max-width:72rem; background:var(--paper);
       color:var(--ink); font:15px/1.5 system-ui, 'Segoe UI', Roboto, 'Noto Sans', sans-serif; }
header { display:flex; align-items:baseline; gap:.9rem; margin-bottom:1.2rem; }
h1 { font-size:1.7rem; margin:0; letter-spacing:-.01em; }
h2 { font-size:1.05rem; margin:2.4rem 0 .8rem; }
.status { font-size:.85rem; font-weight:600; color:var(--wait); }
.status.finished { color:var(--good); }
.tiles { display:grid; grid-template-columns:repeat(auto-fill, minmax(10.5rem, 1fr)); gap:.7rem; }
.tile, figure, .scroll { background:var(--card); border:1px solid var(--rule); border-radius:8px; }
.tile { padding:.7rem .9rem; }
.tile b { display:block; font-size:1.3rem; font-weight:600; font-variant-numeric:tabular-nums; }
.tile span { color:var(--soft); font-size:.82rem; }
.charts { display:grid; grid-template-columns:repeat(auto-fit, minmax(min(100%, 26rem), 1fr));
          gap:.9rem; }
figure { margin:0; padding:.8rem .9rem .5rem; }
figcaption { font-weight:600; font-size:.92rem; }
figcaption small { color:var(--soft); font-weight:400; margin-left:.4rem; }
svg { display:block; width:100%; height:auto; margin-top:.3rem; }
svg text { fill:var(--soft); font-size:11px; font-variant-numeric:tabular-nums; }
.grid { stroke:var(--rule); stroke-width:1; }
.raw { fill:none; stroke:var(--mark); stroke-width:1; opacity:.35; }
.line { fill:none; stroke:var(--mark); stroke-width:1.8; stroke-linejoin:round; }
.band { fill:var(--band); stroke:none; }
.scroll { overflow-x:auto; }
table { border-collapse:collapse; width:100%; font-size:.86rem; }
th, td { text-align:left; padding:.32rem .9rem; border-bottom:1px solid var(--rule);
         vertical-align:top; overflow-wrap:anywhere; }
tr:last-child td { border-bottom:0; }
th { color:var(--soft); font-weight:500; }
td:first-child { white-space:nowrap; width:1%; padding-right:2rem; }
td { font-variant-numeric:tabular-nums; }
.examples { display:grid; grid-template-columns:repeat(auto-fill, minmax(11rem, 1fr)); gap:.7rem;
            margin-top:.9rem; }
.examples img { display:block; width:100%; border-radius:4px; margin-bottom:.4rem; }
.examples small, .examples b { display:block; margin:0; font-weight:400; }
.right { color:var(--good); }
.wrong { color:var(--wait); }
.note { color:var(--soft); font-size:.86rem; }
@media print { body { padding:0; } figure, .tile { break-inside:avoid; } }
";

/// A page that grows from top to bottom.
pub(super) struct Page(String);

impl Page {
    /// The head, with the run's name and how it ended.
    pub fn new(name: &str, status: &str) -> Self {
        let (name, status) = (escape(name), escape(status));
        Self(format!(
            "<!doctype html>\n<html lang=\"en\">\n<meta charset=\"utf-8\">\n\
             <meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">\n\
             <title>{name}: {status}</title>\n<style>{STYLE}</style>\n\
             <header><h1>{name}</h1><span class=\"status {status}\">{status}</span></header>\n"
        ))
    }

    /// Large numbers with their labels.
    pub fn tiles(&mut self, tiles: &[(String, String)]) {
        let tile = |(label, value): &(String, String)| {
            format!(
                "<div class=\"tile\"><b>{}</b><span>{}</span></div>\n",
                escape(value),
                escape(label)
            )
        };
        let tiles: String = tiles.iter().map(tile).collect();
        self.0 += &format!("<div class=\"tiles\">\n{tiles}</div>\n");
    }

    /// A heading.
    pub fn section(&mut self, title: &str) {
        self.0 += &format!("<h2>{}</h2>\n", escape(title));
    }

    /// Figures side by side.
    pub fn charts(&mut self, charts: impl Iterator<Item = String>) {
        let charts: String = charts.collect();
        if charts.is_empty() {
            self.note("The log has too few lines to draw.");
        } else {
            self.0 += &format!("<div class=\"charts\">\n{charts}</div>\n");
        }
    }

    /// A table.
    pub fn table(&mut self, table: &Table) {
        let row = |cells: &[String], tag: &str| {
            let cell = |text: &String| format!("<{tag}>{}</{tag}>", escape(text));
            format!("<tr>{}</tr>\n", cells.iter().map(cell).collect::<String>())
        };
        let head = if table.head.is_empty() { String::new() } else { row(&table.head, "th") };
        let rows: String = table.rows.iter().map(|cells| row(cells, "td")).collect();
        self.0 += &format!("<div class=\"scroll\"><table>\n{head}{rows}</table></div>\n");
    }

    /// Images with the text that was generated for each, beside the expected one where they differ.
    pub fn examples(&mut self, examples: &[Example]) {
        let examples: String = examples.iter().map(example).collect();
        self.0 += &format!("<div class=\"examples\">\n{examples}</div>\n");
    }

    /// A remark.
    pub fn note(&mut self, text: &str) {
        self.0 += &format!("<p class=\"note\">{}</p>\n", escape(text));
    }

    /// The whole text.
    pub fn finish(self) -> String {
        self.0 + "</html>\n"
    }
}

fn example(example: &Example) -> String {
    let data = base64::encode(&example.png);
    let [prompt, expected, generated] =
        [&example.prompt, &example.expected, &example.generated].map(|text| escape(text));
    let (class, more) = if example.expected == example.generated {
        ("right", String::new())
    } else {
        ("wrong", format!("<small>expected: {expected}</small>"))
    };
    format!(
        "<figure><img alt=\"{expected}\" src=\"data:image/png;base64,{data}\">\
         <figcaption><small>{prompt}</small><b class=\"{class}\">{generated}</b>{more}\
         </figcaption></figure>\n"
    )
}
