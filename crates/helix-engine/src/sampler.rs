//! From a row of logits to a token.
//!
//! The order is llama.cpp's: penalties, top-k, top-p, min-p, temperature, draw. Ties go to the
//! lower token id, so a seed names one text on every machine.

use rand_core::{Rng, SeedableRng};
use rand_pcg::Pcg64;
use std::collections::VecDeque;

/// How a token is drawn. The default is greedy.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct SamplerOptions {
    /// Logits are divided by it before the draw; 0 takes the most likely token.
    pub temperature: f32,
    /// Only the `top_k` most likely tokens; 0 for all.
    pub top_k: usize,
    /// Only the fewest tokens whose probabilities reach `top_p`; 1 for all.
    pub top_p: f32,
    /// Only tokens at least `min_p` times as likely as the likeliest; 0 for all.
    pub min_p: f32,
    /// Divides positive and multiplies negative logits of recent tokens (CTRL, arXiv 1909.05858);
    /// 1 for none.
    pub repetition_penalty: f32,
    /// Subtracted from the logit of every recent token; 0 for none.
    pub presence_penalty: f32,
    /// Subtracted once for each time a token is among the recent ones; 0 for none.
    pub frequency_penalty: f32,
    /// How many tokens are recent.
    pub penalty_window: usize,
    /// Where the random numbers start.
    pub seed: u64,
}

impl Default for SamplerOptions {
    fn default() -> Self {
        Self {
            temperature: 0.0,
            top_k: 0,
            top_p: 1.0,
            min_p: 0.0,
            repetition_penalty: 1.0,
            presence_penalty: 0.0,
            frequency_penalty: 0.0,
            penalty_window: 64,
            seed: 0,
        }
    }
}

/// Why no token can be drawn.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub enum SamplerError {
    /// An option outside its range.
    #[error("{name} is {value}: it must be {range}")]
    Option {
        /// The option's name.
        name: &'static str,
        /// What it was.
        value: f32,
        /// What it may be.
        range: &'static str,
    },
    /// The model computed something that is no number.
    #[error("the logit of token {token} is {value}: the model's weights or cache are damaged")]
    NotFinite {
        /// The first such token.
        token: usize,
        /// Its logit.
        value: f32,
    },
}

impl SamplerOptions {
    /// # Errors
    /// The first option that is out of its range.
    pub fn validate(&self) -> Result<(), SamplerError> {
        let checks = [
            ("temperature", self.temperature, 0.0..=100.0, "from 0 to 100"),
            ("top-p", self.top_p, f32::MIN_POSITIVE..=1.0, "above 0 and at most 1"),
            ("min-p", self.min_p, 0.0..=1.0, "from 0 to 1"),
            ("repetition penalty", self.repetition_penalty, 0.01..=100.0, "from 0.01 to 100"),
            ("presence penalty", self.presence_penalty, -100.0..=100.0, "from -100 to 100"),
            ("frequency penalty", self.frequency_penalty, -100.0..=100.0, "from -100 to 100"),
        ];
        for (name, value, allowed, range) in checks {
            if !allowed.contains(&value) {
                return Err(SamplerError::Option { name, value, range });
            }
        }
        Ok(())
    }

    fn penalises(&self) -> bool {
        self.repetition_penalty != 1.0
            || self.presence_penalty != 0.0
            || self.frequency_penalty != 0.0
    }
}

/// Draws the tokens of one sequence. Allocates only when made.
pub struct Sampler {
    options: SamplerOptions,
    random: Pcg64,
    recent: VecDeque<u32>,
    /// How often each token is among the recent ones; empty without penalties.
    counts: Vec<u32>,
    candidates: Vec<Candidate>,
}

#[derive(Clone, Copy, Debug)]
struct Candidate {
    token: u32,
    logit: f32,
    weight: f32,
}

impl Sampler {
    /// A sampler for logits of `vocab` tokens.
    ///
    /// # Errors
    /// An option is out of its range.
    pub fn new(options: SamplerOptions, vocab: usize) -> Result<Sampler, SamplerError> {
        options.validate()?;
        let window = if options.penalises() { options.penalty_window } else { 0 };
        Ok(Sampler {
            options,
            random: Pcg64::seed_from_u64(options.seed),
            recent: VecDeque::with_capacity(window.min(1 << 20) + 1),
            counts: if window > 0 { vec![0; vocab] } else { Vec::new() },
            candidates: Vec::with_capacity(if options.temperature > 0.0 { vocab } else { 0 }),
        })
    }

    /// Tells the sampler of a token in the text: a prompt's, or one that it drew.
    pub fn accept(&mut self, token: u32) {
        if self.counts.is_empty() {
            return;
        }
        if let Some(count) = self.counts.get_mut(token as usize) {
            *count += 1;
            self.recent.push_back(token);
        }
        if self.recent.len() > self.options.penalty_window {
            let oldest = self.recent.pop_front().expect("the window holds a token");
            self.counts[oldest as usize] -= 1;
        }
    }

    /// Draws a token from `logits [vocab]`, which the penalties change in place.
    ///
    /// # Errors
    /// A logit is NaN or infinite.
    pub fn sample(&mut self, logits: &mut [f32]) -> Result<u32, SamplerError> {
        if let Some(token) = logits.iter().position(|logit| !logit.is_finite()) {
            return Err(SamplerError::NotFinite { token, value: logits[token] });
        }
        self.penalise(logits);
        if self.options.temperature == 0.0 {
            return Ok(greedy(logits));
        }
        self.keep_likeliest(logits);
        self.keep_probable();
        Ok(self.draw())
    }

    fn penalise(&mut self, logits: &mut [f32]) {
        let options = &self.options;
        // A token's second and later appearances find it penalised already: marked by its count's
        // top bit until all are done.
        const DONE: u32 = 1 << 31;
        for &token in &self.recent {
            let count = &mut self.counts[token as usize];
            if *count & DONE != 0 {
                continue;
            }
            let logit = &mut logits[token as usize];
            let factor = options.repetition_penalty;
            *logit = if *logit > 0.0 { *logit / factor } else { *logit * factor };
            *logit -= options.presence_penalty + options.frequency_penalty * *count as f32;
            *count |= DONE;
        }
        for &token in &self.recent {
            self.counts[token as usize] &= !DONE;
        }
    }

    /// Top-k: the candidates, likeliest first when a later stage needs them so.
    fn keep_likeliest(&mut self, logits: &[f32]) {
        let candidates = &mut self.candidates;
        candidates.clear();
        candidates.extend(logits.iter().enumerate().map(|(token, &logit)| Candidate {
            token: token as u32,
            logit,
            weight: 0.0,
        }));
        let likeliest =
            |a: &Candidate, b: &Candidate| b.logit.total_cmp(&a.logit).then(a.token.cmp(&b.token));
        let k = self.options.top_k;
        if (1..candidates.len()).contains(&k) {
            candidates.select_nth_unstable_by(k - 1, likeliest);
            candidates.truncate(k);
        }
        candidates.sort_unstable_by(likeliest);
    }

    /// Top-p, then min-p, over softmax weights relative to the likeliest.
    fn keep_probable(&mut self) {
        let candidates = &mut self.candidates;
        let max = candidates[0].logit;
        candidates.iter_mut().for_each(|c| c.weight = (c.logit - max).exp());
        if self.options.top_p < 1.0 {
            let enough = self.options.top_p * candidates.iter().map(|c| c.weight).sum::<f32>();
            let mut sum = 0.0;
            let kept = candidates.iter().take_while(|c| {
                let more = sum < enough;
                sum += c.weight;
                more
            });
            let kept = kept.count().max(1);
            candidates.truncate(kept);
        }
        let kept = candidates.partition_point(|c| c.weight >= self.options.min_p);
        candidates.truncate(kept.max(1));
    }

    fn draw(&mut self) -> u32 {
        let candidates = &mut self.candidates;
        let max = candidates[0].logit;
        let mut total = 0.0;
        for c in candidates.iter_mut() {
            total += ((c.logit - max) / self.options.temperature).exp();
            c.weight = total;
        }
        // 24 random bits make an f32 in [0, 1) exactly.
        let point = (self.random.next_u32() >> 8) as f32 / (1 << 24) as f32 * total;
        let index = candidates.partition_point(|c| c.weight <= point);
        candidates[index.min(candidates.len() - 1)].token
    }
}

/// The token with the largest logit; the lowest id among equals.
pub fn greedy(logits: &[f32]) -> u32 {
    let mut best = 0;
    for (token, logit) in logits.iter().enumerate() {
        if *logit > logits[best] {
            best = token;
        }
    }
    best as u32
}

#[cfg(test)]
mod tests {
    use super::*;

    fn drawn(options: SamplerOptions, logits: &[f32], n: usize) -> Vec<u32> {
        let mut sampler = Sampler::new(options, logits.len()).unwrap();
        (0..n).map(|_| sampler.sample(&mut logits.to_vec()).unwrap()).collect()
    }

    fn share(tokens: &[u32], token: u32) -> f32 {
        tokens.iter().filter(|&&t| t == token).count() as f32 / tokens.len() as f32
    }

    #[test]
    fn greedy_takes_the_first_of_equals() {
        assert_eq!(drawn(SamplerOptions::default(), &[0.1, 3.0, 3.0, -1.0], 3), [1, 1, 1]);
    }

    #[test]
    fn draws_follow_the_softmax() {
        // Probabilities 0.5, 0.3, 0.2 at temperature 1.
        let logits = [0.5f32.ln(), 0.3f32.ln(), 0.2f32.ln()];
        let options = SamplerOptions { temperature: 1.0, seed: 7, ..Default::default() };
        let tokens = drawn(options, &logits, 40_000);
        for (token, p) in [(0, 0.5), (1, 0.3), (2, 0.2)] {
            assert!((share(&tokens, token) - p).abs() < 0.01, "token {token}");
        }
        // At temperature 0.5 the probabilities go as their squares: 25 : 9 : 4.
        let tokens = drawn(SamplerOptions { temperature: 0.5, ..options }, &logits, 40_000);
        assert!((share(&tokens, 0) - 25.0 / 38.0).abs() < 0.01);
    }

    #[test]
    fn filters_keep_what_they_name() {
        let logits = [0.2f32.ln(), 0.5f32.ln(), 0.1f32.ln(), 0.2f32.ln()];
        let hot = SamplerOptions { temperature: 1.0, ..Default::default() };
        let kept = |options| {
            let mut tokens = drawn(options, &logits, 2000);
            tokens.sort_unstable();
            tokens.dedup();
            tokens
        };
        assert_eq!(kept(SamplerOptions { top_k: 1, ..hot }), [1]);
        // The tie between tokens 0 and 3 goes to the lower id.
        assert_eq!(kept(SamplerOptions { top_k: 2, ..hot }), [0, 1]);
        assert_eq!(kept(SamplerOptions { top_p: 0.45, ..hot }), [1]);
        assert_eq!(kept(SamplerOptions { top_p: 0.65, ..hot }), [0, 1]);
        assert_eq!(kept(SamplerOptions { min_p: 0.3, ..hot }), [0, 1, 3]);
        assert_eq!(kept(SamplerOptions { min_p: 1.0, ..hot }), [1]);
        assert_eq!(kept(hot), [0, 1, 2, 3]);
    }

    #[test]
    fn penalties_see_the_window_and_no_more() {
        let options = SamplerOptions {
            repetition_penalty: 2.0,
            presence_penalty: 0.5,
            frequency_penalty: 0.25,
            penalty_window: 3,
            ..Default::default()
        };
        let mut sampler = Sampler::new(options, 4).unwrap();
        for token in [0, 1, 1, 2] {
            sampler.accept(token);
        }
        let mut logits = [4.0, 4.0, -4.0, 4.0];
        assert_eq!(sampler.sample(&mut logits).unwrap(), 0, "token 0 has left the window");
        assert_eq!(logits, [4.0, 2.0 - 0.5 - 0.5, -8.0 - 0.5 - 0.25, 4.0]);
    }

    #[test]
    fn the_same_seed_draws_the_same_tokens() {
        let logits: Vec<f32> = (0..50).map(|i| (i as f32 * 0.7).sin()).collect();
        let hot = SamplerOptions { temperature: 1.0, seed: 3, ..Default::default() };
        assert_eq!(drawn(hot, &logits, 50), drawn(hot, &logits, 50));
        assert_ne!(drawn(hot, &logits, 50), drawn(SamplerOptions { seed: 4, ..hot }, &logits, 50));
    }

    #[test]
    fn bad_options_and_logits_are_named() {
        let bad = SamplerOptions { top_p: 1.5, ..Default::default() };
        assert!(Sampler::new(bad, 4).err().unwrap().to_string().contains("top-p is 1.5"));
        let bad = SamplerOptions { temperature: f32::NAN, ..Default::default() };
        assert!(bad.validate().is_err());
        let mut sampler = Sampler::new(SamplerOptions::default(), 2).unwrap();
        let error = sampler.sample(&mut [0.0, f32::NAN]).unwrap_err();
        assert!(error.to_string().contains("token 1"), "{error}");
    }
}
