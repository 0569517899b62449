use std::path::Path;
use std::process::Command;

use tch::{Kind, Tensor};
use vlm_torch::save_pth;

use crate::{leaf, random};

fn named(tensors: Vec<(&str, Tensor)>) -> Vec<(String, Tensor)> {
    tensors.into_iter().map(|(name, tensor)| (name.to_owned(), tensor)).collect()
}

#[test]
#[ignore = "needs a Python with torch (VLM_PYTHON)"]
fn python_reads_a_plain_dict_with_tied_storage() {
    let python = std::env::var("VLM_PYTHON").unwrap_or_else(|_| "python3".to_owned());
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("w.pth");
    let tied = leaf(&[1.0, 2.0]);
    let tensors = named(vec![
        ("b.weight", tied.shallow_clone()),
        ("a.weight", tied),
        ("bf16", Tensor::from_slice(&[1.5f32]).to_kind(Kind::BFloat16)),
        ("half", Tensor::from_slice(&[0.25f32]).to_kind(Kind::Half)),
        ("ids", Tensor::from_slice(&[7i64])),
        ("t", Tensor::from_slice(&[1f32, 2.0, 3.0, 4.0]).reshape([2, 2]).tr()),
        ("ünïcode", Tensor::from_slice(&[true])),
    ]);
    save_pth(&path, &tensors).unwrap();
    let script = "
import sys, torch
d = torch.load(sys.argv[1], weights_only=True)
assert type(d) is dict, type(d)
assert list(d) == ['b.weight', 'a.weight', 'bf16', 'half', 'ids', 't', 'ünïcode'], list(d)
assert d['a.weight'].data_ptr() == d['b.weight'].data_ptr()
assert not d['a.weight'].requires_grad and d['a.weight'].tolist() == [1, 2]
assert d['bf16'].dtype == torch.bfloat16 and d['bf16'].item() == 1.5
assert d['half'].dtype == torch.float16 and d['half'].item() == 0.25
assert d['ids'].dtype == torch.int64 and d['ids'].item() == 7
assert d['t'].tolist() == [[1, 3], [2, 4]]
assert d['ünïcode'].dtype == torch.bool
";
    let output = Command::new(python).args(["-c", script]).arg(&path).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}

#[test]
fn no_temporary_file_remains() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("w.pth");
    for _ in 0..2 {
        save_pth(&path, &named(vec![("w", random(&[3]))])).unwrap();
    }
    let names: Vec<_> =
        std::fs::read_dir(folder.path()).unwrap().map(|e| e.unwrap().file_name()).collect();
    assert_eq!(names, ["w.pth"]);
}

#[test]
fn errors_name_the_file_and_leave_no_temporary_file() {
    let error = save_pth(Path::new("/nonexistent/w.pth"), &[]).unwrap_err().to_string();
    assert!(error.contains("/nonexistent/"), "{error}");
    let twice = named(vec![("w", random(&[1])), ("w", random(&[1]))]);
    let error = save_pth(Path::new("w.pth"), &twice).unwrap_err().to_string();
    assert_eq!(error, "save_pth: the name \"w\" occurs twice");
    if Path::new("/dev/full").exists() {
        // The temporary name is a link to a device that behaves like a full disk.
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("w.pth");
        let temporary = folder.path().join(format!(".w.pth.tmp-{}", std::process::id()));
        std::os::unix::fs::symlink("/dev/full", &temporary).unwrap();
        let error =
            save_pth(&path, &named(vec![("w", random(&[1 << 20]))])).unwrap_err().to_string();
        assert!(error.contains("No space left"), "{error}");
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 0);
    }
}
