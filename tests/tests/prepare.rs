//! Preparation of data sets in all formats, and training on raw and prepared data.

use std::fs;
use std::path::Path;
use std::process::Command;
use std::sync::Arc;

use vlm_data::{
    ChatTokenizer, ImageLimits, ImageProcessor, ImageStore, PrepareSettings, open_source, prepare,
    verify,
};

use crate::support::{Ended, Trial, demo_start, golden, json_lines, row, vlm, xtask};

/// Number of tokens per image with the small vision encoder.
const TOKENS_PER_IMAGE: usize = 196;

fn settings(output: &Path, num_workers: usize) -> PrepareSettings {
    PrepareSettings {
        row_options: vlm_data::RowOptions::default(),
        input_files: Vec::new(),
        tokenizer: Arc::new(ChatTokenizer::from_dir(&demo_start("")).unwrap()),
        tokens_per_image: TOKENS_PER_IMAGE,
        max_seq_len: 288,
        image_store: ImageStore::Original,
        limits: ImageLimits::default(),
        rows_per_shard: 5,
        max_rejected_fraction: 1.0,
        num_workers,
        output: output.to_owned(),
    }
}

fn prepare_rows(trial: &Trial, settings: &PrepareSettings) -> vlm_data::Manifest {
    let source = open_source(&trial.path("rows.jsonl"), Some(&trial.path("images"))).unwrap();
    prepare(&source, settings, &mut |_, _| ()).unwrap()
}

/// Names and bytes of all files in a folder.
fn files(folder: &Path) -> Vec<(String, Vec<u8>)> {
    let mut files: Vec<_> = fs::read_dir(folder)
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .map(|path| {
            (path.file_name().unwrap().to_string_lossy().into_owned(), fs::read(&path).unwrap())
        })
        .collect();
    files.sort();
    files
}

fn losses(trial: &Trial, data: &Path, out: &str, more: &[&str]) -> Vec<serde_json::Value> {
    let out = trial.path(out);
    let mut flags = vec!["--data-path", data.to_str().unwrap(), "--out-dir", out.to_str().unwrap()];
    flags.extend(more);
    trial.pretrain(&flags).assert_success();
    let lines = json_lines(&out.join("metrics.jsonl"));
    lines.iter().map(|line| line["loss"].clone()).collect()
}

#[test]
fn raw_and_prepared_rows_give_the_same_losses() {
    let trial = Trial::new();
    let rows = fs::read_to_string(trial.path("rows.jsonl")).unwrap();
    let list: Vec<&str> = rows.lines().collect();
    fs::write(trial.path("list.json"), format!("[{}]", list.join(",\n"))).unwrap();
    let manifest = prepare_rows(&trial, &settings(&trial.path("shards"), 2));
    assert_eq!((manifest.num_rows, manifest.shards.len()), (8, 2));
    let processor = golden("vision_tower/preprocessor_config.json");
    let processor = Arc::new(ImageProcessor::from_file(&processor).unwrap());
    let resized = PrepareSettings {
        image_store: ImageStore::Resized(processor),
        ..settings(&trial.path("resized"), 2)
    };
    prepare_rows(&trial, &resized);

    let expected = losses(&trial, &trial.path("rows.jsonl"), "out-rows", &[]);
    assert_eq!(expected.len(), 2);
    for data in ["list.json", "shards", "resized"] {
        let found = losses(&trial, &trial.path(data), &format!("out-{data}"), &[]);
        assert_eq!(found, expected, "{data}");
    }
}

#[test]
fn prepared_bytes_do_not_depend_on_threads_or_interruptions() {
    let trial = Trial::new();
    let mut rows: Vec<String> =
        (0..23).map(|k| row(&format!("{}.png", k % 8), "A circle.")).collect();
    rows[7] = row("missing.png", "A circle.");
    rows[13] = "{\"conversations\": [".into();
    trial.write_rows(&rows);
    let manifest = prepare_rows(&trial, &settings(&trial.path("one"), 1));
    assert_eq!((manifest.num_rows, manifest.num_source_rows), (21, 23));
    verify(&manifest, &trial.path("one")).unwrap();
    let expected = files(&trial.path("one"));
    let rejected = json_lines(&trial.path("one/rejected.jsonl"));
    assert_eq!(rejected[0]["row"], 7);
    assert_eq!(rejected[1]["reason"], "invalid-row");
    prepare_rows(&trial, &settings(&trial.path("four"), 4));
    assert!(files(&trial.path("four")) == expected);

    // A panic in the middle of the third shard stops it, like a kill.
    let broken = settings(&trial.path("broken"), 2);
    let source = open_source(&trial.path("rows.jsonl"), Some(&trial.path("images"))).unwrap();
    let stopped = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
        prepare(&source, &broken, &mut |done, _| assert!(done < 13, "stop"))
    }));
    assert!(stopped.is_err() && !trial.path("broken/manifest.json").exists());
    let changed = PrepareSettings {
        input_files: vec!["rows.jsonl: changed".into()],
        ..settings(&trial.path("broken"), 2)
    };
    let refused = prepare(&source, &changed, &mut |_, _| ()).unwrap_err().to_string();
    assert!(refused.contains("another input"), "{refused}");
    let mut started_at = None;
    prepare(&source, &broken, &mut |done, _| {
        started_at.get_or_insert(done);
    })
    .unwrap();
    assert_eq!(started_at, Some(10), "two shards are kept");
    assert!(files(&trial.path("broken")) == expected);
    // Repeating the preparation changes nothing; other settings are refused.
    prepare_rows(&trial, &broken);
    let other = PrepareSettings { max_seq_len: 280, ..settings(&trial.path("broken"), 2) };
    let refused = prepare(&source, &other, &mut |_, _| ()).unwrap_err().to_string();
    assert!(refused.contains("other settings"), "{refused}");
    assert!(files(&trial.path("broken")) == expected);
}

#[test]
fn data_prepared_for_another_encoder_is_refused() {
    let trial = Trial::new();
    let other = PrepareSettings { tokens_per_image: 49, ..settings(&trial.path("shards"), 2) };
    prepare_rows(&trial, &other);
    let shards = trial.path("shards");
    let flags = ["--data-path", shards.to_str().unwrap()];
    trial.pretrain(&flags).assert_error(2, &["shards", "49 tokens per image", "196"]);
    assert!(!trial.path("out").exists());
}

#[test]
fn inspect_describes_a_prepared_data_set() {
    let trial = Trial::new();
    prepare_rows(&trial, &settings(&trial.path("shards"), 2));
    let ended = vlm(&["inspect", trial.path("shards").to_str().unwrap()]);
    ended.assert_success();
    for part in ["8 of 8", "supervised", "padding", "shorter side 48"] {
        assert!(ended.stdout.contains(part), "{part}: {}", ended.stdout);
    }
}

#[test]
fn all_formats_of_a_data_set_give_the_same_losses() {
    let trial = Trial::new();
    let run = |args: &[&str]| {
        let output = Command::new(xtask()).args(args).output().unwrap();
        Ended::of(&output).assert_success();
    };
    let path = |name: &str| trial.path(name).display().to_string();
    for form in ["jsonl", "llava", "parquet"] {
        let output = path(form);
        let made = ["bench", "make-dataset", "--rows", "24", "--text-share", "0.2", "--output"];
        run(&[&made[..], &[output.as_str(), "--form", form, "--picture-side", "40"]].concat());
    }
    let (parquet, shards) = (path("parquet/rows.parquet"), path("shards"));
    let (tokenizer, tokens) = (demo_start(""), TOKENS_PER_IMAGE.to_string());
    let prepared = ["prepare-data", "--input", &parquet, "--output", &shards, "--tokenizer"];
    let more = [tokenizer.to_str().unwrap(), "--tokens-per-image", &tokens];
    run(&[&prepared[..], &more].concat());
    // The rows have different lengths; the windows that put similar ones together are the same for
    // every format.
    let flags = ["--max-seq-len", "640", "--bucket-window", "12", "--images-path"];
    let train = |data: &str, images: &str| {
        let images = path(images);
        losses(
            &trial,
            &trial.path(data),
            &format!("out-{}", data.replace('/', "-")),
            &[&flags[..], &[images.as_str()]].concat(),
        )
    };
    let expected = train("jsonl/rows.jsonl", "jsonl");
    assert_eq!(expected.len(), 6);
    for (data, images) in
        [("llava/rows.json", "llava"), ("parquet/rows.parquet", "parquet"), ("shards", "jsonl")]
    {
        assert_eq!(train(data, images), expected, "{data}");
    }
}

#[test]
fn verify_finds_a_changed_shard_and_opening_finds_a_truncated_one() {
    let trial = Trial::new();
    prepare_rows(&trial, &settings(&trial.path("shards"), 2));
    let shards = trial.path("shards").display().to_string();
    let ended = vlm(&["inspect", &shards, "--verify"]);
    ended.assert_success();
    assert!(ended.stderr.contains("verified: 2 shards"), "{}", ended.stderr);
    let shard = trial.path("shards/shard-00001.arrow");
    let mut bytes = fs::read(&shard).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    fs::write(&shard, &bytes).unwrap();
    vlm(&["inspect", &shards, "--verify"]).assert_error(1, &["shard-00001.arrow", "BLAKE3"]);
    fs::write(&shard, &bytes[..middle]).unwrap();
    trial.pretrain(&["--data-path", &shards]).assert_error(2, &["shard-00001.arrow", "expected"]);
    vlm(&["inspect", &trial.path("images").display().to_string(), "--verify"])
        .assert_error(2, &["--verify"]);
}

#[test]
fn preparation_fails_on_a_full_disk_and_can_be_continued() {
    let trial = Trial::new();
    let shards = trial.path("shards");
    // Files are limited to 2 · 512 bytes, which has the same effect as a full disk.
    let prepare = |limit: &str| {
        let shell = format!("trap '' XFSZ; {limit} exec \"$0\" \"$@\"");
        let mut command = Command::new("sh");
        command.arg("-c").arg(shell).arg(xtask()).arg("prepare-data");
        command.arg("--input").arg(trial.path("rows.jsonl"));
        command.arg("--images-path").arg(trial.path("images"));
        Ended::of(&command.arg("--output").arg(&shards).output().unwrap())
    };
    prepare("ulimit -f 2;").assert_error(1, &["shard-00000.arrow", "cannot write"]);
    assert!(!shards.join("manifest.json").exists());
    prepare("").assert_success();
    assert!(shards.join("manifest.json").exists());
}

#[test]
#[cfg(target_os = "linux")]
fn a_disk_failure_while_reading_an_image_does_not_reject_its_row() {
    let trial = Trial::new();
    let text = serde_json::json!({"conversations": [
        {"role": "user", "content": "Hello."},
        {"role": "assistant", "content": "Good day."},
    ]});
    // The file `mem` of a process can be opened, but not read at its beginning.
    let mut rows = vec![text.to_string(); 20];
    rows[17] = row("mem", "A circle.");
    trial.write_rows(&rows);
    let path = |name: &str| trial.path(name).display().to_string();
    let (input, output) = (path("rows.jsonl"), path("shards"));
    let prepare = |images: &str| {
        let flags = ["prepare-data", "--input", &input, "--output", &output, "--images-path"];
        let more = [images, "--rows-per-shard", "3", "--tokenizer"];
        let mut command = Command::new(xtask());
        command.args(flags).args(more).arg(demo_start(""));
        Ended::of(&command.args(["--tokens-per-image", "196"]).output().unwrap())
    };
    let message = ["rows.jsonl:18", "/mem: cannot read the image", "the same command again"];
    prepare("/proc/self").assert_error(1, &message);
    assert!(trial.path("shards/shard-00004.arrow").exists(), "finished shards are kept");
    assert!(!trial.path("shards/manifest.json").exists());
    let flags = ["--images-path", "/proc/self", "--no-shuffle", "--save-interval", "1"];
    trial.pretrain(&[&flags[..], &["--batch-size", "3"]].concat()).assert_error(1, &message);
    assert_eq!(trial.metrics().len(), 5, "the steps before the failure");
    assert!(trial.path("out/checkpoints/step-00000005").exists());
    assert_eq!(fs::read_to_string(trial.path("out/rejected.jsonl")).unwrap(), "");
    let (features, vision) = (path("features"), golden("vision_tower").display().to_string());
    let cache = ["cache-features", "--data-path", &input, "--images-path", "/proc/self"];
    let more = ["--vision", &vision, "--output", &features, "--device", "cpu"];
    vlm(&[&cache[..], &more].concat()).assert_error(1, &message);

    // Both continue after the file can be read again.
    fs::copy(trial.path("images/0.png"), trial.path("images/mem")).unwrap();
    prepare(&path("images")).assert_success();
    let manifest = fs::read_to_string(trial.path("shards/manifest.json")).unwrap();
    let manifest: serde_json::Value = serde_json::from_str(&manifest).unwrap();
    assert_eq!(
        (&manifest["num_rows"], &manifest["rejected"]),
        (&20.into(), &serde_json::json!({}))
    );
    let more = ["--no-shuffle", "--batch-size", "3", "--resume", "auto"];
    trial.pretrain(&more).assert_success();
    assert_eq!(trial.summary()["steps"], 7);
}

#[test]
fn data_is_prepared_with_the_configuration_file_of_a_run() {
    let trial = Trial::new();
    let path = |name: &str| trial.path(name).display().to_string();
    let file = path("run.toml");
    let write = |more: &str| {
        let (rows, images, tokenizer) = (path("rows.jsonl"), path("images"), demo_start(""));
        let text = format!(
            "data-path = {rows:?}\nimages-path = {images:?}\ntokenizer = {tokenizer:?}\nvision = \
             {:?}\nprojector = \"pixel-shuffle\"\nmax-seq-len = 200\nepochs = 3\n{more}",
            golden("vision_tower")
        );
        fs::write(&file, text).unwrap();
    };
    let prepare = |output: &str, more: &[&str]| {
        let output = path(output);
        let flags = ["prepare-data", "--config", &file, "--output", &output];
        Ended::of(&Command::new(xtask()).args(flags).args(more).output().unwrap())
    };
    let made_with = |output: &str, key: &str| {
        let text = fs::read_to_string(trial.path(output).join("manifest.json")).unwrap();
        serde_json::from_str::<serde_json::Value>(&text).unwrap()["made_with"][key].clone()
    };
    write("");
    prepare("shards", &[]).assert_success();
    let key = |key: &str| made_with("shards", key);
    assert_eq!((key("tokens_per_image"), key("max_seq_len")), (49.into(), 200.into()));
    prepare("shorter", &["--max-seq-len", "120"]).assert_success();
    assert_eq!(made_with("shorter", "max_seq_len"), 120);
    // The run accepts the prepared data.
    let (shards, more) = (path("shards"), ["--max-seq-len", "200"]);
    let flags = ["--config", &file, "--data-path", &shards];
    trial.pretrain(&[&flags[..], &more].concat()).assert_success();

    write("max-seq-lens = 9");
    trial.pretrain(&["--config", &file]).assert_error(2, &["run.toml", "max-seq-lens"]);
    prepare("other", &[]).assert_error(2, &["run.toml", "max-seq-lens"]);
    assert!(!trial.path("other").exists());
    fs::write(&file, "epochs = 3").unwrap();
    prepare("other", &[]).assert_error(2, &["data-path", "--input"]);
}

#[test]
fn data_sets_are_mixed_by_weight() {
    let trial = Trial::new();
    fs::copy(trial.path("rows.jsonl"), trial.path("more.jsonl")).unwrap();
    let (a, b) = (trial.path("rows.jsonl"), trial.path("more.jsonl"));
    let (a, b) = (format!("{}:0.75", a.display()), format!("{}:0.25", b.display()));
    let flags = ["--data-path", &a, "--data-path", &b];
    trial.pretrain(&flags).assert_success();
    assert_eq!(
        trial.summary()["samples"],
        32,
        "every row of the rarer data set and three times as many of the other"
    );
    trial.pretrain(&["--data-path", &a, "--data-path", "/nowhere"]).assert_error(2, &["weight"]);
}
