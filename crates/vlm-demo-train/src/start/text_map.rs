//! A layout as text: one word for each cell of the image's 7×7 grid, which names the object in it.
//!
//! The starting language model is trained on such maps, which are in the prompt at the place of the
//! image's tokens. It learns the objects from the words and their positions from the order of the
//! words. It is never trained on an image.

use rand::Rng;

use vlm_demo::{Layout, NUM_CELLS, Object};

/// A word of the map: the object in a cell, or `None` for an empty cell.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct MapWord(pub Option<Object>);

/// Number of different words.
pub const NUM_MAP_WORDS: usize = Object::COUNT + 1;

impl MapWord {
    /// Every word: that of an empty cell, then the objects by their index.
    pub fn all() -> impl Iterator<Item = MapWord> {
        std::iter::once(MapWord(None))
            .chain((0..Object::COUNT).filter_map(Object::from_index).map(Some).map(MapWord))
    }

    /// The position of this word in [`MapWord::all`].
    #[cfg(test)]
    pub fn index(self) -> usize {
        self.0.map_or(0, |object| object.index() + 1)
    }

    /// The text of the word, which is a single token of the demo's tokenizer.
    pub fn text(self) -> String {
        self.0.map_or_else(|| "[ ]".to_string(), |object| format!("[{}]", object.english()))
    }
}

/// Random errors of a map, which imitate those of a vision encoder. The cell that an object covers
/// most always shows the object, so that every object is in the map.
#[derive(Clone, Copy, Debug)]
pub struct MapNoise {
    /// Bounds of the random threshold that is drawn for each cell: a cell shows an object that
    /// covers at least this fraction of it.
    pub threshold: (f32, f32),
    /// Fraction of the cells with an object that are shown as empty.
    pub lost: f64,
    /// Fraction of the cells with an object that show a wrong size, colour or shape (one of the
    /// three).
    pub wrong: f64,
    /// Fraction of the empty cells that show a random object.
    pub ghost: f64,
}

impl MapNoise {
    /// No errors.
    pub const NONE: MapNoise =
        MapNoise { threshold: (0.25, 0.25), lost: 0.0, wrong: 0.0, ghost: 0.0 };
}

/// The map of a layout, in row-major order.
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
    use vlm_demo::{Split, seeded_rng};

    #[test]
    fn map_without_noise_names_exactly_the_objects() {
        let mut rng = seeded_rng(11);
        for _ in 0..300 {
            let scene = Split::Starting.sample(2, &mut rng);
            let layout = Layout::of(&scene, &mut rng);
            let map = text_map(&layout, &MapNoise::NONE, &mut rng);
            let named: Vec<Object> = map.iter().filter_map(|word| word.0).collect();
            assert!(scene.objects().iter().all(|object| named.contains(object)), "{scene:?}");
            assert!(named.iter().all(|object| scene.objects().contains(object)), "{scene:?}");
        }
    }

    #[test]
    fn index_of_a_word_is_its_position_in_the_list() {
        assert!(MapWord::all().enumerate().all(|(index, word)| word.index() == index));
        assert_eq!(MapWord::all().count(), NUM_MAP_WORDS);
    }
}
