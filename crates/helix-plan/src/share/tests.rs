use super::*;
use helix_layout::{MlaShape, MoeShape};

const PLAIN: ModelShape = ModelShape {
    layers: 2,
    hidden: 64,
    q_heads: 8,
    kv_heads: 4,
    head_dim: 16,
    value_dim: 16,
    ffn: 160,
    vocab: 131,
    out_block: 1,
    ffn_block: 1,
    mla: None,
    moe: None,
};

fn shapes() -> Vec<ModelShape> {
    let moe = MoeShape {
        layers: 1,
        experts: 13,
        top_k: 3,
        ffn: 96,
        block: 32,
        shared_ffn: 64,
        shared_block: 32,
    };
    let mla = MlaShape { q_lora: Some(24), kv_lora: 32, nope: 16, rope: 8 };
    let latent = ModelShape { q_heads: 10, kv_heads: 1, head_dim: 40, mla: Some(mla), ..PLAIN };
    vec![
        PLAIN,
        ModelShape { q_heads: 9, kv_heads: 3, head_dim: 20, value_dim: 20, ..PLAIN },
        ModelShape { q_heads: 7, kv_heads: 1, ffn: 33, vocab: 7, ..PLAIN },
        ModelShape {
            q_heads: 21,
            kv_heads: 7,
            head_dim: 40,
            value_dim: 40,
            out_block: 32,
            ..PLAIN
        },
        ModelShape { head_dim: 10, value_dim: 10, out_block: 256, ffn_block: 32, ..PLAIN },
        ModelShape { moe: Some(moe), ..PLAIN },
        ModelShape { moe: Some(MoeShape { shared_ffn: 0, shared_block: 1, ..moe }), ..latent },
        latent,
    ]
}

/// Field by field, the most that any rank of a layout has.
fn most(shares: &[Share]) -> Share {
    let most = |field: fn(&Share) -> usize| shares.iter().map(field).max().unwrap();
    Share {
        q_heads: most(|s| s.q_heads),
        kv_heads: most(|s| s.kv_heads),
        kept_heads: most(|s| s.kept_heads),
        sent_heads: most(|s| s.sent_heads),
        projected_heads: most(|s| s.projected_heads),
        qkv_rows: most(|s| s.qkv_rows),
        qkv_rows_read: most(|s| s.qkv_rows_read),
        out_cols: most(|s| s.out_cols),
        ffn_cols: most(|s| s.ffn_cols),
        shared_cols: most(|s| s.shared_cols),
        experts: most(|s| s.experts),
        expert_cols: most(|s| s.expert_cols),
        vocab_rows: most(|s| s.vocab_rows),
        ..shares[0]
    }
}

#[test]
fn the_closed_form_is_the_most_over_all_ranks() {
    let mut layouts = 0;
    for shape in shapes() {
        for ranks in 1..=24 {
            for strategy in Strategy::ALL {
                for qkv in QkvMode::ALL {
                    for layout in Layout::candidates(&shape, ranks, strategy, 4, qkv) {
                        let all: Vec<_> =
                            layout.all_ranks().map(|rank| Share::of(&layout, rank)).collect();
                        let busiest = Share::busiest(&shape, &layout.spec());
                        assert_eq!(busiest, most(&all), "{layout} of {shape:?}");
                        for len in [0, 1, 4, 5, 63, 64, 1000] {
                            let local = all.iter().map(|share| share.local(len)).max();
                            assert_eq!(Some(busiest.local(len)), local, "{layout}: {len}");
                        }
                        layouts += 1;
                    }
                }
            }
        }
    }
    assert!(layouts > 2000, "{layouts} layouts");
}

/// Attention groups of several ranks, which no engine's layout has.
#[test]
fn groups_of_several_ranks_have_what_one_group_has() {
    let degrees = Degrees { kvp: 2, tpa: 2, dp: 4, tpf: 16, ep: 1 };
    let spec = LayoutSpec { degrees, ..LayoutSpec::new(Strategy::Helix, 2, 2) };
    let share = Share::busiest(&PLAIN, &spec);
    assert_eq!((share.q_heads, share.kv_heads, share.kept_heads), (4, 2, 2));
    assert_eq!((share.ffn_cols, share.ranks(), share.own_sequences(9)), (10, 16, 3));
}
