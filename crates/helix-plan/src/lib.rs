//! Predicts what a layout costs on a machine, and never runs a model.
//!
//! A model and a machine are data; the costs of each line of `helix-engine/src/layer.rs` are
//! formulas here.
#![forbid(unsafe_code)]

pub mod capacity;
mod choose;
pub mod costs;
mod crossover;
mod decode;
mod experts;
mod format;
mod front;
pub mod launch;
mod load;
pub mod machine;
mod model;
pub mod network;
pub mod paper;
pub mod pipeline;
mod placement;
pub mod predict;
mod report;
pub mod search;
mod share;
mod time;
mod words;

pub use choose::{Choice, Timed, choose};
pub use costs::Costs;
pub use crossover::{Crossover, Duel, Verdict, Wins, crossovers};
pub use decode::Decode;
pub use experts::Popularity;
pub use format::{Format, FormatError, Formats, Part};
pub use front::Front;
pub use helix_scheduler::Line;
pub use load::{Load, Routing, Sight};
pub use machine::{Machine, MachineError, Quantity};
pub use model::{Model, ModelError, Window};
pub use placement::{Fixed, Placement, PlacementError, Space};
pub use predict::{PlanError, Prediction, Settings, Shortage, predict};
pub use report::{Answer, Chosen, Report, Row, StrategyFront};
pub use search::{Batches, Found, Fronts, Point, Query, search};
pub use share::Share;
pub use time::{Exchange, Overlap, StepTime, Timer};
pub use words::{counted, figure};
