//! The caption of a scene in each language, and the prompts that ask for it.

use rand::Rng;

use super::scene::{Arrangement, Colour, Object, Place, Relation, Scene, Shape, Size};

/// The language of a prompt and of its answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[allow(missing_docs)]
pub enum Language {
    English,
    Chinese,
}

impl Language {
    /// Every language.
    pub const ALL: [Language; 2] = [Language::English, Language::Chinese];

    /// The prompts in this language that ask for a caption.
    pub fn prompts(self) -> &'static [&'static str] {
        match self {
            Language::English => &["Describe the image.", "What is in the picture?"],
            Language::Chinese => &["描述这张图片。", "图里有什么？"],
        }
    }

    /// A random language; all are equally likely.
    pub fn sample(rng: &mut impl Rng) -> Language {
        Language::ALL[rng.random_range(0..Language::ALL.len())]
    }

    /// A random prompt of this language; all are equally likely.
    pub fn sample_prompt(self, rng: &mut impl Rng) -> &'static str {
        let prompts = self.prompts();
        prompts[rng.random_range(0..prompts.len())]
    }

    /// The two-letter code of ISO 639-1.
    pub fn code(self) -> &'static str {
        match self {
            Language::English => "en",
            Language::Chinese => "zh",
        }
    }
}

impl Scene {
    /// The caption of this scene in `language`. Every scene has exactly one.
    pub fn caption(&self, language: Language) -> String {
        match (language, self.arrangement) {
            (Language::English, Arrangement::One(object, place)) => {
                format!("A {} {}.", object.english(), english_place(place))
            }
            (Language::English, Arrangement::Two(first, relation, second)) => {
                format!(
                    "A {} {} a {}.",
                    first.english(),
                    english_relation(relation),
                    second.english()
                )
            }
            (Language::Chinese, Arrangement::One(object, place)) => {
                format!("{}有一个{}。", chinese_place(place), chinese(object))
            }
            (Language::Chinese, Arrangement::Two(first, relation, second)) => {
                format!(
                    "一个{}在一个{}的{}。",
                    chinese(first),
                    chinese(second),
                    chinese_relation(relation)
                )
            }
        }
    }
}

impl Object {
    /// The English description: "large red circle".
    pub fn english(self) -> String {
        let size = match self.size {
            Size::Small => "small",
            Size::Large => "large",
        };
        let language = Language::English;
        let (colour, shape) =
            (colour_name(self.colour, language), shape_name(self.shape, language));
        format!("{size} {colour} {shape}")
    }
}

fn chinese(object: Object) -> String {
    let size = match object.size {
        Size::Small => "小的",
        Size::Large => "大的",
    };
    let language = Language::Chinese;
    let (colour, shape) =
        (colour_name(object.colour, language), shape_name(object.shape, language));
    format!("{size}{colour}{shape}")
}

/// The word for a colour in `language`.
pub(super) fn colour_name(colour: Colour, language: Language) -> &'static str {
    let (english, chinese) = match colour {
        Colour::Red => ("red", "红色"),
        Colour::Orange => ("orange", "橙色"),
        Colour::Yellow => ("yellow", "黄色"),
        Colour::Green => ("green", "绿色"),
        Colour::Cyan => ("cyan", "青色"),
        Colour::Blue => ("blue", "蓝色"),
        Colour::Purple => ("purple", "紫色"),
        Colour::Pink => ("pink", "粉色"),
    };
    if language == Language::English { english } else { chinese }
}

/// The word for a shape in `language`.
pub(super) fn shape_name(shape: Shape, language: Language) -> &'static str {
    let (english, chinese) = match shape {
        Shape::Circle => ("circle", "圆形"),
        Shape::Square => ("square", "方形"),
        Shape::Triangle => ("triangle", "三角形"),
        Shape::Star => ("star", "星形"),
        Shape::Cross => ("cross", "十字形"),
        Shape::Ring => ("ring", "圆环"),
    };
    if language == Language::English { english } else { chinese }
}

fn english_place(place: Place) -> &'static str {
    match place {
        Place::TopLeft => "at the top left",
        Place::Top => "at the top",
        Place::TopRight => "at the top right",
        Place::Left => "on the left",
        Place::Center => "in the center",
        Place::Right => "on the right",
        Place::BottomLeft => "at the bottom left",
        Place::Bottom => "at the bottom",
        Place::BottomRight => "at the bottom right",
    }
}

fn chinese_place(place: Place) -> &'static str {
    match place {
        Place::TopLeft => "左上角",
        Place::Top => "上方",
        Place::TopRight => "右上角",
        Place::Left => "左侧",
        Place::Center => "中央",
        Place::Right => "右侧",
        Place::BottomLeft => "左下角",
        Place::Bottom => "下方",
        Place::BottomRight => "右下角",
    }
}

fn english_relation(relation: Relation) -> &'static str {
    match relation {
        Relation::LeftOf => "left of",
        Relation::Above => "above",
    }
}

fn chinese_relation(relation: Relation) -> &'static str {
    match relation {
        Relation::LeftOf => "左边",
        Relation::Above => "上面",
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashSet;

    #[test]
    fn every_scene_has_its_own_caption_in_each_language() {
        for language in Language::ALL {
            let captions: HashSet<String> =
                Scene::all().map(|scene| scene.caption(language)).collect();
            assert_eq!(captions.len(), Scene::all().count(), "two scenes share a caption");
            assert!(captions.len() > 10_000);
        }
    }

    #[test]
    fn captions_describe_their_scenes() {
        let red = Object { size: Size::Large, colour: Colour::Red, shape: Shape::Circle };
        let blue = Object { size: Size::Small, colour: Colour::Blue, shape: Shape::Star };
        let one = Scene { arrangement: Arrangement::One(red, Place::TopLeft) };
        let two = Scene { arrangement: Arrangement::Two(red, Relation::LeftOf, blue) };
        assert_eq!(one.caption(Language::English), "A large red circle at the top left.");
        assert_eq!(one.caption(Language::Chinese), "左上角有一个大的红色圆形。");
        assert_eq!(two.caption(Language::English), "A large red circle left of a small blue star.");
        assert_eq!(two.caption(Language::Chinese), "一个大的红色圆形在一个小的蓝色星形的左边。");
    }
}
