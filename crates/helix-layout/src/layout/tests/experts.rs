//! Experts over every `tpf x ep` grid of up to 16 ranks, and attention groups under `dp-ep`.

use super::*;

const MAX: usize = 16;

/// (experts, expert width, its block, shared width, its block, MoE layers of 3)
const EXPERTS: [(usize, usize, usize, usize, usize, usize); 6] = [
    (8, 96, 1, 0, 1, 3),
    (5, 70, 32, 70, 32, 2),
    (1, 32, 32, 7, 1, 1),
    (64, 1408, 256, 2816, 256, 2),
    (13, 9, 1, 300, 32, 3),
    (128, 768, 32, 0, 32, 3),
];

fn moe_shapes() -> impl Iterator<Item = ModelShape> {
    let heads = [(9, 3), (4, 4), (16, 1), (12, 2), (5, 5), (32, 8)];
    EXPERTS.into_iter().zip(heads).map(|(sizes, (q_heads, kv_heads))| {
        let (experts, ffn, block, shared_ffn, shared_block, layers) = sizes;
        let top_k = experts.min(4);
        ModelShape {
            layers: 3,
            hidden: 64,
            q_heads,
            kv_heads,
            head_dim: 16,
            value_dim: 16,
            // All layers are MoE in half of the shapes, and nothing is dense.
            ffn: if layers == 3 { 0 } else { 200 },
            vocab: 300,
            out_block: 1,
            ffn_block: 32,
            mla: None,
            moe: Some(MoeShape { layers, experts, top_k, ffn, block, shared_ffn, shared_block }),
        }
    })
}

/// All degrees whose ranks are at most `MAX` in both phases, legal or not.
fn all_degrees() -> Vec<Degrees> {
    let up_to = |rest: usize| 1..=MAX / rest;
    let attention = up_to(1).flat_map(move |kvp| {
        up_to(kvp).flat_map(move |tpa| up_to(kvp * tpa).map(move |dp| (kvp, tpa, dp)))
    });
    let grids = || up_to(1).flat_map(move |tpf| up_to(tpf).map(move |ep| (tpf, ep)));
    let degrees = attention
        .flat_map(|(kvp, tpa, dp)| grids().map(move |(tpf, ep)| Degrees { kvp, tpa, dp, tpf, ep }));
    degrees.collect()
}

fn spec(strategy: Strategy, degrees: Degrees) -> LayoutSpec {
    LayoutSpec { degrees, ..LayoutSpec::new(strategy, 1, 1) }
}

fn for_every_grid(check: impl Fn(&ModelShape, &Layout)) {
    let all = all_degrees();
    let mut checked = [0; 4];
    for shape in moe_shapes() {
        for (strategy, checked) in Strategy::ALL.into_iter().zip(&mut checked) {
            for &degrees in &all {
                if let Ok(layout) = Layout::new(&shape, spec(strategy, degrees)) {
                    check(&shape, &layout);
                    *checked += 1;
                }
            }
        }
    }
    // Grids of n ranks are the divisors of n: 50 up to 16.
    assert_eq!((checked[1], checked[3]), (6 * 16, 6 * 50));
    assert!(checked[0] > 6 * 50 && checked[2] > 6 * 16, "{checked:?}");
}

#[test]
fn legal_grids_are_what_the_strategies_say_and_nothing_else() {
    for shape in moe_shapes() {
        for degrees in all_degrees() {
            let Degrees { kvp, tpa, dp, tpf, ep } = degrees;
            let legal = |strategy| Layout::new(&shape, spec(strategy, degrees)).is_ok();
            let fits = dp == 1 && tpa <= shape.kv_heads;
            assert_eq!(legal(Strategy::Helix), fits && tpf * ep == kvp * tpa, "{degrees}");
            let tensor = dp == 1 && kvp == 1 && tpf == tpa && ep == 1;
            assert_eq!(legal(Strategy::Tp), tensor, "{degrees}");
            assert_eq!(legal(Strategy::Medha), fits && tpf * ep == tpa, "{degrees}");
            let data = kvp == 1 && tpa == 1 && tpf * ep == dp;
            assert_eq!(legal(Strategy::DpEp), data, "{degrees}");
        }
    }
}

#[test]
fn each_column_of_each_expert_is_held_once() {
    for_every_grid(|shape, layout| {
        let moe = shape.moe.unwrap();
        let mut held = vec![0; moe.experts * moe.ffn];
        for rank in layout.all_ranks() {
            for expert in layout.experts(rank) {
                let cols = layout.expert_cols(rank);
                held[expert * moe.ffn..][cols].iter_mut().for_each(|times| *times += 1);
            }
        }
        assert!(held.iter().all(|&times| times == 1), "{layout}");
    });
}

#[test]
fn experts_and_their_columns_are_as_even_as_they_go() {
    for_every_grid(|shape, layout| {
        let moe = shape.moe.unwrap();
        let Degrees { tpf, ep, .. } = layout.degrees();
        let ranks: Vec<_> = layout.all_ranks().filter(|r| layout.ffn(*r).is_some()).collect();
        let groups = ranks.iter().step_by(tpf).map(|rank| layout.experts(*rank));
        assert_eq!(groups.len(), ep, "{layout}");
        assert_tile(groups.clone(), 0..moe.experts, &layout.name());
        assert_even(groups.clone().map(|group| group.len()), 1, &layout.name());
        let empty = groups.filter(|group| group.is_empty()).count();
        assert_eq!(empty, ep.saturating_sub(moe.experts), "{layout}");
        for group in ranks.chunks(tpf) {
            let cols = group.iter().map(|rank| layout.expert_cols(*rank));
            assert_tile(cols.clone(), 0..moe.ffn, &layout.name());
            assert_even(cols.map(|cols| cols.len()), moe.block, &layout.name());
            for rank in group {
                assert_eq!(layout.experts(*rank), layout.experts(group[0]), "{layout}");
                let start = layout.expert_cols(*rank).start;
                assert!(start.is_multiple_of(moe.block) || start == moe.ffn, "{layout}");
            }
        }
    });
}

#[test]
fn dense_layers_and_shared_experts_are_cut_over_all_ranks_whatever_the_grid() {
    for_every_grid(|shape, layout| {
        let moe = shape.moe.unwrap();
        let medha = layout.strategy() == Strategy::Medha;
        let in_ffn = |rank: &Rank| !medha || layout.attention(*rank).kvp == 0;
        type View = fn(&Layout, Rank) -> Range<usize>;
        let views: [(View, usize, usize); 3] = [
            (Layout::ffn_cols, shape.ffn, shape.ffn_block),
            (Layout::shared_cols, moe.shared_ffn, moe.shared_block),
            (Layout::vocab_rows, shape.vocab, ROW_GRANULE),
        ];
        for (view, whole, granule) in views {
            let ranges: Vec<_> = layout.all_ranks().map(|rank| view(layout, rank)).collect();
            assert_tile(ranges.clone(), 0..whole, &layout.name());
            for range in ranges {
                assert!(range.start.is_multiple_of(granule) || range.start == whole);
            }
            let sizes = layout.all_ranks().filter(in_ffn).map(|rank| view(layout, rank).len());
            assert_even(sizes, granule, &layout.name());
        }
        // A grid of columns alone cuts nothing else differently.
        let Degrees { tpf, ep, .. } = layout.degrees();
        let plain = Degrees { tpf: tpf * ep, ep: 1, ..layout.degrees() };
        let plain = Layout::new(shape, spec(layout.strategy(), plain)).unwrap();
        for rank in layout.all_ranks() {
            let all = |layout: &Layout| {
                let [q, k, v] = layout.qkv_share(rank);
                let [ffn, vocab] = [layout.ffn_cols(rank), layout.vocab_rows(rank)];
                [q, k, v, layout.out_heads(rank), layout.out_cols(rank), ffn, vocab]
            };
            assert_eq!(all(layout), all(&plain), "{layout}");
        }
    });
}

#[test]
fn groups_part_columns_and_peers_part_experts() {
    for_every_grid(|shape, layout| {
        let Degrees { tpf, ep, .. } = layout.degrees();
        let members: Vec<_> = layout.all_ranks().filter(|r| layout.ffn(*r).is_some()).collect();
        assert_eq!(members.len(), tpf * ep, "{layout}");
        for rank in layout.all_ranks() {
            let group: Vec<_> = layout.expert_group(rank).collect();
            let peers: Vec<_> = layout.ep_peers(rank).collect();
            let Some(at) = layout.ffn(rank) else {
                assert!(group.is_empty() && peers.is_empty(), "{layout}, rank {rank}");
                assert_eq!((layout.experts(rank), layout.expert_cols(rank)), (0..0, 0..0));
                continue;
            };
            assert_eq!((group.len(), peers.len()), (tpf, ep), "{layout}");
            assert_eq!((group[at.tpf], peers[at.ep]), (rank, rank), "{layout}");
            for (index, &member) in group.iter().enumerate() {
                assert_eq!(layout.ffn(member), Some(FfnCoord { tpf: index, ..at }), "{layout}");
            }
            for (index, &peer) in peers.iter().enumerate() {
                assert_eq!(layout.ffn(peer), Some(FfnCoord { ep: index, ..at }), "{layout}");
            }
            assert!(group.is_sorted() && peers.is_sorted(), "{layout}");
            // Through groups of experts first, then columns.
            assert_eq!(members[at.ep * tpf + at.tpf], rank, "{layout}");
            if layout.strategy() != Strategy::Medha {
                assert_eq!(group[tpf - 1].0 - group[0].0, tpf - 1, "{layout}: neighbours");
            }
            let experts = peers.iter().map(|peer| layout.experts(*peer));
            assert_tile(experts, 0..shape.moe.unwrap().experts, &layout.name());
        }
    });
}

#[test]
fn a_dense_model_has_no_experts() {
    for_every_layout(|_, layout| {
        for rank in layout.all_ranks() {
            let none = [layout.experts(rank), layout.expert_cols(rank), layout.shared_cols(rank)];
            assert_eq!(none, [0..0, 0..0, 0..0], "{layout}");
        }
    });
}

#[test]
fn a_slot_is_attended_by_one_rank_of_dp_ep_and_by_all_of_the_others() {
    for_every_grid(|shape, layout| {
        let dp = layout.degrees().dp;
        let mut slots = vec![0; layout.ranks()];
        for slot in (0..3 * MAX).chain([usize::MAX]) {
            let attending = layout.all_ranks().filter(|rank| layout.attends(*rank, slot));
            let attending: Vec<_> = attending.collect();
            match layout.strategy() {
                Strategy::DpEp => assert_eq!(attending, [Rank(slot % dp)], "{layout}"),
                _ => assert_eq!(attending.len(), layout.ranks(), "{layout}"),
            }
            attending.iter().for_each(|rank| slots[rank.0] += 1);
        }
        let (least, most) = (slots.iter().min().unwrap(), slots.iter().max().unwrap());
        assert!(most - least <= 2, "slots are dealt evenly: {slots:?}");
        if layout.strategy() != Strategy::DpEp {
            return;
        }
        for rank in layout.all_ranks() {
            let at = AttentionCoord { kvp: 0, tpa: 0, dp: rank.0 };
            assert_eq!((layout.attention(rank), layout.rank(at)), (at, rank));
            assert_eq!(layout.kvp_group(rank), rank.0..rank.0 + 1);
            assert_eq!(layout.q_heads(rank), 0..shape.q_heads);
            assert_eq!(layout.q_share(rank), 0..shape.q_heads);
            assert_eq!(layout.kv_heads(rank), 0..shape.kv_heads);
            assert_eq!(layout.out_heads(rank), 0..shape.q_heads);
            assert_eq!(layout.out_cols(rank), 0..shape.q_heads * shape.value_dim);
            let [q, kv] = [shape.q_heads, shape.kv_heads].map(|heads| 0..heads * shape.head_dim);
            assert_eq!(layout.qkv_share(rank), [q, kv.clone(), kv]);
            assert_eq!((layout.owner(rank.0), layout.owned_before(0, 1000)), (0, 1000));
        }
    });
}

#[test]
fn candidates_are_every_legal_grid_of_that_many_ranks() {
    let all = all_degrees();
    for shape in moe_shapes() {
        for strategy in Strategy::ALL {
            for ranks in 1..=MAX {
                let found = Layout::candidates(&shape, ranks, strategy, 16, QkvMode::Replicate);
                let of_ranks = all.iter().filter(|degrees| degrees.attention_ranks() == ranks);
                let legal = of_ranks.map(|degrees| Layout::new(&shape, spec(strategy, *degrees)));
                let mut legal: Vec<_> = legal.filter_map(Result::ok).collect();
                legal.sort_by_key(|layout| (layout.degrees().kvp, layout.degrees().ep));
                assert_eq!(found, legal, "{strategy}, {ranks} ranks");
                assert!(!found.is_empty());
            }
        }
    }
}

#[test]
fn what_five_experts_over_a_grid_of_six_hold() {
    let moe = MoeShape {
        layers: 2,
        experts: 5,
        top_k: 2,
        ffn: 96,
        block: 32,
        shared_ffn: 192,
        shared_block: 32,
    };
    let shape = ModelShape { kv_heads: 2, moe: Some(moe), ..moe_shapes().next().unwrap() };
    let shape = ModelShape { q_heads: 8, ffn: 256, ..shape };
    let layout =
        |name: &str| Layout::new(&shape, LayoutSpec::read(name, &shape).unwrap()).expect(name);
    let all = |layout: &Layout, view: fn(&Layout, Rank) -> Range<usize>| {
        layout.all_ranks().map(|rank| view(layout, rank)).collect::<Vec<_>>()
    };
    let grid = layout("helix kvp=6 tpf=2");
    assert_eq!(grid.name(), "helix kvp=6 tpa=1 tpf=2 ep=3 block=16 qkv=replicate");
    assert_eq!(all(&grid, Layout::experts), [0..2, 0..2, 2..4, 2..4, 4..5, 4..5]);
    assert_eq!(all(&grid, Layout::expert_cols), [0..64, 64..96, 0..64, 64..96, 0..64, 64..96]);
    let sixths = [0..32, 32..64, 64..96, 96..128, 128..160, 160..192];
    assert_eq!(all(&grid, Layout::shared_cols), sixths);
    assert_eq!(all(&grid, Layout::ffn_cols)[..3], [0..64, 64..128, 128..160]);
    assert!(grid.expert_group(Rank(3)).eq([2, 3].map(Rank)));
    assert!(grid.ep_peers(Rank(3)).eq([1, 3, 5].map(Rank)));

    let groups = layout("helix kvp=6 ep=6");
    assert_eq!(all(&groups, Layout::experts), [0..1, 1..2, 2..3, 3..4, 4..5, 5..5]);

    // The FFN is on the first rank of each KVP group: 0 and 3.
    let medha = layout("medha kvp=3 tpa=2 ep=2");
    assert_eq!(medha.name(), "medha kvp=3 tpa=2 tpf=1 ep=2 block=16 qkv=replicate");
    assert_eq!(all(&medha, Layout::experts), [0..3, 0..0, 0..0, 3..5, 0..0, 0..0]);
    assert!(medha.expert_group(Rank(3)).eq([Rank(3)]));
    assert!(medha.ep_peers(Rank(3)).eq([0, 3].map(Rank)));
    assert_eq!(medha.ep_peers(Rank(4)).len(), 0);

    let data = layout("dp-ep dp=4");
    assert_eq!(data.name(), "dp-ep kvp=1 tpa=1 dp=4 tpf=1 ep=4 block=16 qkv=replicate");
    assert_eq!(all(&data, Layout::experts), [0..2, 2..3, 3..4, 4..5]);
    assert_eq!(all(&data, Layout::ffn_cols), [0..64, 64..128, 128..192, 192..256]);
}

#[test]
fn refusals_name_the_numbers_and_the_nearest_legal_grids() {
    let shape = ModelShape { q_heads: 9, kv_heads: 3, ..moe_shapes().next().unwrap() };
    let refusal = |name: &str| {
        let spec = LayoutSpec::read(name, &shape).unwrap();
        Layout::new(&shape, spec).unwrap_err().to_string()
    };
    let cases = [
        (
            "helix kvp=4 tpf=3 ep=2",
            "kvp=4 tpa=1 tpf=3 ep=2 is 4 ranks in attention and 6 in the FFN; helix needs the \
             same ranks in both: nearest legal: kvp=4 tpa=1 tpf=2 ep=2, kvp=4 tpa=1 tpf=4 ep=1, \
             kvp=6 tpa=1 tpf=3 ep=2",
        ),
        (
            "helix kvp=4 ep=3",
            "kvp=4 tpa=1 tpf=1 ep=3 is 4 ranks in attention and 3 in the FFN; helix needs the \
             same ranks in both: nearest legal: kvp=4 tpa=1 tpf=1 ep=4, kvp=3 tpa=1 tpf=1 ep=3, \
             kvp=4 tpa=1 tpf=2 ep=2",
        ),
        (
            "helix kvp=1 tpa=4 tpf=2 ep=2",
            "tpa=4 is more than the model's 3 KV heads, and helix duplicates none: nearest legal \
             layouts of 4 ranks: kvp=2 tpa=2 tpf=2 ep=2, kvp=2 tpa=2 tpf=4 ep=1, \
             kvp=2 tpa=2 tpf=1 ep=4; or --strategy tp, which duplicates KV heads",
        ),
        (
            "helix kvp=2 dp=2",
            "dp=2 gives each of 2 groups of ranks sequences of its own, and under helix every \
             rank serves every sequence: use dp=1; nearest legal: kvp=2 tpa=2 tpf=4 ep=1, \
             kvp=4 tpa=1 tpf=4 ep=1, kvp=2 tpa=2 tpf=2 ep=2; or --strategy dp-ep",
        ),
        (
            "tp tpa=4 tpf=2 ep=2",
            "kvp=1 tpa=4 tpf=2 ep=2 is 4 ranks in attention and 4 in the FFN; tp needs kvp=1, \
             tpf=tpa and ep=1: nearest legal: kvp=1 tpa=4 tpf=4 ep=1",
        ),
        (
            "medha kvp=2 tpa=2 tpf=2 ep=2",
            "kvp=2 tpa=2 tpf=2 ep=2 is 4 ranks in attention and 4 in the FFN; medha needs \
             tpf·ep=tpa: nearest legal: kvp=2 tpa=2 tpf=2 ep=1, kvp=2 tpa=2 tpf=1 ep=2, \
             kvp=4 tpa=1 tpf=1 ep=1",
        ),
        (
            "dp-ep kvp=4 tpf=2 ep=2",
            "kvp=4 tpa=1 tpf=2 ep=2 is 4 ranks in attention and 4 in the FFN; dp-ep needs kvp=1 \
             and tpa=1, and the same ranks in both: nearest legal: \
             kvp=1 tpa=1 dp=4 tpf=2 ep=2, kvp=1 tpa=1 dp=4 tpf=4 ep=1, \
             kvp=1 tpa=1 dp=4 tpf=1 ep=4",
        ),
        ("dp-ep dp=0", "kvp=1 tpa=1 dp=0 tpf=1 ep=0: every degree is at least 1"),
        (
            "dp-ep dp=2000",
            "kvp=1 tpa=1 dp=2000 tpf=1 ep=2000 is more than a layout may have: 1024 ranks",
        ),
    ];
    for (name, message) in cases {
        assert_eq!(refusal(name), message);
    }
    let dense = ModelShape { moe: None, ffn: 64, ..shape };
    let spec = LayoutSpec::read("dp-ep dp=2 ep=2", &dense).unwrap();
    assert_eq!(
        Layout::new(&dense, spec).unwrap_err().to_string(),
        "ep=2 spreads experts, and this model is dense: use ep=1; nearest legal: \
         kvp=1 tpa=1 dp=2 tpf=2 ep=1"
    );
}

#[test]
fn sizes_of_experts_that_cannot_be_are_refused_by_name() {
    let shape = moe_shapes().nth(1).unwrap();
    let moe = shape.moe.unwrap();
    let refusal = |shape: ModelShape| {
        Layout::new(&shape, LayoutSpec::new(Strategy::Helix, 1, 1)).unwrap_err().to_string()
    };
    let with = |moe: MoeShape| refusal(ModelShape { moe: Some(moe), ..shape });
    let cases = [
        (MoeShape { layers: 0, ..moe }, "count of MoE layers is 0; a layout needs 1 to 3"),
        (MoeShape { layers: 4, ..moe }, "count of MoE layers is 4; a layout needs 1 to 3"),
        (MoeShape { experts: 0, ..moe }, "expert count is 0; a layout needs 1 to 16777216"),
        (MoeShape { top_k: 0, ..moe }, "count of experts per token is 0; a layout needs 1 to 5"),
        (MoeShape { top_k: 6, ..moe }, "count of experts per token is 6; a layout needs 1 to 5"),
        (MoeShape { ffn: 0, ..moe }, "expert width is 0; a layout needs 1 to 16777216"),
        (MoeShape { block: 0, ..moe }, "experts' weight block is 0; a layout needs 1 to 16777216"),
        (
            MoeShape { shared_ffn: 1 << 25, ..moe },
            "shared experts' width is 33554432; a layout needs 1 to 16777216",
        ),
        (
            MoeShape { shared_block: 0, ..moe },
            "shared experts' weight block is 0; a layout needs 1 to 16777216",
        ),
    ];
    for (moe, message) in cases {
        assert_eq!(with(moe), format!("the model's {message}"));
    }
    let dense_layers_without_width = ModelShape { ffn: 0, ..shape };
    let message = "the model's FFN width is 0; a layout needs 1 to 16777216";
    assert_eq!(refusal(dense_layers_without_width), message);
}
