//! What the paper doesn't say, named and bounded.

use crate::{Exchange, Machine, PlanError, Popularity, Settings};

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
}

/// The context of the paper's evaluation.
const CONTEXT: usize = 1_000_000;

/// All of them; one set for every model and machine.
pub const CONSTANTS: [Constant; 8] = [
    Constant {
        name: "memory bandwidth that kernels reach",
        value: 0.85,
        from: 0.75,
        to: 0.95,
        why: "streaming kernels on HBM",
        set: |setup, value| setup.edit(|p| p.memory.reachable = value.into()),
    },
    Constant {
        name: "arithmetic that kernels reach",
        value: 0.7,
        from: 0.5,
        to: 0.85,
        why: "large dense products",
        set: |setup, value| setup.edit(|p| p.overhead.reachable_arithmetic = value.into()),
    },
    Constant {
        name: "operation, us",
        value: 3.0,
        from: 1.0,
        to: 5.0,
        why: "a kernel inside a CUDA graph",
        set: |setup, value| setup.edit(|p| p.overhead.operation_us = value.into()),
    },
    Constant {
        name: "link latency, us",
        value: 1.0,
        from: 1.0,
        to: 4.0,
        why: "a store into a peer's memory through one NVSwitch; two ends of 1 us come on top",
        set: |setup, value| setup.edit(|p| p.level[0].latency_us = value.into()),
    },
    Constant {
        name: "gap between messages, us",
        value: 0.05,
        from: 0.0,
        to: 0.2,
        why: "messages to several peers leave from one kernel",
        set: |setup, value| setup.edit(|p| p.level[0].gap_us = value.into()),
    },
    Constant {
        name: "link bandwidth that messages reach",
        value: 0.8,
        from: 0.2,
        to: 0.9,
        why: "NCCL's bus bandwidth; small messages get less",
        set: |setup, value| setup.edit(|p| p.level[0].reachable = value.into()),
    },
    Constant {
        name: "part of all-reduces that is exposed",
        value: 0.0,
        from: 0.0,
        to: 1.0,
        why: "the paper overlaps communication of Helix and of TP alike; an engine exposes all",
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
        why: "runtimes reserve a tenth",
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
        let mut setup = Setup { machine: Machine::named(machine)?, settings };
        for constant in &CONSTANTS {
            (constant.set)(&mut setup, constant.value)?;
        }
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

    fn edit(&mut self, edit: impl FnOnce(&mut crate::machine::Profile)) -> Result<(), PlanError> {
        let mut profile = self.machine.profile().clone();
        edit(&mut profile);
        self.machine = Machine::new(profile)?;
        Ok(())
    }
}
