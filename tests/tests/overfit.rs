//! A small model learns one batch by heart.

use crate::support::Trial;

#[test]
fn one_batch_is_learned_by_heart() {
    let trial = Trial::new();
    let ended = trial.pretrain(&[
        "--batch-size", "8", "--epochs", "200", "--learning-rate", "1e-2", "--train-lm",
        "--log-interval", "20", "--save-interval", "1000",
    ]);
    ended.assert_success();
    let losses: Vec<f64> =
        trial.metrics().iter().map(|line| line["loss"].as_f64().unwrap()).collect();
    // Random weights start near ln(vocabulary); a batch learned by heart is near zero, and that
    // needs the pictures: the prompts are all the same.
    assert!(losses[0] > 4.0, "{losses:?}");
    assert!(losses.last().unwrap() < &0.05, "{losses:?}");
}
