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
            let (k, v) = sequence.token(random);
            sequence.push(&k, &v);
        }
        sequence
    }

    /// A key, and the value that goes with it: none beside a latent.
    fn token(&self, random: &mut Random) -> (Vec<f32>, Vec<f32>) {
        let value = if self.shape.is_latent() { 0 } else { self.shape.value_dim() };
        (random.numbers(self.shape.head_dim()), random.numbers(value))
    }

    fn push(&mut self, k: &[f32], v: &[f32]) {
        let token = self.k.len();
        let bytes = self.shape.bytes();
        let start = self.table[token / PAGE_TOKENS] as usize * bytes;
        let page = &mut self.pages[start..start + bytes];
        append(page, self.shape, token % PAGE_TOKENS, k, v);
        let v = if self.shape.is_latent() { k } else { v };
        self.k.push(stored(k, self.shape.kv_type()));
        self.v.push(stored(v, self.shape.kv_type())[..self.shape.value_dim()].to_vec());
    }

    fn view(&self) -> KvView<'_> {
        KvView { pages: &self.pages, table: &self.table, shape: self.shape }
    }

    /// Dense attention in f64 of `tokens`, and its log-sum-exp.
    fn dense(&self, q: &[f32], tokens: Range<usize>) -> (Vec<f64>, f64) {
        let q = asked(q, self.shape.kv_type());
        let dot = |k: &[f32]| -> f64 { q.iter().zip(k).map(|(q, k)| q * f64::from(*k)).sum() };
        let scores: Vec<f64> = tokens.clone().map(|t| dot(&self.k[t])).collect();
        let top = scores.iter().copied().fold(f64::NEG_INFINITY, f64::max);
        let sum: f64 = scores.iter().map(|s| (s - top).exp()).sum();
        let mut out = vec![0.0; self.shape.value_dim()];
        for (s, t) in scores.iter().zip(tokens) {
            for (out, v) in out.iter_mut().zip(&self.v[t]) {
                *out += (s - top).exp() / sum * f64::from(*v);
            }
        }
        (out, top + sum.ln())
    }

    /// Every chunk folded in order, for all rows at once, on one instruction set.
    fn attend(&self, isa: Isa, q: &[f32], sees: &[Sees]) -> Vec<f32> {
        let len = state_len(self.shape.value_dim());
        let mut scratch = Scratch::new();
        let mut states = vec![f32::NAN; sees.len() * len];
        states.chunks_exact_mut(len).for_each(clear);
        let mut part = vec![f32::NAN; sees.len() * len];
        let tokens = self.k.len();
        for start in (0..tokens.max(1)).step_by(CHUNK_TOKENS) {
            let range = start..tokens.min(start + CHUNK_TOKENS);
            part.fill(f32::NAN);
            attend_on(isa, &mut part, q, sees, &self.view(), range, &mut scratch);
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
    let steps = |x: &f32| if scale == 0.0 { 0.0 } else { (x / scale).round() };
    x.iter().map(|x| steps(x).clamp(-127.0, 127.0) * scale).collect()
}

/// What a query is to a cache of some type: bytes, 32 dimensions to a scale, where keys are.
fn asked(q: &[f32], kv_type: KvType) -> Vec<f64> {
    if kv_type != KvType::Q8_0 {
        return q.iter().map(|q| f64::from(*q)).collect();
    }
    let group = |x: &[f32]| {
        let most = x.iter().fold(0.0, |most: f32, x| most.max(x.abs()));
        let inverse = if most == 0.0 { 0.0 } else { 127.0 / most };
        let code = |x: &f32| f64::from((x * inverse).round_ties_even());
        x.iter().map(|x| code(x) * f64::from(most / 127.0)).collect::<Vec<_>>()
    };
    q.chunks(32).flat_map(group).collect()
}

fn bits(x: &[f32]) -> Vec<u32> {
    x.iter().map(|x| x.to_bits()).collect()
}

const TOKENS: [usize; 13] = [0, 1, 7, 8, 9, 15, 16, 17, 63, 255, 256, 257, 700];
const HEAD_DIMS: [usize; 10] = [1, 8, 16, 33, 40, 64, 80, 96, 128, 256];

/// Key and value dimensions of latents: one line of a panel and parts of it, several, DeepSeek's.
const LATENTS: [(usize, usize); 7] =
    [(1, 1), (24, 16), (40, 33), (64, 64), (96, 64), (160, 128), (576, 512)];

/// What rows of one case see: from and to before, inside and behind the tokens, or nothing; a run
/// of rows that see the same, as the heads of one token do; and one row that sees everything.
fn sees(random: &mut Random, rows: usize, tokens: usize) -> Vec<Sees> {
    let (mut sees, mut same) = (vec![Sees::below(tokens as u32)], 0);
    while sees.len() < rows {
        if same == 0 {
            let to = random.below(tokens + 2) as u32;
            let from = if random.below(2) == 0 { 0 } else { random.below(tokens + 2) as u32 };
            (same, sees) = (1 + random.below(6), [sees, vec![Sees { from, to }]].concat());
        } else {
            sees.push(sees[sees.len() - 1]);
        }
        same -= 1;
    }
    sees
}

/// The tokens of a sequence that a row sees.
fn seen(sees: Sees, tokens: usize) -> Range<usize> {
    let range = sees.from as usize..tokens.min(sees.to as usize);
    if range.is_empty() { 0..0 } else { range }
}

/// Queries of rows, scaled.
fn queries(random: &mut Random, rows: usize, dim: usize) -> Vec<f32> {
    let scale = 1.0 / (dim as f32).sqrt();
    random.numbers(rows * dim).iter().map(|q| q * scale).collect()
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
                let q = queries(&mut random, rows, head_dim);
                check(&sequence, &q, &sees(&mut random, rows, tokens));
            }
        }
    }
}

/// More rows than a tile has: the first tile converts for the others.
#[test]
fn the_heads_of_a_token_agree_with_dense_attention_and_with_the_reference() {
    let mut random = Random(5);
    for kv_type in [KvType::F32, KvType::F16, KvType::BF16] {
        for head_dim in HEAD_DIMS {
            for tokens in [1, 70, 256, 300] {
                let rows = 4 + random.below(30);
                let shape = PageShape::new(head_dim, kv_type);
                let sequence = Sequence::new(&mut random, shape, tokens);
                let q = queries(&mut random, rows, head_dim);
                let from = random.below(2) * random.below(tokens);
                let to = tokens - random.below(2) * random.below(tokens - from);
                check(&sequence, &q, &vec![Sees { from: from as u32, to: to as u32 }; rows]);
            }
        }
    }
}

#[test]
fn latents_agree_with_dense_attention_and_bit_for_bit_with_the_reference() {
    let mut random = Random(11);
    for kv_type in KvType::ALL {
        for (key, value) in LATENTS {
            for tokens in if key < 576 { &TOKENS[..] } else { &[17, 300] } {
                let rows = 1 + random.below(20);
                let shape = PageShape::latent(key, value, kv_type);
                let sequence = Sequence::new(&mut random, shape, *tokens);
                let q = queries(&mut random, rows, key);
                check(&sequence, &q, &sees(&mut random, rows, *tokens));
            }
        }
    }
}

fn check(sequence: &Sequence, q: &[f32], sees: &[Sees]) {
    let shape = sequence.shape;
    let tokens = sequence.k.len();
    let name = format!("{shape:?}, {tokens} tokens, {sees:?}");
    let expected = sequence.attend(Isa::Scalar, q, sees);
    for isa in Isa::available() {
        let got = sequence.attend(isa, q, sees);
        assert!(bits(&got) == bits(&expected), "{isa} differs: {name}");
    }
    // Weights of codes are rounded to half of 1/32256, and values reach 3.4.
    let tolerance = if shape.kv_type() == KvType::Q8_0 { 2e-4 } else { 4e-6 };
    let states = expected.chunks_exact(state_len(shape.value_dim()));
    for ((state, q), sees) in states.zip(q.chunks_exact(shape.head_dim())).zip(sees) {
        let mut out = vec![f32::NAN; shape.value_dim()];
        let lse = finish(&mut out, state);
        let seen = seen(*sees, tokens);
        let (dense, dense_lse) = sequence.dense(q, seen.clone());
        if lse.is_empty() || seen.is_empty() {
            assert!(lse.is_empty() && seen.is_empty(), "{name}");
            assert!(out.iter().all(|x| *x == 0.0), "{name}: {out:?}");
            continue;
        }
        let error = (f64::from(lse.ln()) - dense_lse).abs();
        assert!(error < 2e-6 * (1.0 + dense_lse.abs()), "{name}: lse {lse:?}, not {dense_lse}");
        for (d, (x, y)) in out.iter().zip(&dense).enumerate() {
            let error = (f64::from(*x) - y).abs();
            assert!(error < tolerance, "{name}: out[{d}] = {x}, not {y}");
        }
    }
}

#[test]
fn a_row_has_the_same_bits_in_any_company() {
    let mut random = Random(2);
    for kv_type in KvType::ALL {
        let heads = [64, 80, 96].map(|head_dim| PageShape::new(head_dim, kv_type));
        let latents = [(80, 64), (40, 24)].map(|(k, v)| PageShape::latent(k, v, kv_type));
        for (shape, tokens) in heads.into_iter().chain(latents).zip([300, 41, 256, 300, 41]) {
            let head_dim = shape.head_dim();
            let sequence = Sequence::new(&mut random, shape, tokens);
            let q = random.numbers(17 * head_dim);
            let sees = sees(&mut random, 17, tokens);
            for isa in Isa::available() {
                let alone: Vec<u32> = q
                    .chunks_exact(head_dim)
                    .zip(&sees)
                    .flat_map(|(q, sees)| bits(&sequence.attend(isa, q, &[*sees])))
                    .collect();
                for rows in 1..=17 {
                    let got = sequence.attend(isa, &q[..rows * head_dim], &sees[..rows]);
                    assert!(bits(&got) == alone[..got.len()], "{isa} {shape:?}, {rows} rows");
                }
            }
        }
    }
}

/// Where a row's range starts and ends inside a chunk is as if the sequence did, whatever lies
/// before and behind it, and whoever sees that.
#[test]
fn nothing_outside_a_range_leaks() {
    let mut random = Random(3);
    for kv_type in KvType::ALL {
        for shape in [PageShape::new(64, kv_type), PageShape::latent(80, 64, kv_type)] {
            for range in [0..1, 0..5, 3..5, 15..17, 0..31, 200..256, 7..256, 100..290, 257..290] {
                poisoned_around(&mut random, shape, range);
            }
        }
    }
}

fn poisoned_around(random: &mut Random, shape: PageShape, range: Range<usize>) {
    let mut sequence = Sequence::new(random, shape, 320);
    let q = random.numbers(12 * shape.head_dim());
    let name = format!("{shape:?}, {range:?}");
    let own = Sees { from: range.start as u32, to: range.end as u32 };
    let expected = sequence.attend(Isa::Scalar, &q, &[own; 12]);
    assert!(expected.iter().all(|x| x.is_finite()), "{name}");
    // As it was before it was written: NaN, in every type.
    let written = sequence.pages.clone();
    sequence.pages.fill(0xff);
    let mut fresh = Sequence { pages: sequence.pages, k: Vec::new(), v: Vec::new(), ..sequence };
    for token in 0..320 {
        if range.contains(&token) {
            copy_token(&mut fresh, &written, token);
        }
        fresh.k.push(Vec::new());
    }
    let len = state_len(shape.value_dim());
    for isa in Isa::available() {
        let got = fresh.attend(isa, &q, &[own; 12]);
        assert!(bits(&got) == bits(&expected), "{isa} {name}");
        // Rows 2 and 7 see the poison, and change nothing for those beside them.
        let mut sees = [own; 12];
        (sees[2], sees[7]) = (Sees::below(320), Sees { from: 0, to: own.to });
        let got = fresh.attend(isa, &q, &sees);
        for row in (0..12).filter(|row| ![2, 7].contains(row)) {
            let part = row * len..(row + 1) * len;
            assert!(bits(&got[part.clone()]) == bits(&expected[part]), "{isa} {name}, row {row}");
        }
        let nan = |row: usize| got[row * len..][..shape.value_dim()].iter().all(|x| x.is_nan());
        assert!(nan(2), "{isa} {name}");
    }
}

/// Copies what pages keep of one token, and nothing else.
fn copy_token(to: &mut Sequence, from: &[u8], token: usize) {
    let (shape, bytes) = (to.shape, to.shape.bytes());
    let start = to.table[token / PAGE_TOKENS] as usize * bytes;
    let slot = token % PAGE_TOKENS;
    // Which bytes those are: the ones that writing the token to two different pages makes equal.
    let (k, v) = to.token(&mut Random(9));
    let (mut zeros, mut ones) = (vec![0; bytes], vec![0xff; bytes]);
    append(&mut zeros, shape, slot, &k, &v);
    append(&mut ones, shape, slot, &k, &v);
    let page = to.pages[start..start + bytes].iter_mut().zip(&from[start..start + bytes]);
    for ((to, from), (zero, one)) in page.zip(zeros.iter().zip(&ones)) {
        if zero == one {
            *to = *from;
        }
    }
}

/// Against exact attention over numbers that were never rounded: bytes of queries add less to the
/// error than bytes of keys and values have made.
#[test]
fn integers_add_less_to_the_error_than_storing_makes() {
    let heads = [KvType::F32, KvType::Q8_0].map(|kv_type| PageShape::new(128, kv_type));
    let latents = [KvType::F32, KvType::Q8_0].map(|kv_type| PageShape::latent(576, 512, kv_type));
    for [floats, bytes] in [heads, latents] {
        let exact = Sequence::new(&mut Random(12), floats, 500);
        let sequence = Sequence::new(&mut Random(12), bytes, 500);
        let (k, v) = (sequence.k.clone(), sequence.v.clone());
        let stored = Sequence { k, v, ..Sequence::new(&mut Random(12), floats, 0) };
        let q = queries(&mut Random(13), 20, floats.head_dim());
        let states = sequence.attend(isa::cpu(), &q, &[Sees::below(500); 20]);
        // Sums of squares: of storing, and of all.
        let mut errors = [0.0, 0.0];
        for (q, state) in
            q.chunks(floats.head_dim()).zip(states.chunks(state_len(floats.value_dim())))
        {
            let mut out = vec![f32::NAN; floats.value_dim()];
            finish(&mut out, state);
            let (exact, _) = exact.dense(q, 0..500);
            let (stored, _) = stored.dense(q, 0..500);
            for ((exact, stored), out) in exact.iter().zip(&stored).zip(&out) {
                errors[0] += (stored - exact).powi(2);
                errors[1] += (f64::from(*out) - exact).powi(2);
            }
        }
        println!("{bytes:?}: {:.3} of storing's", (errors[1] / errors[0]).sqrt());
        assert!(errors[1] < 2.0 * errors[0], "{bytes:?}: {errors:?}");
    }
}

/// Many tokens that count little beside one that counts much keep what they count together.
#[test]
fn a_large_probability_hides_no_small_ones() {
    for shape in [PageShape::new(32, KvType::Q8_0), PageShape::latent(64, 32, KvType::Q8_0)] {
        let mut sequence = Sequence::new(&mut Random(14), shape, 0);
        sequence.table = vec![0];
        sequence.pages = vec![0; shape.bytes()];
        // The first token's value is 0, all others' are 1.
        let (dim, latent) = (shape.head_dim(), shape.is_latent());
        for token in 0..256 {
            let mut k = vec![f32::from(token > 0); dim];
            k[dim - 1] = if token == 0 { 1.0 } else { 0.0 };
            let v = if latent { vec![] } else { vec![f32::from(token > 0); dim] };
            sequence.push(&k, &v);
        }
        for weight in [0.3, 0.0019, 1e-4] {
            let mut q = vec![0.0; dim];
            q[dim - 1] = -f32::ln(weight);
            let states = sequence.attend(isa::cpu(), &q, &[Sees::below(256)]);
            let mut out = vec![f32::NAN; shape.value_dim()];
            finish(&mut out, &states);
            let (dense, _) = sequence.dense(&q, 0..256);
            for (x, y) in out.iter().zip(dense) {
                let error = (f64::from(*x) - y).abs();
                // Each of 255 weights is off by half of 1/32256 at the most.
                assert!(error < 0.004, "{shape:?}, {weight}: {x}, not {y}");
            }
        }
    }
}

/// Numbers that are not finite stay visible: a failure never turns to a plausible output.
#[test]
fn a_nan_that_is_seen_shows() {
    let mut random = Random(4);
    for shape in [PageShape::new(64, KvType::F32), PageShape::latent(64, 48, KvType::F32)] {
        let mut sequence = Sequence::new(&mut random, shape, 40);
        let q = random.numbers(64);
        sequence.pages.fill(0xff);
        for isa in Isa::available() {
            let mut out = vec![0.0; shape.value_dim()];
            let lse = finish(&mut out, &sequence.attend(isa, &q, &[Sees::below(40)]));
            assert!(lse.ln().is_nan() && out.iter().all(|x| x.is_nan()), "{isa}: {lse:?} {out:?}");
        }
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
    let lse = finish(&mut out, &sequence.attend(Isa::Scalar, &q, &[Sees::below(20)]));
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
        let merged = merge(&mut out, &o, &lse, None);
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
    assert_eq!(merge(&mut out, &[f32::NAN; 6], &[Lse::EMPTY; 2], None), Lse::EMPTY);
    assert_eq!(out, [0.0; 3]);
    assert_eq!(merge(&mut out, &[], &[], None), Lse::EMPTY);
    // One shard passes unchanged, out of rows that lie apart.
    let lse = [Lse::EMPTY, Lse::from_ln(2.5)];
    let rows: [&[f32]; 2] = [&[9.0; 4], &[1.0, -2.0, 3.0, 9.0]];
    let merged = merge_parts(&mut out, |shard| rows[shard], &lse, None);
    assert_eq!((merged, out), (lse[1], [1.0, -2.0, 3.0]));
    assert!(merge(&mut out, &[0.0; 3], &[Lse::from_ln(f32::NAN)], None).ln().is_nan());
}

/// A sink is a token whose score is the sink, whatever the query, and whose value is zero.
#[test]
fn a_sink_counts_once_on_one_shard_or_many() {
    let mut random = Random(7);
    let shape = PageShape::new(16, KvType::F32);
    let sequence = Sequence::new(&mut random, shape, 300);
    let q = random.numbers(16);
    let (dense, ln) = sequence.dense(&q, 0..300);
    // The whole, and cut in three by pretending that rows see thirds.
    let cuts = [0, 70, 256, 300];
    let parts: Vec<Sees> = cuts.windows(2).map(|c| Sees { from: c[0], to: c[1] }).collect();
    let states = sequence.attend(Isa::Scalar, &q.repeat(3), &parts);
    let (mut o, mut lse) = (vec![0.0; 48], Vec::new());
    for (o, state) in o.chunks_mut(16).zip(states.chunks(state_len(16))) {
        lse.push(finish(o, state));
    }
    let state = sequence.attend(Isa::Scalar, &q, &[Sees::below(300)]);
    for sink in [-300.0, -3.0, 0.5, ln as f32, 40.0, 300.0] {
        let top = ln.max(f64::from(sink));
        let with_sink = top + ((ln - top).exp() + (f64::from(sink) - top).exp()).ln();
        let share = (ln - with_sink).exp();
        let mut outs = [[f32::NAN; 16]; 2];
        let lses = [
            finish_with_sink(&mut outs[0], &state, Some(sink)),
            merge(&mut outs[1], &o, &lse, Some(sink)),
        ];
        for (out, lse) in outs.iter().zip(lses) {
            let error = (f64::from(lse.ln()) - with_sink).abs();
            assert!(error < 1e-6 * (1.0 + with_sink.abs()), "{sink}: {lse:?}, not {with_sink}");
            for (x, y) in out.iter().zip(&dense) {
                assert!((f64::from(*x) - y * share).abs() < 1e-6, "{sink}: {x}, not {}", y * share);
            }
        }
    }
}

#[test]
fn no_sink_and_a_sink_of_nothing_change_no_bit() {
    let mut random = Random(8);
    let sequence = Sequence::new(&mut random, PageShape::new(33, KvType::F16), 90);
    let state = sequence.attend(Isa::Scalar, &random.numbers(33), &[Sees::below(90)]);
    let mut plain = [0.0; 33];
    let lse = finish(&mut plain, &state);
    for sink in [None, Some(f32::NEG_INFINITY)] {
        let mut out = [f32::NAN; 33];
        assert_eq!(finish_with_sink(&mut out, &state, sink), lse);
        assert_eq!(bits(&out), bits(&plain));
        assert_eq!(merge(&mut out, &plain, &[lse], sink), lse);
        assert_eq!(bits(&out), bits(&plain));
    }
}

#[test]
fn a_sink_beside_no_token_and_sinks_that_are_nan() {
    let mut state = [f32::NAN; state_len(3)];
    clear(&mut state);
    let mut out = [f32::NAN; 3];
    assert_eq!(finish_with_sink(&mut out, &state, Some(1.5)), Lse::from_ln(1.5));
    assert_eq!(out, [0.0; 3]);
    assert_eq!(merge(&mut out, &[f32::NAN; 6], &[Lse::EMPTY; 2], Some(1.5)), Lse::from_ln(1.5));
    assert_eq!(out, [0.0; 3]);
    let one = [Lse::from_ln(0.0)];
    assert!(merge(&mut out, &[1.0; 3], &one, Some(f32::NAN)).ln().is_nan());
    assert!(out.iter().all(|x| x.is_nan()));
}
