//! Files mapped into memory: the one place of this crate with `unsafe`.
#![allow(unsafe_code)]

use std::fs::File;
use std::io;
use std::path::Path;

use memmap2::Mmap;

/// The bytes of a model file, mapped or owned.
#[derive(Debug)]
pub(crate) enum Bytes {
    /// A read-only map: pages are read on first use and shared between processes.
    Mapped(Mmap),
    /// Bytes in memory.
    Owned(Vec<u8>),
}

impl Bytes {
    /// Maps a whole file.
    pub(crate) fn map(path: &Path) -> io::Result<Bytes> {
        // Asked before opening: opening a pipe would wait for its writer.
        let metadata = std::fs::metadata(path)?;
        if !metadata.is_file() {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, "not a regular file"));
        }
        if metadata.len() == 0 {
            return Ok(Bytes::Owned(Vec::new())); // an empty map is an error on some systems
        }
        let file = File::open(path)?;
        // SAFETY: the map is private to this value and only ever read as bytes, for which every
        // bit pattern is valid. The one thing that the type system cannot rule out is another
        // process that writes to or truncates the file meanwhile; every engine that maps its
        // weights relies, as we do, on model files not being edited while they run.
        let map = unsafe { Mmap::map(&file)? };
        Ok(Bytes::Mapped(map))
    }
}

impl std::ops::Deref for Bytes {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        match self {
            Bytes::Mapped(map) => map,
            Bytes::Owned(bytes) => bytes,
        }
    }
}
