//! The processing of logits before a draw, compared with the logits processors of `transformers`.

use serde::Deserialize;
use vlm_model::sampling::Sampling;

use crate::fixtures::golden;

#[derive(Deserialize)]
struct Case {
    temperature: f64,
    top_k: usize,
    top_p: f64,
    repetition_penalty: f64,
    seen: Vec<i64>,
    logits: Vec<f32>,
    probabilities: Vec<f32>,
}

#[test]
fn probabilities_equal_those_of_transformers() {
    let text = std::fs::read_to_string(golden("sampling/cases.json")).unwrap();
    let cases: Vec<Case> = serde_json::from_str(&text).unwrap();
    for (number, case) in cases.into_iter().enumerate() {
        let Case { temperature, top_k, top_p, repetition_penalty, .. } = case;
        let sampling =
            Sampling { temperature, top_k, top_p, repetition_penalty, ..Sampling::default() };
        let mut logits = case.logits;
        sampling.process(&mut logits, &case.seen);
        let softmax = tch::Tensor::from_slice(&logits).softmax(-1, tch::Kind::Float);
        let found = Vec::<f32>::try_from(softmax).unwrap();
        for (id, (found, expected)) in found.iter().zip(&case.probabilities).enumerate() {
            assert_eq!(*found == 0.0, *expected == 0.0, "case {number}, id {id}: excluded or not");
            let difference = (found - expected).abs();
            assert!(difference <= 1e-6, "case {number}, id {id}: {found} against {expected}");
        }
    }
}
