//! Checkpoints: the folders `checkpoints/step-00000100/`.
//!
//! A checkpoint is written under a temporary name, flushed to the disk and then renamed, so that a
//! folder with the name of a checkpoint is always complete. It holds a [`StateDict`](crate::state_dict::StateDict), the identity
//! of the run, and a checksum of each file.

mod folder;
mod load;
mod load_error;
mod save;
mod state_file;

pub use self::folder::{clean_up, identity_to_resume, newest, rename_later, traces};
pub use self::load::{Checkpoint, load};
pub use self::load_error::LoadError;
pub use self::save::save;

#[cfg(test)]
mod tests {
    use std::fs;
    use std::path::{Path, PathBuf};

    use tch::{Device, Kind, Tensor};
    use vlm_torch::Heartbeat;

    use super::load::{MODEL, STATE};
    use super::*;
    use crate::state_dict::StateDict;
    use crate::train_state::TrainState;

    fn tensors(value: f64) -> Vec<(String, Tensor)> {
        vec![("a".into(), Tensor::full([3], value, (Kind::Float, Device::Cpu)))]
    }

    fn save_value(folder: &Path, step: u64, value: f64, keep: usize) -> PathBuf {
        let identity = serde_json::json!({"seed": 1337});
        save(folder, &state_dict(step, value), &identity, Some(keep), Heartbeat(&|| ())).unwrap()
    }

    fn state_dict(step: u64, value: f64) -> StateDict {
        let mut train_state = TrainState::default();
        train_state.counters.step = step;
        StateDict { model: tensors(value), optimizer: tensors(0.5), train_state }
    }

    fn save_step(folder: &Path, step: u64, keep: usize) -> PathBuf {
        save_value(folder, step, step as f64, keep)
    }

    fn names(folder: &Path) -> Vec<String> {
        let entries = fs::read_dir(folder).unwrap();
        let mut names: Vec<String> = entries
            .map(|entry| entry.unwrap().file_name().to_string_lossy().into_owned())
            .collect();
        names.sort();
        names
    }

    fn newest_step(folder: &Path) -> u64 {
        newest(folder).unwrap().unwrap().state_dict.train_state.counters.step
    }

    #[test]
    fn a_loaded_checkpoint_equals_what_was_saved() {
        let folder = tempfile::tempdir().unwrap();
        save_step(folder.path(), 7, 2);
        let back = newest(folder.path()).unwrap().unwrap();
        assert_eq!(back.state_dict.train_state.counters.step, 7);
        assert_eq!(back.state_dict.model[0].1, tensors(7.0)[0].1);
        assert_eq!(back.state_dict.optimizer[0].1, tensors(0.5)[0].1);
    }

    #[test]
    fn only_the_newest_checkpoints_are_kept() {
        let folder = tempfile::tempdir().unwrap();
        for step in [1, 2, 10] {
            save_step(folder.path(), step, 2);
        }
        assert_eq!(names(folder.path()), ["step-00000002", "step-00000010"]);
    }

    #[test]
    fn a_damaged_checkpoint_is_skipped_in_favour_of_the_previous_one() {
        let folder = tempfile::tempdir().unwrap();
        save_step(folder.path(), 1, 2);
        let newest_path = save_step(folder.path(), 2, 2);
        let file = newest_path.join(MODEL);
        let mut bytes = fs::read(&file).unwrap();
        *bytes.last_mut().unwrap() ^= 1;
        fs::write(&file, bytes).unwrap();
        assert!(load(&newest_path).unwrap_err().to_string().contains(MODEL));
        assert_eq!(newest_step(folder.path()), 1);
    }

    #[test]
    fn the_checkpoint_just_written_is_kept_and_damaged_ones_of_later_steps_are_renamed() {
        let folder = tempfile::tempdir().unwrap();
        save_step(folder.path(), 4, 3);
        for step in [8, 12] {
            fs::write(save_step(folder.path(), step, 3).join(STATE), "{").unwrap();
        }
        assert_eq!(newest_step(folder.path()), 4);
        rename_later(folder.path(), 4).unwrap();
        for step in [5, 6] {
            save_step(folder.path(), step, 2);
        }
        assert_eq!(
            names(folder.path()),
            ["step-00000005", "step-00000006", "step-00000008.damaged", "step-00000012.damaged"]
        );
    }

    #[test]
    fn valid_checkpoints_of_later_steps_are_renamed_and_not_continued_from() {
        let folder = tempfile::tempdir().unwrap();
        for step in [4, 8] {
            save_step(folder.path(), step, 2);
        }
        rename_later(folder.path(), 4).unwrap();
        save_step(folder.path(), 6, 1);
        assert_eq!(names(folder.path()), ["step-00000006", "step-00000008.superseded"]);
        assert_eq!(newest_step(folder.path()), 6);
    }

    #[test]
    fn saving_a_step_again_replaces_its_checkpoint_only_if_the_contents_differ() {
        let folder = tempfile::tempdir().unwrap();
        let path = save_value(folder.path(), 3, 1.0, 1);
        let modified = || fs::metadata(path.join(MODEL)).unwrap().modified().unwrap();
        let before = modified();
        save_value(folder.path(), 3, 1.0, 1);
        assert_eq!(modified(), before, "an equal checkpoint is not written again");
        save_value(folder.path(), 3, 2.0, 1);
        assert_eq!(load(&path).unwrap().state_dict.model[0].1, tensors(2.0)[0].1);
        assert_eq!(names(folder.path()), ["step-00000003"]);
    }

    #[test]
    fn a_save_that_fails_names_the_newest_checkpoint() {
        let folder = tempfile::tempdir().unwrap();
        fs::write(folder.path().join(".step-00000005.tmp"), "in the way").unwrap();
        let state_dict = state_dict(5, 1.0);
        let fail = || {
            let identity = serde_json::Value::Null;
            let saved = save(folder.path(), &state_dict, &identity, None, Heartbeat(&|| ()));
            saved.unwrap_err().to_string()
        };
        let error = fail();
        assert!(error.contains("step 5 was not written"), "{error}");
        assert!(error.ends_with("There is no other checkpoint"), "{error}");
        let kept = save_step(folder.path(), 3, 1);
        let error = fail();
        assert!(error.ends_with(&format!("newest checkpoint is {}", kept.display())), "{error}");
    }

    #[test]
    fn any_changed_byte_of_the_state_file_is_detected() {
        let folder = tempfile::tempdir().unwrap();
        let path = save_step(folder.path(), 3, 1);
        let file = path.join(STATE);
        let whole = fs::read(&file).unwrap();
        for at in 0..whole.len() {
            let mut bytes = whole.clone();
            bytes[at] ^= 1;
            fs::write(&file, &bytes).unwrap();
            assert!(load(&path).is_err(), "byte {at} of {}", String::from_utf8_lossy(&whole));
        }
        // A number that was edited by hand is detected, too.
        let edited = String::from_utf8(whole).unwrap().replace("\"step\": 3", "\"step\": 9");
        fs::write(&file, edited).unwrap();
        assert!(load(&path).unwrap_err().to_string().contains("checksum"));
    }

    #[test]
    fn a_state_file_of_version_1_which_has_no_checksum_is_read() {
        let folder = tempfile::tempdir().unwrap();
        let path = save_step(folder.path(), 3, 1);
        let file = path.join(STATE);
        let mut state: serde_json::Value =
            serde_json::from_slice(&fs::read(&file).unwrap()).unwrap();
        let fields = state.as_object_mut().unwrap();
        fields.remove("checksum");
        fs::write(&file, serde_json::to_string_pretty(&fields).unwrap()).unwrap();
        assert!(load(&path).unwrap_err().to_string().contains("no checksum"));
        state["version"] = 1.into();
        fs::write(&file, serde_json::to_string_pretty(&state).unwrap()).unwrap();
        assert_eq!(load(&path).unwrap().state_dict.train_state.counters.step, 3);
    }

    #[test]
    fn a_checkpoint_saved_while_updates_were_skipped_is_used_only_without_a_healthy_one() {
        let folder = tempfile::tempdir().unwrap();
        save_step(folder.path(), 1, 9);
        let mut unhealthy = state_dict(2, 2.0);
        unhealthy.train_state.skipped_in_a_row = 4;
        let identity = serde_json::Value::Null;
        save(folder.path(), &unhealthy, &identity, None, Heartbeat(&|| ())).unwrap();
        assert_eq!(newest_step(folder.path()), 1);
        fs::remove_dir_all(folder.path().join("step-00000001")).unwrap();
        assert_eq!(newest_step(folder.path()), 2);
    }

    #[test]
    fn leftovers_of_a_killed_save_are_removed_and_a_renamed_checkpoint_gets_its_name_back() {
        let folder = tempfile::tempdir().unwrap();
        let path = save_step(folder.path(), 3, 9);
        fs::rename(&path, folder.path().join(".step-00000003.old")).unwrap();
        save_step(folder.path(), 4, 9);
        for name in [".step-00000004.old", ".step-00000005.tmp"] {
            fs::create_dir(folder.path().join(name)).unwrap();
        }
        let mut removed = clean_up(folder.path()).unwrap();
        removed.sort();
        assert_eq!(removed, [".step-00000004.old", ".step-00000005.tmp"]);
        assert_eq!(names(folder.path()), ["step-00000003", "step-00000004"]);
    }
}
