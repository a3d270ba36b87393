use super::*;

const SMOLLM2: ModelShape = ModelShape {
    layers: 30,
    hidden: 576,
    q_heads: 9,
    kv_heads: 3,
    head_dim: 64,
    ffn: 1536,
    vocab: 49152,
    out_block: 32,
    ffn_block: 32,
};

const LLAMA_405B: ModelShape = ModelShape {
    layers: 126,
    hidden: 16384,
    q_heads: 128,
    kv_heads: 8,
    head_dim: 128,
    ffn: 53248,
    vocab: 128_256,
    out_block: 1,
    ffn_block: 1,
};

const COST: ReadCost = ReadCost {
    weight_bits: 5.0,
    head_bits: 8.5,
    kv_bits: 16.0,
    context: 8192,
    collective_bytes: 0.0,
};

fn over(ranks: usize) -> Preference {
    Preference { ranks, strategy: Strategy::Helix, kv_block: 16, qkv: None }
}

fn chosen(shape: &ModelShape, preference: &Preference, cost: &ReadCost) -> String {
    choose(shape, preference, cost).unwrap().layout.name()
}

#[test]
fn ranks_that_gather_read_the_model_and_the_kv_once() {
    for ranks in 1..=16 {
        for layout in Layout::candidates(&SMOLLM2, ranks, Strategy::Helix, 16, QkvMode::Gather) {
            let all: Vec<_> = layout.all_ranks().map(|r| Reads::of(&layout, r, 1000)).collect();
            let sum = |part: fn(&Reads) -> u64| all.iter().map(part).sum::<u64>();
            assert_eq!(sum(|r| r.qkv), 30 * 576 * (9 + 3 + 3) * 64, "{layout}");
            assert_eq!(sum(|r| r.out), 30 * 576 * 576, "{layout}");
            assert_eq!(sum(|r| r.ffn), 30 * 3 * 576 * 1536, "{layout}");
            assert_eq!(sum(|r| r.head), 576 * 49152, "{layout}");
            assert_eq!(sum(|r| r.kv), 30 * 2 * 3 * 64 * 1000, "{layout}");
        }
    }
}

#[test]
fn replicated_qkv_counts_for_every_rank_that_reads_it_and_tp_duplicates_kv() {
    let replicate = LayoutSpec::new(Strategy::Helix, 4, 1);
    let layout = Layout::new(&SMOLLM2, replicate).unwrap();
    assert_eq!(Reads::of(&layout, Rank(3), 64).qkv, 30 * 576 * 15 * 64);
    assert_eq!(Reads::of(&layout, Rank(3), 64).kv, 30 * 2 * 3 * 64 * 16);

    let tp = Layout::new(&SMOLLM2, LayoutSpec::new(Strategy::Tp, 1, 9)).unwrap();
    for rank in tp.all_ranks() {
        assert_eq!(Reads::of(&tp, rank, 64).kv, 30 * 2 * 64 * 64);
    }
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
                let fixed = Preference { ranks, strategy, kv_block: 32, qkv: Some(qkv) };
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
