//! Activation checkpointing gives the same losses and gradients as training without it, with a
//! dense model and with experts.

use tch::{IndexOp, Tensor};
use vlm_model::{FreezePolicy, Vlm};

use crate::fixtures::{Rows, model, rows, tensors};

fn first_batch(folder: &str) -> Rows {
    let inputs = tensors(&format!("{folder}/inputs.safetensors"));
    let first = |name: &str| inputs[name].i(0);
    rows(&first("X"), &first("Y"), &first("loss_mask"), &first("image_index"))
}

/// The loss, the auxiliary loss, and the gradient of each trained parameter, by name.
fn losses_and_gradients(model: &Vlm, rows: &Rows) -> Vec<(String, Tensor)> {
    let loss = model.loss(&rows.batch, &rows.supervised, &rows.targets, true).unwrap();
    let mean = loss.sum / loss.num_supervised as f64;
    let mut found = vec![("loss".to_owned(), mean.detach())];
    found.extend(loss.aux_loss.as_ref().map(|aux| ("auxiliary loss".to_owned(), aux.detach())));
    let all = loss.aux_loss.map_or_else(|| mean.shallow_clone(), |aux| &mean + aux);
    let (names, trained): (Vec<_>, Vec<_>) = model.trainable().into_iter().unzip();
    let gradients = Tensor::run_backward(&[all], &trained, false, false);
    found.extend(names.into_iter().zip(gradients));
    found
}

#[test]
fn losses_and_gradients_equal_those_without_activation_checkpointing() {
    let policies = [
        FreezePolicy::default(),
        FreezePolicy { train_lm: true, ..FreezePolicy::default() },
        FreezePolicy {
            unfreeze_last_layers: 0,
            unfreeze_first_layers: 1,
            ..FreezePolicy::default()
        },
    ];
    for folder in ["dense", "moe"] {
        let rows = first_batch(folder);
        for policy in &policies {
            let mut model = model(folder);
            model.freeze(policy);
            let plain = losses_and_gradients(&model, &rows);
            model.set_activation_checkpointing(true);
            let again = losses_and_gradients(&model, &rows);
            assert_eq!(plain.len(), again.len());
            assert!(plain.len() > 3);
            for ((name, plain), (_, again)) in plain.iter().zip(&again) {
                // The operations are the same; only gradients may be summed in another order.
                let scale = f64::try_from(plain.abs().max()).unwrap();
                let difference = f64::try_from((plain - again).abs().max()).unwrap();
                assert!(difference <= 1e-6 * scale, "{folder} {name}: {difference:e} of {scale:e}");
            }
        }
    }
}
