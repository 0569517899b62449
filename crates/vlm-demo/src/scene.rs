//! What a scene is: one object at a place, or two objects in a relation.
//!
//! Only attributes that the caption tells stand here; jitter, hue and background are the
//! business of [`super::Layout`].

use rand::Rng;

use super::split::Split;

/// How large an object is drawn.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Size {
    /// About 50 pixels across.
    Small,
    /// About 86 pixels across.
    Large,
}

/// An object's colour.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[allow(missing_docs)]
pub enum Colour {
    Red,
    Orange,
    Yellow,
    Green,
    Cyan,
    Blue,
    Purple,
    Pink,
}

/// An object's outline.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[allow(missing_docs)]
pub enum Shape {
    Circle,
    Square,
    Triangle,
    Star,
    Cross,
    Ring,
}

/// Where a single object stands, in thirds of the picture.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[allow(missing_docs)]
pub enum Place {
    TopLeft,
    Top,
    TopRight,
    Left,
    Center,
    Right,
    BottomLeft,
    Bottom,
    BottomRight,
}

/// How the first of two objects stands to the second. The left or the upper object is always the
/// first, so a picture has exactly one caption.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[allow(missing_docs)]
pub enum Relation {
    LeftOf,
    Above,
}

impl Size {
    /// Every size.
    pub const ALL: [Size; 2] = [Size::Small, Size::Large];
}

impl Colour {
    /// Every colour.
    pub const ALL: [Colour; 8] = [
        Colour::Red,
        Colour::Orange,
        Colour::Yellow,
        Colour::Green,
        Colour::Cyan,
        Colour::Blue,
        Colour::Purple,
        Colour::Pink,
    ];
}

impl Shape {
    /// Every shape.
    pub const ALL: [Shape; 6] =
        [Shape::Circle, Shape::Square, Shape::Triangle, Shape::Star, Shape::Cross, Shape::Ring];
}

impl Place {
    /// Every place, row by row.
    pub const ALL: [Place; 9] = [
        Place::TopLeft,
        Place::Top,
        Place::TopRight,
        Place::Left,
        Place::Center,
        Place::Right,
        Place::BottomLeft,
        Place::Bottom,
        Place::BottomRight,
    ];
}

impl Relation {
    /// Every relation.
    pub const ALL: [Relation; 2] = [Relation::LeftOf, Relation::Above];
}

/// One thing in a scene.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Object {
    /// Small or large.
    pub size: Size,
    /// One of eight.
    pub colour: Colour,
    /// One of six.
    pub shape: Shape,
}

impl Object {
    /// How many different objects there are.
    pub const COUNT: usize = Size::ALL.len() * Colour::ALL.len() * Shape::ALL.len();

    /// A number below [`Object::COUNT`], different for every object.
    pub fn index(&self) -> usize {
        (self.size as usize * Colour::ALL.len() + self.colour as usize) * Shape::ALL.len()
            + self.shape as usize
    }

    /// The object of that number. `None` from [`Object::COUNT`] on.
    pub fn from_index(index: usize) -> Option<Object> {
        let size = *Size::ALL.get(index / (Colour::ALL.len() * Shape::ALL.len()))?;
        let colour = Colour::ALL[index / Shape::ALL.len() % Colour::ALL.len()];
        let shape = Shape::ALL[index % Shape::ALL.len()];
        Some(Object { size, colour, shape })
    }

    /// Any object, each equally likely.
    pub fn sample(rng: &mut impl Rng) -> Object {
        Object {
            size: Size::ALL[rng.random_range(0..Size::ALL.len())],
            colour: Colour::ALL[rng.random_range(0..Colour::ALL.len())],
            shape: Shape::ALL[rng.random_range(0..Shape::ALL.len())],
        }
    }
}

/// Which objects there are and how they stand.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Arrangement {
    /// One object somewhere in the picture.
    One(Object, Place),
    /// Two objects, the left or upper one first.
    Two(Object, Relation, Object),
}

/// The tuple of attributes that a caption tells.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Scene {
    /// What there is and where.
    pub arrangement: Arrangement,
}

impl Scene {
    /// A scene of `num_objects` (one, or else two) that `split` may show, each equally likely.
    pub fn sample(split: Split, num_objects: usize, rng: &mut impl Rng) -> Scene {
        loop {
            let first = Object::sample(rng);
            let arrangement = if num_objects == 1 {
                Arrangement::One(first, Place::ALL[rng.random_range(0..Place::ALL.len())])
            } else {
                let relation = Relation::ALL[rng.random_range(0..Relation::ALL.len())];
                Arrangement::Two(first, relation, Object::sample(rng))
            };
            let scene = Scene { arrangement };
            if split.may_show(&scene) {
                return scene;
            }
        }
    }

    /// Every scene there is, in a fixed order.
    pub fn all() -> impl Iterator<Item = Scene> {
        let objects = || (0..Object::COUNT).filter_map(Object::from_index);
        let one =
            objects().flat_map(|object| Place::ALL.map(|place| Arrangement::One(object, place)));
        let two = objects().flat_map(move |first| {
            objects().flat_map(move |second| {
                Relation::ALL.map(|relation| Arrangement::Two(first, relation, second))
            })
        });
        one.chain(two).map(|arrangement| Scene { arrangement })
    }

    /// The objects, in the order of the caption.
    pub fn objects(&self) -> Vec<Object> {
        match self.arrangement {
            Arrangement::One(object, _) => vec![object],
            Arrangement::Two(first, _, second) => vec![first, second],
        }
    }

    /// A number that is different for every scene.
    pub fn index(&self) -> u64 {
        let index = match self.arrangement {
            Arrangement::One(object, place) => object.index() * Place::ALL.len() + place as usize,
            Arrangement::Two(first, relation, second) => {
                let pair = first.index() * Object::COUNT + second.index();
                Object::COUNT * Place::ALL.len() + pair * Relation::ALL.len() + relation as usize
            }
        };
        index as u64
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashSet;

    #[test]
    fn every_scene_has_its_own_index() {
        let indices: HashSet<u64> = Scene::all().map(|scene| scene.index()).collect();
        assert_eq!(indices.len(), 96 * 9 + 2 * 96 * 96);
    }

    #[test]
    fn object_index_goes_both_ways() {
        for index in 0..Object::COUNT {
            assert_eq!(Object::from_index(index).map(|object| object.index()), Some(index));
        }
        assert_eq!(Object::from_index(Object::COUNT), None);
    }
}
