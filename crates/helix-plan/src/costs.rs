//! What each line of a step costs one rank: bytes, operations, messages. The one home of these
//! formulas.
//!
//! | line | bytes of weights | bytes of KV | sent |
//! |---|---|---|---|
//! | QKV | `H (Q/tpa + 2 K/tpa) D`, over KVP too where it is gathered | | |
//! | gather | | | `B` x its rows |
//! | partial attention | | `B 2 K/tpa D S/kvp` | |
//! | all-to-all | | | `B (Q/tpa - kept) (D + 1)` |
//! | out-projection | `H kept D` | | |
//! | all-reduce | | | `B H` |
//! | gate, up, down | `3 H F/N`; of experts `3 H F/tpf` for each that some token goes to | | |
//! | LM head | `H V/N` | | |
//!
//! Sources: HELIX.md's sections 3 and 5, which are the paper's sections 2.1 to 2.3 and appendix A;
//! for latents DeepSeek-V2, arXiv 2405.04434. An operation is a multiply or an add.

mod choices;
mod work;

pub use choices::{Choices, FfnReduce, Formulas, MlaUp, Tokens};
pub use work::{Collective, Message, Work};

use crate::share::padded;
use crate::{Line, Load, Model, Part, Share, Sight};
use helix_layout::{Degrees, MlaShape, ModelShape, MoeShape, ROW_GRANULE, Strategy};
use work::{again, both, times};

/// What lines are told to.
pub trait Visitor {
    /// A line of `layers` alike layers: its work, and its message if it has one.
    fn line(&mut self, line: Line, layers: f64, work: Work, message: Option<Message>);
}

impl<F: FnMut(Line, f64, Work, Option<Message>)> Visitor for F {
    fn line(&mut self, line: Line, layers: f64, work: Work, message: Option<Message>) {
        self(line, layers, work, message);
    }
}

/// The costs of one rank's steps.
#[derive(Clone, Copy, Debug)]
pub struct Costs<'m> {
    /// The model.
    pub model: &'m Model,
    /// The rank's share of it.
    pub share: Share,
    /// Choices beside the layout.
    pub choices: Choices,
}

impl Costs<'_> {
    /// Tells every line of a step in order: of layers that see everything, of layers with a
    /// window; of dense layers, of layers with experts; and of what is outside layers.
    pub fn visit(&self, load: &Load, visitor: &mut impl Visitor) {
        let shape = &self.model.shape;
        let elements = load.tokens * shape.hidden as f64;
        let embedding = Work { elements, ..by_token(load.tokens) };
        visitor.line(Line::Embedding, 1.0, embedding, None);
        self.attention_phase(load, visitor);
        self.ffn_phase(load, visitor);
        self.outside(load, visitor);
    }

    /// The lines of attention, KVP x TPA, and the output projection.
    pub fn attention_phase(&self, load: &Load, visitor: &mut impl Visitor) {
        let windowed = self.model.window.map_or(0, |window| window.layers) as f64;
        let kinds = [(self.model.full_layers() as f64, true), (windowed, false)];
        for (layers, full) in kinds {
            if layers > 0.0 {
                let sight = if full { load.full } else { load.window };
                self.attention_lines(load, sight, layers, visitor);
            }
        }
    }

    fn attention_lines(&self, load: &Load, sight: Sight, layers: f64, visitor: &mut impl Visitor) {
        let (model, share) = (self.model, &self.share);
        let (own, kvp) = (load.own_tokens, share.degrees.kvp);
        let mut tell = |line, work, message| visitor.line(line, layers, work, message);
        tell(Line::AttentionNorm, self.norm(own), None);
        tell(Line::Qkv, self.qkv(own), None);
        let bytes = own * share.qkv_rows as f64 * model.formats.message;
        let gather = Message {
            collective: Collective::AllGather,
            ranks: kvp,
            stride: 1,
            calls: 1.0,
            bytes,
            received: bytes * (kvp - 1) as f64,
        };
        tell(Line::QkvGather, Work::default(), share.gathers.then_some(gather));
        tell(Line::RopeAppend, self.rope(own), None);
        tell(Line::Attention, self.attention(sight, own), None);
        let pieces = sight.pieces;
        tell(Line::AllToAll, self.raise_before(own, pieces), self.exchange(own, pieces));
        tell(Line::Merge, self.merge(own), None);
        tell(Line::OutProjection, self.out(own), None);
        let dp = share.degrees.dp;
        if dp == 1 {
            let message = self.reduce(share.ranks(), 1, load.tokens);
            let message = message.map(|message| self.sliced(message));
            return tell(Line::OutAllReduce, self.residual(load.tokens), message);
        }
        // Attention groups of several ranks first sum their own rows.
        let group = share.ranks() / dp;
        if let sum @ Some(_) = self.reduce(group, 1, own) {
            tell(Line::OutAllReduce, Work::default(), sum);
        }
        tell(Line::OutAllReduce, self.residual(self.routed(load)), None);
        // Where tokens are dispatched, only dense layers need all of them.
        let shape = &model.shape;
        let gathering = match self.dispatches() {
            true => layers * shape.dense_layers() as f64 / shape.layers as f64,
            false => layers,
        };
        if gathering > 0.0 {
            let rows = Some(self.gather_rows(dp, group, own));
            visitor.line(Line::OutAllReduce, gathering, Work::default(), rows);
        }
    }

    /// Whether tokens go to the ranks of their experts alone.
    fn dispatches(&self) -> bool {
        self.choices.tokens == Tokens::Dispatched
            && can_dispatch(&self.model.shape, &self.share.degrees)
    }

    /// Tokens that this rank routes.
    fn routed(&self, load: &Load) -> f64 {
        if self.dispatches() { load.own_tokens } else { load.tokens }
    }

    /// The lines of the FFN, TPF x EP.
    pub fn ffn_phase(&self, load: &Load, visitor: &mut impl Visitor) {
        let shape = &self.model.shape;
        let dense = shape.dense_layers() as f64;
        if dense > 0.0 {
            let mut tell = |line, work, message| visitor.line(line, dense, work, message);
            tell(Line::FfnNorm, self.norm(load.tokens), None);
            let [up, down] = self.gated(self.share.ffn_cols, load.tokens, DENSE);
            tell(Line::FfnUp, up, None);
            tell(Line::FfnDown, down, None);
            self.ffn_reduce(load.tokens, dense, Costs::sliced, visitor);
        }
        let Some(moe) = &shape.moe else { return };
        let (layers, tokens) = (moe.layers as f64, self.routed(load));
        let mut tell = |line, work, message| visitor.line(line, layers, work, message);
        tell(Line::FfnNorm, self.norm(tokens), None);
        tell(Line::Router, self.router(moe, tokens), None);
        let shared = if self.dispatches() { moe.shared_ffn } else { self.share.shared_cols };
        let [shared_up, shared_down] = self.gated(shared, tokens, SHARED);
        let [up, down] = self.experts(load);
        tell(Line::FfnUp, both(shared_up, up), None);
        tell(Line::FfnDown, both(shared_down, down), None);
        match self.dispatches() {
            true => {
                tell(Line::FfnAllReduce, self.residual(tokens), Some(self.dispatch(moe, tokens)))
            }
            // A slice would run each expert again.
            false => self.ffn_reduce(load.tokens, layers, |_, message| message, visitor),
        }
    }

    /// A token's row to each rank that has some of its experts, and as much back.
    fn dispatch(&self, moe: &MoeShape, tokens: f64) -> Message {
        let ranks = self.share.degrees.ep;
        let copies = moe.top_k.min(ranks) as f64 * (ranks - 1) as f64 / ranks as f64;
        let row = self.model.shape.hidden as f64 * self.model.formats.message;
        let bytes = tokens * copies * row;
        let collective = Collective::AllToAll;
        Message { collective, ranks, stride: 1, calls: 2.0, bytes, received: bytes }
    }

    fn outside(&self, load: &Load, visitor: &mut impl Visitor) {
        if load.wanted == 0.0 {
            return;
        }
        let (shape, formats) = (&self.model.shape, &self.model.formats);
        if self.dispatches() {
            let rows = Some(self.gather_rows(self.share.degrees.dp, 1, load.own_tokens));
            visitor.line(Line::OutAllReduce, 1.0, Work::default(), rows);
        }
        let rows = self.share.vocab_rows;
        let head = self.product(rows, shape.hidden, load.wanted, Part::Head);
        visitor.line(Line::Head, 1.0, both(self.norm(load.wanted), head), None);
        let ranks = self.share.ranks();
        let bytes = load.wanted * rows as f64 * formats.message;
        let message = Message {
            collective: Collective::Gather,
            ranks,
            stride: 1,
            calls: 1.0,
            bytes,
            received: load.wanted * shape.vocab as f64 * formats.message - bytes,
        };
        visitor.line(Line::LogitsGather, 1.0, Work::default(), (ranks > 1).then_some(message));
    }

    /// A product of `rows x cols` weights with `tokens` rows. Kernels read whole granules of rows.
    fn product(&self, rows: usize, cols: usize, tokens: f64, part: Part) -> Work {
        if rows == 0 || cols == 0 || tokens == 0.0 {
            return Work::default();
        }
        Work {
            weight_bytes: padded(rows) as f64 * cols as f64 * self.model.formats.of(part).bytes(),
            part: Some(part),
            ops: 2.0 * rows as f64 * cols as f64 * tokens,
            meets: tokens,
            launches: 1.0,
            ..Work::default()
        }
    }

    fn norm(&self, tokens: f64) -> Work {
        let elements = tokens * self.model.shape.hidden as f64;
        Work { elements, ..by_token(tokens) }
    }

    /// The residual stream takes a phase's result; fused into the norm after it.
    fn residual(&self, tokens: f64) -> Work {
        Work { elements: tokens * self.model.shape.hidden as f64, ..pass(tokens) }
    }

    /// Queries, keys and values of the rank's slice: appendix A's `2 H (Q/TPA) Hsz` without W_O's
    /// half, and `2 H ceil(K/TPA) Hsz`; with a gather a KVP-th of it.
    fn qkv(&self, tokens: f64) -> Work {
        let (share, hidden) = (&self.share, self.model.shape.hidden);
        if let Some(mla) = &self.model.shape.mla {
            return self.latent(mla, tokens);
        }
        let work = self.product(share.qkv_rows, hidden, tokens, Part::Qkv);
        // An attention group that has none of the step's sequences reads nothing.
        let read = if work.launches > 0.0 { share.qkv_rows_read } else { 0 };
        let bytes = self.model.formats.of(Part::Qkv).bytes();
        Work { weight_bytes: read as f64 * hidden as f64 * bytes, ..work }
    }

    /// MLA: the stream is compressed to the latent and, in most models, for queries; the heads'
    /// queries are made of that and absorbed by W_UK.
    fn latent(&self, mla: &MlaShape, tokens: f64) -> Work {
        let (share, shape, part) = (&self.share, &self.model.shape, Part::Qkv);
        if share.q_heads == 0 {
            return Work::default();
        }
        let heads = share.projected_heads;
        let input = mla.q_lora.unwrap_or(shape.hidden);
        let latent = self.product(mla.kv_lora + mla.rope, shape.hidden, tokens, part);
        let compressed = self.product(mla.q_lora.unwrap_or(0), shape.hidden, tokens, part);
        let queries = self.product(heads * shape.q_dim(), input, tokens, part);
        let absorbed = times(self.product(mla.kv_lora, mla.nope, tokens, part), heads as f64);
        // The two that start from the stream are one launch.
        let down = Work { launches: 1.0, ..both(latent, compressed) };
        both(both(down, queries), absorbed)
    }

    /// Rotates, and appends.
    fn rope(&self, tokens: f64) -> Work {
        let shape = &self.model.shape;
        let heads = self.share.q_heads + self.share.kv_heads;
        let elements = tokens * (heads * shape.head_dim) as f64;
        let work = both(by_token(tokens), pass(tokens));
        Work { elements, lines: tokens * self.key_lines(), ..work }
    }

    /// Cache lines that one position's keys lie in: pages hold them dimension by dimension, but
    /// latents row by row.
    fn key_lines(&self) -> f64 {
        match self.model.shape.mla {
            Some(_) => 0.0,
            None => (self.share.kv_heads * self.model.shape.head_dim) as f64,
        }
    }

    /// Elements that attention gives per head: a value, or a latent.
    fn attended(&self) -> usize {
        self.model.shape.mla.map_or(self.model.shape.value_dim, |mla| mla.kv_lora)
    }

    /// Bytes of one position in one layer and KV head: a key and a value, or a latent.
    pub fn position_bytes(&self) -> f64 {
        let (shape, formats) = (&self.model.shape, &self.model.formats);
        let value = if shape.mla.is_some() { 0.0 } else { formats.kv_row(shape.value_dim) };
        formats.kv_row(shape.head_dim) + value
    }

    /// Partial attention over the rank's own tokens: appendix A's `B 2 ceil(K/TPA) Hsz S/KVP`.
    ///
    /// `own` sequences begin with keys that nothing has fetched ahead.
    fn attention(&self, sight: Sight, own: f64) -> Work {
        let (share, shape) = (&self.share, &self.model.shape);
        let per_pair = 2.0 * share.q_heads as f64 * (shape.head_dim + self.attended()) as f64;
        let rows = sight.pairs / sight.tokens.max(1.0);
        Work {
            kv_bytes: sight.tokens * share.kv_heads as f64 * self.position_bytes(),
            ops: sight.pairs * per_pair,
            meets: rows * share.q_heads as f64 / share.kv_heads.max(1) as f64,
            launches: 1.0,
            lines: own.min(sight.tokens) * self.key_lines(),
            parts: own * share.kv_heads as f64,
            ..Work::default()
        }
    }

    fn raises_before(&self) -> bool {
        self.share.degrees.kvp > 1 && self.choices.mla_up == MlaUp::Before
    }

    /// W_UV of `heads` heads.
    fn raise(&self, heads: usize, tokens: f64) -> Work {
        let shape = &self.model.shape;
        let Some(mla) = &shape.mla else { return Work::default() };
        times(self.product(shape.value_dim, mla.kv_lora, tokens, Part::Qkv), heads as f64)
    }

    /// W_UV once for each piece.
    fn raise_before(&self, tokens: f64, pieces: f64) -> Work {
        match self.raises_before() {
            true => again(self.raise(self.share.q_heads, tokens / pieces), pieces),
            false => Work::default(),
        }
    }

    /// An output and its log-sum-exp of every head that another rank keeps: of `B` and `H` alone,
    /// never of the context (the paper's section 2.1.2).
    fn exchange(&self, tokens: f64, pieces: f64) -> Option<Message> {
        let (share, kvp) = (&self.share, self.share.degrees.kvp);
        let width = match self.raises_before() {
            true => self.model.shape.value_dim,
            false => self.attended(),
        };
        let head = tokens / pieces * (width + 1) as f64 * self.model.formats.message;
        (kvp > 1).then_some(Message {
            collective: Collective::AllToAll,
            ranks: kvp,
            stride: 1,
            calls: pieces,
            bytes: share.sent_heads as f64 * head,
            received: (share.kept_heads * (kvp - 1)) as f64 * head,
        })
    }

    fn merge(&self, tokens: f64) -> Work {
        let Share { kept_heads, degrees, .. } = self.share;
        let raised = match self.raises_before() {
            true => Work::default(),
            false => self.raise(kept_heads, tokens),
        };
        let elements = tokens * (kept_heads * self.attended() * degrees.kvp) as f64;
        let launches = if degrees.kvp > 1 { 1.0 } else { 0.0 };
        let merged = Work { elements, launches, ..Work::default() };
        both(raised, both(merged, pass(tokens)))
    }

    /// The output projection of the heads that a rank keeps: a 1/N of it, where the appendix
    /// charges a 1/TPA.
    fn out(&self, tokens: f64) -> Work {
        let (share, shape) = (&self.share, &self.model.shape);
        let cols = match self.choices.formulas {
            Formulas::Corrected => share.out_cols,
            Formulas::PaperAppendix => share.q_heads * shape.value_dim,
        };
        self.product(shape.hidden, cols, tokens, Part::Out)
    }

    /// Gate and up, and down, of `cols` columns that every token goes through.
    fn gated(&self, cols: usize, tokens: f64, [up, down]: [Part; 2]) -> [Work; 2] {
        let hidden = self.model.shape.hidden;
        let half = self.product(cols, hidden, tokens, up);
        let up = Work { launches: half.launches, ..both(half, half) };
        let activated = Work { elements: tokens * cols as f64, ..Work::default() };
        [up, both(activated, self.product(hidden, cols, tokens, down))]
    }

    /// The experts that some token goes to, each read once.
    fn experts(&self, load: &Load) -> [Work; 2] {
        let Load { experts, expert_rows, .. } = *load;
        if experts == 0.0 {
            return [Work::default(); 2];
        }
        let each = self.gated(self.share.expert_cols, expert_rows / experts, EXPERTS);
        // Their rows are gathered before, and combined after.
        each.map(|work| both(pass(expert_rows), times(work, experts)))
    }

    fn router(&self, moe: &MoeShape, tokens: f64) -> Work {
        if !self.share.in_ffn || self.share.experts == 0 {
            return Work::default();
        }
        self.product(moe.experts, self.model.shape.hidden, tokens, Part::Router)
    }

    /// The sum of the FFN's results, each of whose messages is sent as `cut` has it.
    fn ffn_reduce(
        &self,
        tokens: f64,
        layers: f64,
        cut: fn(&Self, Message) -> Message,
        visitor: &mut impl Visitor,
    ) {
        let share = &self.share;
        let (tpf, ep) = (share.degrees.tpf, share.degrees.ep);
        let grid = self.choices.ffn_reduce == FfnReduce::Grid
            && tpf > 1
            && ep > 1
            && share.strategy != Strategy::Medha;
        let residual = self.residual(tokens);
        let mut tell = |work, message| visitor.line(Line::FfnAllReduce, layers, work, message);
        let reduce =
            |ranks, stride| self.reduce(ranks, stride, tokens).map(|message| cut(self, message));
        if !grid {
            return tell(residual, reduce(share.ranks(), 1));
        }
        tell(Work::default(), reduce(tpf, 1));
        tell(residual, reduce(ep, tpf));
    }

    /// A sum over ranks in slices of the rows of the matrix that it follows.
    fn sliced(&self, message: Message) -> Message {
        let slices = self.choices.slices.min(self.model.shape.hidden.div_ceil(ROW_GRANULE)) as f64;
        let (bytes, received) = (message.bytes / slices, message.received / slices);
        Message { calls: slices, bytes, received, ..message }
    }

    /// An all-reduce of rows of the stream over `ranks` ranks.
    fn reduce(&self, ranks: usize, stride: usize, tokens: f64) -> Option<Message> {
        let bytes = tokens * self.model.shape.hidden as f64 * self.model.formats.message;
        let collective = Collective::AllReduce;
        let message = Message { collective, ranks, stride, calls: 1.0, bytes, received: bytes };
        (ranks > 1).then_some(message)
    }

    /// Every attention group's rows come to all ranks.
    fn gather_rows(&self, ranks: usize, stride: usize, own: f64) -> Message {
        let bytes = own * self.model.shape.hidden as f64 * self.model.formats.message;
        let received = bytes * (ranks - 1) as f64;
        let collective = Collective::AllGather;
        Message { collective, ranks, stride, calls: 1.0, bytes, received }
    }
}

/// Gate and up, and down.
const DENSE: [Part; 2] = [Part::FfnUp, Part::FfnDown];
const SHARED: [Part; 2] = [Part::SharedUp, Part::SharedDown];
const EXPERTS: [Part; 2] = [Part::ExpertUp, Part::ExpertDown];

/// Tokens below which a line that goes token by token is too small to fork: the engine's
/// `lanes.rs`.
const FEW_TOKENS: f64 = 4.0;

/// An operation that goes token by token.
fn by_token(tokens: f64) -> Work {
    let alone = if tokens < FEW_TOKENS { 1.0 } else { 0.0 };
    Work { launches: 1.0, alone, ..Work::default() }
}

/// One that a device fuses with its neighbours.
fn pass(tokens: f64) -> Work {
    Work { launches: 0.0, passes: 1.0, ..by_token(tokens) }
}

/// Whether attention groups are single ranks with whole experts.
pub(crate) fn can_dispatch(shape: &ModelShape, degrees: &Degrees) -> bool {
    let &Degrees { kvp, tpa, dp, tpf, .. } = degrees;
    shape.moe.is_some() && dp > 1 && kvp * tpa == 1 && tpf == 1
}

#[cfg(test)]
mod tests;
