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
