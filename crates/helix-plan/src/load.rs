//! What a step brings to one rank: rows, visible tokens, experts.

use helix_layout::{Layout, Rank, pieces};
use helix_scheduler::{Run, Step};

use crate::{Model, Share};

/// What a step brings to one rank. Counts are numbers of things, and means where they are expected
/// values.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Load {
    /// Rows of the residual stream: all tokens of the step.
    pub tokens: f64,
    /// Those whose attention is this rank's.
    pub own_tokens: f64,
    /// What its attention sees in layers that see everything.
    pub full: Sight,
    /// What it sees in layers with a window.
    pub window: Sight,
    /// Rows of logits.
    pub wanted: f64,
    /// Distinct experts of the rank's group that some token goes to.
    pub experts: f64,
    /// Pairs of a token and an expert of the rank's group.
    pub expert_rows: f64,
}

/// What attention sees, on one rank.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Sight {
    /// Tokens of its own shard that are read, each run's once.
    pub tokens: f64,
    /// Pairs of a query token and a token that it sees.
    pub pairs: f64,
    /// Pieces that its outputs are exchanged in: what units there are may make fewer than asked for.
    pub pieces: f64,
}

/// Which experts tokens go to.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Routing {
    /// Distinct experts of the group that has most of them.
    pub experts: f64,
    /// Pairs of a token and one of its experts, of the group that has most.
    pub rows: f64,
}

impl Load {
    /// One token of each of `batch` sequences whose queries see `context` positions, their own
    /// included; every row of logits is wanted.
    pub fn decode(
        model: &Model,
        share: &Share,
        batch: usize,
        context: usize,
        routing: Routing,
    ) -> Load {
        let own = share.own_sequences(batch) as f64;
        let sight = |positions: usize| {
            // A window slides over the blocks: its most crowded place counts.
            let tokens = own * share.local(positions.min(context)) as f64;
            Sight { tokens, pairs: tokens, pieces: 1.0 }
        };
        Load {
            tokens: batch as f64,
            own_tokens: own,
            full: sight(context),
            window: model.window.map_or(Sight::default(), |window| sight(window.positions)),
            wanted: batch as f64,
            experts: routing.experts,
            expert_rows: routing.rows,
        }
    }

    /// What `step` brings to `rank`, exactly, where outputs are exchanged in `pieces` pieces at most;
    /// which experts its tokens go to is the caller's to say.
    pub fn of(
        model: &Model,
        layout: &Layout,
        rank: Rank,
        step: &Step,
        routing: Routing,
        pieces: usize,
    ) -> Load {
        let mut load =
            Load { experts: routing.experts, expert_rows: routing.rows, ..Load::default() };
        let of_rank = |run: &&Run| layout.attends(rank, run.slot);
        let own: Vec<&Run> = step.runs.iter().filter(of_rank).collect();
        for run in &step.runs {
            load.tokens += run.len as f64;
            load.wanted += run.wanted_rows() as f64;
        }
        load.own_tokens = own.iter().map(|run| run.len as f64).sum();
        let of = Sighted { layout, rank, runs: &own, pieces };
        load.full = of.sight(None);
        load.window =
            model.window.map_or(Sight::default(), |window| of.sight(Some(window.positions)));
        load
    }
}

/// Runs whose attention is a rank's.
struct Sighted<'a> {
    layout: &'a Layout,
    rank: Rank,
    runs: &'a [&'a Run],
    pieces: usize,
}

impl Sighted<'_> {
    /// What layers see that see everything, or a window.
    fn sight(&self, window: Option<usize>) -> Sight {
        let kvp = self.layout.attention(self.rank).kvp;
        let before = |len| self.layout.owned_before(kvp, len);
        let first = |at| before(pieces::hidden_before(window, at));
        let mut sight = Sight { pieces: self.pieces(window) as f64, ..Sight::default() };
        for run in self.runs {
            let end = run.start + run.len;
            sight.tokens += (before(end) - first(run.start)) as f64;
            let seen = (run.start..end).map(|at| before(at + 1) - first(at));
            sight.pairs += seen.sum::<usize>() as f64;
        }
        sight
    }

    /// Pieces that units make: a run's rows of a KV head each.
    fn pieces(&self, window: Option<usize>) -> usize {
        if self.pieces == 1 || self.layout.degrees().kvp == 1 {
            return 1;
        }
        let kv_heads = self.layout.kv_heads(self.rank).len();
        let group = self.layout.q_heads(self.rank).len() / kv_heads.max(1);
        let cost = |run: &&Run| pieces::cost(run.start..run.start + run.len, window, group);
        let of_run = |run: &&Run| std::iter::repeat_n(cost(run), kv_heads);
        let costs: Vec<u64> = self.runs.iter().flat_map(of_run).collect();
        let mut ends = Vec::new();
        pieces::cut(&mut ends, &costs, self.pieces);
        ends.len()
    }
}
