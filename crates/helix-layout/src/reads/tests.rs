use super::*;
use crate::preference::tests::{DEEPSEEK_V3, QWEN3_MOE, SMOLLM2};
use crate::{LayoutSpec, ModelShape, QkvMode, Strategy};

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

/// Every `helix` layout of up to 16 ranks whose ranks share QKV out.
fn gathering(shape: &ModelShape) -> impl Iterator<Item = Layout> {
    (1..=16).flat_map(|n| Layout::candidates(shape, n, Strategy::Helix, 16, QkvMode::Gather))
}

fn total(layout: &Layout, part: impl Fn(Rank) -> u64) -> u64 {
    layout.all_ranks().map(part).sum()
}

#[test]
fn ranks_hold_every_expert_once_and_read_a_tokens_share() {
    let expert = 3 * 2048 * 768;
    let (mut layouts, mut grids) = (0, 0);
    for layout in gathering(&QWEN3_MOE) {
        let held = total(&layout, |rank| Reads::held(&layout, rank, 0).experts);
        assert_eq!(held, 48 * 128 * expert, "{layout}");
        let read = total(&layout, |rank| Reads::of(&layout, rank, 0).experts);
        assert!(read.abs_diff(48 * 8 * expert) <= 16, "{layout}: {read}"); // each rank rounds
        for rank in layout.all_ranks() {
            let [of, held] = [Reads::of, Reads::held].map(|reads| reads(&layout, rank, 100));
            // No dense layers and no shared experts: the router alone.
            assert_eq!(of.ffn, 48 * 128 * 2048, "{layout}");
            assert_eq!(Reads { experts: of.experts, ..held }, of, "{layout}");
            assert_eq!(held.layer_weights(), held.qkv + held.out + held.ffn + held.experts);
        }
        layouts += 1;
        grids += usize::from(layout.degrees().ep > 1);
    }
    assert!(grids > layouts / 2, "{grids} of {layouts}");
}

#[test]
fn a_rank_without_experts_reads_none() {
    let moe = QWEN3_MOE.moe.map(|moe| MoeShape { experts: 3, top_k: 2, ..moe });
    let few = ModelShape { moe, ..QWEN3_MOE };
    let layout = Layout::new(&few, LayoutSpec::read("helix kvp=4 ep=4", &few).unwrap()).unwrap();
    let mean = 2 * 48 * 3 * 2048 * 768 / 3;
    let reads = layout.all_ranks().map(|rank| Reads::of(&layout, rank, 0).experts);
    assert_eq!(reads.collect::<Vec<_>>(), [mean, mean, mean, 0]);
}

#[test]
fn a_latent_is_read_once_and_whoever_has_heads_compresses_the_state_itself() {
    let (hidden, heads) = (7168, 128);
    let compress = hidden * (1536 + 512 + 64);
    let of_heads = heads * (1536 * (128 + 64) + 128 * 512);
    for layout in gathering(&DEEPSEEK_V3) {
        let sum =
            |part: fn(&Reads) -> u64| total(&layout, |rank| part(&Reads::of(&layout, rank, 1000)));
        let ranks = layout.ranks() as u64;
        assert_eq!(sum(|r| r.kv), 61 * 576 * 1000, "{layout}");
        assert_eq!(sum(|r| r.qkv), 61 * (ranks * compress + of_heads), "{layout}");
        assert_eq!(sum(|r| r.out), 61 * (heads * 128 * hidden + heads * 128 * 512), "{layout}");
        let (dense, shared) = (3 * 3 * hidden * 18432, 58 * 3 * hidden * 2048);
        let routers = ranks * 58 * 256 * hidden;
        assert_eq!(sum(|r| r.ffn), dense + shared + routers, "{layout}");
        assert_eq!(sum(|r| r.head), hidden * 129_280, "{layout}");
    }
    // The published 671 billion parameters, less embedding and norms.
    let whole = Layout::new(&DEEPSEEK_V3, LayoutSpec::new(Strategy::Helix, 1, 1)).unwrap();
    let held = Reads::held(&whole, Rank(0), 0);
    let embedding = hidden * 129_280;
    assert_eq!((held.layer_weights() + held.head + embedding) / 1_000_000_000, 671);
    let read = Reads::of(&whole, Rank(0), 0);
    assert_eq!((read.layer_weights() + read.head) / 1_000_000_000, 36);
}

#[test]
fn replicated_latents_and_duplicated_ones_count_on_every_rank() {
    let reads = |name: &str| {
        let spec = LayoutSpec::read(name, &DEEPSEEK_V3).unwrap();
        let layout = Layout::new(&DEEPSEEK_V3, spec).unwrap();
        layout.all_ranks().map(|rank| Reads::of(&layout, rank, 64)).collect::<Vec<_>>()
    };
    let of_heads = |heads: u64| 61 * heads * (1536 * 192 + 128 * 512);
    let compress = 61 * 7168 * (1536 + 576);
    for read in reads("helix kvp=4") {
        assert_eq!((read.qkv, read.kv), (compress + of_heads(128), 61 * 576 * 16));
    }
    for read in reads("tp tpa=4") {
        assert_eq!((read.qkv, read.kv), (compress + of_heads(32), 61 * 576 * 64));
    }
    for read in reads("dp-ep dp=4") {
        assert_eq!((read.qkv, read.kv), (compress + of_heads(128), 61 * 576 * 64));
    }
    // medha: nothing of the FFN past the first shard, not even a router.
    let medha = reads("medha kvp=4");
    assert_eq!(medha[1].layer_weights(), medha[1].qkv);
    assert!(medha[0].experts > 0);
}
