use super::*;

/// Seeded noise in −1..1: xorshift64*, the upper 24 bits.
pub(crate) fn noise(len: usize, seed: u64) -> Vec<f32> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut next = || {
        state ^= state >> 12;
        state ^= state << 25;
        state ^= state >> 27;
        (state.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 40) as f32 / (1 << 23) as f32 - 1.0
    };
    (0..len).map(|_| next()).collect()
}

#[test]
fn quantized_values_come_back_within_a_step() {
    for (format, tolerance) in [
        (Format::F32, 0.0),
        (Format::F16, 5e-4),
        (Format::BF16, 4e-3),
        (Format::Q8_0, 0.005),
        (Format::Q4_0, 0.08),
        (Format::Q4_1, 0.07),
        (Format::Q5_0, 0.04),
        (Format::Q5_1, 0.035),
        (Format::Q4K, 0.09),
        (Format::Q5K, 0.05),
        (Format::Q6K, 0.025),
    ] {
        let values = noise(1024, 7);
        let mut data = vec![0; format.row_bytes(values.len()).unwrap()];
        quantize(format, &values, &mut data);
        let mut back = vec![0.0; values.len()];
        dequantize(format, &data, &mut back);
        for (i, (v, b)) in values.iter().zip(&back).enumerate() {
            assert!((v - b).abs() <= tolerance, "{format} [{i}]: {v} became {b}");
        }
    }
}

#[test]
fn zeros_stay_zeros() {
    for format in Format::ALL {
        let mut data = vec![1; format.row_bytes(256).unwrap()];
        quantize(format, &[0.0; 256], &mut data);
        let mut back = [1.0; 256];
        dequantize(format, &data, &mut back);
        assert!(back.iter().all(|b| *b == 0.0), "{format}: {back:?}");
    }
}

/// `golden/generate.py` made it with ggml's own Python package.
#[test]
fn every_format_is_read_as_ggml_reads_it() {
    let mut golden: &[u8] = include_bytes!("golden/golden.bin");
    for format in Format::ALL {
        let len = if format.is_quantized() { 3 * format.block_len() } else { 64 };
        let data = golden.split_off(..format.row_bytes(len).unwrap()).unwrap();
        let want = golden.split_off(..4 * len).unwrap().as_chunks::<4>().0;
        let mut got = vec![0.0; len];
        dequantize(format, data, &mut got);
        for (i, (got, want)) in got.iter().zip(want).enumerate() {
            let want = f32::from_le_bytes(*want);
            assert!(*got == want, "{format} [{i}]: {got}, ggml has {want}");
        }
    }
    assert!(golden.is_empty());
}

#[test]
fn codes_survive_encoding() {
    for format in Format::ALL.into_iter().filter(|f| f.is_quantized()) {
        let mut golden = vec![0; 2 * format.block_bytes()];
        quantize(format, &noise(2 * format.block_len(), 11), &mut golden);
        for block in golden.chunks(format.block_bytes()) {
            let mut copy = vec![0; block.len()];
            for sub in 0..format.block_len() / SUB_BLOCK {
                codes::encode(format, &decode(format, block, sub), &mut copy, sub);
            }
            assert_eq!(copy, block, "{format}");
        }
    }
}

#[test]
fn rows_are_whole_blocks() {
    assert_eq!(Format::Q4_1.row_bytes(576), Some(360));
    assert_eq!(Format::Q6K.row_bytes(576), None);
    assert_eq!(Format::F32.row_bytes(usize::MAX), None);
    assert_eq!(Format::Q8_0.row_bytes(0), Some(0));
}
