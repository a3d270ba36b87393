//! What the engine refuses: each refusal names what was wrong, and changes nothing.

mod common;

use common::{engine, layout, logits, precise};
use helix_engine::{Engine, EngineError, EngineOptions, HopB};
use helix_kernels::kv::KvType;
use helix_model::gguf::GgmlType;
use helix_model::synthetic::{Spec, gguf, writer};
use helix_model::{Arch, Model, ModelError};
use helix_scheduler::{Run, Step, Wanted};
use std::sync::Arc;

fn model() -> Arc<Model> {
    Arc::new(Model::from_gguf_bytes(gguf(&Spec::tiny(Arch::Llama), 41)).unwrap())
}

/// 3 slots of 20 positions, steps of 8 tokens, 4 rows of logits.
fn options() -> EngineOptions {
    EngineOptions {
        max_context: 20,
        max_sequences: 3,
        max_step_tokens: 8,
        max_logits: 4,
        ..precise()
    }
}

/// A step of runs `(slot, start, len, wanted)`, however wrong.
fn step(tokens: &[u32], runs: &[(usize, usize, usize, Wanted)]) -> Step {
    let runs = runs.iter().map(|&(slot, start, len, logits)| Run { slot, start, len, logits });
    Step { tokens: tokens.to_vec(), runs: runs.collect() }
}

/// Steps that do not fit an engine whose slot 0 holds 6 positions, slot 1 none, slot 2 all 20; and
/// what the refusal says.
fn wrong_steps() -> Vec<(Step, &'static str)> {
    use Wanted::{All, Last, None};
    const HUGE: usize = usize::MAX;
    vec![
        (step(&[], &[]), "no tokens"),
        (step(&[1; 9], &[(0, 6, 9, Last)]), "9 tokens, the engine was sized for 8"),
        (step(&[1; 5], &[(0, 6, 5, All)]), "5 wanted rows of logits, the engine was sized for 4"),
        (step(&[1, 300, 2], &[(0, 6, 3, Last)]), "token 300 is not one of the vocabulary's 300"),
        (step(&[u32::MAX], &[(0, 6, 1, Last)]), "token 4294967295"),
        (step(&[1], &[(3, 0, 1, Last)]), "slot 3 of 3"),
        (step(&[1], &[(HUGE, 0, 1, Last)]), "slot 18446744073709551615 of 3"),
        (step(&[1], &[(0, 5, 1, Last)]), "slot 0 holds 6 positions; a run starts at 5"),
        (step(&[1], &[(0, 7, 1, Last)]), "slot 0 holds 6 positions; a run starts at 7"),
        (step(&[1], &[(1, 6, 1, Last)]), "slot 1 holds 0 positions; a run starts at 6"),
        (step(&[1], &[(2, 20, 1, Last)]), "position 21 is past the context of 20"),
        (step(&[1], &[(0, 6, 1, Last), (1, 0, 0, None)]), "slot 1"),
        (step(&[1, 2], &[(0, 6, 1, Last), (0, 7, 1, Last)]), "slot 0"),
        (step(&[1, 2], &[(0, 6, 1, Last), (0, 6, 1, Last)]), "slot 0 has two runs"),
        (step(&[1, 2], &[(0, 6, 1, Last)]), "its runs and its tokens differ in length"),
        (step(&[1], &[(0, 6, 2, Last)]), "its runs and its tokens differ in length"),
        (step(&[1], &[]), "its runs and its tokens differ in length"),
        (step(&[1], &[(0, 6, HUGE, Last)]), "its runs and its tokens differ in length"),
        // The sum of lengths is 1 where it wraps.
        (step(&[1], &[(0, 6, HUGE, Last), (1, 0, 2, Last)]), "its runs and its tokens differ"),
        (step(&[1], &[(0, 6, HUGE, All), (1, 0, 2, All)]), "its runs and its tokens differ"),
    ]
}

#[test]
fn a_wrong_step_is_refused_and_changes_nothing() {
    let model = model();
    for name in ["helix", "helix kvp=2 tpa=2 block=1"] {
        let start = || {
            let mut engine = engine(&model, layout(&model, name), options());
            engine.step(&step(&[3, 1, 4, 1, 5, 9], &[(0, 0, 6, Wanted::Last)])).unwrap();
            for start in (0..20).step_by(5) {
                engine.step(&step(&[7; 5], &[(2, start, 5, Wanted::None)])).unwrap();
            }
            engine.reset_counters();
            engine
        };
        let mut engine = start();
        for (index, (wrong, reason)) in wrong_steps().into_iter().enumerate() {
            match engine.step(&wrong) {
                Err(EngineError::Step(text)) => {
                    assert!(text.contains(reason), "step {index}: {text:?}, not {reason:?}");
                }
                other => panic!("step {index}, {reason}: {other:?}"),
            }
        }
        assert_eq!([0, 1, 2].map(|slot| engine.len(slot)), [6, 0, 20]);
        // The next step finds what it would have found without them.
        let next = step(&[2, 6, 8, 8], &[(1, 0, 2, Wanted::All), (0, 6, 2, Wanted::All)]);
        let found = engine.step(&next).unwrap().to_vec();
        let mut other = start();
        assert_eq!(found, other.step(&next).unwrap(), "{name}");
        for (found, other) in
            engine.counters().expect("counters").iter().zip(other.counters().expect("counters"))
        {
            assert_eq!((found.steps, found.weight_bytes), (other.steps, other.weight_bytes));
            assert_eq!(
                (found.kv_bytes_read, found.kv_bytes_held),
                (other.kv_bytes_read, other.kv_bytes_held)
            );
            assert_eq!((found.world, found.kvp), (other.world, other.kvp));
        }
    }
}

#[test]
fn the_largest_step_and_the_last_position_are_not_refused() {
    let model = model();
    let mut engine = engine(&model, layout(&model, "helix kvp=3 block=1"), options());
    let rows = [(0, 0, 4, Wanted::All), (1, 0, 4, Wanted::None)];
    assert_eq!(engine.step(&step(&[299; 8], &rows)).unwrap().len(), 4 * 300);
    engine.step(&step(&[1; 8], &[(0, 4, 8, Wanted::None)])).unwrap();
    let logits = engine.step(&step(&[1; 8], &[(0, 12, 8, Wanted::Last)])).unwrap();
    assert!(logits.iter().all(|logit| logit.is_finite()));
    assert_eq!((engine.len(0), engine.len(1), engine.is_empty()), (20, 4, false));
    engine.release(0);
    engine.release(1);
    assert!(engine.is_empty());
}

fn refusal(model: &Arc<Model>, name: &str, options: EngineOptions) -> EngineError {
    match Engine::new(Arc::clone(model), layout(model, name), options, &|_| {}) {
        Ok(_) => panic!("{options:?} starts"),
        Err(error) => error,
    }
}

#[test]
fn absurd_options_are_named() {
    const HUGE: usize = usize::MAX;
    let model = model();
    let cases = [
        (EngineOptions { threads_per_rank: 0, ..options() }, "threads per rank is 0"),
        (EngineOptions { threads_per_rank: HUGE, ..options() }, "must be from 1 to 1024"),
        (EngineOptions { max_context: 0, ..options() }, "context is 0"),
        (EngineOptions { max_context: HUGE, ..options() }, "context is 18446744073709551615"),
        (EngineOptions { max_sequences: 0, ..options() }, "sequences is 0"),
        (EngineOptions { max_sequences: HUGE, ..options() }, "must be from 1 to 1048576"),
        (EngineOptions { max_step_tokens: 0, ..options() }, "tokens of a step is 0"),
        (EngineOptions { max_step_tokens: HUGE, ..options() }, "must be from 1 to 65536"),
        (EngineOptions { max_logits: 0, ..options() }, "rows of logits is 0"),
        (EngineOptions { max_logits: HUGE, ..options() }, "must be from 1 to 65536"),
        (EngineOptions { hopb: HopB::Pieces(0), ..options() }, "pieces of attention is 0"),
        (EngineOptions { reduce_slices: 0, ..options() }, "slices of a sum is 0"),
        (EngineOptions { reduce_slices: 17, ..options() }, "must be from 1 to 16"),
        (EngineOptions { hopb: HopB::Pieces(65), ..options() }, "must be from 1 to 64"),
    ];
    for (options, text) in cases {
        let error = refusal(&model, "helix kvp=2", options);
        assert!(matches!(error, EngineError::Option { .. }), "{error:?}");
        assert!(error.to_string().contains(text), "{error}");
    }
}

/// What the machine has is asked of Linux alone.
#[cfg(target_os = "linux")]
#[test]
fn a_kv_cache_larger_than_memory_is_refused_in_mib() {
    let model = model();
    for (kv_type, element) in [(KvType::F32, 4), (KvType::F16, 2)] {
        let max_context = 1 << 28;
        let options = EngineOptions { kv_type, max_context, max_sequences: 64, ..options() };
        // 2 layers, 2 KV heads, K and V of 8 elements; rows may be padded to 16.
        let whole = ((64 << 28) * (2 * 2 * 2 * 8 * element)) >> 20;
        for (name, copies) in [("helix", 1), ("helix kvp=2 tpa=2", 1), ("tp tpa=4", 2)] {
            let error = refusal(&model, name, options);
            let text = error.to_string();
            let EngineError::KvMemory { needed_mib, sequences: 64, context, .. } = error else {
                panic!("{name}: {error:?}");
            };
            assert_eq!(context, max_context);
            let range = whole * copies..=2 * whole * copies;
            assert!(range.contains(&needed_mib), "{name}: {needed_mib} of {range:?}");
            assert!(text.contains(&format!("need {needed_mib} MiB")), "{text}");
            assert!(text.contains("shorten the context"), "{text}");
        }
    }
    // More bytes than there are numbers for.
    let options =
        EngineOptions { max_context: u32::MAX as usize, max_sequences: 1 << 20, ..options() };
    let error = refusal(&model, "helix kvp=2", options);
    assert!(matches!(error, EngineError::KvMemory { .. }), "{error:?}");
}

/// A window's layers need memory for a window, however long the context is; the others for all.
#[cfg(target_os = "linux")]
#[test]
fn windows_need_no_memory_for_a_long_context() {
    let options = EngineOptions { max_context: 1 << 30, max_sequences: 64, ..options() };
    let gemma = common::fixture("gemma3");
    let config = &gemma.config;
    let global = (0..config.layers).filter(|&layer| config.window(layer).is_none()).count();
    let token = global * config.kv_heads * 2 * config.head_dim * 4;
    let whole = ((64 * token as u64) << 30) >> 20;
    for (name, copies) in [("helix", 1), ("helix kvp=2", 1), ("dp-ep dp=2", 1), ("tp tpa=4", 2)] {
        let error = refusal(&gemma, name, options);
        let EngineError::KvMemory { needed_mib, .. } = error else { panic!("{name}: {error:?}") };
        // Pages may pad a head, and nine query heads over four ranks have a KV head twice.
        let range = whole..=2 * whole * copies;
        assert!(range.contains(&needed_mib), "{name}: {needed_mib} of {range:?}");
    }
    let mistral = common::fixture("mistral");
    for name in ["helix", "helix kvp=2", "dp-ep dp=2"] {
        let layout = common::layout(&mistral, name);
        let bytes = Engine::kv_bytes(&mistral, &layout, &options).expect("few bytes");
        assert!(bytes >> 20 < 1024, "{name}: {bytes} bytes for windows of 19");
        let mut engine = engine(&mistral, layout, options);
        engine.step(&step(&[1; 8], &[(63, 0, 8, Wanted::Last)])).unwrap();
    }
}

/// The model with one element of `name` replaced.
fn damaged(spec: &Spec, name: &str, index: usize, value: f32) -> Arc<Model> {
    let plain = Model::from_gguf_bytes(gguf(spec, 42)).unwrap();
    let tensor = plain.tensor(name).unwrap();
    let mut data = tensor.data.to_vec();
    data[4 * index..4 * index + 4].copy_from_slice(&value.to_le_bytes());
    let dims = [tensor.cols, tensor.rows];
    let dims = if tensor.rows == 1 { &dims[..1] } else { &dims[..] };
    let mut writer = writer(spec, 42);
    writer.remove_tensor(name).tensor(name, dims, GgmlType::from_name("F32").unwrap(), data);
    Arc::new(Model::from_gguf_bytes(writer.finish()).unwrap())
}

#[test]
fn weights_that_are_no_numbers_are_named_when_the_engine_starts() {
    let tied = Spec { bias: true, ..Spec::tiny(Arch::Llama) };
    let untied = Spec::tiny(Arch::Qwen3);
    let cases = [
        (&tied, "token_embd.weight", f32::NAN),
        (&tied, "blk.1.attn_q.bias", f32::NAN),
        (&tied, "blk.0.attn_norm.weight", f32::INFINITY),
        (&untied, "output.weight", f32::NAN),
        (&untied, "output_norm.weight", f32::NEG_INFINITY),
        (&untied, "blk.0.attn_k_norm.weight", f32::NAN),
        (&untied, "blk.0.attn_q.weight", f32::NAN),
        (&untied, "blk.1.attn_k.weight", f32::INFINITY),
        (&untied, "blk.1.attn_v.weight", f32::NAN),
        (&untied, "blk.0.attn_output.weight", f32::NEG_INFINITY),
        (&untied, "blk.1.ffn_gate.weight", f32::NAN),
        (&untied, "blk.0.ffn_up.weight", f32::NAN),
        (&untied, "blk.1.ffn_down.weight", f32::NAN),
    ];
    for (spec, tensor, value) in cases {
        let plain = Model::from_gguf_bytes(gguf(spec, 42)).unwrap();
        let elements = plain.tensor(tensor).unwrap().data.len() / 4;
        for index in [0, elements / 2, elements - 1] {
            let model = damaged(spec, tensor, index, value);
            for layout in ["helix", "helix kvp=2 tpa=2 qkv=gather", "medha kvp=2"] {
                match refusal(&model, layout, options()) {
                    EngineError::Model(ModelError::NotFinite { name, .. }) => {
                        assert_eq!(name, tensor, "{layout}");
                    }
                    error => panic!("{tensor}, {layout}: {error:?}"),
                }
            }
        }
    }
}

/// An embedding that is not the LM head is read row by row, when a token asks for it.
#[test]
fn an_embedding_that_is_no_number_is_an_error_and_not_a_panic() {
    let spec = Spec::tiny(Arch::Qwen3);
    let name = "token_embd.weight";
    let model = damaged(&spec, name, 5 * spec.hidden + 3, f32::NAN);
    for place in ["helix", "helix kvp=2 tpa=2"] {
        let started = Engine::new(Arc::clone(&model), layout(&model, place), options(), &|_| {});
        let error = match started {
            Err(error) => error,
            Ok(mut engine) => {
                let wrong = step(&[4, 5], &[(0, 0, 2, Wanted::Last)]);
                let error = engine.step(&wrong).expect_err("the row is damaged");
                assert_eq!(engine.len(0), 0);
                logits(&mut engine, &[4, 6], 2);
                error
            }
        };
        assert!(error.to_string().contains(name), "{place}: {error}");
    }
}
