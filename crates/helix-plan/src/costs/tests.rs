use super::*;
use crate::Formats;
use helix_layout::{LayoutSpec, QkvMode};

#[test]
fn a_gathered_projection_is_read_once_in_a_group() {
    let model = Model::named("llama-3.1-405b", Formats::default()).unwrap();
    let weights = |qkv| {
        let spec = LayoutSpec { qkv, ..LayoutSpec::new(Strategy::Helix, 8, 8) };
        let share = Share::busiest(&model.shape, &spec);
        Costs { model: &model, share, choices: Choices::default() }.qkv(1.0).weight_bytes
    };
    assert_eq!(weights(QkvMode::Replicate), 8.0 * weights(QkvMode::Gather));
}
