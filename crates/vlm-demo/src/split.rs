//! Who may see which scene.
//!
//! Held out is a scene's attribute tuple, not a picture: no other picture of it is ever seen
//! either. Unseen is a colour–shape pair: the starting weights know it, the alignment does not.

use super::scene::{Arrangement, Colour, Scene, Shape};

/// The three disjoint uses of scenes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Split {
    /// For the starting weights: every colour–shape pair, no held-out tuple.
    Starting,
    /// For the alignment: no unseen pair, no held-out tuple.
    Alignment,
    /// For the evaluation: only held-out tuples.
    HeldOut,
}

impl Split {
    /// Whether this use may show `scene`.
    pub fn may_show(self, scene: &Scene) -> bool {
        match self {
            Split::Starting => !is_held_out(scene),
            Split::Alignment => !is_held_out(scene) && !has_unseen_pair(scene),
            Split::HeldOut => is_held_out(scene),
        }
    }
}

/// One scene in five with one object, one in sixteen with two, chosen by a hash of the tuple.
pub fn is_held_out(scene: &Scene) -> bool {
    let one_in = match scene.arrangement {
        Arrangement::One(..) => 5,
        Arrangement::Two(..) => 16,
    };
    mix(scene.index()).is_multiple_of(one_in)
}

/// One shape of each colour is never in an alignment picture.
pub fn is_unseen_pair(colour: Colour, shape: Shape) -> bool {
    shape as usize == (colour as usize * 5 + 2) % Shape::ALL.len()
}

/// Whether any of the scene's objects is of an unseen colour–shape pair.
pub(super) fn has_unseen_pair(scene: &Scene) -> bool {
    scene.objects().iter().any(|object| is_unseen_pair(object.colour, object.shape))
}

/// The finaliser of SplitMix64 (Steele, Lea and Flood 2014): every bit of the result depends on
/// every bit of the input, so neighbouring tuples do not fall into the same split together.
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
    fn no_held_out_tuple_is_ever_trained_on() {
        for scene in Scene::all().filter(|scene| Split::HeldOut.may_show(scene)) {
            assert!(!Split::Starting.may_show(&scene), "{scene:?}");
            assert!(!Split::Alignment.may_show(&scene), "{scene:?}");
        }
    }

    #[test]
    fn alignment_never_shows_an_unseen_pair() {
        for scene in Scene::all().filter(|scene| Split::Alignment.may_show(scene)) {
            assert!(
                scene.objects().iter().all(|o| !is_unseen_pair(o.colour, o.shape)),
                "{scene:?}"
            );
        }
    }

    #[test]
    fn starting_scenes_show_every_pair_and_every_object() {
        let seen: HashSet<Object> = Scene::all()
            .filter(|scene| Split::Starting.may_show(scene))
            .flat_map(|scene| scene.objects())
            .collect();
        assert_eq!(seen.len(), Object::COUNT);
    }

    #[test]
    fn every_colour_and_every_shape_is_in_a_seen_pair_and_in_an_unseen_one() {
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
    fn held_out_shares_are_what_the_doc_says() {
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
