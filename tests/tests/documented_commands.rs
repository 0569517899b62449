//! Runs the commands of the README and of `docs`, as a reader would: every block of code marked `sh`,
//! in order, in a folder with small files of the names that the pages use. A block that says
//! `no-test` gives its reason and is not run.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use crate::support::{Trial, demo_lm, demo_start, golden, program, vlm, xtask};

/// `cargo xtask` as the pages use it, without building anything. Training stops after a step.
const PREAMBLE: &str = r#"set -euo pipefail
cargo() {
  [ "$1" = xtask ] || { echo "unexpected: cargo $*" >&2; return 2; }
  shift
  case "$1" in
    vlm) shift; "$VLM" "$@" ;;
    pretrain | sft) "$VLM" "$@" --max-steps 1 --device cpu ;;
    *) "$XTASK" "$@" ;;
  esac
}
"#;

/// A block of commands.
struct Block {
    line: usize,
    commands: String,
}

fn checkout() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..").canonicalize().unwrap()
}

/// The blocks of a page that are run. Every block of code must name its language.
fn blocks(page: &Path) -> Vec<Block> {
    let text = fs::read_to_string(page).unwrap();
    let mut lines = text.lines().enumerate();
    let mut blocks = Vec::new();
    while let Some((number, line)) = lines.next() {
        let Some(info) = line.strip_prefix("```") else { continue };
        let place = format!("{}:{}", page.display(), number + 1);
        assert!(!info.is_empty(), "{place}: the block of code names no language");
        let code = lines.by_ref().map(|(_, line)| line).take_while(|line| !line.starts_with("```"));
        let commands: String = code.map(|line| format!("{line}\n")).collect();
        if let Some(reason) = info.strip_prefix("sh no-test") {
            assert!(reason.starts_with(": "), "{place}: `no-test` gives no reason");
        } else if info == "sh" {
            blocks.push(Block { line: number + 1, commands });
        }
    }
    blocks
}

/// A folder with the files that the pages name.
fn stage() -> Trial {
    let trial = Trial::new();
    let copy = |from: PathBuf, to: &str| {
        let status = Command::new("cp").arg("-r").arg(from).arg(trial.path(to)).status().unwrap();
        assert!(status.success());
    };
    for name in ["held_out.jsonl", "instructions.jsonl"] {
        copy(trial.path("rows.jsonl"), name);
    }
    let rows = fs::read_to_string(trial.path("rows.jsonl")).unwrap();
    let list = rows.lines().collect::<Vec<_>>().join(",");
    fs::write(trial.path("rows.json"), format!("[{list}]")).unwrap();
    copy(trial.path("images/0.png"), "dog.jpg");
    copy(golden("vision_tower"), "clip-vit-base-patch16");
    copy(demo_start(""), "minimind_tokenizer");
    std::os::unix::fs::symlink(checkout().join("data"), trial.path("data")).unwrap();
    let lm = trial.path("lm_512.pth");
    vlm(&["convert", demo_lm().to_str().unwrap(), lm.to_str().unwrap()]).assert_success();
    copy(demo_lm().with_file_name("config.json"), "config.json");
    let out = trial.path("out/first");
    let shape = ["--dim", "128", "--n-layers", "4", "--lm", lm.to_str().unwrap()];
    let more = [&shape[..], &["--out-dir", out.to_str().unwrap()]].concat();
    trial.pretrain(&more).assert_success();
    copy(out.join("pretrain_vlm_128.pth"), "out/first/pretrain_vlm_512.pth");
    for file in fs::read_dir(&out).unwrap() {
        let file = file.unwrap();
        copy(file.path(), &format!("out/{}", file.file_name().display()));
    }
    trial
}

#[test]
fn the_commands_of_the_pages_run() {
    let root = checkout();
    let mut pages = vec![root.join("README.md")];
    for entry in fs::read_dir(root.join("docs")).unwrap() {
        pages.push(entry.unwrap().path());
    }
    pages.retain(|page| page.extension().is_some_and(|extension| extension == "md"));
    pages.sort();
    let mut failures = Vec::new();
    let mut count = 0;
    let base = stage();
    for page in pages {
        let blocks = blocks(&page);
        if blocks.is_empty() {
            continue;
        }
        let folder = tempfile::tempdir().unwrap();
        let from = base.folder.path().join(".");
        let copied = Command::new("cp").arg("-a").arg(from).arg(folder.path()).status().unwrap();
        assert!(copied.success());
        if blocks.iter().any(|block| block.commands.contains("--out-dir out/first")) {
            fs::remove_dir_all(folder.path().join("out/first")).unwrap();
        }
        for Block { line, commands } in blocks {
            let output = Command::new("bash")
                .args(["-c", &format!("{PREAMBLE}{commands}")])
                .current_dir(folder.path())
                .env("VLM", program().get_program())
                .env("XTASK", xtask())
                .env("OMP_NUM_THREADS", "1")
                .stdin(Stdio::null())
                .output()
                .unwrap();
            count += 1;
            if !output.status.success() {
                let text = String::from_utf8_lossy(&output.stderr).into_owned();
                failures.push(format!("{}:{line}: {}\n{text}", page.display(), output.status));
            }
        }
    }
    assert!(count > 5, "only {count} blocks were found");
    assert!(failures.is_empty(), "{}", failures.join("\n"));
}
