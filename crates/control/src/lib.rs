//! The language between the daemon and one machine process.
//!
//! A connection is a UNIX stream of frames. The daemon sends [`ToVm`] frames, the machine process [`FromVm`] frames: first a
//! [`Hello`], then answers (each repeats the number of its request) and events, in the order in which things happened. Any
//! number of connections may come and go; a machine outlives all of them.
//!
//! Files travel with requests ([`VmRequest::Create`], [`VmRequest::Depart`], some of [`DiskChange`]), so a machine process needs no right to open any.
//! Requests with files are not sent before those sent earlier were answered.

mod disk;
mod fds;
mod frame;
mod message;
mod migration;
mod report;
mod state;

pub use disk::{
    DiskChain, DiskChange, DiskJob, DiskJobReport, DiskJobState, DiskLatency, DiskLayer, DiskReport, LATENCY_BOUNDS_US,
    PIVOTED,
};
pub use fds::{FDS_MAX, RecvError, SendError, recv_with_fds, send_with_fds};
pub use frame::{Decoder, FRAME_MAX, FrameError, encode};
pub use message::{
    ArriveVm, CONSOLE_LISTENER_FD, CONTROL_LISTENER_FD, CreateVm, FdRole, FromVm, Hello, PROTOCOL_VERSION, Refusal,
    RefusalKind, ToVm, VmEvent, VmRequest, VmStatus,
};
pub use migration::{
    AutoConvergeSteps, Blob, DepartDisk, DepartVm, DiskMove, LinkCredentials, MIGRATION_STREAMS_MAX, MigrationKey,
    MigrationNews, MigrationPhase, MigrationProgress, MoveOptions, OnMoveTimeout, PostCopyWish,
};
pub use report::{EndReason, EndReport, REPORT_FILE};
pub use state::{VmAction, VmState};
