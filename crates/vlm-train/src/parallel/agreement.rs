//! Compares program, data and settings of all ranks before the first step. Ranks that differ in
//! them would train without an error, but their result would be useless.

use std::collections::BTreeMap;
use std::fs::File;

use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::world::World;
use crate::TrainError;
use crate::leaves::leaves;

/// Program, data and settings of a rank, which must be the same on all ranks.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct RankIdentity {
    /// Version of the program, and the hash of its file.
    pub program: String,
    /// Hashes of the rows and of their files.
    pub data: String,
    /// Settings, shapes and hashes of small files, by name.
    pub settings: Value,
}

impl RankIdentity {
    /// The identity of this program with the given data and settings.
    pub fn new(data: String, settings: Value) -> Self {
        Self { program: program(), data, settings }
    }

    fn leaves(&self) -> BTreeMap<String, String> {
        let tree = serde_json::to_value(self).unwrap_or_default();
        leaves(&tree).into_iter().map(|(name, value)| (name, value.to_string())).collect()
    }
}

/// Checks that all ranks have the same identity. A single process does not call `own`.
///
/// # Errors
/// Ranks that differ: every rank gets the same error, with each entry that differs and its values.
/// A rank that ended or hangs.
pub fn compare_ranks(world: &World, own: impl FnOnce() -> RankIdentity) -> Result<(), TrainError> {
    if world.world_size() == 1 {
        return Ok(());
    }
    let all: Vec<RankIdentity> = world.gather(&own())?;
    let all: Vec<_> = all.iter().map(RankIdentity::leaves).collect();
    let differences = differences(&all);
    if differences.is_empty() {
        return Ok(());
    }
    Err(TrainError::Usage(format!(
        "the ranks differ: {}. Start all of them with the same program, settings and data",
        differences.join("; ")
    )))
}

/// One text for each entry whose value is not the same on all ranks.
fn differences(all: &[BTreeMap<String, String>]) -> Vec<String> {
    let absent = "absent".to_owned();
    let mut names: Vec<&String> = all.iter().flat_map(BTreeMap::keys).collect();
    names.sort_unstable();
    names.dedup();
    let mut found = Vec::new();
    for name in names {
        let mut ranks_by_value: Vec<(&String, Vec<usize>)> = Vec::new();
        for (rank, leaves) in all.iter().enumerate() {
            let value = leaves.get(name).unwrap_or(&absent);
            match ranks_by_value.iter_mut().find(|(other, _)| *other == value) {
                Some((_, ranks)) => ranks.push(rank),
                None => ranks_by_value.push((value, vec![rank])),
            }
        }
        if ranks_by_value.len() > 1 {
            let values = ranks_by_value
                .iter()
                .map(|(value, ranks)| format!("{value} on rank {}", list(ranks)));
            found.push(format!("{name} is {}", values.collect::<Vec<_>>().join(", ")));
        }
    }
    found
}

fn list(ranks: &[usize]) -> String {
    let shown = ranks.iter().take(4).map(ToString::to_string).collect::<Vec<_>>().join(", ");
    if ranks.len() > 4 { format!("{shown} and {} more", ranks.len() - 4) } else { shown }
}

/// Version of this program and a hash of its file, because two builds of one version may compute
/// differently.
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
        RankIdentity { program: "vlm 1".into(), data: data.into(), settings }.leaves()
    }

    #[test]
    fn each_difference_is_reported_with_its_values_and_ranks() {
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
    fn the_program_is_identified_by_version_and_hash() {
        assert!(program().starts_with("vlm ") && !program().contains("unknown"), "{}", program());
    }
}
