//! Which experts a token goes to, and with what weights.
//!
//! One rule with a few settings covers the open mixtures: Mixtral, gpt-oss ([`Scoring`]
//! `SoftmaxAfterTopK`), Qwen 3 and DeepSeek-V2 (`Softmax`, the latter with [`Groups`] by their
//! largest score), DeepSeek-V3 (arXiv 2412.19437: `Sigmoid`, a bias that takes part in the choice
//! alone, groups by the sum of their two largest). The same bits on every instruction set, so that
//! ranks that route the same logits agree.

use thiserror::Error;

use crate::arch::lanes::{Kernel, LANES, Lanes, dispatch, exp};

/// The most experts that a layer may have.
pub const MAX_EXPERTS: usize = 1024;

/// How a token's experts follow from its logits.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Routing {
    /// What a logit becomes.
    pub scoring: Scoring,
    /// Experts of a token.
    pub top_k: usize,
    /// Whether weights are divided by their sum. Those of `SoftmaxAfterTopK` sum to 1 as they are.
    pub normalise: bool,
    /// What weights are multiplied by in the end.
    pub scale: f32,
    /// Groups of experts to choose from first.
    pub groups: Option<Groups>,
}

/// What a logit becomes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Scoring {
    /// Its share of `e^logit` over all experts.
    Softmax,
    /// Itself in the choice; its share of `e^logit` over the chosen experts as a weight.
    SoftmaxAfterTopK,
    /// `1/(1 + e^−logit)`.
    Sigmoid,
}

/// Groups of consecutive experts, of which a token's experts come from the best few.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Groups {
    /// Groups of equal size that all experts make.
    pub count: usize,
    /// How many of them are chosen from.
    pub kept: usize,
    /// What groups are compared by.
    pub by: GroupScore,
}

/// What groups are compared by.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum GroupScore {
    /// Their best expert's score.
    Max,
    /// The sum of their two best experts' scores.
    SumOfTop2,
}

/// An expert of a token.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Choice {
    /// Its index in the layer.
    pub expert: u32,
    /// What its output is multiplied by.
    pub weight: f32,
}

/// Why a rule cannot route.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum RoutingError {
    /// No experts, or more than fit.
    #[error("a layer of {0} experts cannot be routed: it must have 1 to {MAX_EXPERTS}")]
    Experts(usize),
    /// No choice, or more choices than experts.
    #[error("{top_k} of {experts} experts per token: must be 1 to {experts}")]
    TopK {
        /// Asked for.
        top_k: usize,
        /// There are, or are in the groups that are kept.
        experts: usize,
    },
    /// Groups that do not share out the experts, or of which too few or too many are kept.
    #[error(
        "{experts} experts in {count} groups, of which {kept} are kept: groups must be equal \
             and at least one of them kept"
    )]
    Groups {
        /// There are.
        experts: usize,
        /// Asked for.
        count: usize,
        /// Asked for.
        kept: usize,
    },
}

impl Routing {
    /// Whether a layer of `experts` can be routed like this.
    ///
    /// # Errors
    /// With the numbers that do not fit.
    pub fn check(&self, experts: usize) -> Result<(), RoutingError> {
        if !(1..=MAX_EXPERTS).contains(&experts) {
            return Err(RoutingError::Experts(experts));
        }
        let mut open = experts;
        if let Some(Groups { count, kept, .. }) = self.groups {
            if count == 0 || !experts.is_multiple_of(count) || !(1..=count).contains(&kept) {
                return Err(RoutingError::Groups { experts, count, kept });
            }
            open = experts / count * kept;
        }
        if !(1..=open).contains(&self.top_k) {
            return Err(RoutingError::TopK { top_k: self.top_k, experts: open });
        }
        Ok(())
    }
}

/// The experts of one token, in ascending order, with their weights.
///
/// Shapes: `out [top_k]`, `logits [experts]`, `bias [experts]`, which is added to scores for the
/// choice alone. Experts outside the kept groups are never chosen. Of equals the lower expert is
/// preferred, and so is the lower group. A NaN is preferred to all, so that it shows in the token's
/// output. Weights are summed in ascending order of experts, softmax over all experts in the lanes'
/// order: element `i` in sum `i mod 16`, which are then added by halves.
///
/// # Panics
/// When lengths differ or [`Routing::check`] refuses.
pub fn route(logits: &[f32], bias: Option<&[f32]>, rule: &Routing, out: &mut [Choice]) {
    let experts = logits.len();
    rule.check(experts).unwrap_or_else(|error| panic!("route: {error}"));
    assert_eq!(out.len(), rule.top_k, "route: choices");
    assert!(bias.is_none_or(|bias| bias.len() == experts), "route: bias against logits");
    let (mut scores, mut keys) = ([0.0; MAX_EXPERTS], [0.0; MAX_EXPERTS]);
    let (scores, keys) = (&mut scores[..experts], &mut keys[..experts]);
    dispatch(Score { scores: &mut *scores, logits, scoring: rule.scoring });
    // Scores rise with logits, but may be equal where those differ.
    keys.copy_from_slice(if bias.is_some() { &*scores } else { logits });
    bias.into_iter().flatten().zip(&mut *keys).for_each(|(bias, key)| *key += bias);

    let mut open = [true; MAX_EXPERTS];
    let open = &mut open[..experts];
    if let Some(groups) = &rule.groups {
        keep_groups(groups, scores, bias, keys, open);
    }
    for choice in &mut *out {
        let expert = best(keys, open).expect("checked: there are as many experts");
        open[expert] = false;
        *choice = Choice { expert: expert as u32, weight: scores[expert] };
    }
    out.sort_unstable_by_key(|choice| choice.expert);
    weigh(rule, logits, out);
}

/// The best of those that are open; of equals the first.
fn best(keys: &[f32], open: &[bool]) -> Option<usize> {
    let better = |a: f32, b: f32| a > b || (a.is_nan() && !b.is_nan());
    let mut best: Option<usize> = None;
    for i in (0..keys.len()).filter(|&i| open[i]) {
        if best.is_none_or(|b| better(keys[i], keys[b])) {
            best = Some(i);
        }
    }
    best
}

/// Closes the experts of all groups but the best.
fn keep_groups(
    groups: &Groups,
    scores: &[f32],
    bias: Option<&[f32]>,
    keys: &[f32],
    open: &mut [bool],
) {
    let size = keys.len() / groups.count;
    let mut totals = [0.0; MAX_EXPERTS];
    for (group, total) in totals[..groups.count].iter_mut().enumerate() {
        let first = group * size;
        let keys = &keys[first..first + size];
        let mut rest = [true; MAX_EXPERTS];
        let mut take = || {
            let i = best(keys, &rest[..size])?;
            rest[i] = false;
            Some(first + i)
        };
        let value = |i: usize| scores[i] + bias.map_or(0.0, |bias| bias[i]);
        *total = match (groups.by, take()) {
            (GroupScore::Max, Some(i)) => keys[i - first],
            (GroupScore::SumOfTop2, Some(i)) => value(i) + take().map_or(0.0, value),
            (_, None) => unreachable!("groups have experts"),
        };
    }
    let mut kept = [true; MAX_EXPERTS];
    for _ in 0..groups.kept {
        let group = best(&totals[..groups.count], &kept).expect("checked: no more than there are");
        kept[group] = false;
    }
    for (i, open) in open.iter_mut().enumerate() {
        *open = !kept[i / size];
    }
}

/// From scores to weights.
fn weigh(rule: &Routing, logits: &[f32], out: &mut [Choice]) {
    if rule.scoring == Scoring::SoftmaxAfterTopK {
        let (mut chosen, mut weights) = ([0.0; MAX_EXPERTS], [0.0; MAX_EXPERTS]);
        for (logit, choice) in chosen.iter_mut().zip(&*out) {
            *logit = logits[choice.expert as usize];
        }
        let scores = &mut weights[..out.len()];
        dispatch(Score { scores, logits: &chosen[..out.len()], scoring: Scoring::Softmax });
        out.iter_mut().zip(&*scores).for_each(|(choice, weight)| choice.weight = *weight);
    } else if rule.normalise {
        // As transformers has it for sigmoids, which may all be next to nothing.
        let least = if rule.scoring == Scoring::Sigmoid { 1e-20 } else { 0.0 };
        let sum = out.iter().map(|choice| choice.weight).sum::<f32>() + least;
        out.iter_mut().for_each(|choice| choice.weight /= sum);
    }
    out.iter_mut().for_each(|choice| choice.weight *= rule.scale);
}

/// Scores of logits.
struct Score<'a> {
    scores: &'a mut [f32],
    logits: &'a [f32],
    scoring: Scoring,
}

impl Kernel for Score<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Lanes>(self, s: S) {
        match self.scoring {
            Scoring::Softmax => softmax(s, self.scores, self.logits),
            // Weights come from the logits of the chosen.
            Scoring::SoftmaxAfterTopK => self.scores.copy_from_slice(self.logits),
            Scoring::Sigmoid => each(s, self.scores, self.logits, |x| {
                let one = s.splat(1.0);
                s.div(one, s.add(one, exp(s, s.sub(s.splat(0.0), x))))
            }),
        }
    }
}

/// A function of every element.
#[inline(always)]
fn each<S: Lanes>(s: S, to: &mut [f32], from: &[f32], f: impl Fn(S::F) -> S::F) {
    for (to, from) in to.chunks_mut(LANES).zip(from.chunks(LANES)) {
        let mut lanes = [0.0; LANES];
        lanes[..from.len()].copy_from_slice(from);
        s.store(f(s.load(&lanes)), &mut lanes);
        to.copy_from_slice(&lanes[..to.len()]);
    }
}

#[inline(always)]
fn softmax<S: Lanes>(s: S, to: &mut [f32], from: &[f32]) {
    let top = from.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    each(s, to, from, |x| exp(s, s.sub(x, s.splat(top))));
    let mut sums = s.splat(0.0);
    for part in to.chunks(LANES) {
        let mut lanes = [0.0; LANES];
        lanes[..part.len()].copy_from_slice(part);
        sums = s.add(sums, s.load(&lanes));
    }
    let sum = s.splat(s.sum(sums));
    for part in to.chunks_mut(LANES) {
        let mut lanes = [0.0; LANES];
        lanes[..part.len()].copy_from_slice(part);
        s.store(s.div(s.load(&lanes), sum), &mut lanes);
        part.copy_from_slice(&lanes[..part.len()]);
    }
}

#[cfg(test)]
mod tests;
