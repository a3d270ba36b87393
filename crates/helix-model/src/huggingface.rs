//! A directory as Hugging Face's libraries write it: `config.json`, safetensors, tokenizer.

mod json;
mod safetensors;
mod text;

use std::collections::{BTreeMap, HashMap, HashSet};
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use serde::de::DeserializeOwned;

pub(crate) use json::Json;
pub(crate) use safetensors::Entry;

use crate::arch::names::{OUTER, PREFIXES};
use crate::config::Config;
use crate::mmap::Bytes;
use crate::{Arch, ModelError};

const CONFIG: &str = "config.json";
const SINGLE: &str = "model.safetensors";
const INDEX: &str = "model.safetensors.index.json";

/// The LM head's place in [`OUTER`].
const HEAD: usize = 2;

/// Longest JSON file that is read: an index of half a million tensors has a tenth of it.
const MAX_JSON_BYTES: u64 = 256 << 20;

/// An open directory: every tensor's place is known and checked, nothing of them is read.
#[derive(Debug)]
pub struct Directory {
    path: PathBuf,
    /// Where `config` was read.
    config_path: PathBuf,
    config: serde_json::Value,
    files: Vec<Bytes>,
    tensors: HashMap<String, Located>,
    /// What stands before `layers`.
    prefix: &'static str,
    /// The full names of [`OUTER`]: the embedding's is looked up in the middle of steps.
    outer: [String; 3],
}

/// A tensor and the file that it is in.
#[derive(Debug)]
pub(crate) struct Located {
    file: usize,
    pub entry: Entry,
}

impl Directory {
    /// Reads `config.json` and maps `model.safetensors`, or all files of its index.
    pub(crate) fn open(path: &Path) -> Result<Directory, ModelError> {
        let config_path = path.join(CONFIG);
        let config = read_json(&config_path)?;
        let config = config.ok_or_else(|| ModelError::NoConfig { path: path.to_owned() })?;
        let mut directory = Directory::new(path.to_owned(), config_path, config)?;
        let index: Option<Index> = read_json(&path.join(INDEX))?;
        match index {
            Some(index) => directory.map_index(&index)?,
            None if path.join(SINGLE).exists() => {
                directory.map_file(SINGLE, &|_| true)?;
            }
            None => return Err(ModelError::NoWeights { path: path.to_owned() }),
        }
        directory.find_prefix();
        Ok(directory)
    }

    /// Reads the configuration alone, whatever its file is called: no tensor is known.
    pub(crate) fn without_weights(config_path: &Path) -> Result<Directory, ModelError> {
        let config = read_json(config_path)?.ok_or_else(|| ModelError::Io {
            path: config_path.to_owned(),
            source: io::ErrorKind::NotFound.into(),
        })?;
        let parent = config_path.parent().filter(|parent| !parent.as_os_str().is_empty());
        let parent = parent.unwrap_or(Path::new("."));
        Directory::new(parent.to_owned(), config_path.to_owned(), config)
    }

    fn new(
        path: PathBuf,
        config_path: PathBuf,
        config: serde_json::Value,
    ) -> Result<Directory, ModelError> {
        let directory = Directory {
            path,
            config_path,
            config,
            files: Vec::new(),
            tensors: HashMap::new(),
            prefix: "",
            outer: Default::default(),
        };
        directory.config()?;
        Ok(directory)
    }

    fn map_index(&mut self, index: &Index) -> Result<(), ModelError> {
        let in_index = |error: ModelError| error.in_file(&self.path.join(INDEX));
        let mut files: BTreeMap<&str, Vec<&str>> = BTreeMap::new();
        for (name, file) in &index.weight_map {
            if !is_plain(file) {
                return Err(in_index(ModelError::OutsideDirectory {
                    name: name.clone(),
                    file: file.clone(),
                }));
            }
            files.entry(file).or_default().push(name);
        }
        for (file, names) in files {
            // A tensor may lie in two files; the index says which of them counts.
            let found = self.map_file(file, &|name| {
                index.weight_map.get(name).is_none_or(|wanted| wanted == file)
            })?;
            if let Some(name) = names.into_iter().find(|name| self.file_of(name) != Some(found)) {
                let (name, file) = (name.to_owned(), file.to_owned());
                let error = ModelError::NotInFile { name, file };
                return Err(error.in_file(&self.path.join(INDEX)));
            }
        }
        Ok(())
    }

    /// Maps a file and takes those of its tensors that are `wanted`.
    fn map_file(&mut self, name: &str, wanted: &dyn Fn(&str) -> bool) -> Result<usize, ModelError> {
        let path = self.path.join(name);
        let bytes =
            Bytes::map(&path).map_err(|source| ModelError::Io { path: path.clone(), source })?;
        let entries = safetensors::parse(&bytes).map_err(|error| error.in_file(&path))?;
        let file = self.files.len();
        self.files.push(bytes);
        for (name, entry) in entries.into_iter().filter(|(name, _)| wanted(name)) {
            if self.tensors.contains_key(&name) {
                return Err(ModelError::DuplicateTensor { name }.in_file(&path));
            }
            self.tensors.insert(name, Located { file, entry });
        }
        Ok(file)
    }

    fn file_of(&self, name: &str) -> Option<usize> {
        self.tensors.get(name).map(|tensor| tensor.file)
    }

    /// The directory itself.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Length of all weight files together.
    pub fn file_bytes(&self) -> usize {
        self.files.iter().map(|file| file.len()).sum()
    }

    /// Every tensor's name, dtype and bytes, in no particular order.
    pub fn tensors(&self) -> impl Iterator<Item = (&str, &'static str, usize)> {
        self.tensors.iter().map(|(name, Located { entry, .. })| {
            (name.as_str(), entry.dtype.name, entry.bytes.len())
        })
    }

    fn find_prefix(&mut self) {
        let (_, embedding) = OUTER[0];
        let has = |prefix: &str| self.tensors.contains_key(&format!("{prefix}{embedding}"));
        let found = PREFIXES.into_iter().find(|(prefix, _)| has(prefix));
        let (prefix, head) = found.unwrap_or(PREFIXES[0]);
        self.prefix = prefix;
        self.outer = [0, 1, HEAD].map(|place| {
            let prefix = if place == HEAD { head } else { prefix };
            format!("{prefix}{}", OUTER[place].1)
        });
    }

    /// The full name of one of [`OUTER`].
    pub(crate) fn outer_name(&self, place: usize) -> &str {
        &self.outer[place]
    }

    /// The full name of a layer's tensor.
    pub(crate) fn layer_name(&self, layer: &str, name: &str) -> String {
        format!("{}layers.{layer}.{name}", self.prefix)
    }

    pub(crate) fn has_head(&self) -> bool {
        self.tensors.contains_key(self.outer_name(HEAD))
    }

    /// Whether a tensor is one of `known`, belongs to one of them, or is rightly left out: a copy of
    /// the embedding, frequencies that the configuration gives, what sees images, and DeepSeek's
    /// layers that predict tokens further on.
    pub(crate) fn accounts_for(
        &self,
        name: &str,
        config: &Config,
        known: &HashSet<String>,
    ) -> bool {
        let partner = |suffix: &str, of: &str| {
            name.strip_suffix(suffix).is_some_and(|stem| known.contains(&format!("{stem}{of}")))
        };
        let beyond = || {
            let layer = name.strip_prefix(self.prefix)?.strip_prefix("layers.")?;
            let layer: usize = layer.split_once('.')?.0.parse().ok()?;
            Some(layer >= config.layers && config.arch == Arch::DeepSeek)
        };
        known.contains(name)
            || partner("_scale_inv", "")
            || partner("_scales", "_blocks")
            || (config.tied_head && name == self.outer_name(HEAD))
            || name.ends_with(".rotary_emb.inv_freq")
            || (config.arch == Arch::Gemma3
                && (name.contains("vision_tower.") || name.contains("multi_modal_projector.")))
            || beyond().unwrap_or(false)
    }

    pub(crate) fn config(&self) -> Result<Json<'_>, ModelError> {
        Json::new(&self.config).map_err(|error| self.in_config(error))
    }

    pub(crate) fn in_config(&self, error: ModelError) -> ModelError {
        error.in_file(&self.config_path)
    }

    /// The name of a configuration that is not called as in directories.
    pub(crate) fn own_config_name(&self) -> Option<String> {
        let name = self.config_path.file_name().filter(|name| *name != CONFIG)?;
        Some(name.to_string_lossy().into_owned())
    }

    /// A tensor with its name as the directory has it.
    pub(crate) fn tensor(&self, name: &str) -> Option<(&str, &Located)> {
        self.tensors.get_key_value(name).map(|(name, tensor)| (name.as_str(), tensor))
    }

    pub(crate) fn data(&self, tensor: &Located) -> &[u8] {
        &self.files[tensor.file][tensor.entry.bytes.clone()]
    }

    /// One of the other JSON files, if it is there.
    pub(crate) fn json(&self, name: &str) -> Result<Option<serde_json::Value>, ModelError> {
        read_json(&self.path.join(name))
    }

    /// One of the other files, if it is there.
    pub(crate) fn text(&self, name: &str) -> Result<Option<String>, ModelError> {
        let path = self.path.join(name);
        let Some(bytes) = read(&path)? else { return Ok(None) };
        let text = String::from_utf8(bytes)
            .map_err(|_| ModelError::Utf8 { what: "the text".to_owned(), offset: 0 });
        text.map(Some).map_err(|error| error.in_file(&path))
    }

    /// The path of one of its files, for errors.
    pub(crate) fn file(&self, name: &str) -> PathBuf {
        self.path.join(name)
    }
}

#[derive(serde::Deserialize)]
struct Index {
    weight_map: HashMap<String, String>,
}

/// Whether a file name stays in its directory. What a symbolic link of that name points to is the
/// business of whoever made the link: the Hugging Face cache consists of them.
fn is_plain(file: &str) -> bool {
    let mut components = Path::new(file).components();
    let first = components.next();
    matches!(first, Some(std::path::Component::Normal(name)) if name == file)
        && components.next().is_none()
        && !file.contains(['/', '\\', '\0'])
}

fn read_json<T: DeserializeOwned>(path: &Path) -> Result<Option<T>, ModelError> {
    let Some(bytes) = read(path)? else { return Ok(None) };
    let parsed = serde_json::from_slice(&bytes);
    parsed.map(Some).map_err(|error| ModelError::Json { problem: error.to_string() }.in_file(path))
}

/// The bytes of a file that may be absent.
fn read(path: &Path) -> Result<Option<Vec<u8>>, ModelError> {
    let io = |source| ModelError::Io { path: path.to_owned(), source };
    match fs::metadata(path) {
        Ok(metadata) if metadata.is_file() && metadata.len() > MAX_JSON_BYTES => {
            let problem =
                format!("it has {} bytes; up to {MAX_JSON_BYTES} are read", metadata.len());
            Err(ModelError::Json { problem }.in_file(path))
        }
        // Asked before opening: opening a pipe would wait for its writer.
        Ok(metadata) if !metadata.is_file() => {
            Err(io(io::Error::new(io::ErrorKind::InvalidInput, "not a regular file")))
        }
        Ok(_) => fs::read(path).map(Some).map_err(io),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(io(error)),
    }
}

#[cfg(test)]
mod tests;
