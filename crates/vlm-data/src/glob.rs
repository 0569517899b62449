//! Expands patterns that name many files: `data/train-*.parquet`, `{00000..00012}.tar`,
//! `**/rows.jsonl`.

use std::path::{Path, PathBuf};

/// Deepest level of folders that `**` searches.
const MAX_DEPTH: usize = 16;
/// Largest number of names in braces; more are taken for a mistake.
const MAX_NAMES: usize = 1 << 20;

/// Whether `text` is a pattern and not the name of an existing file or folder.
pub(crate) fn is_pattern(text: &str) -> bool {
    text.contains(['*', '?', '[', '{']) && !Path::new(text).exists()
}

/// The paths that match `pattern`, sorted by name; those of braces are in the order of the braces.
///
/// # Errors
/// A folder that cannot be listed; braces with too many names.
pub(crate) fn expand(pattern: &str) -> std::io::Result<Vec<PathBuf>> {
    let mut paths = Vec::new();
    for pattern in braces(pattern)? {
        let mut found = matches(&pattern)?;
        found.sort();
        // Overlapping alternatives name a file once.
        found.retain(|path| !paths.contains(path));
        paths.extend(found);
    }
    Ok(paths)
}

/// Writes out `{a,b}` and `{08..10}`.
fn braces(pattern: &str) -> std::io::Result<Vec<String>> {
    let Some((before, inner, after)) = pattern.find('{').and_then(|open| {
        let close = open + pattern[open..].find('}')?;
        Some((&pattern[..open], &pattern[open + 1..close], &pattern[close + 1..]))
    }) else {
        return Ok(vec![pattern.to_owned()]);
    };
    let range = inner.split_once("..").and_then(|(first, last)| {
        let (from, to) = (first.parse::<usize>().ok()?, last.parse::<usize>().ok()?);
        Some((from, to, first.len()))
    });
    let too_many = || std::io::Error::other(format!("{{{inner}}} has more than {MAX_NAMES} names"));
    let names: Vec<String> = match range {
        Some((from, to, _)) if to.saturating_sub(from) >= MAX_NAMES => return Err(too_many()),
        Some((from, to, width)) => (from..=to).map(|k| format!("{k:0width$}")).collect(),
        None => inner.split(',').map(str::to_owned).collect(),
    };
    let rest = braces(after)?;
    if names.len().saturating_mul(rest.len()) > MAX_NAMES {
        return Err(too_many());
    }
    let with = |name: &String| {
        let name = name.clone();
        rest.iter().map(move |rest| format!("{before}{name}{rest}")).collect::<Vec<_>>()
    };
    Ok(names.iter().flat_map(with).collect())
}

fn matches(pattern: &str) -> std::io::Result<Vec<PathBuf>> {
    let (start, rest) = match pattern.strip_prefix('/') {
        Some(rest) => (PathBuf::from("/"), rest),
        None => (PathBuf::new(), pattern),
    };
    let mut found = vec![start];
    for part in rest.split('/').filter(|part| !part.is_empty()) {
        let mut next = Vec::new();
        for folder in found {
            if part == "**" {
                below(&folder, 0, &mut next)?;
            } else if part.contains(['*', '?', '[']) {
                for name in names(&folder)? {
                    let is_hidden = name.starts_with('.') && !part.starts_with('.');
                    if !is_hidden && matches_name(part.as_bytes(), name.as_bytes()) {
                        next.push(folder.join(name));
                    }
                }
            } else {
                next.push(folder.join(part));
            }
        }
        found = next;
    }
    found.retain(|path| path.exists());
    Ok(found)
}

/// `folder` and all folders below it, except hidden ones.
fn below(folder: &Path, depth: usize, found: &mut Vec<PathBuf>) -> std::io::Result<()> {
    found.push(folder.to_owned());
    if depth < MAX_DEPTH {
        for name in names(folder)? {
            let path = folder.join(&name);
            if !name.starts_with('.') && path.is_dir() {
                below(&path, depth + 1, found)?;
            }
        }
    }
    Ok(())
}

/// The names in a folder; none if it is not a folder.
fn names(folder: &Path) -> std::io::Result<Vec<String>> {
    let folder = if folder.as_os_str().is_empty() { Path::new(".") } else { folder };
    if !folder.is_dir() {
        return Ok(Vec::new());
    }
    let mut names = Vec::new();
    for entry in std::fs::read_dir(folder)? {
        names.extend(entry?.file_name().into_string());
    }
    Ok(names)
}

/// Whether `name` matches `pattern`, which may have `*`, `?` and `[a-z]`.
fn matches_name(pattern: &[u8], name: &[u8]) -> bool {
    let (mut p, mut n) = (0, 0);
    // Position of the last `*`, and how much of the name it has matched.
    let mut star: Option<(usize, usize)> = None;
    while n < name.len() {
        let step = match pattern.get(p) {
            Some(b'*') => {
                star = Some((p, n));
                p += 1;
                continue;
            }
            Some(b'?') => Some(1),
            Some(b'[') => class(&pattern[p..], name[n]),
            Some(&byte) => (byte == name[n]).then_some(1),
            None => None,
        };
        match (step, star) {
            (Some(step), _) => {
                p += step;
                n += 1;
            }
            (None, Some((at, taken))) => {
                p = at + 1;
                n = taken + 1;
                star = Some((at, taken + 1));
            }
            (None, None) => return false,
        }
    }
    pattern[p..].iter().all(|&byte| byte == b'*')
}

/// The length of the class `[…]` at the start of `pattern`, if `byte` is in it.
fn class(pattern: &[u8], byte: u8) -> Option<usize> {
    let Some(close) = pattern.iter().skip(2).position(|&b| b == b']').map(|at| at + 2) else {
        return (byte == b'[').then_some(1);
    };
    let inner = &pattern[1..close];
    let (is_not, inner) = match inner.split_first() {
        Some((b'!' | b'^', rest)) => (true, rest),
        _ => (false, inner),
    };
    let mut is_in = false;
    let mut at = 0;
    while at < inner.len() {
        if let [first, b'-', last, ..] = inner[at..] {
            is_in |= (first..=last).contains(&byte);
            at += 3;
        } else {
            is_in |= inner[at] == byte;
            at += 1;
        }
    }
    (is_in != is_not).then_some(close + 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn patterns_name_the_files_that_fit() {
        let folder = tempfile::tempdir().unwrap();
        for name in
            ["p-0.jsonl", "p-1.jsonl", "p-10.jsonl", "q.jsonl", ".p-2.jsonl", "d/e/p-3.jsonl"]
        {
            let path = folder.path().join(name);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, "x").unwrap();
        }
        let found = |pattern: &str| {
            let root = folder.path().display();
            let paths = expand(&format!("{root}/{pattern}")).unwrap();
            let name =
                |path: &PathBuf| path.strip_prefix(folder.path()).unwrap().display().to_string();
            paths.iter().map(name).collect::<Vec<_>>()
        };
        assert_eq!(found("p-*.jsonl"), ["p-0.jsonl", "p-1.jsonl", "p-10.jsonl"]);
        assert_eq!(found("p-?.jsonl"), ["p-0.jsonl", "p-1.jsonl"]);
        assert_eq!(found("p-[1-9].jsonl"), ["p-1.jsonl"]);
        assert_eq!(found("p-[!1]*.jsonl"), ["p-0.jsonl"]);
        assert_eq!(found("{q,p-1}.jsonl"), ["q.jsonl", "p-1.jsonl"]);
        assert_eq!(found("p-{0..1}.jsonl"), ["p-0.jsonl", "p-1.jsonl"]);
        assert_eq!(found("*/*/p-*.jsonl"), ["d/e/p-3.jsonl"]);
        assert_eq!(found("**/p-[03].jsonl"), ["d/e/p-3.jsonl", "p-0.jsonl"]);
        assert!(found("none*").is_empty());
        assert_eq!(braces("{08..10}").unwrap(), ["08", "09", "10"]);
        assert!(braces("{0..99999999}").is_err());
    }
}
