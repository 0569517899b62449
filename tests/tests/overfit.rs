//! Overfits a small model to one batch.

use crate::support::Trial;

#[test]
fn a_small_model_overfits_one_batch() {
    let trial = Trial::new();
    let ended = trial.pretrain(&[
        "--batch-size", "8", "--epochs", "200", "--learning-rate", "1e-2", "--train-lm",
        "--log-interval", "20", "--save-interval", "1000",
    ]);
    ended.assert_success();
    let losses: Vec<f64> =
        trial.metrics().iter().map(|line| line["loss"].as_f64().unwrap()).collect();
    // The loss of random weights is near ln(vocabulary). All prompts are equal, so a loss near zero
    // needs the images.
    assert!(losses[0] > 4.0, "{losses:?}");
    assert!(losses.last().unwrap() < &0.05, "{losses:?}");
}
