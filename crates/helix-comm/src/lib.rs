//! Thread teams, and collectives between ranks.
//!
//! A rank is a [`Team`] of threads: its leader runs the layer line by line and forks each line's
//! work over the team. Ranks talk through a [`Comm`]: [`ThreadComm`] joins the ranks of one process
//! over shared memory; [`Counted`] wraps any `Comm`, counts its calls and bytes, and times them.
//!
//! Every reduction adds in member order, so the same layout gives the same bits on every run.
#![deny(unsafe_code)]

mod backoff;
mod comm;
mod counted;
mod delay;
mod faulty;
#[cfg(all(test, feature = "mpi"))]
#[path = "../../helix-engine/tests/launch/mod.rs"]
mod launch;
mod link;
#[cfg(feature = "mpi")]
pub mod mpi;
mod processors;
mod ring;
mod team;
mod threads;
mod world;

pub use comm::{Chunks, Collective, Comm, CommError, Counts, Pending};
pub use counted::{Counted, Flight, Overlap, Traffic};
pub use delay::Delay;
pub use faulty::{Fate, Faults, Faulty};
pub use link::Link;
pub use processors::{allowed_processors, share};
pub use ring::Ring;
pub use team::Team;
pub use threads::ThreadComm;
pub use world::{GROUPS, World, WorldError};
