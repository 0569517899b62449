//! A scene: one object at a place, or two objects in a relation.
//!
//! A scene has only the attributes that its caption mentions. [`super::Layout`] adds exact
//! positions, hues and the background.

use rand::Rng;

/// The size of an object.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Size {
    /// About 50 pixels across.
    Small,
    /// About 86 pixels across.
    Large,
}

/// The colour of an object.
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

/// The shape of an object.
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

/// The position of a single object, in thirds of the image.
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

/// The position of the first of two objects relative to the second. The left or upper object is
/// always the first, so that an image has exactly one caption.
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
    /// Every place, in row-major order.
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

/// An object in a scene.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Object {
    /// Its size.
    pub size: Size,
    /// Its colour.
    pub colour: Colour,
    /// Its shape.
    pub shape: Shape,
}

impl Object {
    /// Number of different objects.
    pub const COUNT: usize = Size::ALL.len() * Colour::ALL.len() * Shape::ALL.len();

    /// The index of this object, below [`Object::COUNT`] and different for every object.
    pub fn index(&self) -> usize {
        (self.size as usize * Colour::ALL.len() + self.colour as usize) * Shape::ALL.len()
            + self.shape as usize
    }

    /// The object with this index; `None` from [`Object::COUNT`] on.
    pub fn from_index(index: usize) -> Option<Object> {
        let size = *Size::ALL.get(index / (Colour::ALL.len() * Shape::ALL.len()))?;
        let colour = Colour::ALL[index / Shape::ALL.len() % Colour::ALL.len()];
        let shape = Shape::ALL[index % Shape::ALL.len()];
        Some(Object { size, colour, shape })
    }

    /// A random object; all are equally likely.
    pub fn sample(rng: &mut impl Rng) -> Object {
        Object {
            size: Size::ALL[rng.random_range(0..Size::ALL.len())],
            colour: Colour::ALL[rng.random_range(0..Colour::ALL.len())],
            shape: Shape::ALL[rng.random_range(0..Shape::ALL.len())],
        }
    }
}

/// The objects of a scene and their positions.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Arrangement {
    /// One object at a place.
    One(Object, Place),
    /// Two objects in a relation, the left or upper one first.
    Two(Object, Relation, Object),
}

/// A scene: all attributes that its caption mentions.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Scene {
    /// The objects and their positions.
    pub arrangement: Arrangement,
}

impl Scene {
    /// A random scene with one object, or with two unless `num_objects` is 1. All are equally likely.
    pub fn sample(num_objects: usize, rng: &mut impl Rng) -> Scene {
        let first = Object::sample(rng);
        let arrangement = if num_objects == 1 {
            Arrangement::One(first, Place::ALL[rng.random_range(0..Place::ALL.len())])
        } else {
            let relation = Relation::ALL[rng.random_range(0..Relation::ALL.len())];
            Arrangement::Two(first, relation, Object::sample(rng))
        };
        Scene { arrangement }
    }

    /// Every scene, in a fixed order.
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

    /// The index of this scene, different for every scene.
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
    fn objects_are_found_by_their_index() {
        for index in 0..Object::COUNT {
            assert_eq!(Object::from_index(index).map(|object| object.index()), Some(index));
        }
        assert_eq!(Object::from_index(Object::COUNT), None);
    }
}
