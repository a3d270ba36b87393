//! What a step brings to one rank: rows, visible tokens, experts.

use helix_layout::{Layout, Rank};
use helix_scheduler::Step;

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
            Sight { tokens, pairs: tokens }
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

    /// What `step` brings to `rank`, exactly; which experts its tokens go to is the caller's to
    /// say.
    pub fn of(model: &Model, layout: &Layout, rank: Rank, step: &Step, routing: Routing) -> Load {
        let mut load =
            Load { experts: routing.experts, expert_rows: routing.rows, ..Load::default() };
        let kvp = layout.attention(rank).kvp;
        for run in &step.runs {
            load.tokens += run.len as f64;
            load.wanted += run.wanted_rows() as f64;
            if !layout.attends(rank, run.slot) {
                continue;
            }
            load.own_tokens += run.len as f64;
            let end = layout.owned_before(kvp, run.start + run.len);
            let sees = |sight: &mut Sight, positions: usize| {
                let first =
                    |at: usize| layout.owned_before(kvp, (at + 1).saturating_sub(positions));
                sight.tokens += (end - first(run.start)) as f64;
                let seen = (run.start..run.start + run.len)
                    .map(|at| layout.owned_before(kvp, at + 1) - first(at));
                sight.pairs += seen.sum::<usize>() as f64;
            };
            sees(&mut load.full, usize::MAX);
            if let Some(window) = model.window {
                sees(&mut load.window, window.positions);
            }
        }
        load
    }
}
