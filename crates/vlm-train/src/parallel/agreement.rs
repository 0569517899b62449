//! Ranks that were not started alike would train without an error and to no use: what must be the
//! same is compared before the first step.

use std::collections::BTreeMap;
use std::fs::File;

use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::world::World;
use crate::TrainError;
use crate::leaves::leaves;

/// What must be the same on all ranks.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Identity {
    /// Version of the program, and the hash of its file.
    pub program: String,
    /// Hash of the rows.
    pub data: String,
    /// Settings, shapes and hashes of small files, by name.
    pub settings: Value,
}

impl Identity {
    /// The identity of this program with these data and settings.
    pub fn new(data: String, settings: Value) -> Self {
        Self { program: program(), data, settings }
    }

    fn leaves(&self) -> BTreeMap<String, String> {
        leaves(&serde_json::to_value(self).unwrap_or_default())
    }
}

/// Compares the identities of all ranks. A single process has nothing to compare, and does not
/// compute its own.
///
/// # Errors
/// Ranks that differ: every rank gets the same error, with the name and the values of all sides. A
/// rank that ended or hangs.
pub fn agree(world: &World, own: impl FnOnce() -> Identity) -> Result<(), TrainError> {
    if world.world_size() == 1 {
        return Ok(());
    }
    let all: Vec<Identity> = world.gather(&own())?;
    let all: Vec<_> = all.iter().map(Identity::leaves).collect();
    let differences = differences(&all);
    if differences.is_empty() {
        return Ok(());
    }
    Err(TrainError::Usage(format!(
        "the ranks were not started alike: {}. Start all of them with the same program, flags and \
         data",
        differences.join("; ")
    )))
}

fn differences(all: &[BTreeMap<String, String>]) -> Vec<String> {
    let absent = "nothing".to_owned();
    let mut names: Vec<&String> = all.iter().flat_map(BTreeMap::keys).collect();
    names.sort_unstable();
    names.dedup();
    let mut found = Vec::new();
    for name in names {
        // Ranks by what they have.
        let mut sides: Vec<(&String, Vec<usize>)> = Vec::new();
        for (rank, leaves) in all.iter().enumerate() {
            let value = leaves.get(name).unwrap_or(&absent);
            match sides.iter_mut().find(|(other, _)| *other == value) {
                Some((_, ranks)) => ranks.push(rank),
                None => sides.push((value, vec![rank])),
            }
        }
        if sides.len() > 1 {
            let told =
                sides.iter().map(|(value, ranks)| format!("{value} on rank {}", list(ranks)));
            found.push(format!("{name} is {}", told.collect::<Vec<_>>().join(", ")));
        }
    }
    found
}

fn list(ranks: &[usize]) -> String {
    let shown = ranks.iter().take(4).map(ToString::to_string).collect::<Vec<_>>().join(", ");
    if ranks.len() > 4 { format!("{shown} and {} more", ranks.len() - 4) } else { shown }
}

/// Two builds of one version may compute differently, so the file itself is hashed.
fn program() -> String {
    let hash = File::open("/proc/self/exe").and_then(|mut file| {
        let mut hasher = blake3::Hasher::new();
        std::io::copy(&mut file, &mut hasher)?;
        Ok(hasher.finalize().to_hex()[..16].to_owned())
    });
    let build = hash.unwrap_or_else(|error| format!("unknown: {error}"));
    format!("vlm {} ({build})", env!("CARGO_PKG_VERSION"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn identity(lr: f64, data: &str) -> BTreeMap<String, String> {
        let settings = serde_json::json!({"optim": {"learning_rate": lr, "epochs": 4}});
        Identity { program: "vlm 1".into(), data: data.into(), settings }.leaves()
    }

    #[test]
    fn ranks_that_differ_are_told_with_each_sides_value() {
        let all = [identity(0.5, "a"), identity(0.5, "a"), identity(0.25, "b")];
        assert_eq!(
            differences(&all),
            [
                r#"data is "a" on rank 0, 1, "b" on rank 2"#,
                "settings.optim.learning_rate is 0.5 on rank 0, 1, 0.25 on rank 2",
            ]
        );
    }

    #[test]
    fn equal_ranks_have_no_differences() {
        assert!(differences(&[identity(0.5, "a"), identity(0.5, "a")]).is_empty());
    }

    #[test]
    fn the_program_is_told_by_version_and_hash() {
        assert!(program().starts_with("vlm ") && !program().contains("unknown"), "{}", program());
    }
}
