//! What the engine's tests share: models, every legal layout, logits of a text however it is cut, and
//! transformers' answers.
#![allow(dead_code, reason = "each test file uses some of it")]

pub mod answers;
#[path = "../fixtures/directories.rs"]
pub mod directories;

use helix_engine::{Engine, EngineOptions};
use helix_kernels::kv::KvType;
use helix_kernels::{Format, Precision};
use helix_layout::{Layout, LayoutSpec, ModelShape, QkvMode, Strategy};
use helix_model::synthetic::{Spec, gguf};
use helix_model::{Arch, Model};
use helix_scheduler::{Step, Wanted};
use std::sync::Arc;

/// f32 throughout: what is compared with references.
pub fn precise() -> EngineOptions {
    EngineOptions {
        precision: Precision::Precise,
        kv_type: KvType::F32,
        max_context: 256,
        max_step_tokens: 64,
        max_logits: 64,
        ..EngineOptions::default()
    }
}

/// Every legal layout of `1..=ranks` ranks, of every strategy, with the given KV blocks.
pub fn layouts(shape: &ModelShape, ranks: usize, kv_blocks: &[usize]) -> Vec<Layout> {
    let mut all = Vec::new();
    for n in 1..=ranks {
        for strategy in Strategy::ALL {
            for &block in kv_blocks {
                for qkv in [QkvMode::Replicate, QkvMode::Gather] {
                    all.extend(Layout::candidates(shape, n, strategy, block, qkv));
                }
            }
        }
    }
    assert!(!all.is_empty());
    all
}

/// Those of [`layouts`] that differ: without sequence shards there is no KV block, and nothing to
/// gather.
pub fn distinct(model: &Model, ranks: usize, kv_blocks: &[usize]) -> Vec<Layout> {
    let mut all = layouts(&model.shape(), ranks, kv_blocks);
    all.retain(|layout| {
        layout.degrees().kvp > 1
            || (layout.kv_block() == kv_blocks[0] && layout.qkv() == QkvMode::Replicate)
    });
    all
}

/// Dense models of awkward sizes, whose bytes are counted.
pub fn dense_specs() -> [Spec; 3] {
    let uneven = Spec { q_heads: 9, kv_heads: 3, ffn: 52, vocab: 131, ..Spec::tiny(Arch::Llama) };
    let one_head = Spec { q_heads: 7, kv_heads: 1, head_dim: 16, ..Spec::tiny(Arch::Qwen2) };
    let quantised = Spec {
        q_heads: 8,
        kv_heads: 4,
        head_dim: 40,
        hidden: 64,
        ffn: 160,
        format: Format::Q4_0,
        down_format: Format::Q8_0,
        embedding_format: Format::Q8_0,
        ..Spec::tiny(Arch::Llama)
    };
    [uneven, Spec { rope_dims: 16, ..one_head }, Spec { rope_dims: 40, ..quantised }]
}

/// A model of these sizes.
pub fn open(spec: &Spec) -> Arc<Model> {
    Arc::new(Model::from_gguf_bytes(gguf(spec, 31)).expect("a model"))
}

/// A tiny model that transformers made: see `fixtures/README.md`.
pub fn fixture(name: &str) -> Arc<Model> {
    Arc::new(
        Model::open(&directories::path(name)).unwrap_or_else(|error| panic!("{name}: {error}")),
    )
}

/// The layout of that name, as its `Display` writes it; degrees may be left out.
pub fn layout(model: &Model, name: &str) -> Layout {
    let spec = LayoutSpec::read(name, &model.shape()).expect(name);
    Layout::new(&model.shape(), spec).unwrap_or_else(|error| panic!("{name}: {error}"))
}

pub fn engine(model: &Arc<Model>, layout: Layout, options: EngineOptions) -> Engine {
    Engine::new(Arc::clone(model), layout, options, &|_| {}).expect("the engine starts")
}

/// Logits of every position of `tokens` in slot 0, run `piece` tokens at a time.
pub fn logits(engine: &mut Engine, tokens: &[u32], piece: usize) -> Vec<f32> {
    let mut all = Vec::new();
    let mut step = Step::default();
    for (index, tokens) in tokens.chunks(piece).enumerate() {
        step.clear();
        step.push(0, index * piece, tokens, Wanted::All);
        all.extend_from_slice(engine.step(&step).expect("a step runs"));
    }
    all
}

/// The largest difference, with where it is; panics on a NaN or another length.
pub fn largest_difference(a: &[f32], b: &[f32]) -> (f32, usize) {
    assert_eq!(a.len(), b.len(), "lengths differ");
    let mut largest = (0.0, 0);
    for (index, (a, b)) in a.iter().zip(b).enumerate() {
        let difference = (a - b).abs();
        assert!(!difference.is_nan(), "{a} against {b} at {index}");
        if difference > largest.0 {
            largest = (difference, index);
        }
    }
    largest
}
