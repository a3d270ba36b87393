//! The fallback, and the oracle of the other instruction sets. Not inlined where the compiler would
//! unroll it into half a megabyte.

use super::panel::GROUP;
use super::{Dots, Job};
use crate::arch::lanes::Scalar;
use crate::formats::e4m3;
use crate::kv::codes::{QUAD, TOKEN_BYTES};

impl Dots for Scalar {
    type Bytes = [u8; GROUP];
    type Ints = [i32; 16];

    const TOKENS: usize = 1;
    const SUMS: usize = 4;

    fn enter<J: Job>(self, job: J) {
        job.run(self);
    }

    #[inline(always)]
    fn bytes(self, from: &[u8; GROUP]) -> [u8; GROUP] {
        *from
    }

    #[inline(always)]
    fn and(self, v: [u8; GROUP], mask: u8) -> [u8; GROUP] {
        v.map(|v| v & mask)
    }

    #[inline(always)]
    fn or(self, a: [u8; GROUP], b: [u8; GROUP]) -> [u8; GROUP] {
        std::array::from_fn(|i| a[i] | b[i])
    }

    #[inline(always)]
    fn shl(self, v: [u8; GROUP], n: usize) -> [u8; GROUP] {
        v.map(|v| v << n)
    }

    #[inline(always)]
    fn shr(self, v: [u8; GROUP], n: usize) -> [u8; GROUP] {
        v.map(|v| v >> n)
    }

    #[inline(never)]
    fn dot(self, sum: [i32; 16], w: [u8; GROUP], x: &[i8; 4]) -> [i32; 16] {
        std::array::from_fn(|row| {
            let products = w[4 * row..].iter().zip(x).map(|(&w, &x)| i32::from(w) * i32::from(x));
            sum[row] + products.sum::<i32>()
        })
    }

    #[inline(never)]
    fn dot_wide(self, sum: [i32; 16], w: [u8; GROUP], x: &[i8; 4]) -> [i32; 16] {
        self.dot(sum, w, x)
    }

    #[inline(never)]
    fn dot_words(self, sum: [i32; 16], v: [u8; GROUP], w: &[i16; QUAD]) -> [i32; 16] {
        std::array::from_fn(|row| {
            let code = |i: usize| i32::from(v[QUAD * row + TOKEN_BYTES[i]]);
            let products = w.iter().enumerate().map(|(i, &w)| i32::from(w) * code(i));
            sum[row] + products.sum::<i32>()
        })
    }

    #[inline(never)]
    fn words(self, sum: [i32; 16], x: [[f32; 16]; 2], to: &mut [[i16; QUAD]; 8]) -> [i32; 16] {
        // A cast takes the nearest that fits.
        let words = x.map(|x| x.map(|x| x.round_ties_even() as i16));
        to.as_flattened_mut().copy_from_slice(words.as_flattened());
        std::array::from_fn(|i| sum[i] + i32::from(words[0][i]) + i32::from(words[1][i]))
    }

    #[inline(never)]
    fn turn(self, from: [&[u8; 16]; 4], to: &mut [u8; GROUP]) {
        for (dim, to) in to.as_chunks_mut::<QUAD>().0.iter_mut().enumerate() {
            for (token, byte) in TOKEN_BYTES.iter().enumerate() {
                to[*byte] = from[dim / QUAD][token * QUAD + dim % QUAD];
            }
        }
    }

    #[inline(always)]
    fn splat_shl(self, x: i32, shift: u32) -> [i32; 16] {
        [x << shift; 16]
    }

    #[inline(never)]
    fn column(self, w: [u8; GROUP], column: usize) -> [i32; 16] {
        std::array::from_fn(|row| i32::from(w[4 * row + column]))
    }

    #[inline(always)]
    fn to_floats(self, v: [i32; 16]) -> [f32; 16] {
        v.map(|v| v as f32)
    }

    #[inline(always)]
    fn low_bytes(self, v: [f32; 16], to: &mut [i8; 16]) {
        *to = v.map(|v| v.to_bits() as i8);
    }

    #[inline(always)]
    fn byte_sum(self, codes: &[i8; 16]) -> i32 {
        codes.iter().map(|&code| i32::from(code)).sum()
    }

    #[inline(always)]
    fn lookup(self, v: [u8; GROUP], table: &[u8; 16]) -> [u8; GROUP] {
        v.map(|v| table[usize::from(v & 15)])
    }

    #[inline(always)]
    fn load_e8m0(self, from: &[u8; 16]) -> [f32; 16] {
        from.map(|e| f32::from_bits((u32::from(e) << 23).max(1 << 22)))
    }

    #[inline(never)]
    fn even_e4m3(self, from: &[u8; GROUP]) -> [[f32; 16]; 2] {
        [0, 32].map(|half| std::array::from_fn(|i| e4m3::to_f32(from[half + 2 * i]) / 256.0))
    }

    #[inline(never)]
    fn odd_e4m3(self, from: &[u8; GROUP]) -> [[f32; 16]; 2] {
        [1, 33].map(|half| std::array::from_fn(|i| e4m3::to_f32(from[half + 2 * i]) / 256.0))
    }
}
