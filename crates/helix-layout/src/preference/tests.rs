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

fn over(ranks: usize) -> Preference {
    Preference {
        ranks,
        strategy: Strategy::Helix,
        degrees: PartialDegrees::default(),
        kv_block: 16,
        qkv: None,
    }
}

fn names(shape: &ModelShape, preference: &Preference) -> Vec<String> {
    preference.layouts(shape).unwrap().iter().map(Layout::name).collect()
}

fn refusal(shape: &ModelShape, preference: &Preference) -> String {
    preference.layouts(shape).unwrap_err().to_string()
}

#[test]
fn fewer_collectives_come_first_then_fewer_shards_then_fewer_groups() {
    let even = ModelShape { q_heads: 2, kv_heads: 2, hidden: 128, ..SMOLLM2 };
    assert_eq!(
        names(&even, &over(4)),
        [
            "helix kvp=2 tpa=2 tpf=4 ep=1 block=16 qkv=replicate",
            "helix kvp=4 tpa=1 tpf=4 ep=1 block=16 qkv=replicate",
            "helix kvp=2 tpa=2 tpf=4 ep=1 block=16 qkv=gather",
            "helix kvp=4 tpa=1 tpf=4 ep=1 block=16 qkv=gather",
        ]
    );
    let alone = names(&SMOLLM2, &over(1));
    assert_eq!(alone, ["helix kvp=1 tpa=1 tpf=1 ep=1 block=16 qkv=replicate"]);
    let experts = names(&QWEN3_MOE, &over(2));
    assert_eq!(experts[0], "helix kvp=1 tpa=2 tpf=2 ep=1 block=16 qkv=replicate");
    assert_eq!(experts[1], "helix kvp=1 tpa=2 tpf=1 ep=2 block=16 qkv=replicate");
}

#[test]
fn what_the_user_fixed_stays_fixed() {
    for qkv in QkvMode::ALL {
        for strategy in Strategy::ALL {
            for ranks in 1..=8 {
                let fixed = Preference { strategy, kv_block: 32, qkv: Some(qkv), ..over(ranks) };
                for layout in fixed.layouts(&SMOLLM2).unwrap() {
                    assert_eq!((layout.ranks(), layout.strategy()), (ranks, strategy));
                    assert_eq!((layout.kv_block(), layout.qkv()), (32, qkv));
                }
            }
        }
    }
}

#[test]
fn hostile_numbers_are_refused() {
    assert_eq!(refusal(&SMOLLM2, &over(0)), "0 ranks: a layout has 1 to 1024");
    assert_eq!(
        refusal(&SMOLLM2, &over(usize::MAX)),
        "18446744073709551615 ranks is more than a layout may have: 1024 ranks"
    );
    let huge = ModelShape {
        layers: ModelShape::MAX_SIZE,
        hidden: ModelShape::MAX_SIZE,
        ffn: ModelShape::MAX_SIZE,
        ..SMOLLM2
    };
    for strategy in Strategy::ALL {
        let most = Preference { ranks: MAX_RANKS, strategy, ..over(1) };
        assert!(!most.layouts(&huge).unwrap().is_empty(), "{strategy}");
    }
    assert!(over(2).layouts(&ModelShape { layers: 0, ..SMOLLM2 }).is_err());
    assert!(Preference { kv_block: 0, ..over(2) }.layouts(&SMOLLM2).is_err());
}

#[test]
fn named_degrees_are_kept_and_the_rest_is_open() {
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
    for (names, grids) in [
        ("kvp=2", vec![(2, 4, 8, 1), (2, 4, 4, 2), (2, 4, 2, 4), (2, 4, 1, 8)]),
        ("tpa=1 ep=2", vec![(8, 1, 4, 2)]),
        ("kvp=4 tpa=2 tpf=1", vec![(4, 2, 1, 8)]),
    ] {
        let plain = Preference { qkv: Some(QkvMode::Replicate), ..fixed(8, names) };
        let found = plain.layouts(&QWEN3_MOE).unwrap();
        let found = found.iter().map(|layout| {
            let Degrees { kvp, tpa, tpf, ep, .. } = layout.degrees();
            (kvp, tpa, tpf, ep)
        });
        assert_eq!(found.collect::<Vec<_>>(), grids, "{names}");
    }
    assert_eq!(
        refusal(&SMOLLM2, &fixed(4, "tpf=2")),
        "kvp=4 tpa=1 tpf=2 ep=1 is 4 ranks in attention and 2 in the FFN; helix needs the same \
         ranks in both: nearest legal: kvp=4 tpa=1 tpf=4 ep=1, kvp=2 tpa=1 tpf=2 ep=1, \
         kvp=1 tpa=2 tpf=2 ep=1"
    );
    assert_eq!(
        refusal(&QWEN3_MOE, &fixed(4, "ep=3")),
        "kvp=4 tpa=1 tpf=1 ep=3 is 4 ranks in attention and 3 in the FFN; helix needs the same \
         ranks in both: nearest legal: kvp=4 tpa=1 tpf=1 ep=4, kvp=3 tpa=1 tpf=1 ep=3, \
         kvp=4 tpa=1 tpf=2 ep=2"
    );
    assert_eq!(
        refusal(&QWEN3_MOE, &fixed(4, "kvp=2 tpa=1")),
        "kvp=2 tpa=1 tpf=2 ep=1 is a layout of 2 ranks, not of 4: ask for 2, or leave degrees out \
         to have them chosen"
    );
}

#[test]
fn dp_ep_deals_whole_experts_unless_told_otherwise() {
    let data = Preference { strategy: Strategy::DpEp, ..over(8) };
    let name = "dp-ep kvp=1 tpa=1 dp=8 tpf=1 ep=8 block=16 qkv=replicate";
    assert_eq!(names(&DEEPSEEK_V3, &data), [name]);
    let degrees = PartialDegrees { tpf: Some(2), ..PartialDegrees::default() };
    let name = "dp-ep kvp=1 tpa=1 dp=8 tpf=2 ep=4 block=16 qkv=replicate";
    assert_eq!(names(&DEEPSEEK_V3, &Preference { degrees, ..data }), [name]);
    let name = "dp-ep kvp=1 tpa=1 dp=8 tpf=8 ep=1 block=16 qkv=replicate";
    assert_eq!(names(&SMOLLM2, &data), [name]);
}
