//! The same layout gives the same bits on every instruction set that this processor has.
//!
//! One test alone in its binary: the choice of an instruction set is the whole process's.

mod common;
mod random;

use common::{engine, precise};
use helix_engine::EngineOptions;
use helix_kernels::kv::KvType;
use helix_kernels::{Format, Isa, Precision, isa};
use helix_layout::Layout;
use helix_model::synthetic::{Spec, gguf};
use helix_model::{Arch, Model};
use random::Random;
use std::sync::Arc;

const VOCAB: usize = 150;

#[test]
fn every_instruction_set_gives_the_same_bits() {
    let floats = Spec { head_dim: 20, rope_dims: 20, vocab: VOCAB, ..Spec::tiny(Arch::Qwen3) };
    let blocks = |format| Spec {
        q_heads: 8,
        kv_heads: 2,
        head_dim: 32,
        rope_dims: 32,
        hidden: 256,
        ffn: 256,
        vocab: VOCAB,
        format,
        down_format: format,
        embedding_format: format,
        ..Spec::tiny(Arch::Llama)
    };
    let text = Random(61).tokens(40, VOCAB);
    for (index, format) in Format::GGML.into_iter().enumerate() {
        let spec = if format == Format::F32 { floats.clone() } else { blocks(format) };
        let model = Arc::new(Model::from_gguf_bytes(gguf(&spec, 62)).unwrap());
        let layout = Layout::new(&model.shape(), "helix kvp=2 block=1".parse().unwrap()).unwrap();
        for (offset, precision) in [Precision::Fast, Precision::Precise].into_iter().enumerate() {
            let kv_type = KvType::ALL[(index + 2 * offset) % 4];
            let options = EngineOptions { precision, kv_type, ..precise() };
            let run = |most| {
                // What is packed may depend on it, so it comes first.
                let used = isa::limit(most);
                let logits = common::logits(&mut engine(&model, layout, options), &text, 35);
                (used, logits.into_iter().map(f32::to_bits).collect::<Vec<_>>())
            };
            let (_, expected) = run(Isa::Scalar);
            for isa in Isa::available().filter(|isa| *isa != Isa::Scalar) {
                let (used, found) = run(isa);
                assert_eq!(used, isa);
                assert!(found == expected, "{isa}, {format}, {precision:?}, KV {kv_type}");
            }
        }
    }
}
