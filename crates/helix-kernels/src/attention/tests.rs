use super::*;
use crate::kv::{KvType, PageShape, append};

/// A seeded generator (splitmix64).
struct Random(u64);

impl Random {
    fn bits(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    fn below(&mut self, n: usize) -> usize {
        (self.bits() % n as u64) as usize
    }

    /// Roughly normal.
    fn number(&mut self) -> f32 {
        (0..4).map(|_| (self.bits() >> 40) as f32 / (1 << 24) as f32 - 0.5).sum::<f32>() * 1.7
    }

    fn numbers(&mut self, n: usize) -> Vec<f32> {
        (0..n).map(|_| self.number()).collect()
    }
}

/// A sequence in scattered pages among pages of NaN, and the same as plain rows.
struct Sequence {
    shape: PageShape,
    pages: Vec<u8>,
    table: Vec<u32>,
    k: Vec<Vec<f32>>,
    v: Vec<Vec<f32>>,
}

impl Sequence {
    fn new(random: &mut Random, shape: PageShape, tokens: usize) -> Sequence {
        let count = tokens.div_ceil(PAGE_TOKENS);
        let mut ids: Vec<u32> = (0..2 * count as u32 + 1).collect();
        for i in (1..ids.len()).rev() {
            ids.swap(i, random.below(i + 1));
        }
        ids.truncate(count);
        let mut sequence = Sequence {
            shape,
            pages: vec![0xff; (2 * count + 1) * shape.bytes()],
            table: ids,
            k: Vec::new(),
            v: Vec::new(),
        };
        for _ in 0..tokens {
            let (k, v) = (random.numbers(shape.head_dim()), random.numbers(shape.head_dim()));
            sequence.push(&k, &v);
        }
        sequence
    }

    fn push(&mut self, k: &[f32], v: &[f32]) {
        let token = self.k.len();
        let bytes = self.shape.bytes();
        let start = self.table[token / PAGE_TOKENS] as usize * bytes;
        let page = &mut self.pages[start..start + bytes];
        append(page, self.shape, token % PAGE_TOKENS, k, v);
        self.k.push(stored(k, self.shape.kv_type()));
        self.v.push(stored(v, self.shape.kv_type()));
    }

    fn view(&self) -> KvView<'_> {
        KvView { pages: &self.pages, table: &self.table, shape: self.shape }
    }

    /// Dense attention in f64 of the tokens below `limit`, and its log-sum-exp.
    fn dense(&self, q: &[f32], tokens: Range<usize>) -> (Vec<f64>, f64) {
        let dot = |k: &[f32]| -> f64 {
            q.iter().zip(k).map(|(q, k)| f64::from(*q) * f64::from(*k)).sum()
        };
        let scores: Vec<f64> = tokens.clone().map(|t| dot(&self.k[t])).collect();
        let top = scores.iter().copied().fold(f64::NEG_INFINITY, f64::max);
        let sum: f64 = scores.iter().map(|s| (s - top).exp()).sum();
        let mut out = vec![0.0; self.shape.head_dim()];
        for (s, t) in scores.iter().zip(tokens) {
            for (out, v) in out.iter_mut().zip(&self.v[t]) {
                *out += (s - top).exp() / sum * f64::from(*v);
            }
        }
        (out, top + sum.ln())
    }

    /// Every chunk folded in order, for all rows at once, on one instruction set.
    fn attend(&self, isa: Isa, q: &[f32], limits: &[u32]) -> Vec<f32> {
        let len = state_len(self.shape.head_dim());
        let mut scratch = Scratch::new();
        let mut states = vec![f32::NAN; limits.len() * len];
        states.chunks_exact_mut(len).for_each(clear);
        let mut part = vec![f32::NAN; limits.len() * len];
        let tokens = self.k.len();
        for start in (0..tokens.max(1)).step_by(CHUNK_TOKENS) {
            let range = start..tokens.min(start + CHUNK_TOKENS);
            part.fill(f32::NAN);
            attend_on(isa, &mut part, q, limits, &self.view(), range, &mut scratch);
            for (state, part) in states.chunks_exact_mut(len).zip(part.chunks_exact(len)) {
                dispatch_on(isa, kernel::Fold { acc: state, part });
            }
        }
        states
    }
}

/// What a page keeps of a head's numbers.
fn stored(x: &[f32], kv_type: KvType) -> Vec<f32> {
    match kv_type {
        KvType::F32 => x.to_vec(),
        KvType::F16 => x.iter().map(|x| half::f16::from_f32(*x).to_f32()).collect(),
        KvType::BF16 => x.iter().map(|x| half::bf16::from_f32(*x).to_f32()).collect(),
        KvType::Q8_0 => x.chunks(32).flat_map(stored_q8_0).collect(),
    }
}

fn stored_q8_0(x: &[f32]) -> Vec<f32> {
    let largest = x.iter().map(|x| x.abs()).fold(0.0, f32::max);
    let scale = half::f16::from_f32(largest / 127.0).to_f32();
    x.iter().map(|x| (x / scale).round().clamp(-127.0, 127.0) * scale).collect()
}

fn bits(x: &[f32]) -> Vec<u32> {
    x.iter().map(|x| x.to_bits()).collect()
}

const TOKENS: [usize; 13] = [0, 1, 7, 8, 9, 15, 16, 17, 63, 255, 256, 257, 700];
const HEAD_DIMS: [usize; 10] = [1, 8, 16, 33, 40, 64, 80, 96, 128, 256];

/// Rows of one case: limits that fall before, inside and behind the tokens.
fn limits(random: &mut Random, rows: usize, tokens: usize) -> Vec<u32> {
    let mut limits: Vec<u32> = (0..rows).map(|_| random.below(tokens + 2) as u32).collect();
    limits[0] = tokens as u32;
    limits
}

#[test]
fn agrees_with_dense_attention_and_bit_for_bit_with_the_reference() {
    let mut random = Random(1);
    for kv_type in KvType::ALL {
        for head_dim in HEAD_DIMS {
            for tokens in TOKENS {
                let rows = 1 + random.below(9);
                let shape = PageShape::new(head_dim, kv_type);
                let sequence = Sequence::new(&mut random, shape, tokens);
                let mut q = random.numbers(rows * head_dim);
                q.iter_mut().for_each(|q| *q /= (head_dim as f32).sqrt());
                let limits = limits(&mut random, rows, tokens);
                check(&sequence, &q, &limits);
            }
        }
    }
}

fn check(sequence: &Sequence, q: &[f32], limits: &[u32]) {
    let head_dim = sequence.shape.head_dim();
    let tokens = sequence.k.len();
    let name = format!("{:?}, {tokens} tokens, limits {limits:?}", sequence.shape);
    let expected = sequence.attend(Isa::Scalar, q, limits);
    for isa in Isa::available() {
        let got = sequence.attend(isa, q, limits);
        assert!(bits(&got) == bits(&expected), "{isa} differs: {name}");
    }
    let states = expected.chunks_exact(state_len(head_dim));
    for ((state, q), limit) in states.zip(q.chunks_exact(head_dim)).zip(limits) {
        let mut out = vec![f32::NAN; head_dim];
        let lse = finish(&mut out, state);
        let (dense, dense_lse) = sequence.dense(q, 0..tokens.min(*limit as usize));
        if lse.is_empty() || *limit == 0 || tokens == 0 {
            assert!(lse.is_empty() && (*limit == 0 || tokens == 0), "{name}");
            assert!(out.iter().all(|x| *x == 0.0), "{name}: {out:?}");
            continue;
        }
        let error = (f64::from(lse.ln()) - dense_lse).abs();
        assert!(error < 2e-6 * (1.0 + dense_lse.abs()), "{name}: lse {lse:?}, not {dense_lse}");
        for (d, (x, y)) in out.iter().zip(&dense).enumerate() {
            let error = (f64::from(*x) - y).abs();
            assert!(error < 4e-6, "{name}: out[{d}] = {x}, not {y}");
        }
    }
}

#[test]
fn a_row_has_the_same_bits_in_any_company() {
    let mut random = Random(2);
    for kv_type in KvType::ALL {
        for (head_dim, tokens) in [(64, 300), (80, 41), (96, 256)] {
            let shape = PageShape::new(head_dim, kv_type);
            let sequence = Sequence::new(&mut random, shape, tokens);
            let q = random.numbers(17 * head_dim);
            let limits = limits(&mut random, 17, tokens);
            for isa in Isa::available() {
                let alone: Vec<u32> = q
                    .chunks_exact(head_dim)
                    .zip(&limits)
                    .flat_map(|(q, limit)| bits(&sequence.attend(isa, q, &[*limit])))
                    .collect();
                for rows in 1..=17 {
                    let got = sequence.attend(isa, &q[..rows * head_dim], &limits[..rows]);
                    assert!(bits(&got) == alone[..got.len()], "{isa} {shape:?}, {rows} rows");
                }
            }
        }
    }
}

/// A limit inside a chunk is as if the sequence ended there, whatever lies behind it.
#[test]
fn nothing_past_a_limit_leaks() {
    let mut random = Random(3);
    for kv_type in KvType::ALL {
        let shape = PageShape::new(64, kv_type);
        for seen in [1, 5, 16, 31, 200, 256, 290] {
            let short = Sequence::new(&mut random, shape, seen);
            let mut long = Sequence::new(&mut random, shape, 320);
            long.k.clear();
            long.v.clear();
            long.pages.fill(0xff);
            for (k, v) in short.k.iter().zip(&short.v) {
                long.push(k, v);
            }
            let q = random.numbers(5 * 64);
            let expected = long.attend(Isa::Scalar, &q, &[seen as u32; 5]);
            assert!(expected.iter().all(|x| x.is_finite()), "{shape:?}, {seen} tokens");
            for _ in seen..320 {
                let (k, v) = (random.numbers(64), random.numbers(64));
                long.push(&k, &v);
            }
            for isa in Isa::available() {
                // Row 2 sees all of it, and changes nothing for those beside it.
                let s = seen as u32;
                let got = long.attend(isa, &q, &[s, s, 320, s, s]);
                let rows = |x: &[f32]| [bits(&x[..2 * 66]), bits(&x[3 * 66..])].concat();
                assert!(rows(&got) == rows(&expected), "{isa} {shape:?}, {seen} tokens");
            }
        }
    }
}

/// Numbers that are not finite stay visible: a failure never turns to a plausible output.
#[test]
fn a_nan_that_is_seen_shows() {
    let mut random = Random(4);
    let shape = PageShape::new(64, KvType::F32);
    let mut sequence = Sequence::new(&mut random, shape, 40);
    let q = random.numbers(64);
    sequence.pages.fill(0xff);
    for isa in Isa::available() {
        let mut out = [0.0; 64];
        let lse = finish(&mut out, &sequence.attend(isa, &q, &[40]));
        assert!(lse.ln().is_nan() && out.iter().all(|x| x.is_nan()), "{isa}: {lse:?} {out:?}");
    }
}

#[test]
fn extreme_scores_stay_finite() {
    let shape = PageShape::new(16, KvType::F32);
    let mut random = Random(5);
    let mut sequence = Sequence::new(&mut random, shape, 20);
    sequence.k.clear();
    sequence.v.clear();
    for t in 0..20 {
        sequence.push(&[if t % 2 == 0 { 1e4 } else { -1e4 }; 16], &[t as f32; 16]);
    }
    let q = [1e3; 16];
    let mut out = [0.0; 16];
    let lse = finish(&mut out, &sequence.attend(Isa::Scalar, &q, &[20]));
    assert!((lse.ln() - 1.6e8).abs() < 100.0, "{lse:?}");
    assert!(out.iter().all(|x| (x - 9.0).abs() < 1e-5), "{out:?}");
}

#[test]
fn shards_merge_to_the_whole() {
    let mut random = Random(6);
    for (head_dim, shards) in [(1, 1), (8, 2), (64, 4), (40, 7)] {
        let shape = PageShape::new(head_dim, KvType::F32);
        let sequence = Sequence::new(&mut random, shape, 50);
        let q = random.numbers(head_dim);
        let cuts: Vec<usize> =
            (0..=shards).map(|s: usize| (s * 50 / shards).saturating_sub(s % 2)).collect();
        // An empty shard's output is never looked at.
        let mut o = vec![f32::NAN; (shards + 1) * head_dim];
        let mut lse = vec![Lse::EMPTY; shards + 1];
        for s in 0..shards {
            let (dense, ln) = sequence.dense(&q, cuts[s]..cuts[s + 1]);
            lse[s] = Lse::from_ln(ln as f32);
            for (o, x) in o[s * head_dim..].iter_mut().zip(dense) {
                *o = x as f32;
            }
        }
        let mut out = vec![f32::NAN; head_dim];
        let merged = merge(&mut out, &o, &lse);
        let (dense, ln) = sequence.dense(&q, cuts[0]..cuts[shards]);
        assert!(
            (f64::from(merged.ln()) - ln).abs() < 1e-6 * (1.0 + ln.abs()),
            "{merged:?}, not {ln}"
        );
        for (x, y) in out.iter().zip(dense) {
            assert!((f64::from(*x) - y).abs() < 1e-6, "{x}, not {y}");
        }
    }
}

#[test]
fn merging_nothing_gives_nothing() {
    let mut out = [f32::NAN; 3];
    assert_eq!(merge(&mut out, &[f32::NAN; 6], &[Lse::EMPTY; 2]), Lse::EMPTY);
    assert_eq!(out, [0.0; 3]);
    assert_eq!(merge(&mut out, &[], &[]), Lse::EMPTY);
    // One shard passes unchanged, out of rows that lie apart.
    let lse = [Lse::EMPTY, Lse::from_ln(2.5)];
    let merged = merge_strided(&mut out, &[9.0, 9.0, 9.0, 9.0, 1.0, -2.0, 3.0], 4, &lse);
    assert_eq!((merged, out), (lse[1], [1.0, -2.0, 3.0]));
    assert!(merge(&mut out, &[0.0; 3], &[Lse::from_ln(f32::NAN)]).ln().is_nan());
}
