//! The task of a row: the caption of its scene, or a question about it.

use rand::Rng;

use super::caption::Language;
use super::question::Question;
use super::scene::Scene;

/// Fraction of the rows and conversations that ask for the caption.
pub(super) const FRACTION_OF_CAPTIONS: f64 = 0.6;

/// The task of a user turn.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Task {
    /// The question; `None` for the caption.
    pub question: Option<Question>,
    /// Language of the turn and its answer.
    pub language: Language,
}

impl Task {
    /// A random task for `scene` in the language model's training.
    pub fn sample(scene: &Scene, rng: &mut impl Rng) -> Task {
        let questions = scene.questions();
        let question = (!rng.random_bool(FRACTION_OF_CAPTIONS))
            .then(|| questions[rng.random_range(0..questions.len())]);
        Task { question, language: Language::sample(rng) }
    }

    /// The text of the user turn and its answer.
    pub fn turn(self, scene: &Scene, rng: &mut impl Rng) -> (String, String) {
        let answer = |question| scene.answer(question, self.language);
        match self.question.and_then(|question| Some((question, answer(question)?))) {
            Some((question, answer)) => (question.text(self.language), answer),
            None => (self.language.sample_prompt(rng).to_owned(), scene.caption(self.language)),
        }
    }
}
