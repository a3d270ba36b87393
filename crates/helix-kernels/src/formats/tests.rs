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
        (Format::F8E4M3, 0.032),
        (Format::Mxfp4, 0.251),
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
    for format in Format::GGML {
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

/// The specification's formula.
fn e4m3_value(code: u8) -> f64 {
    let (exponent, mantissa) = (i32::from(code >> 3 & 15), f64::from(code & 7));
    let size = match exponent {
        0 => mantissa / 8.0 * 2f64.powi(-6),
        _ => (1.0 + mantissa / 8.0) * 2f64.powi(exponent - 7),
    };
    if code < 128 { size } else { -size }
}

#[test]
fn e4m3_codes_are_the_specifications_numbers() {
    for code in 0..=255u8 {
        let value = e4m3::to_f32(code);
        if code & 127 == 127 {
            assert!(value.is_nan() && !e4m3::is_finite(code));
            continue;
        }
        assert_eq!(f64::from(value), e4m3_value(code), "{code:#x}");
        assert_eq!(value.is_sign_negative(), code >= 128, "{code:#x}");
        assert_eq!(e4m3::from_f32(value), code, "{value}");
    }
}

#[test]
fn e4m3_rounds_to_the_nearest_code_and_ties_to_even() {
    for code in 0..126u8 {
        let (low, high) = (e4m3_value(code), e4m3_value(code + 1));
        let middle = ((low + high) / 2.0) as f32; // exact: one bit more
        assert_eq!(e4m3::from_f32(middle), code + code % 2, "{middle}");
        assert_eq!(e4m3::from_f32(middle.next_down()), code, "below {middle}");
        assert_eq!(e4m3::from_f32(-middle.next_up()), 0x80 | (code + 1), "above {middle}");
    }
    for large in [448.0, 449.0, 1e30, f32::INFINITY] {
        assert_eq!((e4m3::from_f32(large), e4m3::from_f32(-large)), (0x7e, 0xfe));
    }
    assert_eq!(e4m3::from_f32(f32::NAN) & 0x7f, 0x7f);
}

#[test]
fn e4m3_blocks_use_the_whole_range() {
    for (rows, cols) in [(1, 1), (129, 300), (128, 128), (5, 127)] {
        let values: Vec<f32> = noise(rows * cols, 4).iter().map(|v| v * 1e-3).collect();
        let (codes, scales) = quantize_e4m3(&values, cols);
        assert_eq!(scales.len(), rows.div_ceil(128) * cols.div_ceil(128));
        for (i, (v, code)) in values.iter().zip(&codes).enumerate() {
            let scale = scales[i / cols / 128 * cols.div_ceil(128) + i % cols / 128];
            let error = (e4m3_value(*code) * f64::from(scale) - f64::from(*v)).abs();
            assert!(error <= f64::from(v.abs()) / 15.9 + f64::from(scale) * 1e-3, "[{i}] {v}");
        }
        assert_eq!(quantize_e4m3(&vec![0.0; rows * cols], cols).0, vec![0; rows * cols]);
    }
}

#[test]
fn mxfp4_scales_reach_from_subnormal_to_the_largest() {
    for (exponent, scale) in
        [(0, 2f64.powi(-127)), (1, 2f64.powi(-126)), (127, 1.0), (252, 2f64.powi(125))]
    {
        let mut block = [0; 17];
        block[0] = exponent;
        block[1..].copy_from_slice(&std::array::from_fn::<_, 16, _>(|i| (i | (15 - i) << 4) as u8));
        let mut out = [0.0; 32];
        dequantize(Format::Mxfp4, &block, &mut out);
        let sizes = [0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0];
        for i in 0..16 {
            let want = if i < 8 { sizes[i] } else { -sizes[i - 8] } * scale;
            assert_eq!((f64::from(out[i]), f64::from(out[31 - i])), (want, want), "{exponent} {i}");
        }
    }
}
