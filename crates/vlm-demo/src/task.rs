//! What a row asks about its scene: the caption, or one of the questions.

use rand::Rng;

use super::caption::Language;
use super::question::Question;
use super::scene::Scene;

/// Fraction of the rows and chats that ask for the caption.
pub(super) const FRACTION_OF_CAPTIONS: f64 = 0.6;

/// What a turn of the user asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Task {
    /// The question; `None` asks for the caption.
    pub question: Option<Question>,
    /// The language of the turn and of its answer.
    pub language: Language,
}

impl Task {
    /// Draws a task for `scene`.
    pub fn sample(scene: &Scene, rng: &mut impl Rng) -> Task {
        let questions = scene.questions();
        let question = (!rng.random_bool(FRACTION_OF_CAPTIONS))
            .then(|| questions[rng.random_range(0..questions.len())]);
        Task { question, language: Language::sample(rng) }
    }

    /// The text of the user's turn and the answer to it.
    pub fn turn(self, scene: &Scene, rng: &mut impl Rng) -> (String, String) {
        let answer = |question| scene.answer(question, self.language);
        match self.question.and_then(|question| Some((question, answer(question)?))) {
            Some((question, answer)) => (question.text(self.language), answer),
            None => (self.language.sample_prompt(rng).to_owned(), scene.caption(self.language)),
        }
    }
}
