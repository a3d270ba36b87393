//! FP8 E4M3, as in OCP's "8-bit floating point specification": sign, 4 bits of exponent with bias
//! 7, 3 of mantissa; no infinities, and NaN where all bits but the sign are set.

/// The largest magnitude.
pub(crate) const MAX: f32 = 448.0;

/// Whether a code is a number.
pub(crate) const fn is_finite(code: u8) -> bool {
    code & 0x7f != 0x7f
}

/// The number of a code, exactly.
pub(crate) fn to_f32(code: u8) -> f32 {
    if !is_finite(code) {
        return f32::NAN;
    }
    // An f16's exponent has another bit on top and a bias of 15: exact, of subnormals too.
    let half = u16::from(code & 0x80) << 8 | u16::from(code & 0x7f) << 7;
    half::f16::from_bits(half).to_f32() * 256.0
}

/// The nearest code, ties to even; what is too large becomes the largest.
pub(crate) fn from_f32(value: f32) -> u8 {
    let sign = if value.is_sign_negative() { 0x80 } else { 0 };
    let size = value.abs();
    let code = if value.is_nan() {
        0x7f
    } else if size >= MAX {
        0x7e
    } else if size < 1.0 / 64.0 {
        (size * 512.0).round_ties_even() as u8
    } else {
        let bits = size.to_bits();
        let even = bits >> 20 & 1;
        (((bits + 0x7ffff + even) >> 20) - (120 << 3)) as u8
    };
    sign | code
}
