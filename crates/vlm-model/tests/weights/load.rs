use tch::{Device, Kind, Tensor};
use vlm_model::weights::{Format, Misshapen, Weights, WeightsError, save};

use crate::named;

fn zeros(shape: &[i64], kind: Kind) -> Tensor {
    Tensor::zeros(shape, (kind, Device::Cpu))
}

/// A file with `a` `[2]`, `b` `[2, 2]` and `c`, which is tied to `b`.
fn weights(folder: &tempfile::TempDir) -> Weights {
    let path = folder.path().join("w.pth");
    let b = Tensor::from_slice(&[1f32, 2.0, 3.0, 4.0]).reshape([2, 2]);
    let tensors =
        named(vec![("a", Tensor::from_slice(&[5f32, 6.0])), ("b", b.shallow_clone()), ("c", b)]);
    save(&path, &tensors, Format::Pth).unwrap();
    Weights::open(&path).unwrap()
}

#[test]
fn parameters_are_loaded_in_their_own_dtype() {
    let folder = tempfile::tempdir().unwrap();
    let a = zeros(&[2], Kind::BFloat16).set_requires_grad(true);
    let variables = named(vec![("a", a.shallow_clone()), ("b", zeros(&[2, 2], Kind::Float))]);
    let report = weights(&folder).load_into(&variables, |_| false).unwrap();
    assert_eq!(Vec::<f64>::try_from(a.to_kind(Kind::Double).detach()).unwrap(), [5.0, 6.0]);
    assert_eq!((report.num_loaded, report.converted), (2, vec![("a".to_owned(), Kind::Float)]));
    assert!(report.surplus.is_empty(), "c is tied to b: {:?}", report.surplus);
    assert!(a.requires_grad());
}

#[test]
fn missing_and_misshapen_parameters_are_named_and_nothing_is_loaded() {
    let folder = tempfile::tempdir().unwrap();
    let a = zeros(&[2], Kind::Float);
    let variables = named(vec![
        ("a", a.shallow_clone()),
        ("b", zeros(&[4], Kind::Float)),
        ("vision_proj.weight", zeros(&[1], Kind::Float)),
    ]);
    let error = weights(&folder).load_into(&variables, |_| false).unwrap_err();
    let message = error.to_string();
    assert!(message.contains("\n  b: the model has shape [4], the file [2, 2]"), "{message}");
    assert!(message.contains("\n  vision_proj.weight: not in the file"), "{message}");
    let WeightsError::Misfit { report, .. } = error else { panic!("{message}") };
    let expected = Misshapen { name: "b".to_owned(), expected: vec![4], found: vec![2, 2] };
    assert_eq!(report.misshapen, [expected]);
    assert_eq!(Vec::<f32>::try_from(a).unwrap(), [0.0, 0.0]);
}

#[test]
fn allowed_missing_and_surplus_names_are_reported() {
    let folder = tempfile::tempdir().unwrap();
    let variables = named(vec![
        ("b", zeros(&[2, 2], Kind::Float)),
        ("vision_proj.weight", zeros(&[1], Kind::Float)),
    ]);
    let report =
        weights(&folder).load_into(&variables, |name| name.starts_with("vision_proj.")).unwrap();
    assert_eq!(report.missing, ["vision_proj.weight"]);
    assert_eq!(report.surplus, ["a"]);
    assert_eq!(report.num_loaded, 1);
}

#[test]
fn a_name_that_the_file_does_not_have_is_an_error() {
    let folder = tempfile::tempdir().unwrap();
    let error = weights(&folder).get("x").unwrap_err().to_string();
    assert!(error.ends_with("w.pth: there is no tensor \"x\""), "{error}");
}
