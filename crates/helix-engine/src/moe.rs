//! A mixture of experts: every rank routes every token, and runs the tokens of its own experts.
//!
//! Tokens are grouped by expert, so that an expert's weights are read once in a step however many
//! tokens it has, and not at all if it has none. No token is dropped. A token's experts are added
//! in ascending order, so what it gets does not depend on what else is in the batch.

use crate::counters::Line;
use crate::ffn::{FfnBuffers, Work};
use crate::lanes::Lanes;
use helix_kernels::elementwise::add_in_place;
use helix_kernels::router::{Choice, Routing, route};
use helix_kernels::{Activations, Forms, Matrix, SharedRows};
use helix_layout::{Layout, Rank};
use helix_model::config::Moe;
use helix_model::{ExpertWeights, MoeWeights};
use std::ops::Range;

/// What a rank knows of its experts; made once.
pub(crate) struct MoePlan {
    routing: Routing,
    /// Experts of a layer, whoever holds them.
    all: usize,
    /// Those of this rank's group.
    own: Range<usize>,
    /// This rank's columns of each of them.
    pub(crate) cols: usize,
    /// Its columns of the experts that every token goes to.
    pub(crate) shared: usize,
}

/// The layer's buffers, sized once. A row is a token of one of this rank's experts; rows are
/// grouped by expert.
pub(crate) struct MoeBuffers {
    /// `[tokens, experts]`
    logits: Vec<f32>,
    /// `[tokens, top_k]`
    choices: Vec<Choice>,
    /// For each choice its row; of other ranks' experts none.
    rows: Vec<Option<u32>>,
    /// The token of each row.
    tokens: Vec<u32>,
    /// Where each expert's rows end.
    ends: Vec<usize>,
    input: Activations,
    /// `[rows, hidden]`: what experts make of their tokens.
    out: Vec<f32>,
}

impl MoePlan {
    pub(crate) fn new(moe: &Moe, layout: &Layout, rank: Rank) -> MoePlan {
        MoePlan {
            routing: moe.routing,
            all: moe.experts,
            own: layout.experts(rank),
            cols: layout.expert_cols(rank).len(),
            shared: layout.shared_cols(rank).len(),
        }
    }

    /// Experts of a token, on this rank at most.
    pub(crate) fn top_k(&self) -> usize {
        self.routing.top_k
    }

    pub(crate) fn buffers(&self, tokens: usize, hidden: usize, forms: Forms) -> MoeBuffers {
        let choices = tokens * self.top_k();
        let rows = tokens * self.top_k().min(self.own.len());
        MoeBuffers {
            logits: vec![0.0; tokens * self.all],
            choices: vec![Choice::default(); choices],
            rows: vec![None; choices],
            tokens: vec![0; rows],
            ends: Vec::with_capacity(self.own.len()),
            input: Activations::new(rows, hidden, forms),
            out: vec![0.0; rows * hidden],
        }
    }

    /// Chooses each token's experts and groups the tokens of this rank's.
    pub(crate) fn route(&self, work: &mut Work<'_>, w: &MoeWeights, buffers: &mut MoeBuffers) {
        let MoeBuffers { logits, choices, rows, tokens, ends, .. } = buffers;
        ends.clear();
        if w.router.rows() == 0 || self.own.is_empty() {
            return;
        }
        let count = work.input.tokens();
        work.project(logits, work.input, &[&w.router]);
        let logits = &mut logits[..count * self.all];
        if let Some(bias) = &w.router_bias {
            logits.chunks_exact_mut(self.all).for_each(|row| add_in_place(row, bias));
        }
        let choices = &mut choices[..count * self.top_k()];
        let shared = SharedRows::new(&mut *choices, self.top_k());
        let (logits, selection) = (&*logits, w.selection_bias.as_deref());
        work.lanes.by_token(count, |_| {
            while let Some((token, choices)) = shared.next() {
                route(&logits[token * self.all..][..self.all], selection, &self.routing, choices);
            }
        });
        self.group(choices, rows, tokens, ends);
    }

    /// Gives every choice of one of this rank's experts a row, expert by expert, tokens ascending.
    fn group(
        &self,
        choices: &[Choice],
        rows: &mut [Option<u32>],
        tokens: &mut [u32],
        ends: &mut Vec<usize>,
    ) {
        let index = |choice: &Choice| (choice.expert as usize).wrapping_sub(self.own.start);
        ends.resize(self.own.len(), 0);
        for choice in choices {
            if let Some(count) = ends.get_mut(index(choice)) {
                *count += 1;
            }
        }
        let mut next = 0;
        for end in ends.iter_mut() {
            // Where the expert's rows start, until they are given out.
            next += std::mem::replace(end, next);
        }
        for (at, (choice, row)) in choices.iter().zip(rows).enumerate() {
            *row = ends.get_mut(index(choice)).map(|end| {
                tokens[*end] = (at / self.top_k()) as u32;
                *end += 1;
                (*end - 1) as u32
            });
        }
    }

    /// Adds this rank's part of the chosen experts to `y [tokens, hidden]`.
    pub(crate) fn experts(
        &self,
        work: &mut Work<'_>,
        w: &MoeWeights,
        y: &mut [f32],
        moe: &mut MoeBuffers,
        ffn: &mut FfnBuffers,
    ) {
        let count = moe.ends.last().copied().unwrap_or(0);
        if count == 0 {
            return;
        }
        let hidden = work.plan.hidden;
        gather(work.lanes, &mut moe.input, work.input, &moe.tokens[..count]);
        for (expert, rows) in active(&w.experts, &moe.ends) {
            let out = &mut ffn.gate_up[rows.start * 2 * self.cols..rows.end * 2 * self.cols];
            let matrices: [&Matrix; 2] = [&expert.gate, &expert.up];
            work.project(out, moe.input.rows(rows), &matrices);
            for row in out.chunks_exact_mut((2 * self.cols).max(1)) {
                let (gate, up) = row.split_at_mut(self.cols);
                for (to, bias) in [(gate, &expert.gate_bias), (up, &expert.up_bias)] {
                    bias.iter().for_each(|bias| add_in_place(to, bias));
                }
            }
        }
        work.lap(Line::FfnUp);
        work.activate(&mut ffn.activated, &ffn.gate_up, count, self.cols);
        for (expert, rows) in active(&w.experts, &moe.ends) {
            let out = &mut moe.out[rows.start * hidden..rows.end * hidden];
            if self.cols == 0 {
                out.fill(0.0);
            } else {
                work.project(out, ffn.activated.rows(rows), &[&expert.down]);
            }
            for row in out.chunks_exact_mut(hidden) {
                expert.down_bias.iter().for_each(|bias| add_in_place(row, bias));
            }
        }
        self.combine(work.lanes, moe, y, hidden);
        work.lap(Line::FfnDown);
    }

    /// Adds to each token what its experts on this rank made of it, weighted.
    fn combine(&self, lanes: &mut Lanes, moe: &MoeBuffers, y: &mut [f32], hidden: usize) {
        let tokens = SharedRows::new(&mut *y, hidden);
        lanes.by_token(moe.ends.last().copied().unwrap_or(0), |_| {
            while let Some((token, y)) = tokens.next() {
                let choices = token * self.top_k()..(token + 1) * self.top_k();
                let rows = moe.rows[choices.clone()].iter().zip(&moe.choices[choices]);
                for (row, choice) in rows {
                    let Some(row) = *row else { continue };
                    let out = &moe.out[row as usize * hidden..][..hidden];
                    y.iter_mut().zip(out).for_each(|(y, out)| *y += choice.weight * out);
                }
            }
        });
    }
}

/// The experts that have rows, with them.
fn active<'a>(
    experts: &'a [ExpertWeights],
    ends: &'a [usize],
) -> impl Iterator<Item = (&'a ExpertWeights, Range<usize>)> {
    let starts = std::iter::once(0).chain(ends.iter().copied());
    let rows = starts.zip(ends).map(|(start, &end)| start..end);
    experts.iter().zip(rows).filter(|(_, rows)| !rows.is_empty())
}

/// Copies the rows of tokens, on all threads.
fn gather(lanes: &mut Lanes, out: &mut Activations, from: &Activations, tokens: &[u32]) {
    let rows = out.fill(tokens.len(), from.cols());
    lanes.by_token(tokens.len(), |_| {
        while let Some(row) = rows.next() {
            let token = tokens[row.token()] as usize;
            row.copy(from.rows(token..token + 1));
        }
    });
}
