//! Circles of imports between the files of a crate: files that import each other can only be
//! understood together. Only `use` statements are read, those of unit tests excepted; a re-export
//! (`pub use`) is no import, and an import of its name is one of the file that has the name.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::PathBuf;

use anyhow::Result;

use super::finding::Finding;
use super::sources::tracked_files;
use crate::workspace::Workspace;

/// Names that lead from the root of a crate to a module, or to an item in it.
type Names = Vec<String>;

/// The files of a crate by their modules, with their texts.
type Files = BTreeMap<Names, (PathBuf, String)>;

/// Looks for a circle in every crate, and reports one of each.
///
/// # Errors
/// git fails.
pub fn check(workspace: &Workspace) -> Result<Vec<Finding>> {
    let mut crates: BTreeMap<String, Files> = BTreeMap::new();
    for file in tracked_files(workspace)? {
        let path = file.to_string_lossy();
        let Some((name, inner)) = path.strip_suffix(".rs").and_then(|p| p.split_once("/src/"))
        else {
            continue;
        };
        // A file that was removed, but not from git yet, has no imports.
        let text = fs::read_to_string(workspace.root().join(&file)).unwrap_or_default();
        let mut module: Names = inner.split('/').map(str::to_owned).collect();
        module.pop_if(|last| ["lib", "main", "mod"].contains(&last.as_str()));
        crates.entry(name.to_owned()).or_default().insert(module, (file, text));
    }
    let circles = crates.values().filter_map(circle_among);
    Ok(circles
        .map(|circle| Finding { message: describe(&circle), file: circle[0].clone(), line: 1 })
        .collect())
}

fn describe(circle: &[PathBuf]) -> String {
    let names: Vec<_> = circle.iter().map(|file| file.display().to_string()).collect();
    let circle = names.join(" imports ");
    format!("{circle}: files import each other; move what they share to a file below them")
}

/// The files of one circle, the first one again at the end; `None` if there is none.
fn circle_among(files: &Files) -> Option<Vec<PathBuf>> {
    let uses: BTreeMap<_, _> =
        files.iter().map(|(module, (_, text))| (module, uses(text))).collect();
    let mut imports: BTreeMap<&Names, BTreeSet<&Names>> = BTreeMap::new();
    for (&module, paths) in &uses {
        for (path, _) in paths.iter().filter(|(_, is_reexport)| !is_reexport) {
            let mut wanted = absolute(module, path, files);
            while let Some(path) = wanted {
                let len = (0..=path.len()).rev().find(|&len| files.contains_key(&path[..len]));
                let (target, _) = files.get_key_value(&path[..len?])?;
                // The name may be re-exported from another file.
                let name = path.get(target.len());
                let reexport = uses[target].iter().find(|(path, is)| *is && path.last() == name);
                wanted = reexport.and_then(|(path, _)| absolute(target, path, files));
                if wanted.is_none() && target != module {
                    imports.entry(module).or_default().insert(target);
                }
            }
        }
    }
    // Files that import none of the others are in no circle.
    let mut num_left = usize::MAX;
    while imports.len() < num_left {
        num_left = imports.len();
        let left: BTreeSet<&Names> = imports.keys().copied().collect();
        imports.values_mut().for_each(|targets| targets.retain(|target| left.contains(target)));
        imports.retain(|_, targets| !targets.is_empty());
    }
    // Each of those left imports another one of them, so a walk among them meets itself.
    let mut walk = vec![*imports.keys().next()?];
    loop {
        let next = *imports[walk[walk.len() - 1]].first()?;
        let start = walk.iter().position(|module| *module == next);
        walk.push(next);
        if let Some(start) = start {
            return Some(walk[start..].iter().map(|module| files[*module].0.clone()).collect());
        }
    }
}

/// The path from the root of the crate; `None` for a path into another crate.
fn absolute(module: &Names, path: &[String], files: &Files) -> Option<Names> {
    let ups = path.iter().take_while(|name| *name == "super").count();
    let child = [module.as_slice(), &path[..1]].concat();
    let (base, rest) = match path[0].as_str() {
        "crate" => (&[][..], &path[1..]),
        "self" => (&module[..], &path[1..]),
        "super" => (&module[..module.len().checked_sub(ups)?], &path[ups..]),
        _ if files.contains_key(&child) => (&module[..], path),
        _ => return None,
    };
    Some([base, rest].concat())
}

/// The paths of the `use` statements of a file, and whether each is re-exported.
fn uses(text: &str) -> Vec<(Names, bool)> {
    let product = text.split("#[cfg(test)]\nmod ").next().unwrap_or_default();
    let is_code = |line: &&str| !line.trim_start().starts_with("//");
    let code: String = product.lines().filter(is_code).flat_map(|line| [line, "\n"]).collect();
    let mut paths = Vec::new();
    for statement in code.split(';') {
        let Some((before, tree)) = statement.rsplit_once("use ") else { continue };
        let is_reexport = before.rsplit('\n').next().is_some_and(|line| line.contains("pub"));
        let mut written_out = Vec::new();
        write_out("", &tree.split_whitespace().collect::<Vec<_>>().join(" "), &mut written_out);
        paths.extend(written_out.into_iter().map(|path| (path, is_reexport)));
    }
    paths
}

/// Adds the paths of a tree such as `a::{b, c::{D, E}}`.
fn write_out(prefix: &str, tree: &str, paths: &mut Vec<Names>) {
    let Some((start, group)) = tree.trim().split_once('{') else {
        let path = tree.trim().split(" as ").next().unwrap_or_default();
        paths.push(format!("{prefix}{path}").split("::").map(str::to_owned).collect());
        return;
    };
    let mut depth = 0;
    let parts = group.trim_end_matches(' ').strip_suffix('}').unwrap_or(group).split(|c: char| {
        depth += i32::from(c == '{') - i32::from(c == '}');
        c == ',' && depth == 0
    });
    parts
        .filter(|part| !part.trim().is_empty())
        .for_each(|part| write_out(&format!("{prefix}{start}"), part, paths));
}

#[cfg(test)]
mod tests {
    use super::*;

    fn circle(files: &[(&str, &str)]) -> Option<String> {
        let files = files.iter().map(|&(name, text)| {
            let names = name.split('/').filter(|name| !name.is_empty()).map(str::to_owned);
            (names.collect(), (PathBuf::from(name), text.to_owned()))
        });
        circle_among(&files.collect()).map(|circle| describe(&circle))
    }

    #[test]
    fn files_that_import_each_other_are_found() {
        let above =
            ("a", "use std::fmt;\nuse crate::{\n    b::B,\n    c::{self, d::D as E},\n};\n");
        assert_eq!(circle(&[above, ("b", "struct B;"), ("c", "use super::b::B;")]), None);
        let found = circle(&[above, ("b", "fn f() {}\nuse crate::c::C;"), ("c", "use super::b;")]);
        assert!(found.unwrap().starts_with("b imports c imports b: "));
        let child = circle(&[("a", "mod x;\nuse x::X;"), ("a/x", "use super::T;")]);
        assert!(child.unwrap().starts_with("a imports a/x imports a: "));
    }

    #[test]
    fn a_re_export_is_no_import_and_its_users_import_the_file_behind_it() {
        let root = ("", "mod a;\nmod b;\npub use a::A;\npub(crate) use b::B;");
        let tests = "// use crate::A;\n#[cfg(test)]\nmod tests {\n    use crate::A;\n}";
        assert_eq!(circle(&[root, ("a", "use crate::B;"), ("b", tests)]), None);
        let found = circle(&[root, ("a", "use crate::B;"), ("b", "use crate::{A, C};")]);
        assert!(found.unwrap().starts_with("a imports b imports a: "));
    }
}
