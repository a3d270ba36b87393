//! What the paper doesn't say, named and bounded.

use crate::{Exchange, Formats, Machine, PlanError, Popularity, Settings};

/// A constant that the paper doesn't give.
#[derive(Clone, Copy, Debug)]
pub struct Constant {
    /// What it is.
    pub name: &'static str,
    /// What is used.
    pub value: f64,
    /// Least of its range.
    pub from: f64,
    /// Most of its range.
    pub to: f64,
    /// Where the range comes from.
    pub why: &'static str,
    set: fn(&mut Setup, f64) -> Result<(), PlanError>,
}

/// A machine and settings to compute the evaluation with.
#[derive(Clone, Debug)]
pub struct Setup {
    /// The machine, with the constants.
    pub machine: Machine,
    /// The settings, with the constants.
    pub settings: Settings,
    /// How numbers are stored.
    pub formats: Formats,
    /// Whether Helix has HOP-B.
    pub hopb: bool,
}

/// The context of the paper's evaluation.
const CONTEXT: usize = 1_000_000;

/// All of them; one set for every model and machine.
pub const CONSTANTS: [Constant; 9] = [
    Constant {
        name: "memory bandwidth that kernels reach",
        value: 0.85,
        from: 0.78,
        to: 0.9,
        why: "all of Llama-1B in one kernel, 78 % of an H100's (Hazy Research, \"Look Ma, No \
              Bubbles!\", 2025); MLA's decoding, 3000 of an H800's 3350 GB/s (FlashMLA's README)",
        set: |setup, value| setup.edit(|p| p.memory.reachable = value.into()),
    },
    Constant {
        name: "arithmetic that kernels reach",
        value: 0.7,
        from: 0.41,
        to: 0.78,
        why: "of an H800's dense peak: MLA's decoding 410 (sparse) and 660 (dense) of 989 TFLOPS \
              (FlashMLA's README), products 1550 of 1979 (DeepGEMM's README)",
        set: |setup, value| setup.edit(|p| p.overhead.reachable_arithmetic = value.into()),
    },
    Constant {
        name: "operation, us",
        value: 3.0,
        from: 1.3,
        to: 7.0,
        why: "a launch in a CUDA graph, 1.3 on an H100; vLLM and SGLang get half of its bandwidth \
              for the 100 kernels of Llama-1B, which is 0.74 ms or 7 each lost (Hazy Research)",
        set: |setup, value| setup.edit(|p| p.overhead.operation_us = value.into()),
    },
    Constant {
        name: "link latency, us",
        value: 1.0,
        from: 0.3,
        to: 5.0,
        why: "latency and two ends together, an all-reduce of 8 bytes over 8 GPUs: 2.3 on H200 and \
              3 on B200 (nccl issue 1940), 10 with a kernel of NCCL's own (issue 583), 3 of them \
              the operation",
        set: |setup, value| setup.edit(|p| p.level[0].latency_us = value.into()),
    },
    Constant {
        name: "each end of a message, us",
        value: 1.0,
        from: 0.65,
        to: 3.0,
        why: "the same, with the latency above taken off",
        set: |setup, value| setup.edit(|p| p.level[0].overhead_us = value.into()),
    },
    Constant {
        name: "gap between messages, us",
        value: 0.05,
        from: 0.03,
        to: 0.16,
        why: "all-to-alls of one token on GB200, each rank of which writes a flag to every other: \
              over 64 ranks 1.6 (combine) to 8.9 (dispatch) more than over 8, for 56 peers \
              (TensorRT-LLM's blog 18)",
        set: |setup, value| setup.edit(|p| p.level[0].gap_us = value.into()),
    },
    Constant {
        name: "link bandwidth that messages reach",
        value: 0.8,
        from: 0.65,
        to: 0.84,
        why: "all-to-alls of 2048 tokens on GB200: 588 of 900 GB/s over 64 ranks, 753 over 8 \
              (TensorRT-LLM's blog 18)",
        set: |setup, value| setup.edit(|p| p.level[0].reachable = value.into()),
    },
    Constant {
        name: "part of all-reduces that is exposed",
        value: 0.0,
        from: 0.0,
        to: 1.0,
        why: "no measurement: the paper overlaps communication of Helix and of TP alike; engines \
              expose all",
        set: |setup, value| {
            setup.settings.exposed_reduce = value;
            Ok(())
        },
    },
    Constant {
        name: "memory that is not the model's",
        value: 0.1,
        from: 0.0,
        to: 0.2,
        why: "vLLM 0.33.0 leaves 0.08 unless told otherwise, SGLang's documents 0.1; none, and twice \
              as much",
        set: |setup, value| {
            setup.settings.reserved = value;
            Ok(())
        },
    },
];

impl Setup {
    /// A machine of the catalogue with every constant at its value.
    ///
    /// # Errors
    /// There is no such machine.
    pub fn new(machine: &str) -> Result<Setup, PlanError> {
        let settings = Settings {
            popularity: Popularity::Busiest { skew: 1.0 },
            unhidden: Exchange::Lockstep,
            ..Settings::new(CONTEXT)
        };
        let machine = Machine::named(machine)?;
        let mut setup = Setup { machine, settings, formats: Formats::default(), hopb: true };
        for constant in &CONSTANTS {
            (constant.set)(&mut setup, constant.value)?;
        }
        Ok(setup)
    }

    /// The same with the links as the machine's preset has them.
    ///
    /// # Errors
    /// There is no such preset.
    pub fn with_links_of(&self, machine: &str) -> Result<Setup, PlanError> {
        let level = Machine::named(machine)?.profile().level.clone();
        let mut setup = self.clone();
        setup.edit(|profile| profile.level = level)?;
        Ok(setup)
    }

    /// The same with one constant at another value.
    ///
    /// # Errors
    /// No machine has that value.
    pub fn with(&self, constant: &Constant, value: f64) -> Result<Setup, PlanError> {
        let mut setup = self.clone();
        (constant.set)(&mut setup, value)?;
        Ok(setup)
    }

    pub(super) fn edit(
        &mut self,
        edit: impl FnOnce(&mut crate::machine::Profile),
    ) -> Result<(), PlanError> {
        let mut profile = self.machine.profile().clone();
        edit(&mut profile);
        self.machine = Machine::new(profile)?;
        Ok(())
    }
}
