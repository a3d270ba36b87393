use super::*;
use crate::{MlaShape, MoeShape};

pub(crate) const SMOLLM2: ModelShape = ModelShape {
    layers: 30,
    hidden: 576,
    q_heads: 9,
    kv_heads: 3,
    head_dim: 64,
    value_dim: 64,
    ffn: 1536,
    vocab: 49152,
    out_block: 32,
    ffn_block: 32,
    mla: None,
    moe: None,
};

const LLAMA_405B: ModelShape = ModelShape {
    layers: 126,
    hidden: 16384,
    q_heads: 128,
    kv_heads: 8,
    head_dim: 128,
    value_dim: 128,
    ffn: 53248,
    vocab: 128_256,
    out_block: 1,
    ffn_block: 1,
    mla: None,
    moe: None,
};

/// DeepSeek-V3, R1 and their like.
pub(crate) const DEEPSEEK_V3: ModelShape = ModelShape {
    layers: 61,
    hidden: 7168,
    q_heads: 128,
    kv_heads: 1,
    head_dim: 576,
    value_dim: 128,
    ffn: 18432,
    vocab: 129_280,
    out_block: 128,
    ffn_block: 128,
    mla: Some(MlaShape { q_lora: Some(1536), kv_lora: 512, nope: 128, rope: 64 }),
    moe: Some(MoeShape {
        layers: 58,
        experts: 256,
        top_k: 8,
        ffn: 2048,
        block: 128,
        shared_ffn: 2048,
        shared_block: 128,
    }),
};

/// Qwen3-30B-A3B in K-quants, whose blocks of 256 cut an expert into three at most.
pub(crate) const QWEN3_MOE: ModelShape = ModelShape {
    layers: 48,
    hidden: 2048,
    q_heads: 32,
    kv_heads: 4,
    head_dim: 128,
    value_dim: 128,
    ffn: 0,
    vocab: 151_936,
    out_block: 256,
    ffn_block: 256,
    mla: None,
    moe: Some(MoeShape {
        layers: 48,
        experts: 128,
        top_k: 8,
        ffn: 768,
        block: 256,
        shared_ffn: 0,
        shared_block: 1,
    }),
};

const COST: ReadCost = ReadCost {
    weight_bits: 5.0,
    head_bits: 8.5,
    kv_bits: 16.0,
    context: 8192,
    collective_bytes: 0.0,
};

fn over(ranks: usize) -> Preference {
    Preference {
        ranks,
        strategy: Strategy::Helix,
        degrees: PartialDegrees::default(),
        kv_block: 16,
        qkv: None,
    }
}

fn chosen(shape: &ModelShape, preference: &Preference, cost: &ReadCost) -> String {
    choose(shape, preference, cost).unwrap().layout.name()
}

#[test]
fn the_reason_names_winner_runner_up_and_the_rule() {
    let choice = choose(&SMOLLM2, &over(2), &COST).unwrap();
    // Weights: (30 layers of 480 QKV rows, 320 columns out, 768 of the FFN) x 576 x 5 bits, and
    // half of the head at 8.5 bits. KV: 30 x 2 x 192 x 4096 positions x 2 bytes.
    assert_eq!(
        choice.reason,
        "helix kvp=2 tpa=1 tpf=2 ep=1 block=16 qkv=gather: its busiest rank reads 142.9 MB per \
         decoded token at context 8192 (48.6 MB weights, 94.4 MB KV), with 120 collectives; next \
         is helix kvp=2 tpa=1 tpf=2 ep=1 block=16 qkv=replicate: 148.1 MB (53.7 + 94.4), 90 \
         collectives. Chosen by bytes read, each collective counted as 0 KB, not by measured time."
    );
    let alone = choose(&SMOLLM2, &over(1), &COST).unwrap();
    assert_eq!(alone.layout.name(), "helix kvp=1 tpa=1 tpf=1 ep=1 block=16 qkv=replicate");
    assert!(alone.reason.contains("no other layout of as many ranks is legal"));
}

#[test]
fn long_contexts_shard_the_sequence_and_a_dear_collective_is_avoided() {
    let million = ReadCost { context: 1_000_000, weight_bits: 4.0, kv_bits: 4.0, ..COST };
    let name = "helix kvp=8 tpa=8 tpf=64 ep=1 block=16 qkv=gather";
    assert_eq!(chosen(&LLAMA_405B, &over(64), &million), name);

    let short = ReadCost { context: 1, ..COST };
    let dear = ReadCost { collective_bytes: 1e6, ..short };
    let name = "helix kvp=1 tpa=2 tpf=2 ep=1 block=16 qkv=replicate";
    assert_eq!(chosen(&SMOLLM2, &over(2), &dear), name);
}

#[test]
fn what_the_user_fixed_stays_fixed() {
    for qkv in QkvMode::ALL {
        for strategy in Strategy::ALL {
            for ranks in 1..=8 {
                let fixed = Preference { strategy, kv_block: 32, qkv: Some(qkv), ..over(ranks) };
                let layout = choose(&SMOLLM2, &fixed, &COST).unwrap().layout;
                assert_eq!((layout.ranks(), layout.strategy()), (ranks, strategy));
                assert_eq!((layout.kv_block(), layout.qkv()), (32, qkv));
            }
        }
    }
}

#[test]
fn ties_go_to_fewer_collectives_then_to_fewer_sequence_shards() {
    let even = ModelShape { q_heads: 2, kv_heads: 2, hidden: 128, ..SMOLLM2 };
    let mut tied = Vec::new();
    for qkv in QkvMode::ALL {
        for layout in Layout::candidates(&even, 4, Strategy::Helix, 1, qkv) {
            let score = Score::new(layout, &ReadCost { context: 4096, ..COST });
            tied.push(Score { total: 1.0, ..score });
        }
    }
    tied.reverse(); // Candidates come with fewest shards first: the order must not decide.
    tied.sort_by(Score::compare);
    let order: Vec<_> = tied.iter().map(|s| (s.layout.qkv(), s.layout.degrees().kvp)).collect();
    let (replicate, gather) = (QkvMode::Replicate, QkvMode::Gather);
    assert_eq!(order, [(replicate, 2), (replicate, 4), (gather, 2), (gather, 4)]);
}

#[test]
fn the_winner_is_the_least_of_every_candidates_largest_read() {
    for ranks in 1..=16 {
        let winner = choose(&SMOLLM2, &over(ranks), &COST).unwrap().layout;
        let busiest = |layout: &Layout| {
            let reads = layout.all_ranks().map(|rank| Reads::of(layout, rank, COST.context));
            let bits = reads.map(|r| 10 * (r.qkv + r.out + r.ffn) + 17 * r.head + 32 * r.kv);
            bits.max().unwrap()
        };
        for qkv in QkvMode::ALL {
            for other in Layout::candidates(&SMOLLM2, ranks, Strategy::Helix, 16, qkv) {
                assert!(busiest(&winner) <= busiest(&other), "{winner} against {other}");
            }
        }
    }
}

#[test]
fn hostile_numbers_are_refused() {
    let refusal =
        |ranks, cost: &ReadCost| choose(&SMOLLM2, &over(ranks), cost).unwrap_err().to_string();
    assert_eq!(refusal(0, &COST), "0 ranks: a layout has 1 to 1024");
    assert_eq!(
        refusal(usize::MAX, &COST),
        "18446744073709551615 ranks is more than a layout may have: 1024 ranks"
    );
    for bad in [0.0, -1.0, f64::NAN, f64::INFINITY] {
        assert!(choose(&SMOLLM2, &over(2), &ReadCost { weight_bits: bad, ..COST }).is_err());
        assert!(choose(&SMOLLM2, &over(2), &ReadCost { head_bits: bad, ..COST }).is_err());
        assert!(choose(&SMOLLM2, &over(2), &ReadCost { kv_bits: bad, ..COST }).is_err());
    }
    assert_eq!(
        refusal(2, &ReadCost { collective_bytes: f64::NAN, ..COST }),
        "a collective's price in bytes of NaN cannot price a layout; give a finite number of at \
         least 0"
    );
    let huge = ModelShape {
        layers: ModelShape::MAX_SIZE,
        hidden: ModelShape::MAX_SIZE,
        ffn: ModelShape::MAX_SIZE,
        ..SMOLLM2
    };
    let far = ReadCost { context: usize::MAX, ..COST };
    for strategy in Strategy::ALL {
        let most = Preference { ranks: MAX_RANKS, strategy, ..over(1) };
        assert_eq!(choose(&huge, &most, &far).unwrap().layout.ranks(), MAX_RANKS);
    }
    assert!(choose(&ModelShape { layers: 0, ..SMOLLM2 }, &over(2), &COST).is_err());
    assert!(choose(&SMOLLM2, &Preference { kv_block: 0, ..over(2) }, &COST).is_err());
}

#[test]
fn named_degrees_are_kept_and_the_rest_is_chosen() {
    let named = |names: &str| {
        let mut degrees = PartialDegrees::default();
        for (key, value) in names.split(' ').filter_map(|name| name.split_once('=')) {
            let place = match key {
                "kvp" => &mut degrees.kvp,
                "tpa" => &mut degrees.tpa,
                "dp" => &mut degrees.dp,
                "tpf" => &mut degrees.tpf,
                _ => &mut degrees.ep,
            };
            *place = value.parse().ok();
        }
        degrees
    };
    let fixed = |ranks, names| Preference { degrees: named(names), ..over(ranks) };
    for (names, name) in [
        ("kvp=2", "helix kvp=2 tpa=4 tpf=4 ep=2 block=16 qkv=gather"),
        ("tpa=1 ep=2", "helix kvp=8 tpa=1 tpf=4 ep=2 block=16 qkv=gather"),
        ("kvp=4 tpa=2 tpf=1", "helix kvp=4 tpa=2 tpf=1 ep=8 block=16 qkv=gather"),
    ] {
        let choice = choose(&QWEN3_MOE, &fixed(8, names), &COST).unwrap();
        assert_eq!(choice.layout.name(), name, "{names}");
    }
    let refusal =
        |shape, ranks, names| choose(shape, &fixed(ranks, names), &COST).unwrap_err().to_string();
    assert_eq!(
        refusal(&SMOLLM2, 4, "tpf=2"),
        "kvp=4 tpa=1 tpf=2 ep=1 is 4 ranks in attention and 2 in the FFN; helix needs the same \
         ranks in both: nearest legal: kvp=4 tpa=1 tpf=4 ep=1, kvp=2 tpa=1 tpf=2 ep=1, \
         kvp=1 tpa=2 tpf=2 ep=1"
    );
    assert_eq!(
        refusal(&QWEN3_MOE, 4, "ep=3"),
        "kvp=4 tpa=1 tpf=1 ep=3 is 4 ranks in attention and 3 in the FFN; helix needs the same \
         ranks in both: nearest legal: kvp=4 tpa=1 tpf=1 ep=4, kvp=3 tpa=1 tpf=1 ep=3, \
         kvp=4 tpa=1 tpf=2 ep=2"
    );
    assert_eq!(
        refusal(&QWEN3_MOE, 4, "kvp=2 tpa=1"),
        "kvp=2 tpa=1 tpf=2 ep=1 is a layout of 2 ranks, not of 4: ask for 2, or leave degrees out \
         to have them chosen"
    );
    let alone = choose(&QWEN3_MOE, &fixed(2, "kvp=1 tpf=2"), &COST).unwrap();
    assert!(alone.reason.contains("no other layout of as many ranks has the degrees asked for"));
}

#[test]
fn experts_are_cut_by_columns_while_there_are_any_and_then_dealt_to_groups() {
    // 16 blocks of 128 columns go round.
    for (ranks, name) in [
        (8, "helix kvp=8 tpa=1 tpf=8 ep=1 block=16 qkv=gather"),
        (16, "helix kvp=16 tpa=1 tpf=16 ep=1 block=16 qkv=gather"),
        (64, "helix kvp=64 tpa=1 tpf=16 ep=4 block=16 qkv=gather"),
    ] {
        assert_eq!(chosen(&DEEPSEEK_V3, &over(ranks), &COST), name);
    }
    // Three blocks do not. In units of an expert, the busiest of 2, 4 and 8 groups has 5.1, 3.6 and
    // 2.6 of a token's 8. Two ranks: two blocks of each are 5.3, half of the experts 5.1. Four: a
    // block of each is 2.7, though the last rank has none. Eight: a block in two groups is 1.7.
    let grid = |ranks| {
        let Degrees { tpf, ep, .. } =
            choose(&QWEN3_MOE, &over(ranks), &COST).unwrap().layout.degrees();
        (tpf, ep)
    };
    assert_eq!([1, 2, 3, 4, 8, 12].map(grid), [(1, 1), (1, 2), (3, 1), (4, 1), (4, 2), (3, 4)]);
}

#[test]
fn the_reason_tells_what_the_busiest_group_of_experts_has() {
    let choice = choose(&QWEN3_MOE, &over(8), &COST).unwrap();
    let tail =
        " Of a token's 8 experts per layer the busiest of 2 groups has 5.1 on average. Chosen";
    assert!(choice.reason.contains(tail), "{}", choice.reason);
}

#[test]
fn dp_ep_deals_whole_experts_unless_told_otherwise() {
    let data = Preference { strategy: Strategy::DpEp, ..over(8) };
    let choice = choose(&DEEPSEEK_V3, &data, &COST).unwrap();
    let name = "dp-ep kvp=1 tpa=1 dp=8 tpf=1 ep=8 block=16 qkv=replicate";
    assert_eq!(choice.layout.name(), name);
    assert!(choice.reason.contains("; that is how dp-ep cuts unless told otherwise."));
    let degrees = PartialDegrees { tpf: Some(2), ..PartialDegrees::default() };
    let name = "dp-ep kvp=1 tpa=1 dp=8 tpf=2 ep=4 block=16 qkv=replicate";
    assert_eq!(chosen(&DEEPSEEK_V3, &Preference { degrees, ..data }, &COST), name);
    let name = "dp-ep kvp=1 tpa=1 dp=8 tpf=8 ep=1 block=16 qkv=replicate";
    assert_eq!(chosen(&SMOLLM2, &data, &COST), name);
}

#[test]
fn the_winner_over_experts_waits_least_for_its_slowest_rank() {
    for shape in [DEEPSEEK_V3, QWEN3_MOE] {
        let moe = shape.moe.unwrap();
        for ranks in 1..=16 {
            let winner = choose(&shape, &over(ranks), &COST).unwrap().layout;
            // What Reads counts on average, with the busiest group's experts for the rank's own.
            let slowest = |layout: &Layout| {
                let busiest = experts_of_busiest_group(&moe, layout.degrees().ep);
                let bits = layout.all_ranks().map(|rank| {
                    let reads = Reads::of(layout, rank, COST.context);
                    let own = layout.experts(rank).len() as f64;
                    let mean = moe.top_k as f64 * own / moe.experts as f64;
                    let experts = reads.experts as f64 * busiest / mean;
                    let weights = (reads.qkv + reads.out + reads.ffn) as f64 + experts;
                    5.0 * weights + 8.5 * reads.head as f64 + 16.0 * reads.kv as f64
                });
                bits.fold(0.0, f64::max)
            };
            for qkv in QkvMode::ALL {
                for other in Layout::candidates(&shape, ranks, Strategy::Helix, 16, qkv) {
                    let ratio = slowest(&winner) / slowest(&other);
                    assert!(ratio < 1.0 + 1e-9, "{winner} against {other}: {ratio}");
                }
            }
        }
    }
}
