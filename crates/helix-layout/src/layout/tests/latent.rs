//! Multi-head latent attention: one latent head, and projections that are shared out by heads.

use super::*;

/// (heads, [latent, without position, rotary], value size, W_O's block)
const LATENTS: [(usize, [usize; 3], usize, usize); 5] = [
    (128, [512, 128, 64], 128, 128),
    (16, [512, 128, 64], 128, 256),
    (7, [20, 6, 4], 9, 1),
    (3, [16, 8, 8], 12, 32),
    (1, [5, 3, 2], 1, 1),
];

fn latents() -> impl Iterator<Item = ModelShape> {
    let base = shapes().next().unwrap();
    LATENTS.into_iter().map(move |(q_heads, [kv_lora, nope, rope], value_dim, out_block)| {
        // Few heads need no compressed queries.
        let q_lora = (q_heads > 16).then_some(1536);
        ModelShape {
            q_heads,
            kv_heads: 1,
            head_dim: kv_lora + rope,
            value_dim,
            out_block,
            mla: Some(MlaShape { q_lora, kv_lora, nope, rope }),
            ..base
        }
    })
}

fn for_every_latent(check: impl Fn(&ModelShape, &MlaShape, &Layout)) {
    let mut checked = 0;
    for shape in latents() {
        for (strategy, ranks) in
            Strategy::ALL.into_iter().flat_map(|s| (1..=16).map(move |n| (s, n)))
        {
            for qkv in QkvMode::ALL {
                for layout in Layout::candidates(&shape, ranks, strategy, 16, qkv) {
                    check(&shape, &shape.mla.unwrap(), &layout);
                    checked += 1;
                }
            }
        }
    }
    // A number of ranks has one layout per strategy: there is but one KV head to slice.
    assert_eq!(checked, 5 * 4 * 16 * 2);
}

#[test]
fn helix_cuts_the_latent_by_position_alone_and_tp_duplicates_it() {
    for_every_latent(|shape, _, layout| {
        let ranks = layout.ranks();
        let expected = match layout.strategy() {
            Strategy::Helix => Degrees { kvp: ranks, tpa: 1, dp: 1, tpf: ranks, ep: 1 },
            Strategy::Tp => Degrees { kvp: 1, tpa: ranks, dp: 1, tpf: ranks, ep: 1 },
            Strategy::Medha => Degrees { kvp: ranks, tpa: 1, dp: 1, tpf: 1, ep: 1 },
            Strategy::DpEp => Degrees { kvp: 1, tpa: 1, dp: ranks, tpf: ranks, ep: 1 },
        };
        assert_eq!(layout.degrees(), expected);
        let holders = layout.all_ranks().filter(|rank| layout.kv_heads(*rank) == (0..1)).count();
        let expected =
            if layout.strategy() == Strategy::Tp { ranks.min(shape.q_heads) } else { ranks };
        assert_eq!(holders, expected, "{layout}");
    });
}

#[test]
fn shares_of_queries_tile_the_slice_by_heads() {
    for_every_latent(|shape, mla, layout| {
        let width = mla.nope + mla.rope;
        for first in layout.all_ranks().filter(|rank| layout.attention(*rank).kvp == 0) {
            let group = || layout.kvp_group(first).map(Rank);
            let slice = layout.q_heads(first);
            match layout.qkv() {
                QkvMode::Replicate => {
                    assert!(group().all(|rank| layout.q_share(rank) == slice), "{layout}");
                }
                QkvMode::Gather => {
                    let shares = group().map(|rank| layout.q_share(rank));
                    assert_tile(shares, slice.clone(), &layout.name());
                    assert_even(group().map(|rank| layout.q_share(rank).len()), 1, &layout.name());
                }
            }
            for rank in group() {
                let share = layout.q_share(rank);
                let rows = share.start * width..share.end * width;
                let latent = if slice.is_empty() { 0 } else { shape.head_dim };
                let [q, k, v] = layout.qkv_share(rank);
                assert_eq!((q, k.len(), v), (rows, latent, 0..0), "{layout}, rank {rank}");
            }
        }
    });
}

#[test]
fn out_columns_are_those_of_the_values() {
    for_every_latent(|shape, _, layout| {
        let width = shape.q_heads * shape.value_dim;
        for group in dp_groups(layout) {
            let mut held = vec![false; width];
            for rank in group {
                let (heads, cols) = (layout.out_heads(rank), layout.out_cols(rank));
                assert_eq!(heads.is_empty(), cols.is_empty(), "{layout}, rank {rank}");
                let whole = heads.start * shape.value_dim..heads.end * shape.value_dim;
                let inside = cols.start <= whole.start && whole.end <= cols.end;
                assert!(heads.is_empty() || inside && cols.end <= width, "{layout}: {cols:?}");
                held[cols].fill(true);
            }
            assert!(held.iter().all(|held| *held), "{layout}");
        }
    });
}

#[test]
fn what_sixteen_heads_over_three_ranks_hold() {
    let shape = latents().nth(1).unwrap();
    let layout = Layout::new(&shape, "helix kvp=3 qkv=gather".parse().unwrap()).unwrap();
    let all = |view: fn(&Layout, Rank) -> Range<usize>| {
        layout.all_ranks().map(|rank| view(&layout, rank)).collect::<Vec<_>>()
    };
    assert_eq!(all(Layout::q_heads), [0..16, 0..16, 0..16]);
    assert_eq!(all(Layout::q_share), [0..6, 6..11, 11..16]);
    assert_eq!(all(Layout::out_heads), [0..6, 6..11, 11..16]);
    // Heads of 128 in blocks of 256: 11 heads end in the middle of one.
    assert_eq!(all(Layout::out_cols), [0..768, 768..1536, 1280..2048]);
    assert_eq!(layout.qkv_share(Rank(1)), [6 * 192..11 * 192, 0..576, 0..0]);
}

#[test]
fn latents_that_contradict_themselves_are_refused() {
    let shape = latents().nth(1).unwrap();
    let mla = shape.mla.unwrap();
    let refusal = |shape: ModelShape| {
        Layout::new(&shape, LayoutSpec::new(Strategy::Helix, 1, 1)).unwrap_err().to_string()
    };
    let one_latent = |heads, width| {
        format!(
            "the model's latent attention has {heads} KV heads of {width}; it stores one latent \
             of 512 with its 64 rotary elements per token: 1 head of 576"
        )
    };
    assert_eq!(refusal(ModelShape { kv_heads: 16, ..shape }), one_latent(16, 576));
    assert_eq!(refusal(ModelShape { head_dim: 512, ..shape }), one_latent(1, 512));
    let with = |mla| refusal(ModelShape { mla: Some(mla), ..shape });
    let cases = [
        (MlaShape { q_lora: Some(0), ..mla }, "compressed query width is 0"),
        (MlaShape { kv_lora: 0, ..mla }, "latent width is 0"),
        (
            MlaShape { nope: usize::MAX, ..mla },
            "head size without position is 18446744073709551615",
        ),
        (MlaShape { nope: 1 << 24, ..mla }, "projected query width is 268436480"),
        (MlaShape { rope: 0, ..mla }, "rotary head size is 0"),
    ];
    for (mla, message) in cases {
        assert_eq!(with(mla), format!("the model's {message}; a layout needs 1 to 16777216"));
    }
    assert_eq!(
        refusal(ModelShape { value_dim: 0, ..shape }),
        "the model's value head size is 0; a layout needs 1 to 16777216"
    );
}
