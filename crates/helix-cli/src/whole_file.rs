//! Files that appear when they are complete.

use crate::failure::{Failure, Outcome};
use std::fmt::Display;
use std::fs;
use std::path::{Path, PathBuf};

/// A file to write: it gets its name when all of it is there.
#[derive(Debug)]
pub struct WholeFile {
    path: PathBuf,
    /// Where it is written: beside its place, so that the last step is a rename.
    partial: PathBuf,
}

impl WholeFile {
    /// Refuses what can be known to fail before anything is run; `flag` named the path.
    pub fn new(flag: &str, path: &Path) -> Outcome<WholeFile> {
        let wrong =
            |what: &str| Err(Failure::request(format!("{flag} {}: {what}", path.display())));
        let Some(name) = path.file_name().filter(|_| !path.is_dir()) else {
            return wrong("it is a directory; name a file");
        };
        let directory = path.parent().filter(|parent| !parent.as_os_str().is_empty());
        let directory = directory.unwrap_or(Path::new("."));
        if !directory.is_dir() {
            return wrong(&format!("there is no directory {}", directory.display()));
        }
        let mut partial = std::ffi::OsString::from(".");
        partial.push(name);
        partial.push(format!(".{}", std::process::id()));
        Ok(WholeFile { path: path.to_owned(), partial: directory.join(partial) })
    }

    /// Where it will be.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Has `write` write it, to the path that it is given.
    pub fn write<E: Display>(&self, write: impl FnOnce(&Path) -> Result<(), E>) -> Outcome {
        let failed = |what: &dyn Display| {
            let _ = fs::remove_file(&self.partial);
            Failure::running(format!("cannot write {}: {what}", self.path.display()))
        };
        write(&self.partial).map_err(|error| failed(&error))?;
        let synced = fs::File::open(&self.partial).and_then(|file| file.sync_all());
        synced.and_then(|()| fs::rename(&self.partial, &self.path)).map_err(|error| failed(&error))
    }
}
