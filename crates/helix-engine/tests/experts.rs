//! What mixtures of experts and latents read, hold and send, from the counters.

mod common;

use common::{engine, fixture, layout, layouts, logits, precise};
use helix_comm::{Collective, Traffic};
use helix_engine::{Engine, EngineOptions, FfnReduce, MlaUp};
use helix_kernels::Precision;
use helix_layout::{Layout, LayoutSpec, Rank, Strategy};
use helix_model::synthetic::{Spec, gguf};
use helix_model::{Arch, AttentionWeights, FfnWeights, LayerWeights, Model, RankWeights};
use helix_scheduler::{Step, Wanted};
use std::sync::Arc;

const F32: u64 = 4;

/// One token of a new sequence in `slot`.
fn decode(engine: &mut Engine, slot: usize, token: u32) {
    let mut step = Step::default();
    step.push(slot, engine.len(slot), &[token], Wanted::None);
    engine.step(&step).expect("a step runs");
}

/// Bytes of a rank's matrices but the LM head and, of those that raise latents to values, only of
/// heads that it keeps; and of one expert in each layer that has them.
fn bytes(model: &Model, layout: &Layout, rank: usize) -> (u64, u64) {
    let load = RankWeights::load(model, layout, Rank(rank), Precision::Precise, &|_| ());
    let weights = load.expect("weights load");
    let expert = weights.layers.iter().filter_map(|layer| match &layer.ffn {
        FfnWeights::Dense(_) => None,
        FfnWeights::Moe(moe) => moe.experts.first(),
    });
    let expert = expert.map(|e| e.gate.bytes() + e.up.bytes() + e.down.bytes()).sum::<usize>();
    let (q, kept) = (layout.q_heads(Rank(rank)), layout.out_heads(Rank(rank)));
    let raising = |layer: &LayerWeights| match &layer.attention {
        AttentionWeights::Heads(_) => 0,
        AttentionWeights::Latent(latent) => {
            let others = q.clone().zip(&latent.v_up).filter(|(head, _)| !kept.contains(head));
            others.map(|(_, matrix)| matrix.bytes()).sum::<usize>()
        }
    };
    let others: usize = weights.layers.iter().map(raising).sum();
    ((weights.bytes() - weights.head.bytes() - others) as u64, expert as u64)
}

/// Models that no converter wrote: every layout of up to 4 ranks gives one rank's logits.
#[test]
fn synthetic_experts_and_latents_run_on_every_layout() {
    for arch in [Arch::Mixtral, Arch::Qwen3Moe, Arch::DeepSeek] {
        let model = Arc::new(Model::from_gguf_bytes(gguf(&Spec::tiny(arch), 51)).unwrap());
        let text: Vec<u32> = (0..40).map(|at| at * 7 % 300).collect();
        let one = Layout::new(&model.shape(), LayoutSpec::new(Strategy::Helix, 1, 1)).unwrap();
        let expected = logits(&mut engine(&model, one, precise()), &text, 9);
        assert!(expected.iter().any(|logit| logit.abs() > 1.0), "{arch}");
        for layout in layouts(&model.shape(), 4, &[3]) {
            let found = logits(&mut engine(&model, layout, precise()), &text, 9);
            let off = found.iter().zip(&expected).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
            assert!(found.len() == expected.len() && off < 1e-3, "{arch}, {layout}: {off}");
        }
    }
}

#[test]
fn a_token_reads_the_experts_that_it_goes_to_and_no_others() {
    for name in ["qwen3-moe", "mixtral", "gpt-oss", "deepseek-v3"] {
        let model = fixture(name);
        let moe = model.config.moe.clone().expect("experts");
        for spec in ["helix", "helix kvp=2 tpf=1 ep=2", "helix kvp=2 tpf=2 ep=1"] {
            let layout = layout(&model, spec);
            let mut engine = engine(&model, layout, precise());
            decode(&mut engine, 0, 17);
            let tpf = layout.degrees().tpf as u64;
            let (mut read, mut expected) = (0, 0);
            let mut expert = 0;
            for (rank, counters) in engine.counters().expect("counters").iter().enumerate() {
                let (all, one) = bytes(&model, &layout, rank);
                read += counters.weight_bytes;
                expected += all - layout.experts(Rank(rank)).len() as u64 * one;
                expert = one;
            }
            // Columns cut evenly: every rank of a group has as much of an expert.
            expected += moe.routing.top_k as u64 * tpf * expert;
            assert_eq!(
                read, expected,
                "{name}, {layout}: {} of {}",
                moe.routing.top_k, moe.experts
            );
        }
    }
}

#[test]
fn many_tokens_read_an_expert_once() {
    let model = fixture("mixtral");
    let layout = layout(&model, "helix");
    let mut engine = engine(&model, layout, precise());
    let tokens: Vec<u32> = (0..60).collect();
    let mut step = Step::default();
    step.push(0, 0, &tokens, Wanted::None);
    engine.step(&step).expect("a step runs");
    let (all, _) = bytes(&model, &layout, 0);
    assert_eq!(
        engine.counters().expect("counters")[0].weight_bytes,
        all,
        "60 tokens go to every expert"
    );
}

#[test]
fn helix_cuts_the_latent_and_tp_duplicates_it() {
    let model = fixture("deepseek-v3");
    let tokens: Vec<u32> = (0..64).collect();
    let held = |spec: &str| {
        let mut engine = engine(&model, layout(&model, spec), precise());
        logits(&mut engine, &tokens, 64);
        engine
            .counters()
            .expect("counters")
            .iter()
            .map(|c| (c.kv_bytes_held, c.kv_bytes_read))
            .collect::<Vec<_>>()
    };
    let config = &model.config;
    // One row per token and layer, whatever the number of heads.
    let whole = (64 * config.layers * config.head_dim) as u64 * F32;
    assert_eq!(held("helix"), [(whole, whole)]);
    assert_eq!(held("helix kvp=4"), [(whole / 4, whole / 4); 4]);
    assert_eq!(held("tp tpa=4"), [(whole, whole); 4]);
}

#[test]
fn values_before_the_all_to_all_are_fewer_bytes_to_send_and_more_to_read() {
    let model = fixture("deepseek-v3");
    let config = &model.config;
    let mla = config.mla.expect("latent attention");
    let tokens: Vec<u32> = (0..10).collect();
    let run = |mla_up| {
        let layout = layout(&model, "helix kvp=2");
        let options = EngineOptions { mla_up, ..precise() };
        let mut engine = engine(&model, layout, options);
        logits(&mut engine, &tokens, 10);
        let kept = layout.out_heads(Rank(0)).len();
        let counters = engine.counters().expect("counters").swap_remove(0);
        (counters.kvp.of(Collective::AllToAll), counters.weight_bytes, kept)
    };
    let (before, more, kept) = run(MlaUp::Before);
    let (after, less, _) = run(MlaUp::After);
    let sent = |dims: usize| {
        let values = 10 * (config.q_heads - kept) * (dims + 1);
        (config.layers as u64, (config.layers * values) as u64 * F32)
    };
    assert_eq!(before, sent(mla.value));
    assert_eq!(after, sent(mla.kv_lora));
    assert!(more > less, "{more} bytes of weights before, {less} after");
}

#[test]
fn groups_of_ranks_hold_and_read_their_own_sequences() {
    let model = fixture("mixtral");
    let layout = layout(&model, "dp-ep dp=2");
    let options = EngineOptions { max_sequences: 3, ..precise() };
    let mut engine = engine(&model, layout, options);
    let mut step = Step::default();
    step.push(0, 0, &[1; 20], Wanted::None);
    step.push(1, 0, &[2; 5], Wanted::None);
    step.push(2, 0, &[3; 7], Wanted::None);
    engine.step(&step).expect("a step runs");
    let config = &model.config;
    let position = (config.layers * config.kv_heads * 2 * config.head_dim) as u64 * F32;
    let counters = engine.counters().expect("counters");
    // Slots 0 and 2 are rank 0's, slot 1 is rank 1's.
    for (counters, own) in counters.iter().zip([27, 5]) {
        assert_eq!(counters.kv_bytes_held, own * position);
        assert_eq!(counters.kv_bytes_read, own * position);
        let row = config.hidden as u64 * F32;
        let layers = config.layers as u64;
        assert_eq!(counters.world.of(Collective::AllGather), (layers, layers * own * row));
        assert_eq!(counters.world.of(Collective::AllReduce), (layers, layers * 32 * row));
    }
}

#[test]
fn two_stages_bring_the_same_sum_over_other_groups() {
    let model = fixture("qwen3-moe");
    let layout = layout(&model, "helix kvp=4 tpf=2 ep=2");
    let tokens: Vec<u32> = (0..30).collect();
    let run = |ffn_reduce| {
        let mut engine = engine(&model, layout, EngineOptions { ffn_reduce, ..precise() });
        let logits = logits(&mut engine, &tokens, 30);
        (logits, engine.counters().expect("counters").swap_remove(1))
    };
    let (one, world) = run(FfnReduce::World);
    let (two, grid) = run(FfnReduce::Grid);
    let (difference, _) = common::largest_difference(&one, &two);
    assert!(difference < 1e-4, "{difference}");
    let layers = model.config.layers as u64;
    let bytes = layers * (30 * model.config.hidden) as u64 * F32;
    assert_eq!(world.experts, [Traffic::default(); 2]);
    assert_eq!(world.world.of(Collective::AllReduce), (2 * layers, 2 * bytes));
    assert_eq!(grid.world.of(Collective::AllReduce), (layers, bytes));
    for stage in grid.experts {
        assert_eq!(stage.of(Collective::AllReduce), (layers, bytes));
    }
}

#[test]
fn windows_give_back_what_no_query_sees() {
    let model = fixture("gemma3");
    let config = &model.config;
    let window = config.window(0).expect("its first layer has a window");
    let sliding = (0..config.layers).filter(|&layer| config.window(layer).is_some()).count();
    let options = EngineOptions { max_context: 2000, rewind: 0, ..precise() };
    let mut engine = engine(&model, layout(&model, "helix kvp=2"), options);
    for start in (0..1536).step_by(64) {
        let mut step = Step::default();
        step.push(0, start, &[5; 64], Wanted::None);
        engine.step(&step).expect("a step runs");
    }
    let token = (config.kv_heads * 2 * config.head_dim) as u64 * F32;
    let full = (config.layers - sliding) as u64 * 768 * token;
    for counters in engine.counters().expect("counters") {
        // Whole pages of 256 local tokens go: at most one page and a step more than the window.
        let most = (256 + 64 + window as u64) * sliding as u64 * token;
        let held = counters.kv_bytes_held - full;
        assert!(held <= most, "{held} bytes of windows, at most {most}");
        assert!(held > 0);
    }
}
