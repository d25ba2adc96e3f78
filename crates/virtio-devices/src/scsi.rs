//! SCSI host (virtio 1.2 §5.6) with disks and read-only CD-ROMs, each on any [`disk::Disk`], that come and go while it runs.
//!
//! ```text
//!   let scsi = Scsi::new(ScsiOptions { name, request_queues, queue_size });       // then into VirtioPci like any device
//!   scsi.attach(Lun::new(target, lun)?, disk, LunOptions { serial, medium })?;    // at any time; a running guest is told
//!   scsi.resized(lun)?;                                                           // after the disk has grown
//!   scsi.detach(lun)?.wait();                                                     // then nothing uses the disk any more
//! ```
//!
//! Queue 0 is control and queue 1 is events: one worker serves both. Each of the others has a worker of its own, with its own
//! executor and its own queue of each disk. Commands of a queue are in flight side by side and end in any order, whatever
//! task attribute they have; data of reads and writes goes between guest RAM and the disk without a copy.
//!
//! Command sets: SPC-4, SBC-3, MMC-6, as far as `commands.rs` lists them. Sense data has fixed format. There are no reservations,
//! no protection information, no ACA, and no bidirectional commands.

mod address;
mod block;
mod cdb;
mod cdrom;
mod commands;
mod config;
mod control;
mod counters;
mod device;
mod events;
mod execute;
mod inquiry;
mod migration;
mod modes;
mod provision;
mod report;
mod request;
mod sense;
mod task;
#[cfg(test)]
mod tests;
mod unit;
mod worker;

pub use address::Lun;
pub use config::{LunOptions, Medium, ScsiOptions};
pub use counters::{ScsiCounters, ScsiSnapshot};
pub use device::{Scsi, ScsiError};
