//! Ranks as processes, on one host or many, over MPI.
//!
//! | file | what |
//! |---|---|
//! | `wire.rs` | non-blocking messages between two processes: the only calls into MPI while ranks run |
//! | `progress.rs` | collectives made of such messages, a state machine that is polled |
//! | `progress/messages.rs` | what is said outside collectives |
//! | `group.rs` | a rank's end of a group: [`MpiComm`] |
//! | `whereabouts.rs` | what whoever started a rank says of it when MPI, or the system, has ended it |
//! | `world.rs` | start and end, the communication thread, messages of the front end: [`MpiWorld`] |
//!
//! Collectives are direct: every member sends to every other. That is what lets a late rank be
//! named, reductions add in member order, and small messages leave inside the call that starts
//! them. A group has tags of its own on one communicator, so making one costs no message.

mod group;
mod progress;
mod whereabouts;
mod wire;
mod world;

pub use group::MpiComm;
pub use whereabouts::{Others, Place, Whereabouts};
pub use world::{CommThread, MpiWorld};
