//! One rank: its shards, its cache, its threads, and a step from tokens to logits.

use crate::attention::{AttentionBuffers, Heads};
use crate::batch::Batch;
use crate::counters::{Clock, Line, RankCounters};
use crate::kv::KvCache;
use crate::lanes::{Lane, Lanes};
use crate::layer;
use crate::projection::{max_cuts, project};
use crate::qkv::QkvPlan;
use crate::{EngineError, EngineOptions};
use helix_comm::{Comm, CommError, Counted, Team, ThreadComm};
use helix_kernels::attention::{Scratch, state_len};
use helix_kernels::elementwise::RopeTable;
use helix_kernels::kv::{PageShape, append};
use helix_kernels::{Activations, SharedRows};
use helix_layout::{Layout, Rank as RankId};
use helix_model::{Model, RankWeights};
use helix_scheduler::Step;
use rand_core::{Rng, SeedableRng};
use rand_pcg::Pcg64;
use std::sync::Arc;

/// Different places that a benchmark's keys and values are cut from.
const NOISE: usize = 4093;

/// What a rank knows of its place, made once.
pub(crate) struct Plan {
    pub(crate) layout: Layout,
    pub(crate) rank: RankId,
    pub(crate) hidden: usize,
    pub(crate) vocab: usize,
    pub(crate) ffn_cols: usize,
    pub(crate) rms_eps: f32,
    pub(crate) qkv: QkvPlan,
    pub(crate) heads: Heads,
}

/// A rank's activations, sized once for the largest step. `B` is the tokens of a step.
pub(crate) struct Buffers {
    /// The residual stream `[B, H]`, the same on every rank.
    pub(crate) x: Vec<f32>,
    /// A phase's result before it is added to the stream `[B, H]`.
    pub(crate) y: Vec<f32>,
    /// The normed stream.
    pub(crate) hidden: Activations,
    /// This rank's share of its slice's `[q; k; v]`, everyone's, and the rows put together.
    pub(crate) qkv_share: Vec<f32>,
    pub(crate) qkv_recv: Vec<f32>,
    pub(crate) qkv: Vec<f32>,
    /// Cosines and sines of each token's position.
    pub(crate) angles: Vec<f32>,
    pub(crate) attention: AttentionBuffers,
    /// The merged heads that this rank keeps.
    pub(crate) out: Activations,
    /// `[B, gate | up]`
    pub(crate) gate_up: Vec<f32>,
    /// The activated FFN columns.
    pub(crate) ffn: Activations,
    /// This rank's columns of the logits.
    pub(crate) logits_share: Vec<f32>,
    /// On rank 0: `[wanted, vocab]`.
    pub(crate) logits: Vec<f32>,
    /// Where one matrix of a product ends.
    pub(crate) cuts: Vec<usize>,
}

/// A rank of an engine. `layer.rs` works on its parts.
pub(crate) struct Rank {
    pub(crate) plan: Plan,
    pub(crate) model: Arc<Model>,
    pub(crate) weights: RankWeights,
    pub(crate) kv: KvCache,
    pub(crate) batch: Batch,
    pub(crate) lanes: Lanes,
    /// All ranks.
    pub(crate) world: Counted<ThreadComm>,
    /// The ranks that share this one's heads.
    pub(crate) group: Counted<ThreadComm>,
    pub(crate) buffers: Buffers,
    pub(crate) counters: RankCounters,
    pub(crate) clock: Clock,
}

impl Plan {
    fn new(model: &Model, layout: &Layout, rank: RankId) -> Plan {
        let config = &model.config;
        let rope = config.rope(0);
        let rope = RopeTable::new(rope.style, &rope.frequencies, rope.magnitude);
        Plan {
            layout: *layout,
            rank,
            hidden: config.hidden,
            vocab: config.vocab,
            ffn_cols: layout.ffn_cols(rank).len(),
            rms_eps: config.rms_eps,
            qkv: QkvPlan::new(layout, rank, rope, config.rms_eps),
            heads: Heads::new(layout, rank),
        }
    }
}

impl Buffers {
    fn new(plan: &Plan, options: &EngineOptions) -> Buffers {
        let tokens = options.max_step_tokens;
        let precision = options.precision;
        let vocab_share = plan.layout.vocab_rows(plan.rank).len();
        let gathers = plan.qkv.shares.len() > 1;
        let leads = plan.rank.0 == 0;
        Buffers {
            x: vec![0.0; tokens * plan.hidden],
            y: vec![0.0; tokens * plan.hidden],
            hidden: Activations::new(tokens, plan.hidden, precision),
            qkv_share: vec![0.0; tokens * plan.qkv.share()],
            qkv_recv: vec![0.0; if gathers { tokens * plan.qkv.row } else { 0 }],
            qkv: vec![0.0; tokens * plan.qkv.row],
            angles: vec![0.0; tokens * plan.qkv.rope.turn_len()],
            attention: AttentionBuffers::new(&plan.heads, tokens, options.threads_per_rank),
            out: Activations::new(tokens, plan.heads.out_cols, precision),
            gate_up: vec![0.0; tokens * 2 * plan.ffn_cols],
            ffn: Activations::new(tokens, plan.ffn_cols, precision),
            logits_share: vec![0.0; options.max_logits * vocab_share],
            logits: vec![0.0; if leads { options.max_logits * plan.vocab } else { 0 }],
            cuts: Vec::with_capacity(max_cuts(options.threads_per_rank)),
        }
    }
}

/// The largest message, in f32 values, that ranks exchange over all of them or in a KVP group.
pub(crate) fn largest_messages(
    model: &Model,
    layout: &Layout,
    options: &EngineOptions,
) -> (usize, usize) {
    let config = &model.config;
    let tokens = options.max_step_tokens;
    let logits = layout.all_ranks().map(|rank| layout.vocab_rows(rank).len()).max().unwrap_or(0);
    let slices = layout.all_ranks().map(|rank| {
        let (q, kv) = (layout.q_heads(rank).len(), layout.kv_heads(rank).len());
        (q * (config.head_dim + 1)).max((q + 2 * kv) * config.head_dim)
    });
    ((tokens * config.hidden).max(logits), tokens * slices.max().unwrap_or(0))
}

impl Rank {
    pub(crate) fn new(
        model: Arc<Model>,
        layout: &Layout,
        rank: RankId,
        weights: RankWeights,
        world: ThreadComm,
        group: ThreadComm,
        options: &EngineOptions,
    ) -> Result<Rank, EngineError> {
        let plan = Plan::new(&model, layout, rank);
        let config = &model.config;
        let kv_heads = layout.kv_heads(rank).len();
        let local = layout.owned_before(layout.attention(rank).kvp, options.max_context);
        let shape = PageShape::new(config.head_dim, options.kv_type);
        let kv = KvCache::new(shape, config.layers, kv_heads, options.max_sequences, local)?;
        let tokens = options.max_step_tokens;
        let refused = |source| EngineError::System { what: "a thread", source };
        let name = format!("helix-{}", rank.0);
        let team = Team::new(&name, options.threads_per_rank).map_err(refused)?;
        let members = layout.kvp_group(rank).len();
        let lanes = Lanes::new(team, || Lane::new(&plan, tokens, members));
        Ok(Rank {
            batch: Batch::with_capacity(tokens, kv_heads, options.max_logits),
            buffers: Buffers::new(&plan, options),
            plan,
            weights,
            kv,
            lanes,
            world: Counted::new(world),
            group: Counted::new(group),
            counters: RankCounters::default(),
            clock: Clock::start(),
            model,
        })
    }

    /// Runs one step. Logits of the wanted rows end on rank 0.
    pub(crate) fn step(&mut self, step: &Step) -> Result<(), CommError> {
        self.clock = Clock::start();
        self.counters.steps += 1;
        self.embed(step);
        self.clock.lap(&mut self.counters, Line::Embedding);
        for index in 0..self.weights.layers.len() {
            layer::run(self, index)?;
        }
        self.head()
    }

    /// The step's tokens: pages for them, their rows of the stream, their positions' angles.
    fn embed(&mut self, step: &Step) {
        let Rank { plan, kv, batch, lanes, buffers, model, .. } = self;
        let kvp = plan.layout.attention(plan.rank).kvp;
        for run in &step.runs {
            kv.resize(run.slot, plan.layout.owned_before(kvp, run.start + run.len));
        }
        let state = state_len(plan.heads.dim);
        batch.load(step, &plan.layout, plan.rank, lanes.threads(), state);
        let tokens = batch.tokens.len();
        let rope = &plan.qkv.rope;
        let turn = rope.turn_len();
        for (token, angles) in batch.tokens.iter().zip(buffers.angles.chunks_exact_mut(turn)) {
            rope.turn(token.position, angles);
        }
        let rows = SharedRows::new(&mut buffers.x[..tokens * plan.hidden], plan.hidden);
        lanes.by_token(tokens, |_| {
            while let Some((row, x)) = rows.next() {
                let id = batch.tokens[row].id;
                model.embedding_row(id, x).expect("the engine has checked its tokens");
            }
        });
    }

    /// Final norm and LM head of the wanted rows; this rank's share of the vocabulary goes to
    /// rank 0, a row at a time.
    fn head(&mut self) -> Result<(), CommError> {
        let Rank { plan, weights, batch, lanes, world, buffers: b, counters, clock, .. } = self;
        let (hidden, wanted) = (plan.hidden, batch.wanted.len());
        if wanted == 0 {
            return Ok(());
        }
        for (row, &from) in batch.wanted.iter().enumerate() {
            // Wanted rows ascend, so no row is overwritten before it is moved.
            b.x.copy_within(from * hidden..(from + 1) * hidden, row * hidden);
        }
        let x = &b.x[..wanted * hidden];
        layer::norm(lanes, &mut b.hidden, x, &weights.final_norm, plan.rms_eps);
        let alone = world.size() == 1;
        let share = if alone { &mut b.logits } else { &mut b.logits_share };
        counters.weight_bytes += project(lanes, share, &b.hidden, &[&weights.head], &mut b.cuts);
        clock.lap(counters, Line::Head);
        if !alone {
            let columns = weights.head.rows();
            for row in 0..wanted {
                let share = &b.logits_share[row * columns..][..columns];
                if world.rank() == 0 {
                    // Rank 0 holds the first rows of the vocabulary.
                    let logits = &mut b.logits[row * plan.vocab..][..plan.vocab];
                    logits[..columns].copy_from_slice(share);
                    world.gather(&[], 0, logits)?;
                } else {
                    world.gather(share, 0, &mut [])?;
                }
            }
        }
        clock.lap(counters, Line::LogitsGather);
        Ok(())
    }

    /// The sequence in `slot` from here on has its first `len` positions and no more.
    pub(crate) fn truncate(&mut self, slot: usize, len: usize) {
        let kvp = self.plan.layout.attention(self.plan.rank).kvp;
        self.kv.resize(slot, self.plan.layout.owned_before(kvp, len));
    }

    /// Positions `from..len` of `slot`'s sequence get keys and values of seeded noise.
    pub(crate) fn fill_with_noise(&mut self, slot: usize, from: usize, len: usize) {
        let Rank { plan, kv, lanes, .. } = self;
        let kvp = plan.layout.attention(plan.rank).kvp;
        let local = plan.layout.owned_before(kvp, from)..plan.layout.owned_before(kvp, len);
        kv.resize(slot, local.end);
        let dim = plan.heads.dim;
        let mut random = Pcg64::seed_from_u64(7);
        let mut value = || (random.next_u32() >> 8) as f32 / (1 << 23) as f32 - 1.0;
        let noise: Vec<f32> = (0..NOISE + 2 * dim).map(|_| value()).collect();
        let shape = kv.shape();
        for layer in 0..self.weights.layers.len() {
            let (pages, head_bytes, tables) = kv.layer_mut(layer);
            if pages.is_empty() {
                continue;
            }
            let heads = SharedRows::new(pages, head_bytes);
            lanes.share(|_| {
                while let Some((head, pages)) = heads.next() {
                    for token in local.clone() {
                        let (page, place) = tables.page(pages, slot, token);
                        let at = (token * 61 + head * 17 + layer * 29) % NOISE;
                        let (k, v) = noise[at..][..2 * dim].split_at(dim);
                        append(page, shape, place, k, v);
                    }
                }
            });
        }
    }

    /// Counters with what only the rank's parts know.
    pub(crate) fn counters(&self) -> RankCounters {
        RankCounters {
            kv_bytes_held: self.kv.bytes_held(),
            world: self.world.traffic(),
            kvp: self.group.traffic(),
            ..self.counters.clone()
        }
    }

    pub(crate) fn reset_counters(&mut self) {
        self.counters = RankCounters::default();
        self.world.reset();
        self.group.reset();
    }
}

impl Lane {
    fn new(plan: &Plan, tokens: usize, members: usize) -> Lane {
        let heads = &plan.heads;
        let group = heads.groups.iter().map(|group| group.len()).max().unwrap_or(0);
        let rows = crate::batch::TILE_TOKENS.min(tokens) * group;
        let row = plan.hidden.max(heads.out_cols).max(plan.ffn_cols);
        Lane {
            attention: Scratch::new(),
            states: vec![0.0; rows * state_len(heads.dim)],
            queries: Vec::with_capacity(rows * heads.dim),
            sees: Vec::with_capacity(rows),
            row: vec![0.0; row],
            lse: Vec::with_capacity(members),
        }
    }
}
