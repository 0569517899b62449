//! What a run must not do with its checkpoints: keep damaged ones instead of good ones, believe one
//! that was changed, lose one while its step is saved again, or save while it diverges.

use std::fs;
use std::path::Path;
use std::process::Stdio;

use crate::support::Trial;

/// A run of 8 steps in all.
const FLAGS: [&str; 2] = ["--epochs", "4"];

fn train(trial: &Trial, more: &[&str]) {
    trial.pretrain(&[&FLAGS[..], more].concat()).assert_success();
}

fn checkpoint(trial: &Trial, step: usize) -> std::path::PathBuf {
    trial.path(&format!("out/checkpoints/step-{step:08}"))
}

fn has_equal_weights(a: &Trial, b: &Trial) -> bool {
    let weights = |trial: &Trial| fs::read(trial.path("out/pretrain_vlm_32.safetensors")).unwrap();
    weights(a) == weights(b)
}

#[test]
fn damaged_checkpoints_of_later_steps_do_not_replace_good_ones() {
    let whole = Trial::new();
    train(&whole, &[]);
    let trial = Trial::new();
    for (steps, more) in
        [("3", &[][..]), ("5", &["--resume", "auto"]), ("7", &["--resume", "auto"])]
    {
        train(&trial, &[&["--max-steps", steps, "--keep-checkpoints", "3"], more].concat());
    }
    for step in [5, 7] {
        fs::write(checkpoint(&trial, step).join("state.json"), "{").unwrap();
    }
    let flags = ["--resume", "auto", "--save-interval", "1", "--keep-checkpoints", "2"];
    train(&trial, &[&flags[..], &["--max-steps", "4"]].concat());
    let newest = checkpoint(&trial, 4);
    assert!(newest.is_dir(), "the checkpoint that was just written is gone");
    train(&trial, &flags);
    assert!(has_equal_weights(&whole, &trial), "the weights differ");
}

/// Changes `state.json` of the newest checkpoint, continues the run, and compares it with an
/// undisturbed one.
fn continue_with_changed_state(text: &str, changed: &str) {
    let whole = Trial::new();
    train(&whole, &[]);
    let trial = Trial::new();
    train(&trial, &["--save-interval", "2", "--max-steps", "6"]);
    let file = checkpoint(&trial, 6).join("state.json");
    let state = fs::read_to_string(&file).unwrap();
    assert!(state.contains(text), "{state}");
    fs::write(&file, state.replace(text, changed)).unwrap();
    let ended = trial.pretrain(&[&FLAGS[..], &["--resume", "auto"]].concat());
    ended.assert_success();
    assert!(has_equal_weights(&whole, &trial), "the weights differ: {}", ended.stderr);
}

#[test]
fn a_flipped_bit_in_a_setting_of_a_checkpoint_is_damage() {
    continue_with_changed_state("\"seed\": 1337", "\"seed\": 1335");
}

#[test]
fn an_edited_position_of_a_checkpoint_is_damage() {
    continue_with_changed_state("\"step\": 6", "\"step\": 5");
}

/// The files in the checkpoint make its removal take so long that a process which removes it before
/// it has another one can be killed between the two.
#[test]
fn a_checkpoint_is_never_gone_while_its_step_is_saved_again() {
    let trial = Trial::new();
    train(&trial, &["--max-steps", "4"]);
    let folder = checkpoint(&trial, 4);
    // The second time the contents differ, because the run then has other epochs.
    for epochs in [&[][..], &["--epochs", "5"]] {
        for number in 0..20_000 {
            fs::write(folder.join(format!("other-{number}")), "").unwrap();
        }
        let epochs = if epochs.is_empty() { &FLAGS[..] } else { epochs };
        let flags = [epochs, &["--max-steps", "4", "--resume", "auto"]].concat();
        let mut child =
            trial.command(&flags).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
        while child.try_wait().unwrap().is_none() {
            if !is_complete(&folder) {
                child.kill().unwrap();
                child.wait().unwrap();
                panic!("{epochs:?}: killed now, the run has {:?}", names(folder.parent().unwrap()));
            }
        }
        assert!(child.wait().unwrap().success());
        assert!(is_complete(&folder));
    }
    trial.pretrain(&["--epochs", "5", "--resume", "auto"]).assert_success();
    assert_eq!(trial.summary()["steps"], 10);
}

fn is_complete(checkpoint: &Path) -> bool {
    let files = ["model.safetensors", "optimizer.safetensors", "state.json"];
    files.iter().all(|name| checkpoint.join(name).exists())
}

fn names(folder: &Path) -> Vec<String> {
    let entries = fs::read_dir(folder).unwrap();
    entries.map(|entry| entry.unwrap().file_name().to_string_lossy().into_owned()).collect()
}

#[test]
fn nothing_is_saved_while_updates_are_skipped() {
    let trial = Trial::new();
    let flags = ["--epochs", "9", "--learning-rate", "1e30", "--grad-clip", "0"];
    let more = ["--save-interval", "1", "--max-skipped-updates", "4"];
    let ended = trial.pretrain(&[&flags[..], &more].concat());
    assert_eq!(ended.code, 1, "{}", ended.stderr);
    let updated = |line: &serde_json::Value| line["grad_norm"].is_number();
    let lines = trial.metrics();
    let last = lines.iter().rev().find(|line| updated(line)).expect("an update");
    assert!(lines.len() as u64 > last["step"].as_u64().unwrap(), "no update was skipped");
    let newest = names(&trial.path("out/checkpoints")).into_iter().max().unwrap();
    assert_eq!(newest, format!("step-{:08}", last["step"].as_u64().unwrap()));
    ended.assert_error(1, &["The last healthy checkpoint is", &newest]);
}
