//! Writes the seed corpus of the `gguf` target: one small model of each kind that there is.

use std::error::Error;
use std::fs;
use std::path::Path;

use helix_kernels::Format;
use helix_model::Arch;
use helix_model::config::{Llama3, Scaling, Yarn};
use helix_model::synthetic::{Spec, gguf};

fn main() -> Result<(), Box<dyn Error>> {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("seeds/gguf");
    fs::create_dir_all(&dir)?;
    for (name, spec) in specs() {
        fs::write(dir.join(format!("{name}.gguf")), gguf(&spec, 1))?;
    }
    Ok(())
}

/// One layer, four elements wide, eight tokens; blocks of 32 where a format needs them.
fn smallest(arch: Arch) -> Spec {
    Spec {
        layers: 1,
        hidden: 4,
        q_heads: 2,
        kv_heads: 1,
        head_dim: 2,
        rope_dims: 2,
        ffn: 4,
        vocab: 8,
        ..Spec::tiny(arch)
    }
}

fn specs() -> [(&'static str, Spec); 6] {
    let linear = Scaling::Linear { factor: 2.0 };
    let yarn = Yarn { factor: 4.0, original_context: 128, beta_fast: 32.0, beta_slow: 1.0, truncate: true, attention_factor: None };
    let llama3 =
        Llama3 { factor: 8.0, low_freq_factor: 1.0, high_freq_factor: 4.0, original_context: 64 };
    let blocks = Spec {
        hidden: 32,
        head_dim: 16,
        ffn: 32,
        format: Format::Q4_1,
        down_format: Format::Q4_0,
        embedding_format: Format::Q8_0,
        ..smallest(Arch::Llama)
    };
    let scaled = |arch, scaling| Spec { scaling, ..smallest(arch) };
    [
        ("llama", smallest(Arch::Llama)),
        ("llama-biases-linear", Spec { bias: true, ..scaled(Arch::Llama, linear) }),
        ("llama-blocks", blocks),
        ("llama3", scaled(Arch::Llama, Scaling::Llama3(llama3))),
        (
            "qwen2-f16-yarn",
            Spec { format: Format::F16, ..scaled(Arch::Qwen2, Scaling::Yarn(yarn)) },
        ),
        ("qwen3", smallest(Arch::Qwen3)),
    ]
}
