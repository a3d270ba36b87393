use super::*;
use crate::arch::lanes::dispatch_on;
use crate::formats::tests::noise;
use crate::isa::Isa;

fn sigmoid(x: f64) -> f64 {
    1.0 / (1.0 + (-x).exp())
}

type Function<'a> = &'a dyn Fn(&mut [f32], &[f32], &[f32]);
type Exact<'a> = &'a dyn Fn(f64, f64) -> f64;

/// Every gate beside its formula in f64.
fn gates(check: impl Fn(&str, Function<'_>, Exact<'_>)) {
    check("swiglu", &swiglu, &|g, u| g * sigmoid(g) * u);
    check("gelu_tanh", &gelu_tanh, &|g, u| {
        let inner = (2.0 / std::f64::consts::PI).sqrt() * (g + 0.044715 * g.powi(3));
        0.5 * g * (1.0 + inner.tanh()) * u
    });
    for (alpha, limit) in [(1.702, 7.0), (1.0, 0.5)] {
        let clamped =
            |out: &mut [f32], g: &[f32], u: &[f32]| clamped_swiglu(out, g, u, alpha, limit);
        let (alpha, limit) = (f64::from(alpha), f64::from(limit));
        check("clamped_swiglu", &clamped, &|g, u| {
            let (g, u) = (g.min(limit), u.clamp(-limit, limit));
            g * sigmoid(alpha * g) * (u + 1.0)
        });
    }
}

#[test]
fn gates_are_their_formulas_at_every_length() {
    gates(|name, gate, exact| {
        for n in [0, 1, 15, 16, 17, 63, 200] {
            let scale = |x: Vec<f32>| x.iter().map(|x| 12.0 * x).collect::<Vec<_>>();
            let (g, u) = (scale(noise(n, 1 + n as u64)), scale(noise(n, 2)));
            let mut out = vec![f32::NAN; n];
            gate(&mut out, &g, &u);
            for i in 0..n {
                let want = exact(f64::from(g[i]), f64::from(u[i]));
                let error = (f64::from(out[i]) - want).abs();
                // tanh in the oracle cancels: absolute there.
                assert!(
                    error <= 2e-6 * want.abs() + 1e-12,
                    "{name}({}, {}): {}",
                    g[i],
                    u[i],
                    out[i]
                );
            }
        }
    });
}

#[test]
fn gates_neither_overflow_nor_hide_what_is_not_finite() {
    gates(|name, gate, exact| {
        for g in [0.0, -0.0, 1e-30, 90.0, -90.0, 1e6, -1e6, 3e30, -3e30] {
            let mut out = [f32::NAN];
            gate(&mut out, &[g], &[0.5]);
            let want = exact(f64::from(g), 0.5);
            let error = (f64::from(out[0]) - want).abs();
            assert!(error <= 2e-6 * want.abs() + 1e-6, "{name}({g}): {}, not {want}", out[0]);
        }
        for (g, u) in [(f32::NAN, 1.0), (1.0, f32::NAN)] {
            let mut out = [0.0];
            gate(&mut out, &[g], &[u]);
            assert!(out[0].is_nan(), "{name}({g}, {u}): {}", out[0]);
        }
    });
}

#[test]
fn every_instruction_set_gives_the_same_bits() {
    fn bits<G: Gate>(isa: Isa, gated: G) -> Vec<u32> {
        let (gate, up): (Vec<f32>, Vec<f32>) =
            (noise(77, 5).iter().map(|x| 9.0 * x).collect(), noise(77, 6));
        let mut out = vec![0.0; 77];
        dispatch_on(isa, Gated { out: &mut out, gate: &gate, up: &up, gated });
        out.iter().map(|x| x.to_bits()).collect()
    }
    let clamped = || ClampedSwiglu { alpha: 1.702, limit: 7.0 };
    for isa in Isa::available() {
        assert_eq!(bits(isa, Swiglu), bits(Isa::Scalar, Swiglu), "{isa}");
        assert_eq!(bits(isa, GeluTanh), bits(Isa::Scalar, GeluTanh), "{isa}");
        assert_eq!(bits(isa, clamped()), bits(Isa::Scalar, clamped()), "{isa}");
    }
}
