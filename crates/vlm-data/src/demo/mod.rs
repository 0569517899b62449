//! The embedded demo's world: small scenes that we draw ourselves, their captions in English and
//! Chinese, the split into starting, alignment and held-out scenes, the data set written from
//! them, and the tokenizer that fits them.
//!
//! It knows rows, pictures and text. It refuses to know models: how the starting weights come
//! about stands in `vlm-train`.
//!
//! ```
//! use vlm_data::demo::{Language, Layout, Scene, Split, seeded_rng};
//!
//! let mut rng = seeded_rng(7);
//! let scene = Scene::sample(Split::Starting, 1, &mut rng);
//! let picture = Layout::of(&scene, &mut rng).draw();
//! assert_eq!(picture.len(), 224 * 224 * 3);
//! assert!(scene.caption(Language::English).starts_with("A "));
//! ```

mod caption;
mod dataset;
mod draw;
mod layout;
mod scene;
mod split;
mod text_map;
mod text_rows;
mod tokenizer;

pub use caption::Language;
pub use dataset::{
    DemoError, DemoFiles, HELD_OUT_FILE, HELD_OUT_PER_GROUP, HeldOutGroup, NUM_TRAIN_PICTURES,
    TRAIN_FILE, demo_files, write_demo_dataset,
};
pub use layout::{Background, CELL, GRID, Layout, NUM_CELLS, PICTURE, PlacedObject};
pub use scene::{Arrangement, Colour, Object, Place, Relation, Scene, Shape, Size};
pub use split::{Split, is_held_out, is_unseen_pair};
pub use text_map::{MapNoise, MapWord, NUM_MAP_WORDS, text_map};
pub use text_rows::{TextRow, TextRows};
pub use tokenizer::{IMAGE_PLACEHOLDER, write_demo_tokenizer};

/// The generator of everything random here: the same seed gives the same scenes on every machine.
pub fn seeded_rng(seed: u64) -> rand_chacha::ChaCha8Rng {
    rand::SeedableRng::seed_from_u64(seed)
}
