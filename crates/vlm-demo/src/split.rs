//! The split of the scenes for the starting weights, the demo's training and its evaluation.
//!
//! Scenes are held out, not images: no image of a held-out scene is used for training. In addition,
//! some colour–shape pairs are unseen: the starting weights are trained on them, but no training
//! image of the demo shows them.

use rand::Rng;

use super::scene::{Arrangement, Colour, Scene, Shape};

/// A use of scenes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Split {
    /// Training of the starting weights: all scenes that are not held out.
    Starting,
    /// Training of the demo, which aligns the encoder with the language model: scenes that are
    /// neither held out nor have an unseen pair.
    Alignment,
    /// Evaluation: only held-out scenes.
    HeldOut,
}

impl Split {
    /// Whether `scene` may be used.
    pub fn may_show(self, scene: &Scene) -> bool {
        match self {
            Split::Starting => !is_held_out(scene),
            Split::Alignment => !is_held_out(scene) && !has_unseen_pair(scene),
            Split::HeldOut => is_held_out(scene),
        }
    }

    /// A random scene of this split with one object, or with two unless `num_objects` is 1. All are
    /// equally likely.
    pub fn sample(self, num_objects: usize, rng: &mut impl Rng) -> Scene {
        loop {
            let scene = Scene::sample(num_objects, rng);
            if self.may_show(&scene) {
                return scene;
            }
        }
    }
}

/// Whether a scene is held out: a fifth of the scenes with one object and a sixteenth of those with
/// two, chosen by a hash of the scene.
pub fn is_held_out(scene: &Scene) -> bool {
    let one_in = match scene.arrangement {
        Arrangement::One(..) => 5,
        Arrangement::Two(..) => 16,
    };
    mix(scene.index()).is_multiple_of(one_in)
}

/// Whether no training image of the demo shows this pair. Every colour has one such shape.
pub fn is_unseen_pair(colour: Colour, shape: Shape) -> bool {
    shape as usize == (colour as usize * 5 + 2) % Shape::ALL.len()
}

/// Whether an object of the scene has an unseen colour–shape pair.
pub(super) fn has_unseen_pair(scene: &Scene) -> bool {
    scene.objects().iter().any(|object| is_unseen_pair(object.colour, object.shape))
}

/// The finaliser of SplitMix64 (Steele, Lea and Flood 2014): every bit of the result depends on
/// every bit of the input, so that the splits of neighbouring scenes are independent.
fn mix(index: u64) -> u64 {
    let mut z = index.wrapping_add(0x9e37_79b9_7f4a_7c15);
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

#[cfg(test)]
mod tests {
    use super::super::scene::Object;
    use super::*;
    use std::collections::HashSet;

    #[test]
    fn held_out_scenes_are_never_trained_on() {
        for scene in Scene::all().filter(|scene| Split::HeldOut.may_show(scene)) {
            assert!(!Split::Starting.may_show(&scene), "{scene:?}");
            assert!(!Split::Alignment.may_show(&scene), "{scene:?}");
        }
    }

    #[test]
    fn demo_training_never_shows_an_unseen_pair() {
        for scene in Scene::all().filter(|scene| Split::Alignment.may_show(scene)) {
            assert!(
                scene.objects().iter().all(|o| !is_unseen_pair(o.colour, o.shape)),
                "{scene:?}"
            );
        }
    }

    #[test]
    fn starting_scenes_show_every_object() {
        let seen: HashSet<Object> = Scene::all()
            .filter(|scene| Split::Starting.may_show(scene))
            .flat_map(|scene| scene.objects())
            .collect();
        assert_eq!(seen.len(), Object::COUNT);
    }

    #[test]
    fn every_colour_and_every_shape_has_seen_and_unseen_pairs() {
        for shape in Shape::ALL {
            let unseen =
                Colour::ALL.iter().filter(|&&colour| is_unseen_pair(colour, shape)).count();
            assert!((1..=2).contains(&unseen), "{shape:?}: {unseen}");
        }
        for colour in Colour::ALL {
            assert_eq!(
                Shape::ALL.iter().filter(|&&shape| is_unseen_pair(colour, shape)).count(),
                1
            );
        }
    }

    #[test]
    fn held_out_fractions_are_a_fifth_and_a_sixteenth() {
        let (mut one, mut two) = (0, 0);
        for scene in Scene::all().filter(is_held_out) {
            match scene.arrangement {
                Arrangement::One(..) => one += 1,
                Arrangement::Two(..) => two += 1,
            }
        }
        assert!((130..=220).contains(&one), "{one}");
        assert!((1000..=1300).contains(&two), "{two}");
    }
}
