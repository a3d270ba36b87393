//! The command on SmolLM2-135M-Instruct beside what llama.cpp says of it.

mod common;

use common::{json, number};

/// llama.cpp's perplexity of the first 4 chunks of 512 tokens of `bench/data/alice.txt` on this
/// file with f16 KV; `bench/data/README.md` says how it was made.
const LLAMA: f64 = 20.1899;

#[test]
fn perplexity_is_within_half_a_per_cent_of_llama_cpp() {
    let Some(model) = std::env::var_os("HELIX_TEST_MODEL") else {
        println!("skipped: HELIX_TEST_MODEL does not name SmolLM2-135M-Instruct.Q4_1.gguf");
        return;
    };
    let model = model.into_string().expect("UTF-8");
    let text = concat!(env!("CARGO_MANIFEST_DIR"), "/../../bench/data/alice.txt");
    for layout in ["--kvp 1", "--kvp 2 --tpa 2 --precise"] {
        let found = json(&format!("perplexity '{model}' -f '{text}' --chunks 4 {layout}"));
        let perplexity = number(&found, "perplexity");
        println!("{layout}: {perplexity}, llama.cpp {LLAMA}");
        assert!((perplexity / LLAMA - 1.0).abs() < 0.005, "{layout}: {perplexity}, not {LLAMA}");
    }
}
