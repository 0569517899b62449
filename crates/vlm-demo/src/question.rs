//! Questions about a scene with a short answer, in each language.

use super::caption::{Language, colour_name, shape_name};
use super::scene::{Scene, Shape};

/// A question about a scene.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Question {
    /// The colour of the object with this shape, which must be the only one of its shape.
    Colour(Shape),
    /// The number of objects.
    Count,
}

impl Question {
    /// The text of the question in `language`.
    pub fn text(self, language: Language) -> String {
        match (self, language) {
            (Question::Colour(shape), Language::English) => {
                format!("What colour is the {}?", shape_name(shape, language))
            }
            (Question::Colour(shape), Language::Chinese) => {
                format!("{}是什么颜色？", shape_name(shape, language))
            }
            (Question::Count, Language::English) => "How many objects are there?".into(),
            (Question::Count, Language::Chinese) => "图里有多少物体？".into(),
        }
    }
}

impl Scene {
    /// The questions that have a unique answer in this scene.
    pub fn questions(&self) -> Vec<Question> {
        let objects = self.objects();
        let is_only = |shape| objects.iter().filter(|object| object.shape == shape).count() == 1;
        let shapes = objects.iter().map(|object| object.shape).filter(|&shape| is_only(shape));
        shapes.map(Question::Colour).chain([Question::Count]).collect()
    }

    /// The text of the answer in `language`; `None` if the scene has no object of the shape in
    /// question.
    pub fn answer(&self, question: Question, language: Language) -> Option<String> {
        let objects = self.objects();
        let text = match (question, language) {
            (Question::Colour(shape), _) => {
                let object = objects.iter().find(|object| object.shape == shape)?;
                let (shape, colour) =
                    (shape_name(shape, language), colour_name(object.colour, language));
                match language {
                    Language::English => format!("The {shape} is {colour}."),
                    Language::Chinese => format!("{shape}是{colour}。"),
                }
            }
            (Question::Count, Language::English) => {
                if objects.len() == 1 { "One object." } else { "Two objects." }.into()
            }
            (Question::Count, Language::Chinese) => {
                if objects.len() == 1 { "一个。" } else { "两个。" }.into()
            }
        };
        Some(text)
    }
}

#[cfg(test)]
mod tests {
    use super::super::scene::{Arrangement, Colour, Object, Relation, Size};
    use super::*;

    fn two(first: Shape, second: Shape) -> Scene {
        let first = Object { size: Size::Large, colour: Colour::Red, shape: first };
        let second = Object { size: Size::Small, colour: Colour::Blue, shape: second };
        Scene { arrangement: Arrangement::Two(first, Relation::Above, second) }
    }

    #[test]
    fn colour_is_asked_only_for_a_shape_that_occurs_once() {
        let scene = two(Shape::Star, Shape::Ring);
        let expected =
            [Question::Colour(Shape::Star), Question::Colour(Shape::Ring), Question::Count];
        assert_eq!(scene.questions(), expected);
        assert_eq!(two(Shape::Star, Shape::Star).questions(), [Question::Count]);
    }

    #[test]
    fn questions_and_answers_have_the_expected_text() {
        let scene = two(Shape::Star, Shape::Ring);
        let question = Question::Colour(Shape::Ring);
        assert_eq!(question.text(Language::English), "What colour is the ring?");
        let answer = |question, language| scene.answer(question, language).unwrap();
        assert_eq!(answer(question, Language::English), "The ring is blue.");
        assert_eq!(answer(question, Language::Chinese), "圆环是蓝色。");
        assert_eq!(answer(Question::Count, Language::English), "Two objects.");
        assert_eq!(scene.answer(Question::Colour(Shape::Cross), Language::English), None);
    }
}
