//! Any bytes as a model file: an error, or a model whose ranks load. Never a panic, and never
//! more memory than the file's length allows.
#![no_main]

use helix_kernels::Precision;
use helix_layout::{Layout, LayoutSpec, Strategy};
use helix_model::{Model, RankWeights};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    let Ok(model) = Model::from_gguf_bytes(bytes.to_vec()) else { return };
    let shape = model.shape();
    for ranks in [1, 2] {
        let Ok(layout) = Layout::new(&shape, LayoutSpec::new(Strategy::Helix, ranks, 1)) else {
            continue;
        };
        for rank in layout.all_ranks() {
            // Weights may be NaN: that is an error, too.
            let _ = RankWeights::load(&model, &layout, rank, Precision::Fast, &|_| ());
        }
    }
    let mut row = vec![0.0; model.config.hidden];
    let _ = model.embedding_row(0, &mut row);
});
