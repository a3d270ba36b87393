use super::*;
use crate::costs::Choices;
use crate::{Exchange, Formats, Placement, Settings, predict};
use helix_layout::{LayoutSpec, PartialDegrees, Preference, QkvMode, Strategy};

const DECODE: Decode = Decode {
    batch: 1,
    context: 8192,
    threads: 1,
    choices: Choices {
        mla_up: crate::costs::MlaUp::After,
        ffn_reduce: crate::costs::FfnReduce::World,
        tokens: crate::costs::Tokens::Gathered,
        formulas: crate::costs::Formulas::Corrected,
        pieces: 1,
        slices: 1,
    },
    exchange: Exchange::Whole,
};

fn layouts(model: &Model, ranks: usize, strategy: Strategy) -> Vec<Layout> {
    let degrees = PartialDegrees::default();
    let preference = Preference { ranks, strategy, degrees, kv_block: 16, qkv: None };
    preference.layouts(&model.shape).unwrap()
}

fn named(name: &str, weights: &str) -> Model {
    let weights = weights.parse().unwrap();
    Model::named(name, Formats::uniform(weights, "f16".parse().unwrap())).unwrap()
}

/// A machine on which only what is changed matters.
fn machine(change: impl FnOnce(&mut crate::machine::Profile)) -> Machine {
    let mut profile = Machine::typical(64, 1e14).profile().clone();
    profile.arithmetic.values_mut().for_each(|peak| *peak = 1e6.into());
    profile.overhead.operation_us = 0.0.into();
    profile.overhead.elements_g_s = Some(1e6.into());
    profile.overhead.line_ns = None;
    profile.cores.as_mut().unwrap().fork_us.fill(0.0);
    let level = &mut profile.level[0];
    (level.latency_us, level.overhead_us) = (0.0.into(), 0.0.into());
    level.bandwidth_gb_s = 1e6.into();
    change(&mut profile);
    Machine::new(profile).unwrap()
}

fn chosen(model: &Model, machine: &Machine, ranks: usize, decode: &Decode) -> LayoutSpec {
    let layouts = layouts(model, ranks, Strategy::Helix);
    choose(model, machine, &layouts, decode).unwrap().best.layout.spec()
}

/// Where reads are all that counts, whoever reads least of the 8 KV heads and the QKV wins; where
/// messages are, whoever sends none beside the all-reduces.
#[test]
fn reads_shard_the_sequence_and_dear_messages_do_not() {
    let model = named("llama-3.1-8b", "q4_0");
    let free = machine(|_| {});
    let spec = chosen(&model, &free, 16, &DECODE);
    assert_eq!((spec.degrees.kvp * spec.degrees.tpa, spec.qkv), (16, QkvMode::Gather));
    let dear = machine(|profile| profile.level[0].latency_us = 1000.0.into());
    let spec = chosen(&model, &dear, 8, &DECODE);
    assert_eq!((spec.degrees.kvp, spec.degrees.tpa), (1, 8));
    let spec = chosen(&model, &dear, 16, &DECODE);
    assert_eq!((spec.degrees.kvp, spec.qkv), (2, QkvMode::Replicate));
}

/// A layer waits for the group that has most of a token's experts: columns are even.
#[test]
fn one_token_cuts_experts_by_columns() {
    let model = named("deepseek-r1", "fp8");
    for ranks in [2, 8, 16] {
        let degrees = chosen(&model, &machine(|_| {}), ranks, &DECODE).degrees;
        assert_eq!((degrees.tpf, degrees.ep), (ranks, 1));
    }
}

#[test]
fn the_choice_is_the_least_of_all() {
    for (name, weights) in [("llama-3.1-8b", "q4_0"), ("deepseek-r1", "fp8")] {
        let model = named(name, weights);
        let machine = Machine::typical(64, 1e14);
        for strategy in Strategy::ALL {
            for ranks in [1, 2, 6, 12] {
                let layouts = layouts(&model, ranks, strategy);
                let choice = choose(&model, &machine, &layouts, &DECODE).unwrap();
                for layout in &layouts {
                    let time = DECODE.time(&model, &machine, layout).unwrap();
                    assert!(choice.best.ttl_s() <= time.lines.iter().sum::<f64>(), "{layout}");
                }
                assert_eq!(choice.compared, layouts.len());
                assert_eq!(choice.next.is_some(), layouts.len() > 1);
            }
        }
    }
}

/// Rank by rank and in closed form, the planner says the same of a layout.
#[test]
fn a_layout_takes_what_the_search_says() {
    let settings = Settings { threads: 2, reserved: 0.0, ..Settings::new(DECODE.context) };
    let machine = Machine::typical(64, 1e14);
    let mut compared = 0;
    for (name, weights) in [("llama-3.1-8b", "q4_0"), ("deepseek-r1", "fp8")] {
        let model = named(name, weights);
        for strategy in Strategy::ALL {
            for ranks in [1, 4, 8] {
                for layout in layouts(&model, ranks, strategy) {
                    for batch in [1, 8] {
                        let decode = Decode { batch, threads: 2, ..DECODE };
                        let time = decode.time(&model, &machine, &layout).unwrap();
                        let (spec, choices) = (layout.spec(), decode.choices);
                        let placement = Placement { spec, pp: 1, choices, hopb: false };
                        let found = predict(&model, &machine, placement, batch, &settings);
                        let found = found.unwrap().0.ttl_s;
                        let ratio = time.lines.iter().sum::<f64>() / found;
                        // The ranks of medha have different lines to do.
                        let most = if strategy == Strategy::Medha { 1.01 } else { 1.0 + 1e-9 };
                        assert!((1.0 - 1e-9..most).contains(&ratio), "{layout}, {batch}: {ratio}");
                        compared += 1;
                    }
                }
            }
        }
    }
    assert!(compared > 50, "{compared}");
}

#[test]
fn what_does_not_fit_is_left_out_unless_nothing_does() {
    let model = named("llama-3.1-8b", "q4_0");
    // Over 2 ranks of 2 KV heads' shards or 8 heads' the cache is as large; `medha` holds the FFN,
    // 3.2 of 4.5 GB, on as many ranks as there are slices of the heads.
    let layouts = layouts(&model, 2, Strategy::Medha);
    let choice = |gb: f64| {
        let machine = machine(|profile| profile.memory.capacity_gb = gb.into());
        choose(&model, &machine, &layouts, &DECODE).unwrap()
    };
    let [all, some, none] = [100.0, 9.0, 1.0].map(choice);
    assert_eq!((all.too_large, none.too_large), (0, 0));
    assert_eq!((some.too_large, some.compared), (2, 1));
    assert_eq!(some.best.layout.degrees().tpa, 2);
    assert!(some.reason().ends_with("; 2 do not fit in its memory"), "{}", some.reason());
}

#[test]
fn the_reason_names_winner_runner_up_and_what_decides() {
    let model = named("llama-3.1-8b", "q4_0");
    // A rank reads a MB in a millisecond: 32 layers of gate and up, 2 x 4096 x 7168 weights of
    // 4.5 bits; and 4 KV heads of 8192 positions, 2 x 128 x 2 bytes each. A collective takes 0.1 ms.
    let slow = machine(|profile| {
        profile.cores.as_mut().unwrap().read_gb_s.fill(2.0);
        profile.level[0].latency_us = 100.0.into();
        profile.name = "a slow machine".into();
    });
    let layouts = layouts(&model, 2, Strategy::Helix);
    let reason = choose(&model, &slow, &layouts, &DECODE).unwrap().reason();
    assert_eq!(
        reason,
        "helix kvp=1 tpa=2 tpf=2 ep=1 block=16 qkv=replicate: 2654.056 ms per token, predicted for \
         1 sequence at 8192 positions on a slow machine (most of it ffn gate, up 1056.965 ms, \
         partial attention 536.871 ms); next of 3 is helix kvp=2 tpa=1 tpf=2 ep=1 block=16 \
         qkv=gather: 2660.456 ms, 3.200 ms more of qkv gather and 3.200 ms more of all-to-all"
    );
    let alone = choose(&model, &slow, &layouts[..1], &DECODE).unwrap().reason();
    assert!(alone.ends_with("no other layout of as many ranks has what was asked for"), "{alone}");
}
