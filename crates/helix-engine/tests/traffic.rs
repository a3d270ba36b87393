//! What ranks read, hold and send, counted, against formulas that are written out here: nothing
//! but the sizes of the model, the degrees and the step goes into them.

mod common;

use common::{dense_specs, engine, layouts, open, precise};
use helix_comm::{Collective, Traffic};
use helix_engine::{EngineOptions, HopB, RankCounters};
use helix_kernels::Format;
use helix_kernels::kv::KvType;
use helix_layout::{Layout, LayoutSpec, QkvMode, Strategy};
use helix_model::synthetic::Spec;
use helix_model::{Arch, Model};
use helix_scheduler::{Step, Wanted};
use std::sync::Arc;

/// Bytes of an f32.
const F32: usize = 4;

/// Where run `index` starts when `total` is cut into `parts`, as even as whole granules allow, the
/// longer ones first.
fn start(total: usize, parts: usize, granule: usize, index: usize) -> usize {
    let granules = total.div_ceil(granule);
    (index * (granules / parts) + index.min(granules % parts)) * granule
}

fn length(total: usize, parts: usize, granule: usize, index: usize) -> usize {
    start(total, parts, granule, index + 1).min(total)
        - start(total, parts, granule, index).min(total)
}

/// One rank's share of a layer.
#[derive(Debug)]
struct Share {
    kvp: usize,
    kvp_index: usize,
    ranks: usize,
    rank: usize,
    gathers: bool,
    kv_block: usize,
    /// Heads of the slice, and query heads that the rank keeps after the merge.
    q: usize,
    kv: usize,
    kept: usize,
    /// Where the kept heads start among all.
    kept_start: usize,
    /// Rows of W_q, W_k, W_v; columns of W_down; rows of the LM head.
    qkv_rows: [usize; 3],
    ffn: usize,
    vocab: usize,
}

fn share(spec: &Spec, layout: &Layout, rank: usize) -> Share {
    let LayoutSpec { degrees, strategy, kv_block, qkv } = layout.spec();
    let (kvp, tpa) = (degrees.kvp, degrees.tpa);
    let (kvp_index, tpa_index) = (rank % kvp, rank / kvp);
    let group = spec.q_heads / spec.kv_heads;
    let (q, kv, q_start) = if tpa <= spec.kv_heads {
        let kv = length(spec.kv_heads, tpa, 1, tpa_index);
        (kv * group, kv, start(spec.kv_heads, tpa, 1, tpa_index) * group)
    } else {
        // Several ranks have the same KV head and part its queries.
        let owner = |head: usize| start(tpa, spec.kv_heads, 1, head);
        let head = (0..spec.kv_heads).find(|&head| owner(head + 1) > tpa_index).unwrap();
        let (sharers, index) = (owner(head + 1) - owner(head), tpa_index - owner(head));
        let q = length(group, sharers, 1, index);
        (q, usize::from(q > 0), head * group + start(group, sharers, 1, index))
    };
    let medha = strategy == Strategy::Medha;
    let (kept, kept_start) = match (medha, kvp_index) {
        (true, 0) => (q, q_start),
        (true, _) => (0, q_start),
        (false, _) => (length(q, kvp, 1, kvp_index), q_start + start(q, kvp, 1, kvp_index)),
    };
    // Who has weights outside attention, and which part of them.
    let part = match (medha, kvp_index) {
        (true, 0) => Some((tpa, tpa_index)),
        (true, _) => None,
        (false, _) => Some((kvp * tpa, rank)),
    };
    let of = |total, granule| part.map_or(0, |(parts, index)| length(total, parts, granule, index));
    let gathers = qkv == QkvMode::Gather && kvp > 1;
    Share {
        kvp,
        kvp_index,
        ranks: kvp * tpa,
        rank,
        gathers,
        kv_block,
        q,
        kv,
        kept,
        kept_start,
        qkv_rows: qkv_rows(spec, q, kv, gathers.then_some((kvp, kvp_index))),
        ffn: of(spec.ffn, spec.down_format.block_len()),
        vocab: of(spec.vocab, 16),
    }
}

/// Rows of q, k and v: all of the slice's, or one of `parts` runs over `[q; k; v]` in 16 rows.
fn qkv_rows(spec: &Spec, q: usize, kv: usize, part: Option<(usize, usize)>) -> [usize; 3] {
    let sizes = [q, kv, kv].map(|heads| heads * spec.head_dim);
    let total = sizes.iter().sum();
    let (parts, index) = part.unwrap_or((1, 0));
    let (from, to) =
        (start(total, parts, 16, index), start(total, parts, 16, index + 1).min(total));
    let mut before = 0;
    sizes.map(|size| {
        let rows = to.clamp(before, before + size) - from.clamp(before, before + size);
        before += size;
        rows
    })
}

impl Share {
    /// Positions below `len` that the rank stores, counted one by one.
    fn local(&self, len: usize) -> usize {
        (0..len).filter(|position| position / self.kv_block % self.kvp == self.kvp_index).count()
    }

    /// Bytes of weights that a step passes over. Kernels read 16 rows at a time.
    fn weight_bytes(&self, spec: &Spec, head: bool) -> u64 {
        let bytes = |format: Format, rows: usize, cols: usize| {
            let blocks = cols / format.block_len();
            (rows.next_multiple_of(16) * blocks * format.block_bytes()) as u64
        };
        let qkv: u64 =
            self.qkv_rows.iter().map(|&rows| bytes(spec.format, rows, spec.hidden)).sum();
        // Columns of the kept heads, and what lies in the same blocks.
        let block = spec.format.block_len();
        let columns =
            self.kept_start * spec.head_dim..(self.kept_start + self.kept) * spec.head_dim;
        let columns = match self.kept {
            0 => 0,
            _ => columns.end.next_multiple_of(block) - columns.start / block * block,
        };
        let layer = qkv
            + bytes(spec.format, spec.hidden, columns)
            + 2 * bytes(spec.format, self.ffn, spec.hidden)
            + bytes(spec.down_format, spec.hidden, self.ffn);
        let head = if head { bytes(spec.embedding_format, self.vocab, spec.hidden) } else { 0 };
        spec.layers as u64 * layer + head
    }

    /// Collectives of a step over all ranks, and in the KVP group, of `tokens` tokens of which
    /// `wanted` rows of logits are wanted.
    fn traffic(&self, spec: &Spec, tokens: usize, wanted: usize) -> (Traffic, Traffic) {
        let mut world = Traffic::default();
        let mut group = Traffic::default();
        let set = |traffic: &mut Traffic, kind: Collective, calls: usize, values: usize| {
            traffic.calls[kind as usize] = calls as u64;
            traffic.bytes[kind as usize] = (calls * values * F32) as u64;
        };
        if self.ranks > 1 {
            let to_root = if self.rank == 0 { 0 } else { self.vocab };
            set(&mut world, Collective::AllReduce, 2 * spec.layers, tokens * spec.hidden);
            set(&mut world, Collective::Gather, wanted.min(1), wanted * to_root);
        }
        if self.kvp > 1 {
            // An output and its log-sum-exp of every head that another rank keeps.
            let values = tokens * (self.q - self.kept) * (spec.head_dim + 1);
            set(&mut group, Collective::AllToAll, spec.layers, values);
        }
        if self.gathers {
            let rows: usize = self.qkv_rows.iter().sum();
            set(&mut group, Collective::AllGather, spec.layers, tokens * rows);
        }
        (world, group)
    }
}

/// Bytes of a position's keys and values in one layer and head.
fn token_bytes(spec: &Spec, kv_type: KvType) -> usize {
    2 * match kv_type {
        KvType::F32 => 4 * spec.head_dim,
        KvType::F16 | KvType::BF16 => 2 * spec.head_dim,
        KvType::Q8_0 => spec.head_dim + 2 * spec.head_dim.div_ceil(32),
    }
}

/// Three runs, 14 tokens, 5 rows of logits; then a decode without logits.
fn steps() -> [Step; 2] {
    let mut first = Step::default();
    first.push(1, 0, &[1, 2, 3, 4], Wanted::All);
    first.push(0, 0, &[5, 6, 7, 8, 9, 10, 11, 12, 13], Wanted::Last);
    first.push(2, 0, &[14], Wanted::None);
    let mut second = Step::default();
    second.push(0, 9, &[15], Wanted::None);
    [first, second]
}

#[test]
fn bytes_and_calls_are_those_of_the_formulas() {
    for spec in dense_specs() {
        let model = open(&spec);
        let mut all = layouts(&model.shape(), 5, &[1, 16]);
        all.retain(|layout| layout.degrees().dp == 1); // `experts.rs` has those
        for (index, layout) in all.iter().enumerate() {
            let kv_type = KvType::ALL[index % 4];
            let options = EngineOptions { kv_type, max_sequences: 3, ..precise() };
            let mut engine = engine(&model, *layout, options);
            for step in steps() {
                engine.step(&step).unwrap();
            }
            for (rank, counted) in engine.counters().expect("counters").iter().enumerate() {
                check(
                    &spec,
                    &share(&spec, layout, rank),
                    kv_type,
                    counted,
                    &format!("{layout}, rank {rank}"),
                );
            }
            engine.reset_counters();
            for counted in engine.counters().expect("counters") {
                assert_eq!((counted.steps, counted.weight_bytes, counted.kv_bytes_read), (0, 0, 0));
                assert_eq!((counted.world, counted.kvp), Default::default());
            }
        }
        println!("{} layouts of {}/{} heads", all.len(), spec.q_heads, spec.kv_heads);
    }
}

fn check(spec: &Spec, share: &Share, kv_type: KvType, counted: &RankCounters, place: &str) {
    let (mut world, mut group) = share.traffic(spec, 14, 5);
    let (more_world, more_group) = share.traffic(spec, 1, 0);
    world += more_world;
    group += more_group;
    assert_eq!(counted.steps, 2);
    assert_eq!(counted.world, world, "{place}: over all ranks; {share:?}");
    assert_eq!(counted.kvp, group, "{place}: in the KVP group; {share:?}");
    let weights = share.weight_bytes(spec, true) + share.weight_bytes(spec, false);
    assert_eq!(counted.weight_bytes, weights, "{place}: weights; {share:?}");

    let position = (spec.layers * share.kv * token_bytes(spec, kv_type)) as u64;
    let held = share.local(10) + share.local(4) + share.local(1);
    assert_eq!(counted.kv_bytes_held, held as u64 * position, "{place}: KV held; {share:?}");
    let read = share.local(4) + share.local(9) + share.local(1) + share.local(10);
    assert_eq!(counted.kv_bytes_read, read as u64 * position, "{place}: KV read; {share:?}");
}

/// The numbers of a small case, by hand: 2 layers, hidden 48, 6 query heads over 2 KV heads of 8.
#[test]
fn a_case_by_hand() {
    let model = open(&Spec::tiny(Arch::Llama));
    let layout = Layout::new(&model.shape(), "helix kvp=2 tpa=2 qkv=gather".parse().unwrap());
    let mut engine = engine(&model, layout.unwrap(), precise());
    let mut step = Step::default();
    step.push(0, 0, &[1; 20], Wanted::Last);
    engine.step(&step).unwrap();
    let counters = engine.counters().expect("counters");
    let of = |rank: usize, kind| (counters[rank].kvp.of(kind), counters[rank].world.of(kind));
    // Two all-reduces per layer of 20 x 48 values.
    assert_eq!(of(3, Collective::AllReduce), ((0, 0), (4, 4 * 20 * 48 * 4)));
    // A slice has 3 query heads: the first of the group keeps 2 and sends 1, the other sends 2.
    assert_eq!(of(2, Collective::AllToAll), ((2, 2 * 20 * 9 * 4), (0, 0)));
    assert_eq!(of(3, Collective::AllToAll), ((2, 2 * 20 * 2 * 9 * 4), (0, 0)));
    // [q; k; v] has 24 + 8 + 8 rows, cut into 32 and 8.
    assert_eq!(of(0, Collective::AllGather), ((2, 2 * 20 * 32 * 4), (0, 0)));
    assert_eq!(of(1, Collective::AllGather), ((2, 2 * 20 * 8 * 4), (0, 0)));
    // 300 logits in 19 runs of 16: 80, 80, 80 and 60.
    assert_eq!(of(0, Collective::Gather), ((0, 0), (1, 0)));
    assert_eq!(of(3, Collective::Gather), ((0, 0), (1, 60 * 4)));
    // One KV head on each rank; 16 of the 20 positions on the first of each group.
    let held: Vec<u64> = counters.iter().map(|rank| rank.kv_bytes_held).collect();
    assert_eq!(held, [16, 4, 16, 4].map(|positions| positions * 2 * 2 * 8 * 4));
}

/// HOP-B sends the same bytes in as many all-to-alls as there are pieces, and reads no more.
#[test]
fn pieces_are_more_calls_and_no_more_bytes() {
    const SEQUENCES: usize = 4;
    let spec = Spec { q_heads: 12, kv_heads: 4, ..Spec::tiny(Arch::Llama) };
    let model = open(&spec);
    // A rank's KV heads, and for so many pieces at most: those of four equal runs, and of one.
    let cases = [
        ("helix kvp=3", 3, [1, 2, 3, 8, 16], [1, 2, 3, 4, 4]),
        ("helix kvp=2 tpa=2", 2, [1, 2, 3, 8, 8], [1, 2, 2, 2, 2]),
        ("helix kvp=2 tpa=4", 2, [1, 2, 3, 4, 4], [1, 1, 1, 1, 1]),
        ("tp tpa=4", 1, [0; 5], [0; 5]),
    ];
    for (name, members, of_four, of_one) in cases {
        let layout = Layout::new(&model.shape(), name.parse().unwrap()).expect(name);
        for (index, pieces) in [1, 2, 3, 8, 64].into_iter().enumerate() {
            let run = |hopb| {
                let options = EngineOptions { max_sequences: SEQUENCES, hopb, ..precise() };
                let mut engine = engine(&model, layout, options);
                let mut step = Step::default();
                (0..SEQUENCES).for_each(|slot| step.push(slot, 0, &[1, 2, 3], Wanted::Last));
                engine.step(&step).unwrap();
                step.clear();
                step.push(2, 3, &[4], Wanted::Last);
                engine.step(&step).unwrap();
                engine.counters().unwrap()
            };
            let calls = |pieces: [usize; 5]| (spec.layers * pieces[index]) as u64;
            for (off, on) in run(HopB::Off).iter().zip(run(HopB::Pieces(pieces))) {
                let (_, bytes) = off.kvp.of(Collective::AllToAll);
                let expected = (calls(of_four) + calls(of_one), bytes);
                assert_eq!(on.kvp.of(Collective::AllToAll), expected, "{name}, {pieces}");
                assert!((bytes > 0) == (members > 1), "{name}");
                assert_eq!(on.world, off.world);
                let read = |c: &RankCounters| (c.weight_bytes, c.kv_bytes_read);
                assert_eq!(read(&on), read(off), "{name}, {pieces}");
            }
        }
    }
}

/// Slices send the same bytes in as many all-reduces as there are, and read every weight once.
#[test]
fn slices_are_more_calls_and_no_more_bytes() {
    // Rows of 4 panels, the last of which is short.
    let spec = Spec { hidden: 56, q_heads: 12, kv_heads: 4, ..Spec::tiny(Arch::Llama) };
    let model = open(&spec);
    for name in ["helix", "helix kvp=3", "helix kvp=2 tpa=2", "tp tpa=4", "medha kvp=2 tpa=2"] {
        let layout = Layout::new(&model.shape(), name.parse().unwrap()).expect(name);
        let run = |reduce_slices| {
            let options = EngineOptions { max_sequences: 3, reduce_slices, ..precise() };
            let mut engine = engine(&model, layout, options);
            for step in steps() {
                engine.step(&step).unwrap();
            }
            engine.counters().unwrap()
        };
        let whole = run(1);
        for (asked, made) in [(2, 2), (3, 3), (4, 4), (16, 4)] {
            for (whole, cut) in whole.iter().zip(run(asked)) {
                let (calls, bytes) = whole.world.of(Collective::AllReduce);
                let expected = (made * calls, bytes);
                assert_eq!(cut.world.of(Collective::AllReduce), expected, "{name}, {asked}");
                assert_eq!(calls > 0, layout.ranks() > 1, "{name}");
                let rest = |c: &RankCounters| {
                    let gather = c.world.of(Collective::Gather);
                    (c.kvp, gather, c.weight_bytes, c.kv_bytes_read)
                };
                assert_eq!(rest(&cut), rest(whole), "{name}, {asked} slices");
            }
        }
    }
}

#[test]
fn one_rank_sends_nothing() {
    for name in ["helix", "tp", "medha", "helix qkv=gather"] {
        let model = open(&dense_specs()[0]);
        let layout = Layout::new(&model.shape(), name.parse().unwrap()).unwrap();
        let options = EngineOptions { max_sequences: 3, threads_per_rank: 2, ..precise() };
        let mut engine = engine(&model, layout, options);
        for step in steps() {
            engine.step(&step).unwrap();
        }
        let counters = &engine.counters().expect("counters")[0];
        assert_eq!((counters.world, counters.kvp), (Traffic::default(), Traffic::default()));
    }
}

/// Each rank's KV bytes with `len` positions of one sequence.
fn kv_bytes(model: &Arc<Model>, spec: &str, kv_type: KvType, len: usize) -> Vec<u64> {
    let layout = Layout::new(&model.shape(), spec.parse().unwrap()).expect(spec);
    let options = EngineOptions { kv_type, ..precise() };
    let mut engine = engine(model, layout, options);
    for start in (0..len).step_by(50) {
        let mut step = Step::default();
        step.push(0, start, &vec![1; 50.min(len - start)], Wanted::None);
        engine.step(&step).unwrap();
    }
    let held = engine.counters().expect("counters").iter().map(|rank| rank.kv_bytes_held).collect();
    engine.release(0);
    assert!(
        engine.counters().expect("counters").iter().all(|rank| rank.kv_bytes_held == 0),
        "{spec}: released"
    );
    held
}

#[test]
fn helix_divides_the_kv_cache_and_tp_past_k_duplicates_it() {
    // 8 query heads over 2 KV heads.
    let spec = Spec { q_heads: 8, ..Spec::tiny(Arch::Llama) };
    let model = open(&spec);
    for kv_type in KvType::ALL {
        for len in [1, 15, 77, 128, 203] {
            let head = (len * spec.layers * token_bytes(&spec, kv_type)) as u64;
            let whole = 2 * head;
            for (kvp, tpa) in [(1, 1), (1, 2), (2, 1), (2, 2), (3, 1), (4, 2), (8, 1)] {
                for block in [1, 16, 32] {
                    let name = format!("helix kvp={kvp} tpa={tpa} block={block}");
                    let held = kv_bytes(&model, &name, kv_type, len);
                    // Nothing twice, and everywhere 1/KVP of the slice's heads, but for a block.
                    assert_eq!(held.iter().sum::<u64>(), whole, "{name}, {kv_type}, {len}");
                    let slice = whole / tpa as u64;
                    let one_block = block as u64 * slice / len as u64;
                    for held in held {
                        let off = (held * kvp as u64).abs_diff(slice);
                        assert!(off <= kvp as u64 * one_block, "{name}, {kv_type}, {len}: {held}");
                    }
                }
            }
            // Up to K, tensor parallelism divides the heads; past it, every rank has a whole one.
            for (ranks, each) in [(1, whole), (2, head), (4, head), (8, head)] {
                let held = kv_bytes(&model, &format!("tp tpa={ranks}"), kv_type, len);
                assert_eq!(held, vec![each; ranks], "tp of {ranks}, {kv_type}, {len}");
            }
        }
    }
}
