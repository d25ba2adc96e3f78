//! What is known of moves between hosts: how they are configured, how they are recorded, who follows those under way. What is done about them
//! is in [`crate::migration`].

mod config;
mod live;
mod record;

pub use config::{MigrationConfig, MoveDefaults};
pub(crate) use live::{LiveMoves, News};
pub use record::{ArrivalRecord, MigrationRecord};
pub(crate) use record::{figures, may_follow, patience_ms, settle, told};
