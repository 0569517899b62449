//! What shows a training: the board, the report, the log, the commands that are named at the end.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::process::{Child, Stdio};

use serde_json::Value;

use crate::support::{Trial, program, vlm};

/// `vlm board`, ended when this is dropped.
struct Board {
    child: Child,
    address: String,
}

impl Board {
    fn start(trial: &Trial) -> Self {
        let mut command = program();
        command.arg("board").arg(trial.path("out")).args(["--port", "0"]);
        let mut child = command.stdout(Stdio::piped()).spawn().unwrap();
        let mut line = String::new();
        BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
        let address = line.strip_prefix("http://").unwrap().split(' ').next().unwrap().to_owned();
        Self { child, address }
    }

    /// The status and the body of the answer.
    fn get(&self, path: &str, host: &str) -> (u16, String) {
        let mut stream = TcpStream::connect(&self.address).unwrap();
        write!(stream, "GET {path} HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n").unwrap();
        let mut answer = Vec::new();
        stream.read_to_end(&mut answer).unwrap();
        let answer = String::from_utf8_lossy(&answer);
        let (head, body) = answer.split_once("\r\n\r\n").unwrap();
        (head.split(' ').nth(1).unwrap().parse().unwrap(), body.to_owned())
    }
}

impl Drop for Board {
    fn drop(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }
}

#[test]
fn board_and_report_show_a_run_with_its_samples_and_their_images() {
    let trial = Trial::new();
    let rows = trial.path("rows.jsonl");
    let evaluation = ["--eval-data", rows.to_str().unwrap(), "--eval-samples", "2"];
    let ended = trial.pretrain(&evaluation);
    ended.assert_success();
    for part in ["next:", "vlm eval --model", "vlm generate --model", "vlm serve"] {
        assert!(ended.stdout.contains(part), "{}", ended.stdout);
    }
    assert!(ended.stderr.contains("step 1/2  epoch 1/1  loss"), "{}", ended.stderr);

    let image = std::fs::read(trial.path("out/samples/1.png")).unwrap();
    assert!(image.starts_with(b"\x89PNG"));
    let report = std::fs::read_to_string(trial.path("out/report.html")).unwrap();
    assert_eq!(report.matches("\"data:image/png;base64,").count(), 2);

    let board = Board::start(&trial);
    let (status, page) = board.get("/", &board.address);
    assert_eq!((status, page.contains("uPlot")), (200, true));
    let (status, data) = board.get("/data", "localhost");
    let data: Value = serde_json::from_str(&data).unwrap();
    let run = &data["runs"][0];
    assert_eq!((status, &run["ended"]), (200, &"finished".into()), "{run}");
    assert_eq!(run["steps"]["loss"]["mean"].as_array().unwrap().len(), 2);
    assert_eq!(run["config"]["last_step"], 2);
    let address = run["samples"][1]["image"].as_str().unwrap();
    assert_eq!(board.get(&format!("/{address}"), &board.address).0, 200);
    let version = data["version"].as_u64().unwrap();
    assert_eq!(board.get(&format!("/data?version={version}"), &board.address).0, 204);
    assert_eq!(board.get("/data", "elsewhere.example").0, 403, "a name of another site");
    assert_eq!(board.get("/../config.json", &board.address).0, 404);
}

#[test]
fn a_folder_that_does_not_exist_is_named_by_the_board() {
    vlm(&["board", "nothere"]).assert_error(2, &["nothere", "expected the out-dir of a run"]);
}

#[test]
fn the_log_in_json_has_an_object_a_line_with_the_metrics() {
    let trial = Trial::new();
    let ended = trial.pretrain(&["--log-format", "json"]);
    ended.assert_success();
    let parse =
        |line: &str| serde_json::from_str::<Value>(line).unwrap_or_else(|e| panic!("{e}: {line}"));
    let lines: Vec<Value> = ended.stderr.lines().map(parse).collect();
    let metrics: Vec<&Value> = lines.iter().filter(|line| line["message"] == "metrics").collect();
    assert_eq!(
        metrics.iter().map(|line| line["step"].as_u64()).collect::<Vec<_>>(),
        [Some(1), Some(2)]
    );
    assert_eq!(metrics[1]["loss"], trial.metrics()[1]["loss"]);
    let ended = vlm(&["pretrain", "--log-format", "json", "--data-path", "nothere.jsonl"]);
    let last: Value = serde_json::from_str(ended.stderr.lines().last().unwrap()).unwrap();
    assert_eq!(last["level"], "ERROR");
    assert!(last["message"].as_str().unwrap().contains("nothere.jsonl"), "{last}");
}

#[test]
fn the_version_names_libtorch_and_the_devices() {
    let ended = vlm(&["--version"]);
    ended.assert_success();
    for part in ["vlm ", "libtorch 2.", "devices: CPU"] {
        assert!(ended.stdout.contains(part), "{}", ended.stdout);
    }
}
