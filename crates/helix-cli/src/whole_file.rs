//! Files that appear when they are complete.

use crate::failure::{Failure, Outcome};
use std::ffi::OsString;
use std::fmt::Display;
use std::fs::{self, File, Metadata, OpenOptions};
use std::io::{self, BufWriter, ErrorKind, Write};
use std::os::fd::AsFd;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

/// A file to write. A regular one gets its name when all of it is there; anything else stays what
/// it is and is written into.
#[derive(Debug)]
pub struct WholeFile {
    path: PathBuf,
    place: Place,
}

/// Where it is written.
#[derive(Debug)]
enum Place {
    /// Into what is there: a device, a FIFO, or a file that this process has as standard output.
    Into,
    /// Beside its place, the end of all links, so that the last step is a rename.
    Beside { target: PathBuf, partial: PathBuf },
}

impl WholeFile {
    /// Refuses what can be known to fail before anything is run; `flag` named the path.
    pub fn new(flag: &str, path: &Path) -> Outcome<WholeFile> {
        let place = Place::of(path)
            .map_err(|problem| Failure::request(format!("{flag} {}: {problem}", path.display())))?;
        Ok(WholeFile { path: path.to_owned(), place })
    }

    /// Where it will be.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Has `write` write it.
    pub fn write<E, W>(&self, write: W) -> Outcome
    where
        E: Display + From<io::Error>,
        W: FnOnce(&mut dyn Write) -> Result<(), E>,
    {
        let written = match &self.place {
            Place::Into => into(&self.path, write),
            Place::Beside { target, partial } => {
                replace(target, partial, write).inspect_err(|_| drop(fs::remove_file(partial)))
            }
        };
        written.map_err(|error| {
            Failure::running(format!("cannot write {}: {error}", self.path.display()))
        })
    }
}

impl Place {
    fn of(path: &Path) -> Result<Place, String> {
        let unwritable = |error: io::Error| format!("cannot write it: {error}");
        match fs::metadata(path) {
            Ok(there) if there.is_dir() => return Err("it is a directory; name a file".to_owned()),
            // Not opened before there is something to write: a FIFO's reader may come later.
            Ok(there) if !there.is_file() || standard(&there).is_some() => return Ok(Place::Into),
            Ok(_) => drop(OpenOptions::new().write(true).open(path).map_err(unwritable)?),
            Err(error) if error.kind() == ErrorKind::NotFound => {}
            Err(error) => return Err(unwritable(error)),
        }
        let target = end_of_links(path);
        let directory = target.parent().filter(|parent| !parent.as_os_str().is_empty());
        let directory = directory.unwrap_or(Path::new("."));
        let Some(name) = target.file_name().filter(|_| directory.is_dir()) else {
            return Err(format!("there is no directory {}", directory.display()));
        };
        let mut partial = OsString::from(".");
        partial.push(name);
        partial.push(format!(".{}", std::process::id()));
        let partial = directory.join(partial);
        File::create(&partial).and_then(|_| fs::remove_file(&partial)).map_err(unwritable)?;
        Ok(Place::Beside { target, partial })
    }
}

/// Writes into what is there.
fn into<E: From<io::Error>>(
    path: &Path,
    write: impl FnOnce(&mut dyn Write) -> Result<(), E>,
) -> Result<(), E> {
    let mut out = match standard(&fs::metadata(path)?) {
        Some(open) => open,
        None => OpenOptions::new().write(true).open(path)?,
    };
    buffered(&mut out, write)
}

/// Writes `partial`, which then takes the place and the mode of `target`.
fn replace<E: From<io::Error>>(
    target: &Path,
    partial: &Path,
    write: impl FnOnce(&mut dyn Write) -> Result<(), E>,
) -> Result<(), E> {
    let mut file = File::create(partial)?;
    match fs::metadata(target) {
        // Before there is anything in it to read.
        Ok(there) => file.set_permissions(there.permissions())?,
        Err(error) if error.kind() == ErrorKind::NotFound => {}
        Err(error) => return Err(error.into()),
    }
    buffered(&mut file, write)?;
    file.sync_all()?;
    Ok(fs::rename(partial, target)?)
}

fn buffered<E: From<io::Error>>(
    file: &mut File,
    write: impl FnOnce(&mut dyn Write) -> Result<(), E>,
) -> Result<(), E> {
    let mut out = BufWriter::new(file);
    write(&mut out)?;
    Ok(out.flush()?)
}

/// What a path leads to, be it there or not.
fn end_of_links(path: &Path) -> PathBuf {
    let mut path = path.to_owned();
    while let Ok(next) = fs::read_link(&path) {
        path = path.parent().unwrap_or(Path::new("")).join(next);
    }
    path
}

/// Standard output or standard error, if that is what is there: what was and what will be said
/// there stays beside the file.
fn standard(there: &Metadata) -> Option<File> {
    let place = |of: &Metadata| (of.dev(), of.ino());
    let is_there = |open: &File| open.metadata().is_ok_and(|open| place(&open) == place(there));
    let (out, error) = (io::stdout(), io::stderr());
    let open = [out.as_fd().try_clone_to_owned(), error.as_fd().try_clone_to_owned()];
    open.into_iter().flatten().map(File::from).find(is_there)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Read;
    use std::os::unix::fs::{FileTypeExt, PermissionsExt, symlink};
    use std::process::Command;
    use tempfile::TempDir;

    fn folder() -> TempDir {
        tempfile::tempdir().unwrap()
    }

    fn write(path: &Path, text: &str) -> Outcome {
        WholeFile::new("--out", path)?.write(|out| out.write_all(text.as_bytes()))
    }

    fn names(folder: &TempDir) -> Vec<String> {
        let names = fs::read_dir(folder.path()).unwrap();
        let mut names: Vec<String> =
            names.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        names
    }

    #[test]
    fn a_fifo_stays_one_and_takes_the_text() {
        let folder = folder();
        let path = folder.path().join("fifo");
        assert!(Command::new("mkfifo").arg(&path).status().unwrap().success());
        // Open for both, it waits for nobody.
        let mut fifo = OpenOptions::new().read(true).write(true).open(&path).unwrap();
        write(&path, "text").unwrap();
        assert!(fs::symlink_metadata(&path).unwrap().file_type().is_fifo());
        let mut read = [0; 4];
        fifo.read_exact(&mut read).unwrap();
        assert_eq!((&read, names(&folder)), (b"text", vec!["fifo".to_owned()]));
    }

    #[test]
    fn links_stay_and_their_end_is_written() {
        let folder = folder();
        let at = |name: &str| folder.path().join(name);
        fs::create_dir(at("data")).unwrap();
        symlink("second", at("first")).unwrap();
        symlink(at("data/file"), at("second")).unwrap();
        for text in ["new", "newer"] {
            write(&at("first"), text).unwrap();
            assert!(at("first").is_symlink() && at("second").is_symlink());
            assert_eq!(fs::read_to_string(at("data/file")).unwrap(), text);
        }
        assert_eq!(names(&folder), ["data", "first", "second"]);
        symlink("loop", at("loop")).unwrap();
        assert!(write(&at("loop"), "text").is_err());
    }

    #[test]
    fn a_file_keeps_its_mode() {
        let folder = folder();
        let path = folder.path().join("file");
        fs::write(&path, "old").unwrap();
        for mode in [0o600, 0o664, 0o755] {
            fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
            write(&path, "new").unwrap();
            assert_eq!(fs::metadata(&path).unwrap().mode() & 0o7777, mode);
        }
    }

    #[test]
    fn a_failure_leaves_what_was_there() {
        let folder = folder();
        let path = folder.path().join("file");
        fs::write(&path, "old").unwrap();
        let file = WholeFile::new("--out", &path).unwrap();
        let failed = file.write(|out| {
            out.write_all(b"half of the ")?;
            Err(io::Error::other("power cut"))
        });
        let text = failed.unwrap_err().to_string();
        assert!(text.contains("cannot write") && text.contains("power cut"), "{text}");
        assert_eq!(fs::read_to_string(&path).unwrap(), "old");
        assert_eq!(names(&folder), ["file"]);
    }

    #[test]
    fn what_cannot_be_written_is_refused_at_once() {
        let folder = folder();
        let file = folder.path().join("file");
        fs::write(&file, "").unwrap();
        for (path, words) in [
            (folder.path().to_owned(), "it is a directory"),
            (folder.path().join("none/file"), "there is no directory"),
            (file.join("below"), "cannot write it"),
            ("/proc/file".into(), "cannot write it"),
        ] {
            let refused = WholeFile::new("--out", &path).unwrap_err();
            assert!(matches!(refused, Failure::Request(_)));
            let text = refused.to_string();
            assert!(text.contains("--out") && text.contains(words), "{text}");
        }
    }
}
