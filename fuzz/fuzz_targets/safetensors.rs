//! Any bytes as the weights and configuration of a Hugging Face directory: an error, or a model
//! whose ranks load. Never a panic, and never more memory than the files' length allows.
//!
//! The input is `config.json`, a zero byte, and `model.safetensors`.
#![no_main]

use std::fs;
use std::path::PathBuf;

use helix_kernels::Precision;
use helix_layout::{Layout, LayoutSpec, Strategy};
use helix_model::{Model, RankWeights};
use libfuzzer_sys::fuzz_target;

/// One directory per process, written over and over; in memory where the system has such a place.
fn directory() -> PathBuf {
    let memory = PathBuf::from("/dev/shm");
    let parent = if memory.is_dir() { memory } else { std::env::temp_dir() };
    let path = parent.join(format!("helix-fuzz-{}", std::process::id()));
    fs::create_dir_all(&path).expect("a directory for the model");
    path
}

fuzz_target!(|bytes: &[u8]| {
    let at = bytes.iter().position(|byte| *byte == 0).unwrap_or(bytes.len());
    let weights = bytes.get(at + 1..).unwrap_or_default();
    let path = directory();
    fs::write(path.join("config.json"), &bytes[..at]).expect("the configuration is written");
    fs::write(path.join("model.safetensors"), weights).expect("the weights are written");
    let Ok(model) = Model::open(&path) else { return };
    let shape = model.shape();
    for ranks in [1, 2] {
        let Ok(layout) = Layout::new(&shape, LayoutSpec::new(Strategy::Helix, ranks, 1)) else {
            continue;
        };
        for rank in layout.all_ranks() {
            // Weights may be NaN: that is an error, too.
            let _ = RankWeights::load(&model, &layout, rank, Precision::Fast, &|_| ());
        }
    }
    let mut row = vec![0.0; model.config.hidden];
    let _ = model.embedding_row(0, &mut row);
});
