//! Trains the demo's language model on text alone: it learns to describe a scene from its text map,
//! whose words are at the place of an image's patches.
//!
//! The embedding of a map word is kept equal to the sum of a vector for its size, one for its
//! colour and one for its shape: after each update the embeddings of the words are projected onto
//! the subspace of such sums. A linear projector that maps patches to these parts then also covers
//! the combinations that no training image shows.
//!
//! Dimensions: B batch · T tokens · H hidden size

use std::ops::ControlFlow;
use std::path::{Path, PathBuf};

use anyhow::{Result, anyhow};
use tch::{Device, Kind, Reduction, Tensor};
use vlm_demo::{Colour, Shape, Size, seeded_rng};
use vlm_model::LmConfig;
use vlm_model::lm::CausalLm;
use vlm_model::params::ParamStore;
use vlm_model::weights::Weights;

use super::draw_ahead::draw_ahead;
use super::learner::{Learner, LearnerPlan};
use super::text_map::{MapNoise, MapWord};
use super::text_rows::{TextRow, TextRows};

/// Random errors of the text maps in training.
const NOISE: MapNoise = MapNoise { threshold: (0.05, 0.5), lost: 0.1, wrong: 0.1, ghost: 0.01 };
/// Fraction of the conversations with a second turn.
const SECOND_TURNS: f64 = 0.7;
const IGNORE_INDEX: i64 = -100;
const NUM_SCORED: usize = 400;

/// Settings of the language model's training.
#[derive(Debug, Clone)]
pub(super) struct LanguagePlan {
    /// Configuration of the model; its `vocab_size` is replaced by that of the tokenizer.
    pub config: LmConfig,
    /// Weights to continue from; `None` for random weights.
    pub start_from: Option<PathBuf>,
    pub learner: LearnerPlan,
}

/// Fractions of answers that are exactly right, about maps that were not used for training.
#[derive(Debug, Clone, Copy, PartialEq, serde::Serialize)]
pub(super) struct LanguageScores {
    /// With maps without errors.
    pub exact_clean: f64,
    /// With maps with errors as in training.
    pub exact_noisy: f64,
}

/// A trained language model.
#[derive(Debug)]
pub(super) struct LanguageWeights {
    pub params: ParamStore,
    pub config: LmConfig,
    /// Number of conversations it was trained on; fewer than planned if the time limit was reached.
    pub num_chats: usize,
    pub scores: LanguageScores,
}

/// Trains a language model with the demo's tokenizer, which is in the folder `tokenizer`.
pub(super) fn train_language(plan: &LanguagePlan, tokenizer: &Path) -> Result<LanguageWeights> {
    tch::manual_seed(plan.learner.seed as i64);
    let open = |noise| {
        TextRows::new(tokenizer, noise).map_err(|error| anyhow!("{}: {error}", tokenizer.display()))
    };
    let (rows, clean_rows) = (open(NOISE)?, open(MapNoise::NONE)?);
    let config = LmConfig { vocab_size: rows.vocab_size() as i64, ..plan.config.clone() };
    config.validate()?;
    let params = ParamStore::new(Device::Cpu);
    let lm = CausalLm::new(&params.root(), &config);
    if let Some(path) = &plan.start_from {
        Weights::open(path)?.load_into(&params.named(), |_| false)?;
    }
    let mut additive = AdditiveRows::new(&params, rows.map_ids())?;

    let mut learner = Learner::new(&[&params], plan.learner.clone());
    let draw = |step: usize| {
        let seed = plan.learner.seed.wrapping_mul(1_000_033).wrapping_add(step as u64);
        sample(&rows, plan.learner.batch_size, SECOND_TURNS, seed)
    };
    draw_ahead(
        plan.learner.num_steps(),
        plan.learner.num_threads,
        draw,
        |_, chats: Vec<TextRow>| {
            if learner.is_over() {
                return Ok(ControlFlow::Break(()));
            }
            let (input_ids, labels) = to_tensors(&chats);
            let (logits, targets, _) = supervised_logits(&lm, &input_ids, &labels);
            let loss = logits.cross_entropy_loss(
                &targets,
                None::<Tensor>,
                Reduction::Mean,
                IGNORE_INDEX,
                0.0,
            );
            let loss = learner.backward(&loss)?;
            learner.update(loss, plan.learner.batch_size)?;
            additive.project();
            anyhow::Ok(ControlFlow::Continue(()))
        },
    )?;
    let scores = LanguageScores {
        exact_clean: exact_share(&lm, &clean_rows, plan)?,
        exact_noisy: exact_share(&lm, &rows, plan)?,
    };
    Ok(LanguageWeights { params, config, num_chats: learner.samples(), scores })
}

fn sample(rows: &TextRows, count: usize, second_turns: f64, seed: u64) -> Result<Vec<TextRow>> {
    let mut rng = seeded_rng(seed);
    let chat = |_| rows.sample(second_turns, &mut rng).map_err(|error| anyhow!("{error}"));
    (0..count).map(chat).collect()
}

/// `(input_ids, labels)` of the conversations, both `[B, T]` i64, padded on the right.
fn to_tensors(chats: &[TextRow]) -> (Tensor, Tensor) {
    let len = chats.iter().map(|chat| chat.input_ids.len()).max().unwrap_or(0);
    let mut input_ids = vec![0i64; chats.len() * len];
    let mut labels = vec![IGNORE_INDEX; chats.len() * len];
    for (row, chat) in chats.iter().enumerate() {
        input_ids[row * len..][..chat.input_ids.len()].copy_from_slice(&chat.input_ids);
        for (label, known) in labels[row * len..].iter_mut().zip(&chat.labels) {
            *label = known.unwrap_or(IGNORE_INDEX);
        }
    }
    let shape = [chats.len() as i64, len as i64];
    (Tensor::from_slice(&input_ids).view(shape), Tensor::from_slice(&labels).view(shape))
}

/// Logits and targets of the supervised positions, and the index of the row of each.
fn supervised_logits(
    lm: &CausalLm,
    input_ids: &Tensor,
    labels: &Tensor,
) -> (Tensor, Tensor, Tensor) {
    let hidden_bth = lm.forward(&lm.embed(input_ids), None, true).hidden;
    let len = labels.size()[1];
    let labels = labels.view([-1]);
    let positions = labels.ne(IGNORE_INDEX).nonzero().squeeze_dim(-1);
    let hidden = hidden_bth.view([-1, lm.config().dim]).index_select(0, &positions);
    let rows = positions.divide_scalar_mode(len, "floor");
    (lm.logits(&hidden), labels.index_select(0, &positions), rows)
}

/// Fraction of the conversations in which every supervised token is the most likely one. These are
/// the conversations that greedy generation answers exactly.
fn exact_share(lm: &CausalLm, rows: &TextRows, plan: &LanguagePlan) -> Result<f64> {
    let chats = sample(rows, NUM_SCORED, 0.0, !plan.learner.seed)?;
    tch::no_grad(|| {
        let (input_ids, labels) = to_tensors(&chats);
        let (logits, targets, row_of) = supervised_logits(lm, &input_ids, &labels);
        let wrong = logits.argmax(-1, false).ne_tensor(&targets).to_kind(Kind::Float);
        let num_wrong = Tensor::zeros([chats.len() as i64], (Kind::Float, Device::Cpu))
            .index_add(0, &row_of, &wrong);
        Ok(f64::try_from(num_wrong.eq(0).to_kind(Kind::Float).mean(Kind::Float))?)
    })
}

/// Keeps the embeddings of the map words sums of the vectors of their parts.
#[derive(Debug)]
struct AdditiveRows {
    embeddings: Tensor,
    ids: Tensor,
    /// The orthogonal projection onto such sums, `[words, words]`.
    projector: Tensor,
}

impl AdditiveRows {
    fn new(params: &ParamStore, map_ids: &[i64]) -> Result<Self> {
        let named = params.named().into_iter().find(|(name, _)| name == "tok_embeddings.weight");
        let (_, embeddings) =
            named.ok_or_else(|| anyhow!("the language model has no tok_embeddings.weight"))?;
        let parts = word_parts();
        let projector = parts.matmul(&parts.pinverse(1e-6));
        let mut rows = Self { embeddings, ids: Tensor::from_slice(map_ids), projector };
        rows.project();
        Ok(rows)
    }

    fn project(&mut self) {
        tch::no_grad(|| {
            let rows = self.projector.matmul(&self.embeddings.index_select(0, &self.ids));
            let _ = self.embeddings.index_copy_(0, &self.ids, &rows);
        });
    }
}

/// The parts of each map word: `[words, 1 + sizes + colours + shapes]`, 0 or 1. The word of an
/// empty cell is a part of its own.
fn word_parts() -> Tensor {
    let (sizes, colours, shapes) = (Size::ALL.len(), Colour::ALL.len(), Shape::ALL.len());
    let num_parts = 1 + sizes + colours + shapes;
    let mut parts = Vec::new();
    for word in MapWord::all() {
        let mut row = vec![0f32; num_parts];
        match word.0 {
            None => row[0] = 1.0,
            Some(object) => {
                row[1 + object.size as usize] = 1.0;
                row[1 + sizes + object.colour as usize] = 1.0;
                row[1 + sizes + colours + object.shape as usize] = 1.0;
            }
        }
        parts.extend(row);
    }
    Tensor::from_slice(&parts).view([-1, num_parts as i64])
}

#[cfg(test)]
mod tests {
    use super::*;
    use vlm_demo::Object;

    #[test]
    fn projected_rows_are_sums_of_their_parts() {
        let parts = word_parts();
        let projector = parts.matmul(&parts.pinverse(1e-6));
        let rows = projector.matmul(&Tensor::randn([97, 4], (Kind::Float, Device::Cpu)));
        let row = |size, colour, shape| {
            let object = Object { size, colour, shape };
            rows.get(MapWord(Some(object)).index() as i64)
        };
        // The difference between red and blue is the same for small circles and large stars.
        let of_circles = row(Size::Small, Colour::Red, Shape::Circle)
            - row(Size::Small, Colour::Blue, Shape::Circle);
        let of_stars = row(Size::Large, Colour::Red, Shape::Star)
            - row(Size::Large, Colour::Blue, Shape::Star);
        assert!(f64::try_from((of_circles - of_stars).abs().max()).unwrap() < 1e-4);
    }
}
