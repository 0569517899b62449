//! A scene as text: one word for each cell of the picture's 7×7 grid, naming what covers it.
//!
//! The starting language model reads such maps, written out in the prompt where a picture's
//! placeholders will stand, and learns to tell from the words what is there and from their order
//! where it is. It never sees a picture.

use rand::Rng;

use vlm_demo::{Layout, NUM_CELLS, Object};

/// A word of the map: an object, or nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct MapWord(pub Option<Object>);

/// How many different words there are.
pub const NUM_MAP_WORDS: usize = Object::COUNT + 1;

impl MapWord {
    /// Every word, nothing first, then the objects by their index.
    pub fn all() -> impl Iterator<Item = MapWord> {
        std::iter::once(MapWord(None))
            .chain((0..Object::COUNT).filter_map(Object::from_index).map(Some).map(MapWord))
    }

    /// Where the word stands in [`MapWord::all`].
    #[cfg(test)]
    pub fn index(self) -> usize {
        self.0.map_or(0, |object| object.index() + 1)
    }

    /// As it is written; the demo's tokenizer has one token for each.
    pub fn text(self) -> String {
        self.0.map_or_else(|| "[ ]".to_string(), |object| format!("[{}]", object.english()))
    }
}

/// How a map departs from the truth, since what an encoder sees does so too. The cell that an
/// object covers most always shows it, so that what is there can be told.
#[derive(Clone, Copy, Debug)]
pub struct MapNoise {
    /// A cell shows an object that covers at least this share of it, drawn anew for each cell
    /// between the two bounds.
    pub threshold: (f32, f32),
    /// Share of the cells whose word is lost.
    pub lost: f64,
    /// Share of the objects' cells with a wrong size, colour or shape (one of the three).
    pub wrong: f64,
    /// Share of the empty cells that show any object.
    pub ghost: f64,
}

impl MapNoise {
    /// The truth alone.
    pub const NONE: MapNoise =
        MapNoise { threshold: (0.25, 0.25), lost: 0.0, wrong: 0.0, ghost: 0.0 };
}

/// The map of a layout, row by row.
pub fn text_map(layout: &Layout, noise: &MapNoise, rng: &mut impl Rng) -> [MapWord; NUM_CELLS] {
    let coverage = layout.coverage();
    let most = coverage.iter().map(|shares| shares.iter().copied().fold(0.0, f32::max));
    let shown: Vec<_> =
        layout.objects.iter().map(|placed| placed.object).zip(&coverage).zip(most).collect();
    std::array::from_fn(|cell| {
        let (low, high) = noise.threshold;
        let threshold = low + rng.random::<f32>() * (high - low);
        let covering = shown
            .iter()
            .map(|((object, shares), most)| (*object, shares[cell], shares[cell] >= *most))
            .filter(|(_, share, is_most)| *share > 0.0 && (*is_most || *share >= threshold))
            .max_by(|a, b| a.1.total_cmp(&b.1));
        let object = match covering {
            Some((object, _, true)) => Some(object),
            Some(_) if rng.random_bool(noise.lost) => None,
            Some((object, ..)) if rng.random_bool(noise.wrong) => Some(misread(object, rng)),
            Some((object, ..)) => Some(object),
            None => rng.random_bool(noise.ghost).then(|| Object::sample(rng)),
        };
        MapWord(object)
    })
}

fn misread(object: Object, rng: &mut impl Rng) -> Object {
    let other = Object::sample(rng);
    match rng.random_range(0..3) {
        0 => Object { size: other.size, ..object },
        1 => Object { colour: other.colour, ..object },
        _ => Object { shape: other.shape, ..object },
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use vlm_demo::{Scene, Split, seeded_rng};

    #[test]
    fn a_clean_map_names_all_objects_and_no_other() {
        let mut rng = seeded_rng(11);
        for _ in 0..300 {
            let scene = Scene::sample(Split::Starting, 2, &mut rng);
            let layout = Layout::of(&scene, &mut rng);
            let map = text_map(&layout, &MapNoise::NONE, &mut rng);
            let named: Vec<Object> = map.iter().filter_map(|word| word.0).collect();
            assert!(scene.objects().iter().all(|object| named.contains(object)), "{scene:?}");
            assert!(named.iter().all(|object| scene.objects().contains(object)), "{scene:?}");
        }
    }

    #[test]
    fn words_are_numbered_as_listed() {
        assert!(MapWord::all().enumerate().all(|(index, word)| word.index() == index));
        assert_eq!(MapWord::all().count(), NUM_MAP_WORDS);
    }
}
