//! Divides the CPU cores of this machine among its ranks, in disjoint sets, so that ranks do not
//! compete for a core.

use std::collections::BTreeSet;
use std::fs;

/// Number of cores that the affinity system call supports.
const MAX_CORES: usize = 1024;

/// The cores that this process may use, divided among `nproc` ranks. `None` if there are fewer
/// cores than ranks, or if the cores are unknown.
pub fn shares(nproc: usize) -> Option<Vec<Vec<usize>>> {
    let status = fs::read_to_string("/proc/self/status").ok()?;
    let list = status.lines().find_map(|line| line.strip_prefix("Cpus_allowed_list:"))?;
    let mut cores = parse_list(list.trim())?;
    if cores.iter().any(|&core| core >= MAX_CORES) {
        return None;
    }
    cores.sort_by_key(|&core| (socket_and_core(core), core));
    divide(&cores, nproc)
}

/// The socket and the physical core of a logical core. Sorted by these, the hardware threads of a
/// core are in the same set, and a set is on one socket where possible.
fn socket_and_core(core: usize) -> (usize, usize) {
    let read = |name: &str| {
        let path = format!("/sys/devices/system/cpu/cpu{core}/topology/{name}");
        fs::read_to_string(path).ok().and_then(|text| text.trim().parse().ok())
    };
    (read("physical_package_id").unwrap_or(0), read("core_id").unwrap_or(core))
}

/// Divides `cores` into `nproc` sets of neighbours, whose sizes differ by at most one.
fn divide(cores: &[usize], nproc: usize) -> Option<Vec<Vec<usize>>> {
    if nproc == 0 || cores.len() < nproc {
        return None;
    }
    let start = |rank: usize| rank * cores.len() / nproc;
    Some((0..nproc).map(|rank| cores[start(rank)..start(rank + 1)].to_vec()).collect())
}

/// Parses a list of cores: `0-3,8` gives 0, 1, 2, 3, 8.
fn parse_list(list: &str) -> Option<Vec<usize>> {
    let mut cores = BTreeSet::new();
    for part in list.split(',') {
        let (first, last) = part.split_once('-').unwrap_or((part, part));
        cores.extend(first.parse::<usize>().ok()?..=last.parse().ok()?);
    }
    Some(cores.into_iter().collect())
}

/// Formats a list of cores: 0, 1, 2, 3, 8 gives `0-3,8`.
pub fn list(cores: &[usize]) -> String {
    let mut cores = cores.to_vec();
    cores.sort_unstable();
    let runs = cores.chunk_by(|a, b| a + 1 == *b);
    let run = |run: &[usize]| match run {
        [first, .., last] => format!("{first}-{last}"),
        _ => run.iter().map(ToString::to_string).collect(),
    };
    runs.map(run).collect::<Vec<_>>().join(",")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shares_are_disjoint_and_cover_all_cores() {
        let cores: Vec<usize> = (0..10).collect();
        let shares = divide(&cores, 4).unwrap();
        assert_eq!(shares.concat(), cores);
        assert!(shares.iter().all(|share| (2..=3).contains(&share.len())), "{shares:?}");
        assert_eq!(divide(&cores, 11), None);
    }

    #[test]
    fn core_lists_are_parsed_and_formatted() {
        assert_eq!(parse_list("0-3,8"), Some(vec![0, 1, 2, 3, 8]));
        assert_eq!(parse_list("x"), None);
        assert_eq!(list(&[8, 0, 1, 2, 3]), "0-3,8");
    }

    #[test]
    fn cores_of_this_machine_are_found() {
        assert!(!shares(1).unwrap()[0].is_empty());
    }
}
