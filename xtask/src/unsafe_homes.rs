//! Unsafe code has few homes; a file elsewhere that holds the word fails the check.

use std::fs;
use std::path::Path;

use anyhow::{Context, Result, bail};

use crate::shell;

/// Files, or folders by their last `/`, from the workspace's root.
const HOMES: [&str; 6] = [
    "crates/helix-kernels/src/arch/",
    "crates/helix-kernels/src/columns.rs",
    "crates/helix-model/src/mmap.rs",
    "crates/helix-comm/src/team.rs",
    "crates/helix-comm/src/threads.rs",
    "crates/helix-comm/src/mpi/",
];

/// The keyword, spelled so that this file does not hold it.
const KEYWORD: &str = concat!("un", "safe");

/// An error that lists every file with unsafe code outside its homes.
pub fn check() -> Result<()> {
    let mut wrong = Vec::new();
    for folder in ["crates", "xtask", "fuzz"] {
        let folder = shell::root().join(folder);
        if folder.exists() {
            search(&folder, &mut wrong)?;
        }
    }
    if !wrong.is_empty() {
        bail!("{}\nits homes: xtask/src/unsafe_homes.rs", wrong.join("\n"));
    }
    Ok(())
}

fn search(folder: &Path, wrong: &mut Vec<String>) -> Result<()> {
    for entry in fs::read_dir(folder)? {
        let path = entry?.path();
        if path.is_dir() {
            if path.file_name().is_some_and(|name| name != "target") {
                search(&path, wrong)?;
            }
        } else if path.extension().is_some_and(|end| end == "rs") {
            let name = path.strip_prefix(shell::root())?.to_string_lossy().replace('\\', "/");
            let text = fs::read_to_string(&path).with_context(|| name.clone())?;
            let home = HOMES.iter().any(|home| name == *home || is_inside(&name, home));
            if is_root(&name) && !root_is_closed(&name, &text) {
                wrong.push(format!("{name}: its root must forbid {KEYWORD} code"));
            }
            if let Some(line) = first_use(&text).filter(|_| !home) {
                wrong.push(format!("{name}:{line}: {KEYWORD} code outside its homes"));
            }
        }
    }
    Ok(())
}

fn is_root(name: &str) -> bool {
    let root = name.ends_with("/src/lib.rs") || name.ends_with("/src/main.rs");
    root && !name.starts_with("fuzz/")
}

fn is_inside(name: &str, home: &str) -> bool {
    home.ends_with('/') && name.starts_with(home)
}

/// The first line whose code (not its `//` comment) has the keyword as a word of its own.
///
/// Strings and block comments count as code: only a home has a reason for the word there.
fn first_use(text: &str) -> Option<usize> {
    let is_word = |c: char| c.is_alphanumeric() || c == '_';
    let uses = |line: &str| {
        let code = line.split("//").next().unwrap_or_default();
        code.split(|c| !is_word(c)).any(|word| word == KEYWORD)
    };
    text.lines().position(uses).map(|index| index + 1)
}

/// What a crate's root must say: that it has no such code, or that its homes alone may allow it.
fn root_is_closed(name: &str, text: &str) -> bool {
    let folder = name.trim_end_matches("lib.rs").trim_end_matches("main.rs");
    let word = if HOMES.iter().any(|home| home.starts_with(folder)) { "deny" } else { "forbid" };
    text.contains(&format!("#![{word}({KEYWORD}_code)]"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_keyword_counts_in_code_only() {
        let with = |before: &str, after: &str| format!("fn f() {{}}\n{before}{KEYWORD}{after}\n");
        assert_eq!(first_use(&with("let x = ", " { *p };")), Some(2));
        assert_eq!(first_use(&with("", " impl Send for X {}")), Some(2));
        assert_eq!(first_use(&with("// no ", " here")), None);
        assert_eq!(first_use(&with("#![forbid(", "_code)]")), None);
        assert_eq!(first_use(&with("#![deny(", "_op_in_fn)]")), None);
    }

    #[test]
    fn a_root_without_homes_forbids() {
        let says = |word: &str| format!("#![{word}({KEYWORD}_code)]\n");
        assert!(root_is_closed("crates/helix-layout/src/lib.rs", &says("forbid")));
        assert!(!root_is_closed("crates/helix-layout/src/lib.rs", &says("deny")));
        assert!(root_is_closed("crates/helix-model/src/lib.rs", &says("deny")));
        assert!(!root_is_closed("crates/helix-cli/src/main.rs", "fn main() {}"));
    }

    #[test]
    fn a_folder_is_a_home_of_its_files_only() {
        assert!(is_inside("crates/a/src/arch/x/y.rs", "crates/a/src/arch/"));
        assert!(!is_inside("crates/a/src/arch.rs", "crates/a/src/arch/"));
        assert!(!is_inside("crates/a/src/mmap.rs.rs", "crates/a/src/mmap.rs"));
    }
}
