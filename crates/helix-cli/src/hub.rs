//! `hf:ORG/NAME[@REV]`: a model of the Hugging Face Hub, in the Hub's own cache.
//!
//! Small files come first: with the index among them, the weights that are fetched are those that
//! will be opened, and no copies of them in other formats.

mod watch;

use crate::console::{Bar, Console, Unit};
use crate::failure::{Failure, Outcome};
use hf_hub::progress::{DownloadEvent, FileProgress, ProgressEvent, ProgressHandler};
use hf_hub::repository::RepoTypeModel;
use hf_hub::{HFClientBuilder, HFError, HFRepositorySync, resolve_cache_dir};
use std::collections::{BTreeSet, HashMap};
use std::env;
use std::fmt;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use watch::{Limits, Watch, watched};

const DEFAULT_REVISION: &str = "main";
const DEFAULT_ENDPOINT: &str = "https://huggingface.co";
const INDEX: &str = "model.safetensors.index.json";
const SINGLE: &str = "model.safetensors";

/// One of them must be there.
const TOKENIZERS: [&str; 2] = ["tokenizer.json", "tiktoken.model"];

/// What says how to run a model, and where its weights are. Kimi's Python file has the pattern of its
/// tokenizer, and is not run.
const SMALL: [&str; 8] = [
    "config.json",
    "generation_config.json",
    TOKENIZERS[0],
    TOKENIZERS[1],
    "tokenization_kimi.py",
    "tokenizer_config.json",
    "chat_template.jinja",
    INDEX,
];

/// Requests that fail for want of a connection are repeated so often: for about two seconds.
const ATTEMPTS: usize = 3;

/// How long the Hub may be silent, in seconds, and what sets another time: before it is known what
/// to download, and then between bytes. Hugging Face's own libraries have these names, too.
const ANSWER: (&str, f64) = ("HF_HUB_ETAG_TIMEOUT", 30.0);
const BYTES: (&str, f64) = ("HF_HUB_DOWNLOAD_TIMEOUT", 60.0);

/// A model by its name on the Hub.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HubModel {
    owner: String,
    name: String,
    revision: String,
}

impl HubModel {
    /// Reads what follows `hf:`.
    pub fn parse(text: &str) -> Outcome<HubModel> {
        let (model, revision) = text.split_once('@').unwrap_or((text, DEFAULT_REVISION));
        let parts = model.split_once('/').filter(|(owner, name)| is_name(owner) && is_name(name));
        match parts {
            Some((owner, name)) if revision.split('/').all(is_name) => Ok(HubModel {
                owner: owner.to_owned(),
                name: name.to_owned(),
                revision: revision.to_owned(),
            }),
            _ => Err(Failure::request(format!(
                "hf:{text} names no model of the Hub: write hf:ORG/NAME, as in \
                 hf:Qwen/Qwen3-0.6B, or hf:ORG/NAME@REV with a branch, tag or commit"
            ))),
        }
    }

    /// The directory of its files, which are downloaded if they are not cached. Where the Hub is
    /// out of reach, what is cached is used as it is.
    pub fn directory(&self, console: &Console) -> Outcome<PathBuf> {
        if is_commit(&self.revision)
            && let Some(path) = self.cached().filter(|path| missing(path).is_none())
        {
            return Ok(path);
        }
        if is_offline() {
            return self.without_network("HF_HUB_OFFLINE says not to ask the Hub", None);
        }
        console.note(&format!("{self}: asking {}", endpoint()));
        let limits = Limits { answer: seconds(ANSWER)?, bytes: seconds(BYTES)? };
        let (model, own_console) = (self.clone(), *console);
        match watched(limits, move |watch| model.download(&own_console, watch)) {
            Ok(Ok(path)) => Ok(path),
            Ok(Err(error)) if is_answer(&error) => Err(self.refused(error)),
            Ok(Err(HFError::Io(error))) => Err(Failure::running(format!(
                "cannot write to {}: {error}",
                resolve_cache_dir().display()
            ))),
            Ok(Err(error)) => {
                let problem = format!("{} does not answer as the Hub does", endpoint());
                self.out_of_reach(console, &problem, Some(error))
            }
            Err(silence) => {
                let problem = format!("{} {silence}", endpoint());
                self.out_of_reach(console, &problem, None)
            }
        }
    }

    /// What is cached, if it is whole.
    fn out_of_reach(
        &self,
        console: &Console,
        problem: &str,
        cause: Option<HFError>,
    ) -> Outcome<PathBuf> {
        let Some(path) = self.cached().filter(|path| missing(path).is_none()) else {
            return self.without_network(problem, cause);
        };
        console.warn(&format!(
            "{problem}, so that it is out of reach; {self} is taken from {}, as it was when it was \
             downloaded",
            path.display()
        ));
        Ok(path)
    }

    fn download(&self, console: &Console, watch: &Arc<Watch>) -> Result<PathBuf, HFError> {
        let client = HFClientBuilder::new().retry_max_attempts(ATTEMPTS).build_sync()?;
        let repository = client.model(&self.owner, &self.name);
        let small = SMALL.map(str::to_owned).to_vec();
        let path = fetch(&repository, &self.revision, small, console, watch)?;
        // What the branch is now, even if it moves meanwhile.
        let commit = path.file_name().and_then(|name| name.to_str()).unwrap_or(&self.revision);
        let weights = weight_files(&path).into_iter().collect();
        fetch(&repository, commit, weights, console, watch)
    }

    /// Why there is no model where the Hub was not asked, or did not answer.
    fn without_network<T>(&self, problem: &str, cause: Option<HFError>) -> Outcome<T> {
        let folder = self.folder();
        let cached = match self.cached() {
            None => format!("no snapshot of it is cached in {}", folder.display()),
            Some(path) => format!(
                "the snapshot in {} lacks {}",
                path.display(),
                missing(&path).unwrap_or_default()
            ),
        };
        let message = format!(
            "{self} cannot be downloaded: {problem}, and {cached}. Where there is no network, \
             download it elsewhere and give its directory as MODEL (config.json, *.safetensors, \
             tokenizer.json), or put the cache's folder {} in place (HF_HOME and HF_HUB_CACHE say \
             where the cache is)",
            folder.file_name().unwrap_or_default().to_string_lossy()
        );
        Err(Failure::Request(match cause {
            Some(error) => anyhow::anyhow!("{message}. The request: {}", causes(&error)),
            None => anyhow::anyhow!(message),
        }))
    }

    /// What the Hub answered, in our words.
    fn refused(&self, error: HFError) -> Failure {
        Failure::request(match error {
            HFError::RateLimited { .. } => {
                format!("{} takes no more requests for now; try later, or set HF_TOKEN", endpoint())
            }
            // It says the same of a model and of a revision that are not there.
            error => format!(
                "{} shows no {self}: check the name and the branch, tag or commit ({}); for a \
                 model that is private or gated, accept its terms there and set HF_TOKEN ({error})",
                endpoint(),
                self.revision
            ),
        })
    }

    /// Its folder in the cache.
    fn folder(&self) -> PathBuf {
        resolve_cache_dir().join(format!("models--{}--{}", self.owner, self.name))
    }

    /// The cached snapshot of its revision, complete or not.
    fn cached(&self) -> Option<PathBuf> {
        let folder = self.folder();
        let commit = match is_commit(&self.revision) {
            true => self.revision.clone(),
            false => fs::read_to_string(folder.join("refs").join(&self.revision)).ok()?,
        };
        let path = folder.join("snapshots").join(commit.trim());
        (is_name(commit.trim()) && path.is_dir()).then_some(path)
    }
}

impl fmt::Display for HubModel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let HubModel { owner, name, revision } = self;
        match revision == DEFAULT_REVISION {
            true => write!(f, "hf:{owner}/{name}"),
            false => write!(f, "hf:{owner}/{name}@{revision}"),
        }
    }
}

fn fetch(
    repository: &HFRepositorySync<RepoTypeModel>,
    revision: &str,
    files: Vec<String>,
    console: &Console,
    watch: &Arc<Watch>,
) -> Result<PathBuf, HFError> {
    let handler = Arc::new(Downloads {
        bar: console.bar("download", 0, Unit::Bytes),
        done: Mutex::default(),
        watch: Arc::clone(watch),
    });
    repository
        .snapshot_download()
        .revision(revision.to_owned())
        .allow_patterns(files)
        // Patterns' stars would match into folders, where other formats lie.
        .ignore_patterns(vec!["*/*".to_owned()])
        .progress(handler)
        .send()
}

/// Turns the Hub's events into a bar, and into signs of life where something has come.
struct Downloads {
    bar: Bar,
    /// Bytes of each file, and of all that are counted together.
    done: Mutex<HashMap<Option<String>, u64>>,
    watch: Arc<Watch>,
}

impl Downloads {
    /// How many bytes more than known there are of a file: events may come twice, and by the clock.
    fn more(&self, file: Option<&str>, bytes: u64) -> u64 {
        let mut done = self.done.lock().unwrap_or_else(PoisonError::into_inner);
        let done = done.entry(file.map(str::to_owned)).or_default();
        let more = bytes.saturating_sub(*done);
        *done += more;
        more
    }
}

impl ProgressHandler for Downloads {
    fn on_progress(&self, event: &ProgressEvent) {
        let ProgressEvent::Download(event) = event else { return };
        let came = match event {
            DownloadEvent::Start { total_bytes, .. } => {
                self.bar.raise_total(*total_bytes);
                true
            }
            DownloadEvent::Progress { files } => {
                let more = |file: &FileProgress| {
                    let more = self.more(Some(&file.filename), file.bytes_completed);
                    self.bar.add(more);
                    more
                };
                files.iter().map(more).sum::<u64>() > 0
            }
            DownloadEvent::AggregateProgress { bytes_completed, .. } => {
                self.bar.reach(*bytes_completed);
                self.more(None, *bytes_completed) > 0
            }
            DownloadEvent::Complete => true,
        };
        if came {
            self.watch.heard();
        }
    }
}

/// The files of a directory's weights: those that its index names, or the one without an index.
/// Names that lead elsewhere are left to the reader of the directory, who refuses them.
fn weight_files(directory: &Path) -> BTreeSet<String> {
    let index = fs::read(directory.join(INDEX)).ok();
    let index: Option<serde_json::Value> =
        index.and_then(|bytes| serde_json::from_slice(&bytes).ok());
    let Some(map) = index.as_ref().and_then(|index| index["weight_map"].as_object()) else {
        return BTreeSet::from([SINGLE.to_owned()]);
    };
    let files = map.values().filter_map(|file| file.as_str());
    files.filter(|file| is_name(file)).map(str::to_owned).collect()
}

/// A file that a snapshot lacks.
fn missing(directory: &Path) -> Option<String> {
    let lacks = |file: &str| !directory.join(file).exists();
    if TOKENIZERS.into_iter().all(lacks) {
        return Some(TOKENIZERS[0].to_owned());
    }
    let needed = ["config.json".to_owned()].into_iter().chain(weight_files(directory));
    needed.into_iter().find(|file| lacks(file))
}

/// Whether text is one component of a path, of the letters that names have.
fn is_name(text: &str) -> bool {
    let legal = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
    !text.is_empty() && text.chars().all(legal) && !text.starts_with('.') && !text.contains("..")
}

fn is_commit(revision: &str) -> bool {
    revision.len() == 40 && revision.bytes().all(|byte| byte.is_ascii_hexdigit())
}

/// Where the Hub is.
fn endpoint() -> String {
    env::var("HF_ENDPOINT").unwrap_or_else(|_| DEFAULT_ENDPOINT.to_owned())
}

/// A time that the environment may set, in seconds.
fn seconds((name, default): (&str, f64)) -> Outcome<Duration> {
    /// A month: what a clock can be asked to wait.
    const MOST: f64 = 2_678_400.0;
    let text = match env::var(name) {
        Err(_) => return Ok(Duration::from_secs_f64(default)),
        Ok(text) => text,
    };
    match text.parse::<f64>() {
        Ok(seconds) if seconds > 0.0 && seconds <= MOST => Ok(Duration::from_secs_f64(seconds)),
        _ => Err(Failure::request(format!(
            "{name} is {text:?}; it is a number of seconds, more than 0 and at most {MOST}"
        ))),
    }
}

/// Whether the user said so, as to Hugging Face's own libraries.
fn is_offline() -> bool {
    let value = env::var("HF_HUB_OFFLINE").unwrap_or_default();
    ["1", "true", "yes", "on"].iter().any(|yes| value.eq_ignore_ascii_case(yes))
}

/// Whether the Hub was there and said no.
fn is_answer(error: &HFError) -> bool {
    matches!(
        error,
        HFError::RepoNotFound { .. }
            | HFError::RevisionNotFound { .. }
            | HFError::EntryNotFound { .. }
            | HFError::AuthRequired { .. }
            | HFError::Forbidden { .. }
            | HFError::RateLimited { .. }
    )
}

/// An error and its causes, each once.
fn causes(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        let said = error.to_string();
        if !text.contains(&said) {
            text = format!("{text}: {said}");
        }
        cause = error.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_models_and_revisions() {
        let parse = |text: &str| HubModel::parse(text).ok().map(|model| model.to_string());
        for text in ["Qwen/Qwen3-0.6B", "a/b@v1.0", "a/b@refs/pr/3"] {
            assert_eq!(parse(text), Some(format!("hf:{text}")), "{text}");
        }
        assert_eq!(parse("a/b@main"), Some("hf:a/b".to_owned()));
        for text in ["", "a", "a/", "/b", "a/b/c", "../b", "a/..", "a/b@", "a/b@../c", "a/b@x//y"] {
            assert_eq!(parse(text), None, "{text}");
        }
    }

    #[test]
    fn weights_are_what_the_index_names_and_nothing_outside() {
        let folder = tempfile::tempdir().unwrap();
        assert_eq!(weight_files(folder.path()), BTreeSet::from([SINGLE.to_owned()]));
        assert_eq!(missing(folder.path()).as_deref(), Some("tokenizer.json"));
        fs::write(folder.path().join("tiktoken.model"), "").unwrap();
        assert_eq!(missing(folder.path()).as_deref(), Some("config.json"));
        let index = r#"{"weight_map": {"a": "x.safetensors", "b": "y.safetensors",
            "c": "x.safetensors", "d": "../z.safetensors", "e": 7}}"#;
        fs::write(folder.path().join(INDEX), index).unwrap();
        let files: Vec<String> = weight_files(folder.path()).into_iter().collect();
        assert_eq!(files, ["x.safetensors", "y.safetensors"]);
    }
}
