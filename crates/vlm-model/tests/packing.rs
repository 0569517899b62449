//! Packed rows have the same losses and gradients as each row alone, and what a loss leaves out of
//! the computation changes neither.

use tch::{Device, Kind, Reduction, Tensor};
use vlm_model::config::{LmConfig, LmFamily, MoeConfig, ProjectorConfig, VisionConfig};
use vlm_model::{FreezePolicy, ImageInput, ModelBatch, ProjectorKind, Vlm};

/// Float32 sums are computed in another order.
const TOLERANCE: f64 = 1e-5;

const PATCHES: i64 = 4;

/// A row with its token ids and the positions of its images.
struct Row {
    ids: Vec<i64>,
    image_starts: Vec<i64>,
}

fn model(lm: LmConfig) -> Vlm {
    tch::manual_seed(11);
    let vision =
        VisionConfig { image_size: 32, patch_size: 16, hidden_size: 8, ..VisionConfig::default() };
    let projector = ProjectorConfig::new(ProjectorKind::Linear, &vision).unwrap();
    let model = Vlm::without_encoder(&lm, &vision, &projector, Device::Cpu).unwrap();
    model.freeze(&FreezePolicy { train_lm: true, ..FreezePolicy::default() });
    // With the small initial weights, attention would have almost no effect.
    tch::no_grad(|| {
        for (_, mut tensor) in model.trainable() {
            let _ = tensor.g_mul_scalar_(3.0);
        }
    });
    model
}

fn families() -> Vec<(&'static str, LmConfig)> {
    let of = |family: LmFamily| LmConfig {
        dim: 32,
        n_layers: 2,
        n_heads: 4,
        n_kv_heads: 2,
        vocab_size: 50,
        hidden_dim: None,
        max_seq_len: 64,
        ..family.default_config()
    };
    let small = of(LmFamily::MiniMind);
    let experts = |config: LmConfig| LmConfig { use_moe: true, ..config };
    let two_experts = |config: LmConfig| LmConfig {
        moe: MoeConfig { num_experts_per_tok: 2, ..config.moe },
        ..config
    };
    vec![
        ("MiniMind", small.clone()),
        ("MiniMind, experts", experts(small.clone())),
        ("MiniMind 3", LmConfig { qk_norm: true, ..of(LmFamily::MiniMind3) }),
        ("MiniMind 3, experts", two_experts(experts(of(LmFamily::MiniMind3)))),
        ("LLaMA", of(LmFamily::Llama)),
        ("Qwen3", LmConfig { qk_norm: true, head_dim: Some(16), ..of(LmFamily::Llama) }),
    ]
}

fn rows(lengths: &[i64], images: &[&[i64]]) -> Vec<Row> {
    let ids = |len: i64| Vec::try_from(Tensor::randint(50, [len], (Kind::Int64, Device::Cpu)));
    let row = |(&len, starts): (&i64, &&[i64])| Row {
        ids: ids(len).unwrap(),
        image_starts: starts.to_vec(),
    };
    lengths.iter().zip(images).map(row).collect()
}

fn features_of(rows: &[Row]) -> Tensor {
    let num_images: usize = rows.iter().map(|row| row.image_starts.len()).sum();
    Tensor::randn([num_images as i64, PATCHES, 8], (Kind::Float, Device::Cpu))
}

fn packed(rows: &[Row], features: &Tensor) -> ModelBatch {
    let ids: Vec<i64> = rows.iter().flat_map(|row| row.ids.clone()).collect();
    let starts = rows.iter().enumerate();
    ModelBatch {
        input_ids: Tensor::from_slice(&ids).unsqueeze(0),
        packed_lengths: Some(rows.iter().map(|row| row.ids.len() as i64).collect()),
        images: ImageInput::Features(features.shallow_clone()),
        image_starts: starts
            .flat_map(|(k, row)| row.image_starts.iter().map(move |&start| (k as i64, start)))
            .collect(),
    }
}

/// Each row as a batch of its own.
fn alone(rows: &[Row], features: &Tensor) -> Vec<ModelBatch> {
    let mut first = 0;
    rows.iter()
        .map(|row| {
            let num_images = row.image_starts.len() as i64;
            let images = match num_images {
                0 => ImageInput::None,
                _ => ImageInput::Features(features.narrow(0, first, num_images)),
            };
            first += num_images;
            ModelBatch {
                input_ids: Tensor::from_slice(&row.ids).unsqueeze(0),
                packed_lengths: None,
                images,
                image_starts: row.image_starts.iter().map(|&start| (0, start)).collect(),
            }
        })
        .collect()
}

/// The loss of predicting each id but the first among `len` ids from `start`, summed, and the
/// auxiliary loss.
fn loss(model: &Vlm, batch: &ModelBatch, start: i64, len: i64) -> (f64, Option<f64>) {
    let supervised = Tensor::arange_start(start, start + len - 1, (Kind::Int64, Device::Cpu));
    let targets = batch.input_ids.view([-1]).index_select(0, &(&supervised + 1));
    let loss = model.loss(batch, &supervised, &targets, true).unwrap();
    (f64::try_from(loss.sum).unwrap(), loss.aux_loss.map(|aux| f64::try_from(aux).unwrap()))
}

/// Gradients of the summed loss, by name.
fn gradients(model: &Vlm, batches: &[ModelBatch], rows: &[Row]) -> Vec<(String, Tensor)> {
    let mut trainable = model.trainable();
    trainable.iter_mut().for_each(|(_, tensor)| tensor.zero_grad());
    for batch in batches {
        let total = batch.input_ids.size()[1];
        let mut at = Vec::new();
        let lengths: Vec<i64> = match &batch.packed_lengths {
            Some(_) => rows.iter().map(|row| row.ids.len() as i64).collect(),
            None => vec![total],
        };
        let mut start = 0;
        for len in lengths {
            at.extend(start..start + len - 1);
            start += len;
        }
        let supervised = Tensor::from_slice(&at);
        let targets = batch.input_ids.view([-1]).index_select(0, &(&supervised + 1));
        model.loss(batch, &supervised, &targets, true).unwrap().sum.backward();
    }
    trainable.iter().map(|(name, tensor)| (name.clone(), tensor.grad().copy())).collect()
}

#[test]
fn packed_rows_have_the_same_losses_and_gradients_as_alone() {
    for (name, config) in families() {
        let model = model(config);
        let rows = rows(&[9, 23, 1, 17], &[&[2], &[], &[], &[1, 8]]);
        let features = features_of(&rows);
        let (packed, alone) = (packed(&rows, &features), alone(&rows, &features));
        let mut start = 0;
        let mut most = 0f64;
        for (row, batch) in rows.iter().zip(&alone) {
            let len = row.ids.len() as i64;
            let (together, _) = loss(&model, &packed, start, len);
            let (by_itself, _) = loss(&model, batch, 0, len);
            most = most.max((together - by_itself).abs() / (len as f64));
            start += len;
        }
        assert!(most <= TOLERANCE, "{name}: losses differ by {most:e} nats per token");
        let (a, b) = (gradients(&model, &[packed], &rows), gradients(&model, &alone, &rows));
        for ((param, a), (_, b)) in a.iter().zip(&b) {
            let scale = f64::try_from(b.abs().max()).unwrap().max(1.0);
            let difference = f64::try_from((a - b).abs().max()).unwrap() / scale;
            assert!(difference <= TOLERANCE, "{name}: {param} differs by {difference:e}");
        }
        println!("{name}: largest difference {most:e} nats per token");
    }
}

/// The loss of the hidden states of all positions, and the gradients of its sum.
fn of_all_positions(
    model: &Vlm,
    batch: &ModelBatch,
    supervised: &Tensor,
    targets: &Tensor,
) -> Vec<(String, Tensor)> {
    let output = model.forward(batch, None, true).unwrap();
    let hidden = output.hidden.flatten(0, 1).index_select(0, supervised);
    let logits = model.lm().logits(&hidden);
    let sum = logits.cross_entropy_loss(targets, None::<Tensor>, Reduction::Sum, -100, 0.0);
    with_gradients(model, sum, output.aux_loss)
}

fn with_gradients(model: &Vlm, sum: Tensor, aux_loss: Option<Tensor>) -> Vec<(String, Tensor)> {
    let all = aux_loss.map_or_else(|| sum.shallow_clone(), |aux| &sum + aux * 100.0);
    let (names, trained): (Vec<_>, Vec<_>) = model.trainable().into_iter().unzip();
    let gradients = Tensor::run_backward(&[&all], &trained, false, false);
    let loss = ("loss".to_owned(), all.detach());
    [loss].into_iter().chain(names.into_iter().zip(gradients)).collect()
}

#[test]
fn what_the_loss_does_not_compute_changes_neither_loss_nor_gradients() {
    let whole = FreezePolicy { train_lm: true, ..FreezePolicy::default() };
    for (name, config) in families() {
        let mut model = model(config);
        // With 12 equal ids at the beginning, and without.
        for (shared, policy, checkpointing) in [
            (12, &whole, false),
            (12, &FreezePolicy::default(), true),
            (0, &FreezePolicy::default(), false),
        ] {
            model.freeze(policy);
            model.set_activation_checkpointing(checkpointing);
            let mut rows = rows(&[24, 24, 24], &[&[13, 17], &[], &[12]]);
            let first = rows[0].ids[..shared].to_vec();
            rows.iter_mut().for_each(|row| row.ids[..shared].copy_from_slice(&first));
            let features = features_of(&rows);
            let packed = packed(&rows, &features);
            let padded = ModelBatch {
                input_ids: packed.input_ids.view([3, 24]),
                packed_lengths: None,
                images: ImageInput::Features(features.shallow_clone()),
                image_starts: packed.image_starts.clone(),
            };
            let supervised = Tensor::from_slice(&[21i64, 22, 37, 40, 69, 70]);
            let targets = packed.input_ids.view([-1]).index_select(0, &(&supervised + 1));
            for batch in [&packed, &padded] {
                let all = of_all_positions(&model, batch, &supervised, &targets);
                let loss = model.loss(batch, &supervised, &targets, true).unwrap();
                let needed = with_gradients(&model, loss.sum, loss.aux_loss);
                assert_eq!(all.len(), needed.len());
                for ((param, all), (_, needed)) in all.iter().zip(&needed) {
                    let scale = f64::try_from(all.abs().max()).unwrap().max(1.0);
                    let difference = f64::try_from((all - needed).abs().max()).unwrap() / scale;
                    assert!(
                        difference <= TOLERANCE,
                        "{name}, {shared} shared ids: {param} differs by {difference:e}"
                    );
                }
            }
        }
    }
}

#[test]
fn losses_by_row_are_those_of_each_row_alone() {
    let (_, config) = families().remove(0);
    let model = model(config);
    // Rows 1 and 3 have no supervised position.
    let rows = rows(&[9, 1, 17, 5], &[&[2], &[], &[1, 8], &[]]);
    let supervised = Tensor::from_slice(&[3i64, 7, 12, 13, 25]);
    let features = features_of(&rows);
    let (packed, alone) = (packed(&rows, &features), alone(&rows, &features));
    let targets = packed.input_ids.view([-1]).index_select(0, &(&supervised + 1));
    let (sum, by_row) = model.loss_by_row(&packed, &supervised, &targets).unwrap();
    assert_eq!(Vec::<i64>::try_from(by_row.num_supervised).unwrap(), [2, 0, 3, 0]);
    let sums = Vec::<f64>::try_from(by_row.sums).unwrap();
    let alone_loss = |row: usize, positions: &[i64], targets: Tensor| {
        let positions = Tensor::from_slice(positions);
        f64::try_from(model.loss(&alone[row], &positions, &targets, false).unwrap().sum).unwrap()
    };
    let first = alone_loss(0, &[3, 7], targets.narrow(0, 0, 2));
    let third = alone_loss(2, &[2, 3, 15], targets.narrow(0, 2, 3));
    for (found, expected) in sums.iter().zip([first, 0.0, third, 0.0]) {
        assert!((found - expected).abs() <= 5.0 * TOLERANCE, "{found} against {expected}");
    }
    let plain = model.loss(&packed, &supervised, &targets, false).unwrap();
    assert_eq!(f64::try_from(sum.sum).unwrap(), f64::try_from(plain.sum).unwrap());
}

#[test]
fn a_packed_row_does_not_depend_on_its_neighbours() {
    let (_, config) = families().remove(0);
    let model = model(config);
    let mut rows = rows(&[9, 23, 17], &[&[2], &[], &[1]]);
    let features = features_of(&rows);
    let before = loss(&model, &packed(&rows, &features), 9, 23);
    for neighbour in [0, 2] {
        rows[neighbour].ids.iter_mut().for_each(|id| *id = (*id + 1) % 50);
    }
    assert_eq!(before, loss(&model, &packed(&rows, &features), 9, 23));
}

#[test]
fn the_balancing_loss_of_packed_rows_is_the_mean_over_the_rows() {
    let experts = families().remove(1).1;
    let model = model(experts);
    let rows = rows(&[9, 23, 17], &[&[2], &[], &[1]]);
    let features = features_of(&rows);
    let together = loss(&model, &packed(&rows, &features), 0, 9).1.unwrap();
    let alone: f64 =
        alone(&rows, &features).iter().map(|batch| loss(&model, batch, 0, 9).1.unwrap()).sum();
    assert!((together - alone / 3.0).abs() <= 1e-6, "{together} against {}", alone / 3.0);
}

#[test]
fn losses_of_packed_rows_of_equal_length_are_those_of_a_batch() {
    for (name, config) in families().into_iter().filter(|(_, config)| config.use_moe) {
        let model = model(config);
        let rows = rows(&[12, 12, 12], &[&[2], &[3], &[1]]);
        let features = features_of(&rows);
        let packed = packed(&rows, &features);
        let beside = ModelBatch {
            input_ids: packed.input_ids.view([3, 12]),
            packed_lengths: None,
            images: ImageInput::Features(features.shallow_clone()),
            image_starts: packed.image_starts.clone(),
        };
        let (a, b) = (loss(&model, &packed, 0, 12), loss(&model, &beside, 0, 12));
        assert!((a.0 - b.0).abs() / 12.0 <= TOLERANCE, "{name}: {a:?} against {b:?}");
        assert!((a.1.unwrap() - b.1.unwrap()).abs() <= 1e-6, "{name}: {a:?} against {b:?}");
    }
}

#[test]
fn wrong_lengths_and_images_that_exceed_their_row_are_refused() {
    let (_, config) = families().remove(0);
    let model = model(config);
    let rows = rows(&[9, 23], &[&[2], &[]]);
    let features = features_of(&rows);
    let mut batch = packed(&rows, &features);
    batch.image_starts = vec![(0, 6)];
    let error = model.embed(&batch).unwrap_err().to_string();
    assert!(error.contains("position 6") && error.contains("9 tokens there"), "{error}");
    batch.packed_lengths = Some(vec![9, 22]);
    let error = model.embed(&batch).unwrap_err().to_string();
    assert!(error.contains("[1, 31]"), "{error}");
}
