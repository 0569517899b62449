//! Files that would occupy a thread without end, fill the memory or make a reader panic: each is an
//! error that names the file.

use std::fs;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use crate::support::{Ended, Trial, demo_start, golden, json_lines, row, xtask};

/// The output of a command that must end within two minutes.
fn ended(mut command: Command) -> Ended {
    let output = command.stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = output.spawn().unwrap();
    let deadline = Instant::now() + Duration::from_secs(120);
    while child.try_wait().unwrap().is_none() {
        if Instant::now() > deadline {
            child.kill().unwrap();
            panic!("the program does not end: {command:?}");
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    let output = child.wait_with_output().unwrap();
    assert!(output.status.code().is_some(), "{}: {command:?}", output.status);
    Ended::of(&output)
}

/// The demo's tokenizer with text before its chat template, in a folder of the trial.
fn tokenizer(trial: &Trial, begin: &str) -> String {
    let folder = trial.path("tokenizer");
    fs::create_dir_all(&folder).unwrap();
    fs::copy(demo_start("tokenizer.json"), folder.join("tokenizer.json")).unwrap();
    let config = fs::read_to_string(demo_start("tokenizer_config.json")).unwrap();
    let mut config: serde_json::Value = serde_json::from_str(&config).unwrap();
    let template = config["chat_template"].as_str().unwrap().to_owned();
    config["chat_template"] = (begin.to_owned() + &template).into();
    fs::write(folder.join("tokenizer_config.json"), config.to_string()).unwrap();
    folder.display().to_string()
}

/// Three nested loops, and a text that is doubled sixty times.
fn endless_templates() -> [String; 2] {
    let loops = "{% for a in range(9999) %}{% for b in range(9999) %}{% for c in range(9999) %}\
                 {% endfor %}{% endfor %}{% endfor %}";
    [loops.to_owned(), "{% set x = 'xy' %}".to_owned() + &"{% set x = x + x %}".repeat(60)]
}

#[test]
fn a_chat_template_that_would_not_end_is_refused() {
    let long = "{% for a in range(20000) %}".to_owned() + &"long ".repeat(100) + "{% endfor %}";
    for template in endless_templates().into_iter().chain([long]) {
        let trial = Trial::new();
        let ended = ended(trial.command(&["--tokenizer", &tokenizer(&trial, &template)]));
        ended.assert_error(2, &["tokenizer", "the template does too much work"]);
        assert!(!trial.path("out").exists());
    }
}

#[test]
fn a_row_on_which_the_chat_template_would_not_end_is_rejected() {
    for template in endless_templates() {
        let trial = Trial::new();
        let rows = fs::read_to_string(trial.path("rows.jsonl")).unwrap();
        let slow = row("0.png", "A slow circle.");
        let rows: Vec<String> = rows.lines().map(str::to_owned).chain([slow]).collect();
        trial.write_rows(&rows);
        let only = "{% if messages[-1]['content'] == 'A slow circle.' %}";
        let tokenizer = tokenizer(&trial, &format!("{only}{template}{{% endif %}}"));
        let flags = ["--tokenizer", &tokenizer, "--max-rejected-fraction", "0.2"];
        ended(trial.command(&flags)).assert_success();
        let rejected = json_lines(&trial.path("out/rejected.jsonl"));
        assert_eq!(rejected.len(), 1, "{rejected:?}");
        assert!(rejected[0].to_string().contains("rows.jsonl:9"), "{rejected:?}");
        assert!(rejected[0].to_string().contains("too much work"), "{rejected:?}");
    }
}

#[test]
fn a_file_whose_compression_is_not_read_is_refused() {
    let trial = Trial::new();
    let rows = golden("parquet/brotli.parquet");
    let ended = ended(trial.command(&["--data-path", rows.to_str().unwrap()]));
    ended.assert_error(2, &["brotli.parquet", "BROTLI", "zstd"]);
    assert!(!trial.path("out").exists());
}

/// With this type of its first page the crate `parquet` unwraps a header that is not there.
#[test]
fn rows_of_a_page_that_makes_its_reader_panic_are_rejected_by_name() {
    let trial = Trial::new();
    let mut rows = fs::read(golden("parquet/flat.parquet")).unwrap();
    rows[5] = 0;
    let path = trial.path("rows.parquet");
    fs::write(&path, rows).unwrap();
    let flags = ["--data-path", path.to_str().unwrap(), "--max-rejected-fraction", "1"];
    let ended = ended(trial.command(&flags));
    ended.assert_success();
    assert!(!ended.stderr.contains("panicked"), "{}", ended.stderr);
    let rejected = json_lines(&trial.path("out/rejected.jsonl"));
    assert!(!rejected.is_empty());
    for row in rejected {
        let (location, detail) = (row["location"].to_string(), row["detail"].to_string());
        assert!(location.contains("rows.parquet["), "{location}");
        assert!(detail.contains("the file is damaged"), "{detail}");
    }
}

#[test]
fn a_manifest_with_an_impossible_number_of_rows_is_refused() {
    let trial = Trial::new();
    let shards = trial.path("shards");
    let mut command = Command::new(xtask());
    command.arg("prepare-data").arg("--input").arg(trial.path("rows.jsonl"));
    command.arg("--images-path").arg(trial.path("images")).arg("--output").arg(&shards);
    command.arg("--tokenizer").arg(demo_start("")).args(["--tokens-per-image", "196"]);
    Ended::of(&command.output().unwrap()).assert_success();
    let path = shards.join("manifest.json");
    let manifest = fs::read_to_string(&path).unwrap();
    // In the manifest, the number of all rows is before those of the shards.
    for (num_changed, number) in [(1, "1152921504606846976"), (2, "18446744073709551615")] {
        fs::write(
            &path,
            manifest.replacen("\"num_rows\": 8", &format!("\"num_rows\": {number}"), num_changed),
        )
        .unwrap();
        let flags = ["--data-path", shards.to_str().unwrap()];
        ended(trial.command(&flags)).assert_error(2, &["manifest.json", number]);
        assert!(!trial.path("out").exists());
    }
}
