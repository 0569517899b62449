//! Follows runs, and answers the requests of the page.

use std::fs;
use std::path::{Path, PathBuf};

use serde_json::json;

use crate::page;
use crate::run_folder::{Images, RunFolder};

/// Several runs that are followed.
#[derive(Debug)]
pub struct Board {
    runs: Vec<RunFolder>,
    /// Grows with every change of a run.
    version: u64,
}

/// An answer to a request of the page.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Response {
    /// HTTP status: 200, 204 if nothing has changed, or 404.
    pub status: u16,
    /// Type of the content.
    pub content_type: &'static str,
    /// The content.
    pub body: Vec<u8>,
}

impl Board {
    /// Follows the runs in these folders. A folder without a run stands for the runs in its
    /// folders, or if there are none, for a run that has not begun.
    ///
    /// # Errors
    /// A path that is not a folder.
    pub fn open(paths: &[PathBuf]) -> Result<Self, String> {
        let mut folders: Vec<PathBuf> = Vec::new();
        for path in paths {
            let found = if RunFolder::is_run(path) { Vec::new() } else { runs_in(path)? };
            folders.extend(if found.is_empty() { vec![path.clone()] } else { found });
        }
        let mut seen = Vec::new();
        folders.retain(|path| {
            let path = path.canonicalize().unwrap_or_else(|_| path.clone());
            let is_new = !seen.contains(&path);
            seen.push(path);
            is_new
        });
        let base =
            |path: &PathBuf| path.file_name().map(|name| name.to_string_lossy().into_owned());
        let run = |path: &PathBuf| {
            let name = base(path);
            let is_unique = folders.iter().filter(|other| base(other) == name).count() == 1;
            let name = name.filter(|_| is_unique);
            RunFolder::new(path, name.unwrap_or_else(|| path.display().to_string()))
        };
        Ok(Self { runs: folders.iter().map(run).collect(), version: 0 })
    }

    /// Answers the request for `address`, the path of a URL with its query.
    pub fn respond(&mut self, address: &str) -> Response {
        let (path, query) = address.split_once('?').unwrap_or((address, ""));
        let number = |name: &str| -> Option<u64> {
            let mut pairs = query.split('&').filter_map(|pair| pair.split_once('='));
            pairs.find(|(key, _)| *key == name)?.1.parse().ok()
        };
        match path {
            "/" => Response::ok("text/html; charset=utf-8", page::live_html()),
            "/data" => self.data(number("version")),
            "/image" => {
                let run = number("run").and_then(|run| self.runs.get(usize::try_from(run).ok()?));
                let png = run.zip(number("row")).and_then(|(run, row)| run.image(row));
                png.map_or_else(Response::not_found, |png| Response::ok("image/png", png))
            }
            _ => Response::not_found(),
        }
    }

    /// All that the page shows; nothing if the page has it already.
    fn data(&mut self, known: Option<u64>) -> Response {
        let changes = self.runs.iter_mut().map(RunFolder::refresh).filter(|changed| *changed);
        self.version += changes.count() as u64;
        if known == Some(self.version) {
            return Response { status: 204, content_type: "application/json", body: Vec::new() };
        }
        let runs = self.runs.iter().enumerate();
        let runs: Vec<_> = runs.map(|(index, run)| run.to_json(Images::Served(index))).collect();
        let data = json!({ "version": self.version, "runs": runs });
        Response::ok("application/json", data.to_string())
    }
}

impl Response {
    fn ok(content_type: &'static str, body: impl Into<Vec<u8>>) -> Self {
        Self { status: 200, content_type, body: body.into() }
    }

    fn not_found() -> Self {
        Self { status: 404, content_type: "text/plain", body: b"not found\n".into() }
    }
}

/// The folders in `path` that hold a run, by name.
fn runs_in(path: &Path) -> Result<Vec<PathBuf>, String> {
    let entries = fs::read_dir(path).map_err(|error| {
        let path = path.display();
        format!("{path}: {error}; expected the out-dir of a run, or a folder with several of them")
    })?;
    let mut found: Vec<PathBuf> = entries
        .flatten()
        .map(|entry| entry.path())
        .filter(|path| RunFolder::is_run(path))
        .collect();
    found.sort();
    Ok(found)
}

#[cfg(test)]
mod tests {
    use serde_json::Value;

    use super::*;

    fn data(board: &mut Board, version: Option<u64>) -> Value {
        let query = version.map_or(String::new(), |version| format!("?version={version}"));
        let response = board.respond(&format!("/data{query}"));
        assert!([200, 204].contains(&response.status));
        serde_json::from_slice(&response.body).unwrap_or_default()
    }

    #[test]
    fn a_run_is_followed_from_an_empty_folder_to_its_removal() {
        let folder = tempfile::tempdir().unwrap();
        let out = folder.path().join("out");
        fs::create_dir(&out).unwrap();
        let mut board = Board::open(std::slice::from_ref(&out)).unwrap();
        let empty = data(&mut board, None);
        assert_eq!(empty["runs"][0]["steps"]["step"], json!([]));
        let version = empty["version"].as_u64();
        assert_eq!(data(&mut board, version), Value::Null, "nothing has changed");
        let config = json!({"run": {"stage": "sft", "data": {"data_path": ["d/a.jsonl"]},
                                    "model": {"lm": "x/lm.pth", "vision": "clip"}}});
        fs::write(out.join("config.json"), config.to_string()).unwrap();
        fs::write(out.join("metrics.jsonl"), "{\"step\":1,\"samples\":4,\"loss\":2.5}\n").unwrap();
        let running = data(&mut board, version);
        assert_eq!(running["runs"][0]["what"], "sft: lm.pth + clip on a.jsonl");
        assert_eq!(running["runs"][0]["steps"]["loss"]["mean"], json!([2.5]));
        assert_eq!(running["runs"][0]["ended"], Value::Null);
        let summary = json!({"status": "finished", "steps": 1});
        fs::write(out.join("summary.json"), summary.to_string()).unwrap();
        assert_eq!(data(&mut board, None)["runs"][0]["ended"], "finished");
        let version = data(&mut board, None)["version"].as_u64();
        fs::remove_dir_all(&out).unwrap();
        let removed = data(&mut board, version);
        assert_eq!(removed["runs"][0]["removed"], true);
        assert_eq!(removed["runs"][0]["steps"]["loss"]["mean"], json!([2.5]), "it is kept");
    }

    #[test]
    fn a_folder_of_runs_stands_for_its_runs_and_a_missing_one_is_named() {
        let folder = tempfile::tempdir().unwrap();
        for name in ["b", "a", "no-run"] {
            fs::create_dir(folder.path().join(name)).unwrap();
        }
        for name in ["a", "b"] {
            fs::write(folder.path().join(name).join("metrics.jsonl"), "").unwrap();
        }
        let twice = [folder.path().to_owned(), folder.path().join("a")];
        let mut board = Board::open(&twice).unwrap();
        let runs = data(&mut board, None)["runs"].take();
        let names: Vec<_> = runs.as_array().unwrap().iter().map(|run| &run["name"]).collect();
        assert_eq!(names.len(), 2, "{names:?}");
        assert_eq!(names[0], "a");
        let missing = Board::open(&[folder.path().join("nothere")]).unwrap_err();
        assert!(missing.contains("nothere: No such file") && missing.contains("out-dir"));
    }

    #[test]
    fn images_of_samples_are_served_by_row_and_nothing_else_is() {
        let folder = tempfile::tempdir().unwrap();
        fs::create_dir(folder.path().join("samples")).unwrap();
        fs::write(folder.path().join("samples/3.png"), "png").unwrap();
        let mut board = Board::open(&[folder.path().to_owned()]).unwrap();
        assert_eq!(board.respond("/image?run=0&row=3").body, b"png");
        for other in [
            "/image?run=1&row=3", "/image?run=0&row=4", "/image?run=0&row=../config", "/x",
            "/image",
        ] {
            assert_eq!(board.respond(other).status, 404, "{other}");
        }
        assert_eq!(board.respond("/").status, 200);
    }
}
