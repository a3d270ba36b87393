//! One rank: its shards, its cache, its threads, and a step from tokens to logits.

use crate::attention::{AttentionBuffers, Heads};
use crate::batch::{Batch, Cut};
use crate::comms::{Comms, Messages};
use crate::counters::{Clock, Line, RankCounters};
use crate::exchange::ExchangeBuffers;
use crate::ffn::{FfnBuffers, FfnPlan};
use crate::hopb::Pieces;
use crate::kv::{KvCache, KvSizes};
use crate::lanes::{Lane, Lanes};
use crate::layer;
use crate::options::{HopB, MlaUp};
use crate::projection::{max_cuts, project};
use crate::qkv::{QkvBuffers, QkvPlan, Turns};
use crate::slices::SliceBuffers;
use crate::tuner::Tuner;
use crate::values::{ValueBuffers, ValuePlan};
use crate::{EngineError, EngineOptions, RankTrace};
use helix_comm::{Comm, CommError, Team};
use helix_kernels::attention::{Scratch, state_len};
use helix_kernels::elementwise::RopeTable;
use helix_kernels::kv::{PAGE_TOKENS, PageShape, append};
use helix_kernels::{Activations, Forms, SharedRows};
use helix_layout::pieces::hidden_before;
use helix_layout::{Layout, Rank as RankId};
use helix_model::{Config, Model, RankWeights};
use helix_scheduler::Step;
use rand_core::{Rng, SeedableRng};
use rand_pcg::Pcg64;
use std::sync::Arc;
use std::time::Duration;

/// Different places that a benchmark's keys and values are cut from.
const NOISE: usize = 4093;

/// What a rank knows of its place, made once.
pub(crate) struct Plan {
    pub(crate) layout: Layout,
    pub(crate) rank: RankId,
    pub(crate) hidden: usize,
    pub(crate) vocab: usize,
    pub(crate) rms_eps: f32,
    pub(crate) qkv: QkvPlan,
    pub(crate) heads: Heads,
    pub(crate) ffn: FfnPlan,
    /// What the layers of each KV pool see: all, or a window.
    pub(crate) windows: Vec<Option<usize>>,
    /// Each layer's pool, and its rotary embedding.
    pub(crate) pool_of: Vec<usize>,
    pub(crate) rope_of: Vec<usize>,
    /// Slices that sums over ranks are cut into.
    pub(crate) slices: usize,
    rewind: usize,
    hopb: HopB,
}

/// Cosines and sines of each token's position, for each rotary embedding.
pub(crate) struct AllTurns(Vec<(RopeTable, Vec<f32>)>);

/// A rank's activations, sized once for the largest step. `B` is the tokens of a step.
pub(crate) struct Buffers {
    /// The residual stream `[B, H]`, the same on every rank.
    pub(crate) x: Vec<f32>,
    /// 0, 1, 2, and so on.
    pub(crate) all_rows: Vec<usize>,
    /// The normed stream.
    pub(crate) hidden: Activations,
    pub(crate) qkv: QkvBuffers,
    pub(crate) turns: AllTurns,
    pub(crate) attention: AttentionBuffers,
    pub(crate) exchange: ExchangeBuffers,
    /// The merged heads that this rank keeps.
    pub(crate) out: Activations,
    pub(crate) ffn: FfnBuffers,
    pub(crate) slices: SliceBuffers,
    /// On rank 0: its columns of the logits `[wanted, share]`.
    pub(crate) logits_share: Vec<f32>,
    /// On rank 0: `[wanted, vocab]`.
    pub(crate) logits: Vec<f32>,
    /// Where one matrix of a product ends.
    pub(crate) cuts: Vec<usize>,
    /// Values that each rank brings to a collective.
    pub(crate) counts: Vec<usize>,
}

/// A rank of an engine. `layer.rs` works on its parts.
pub(crate) struct Rank {
    pub(crate) plan: Plan,
    pub(crate) model: Arc<Model>,
    pub(crate) weights: RankWeights,
    pub(crate) kv: KvCache,
    pub(crate) batch: Batch,
    pub(crate) lanes: Lanes,
    pub(crate) comms: Comms,
    pub(crate) buffers: Buffers,
    pub(crate) counters: RankCounters,
    pub(crate) clock: Clock,
    /// Of HOP-B's `auto`, where there is something to exchange.
    tuner: Option<Tuner>,
}

/// The different windows that layers have, and which of them each layer has.
fn windows(config: &Config) -> (Vec<Option<usize>>, Vec<usize>) {
    let mut all = Vec::new();
    let pool_of = (0..config.layers).map(|layer| {
        let window = config.window(layer);
        all.iter().position(|&other| other == window).unwrap_or_else(|| {
            all.push(window);
            all.len() - 1
        })
    });
    let pool_of = pool_of.collect();
    (all, pool_of)
}

impl Plan {
    fn new(model: &Model, layout: &Layout, rank: RankId, options: &EngineOptions) -> Plan {
        let config = &model.config;
        let (windows, pool_of) = windows(config);
        let before = options.mla_up == MlaUp::Before;
        let values = config.mla.map(|mla| ValuePlan { latent: mla.kv_lora, before });
        Plan {
            layout: *layout,
            rank,
            hidden: config.hidden,
            vocab: config.vocab,
            rms_eps: config.rms_eps,
            qkv: QkvPlan::new(config, layout, rank),
            heads: Heads::new(config, layout, rank, values),
            ffn: FfnPlan::new(config, layout, rank),
            windows,
            pool_of,
            rope_of: (0..config.layers).map(|layer| config.rope_index(layer)).collect(),
            slices: if layout.ranks() > 1 { options.reduce_slices } else { 1 },
            rewind: options.rewind,
            hopb: options.hopb,
        }
    }

    /// Local tokens of the first `position` positions of a sequence.
    fn local(&self, position: usize) -> usize {
        self.layout.owned_before(self.layout.attention(self.rank).kvp, position)
    }

    /// The first local token that `pool`'s layers may still need once `position` comes next.
    fn needed(&self, pool: usize, position: usize) -> usize {
        let hidden = hidden_before(self.windows[pool], position);
        self.local(hidden.saturating_sub(self.rewind))
    }
}

impl AllTurns {
    fn new(config: &Config, tokens: usize) -> AllTurns {
        let table = |rope: &helix_model::Rope| {
            let table = RopeTable::new(rope.style, &rope.frequencies, rope.magnitude);
            let angles = vec![0.0; tokens * table.turn_len()];
            (table, angles)
        };
        AllTurns(config.ropes.iter().map(table).collect())
    }

    fn load(&mut self, batch: &Batch) {
        for (rope, angles) in &mut self.0 {
            let turns = angles.chunks_exact_mut(rope.turn_len());
            for (token, turn) in batch.tokens.iter().zip(turns) {
                rope.turn(token.position, turn);
            }
        }
    }

    /// Those of one rotary embedding.
    pub(crate) fn of(&self, index: usize) -> Turns<'_> {
        let (rope, angles) = &self.0[index];
        Turns { rope, angles }
    }
}

impl Buffers {
    fn new(plan: &Plan, config: &Config, options: &EngineOptions, forms: Forms) -> Buffers {
        let tokens = options.max_step_tokens;
        let vocab_share = plan.layout.vocab_rows(plan.rank).len();
        let leads = plan.rank.0 == 0;
        let (heads, threads) = (&plan.heads, options.threads_per_rank);
        let cuts = max_cuts(threads);
        let values = ValueBuffers::new(heads, tokens, forms, cuts);
        let latent = plan.qkv.latent.as_ref().map(|latent| latent.buffers(tokens, forms));
        Buffers {
            x: vec![0.0; tokens * plan.hidden],
            all_rows: (0..tokens).collect(),
            hidden: Activations::new(tokens, plan.hidden, forms),
            qkv: QkvBuffers::new(&plan.qkv, tokens, latent),
            turns: AllTurns::new(config, tokens),
            attention: AttentionBuffers::new(heads, tokens, threads),
            exchange: ExchangeBuffers::new(heads, tokens, values),
            out: Activations::new(tokens, heads.out_cols, forms),
            ffn: plan.ffn.buffers(tokens, forms),
            slices: SliceBuffers::new(plan.slices, tokens, plan.hidden),
            logits_share: vec![0.0; if leads { options.max_logits * vocab_share } else { 0 }],
            logits: vec![0.0; if leads { options.max_logits * plan.vocab } else { 0 }],
            cuts: Vec::with_capacity(cuts),
            counts: Vec::with_capacity(plan.layout.ranks()),
        }
    }
}

/// The largest messages that ranks exchange.
pub(crate) fn largest_messages(
    model: &Model,
    layout: &Layout,
    options: &EngineOptions,
) -> Messages {
    let config = &model.config;
    let tokens = options.max_step_tokens;
    let logits = layout.all_ranks().map(|rank| layout.vocab_rows(rank).len()).max().unwrap_or(0);
    let slices = layout.all_ranks().map(|rank| {
        let (q, kv) = (layout.q_heads(rank).len(), layout.kv_heads(rank).len());
        let widest = config.head_dim.max(config.value_dim);
        (q * (widest + 1)).max((q + 2 * kv) * widest)
    });
    let stream = tokens * config.hidden;
    Messages {
        world: stream.max(options.max_logits * logits),
        kvp: tokens * slices.max().unwrap_or(0),
        experts: stream,
    }
}

/// What the cache of a rank has to hold.
pub(crate) fn kv_sizes(
    model: &Model,
    layout: &Layout,
    rank: RankId,
    options: &EngineOptions,
) -> KvSizes {
    let config = &model.config;
    let shape = match &config.mla {
        Some(mla) => PageShape::latent(config.head_dim, mla.kv_lora, options.kv_type),
        None => PageShape::new(config.head_dim, options.kv_type),
    };
    let all = layout.owned_before(layout.attention(rank).kvp, options.max_context);
    let (windows, pool_of) = windows(config);
    let pools = windows.iter().enumerate().map(|(pool, window)| {
        let layers = pool_of.iter().filter(|&&of| of == pool).count();
        let tokens = window.map_or(all, |window| {
            let kept = window.saturating_add(options.rewind).min(options.max_context);
            let positions = kept + options.max_step_tokens;
            let period = layout.degrees().kvp * layout.kv_block();
            // As many as lie in so many positions, and the start of the first page.
            let most = (positions.div_ceil(period) + 1) * layout.kv_block() + PAGE_TOKENS;
            most.min(all)
        });
        (layers, tokens)
    });
    KvSizes {
        shape,
        heads: layout.kv_heads(rank).len(),
        slots: (0..options.max_sequences).filter(|&slot| layout.attends(rank, slot)).count(),
        pools: pools.collect(),
    }
}

impl Rank {
    pub(crate) fn new(
        model: Arc<Model>,
        layout: &Layout,
        rank: RankId,
        weights: RankWeights,
        comms: Comms,
        options: &EngineOptions,
    ) -> Result<Rank, EngineError> {
        let plan = Plan::new(&model, layout, rank, options);
        let sizes = kv_sizes(&model, layout, rank, options);
        let kv = KvCache::new(&sizes, options.max_sequences, &plan.pool_of)?;
        let tokens = options.max_step_tokens;
        let tuned = options.hopb == HopB::Auto && plan.heads.kept.len() > 1;
        let room = largest_messages(&model, layout, options).kvp;
        let tuner = tuned.then(|| Tuner::new(room));
        let refused = |source| EngineError::System { what: "a thread", source };
        let name = format!("helix-{}", rank.0);
        let team = Team::new(&name, options.threads_per_rank).map_err(refused)?;
        let lanes = Lanes::new(team, |thread| Lane::new(thread, &plan, tokens));
        Ok(Rank {
            batch: Batch::with_capacity(
                tokens,
                &plan.heads,
                options.max_logits,
                &plan.windows,
                layout.ranks(),
            ),
            buffers: Buffers::new(&plan, &model.config, options, weights.wants()),
            plan,
            weights,
            kv,
            lanes,
            comms,
            counters: RankCounters::default(),
            clock: Clock::new(options.trace),
            tuner,
            model,
        })
    }

    /// Runs one step. Logits of the wanted rows end on rank 0.
    pub(crate) fn step(&mut self, step: &Step) -> Result<(), CommError> {
        if let Some(tuner) = &mut self.tuner {
            tuner.measure_links(&mut self.comms)?;
        }
        self.clock.step();
        self.counters.steps += 1;
        let before = self.counters.time[Line::Attention as usize];
        self.embed(step);
        self.clock.lap(&mut self.counters, Line::Embedding);
        for index in 0..self.weights.layers.len() {
            self.clock.enter(Some(index));
            layer::run(self, index)?;
        }
        self.clock.enter(None);
        self.head()?;
        let Rank { tuner, batch, plan, counters, comms, .. } = self;
        if let Some(tuner) = tuner {
            let cost = plan.pool_of.iter().map(|&pool| batch.sights[pool].cost()).sum();
            tuner.record(batch.kind(), counters.time[Line::Attention as usize] - before, cost);
            tuner.share(comms)?;
        }
        Ok(())
    }

    /// The last of what it did.
    pub(crate) fn trace(&self) -> RankTrace {
        let (spans, flights) = (self.clock.spans(), self.comms.flights());
        RankTrace { rank: self.plan.rank.0, spans, flights, clock_error: Duration::ZERO }
    }

    /// The step's tokens: pages for them, their rows of the stream, their positions' angles.
    fn embed(&mut self, step: &Step) {
        let Rank { plan, kv, batch, lanes, buffers, model, tuner, .. } = self;
        for run in &step.runs {
            if plan.layout.attends(plan.rank, run.slot) {
                for pool in 0..plan.windows.len() {
                    let end = plan.local(run.start + run.len);
                    kv.resize(pool, run.slot, plan.needed(pool, run.start), end);
                }
            }
        }
        let Plan { layout, rank, heads, .. } = plan;
        let state = state_len(heads.attended);
        // A group of one exchanges nothing.
        let pieces = match (plan.hopb, tuner) {
            (HopB::Pieces(pieces), _) if heads.kept.len() > 1 => Pieces::Fixed(pieces),
            (_, Some(tuner)) => Pieces::Tuned(tuner),
            _ => Pieces::Fixed(1),
        };
        batch.load(step, kv, Cut { layout, rank: *rank, heads, state, pieces });
        buffers.turns.load(batch);
        let tokens = batch.ids.len();
        let rows = SharedRows::new(&mut buffers.x[..tokens * plan.hidden], plan.hidden);
        lanes.by_token(tokens, |_| {
            while let Some((row, x)) = rows.next() {
                let id = batch.ids[row];
                if model.embedding_row(id, x).is_err() {
                    // Damaged where no rank has checked it, on this host's disk alone: such logits
                    // are no numbers, and are refused.
                    x.fill(f32::NAN);
                }
            }
        });
    }

    /// Final norm and LM head of the wanted rows; this rank's share of the vocabulary goes to
    /// rank 0, all rows in one message.
    fn head(&mut self) -> Result<(), CommError> {
        let Rank { plan, weights, batch, lanes, comms, buffers: b, counters, clock, .. } = self;
        let wanted = batch.wanted.len();
        if wanted == 0 {
            return Ok(());
        }
        let norm = &weights.final_norm;
        layer::norm(lanes, &mut b.hidden, &b.x, &batch.wanted, norm, plan.rms_eps);
        let mut head = |logits: &mut [f32]| {
            counters.weight_bytes +=
                project(lanes, logits, &b.hidden, &[&weights.head], &mut b.cuts);
        };
        let world = &mut comms.world;
        if world.size() == 1 {
            head(&mut b.logits);
            clock.lap(counters, Line::Head);
            return Ok(());
        }
        let leads = world.rank() == 0;
        b.counts.clear();
        b.counts.extend(plan.layout.all_ranks().map(|rank| match rank.0 {
            0 => 0,
            _ => wanted * plan.layout.vocab_rows(rank).len(),
        }));
        let own = &mut b.logits_share;
        let pending = world.start_gather(&b.counts, 0, |message| match leads {
            true => head(own),
            false => head(message),
        })?;
        clock.lap(counters, Line::Head);
        world.finish(pending, |shares| {
            for (row, logits) in b.logits.chunks_exact_mut(plan.vocab).take(wanted).enumerate() {
                let mut logits = logits;
                for rank in plan.layout.all_ranks() {
                    let columns = plan.layout.vocab_rows(rank).len();
                    let share = if rank.0 == 0 { &b.logits_share } else { shares.of(rank.0) };
                    let place = logits.split_off_mut(..columns).expect("a vocabulary");
                    place.copy_from_slice(&share[row * columns..][..columns]);
                }
            }
        })?;
        clock.lap(counters, Line::LogitsGather);
        Ok(())
    }

    /// Forgets the positions of a sequence from `len` on.
    pub(crate) fn truncate(&mut self, slot: usize, len: usize) {
        if !self.plan.layout.attends(self.plan.rank, slot) {
            return;
        }
        let end = self.plan.local(len);
        for pool in 0..self.plan.windows.len() {
            let start = self.kv.start(pool, slot).min(end);
            self.kv.resize(pool, slot, start, end);
        }
    }

    /// Positions `from..len` of `slot`'s sequence get keys and values of seeded noise.
    pub(crate) fn fill_with_noise(&mut self, slot: usize, from: usize, len: usize) {
        let Rank { plan, kv, lanes, .. } = self;
        if !plan.layout.attends(plan.rank, slot) {
            return;
        }
        let (from, end) = (plan.local(from), plan.local(len));
        for pool in 0..plan.windows.len() {
            kv.resize(pool, slot, plan.needed(pool, len), end);
        }
        let shape = kv.shape();
        let (dim, value) =
            (shape.head_dim(), if shape.is_latent() { 0 } else { shape.value_dim() });
        let mut random = Pcg64::seed_from_u64(7);
        let mut number = || (random.next_u32() >> 8) as f32 / (1 << 23) as f32 - 1.0;
        let noise: Vec<f32> = (0..NOISE + dim + value).map(|_| number()).collect();
        for layer in 0..self.weights.layers.len() {
            let local = from.max(kv.start(plan.pool_of[layer], slot))..end;
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
                        let (k, v) = noise[at..][..dim + value].split_at(dim);
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
            overlap: self.comms.overlap(),
            world: self.comms.world.traffic(),
            kvp: self.comms.kvp.traffic(),
            experts: match &self.comms.experts {
                Some(stages) => stages.each_ref().map(|stage| stage.traffic()),
                None => RankCounters::default().experts,
            },
            ..self.counters.clone()
        }
    }

    pub(crate) fn reset_counters(&mut self) {
        self.counters = RankCounters::default();
        self.comms.reset();
    }
}

impl Lane {
    fn new(thread: usize, plan: &Plan, tokens: usize) -> Lane {
        let Plan { heads, qkv, ffn, .. } = plan;
        let rows = heads.item_rows(tokens);
        let latent = qkv.latent.as_ref().map_or(0, |latent| latent.lane_row());
        let row =
            ffn.lane_row().max(plan.hidden).max(heads.out_cols).max(heads.attended).max(latent);
        Lane {
            thread,
            attention: Scratch::new(),
            states: vec![0.0; rows * state_len(heads.attended)],
            queries: Vec::with_capacity(rows * heads.dim),
            sees: Vec::with_capacity(rows),
            row: vec![0.0; row],
            lse: Vec::with_capacity(heads.kept.len()),
        }
    }
}
