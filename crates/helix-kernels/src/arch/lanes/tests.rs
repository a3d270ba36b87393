use super::*;

/// `count` values from `low` to `high`, both included.
fn ramp(low: f32, high: f32, count: usize) -> Vec<f32> {
    let step = (f64::from(high) - f64::from(low)) / (count - 1) as f64;
    (0..count).map(|i| (f64::from(low) + step * i as f64) as f32).collect()
}

/// `f` of every value, on one instruction set.
struct Map<'a, F: Fn(usize) -> Function> {
    x: &'a [f32],
    function: F,
}

#[derive(Clone, Copy)]
enum Function {
    Exp,
    Exp2,
}

impl<F: Fn(usize) -> Function> Kernel for Map<'_, F> {
    type Output = Vec<f32>;

    #[inline(always)]
    fn run<S: Lanes>(self, s: S) -> Vec<f32> {
        let mut out = Vec::new();
        for (i, x) in self.x.chunks(LANES).enumerate() {
            let mut lanes = [0.0; LANES];
            lanes[..x.len()].copy_from_slice(x);
            let y = match (self.function)(i) {
                Function::Exp => exp(s, s.load(&lanes)),
                Function::Exp2 => exp2_falling(s, s.load(&lanes)),
            };
            s.store(y, &mut lanes);
            out.extend_from_slice(&lanes[..x.len()]);
        }
        out
    }
}

#[test]
fn exponentials_are_close_and_equal_on_every_instruction_set() {
    let cases = [
        (Function::Exp, ramp(-87.0, 87.0, 300_001), f64::exp as fn(f64) -> f64, 1.2e-7),
        (Function::Exp, ramp(-1.0, 1.0, 100_001), f64::exp, 1.2e-7),
        (Function::Exp2, ramp(-126.0, 0.0, 300_001), f64::exp2, 1.0e-7),
    ];
    for (function, x, exact, tolerance) in cases {
        let expected = Map { x: &x, function: |_| function }.run(Scalar);
        for (x, y) in x.iter().zip(&expected) {
            let exact = exact(f64::from(*x));
            let error = (f64::from(*y) - exact).abs() / exact;
            assert!(error <= tolerance, "f({x}) = {y}, not {exact}: {error:e}");
        }
        for isa in Isa::available() {
            let got = dispatch_on(isa, Map { x: &x, function: |_| function });
            assert!(bits(&got) == bits(&expected), "{isa} differs");
        }
    }
}

#[test]
fn exponentials_at_their_ends() {
    const INF: f32 = f32::INFINITY;
    let x = [-INF, -127.0, 0.0, -0.0, f32::NAN];
    for isa in Isa::available() {
        let y = dispatch_on(isa, Map { x: &x, function: |_| Function::Exp2 });
        assert_eq!(y[..4], [f32::MIN_POSITIVE, f32::MIN_POSITIVE, 1.0, 1.0], "{isa}");
        assert!(y[4].is_nan(), "{isa}: {}", y[4]);
        let y =
            dispatch_on(isa, Map { x: &[-INF, INF, 0.0, f32::NAN], function: |_| Function::Exp });
        assert!(y[0] > 0.0 && y[0] < 2e-38 && y[1] > 6e37 && y[1] < INF, "{isa}: {y:?}");
        assert!(y[2] == 1.0 && y[3].is_nan(), "{isa}: {y:?}");
    }
}

/// Every operation, on all values of each stored type.
struct Loads;

impl Kernel for Loads {
    type Output = Vec<f32>;

    #[inline(always)]
    fn run<S: Lanes>(self, s: S) -> Vec<f32> {
        let mut out = Vec::new();
        let mut lanes = [0.0; LANES];
        for start in (0..=u16::MAX).step_by(LANES) {
            let mut halves = [0; 2 * LANES];
            let mut bytes = [0; LANES];
            for i in 0..LANES as u16 {
                halves[2 * usize::from(i)..][..2].copy_from_slice(&(start + i).to_le_bytes());
                bytes[usize::from(i)] = (start / 7 + i) as u8;
            }
            for x in [s.load_f16(&halves), s.load_bf16(&halves), s.load_i8(&bytes)] {
                s.store(x, &mut lanes);
                out.extend(lanes.map(|x| if x.is_nan() { f32::NAN } else { x }));
            }
        }
        for count in 0..=LANES {
            let x = s.load(&std::array::from_fn(|i| (i as f32 * 1.7).sin() * 1e3));
            let y = s.first(count, x, s.splat(-3.25));
            s.store(s.if_less(y, s.splat(0.5), s.mul(y, x), s.max(x, y)), &mut lanes);
            out.extend(lanes);
            out.extend([s.sum(y), s.sum(x), s.largest(y)]);
        }
        out
    }
}

#[test]
fn loads_selects_and_reductions_are_equal_on_every_instruction_set() {
    let expected = Loads.run(Scalar);
    assert!(expected.len() > 3 << 16);
    for isa in Isa::available() {
        assert!(bits(&dispatch_on(isa, Loads)) == bits(&expected), "{isa} differs");
    }
}

fn bits(x: &[f32]) -> Vec<u32> {
    x.iter().map(|x| x.to_bits()).collect()
}
