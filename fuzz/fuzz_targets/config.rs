//! Any values for the keys of a `config.json`: an error, or a model whose ranks load.
//!
//! The target `safetensors` reads any bytes; most of its inputs are no JSON. Here the input is
//! lines. The first character of the first names a seed of `safetensors`, whose weights are used
//! and whose configuration is changed. Every other line is a key with the keys that it is inside
//! of (`rope_scaling.factor`), a space and its value in JSON. Without a value the key is taken
//! away; what is no JSON is a text.
#![no_main]

use std::fs;
use std::path::PathBuf;
use std::sync::OnceLock;

use helix_kernels::Precision;
use helix_layout::{Layout, LayoutSpec, Strategy};
use helix_model::{Model, RankWeights};
use libfuzzer_sys::fuzz_target;
use serde_json::{Map, Value};

const SEEDS: [&[u8]; 12] = [
    include_bytes!("../seeds/safetensors/llama"),
    include_bytes!("../seeds/safetensors/mistral"),
    include_bytes!("../seeds/safetensors/qwen2"),
    include_bytes!("../seeds/safetensors/qwen3"),
    include_bytes!("../seeds/safetensors/mixtral"),
    include_bytes!("../seeds/safetensors/qwen3-moe"),
    include_bytes!("../seeds/safetensors/deepseek"),
    include_bytes!("../seeds/safetensors/deepseek-v2"),
    include_bytes!("../seeds/safetensors/deepseek-v3-fp8"),
    include_bytes!("../seeds/safetensors/gpt-oss"),
    include_bytes!("../seeds/safetensors/gpt-oss-mxfp4"),
    include_bytes!("../seeds/safetensors/gemma3"),
];

/// A directory with the weights of a seed.
struct Kind {
    path: PathBuf,
    config: Value,
}

/// They are written once per process; in memory where the system has such a place.
fn kinds() -> &'static [Kind] {
    static KINDS: OnceLock<Vec<Kind>> = OnceLock::new();
    KINDS.get_or_init(|| {
        let memory = PathBuf::from("/dev/shm");
        let parent = if memory.is_dir() { memory } else { std::env::temp_dir() };
        let parent = parent.join(format!("helix-fuzz-{}", std::process::id()));
        let kind = |(index, seed): (usize, &&[u8])| {
            let path = parent.join(index.to_string());
            fs::create_dir_all(&path).expect("a directory for the model");
            let at = seed.iter().position(|byte| *byte == 0).expect("two parts");
            fs::write(path.join("model.safetensors"), &seed[at + 1..]).expect("weights");
            Kind { path, config: serde_json::from_slice(&seed[..at]).expect("JSON") }
        };
        SEEDS.iter().enumerate().map(kind).collect()
    })
}

/// Sets the key at `path`; objects on the way are made.
fn set(config: &mut Value, path: &str, value: Option<Value>) {
    let (first, rest) =
        path.split_once('.').map_or((path, None), |(first, rest)| (first, Some(rest)));
    if !config.is_object() {
        *config = Value::Object(Map::new());
    }
    let Some(map) = config.as_object_mut() else { return };
    match (rest, value) {
        (Some(rest), value) => set(map.entry(first).or_insert(Value::Null), rest, value),
        (None, Some(value)) => drop(map.insert(first.to_owned(), value)),
        (None, None) => drop(map.remove(first)),
    }
}

fuzz_target!(|bytes: &[u8]| {
    let text = String::from_utf8_lossy(bytes);
    let mut lines = text.lines();
    let kinds = kinds();
    let index = lines.next().and_then(|line| line.bytes().next()).unwrap_or_default();
    let kind = &kinds[usize::from(index.wrapping_sub(b'a')) % kinds.len()];
    let mut config = kind.config.clone();
    for line in lines.take(64) {
        let (path, value) = line.split_once(' ').unwrap_or((line, ""));
        let json = || serde_json::from_str(value).unwrap_or_else(|_| Value::from(value));
        // Deeper than JSON may be nested.
        if path.bytes().filter(|byte| *byte == b'.').count() < 200 {
            set(&mut config, path, (!value.is_empty()).then(json));
        }
    }
    fs::write(kind.path.join("config.json"), config.to_string()).expect("the configuration");
    let Ok(model) = Model::open(&kind.path) else { return };
    let config = &model.config;
    assert!(config.attention_scale.is_finite() && config.attention_scale > 0.0, "{config:?}");
    for rope in &config.ropes {
        let finite = rope.frequencies.iter().all(|frequency| frequency.is_finite());
        assert!(finite && rope.magnitude.is_finite(), "{rope:?}");
    }
    let shape = model.shape();
    for ranks in [1, 2] {
        let spec = LayoutSpec::new(Strategy::Helix, ranks, 1);
        let Ok(layout) = Layout::new(&shape, spec) else { continue };
        for rank in layout.all_ranks() {
            let loaded = RankWeights::load(&model, &layout, rank, Precision::Fast, &|_| ());
            loaded.expect("the weights are finite, and of the configuration's shapes");
        }
    }
});
