//! The same layout gives the same bits: on every run, with any number of threads, in any slot,
//! whatever else is in the batch, and however a prompt is cut. Dense models, experts, latents,
//! sliding windows, sinks and attention groups alike.

mod common;
mod random;

use common::{engine, fixture, layout, precise};
use helix_comm::Delay;
use helix_engine::{Engine, EngineOptions, FfnReduce, HopB, MlaUp};
use helix_kernels::kv::KvType;
use helix_kernels::{Format, Precision};
use helix_layout::Layout;
use helix_model::synthetic::{Spec, gguf};
use helix_model::{Arch, Model};
use helix_scheduler::{Step, Wanted};
use random::Random;
use std::sync::Arc;
use std::time::Duration;

const SLOTS: usize = 4;
const CONTEXT: usize = 80;
const VOCAB: usize = 200;

/// A model, how it runs, and the layouts that it runs on.
struct Case {
    name: &'static str,
    model: Arc<Model>,
    options: EngineOptions,
    layouts: &'static [&'static str],
}

impl Case {
    fn each(&self, mut run: impl FnMut(Layout, EngineOptions)) {
        for name in self.layouts {
            println!("{}, {name}", self.name);
            run(layout(&self.model, name), self.options);
        }
    }
}

/// One model in f32, and one whose weights, activations and KV are quantised.
fn dense() -> Vec<Case> {
    const LAYOUTS: &[&str] = &[
        "helix",
        "helix kvp=2 block=1 qkv=gather",
        "helix kvp=2 tpa=2",
        "helix kvp=3 block=16 qkv=gather",
        "tp tpa=4",
        "medha kvp=2 tpa=2 block=4",
    ];
    let floats = Spec { q_heads: 9, kv_heads: 3, vocab: VOCAB, ..Spec::tiny(Arch::Qwen3) };
    let quantised = Spec {
        q_heads: 8,
        kv_heads: 4,
        head_dim: 40,
        rope_dims: 40,
        hidden: 64,
        ffn: 96,
        vocab: VOCAB,
        format: Format::Q4_0,
        down_format: Format::Q4_1,
        embedding_format: Format::Q8_0,
        ..Spec::tiny(Arch::Llama)
    };
    let open = |spec| Arc::new(Model::from_gguf_bytes(gguf(&spec, 21)).unwrap());
    let case = |name, spec, options| Case { name, model: open(spec), options, layouts: LAYOUTS };
    vec![case("floats", floats, options()), case("quantised", quantised, fast(KvType::F16))]
}

fn options() -> EngineOptions {
    EngineOptions { max_context: CONTEXT, max_sequences: SLOTS, rewind: 0, ..precise() }
}

/// What runs unless asked otherwise.
fn fast(kv_type: KvType) -> EngineOptions {
    EngineOptions { precision: Precision::Fast, kv_type, ..options() }
}

/// Experts, latents, windows and sinks; precise and fast, attention groups among the layouts.
fn architectures() -> Vec<Case> {
    const HEADS: &[&str] = &[
        "helix",
        "helix kvp=2 tpf=1 ep=2 block=1 qkv=gather",
        "helix kvp=2 tpf=2 ep=1",
        "tp tpa=3 tpf=3 ep=1",
        "medha kvp=2 tpa=1 tpf=1 ep=1 block=4",
        "dp-ep dp=2",
        "dp-ep dp=4 tpf=2 ep=2",
    ];
    const LATENTS: &[&str] = &[
        "helix",
        "helix kvp=2 tpf=1 ep=2 block=1 qkv=gather",
        "helix kvp=4 tpf=2 ep=2",
        "tp tpa=2 tpf=2 ep=1",
        "dp-ep dp=3",
    ];
    const DENSE: &[&str] = &["helix kvp=2 block=1", "tp tpa=3", "dp-ep dp=2"];
    let grid = EngineOptions { ffn_reduce: FfnReduce::Grid, ..options() };
    let before = EngineOptions { mla_up: MlaUp::Before, ..grid };
    let cases: [(&'static str, EngineOptions, &'static [&'static str]); 8] = [
        ("qwen3-moe", grid, HEADS),
        ("mixtral", fast(KvType::Q8_0), HEADS),
        ("gpt-oss", options(), HEADS),
        ("gpt-oss-mxfp4", fast(KvType::F16), HEADS),
        ("deepseek-v2", before, LATENTS),
        ("deepseek-v3", fast(KvType::F16), LATENTS),
        ("deepseek-v3-fp8", fast(KvType::Q8_0), LATENTS),
        ("gemma3", options(), DENSE),
    ];
    let case = |(name, options, layouts)| Case { name, model: fixture(name), options, layouts };
    cases.map(case).into()
}

fn cases() -> impl Iterator<Item = Case> {
    dense().into_iter().chain(architectures())
}

fn text(seed: u64, len: usize) -> Vec<u32> {
    Random(seed).tokens(len, VOCAB)
}

fn bits(logits: &[f32]) -> Vec<u32> {
    assert!(logits.iter().all(|logit| logit.is_finite()));
    logits.iter().map(|logit| logit.to_bits()).collect()
}

/// All rows of a text in `slot`, `piece` tokens at a time.
fn alone(engine: &mut Engine, slot: usize, text: &[u32], piece: usize) -> Vec<u32> {
    let mut all = Vec::new();
    let mut step = Step::default();
    for (index, tokens) in text.chunks(piece).enumerate() {
        step.clear();
        step.push(slot, index * piece, tokens, Wanted::All);
        all.extend(bits(engine.step(&step).unwrap()));
    }
    engine.release(slot);
    all
}

#[test]
fn any_number_of_threads_and_every_run() {
    let text = text(1, 70);
    for case in cases() {
        case.each(|layout, options| {
            let mut first = None;
            for threads_per_rank in [1, 2, 3, 5] {
                let options = EngineOptions { threads_per_rank, ..options };
                let mut engine = engine(&case.model, layout, options);
                for run in 0..2 {
                    // The first run in pages that are new, the second in pages that were used.
                    let found = alone(&mut engine, 0, &text, 40);
                    let same = *first.get_or_insert_with(|| found.clone()) == found;
                    assert!(same, "{layout}, {threads_per_rank} threads, run {run}");
                }
            }
        });
    }
}

#[test]
fn any_piece_of_a_prompt() {
    let text = text(2, 64);
    for case in cases() {
        case.each(|layout, options| {
            let mut engine = engine(&case.model, layout, options);
            let whole = alone(&mut engine, 0, &text, 64);
            for piece in [1, 3, 16, 17, 33] {
                let found = alone(&mut engine, 0, &text, piece);
                assert!(found == whole, "{layout}, pieces of {piece}");
            }
        });
    }
}

/// Sequences in other slots, of other lengths and at other places of the step come and go. Under
/// `dp-ep` another slot is another group of ranks.
#[test]
fn any_batch_and_any_slot() {
    let texts: Vec<_> = (0..SLOTS).map(|i| text(30 + i as u64, 20 + 13 * i)).collect();
    for case in cases() {
        case.each(|layout, options| {
            let mut engine = engine(&case.model, layout, options);
            let expected: Vec<_> =
                texts.iter().enumerate().map(|(i, text)| alone(&mut engine, i, text, 9)).collect();
            for round in 0..3 {
                let found = together(&mut engine, &texts, round);
                for (index, (found, expected)) in found.iter().zip(&expected).enumerate() {
                    assert!(found == expected, "{layout}, round {round}, sequence {index}");
                }
            }
        });
    }
}

/// HOP-B: one sequence, whose pieces are KV heads; ragged batches of decodes and pieces of prompts;
/// more pieces than there are places to cut. Before and after W_UV, with shards that hold nothing
/// yet, and where there is nothing to exchange.
#[test]
fn any_pieces_of_attention() {
    let texts: Vec<_> = (0..SLOTS).map(|i| text(40 + i as u64, 14 + 13 * i)).collect();
    for case in cases() {
        case.each(|layout, options| {
            let mut off = engine(&case.model, layout, options);
            let lone = alone(&mut off, 1, &texts[3], 17);
            let batches: Vec<_> = (0..2).map(|round| together(&mut off, &texts, round)).collect();
            for (pieces, threads_per_rank) in [(1, 2), (2, 1), (3, 3), (64, 1)] {
                let hopb = HopB::Pieces(pieces);
                let options = EngineOptions { hopb, threads_per_rank, ..options };
                let mut on = engine(&case.model, layout, options);
                let found = alone(&mut on, 1, &texts[3], 17);
                assert!(found == lone, "{layout}, {pieces} pieces: one sequence");
                for (round, expected) in batches.iter().enumerate() {
                    let found = together(&mut on, &texts, round);
                    assert!(found == *expected, "{layout}, {pieces} pieces, round {round}");
                }
            }
        });
    }
}

/// Sums over ranks in slices: of one sequence and of ragged batches, more slices than a row has
/// panels, where some are not cut (experts, attention groups), and behind norms and biases of whole
/// rows.
#[test]
fn any_slices_of_sums() {
    let texts: Vec<_> = (0..SLOTS).map(|i| text(60 + i as u64, 9 + 11 * i)).collect();
    for case in cases() {
        case.each(|layout, options| {
            let expected = together(&mut engine(&case.model, layout, options), &texts, 1);
            for (reduce_slices, threads_per_rank) in [(2, 2), (3, 1), (16, 3)] {
                let options = EngineOptions { reduce_slices, threads_per_rank, ..options };
                let found = together(&mut engine(&case.model, layout, options), &texts, 1);
                assert!(found == expected, "{layout}, {reduce_slices} slices");
            }
        });
    }
}

/// Links that take their time, and a number of pieces that follows from how long they take, which
/// no two runs agree in.
#[test]
fn slow_links_and_pieces_that_are_chosen() {
    let texts: Vec<_> = (0..SLOTS).map(|i| text(50 + i as u64, 6 + 5 * i)).collect();
    let delay = Delay { latency: Duration::from_micros(30), bytes_per_s: 2e7 };
    for case in cases() {
        case.each(|layout, options| {
            if layout.degrees().kvp == 1 {
                return;
            }
            let expected = together(&mut engine(&case.model, layout, options), &texts, 1);
            for hopb in [HopB::Off, HopB::Pieces(3), HopB::Auto] {
                let options = EngineOptions { hopb, delay: Some(delay), trace: 50, ..options };
                let mut engine = engine(&case.model, layout, options);
                assert!(together(&mut engine, &texts, 1) == expected, "{layout}, {hopb:?}");
                for trace in engine.trace().unwrap() {
                    assert!(trace.spans.len() == 50 && trace.flights.len() >= 50);
                    assert!(trace.spans.is_sorted_by(|a, b| a.end <= b.start));
                    // Nobody reads what is not there; a rank that is late finds what the others sent.
                    for flight in &trace.flights {
                        assert!(flight.received >= flight.landed, "{flight:?}");
                        assert!(flight.landed >= flight.started, "{flight:?}");
                    }
                }
                for counters in engine.counters().unwrap() {
                    assert!(counters.overlap.exposed.iter().sum::<Duration>() > delay.latency);
                }
            }
        });
    }
}

/// Texts so long that windows give whole pages back, which other sequences then take.
#[test]
fn any_company_while_windows_slide() {
    const LENGTHS: [usize; SLOTS] = [620, 330, 530, 40];
    let texts: Vec<_> = LENGTHS.iter().map(|&len| text(len as u64, len)).collect();
    for name in ["mistral", "gpt-oss"] {
        let model = fixture(name);
        for spec in ["helix", "helix kvp=2 block=16", "dp-ep dp=2"] {
            let layout = layout(&model, spec);
            let run = |threads_per_rank, rewind, hopb| {
                let max_context = 640;
                let sizes = EngineOptions { threads_per_rank, rewind, max_context, ..options() };
                engine(&model, layout, EngineOptions { hopb, ..sizes })
            };
            let mut slow = run(1, 0, HopB::Off);
            let expected: Vec<_> =
                texts.iter().enumerate().map(|(i, text)| alone(&mut slow, i, text, 1)).collect();
            for (threads, rewind, hopb) in [(1, 0, HopB::Off), (3, 300, HopB::Pieces(3))] {
                let mut engine = run(threads, rewind, hopb);
                for (index, text) in texts.iter().enumerate() {
                    let found = alone(&mut engine, index, text, 64);
                    assert!(found == expected[index], "{name}, {layout}: {index} alone");
                }
                let found = together(&mut engine, &texts, 1);
                assert!(found == expected, "{name}, {layout}: together, {threads} threads");
            }
        }
    }
}

/// All rows of each text, when text `i` has slot `i + round` and pieces have random lengths.
fn together(engine: &mut Engine, texts: &[Vec<u32>], round: usize) -> Vec<Vec<u32>> {
    let mut random = Random(round as u64);
    let mut found = vec![Vec::new(); texts.len()];
    let mut done = vec![0; texts.len()];
    while done.iter().zip(texts).any(|(done, text)| *done < text.len()) {
        let mut step = Step::default();
        let first = random.below(texts.len());
        for index in (0..texts.len()).map(|i| (first + i) % texts.len()) {
            let len = [0, 1, 2, random.below(16)][random.below(4)];
            let piece = &texts[index][done[index]..texts[index].len().min(done[index] + len)];
            if !piece.is_empty() {
                step.push((index + round) % SLOTS, done[index], piece, Wanted::All);
            }
        }
        if step.is_empty() {
            continue;
        }
        let vocab = engine.vocab();
        let mut rows = bits(engine.step(&step).unwrap()).into_iter();
        for run in &step.runs {
            let index = (run.slot + SLOTS - round % SLOTS) % SLOTS;
            found[index].extend(rows.by_ref().take(run.len * vocab));
            done[index] += run.len;
        }
    }
    (0..SLOTS).for_each(|slot| engine.release(slot));
    found
}

/// A long context, alone: threads share its chunks, in more than one wave. With many others:
/// each thread takes whole sequences. The order of sums is the same.
#[test]
fn one_long_context_or_many() {
    const LONG: usize = 34_000;
    let spec = Spec { layers: 1, vocab: VOCAB, ..Spec::tiny(Arch::Llama) };
    let model = Arc::new(Model::from_gguf_bytes(gguf(&spec, 22)).unwrap());
    for name in ["helix", "helix kvp=2 block=1"] {
        let layout = layout(&model, name);
        let mut first = None;
        for threads_per_rank in [1, 2, 3] {
            let options = EngineOptions {
                threads_per_rank,
                hopb: HopB::Pieces(2 * threads_per_rank - 1),
                kv_type: KvType::F16,
                max_context: LONG + 10,
                max_sequences: 9,
                ..precise()
            };
            let mut engine = engine(&model, layout, options);
            for slot in 0..9 {
                // Noise depends on the position alone.
                engine.fill_with_noise(slot, LONG - 300 * slot);
            }
            let mut step = Step::default();
            step.push(0, LONG, &[7], Wanted::Last);
            let alone = bits(engine.step(&step).unwrap());
            engine.truncate(0, LONG);
            step.clear();
            for slot in (0..9).rev() {
                step.push(slot, LONG - 300 * slot, &[7], Wanted::Last);
            }
            let many = bits(engine.step(&step).unwrap());
            let own = &many[8 * VOCAB..];
            assert!(own == alone, "{layout}, {threads_per_rank} threads: beside others");
            assert!(many[..VOCAB] != *own, "the contexts differ");
            let same = *first.get_or_insert_with(|| alone.clone()) == alone;
            assert!(same, "{layout}, {threads_per_rank} threads");
        }
    }
}
