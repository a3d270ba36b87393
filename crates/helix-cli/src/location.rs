//! Where a model is: a file, a directory, a name in the user's cache directory, or on the Hub.

use crate::console::Console;
use crate::failure::{Failure, Outcome};
use std::env;
use std::path::{Path, PathBuf};

/// The file or directory that `model` names; it may have to be downloaded first.
pub fn find(model: &Path, console: &Console) -> Outcome<PathBuf> {
    if let Some(name) = model.to_str().and_then(|model| model.strip_prefix("hf:")) {
        return on_hub(name, console);
    }
    find_in(model, models().as_deref())
}

#[cfg(feature = "hub")]
fn on_hub(name: &str, console: &Console) -> Outcome<PathBuf> {
    crate::hub::HubModel::parse(name)?.directory(console)
}

#[cfg(not(feature = "hub"))]
fn on_hub(name: &str, _: &Console) -> Outcome<PathBuf> {
    Err(Failure::request(format!(
        "hf:{name}: this helix was built without downloads (the cargo feature `hub`): download the \
         model elsewhere and give its directory"
    )))
}

/// Whether `model` is the name of a model in the user's cache directory.
pub fn is_cached(model: &Path) -> bool {
    let names = models().map(|cache| cached(&cache)).unwrap_or_default();
    cached_name(model).is_some_and(|name| names.iter().any(|n| n.eq_ignore_ascii_case(name)))
}

fn find_in(model: &Path, cache: Option<&Path>) -> Outcome<PathBuf> {
    if model.exists() {
        return Ok(model.to_owned());
    }
    let looked = format!("there is no file or directory {}", model.display());
    let Some(name) = cached_name(model) else {
        return Err(Failure::request(match is_hub_name(model) {
            true => format!("{looked}; for a model of the Hub write hf:{}", model.display()),
            false => looked,
        }));
    };
    let Some(cache) = cache else {
        return Err(Failure::request(format!(
            "{looked}, and neither XDG_CACHE_HOME nor HOME says where fetched models are"
        )));
    };
    let names = cached(cache);
    let found = names.iter().find(|known| known.eq_ignore_ascii_case(name));
    let path = cache.join(format!("{}.gguf", found.map_or(name, String::as_str)));
    if found.is_some() {
        return Ok(path);
    }
    let there = match names.is_empty() {
        true => "no models are cached there; `cargo x model NAME` fetches one".to_owned(),
        false => format!("models cached there: {}", names.join(", ")),
    };
    Err(Failure::request(format!("{looked}, and no {}; {there}", path.display())))
}

/// Whether it reads like a model's name on the Hub, which is no path's by itself.
fn is_hub_name(model: &Path) -> bool {
    let parts = model.to_str().map(|name| name.split('/').collect::<Vec<_>>());
    matches!(parts.as_deref(), Some([owner, name]) if !owner.is_empty() && !owner.starts_with('.')
        && !name.is_empty() && !name.ends_with(".gguf"))
}

/// `model` as the name of a cached model, if it can be one.
fn cached_name(model: &Path) -> Option<&str> {
    let name = model.to_str()?;
    let plain = !name.is_empty() && !name.contains(['/', '\\']) && !name.starts_with('.');
    plain.then(|| name.strip_suffix(".gguf").unwrap_or(name))
}

/// Where fetched models are.
fn models() -> Option<PathBuf> {
    Some(cache_directory()?.join("models"))
}

/// `helix` in the user's cache directory.
pub fn cache_directory() -> Option<PathBuf> {
    let set = |name| env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    let cache = set("XDG_CACHE_HOME").or_else(|| Some(set("HOME")?.join(".cache")));
    Some(cache?.join("helix"))
}

/// Names of the models in `cache`, sorted.
fn cached(cache: &Path) -> Vec<String> {
    let files = std::fs::read_dir(cache).into_iter().flatten().flatten();
    let name = |file: std::fs::DirEntry| {
        file.file_name().to_str().and_then(|name| name.strip_suffix(".gguf").map(str::to_owned))
    };
    let mut names: Vec<String> = files.filter_map(name).collect();
    names.sort();
    names
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

    fn refusal(model: &str, cache: Option<&Path>) -> String {
        match find_in(Path::new(model), cache) {
            Err(Failure::Request(error)) => error.to_string(),
            other => panic!("{model}: {other:?}"),
        }
    }

    #[test]
    fn names_are_found_in_the_cache_and_others_are_listed() {
        let cache = tempfile::tempdir().unwrap();
        let none = refusal("no-such-model", Some(cache.path()));
        assert!(none.contains("no models are cached there"), "{none}");
        for name in ["b.gguf", "a.gguf", "notes.txt"] {
            fs::write(cache.path().join(name), "").unwrap();
        }
        let found = find_in(Path::new("a"), Some(cache.path())).unwrap();
        assert_eq!(found, cache.path().join("a.gguf"));
        assert_eq!(find_in(Path::new("a.gguf"), Some(cache.path())).unwrap(), found);
        let others = refusal("no-such-model", Some(cache.path()));
        assert!(others.ends_with("models cached there: a, b"), "{others}");
    }

    #[test]
    fn paths_are_not_names() {
        let cache = tempfile::tempdir().unwrap();
        fs::write(cache.path().join("a.gguf"), "").unwrap();
        let text = refusal("no/such/a", Some(cache.path()));
        assert_eq!(text, "there is no file or directory no/such/a");
        let hub = refusal("Org/Model-1B", Some(cache.path()));
        assert!(hub.ends_with("write hf:Org/Model-1B"), "{hub}");
        assert!(!refusal("models/a.gguf", Some(cache.path())).contains("hf:"));
        assert!(refusal("a", None).contains("XDG_CACHE_HOME"));
    }
}
