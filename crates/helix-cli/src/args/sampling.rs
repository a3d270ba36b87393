//! How tokens are drawn.

use crate::console::Console;
use crate::failure::Outcome;
use clap::Args;
use helix_engine::sampler::SamplerOptions;
use std::time::{SystemTime, UNIX_EPOCH};

/// The sampler's flags; without any of them, the likeliest token.
#[derive(Args, Clone, Debug)]
#[command(next_help_heading = "Sampling")]
pub struct SamplingArgs {
    /// Temperature; 0 always takes the likeliest token, and the flags of this group but the
    /// penalties then have no effect
    #[arg(
        long,
        visible_alias = "temperature",
        value_name = "X",
        default_value = "0",
        allow_negative_numbers = true
    )]
    temp: f32,
    /// Draw among the N likeliest tokens only; 0 for all
    #[arg(long, value_name = "N")]
    top_k: Option<usize>,
    /// Draw among the likeliest tokens that together reach this probability
    #[arg(long, value_name = "P", allow_negative_numbers = true)]
    top_p: Option<f32>,
    /// Draw among tokens at least P times as likely as the likeliest
    #[arg(long, value_name = "P", allow_negative_numbers = true)]
    min_p: Option<f32>,
    /// Make tokens of the last 64 less likely: divides their positive logits, multiplies negative
    #[arg(long, value_name = "X", default_value = "1", allow_negative_numbers = true)]
    repeat_penalty: f32,
    /// Subtract X from the logit of each token of the last 64
    #[arg(long, value_name = "X", default_value = "0", allow_negative_numbers = true)]
    presence_penalty: f32,
    /// Subtract X from a token's logit each time it is among the last 64
    #[arg(long, value_name = "X", default_value = "0", allow_negative_numbers = true)]
    frequency_penalty: f32,
    /// Seed of the draws; the same one gives the same text [default: the clock's, printed]
    #[arg(long, value_name = "N")]
    seed: Option<u64>,
}

impl SamplingArgs {
    /// The sampler's options, checked.
    pub fn options(&self, console: &Console) -> Outcome<SamplerOptions> {
        let plain = SamplerOptions::default();
        let options = SamplerOptions {
            temperature: self.temp,
            top_k: self.top_k.unwrap_or(plain.top_k),
            top_p: self.top_p.unwrap_or(plain.top_p),
            min_p: self.min_p.unwrap_or(plain.min_p),
            repetition_penalty: self.repeat_penalty,
            presence_penalty: self.presence_penalty,
            frequency_penalty: self.frequency_penalty,
            seed: self.seed.unwrap_or_else(clock_seed),
            ..plain
        };
        options.validate()?;
        let filters = self.top_k.is_some() || self.top_p.is_some() || self.min_p.is_some();
        if options.temperature == 0.0 && filters {
            console.note("note: --top-k, --top-p and --min-p have no effect at --temp 0");
        }
        Ok(options)
    }
}

/// A seed that differs from run to run.
fn clock_seed() -> u64 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    now.as_nanos() as u64 >> 10
}
