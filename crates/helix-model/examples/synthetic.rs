//! Writes a synthetic model for benches: `cargo x synthetic NAME FILE`.

use std::process::ExitCode;

use helix_model::synthetic::{Spec, gguf};

/// The weights' seed.
const SEED: u64 = 1;

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let (spec, file) = match &arguments[..] {
        [name, file] => (Spec::named(name), file),
        _ => (None, &String::new()),
    };
    let Some(spec) = spec else {
        eprintln!("usage: synthetic NAME FILE.gguf\n\nNames:");
        Spec::NAMES.iter().for_each(|(name, shape)| eprintln!("  {name:<14}{shape}"));
        return ExitCode::from(2);
    };
    match std::fs::write(file, gguf(&spec, SEED)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {file}: {error}");
            ExitCode::FAILURE
        }
    }
}
