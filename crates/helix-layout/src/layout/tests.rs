//! Every degree up to 16 over shapes that divide and shapes that do not, against counting.

use std::ops::Range;

use proptest::prelude::{
    Just, Strategy as Generator, any, prop, prop_assert, prop_oneof, proptest,
};

use super::*;
use crate::{MlaShape, MoeShape, PartialDegrees, Strategy};

mod experts;
mod latent;

/// (query heads, KV heads, head size, FFN width, vocabulary, W_O's block, W_down's block)
const SHAPES: [(usize, usize, usize, usize, usize, usize, usize); 8] = [
    (9, 3, 64, 1536, 49152, 32, 32),
    (9, 3, 8, 37, 1000, 1, 1),
    (10, 5, 64, 1000, 32003, 32, 8),
    (10, 5, 80, 4864, 151_936, 256, 256),
    (32, 8, 128, 14336, 128_256, 256, 256),
    (128, 1, 20, 96, 257, 32, 32),
    (14, 2, 64, 4864, 151_936, 32, 32),
    (1, 1, 1, 1, 1, 1, 1),
];

fn shapes() -> impl Iterator<Item = ModelShape> {
    SHAPES.into_iter().map(|(q_heads, kv_heads, head_dim, ffn, vocab, out_block, ffn_block)| {
        ModelShape {
            layers: 2,
            hidden: q_heads * head_dim,
            q_heads,
            kv_heads,
            head_dim,
            // Outputs as wide as keys in half of the shapes.
            value_dim: if kv_heads % 2 == 0 { head_dim } else { head_dim + 24 },
            ffn,
            vocab,
            out_block,
            ffn_block,
            mla: None,
            moe: None,
        }
    })
}

/// Checks every legal layout with degrees of attention up to 16, and that there are some.
fn for_every_layout(check: impl Fn(&ModelShape, &Layout)) {
    let mut checked = 0;
    let pairs = || (1..=16).flat_map(|kvp| (1..=16).map(move |tpa| (kvp, tpa)));
    for shape in shapes() {
        for strategy in Strategy::ALL {
            let one_group = pairs().map(|(kvp, tpa)| strategy.degrees(kvp, tpa));
            let groups = (2..=16).map(|dp| {
                let named = PartialDegrees { dp: Some(dp), ..PartialDegrees::default() };
                strategy.complete(named, &shape)
            });
            for degrees in one_group.chain(groups) {
                for qkv in QkvMode::ALL {
                    let plain = LayoutSpec::new(strategy, 1, 1);
                    if let Ok(layout) = Layout::new(&shape, LayoutSpec { degrees, qkv, ..plain }) {
                        check(&shape, &layout);
                        checked += 1;
                    }
                }
            }
        }
    }
    // helix and medha, tp, dp-ep.
    assert_eq!(checked, 2 * (2 * 16 * (3 + 3 + 5 + 5 + 8 + 1 + 2 + 1) + 8 * 16 + 8 * 16));
}

/// Asserts that ranges in order, empty ones too, are the whole without gap or overlap.
fn assert_tile(ranges: impl IntoIterator<Item = Range<usize>>, whole: Range<usize>, what: &str) {
    let mut end = whole.start;
    for range in ranges {
        assert_eq!(range.start, end, "{what}: {range:?} does not start where the last ended");
        assert!(range.end >= range.start, "{what}: {range:?} runs backwards");
        end = range.end;
    }
    assert_eq!(end, whole.end, "{what}");
}

fn assert_even(sizes: impl Iterator<Item = usize>, granule: usize, what: &str) {
    let granules: Vec<_> = sizes.map(|size| size.div_ceil(granule)).collect();
    let (least, most) = (granules.iter().min(), granules.iter().max());
    assert!(most.unwrap() - least.unwrap() <= 1, "{what}: {granules:?}");
}

/// The first rank of each KVP group; under `dp-ep`, of all that serve the same sequences.
fn first_of_groups(layout: &Layout) -> impl Iterator<Item = Rank> {
    let kvp = layout.degrees().kvp;
    (0..layout.degrees().tpa).map(move |tpa| Rank(tpa * kvp))
}

/// The ranks that serve the same sequences, group by group.
fn dp_groups(layout: &Layout) -> impl Iterator<Item = Vec<Rank>> {
    let dp = layout.degrees().dp;
    (0..dp).map(move |dp| layout.all_ranks().filter(|r| layout.attention(*r).dp == dp).collect())
}

#[test]
fn legal_is_what_the_strategies_say_and_nothing_else() {
    let degrees = 0..=4;
    for shape in shapes() {
        let all = degrees.clone().flat_map(|kvp| degrees.clone().map(move |tpa| (kvp, tpa)));
        let all = all.flat_map(|(kvp, tpa)| (0..=3).map(move |dp| (kvp, tpa, dp)));
        for (kvp, tpa, dp) in all {
            for (tpf, ep) in (0..=17).flat_map(|tpf| (0..=2).map(move |ep| (tpf, ep))) {
                let degrees = Degrees { kvp, tpa, dp, tpf, ep };
                let legal = |strategy| {
                    let spec = LayoutSpec { degrees, ..LayoutSpec::new(strategy, 1, 1) };
                    Layout::new(&shape, spec).is_ok()
                };
                let dense = kvp > 0 && tpa > 0 && ep == 1;
                let one = dense && dp == 1;
                let fits = one && tpa <= shape.kv_heads;
                assert_eq!(legal(Strategy::Helix), fits && tpf == kvp * tpa, "{degrees}");
                assert_eq!(legal(Strategy::Tp), one && kvp == 1 && tpf == tpa, "{degrees}");
                assert_eq!(legal(Strategy::Medha), fits && tpf == tpa, "{degrees}");
                let whole = dense && dp > 0 && kvp == 1 && tpa == 1;
                assert_eq!(legal(Strategy::DpEp), whole && tpf == dp, "{degrees}");
            }
        }
    }
}

#[test]
fn places_in_attention_are_kvp_contiguous_and_each_is_one_rank() {
    for_every_layout(|_, layout| {
        let Degrees { kvp, tpa, dp, .. } = layout.degrees();
        assert_eq!(layout.ranks(), kvp * tpa * dp);
        let slices = (0..dp).flat_map(|d| (0..tpa).map(move |t| (t, d)));
        let mut expected = slices.flat_map(|(t, d)| (0..kvp).map(move |k| (k, t, d)));
        for rank in layout.all_ranks() {
            let at = layout.attention(rank);
            assert_eq!(Some((at.kvp, at.tpa, at.dp)), expected.next());
            assert_eq!(layout.rank(at), rank);
            let group = layout.kvp_group(rank);
            assert_eq!(group.len(), kvp);
            for (index, member) in group.enumerate() {
                let expected = AttentionCoord { kvp: index, ..at };
                assert_eq!(layout.attention(Rank(member)), expected, "{layout}");
            }
        }
        assert_eq!(expected.next(), None);
    });
}

#[test]
fn slices_of_heads_tile_and_kv_heads_are_those_that_their_queries_use() {
    for_every_layout(|shape, layout| {
        let slices = first_of_groups(layout).map(|rank| layout.q_heads(rank));
        assert_tile(slices, 0..shape.q_heads, &layout.name());
        for rank in layout.all_ranks() {
            let first = Rank(layout.kvp_group(rank).start);
            assert_eq!(layout.q_heads(rank), layout.q_heads(first), "{layout}");
            let mut used: Vec<_> = layout.q_heads(rank).map(|q| q / shape.group()).collect();
            used.dedup();
            let stored: Vec<_> = layout.kv_heads(rank).collect();
            assert_eq!(stored, used, "{layout}, rank {rank}");
        }
    });
}

#[test]
fn kv_is_stored_once_unless_tp_has_more_ranks_than_kv_heads() {
    for_every_layout(|shape, layout| {
        let Degrees { kvp, tpa, dp, .. } = layout.degrees();
        let mut copies = vec![0; kvp * shape.kv_heads];
        for rank in layout.all_ranks() {
            let heads = layout.kv_heads(rank);
            assert!(heads.len() <= shape.kv_heads.div_ceil(tpa), "{layout}, rank {rank}");
            for head in heads {
                copies[layout.attention(rank).kvp * shape.kv_heads + head] += 1;
            }
        }
        if tpa <= shape.kv_heads {
            // A place in each group, of which one has the sequence.
            assert!(copies.iter().all(|&n| n == dp), "{layout}: {copies:?}");
            let slices = first_of_groups(layout).map(|rank| layout.kv_heads(rank).len());
            assert_even(slices, 1, &layout.name());
        } else {
            assert_eq!(layout.strategy(), Strategy::Tp);
            // Each rank past K keeps one more copy, until a KV head's queries run out.
            let total: usize = copies.iter().sum();
            let of_head = |h| split(tpa, shape.kv_heads, 1, h).len().min(shape.group());
            assert_eq!(total, (0..shape.kv_heads).map(of_head).sum(), "{layout}: {copies:?}");
            assert!(copies.iter().all(|&n| n >= 1), "{layout}: {copies:?}");
        }
    });
}

#[test]
fn out_heads_tile_the_heads_and_come_from_the_own_group() {
    for_every_layout(|shape, layout| {
        for group in dp_groups(layout) {
            let kept = group.into_iter().map(|rank| layout.out_heads(rank));
            assert_tile(kept, 0..shape.q_heads, &layout.name());
        }
        for first in first_of_groups(layout) {
            let members = || layout.kvp_group(first).map(Rank);
            let kept = members().map(|rank| layout.out_heads(rank));
            assert_tile(kept, layout.q_heads(first), &layout.name());
            match layout.strategy() {
                Strategy::Medha => assert_eq!(layout.out_heads(first), layout.q_heads(first)),
                _ => {
                    let sizes = members().map(|rank| layout.out_heads(rank).len());
                    assert_even(sizes, 1, &layout.name());
                }
            }
        }
    });
}

#[test]
fn out_cols_are_the_fewest_whole_blocks_that_hold_the_out_heads() {
    for_every_layout(|shape, layout| {
        let width = shape.q_heads * shape.value_dim;
        for rank in layout.all_ranks() {
            let (heads, cols) = (layout.out_heads(rank), layout.out_cols(rank));
            assert_eq!(heads.is_empty(), cols.is_empty(), "{layout}, rank {rank}");
            assert!(cols.end <= width);
            if heads.is_empty() {
                continue;
            }
            let (start, end) = (heads.start * shape.value_dim, heads.end * shape.value_dim);
            assert!(cols.start.is_multiple_of(shape.out_block), "{layout}: {cols:?}");
            assert!(cols.end.is_multiple_of(shape.out_block) || cols.end == width);
            assert!(cols.start <= start && start - cols.start < shape.out_block);
            assert!(end <= cols.end && cols.end - end < shape.out_block);
        }
    });
}

#[test]
fn qkv_shares_of_a_group_are_its_slice_end_to_end() {
    for_every_layout(|shape, layout| {
        for first in first_of_groups(layout) {
            let (q, kv) = (layout.q_heads(first), layout.kv_heads(first));
            let slice = [(&q, shape.head_dim), (&kv, shape.head_dim), (&kv, shape.value_dim)]
                .map(|(heads, width)| heads.start * width..heads.end * width);
            assert_eq!(layout.q_share(first), q, "{layout}");
            let group = || layout.kvp_group(first).map(Rank);
            if layout.qkv() == QkvMode::Replicate {
                assert!(group().all(|rank| layout.qkv_share(rank) == slice), "{layout}");
                continue;
            }
            // Rows of [q; k; v], listed rank by rank, are all of them in their order.
            let list = |share: &[Range<usize>; 3]| {
                let rows = share.iter().cloned().enumerate();
                rows.flat_map(|(which, rows)| rows.map(move |row| (which, row))).collect::<Vec<_>>()
            };
            let mut listed = Vec::new();
            for rank in group() {
                assert!(
                    listed.len().is_multiple_of(ROW_GRANULE) || listed.len() == list(&slice).len()
                );
                listed.extend(list(&layout.qkv_share(rank)));
            }
            assert_eq!(listed, list(&slice), "{layout}");
            let rows = |rank| layout.qkv_share(rank).iter().map(|rows| rows.len()).sum();
            assert_even(group().map(rows), ROW_GRANULE, &layout.name());
        }
    });
}

#[test]
fn ffn_columns_and_vocabulary_rows_tile_in_whole_granules() {
    for_every_layout(|shape, layout| {
        let medha = layout.strategy() == Strategy::Medha;
        let in_ffn = |rank: &Rank| !medha || layout.attention(*rank).kvp == 0;
        for rank in layout.all_ranks() {
            assert_eq!(layout.ffn(rank).is_some(), in_ffn(&rank), "{layout}, rank {rank}");
        }
        let places: Vec<_> = layout.all_ranks().filter_map(|rank| layout.ffn(rank)).collect();
        let Degrees { tpf, .. } = layout.degrees();
        let expected: Vec<_> = (0..tpf).map(|tpf| FfnCoord { tpf, ep: 0 }).collect();
        assert_eq!(places, expected, "{layout}");

        type View = fn(&Layout, Rank) -> Range<usize>;
        let views: [(View, usize, usize); 2] = [
            (Layout::ffn_cols, shape.ffn, shape.ffn_block),
            (Layout::vocab_rows, shape.vocab, ROW_GRANULE),
        ];
        for (view, whole, granule) in views {
            let ranges: Vec<_> = layout.all_ranks().map(|rank| view(layout, rank)).collect();
            assert_tile(ranges.clone(), 0..whole, &layout.name());
            assert!(ranges.iter().all(|r| r.start.is_multiple_of(granule) || r.start == whole));
            let sizes = layout.all_ranks().filter(in_ffn).map(|rank| view(layout, rank).len());
            assert_even(sizes, granule, &layout.name());
            let idle = layout.all_ranks().filter(|rank| !in_ffn(rank));
            assert!(idle.into_iter().all(|rank| view(layout, rank).is_empty()), "{layout}");
        }
    });
}

#[test]
fn owners_partition_every_position_and_local_indices_are_their_inverse() {
    for kvp in 1..=16 {
        for kv_block in [1, 3, 16, 32] {
            let shape = shapes().next().unwrap();
            let spec = LayoutSpec { kv_block, ..LayoutSpec::new(Strategy::Helix, kvp, 1) };
            let layout = Layout::new(&shape, spec).unwrap();
            let mut stored = vec![Vec::new(); kvp];
            for position in 0..2 * kvp * kv_block + kv_block + 2 {
                for (index, own) in stored.iter().enumerate() {
                    assert_eq!(layout.owned_before(index, position), own.len(), "{layout}");
                }
                let owner = layout.owner(position);
                assert_eq!(layout.position(owner, stored[owner].len()), position, "{layout}");
                stored[owner].push(position);
            }
            let even = |count: usize| count.abs_diff(stored[0].len()) <= kv_block;
            assert!(stored.iter().all(|own| even(own.len())), "{layout}");
        }
    }
}

#[test]
fn candidates_are_every_legal_layout_of_that_many_ranks() {
    for shape in shapes() {
        for strategy in Strategy::ALL {
            for ranks in 0..=32 {
                let found = Layout::candidates(&shape, ranks, strategy, 16, QkvMode::Gather);
                let all = (1..=ranks).flat_map(|kvp| (1..=ranks).map(move |tpa| (kvp, tpa)));
                let one_group = all.map(|(kvp, tpa)| strategy.degrees(kvp, tpa));
                let groups =
                    (2..=ranks).map(|dp| Degrees { dp, tpf: dp, ..strategy.degrees(1, 1) });
                let legal: Vec<_> = one_group
                    .chain(groups)
                    .filter(|degrees| degrees.attention_ranks() == ranks)
                    .map(|degrees| LayoutSpec { degrees, ..LayoutSpec::new(strategy, 1, 1) })
                    .map(|spec| LayoutSpec { qkv: QkvMode::Gather, ..spec })
                    .filter_map(|spec| Layout::new(&shape, spec).ok())
                    .collect();
                assert_eq!(found, legal, "{strategy}, {ranks} ranks");
                assert_eq!(found.is_empty(), ranks == 0, "{strategy}, {ranks} ranks");
            }
        }
    }
}

#[test]
fn what_nine_heads_over_four_ranks_hold() {
    let shape = ModelShape { value_dim: 64, ..shapes().next().unwrap() };
    let spec = LayoutSpec { qkv: QkvMode::Gather, ..LayoutSpec::new(Strategy::Helix, 2, 2) };
    let layout = Layout::new(&shape, spec).unwrap();
    assert_eq!(layout.name(), "helix kvp=2 tpa=2 tpf=4 ep=1 block=16 qkv=gather");
    let all = |view: fn(&Layout, Rank) -> Range<usize>| {
        layout.all_ranks().map(|rank| view(&layout, rank)).collect::<Vec<_>>()
    };
    assert_eq!(all(Layout::q_heads), [0..6, 0..6, 6..9, 6..9]);
    assert_eq!(all(Layout::kv_heads), [0..2, 0..2, 2..3, 2..3]);
    assert_eq!(all(Layout::kvp_group), [0..2, 0..2, 2..4, 2..4]);
    assert_eq!(all(Layout::out_heads), [0..3, 3..6, 6..8, 8..9]);
    assert_eq!(all(Layout::out_cols), [0..192, 192..384, 384..512, 512..576]);
    assert_eq!(all(Layout::ffn_cols), [0..384, 384..768, 768..1152, 1152..1536]);
    // 640 rows in the first group, 320 in the second.
    assert_eq!(layout.qkv_share(Rank(0)), [0..320, 0..0, 0..0]);
    assert_eq!(layout.qkv_share(Rank(1)), [320..384, 0..128, 0..128]);
    assert_eq!(layout.qkv_share(Rank(2)), [384..544, 128..128, 128..128]);
    assert_eq!(layout.qkv_share(Rank(3)), [544..576, 128..192, 128..192]);

    let tp = Layout::new(&shape, LayoutSpec::new(Strategy::Tp, 1, 4)).unwrap();
    let held: Vec<_> = tp.all_ranks().map(|r| (tp.q_heads(r), tp.kv_heads(r))).collect();
    assert_eq!(held, [(0..2, 0..1), (2..3, 0..1), (3..6, 1..2), (6..9, 2..3)]);
}

#[test]
fn refusals_name_the_numbers_and_the_nearest_legal_layouts() {
    let shape = ModelShape { value_dim: 64, ..shapes().next().unwrap() };
    let refusal = |spec| Layout::new(&shape, spec).unwrap_err().to_string();
    let degrees = |strategy, kvp, tpa, tpf, ep| LayoutSpec {
        degrees: Degrees { kvp, tpa, dp: 1, tpf, ep },
        ..LayoutSpec::new(strategy, 1, 1)
    };
    let cases = [
        (
            LayoutSpec::new(Strategy::Helix, 1, 4),
            "tpa=4 is more than the model's 3 KV heads, and helix duplicates none: nearest legal \
             layouts of 4 ranks: kvp=2 tpa=2 tpf=4 ep=1, kvp=4 tpa=1 tpf=4 ep=1; or --strategy \
             tp, which duplicates KV heads",
        ),
        (
            degrees(Strategy::Helix, 2, 2, 3, 1),
            "kvp=2 tpa=2 tpf=3 ep=1 is 4 ranks in attention and 3 in the FFN; helix needs the \
             same ranks in both: nearest legal: kvp=2 tpa=2 tpf=4 ep=1, kvp=1 tpa=3 tpf=3 ep=1, \
             kvp=3 tpa=1 tpf=3 ep=1",
        ),
        (
            degrees(Strategy::Tp, 2, 2, 4, 1),
            "kvp=2 tpa=2 tpf=4 ep=1 is 4 ranks in attention and 4 in the FFN; tp needs kvp=1 and \
             tpf=tpa: nearest legal: kvp=1 tpa=4 tpf=4 ep=1",
        ),
        (
            degrees(Strategy::Medha, 2, 2, 4, 1),
            "kvp=2 tpa=2 tpf=4 ep=1 is 4 ranks in attention and 4 in the FFN; medha needs \
             tpf=tpa: nearest legal: kvp=2 tpa=2 tpf=2 ep=1, kvp=4 tpa=1 tpf=1 ep=1",
        ),
        (
            degrees(Strategy::Helix, 4, 1, 2, 2),
            "ep=2 spreads experts, and this model is dense: use ep=1; nearest legal: \
             kvp=4 tpa=1 tpf=4 ep=1, kvp=2 tpa=2 tpf=4 ep=1",
        ),
        (
            degrees(Strategy::Helix, 0, 1, 1, 1),
            "kvp=0 tpa=1 tpf=1 ep=1: every degree is at least 1",
        ),
        (
            degrees(Strategy::Helix, 1, 1, 1, 0),
            "kvp=1 tpa=1 tpf=1 ep=0: every degree is at least 1",
        ),
        (
            LayoutSpec::new(Strategy::Helix, usize::MAX, 3),
            "kvp=18446744073709551615 tpa=3 tpf=18446744073709551615 ep=1 is more than a layout \
             may have: 1024 ranks",
        ),
        (
            LayoutSpec { kv_block: 0, ..LayoutSpec::new(Strategy::Helix, 2, 1) },
            "KV block of 0 positions: choose 1 to 65536; 16 is the default",
        ),
    ];
    for (spec, message) in cases {
        assert_eq!(refusal(spec), message);
    }

    let wrong = |shape: ModelShape| {
        Layout::new(&shape, LayoutSpec::new(Strategy::Helix, 1, 1)).unwrap_err().to_string()
    };
    assert_eq!(
        wrong(ModelShape { kv_heads: 4, ..shape }),
        "the model's 9 query heads do not divide among its 4 KV heads; is its head count right?"
    );
    assert_eq!(
        wrong(ModelShape { ffn: 0, ..shape }),
        "the model's FFN width is 0; a layout needs 1 to 16777216"
    );
    assert_eq!(
        wrong(ModelShape { q_heads: 1 << 20, kv_heads: 1, ..shape }),
        "the model's query width (heads x head size) is 67108864; a layout needs 1 to 16777216"
    );
}

/// Numbers as a hostile file or flag would have them.
fn any_size() -> impl Generator<Value = usize> {
    prop_oneof![
        4 => 1usize..=64,
        1 => Just(0),
        1 => Just(usize::MAX),
        1 => any::<usize>(),
        1 => (0u32..64).prop_map(|bit| 1 << bit),
    ]
}

/// Often a latent that fits its head, which chance would not find.
fn any_mla(head_dim: usize) -> impl Generator<Value = Option<MlaShape>> {
    let fitting = (prop::option::of(1usize..=64), 1usize..=64, 1..=head_dim.clamp(1, 64));
    let fitting = fitting.prop_map(move |(q_lora, nope, rope)| MlaShape {
        q_lora,
        kv_lora: head_dim.saturating_sub(rope),
        nope,
        rope,
    });
    let wild = (prop::option::of(any_size()), prop::array::uniform3(any_size()));
    let wild =
        wild.prop_map(|(q_lora, [kv_lora, nope, rope])| MlaShape { q_lora, kv_lora, nope, rope });
    prop_oneof![2 => Just(None), 3 => fitting.prop_map(Some), 1 => wild.prop_map(Some)]
}

fn any_moe() -> impl Generator<Value = Option<MoeShape>> {
    prop::option::of(prop::array::uniform7(any_size())).prop_map(|sizes| {
        let [layers, experts, top_k, ffn, block, shared_ffn, shared_block] = sizes?;
        Some(MoeShape { layers, experts, top_k, ffn, block, shared_ffn, shared_block })
    })
}

fn any_shape() -> impl Generator<Value = ModelShape> {
    let sizes = (prop::array::uniform9(any_size()), any_size());
    sizes.prop_flat_map(|(sizes, value_dim)| {
        let [layers, hidden, group, kv_heads, head_dim, ffn, vocab, out_block, ffn_block] = sizes;
        let shape = move |(mla, moe): (Option<MlaShape>, Option<MoeShape>)| {
            let kv_heads = if mla.is_some() { 1 } else { kv_heads };
            ModelShape {
                layers,
                hidden,
                q_heads: group.saturating_mul(kv_heads),
                kv_heads,
                head_dim,
                value_dim,
                ffn,
                vocab,
                out_block,
                ffn_block,
                mla,
                // Rarely more MoE layers than layers: nothing else would be looked at.
                moe: moe.map(|moe| MoeShape { layers: moe.layers.min(layers), ..moe }),
            }
        };
        (any_mla(head_dim), any_moe()).prop_map(shape)
    })
}

proptest! {
    #[test]
    fn no_number_panics_and_what_is_legal_can_be_asked_anything(
        shape in any_shape(),
        [kvp, tpa, kv_block] in prop::array::uniform3(any_size()),
        named in prop::array::uniform3(prop::option::weighted(0.3, any_size())),
        (strategy, qkv) in (0usize..4, 0usize..2),
        pick: usize,
    ) {
        let strategy = Strategy::ALL[strategy];
        let qkv = QkvMode::ALL[qkv];
        let [dp, tpf, ep] = named;
        let named = PartialDegrees { kvp: Some(kvp), tpa: Some(tpa), dp, tpf, ep };
        let named = match (strategy, pick % 4) {
            (Strategy::DpEp, 1..) => {
                PartialDegrees { kvp: None, tpa: None, dp: Some(kvp), ..named }
            }
            _ => named,
        };
        let degrees = strategy.complete(named, &shape);
        prop_assert!(named.allow(&degrees));
        let spec = LayoutSpec { degrees, strategy, kv_block, qkv };
        prop_assert!(LayoutSpec::read(&spec.to_string(), &shape) == Ok(spec));
        match Layout::new(&shape, spec) {
            Err(error) => prop_assert!(!error.to_string().is_empty()),
            Ok(layout) => assert_inside(&layout, Rank(pick % layout.ranks()), pick),
        }
        let found = Layout::candidates(&shape, kvp, strategy, kv_block, qkv);
        prop_assert!(found.iter().all(|layout| layout.ranks() == kvp));
    }
}

/// Asks `layout` everything about `rank`.
fn assert_inside(layout: &Layout, rank: Rank, pick: usize) {
    let (shape, at) = (layout.shape(), layout.attention(rank));
    assert!(layout.out_heads(rank).end <= shape.q_heads);
    assert!(layout.q_share(rank).end <= shape.q_heads);
    assert!(layout.out_cols(rank).end <= shape.q_heads * shape.value_dim);
    assert!(layout.qkv_share(rank)[0].end <= shape.q_heads * shape.q_dim());
    assert!(layout.ffn_cols(rank).end <= shape.ffn);
    assert!(layout.vocab_rows(rank).end <= shape.vocab);
    let moe = shape.moe;
    assert!(layout.experts(rank).end <= moe.map_or(0, |moe| moe.experts));
    assert!(layout.expert_cols(rank).end <= moe.map_or(0, |moe| moe.ffn));
    assert!(layout.shared_cols(rank).end <= moe.map_or(0, |moe| moe.shared_ffn));
    let in_ffn = layout.ffn(rank).is_some();
    assert_eq!(layout.expert_group(rank).any(|member| member == rank), in_ffn);
    assert_eq!(layout.ep_peers(rank).any(|peer| peer == rank), in_ffn);
    assert!(layout.owned_before(at.kvp, pick) <= pick);
    assert!(layout.owner(pick) < layout.degrees().kvp);
    assert!(layout.all_ranks().any(|rank| layout.attends(rank, pick)));
}
