//! The serial console: scrollback, log, and any number of readers on a UNIX socket.
//!
//! ```text
//!   vCPU thread ─▶ Line (staging) ─▶ console thread ─┬▶ Scrollback ─▶ readers, each at its own position
//!                    ▲                               └▶ ConsoleLog
//!                    └──────────── input ◀─ what readers send
//! ```
//! Only the console thread waits: for a log on a slow disk or a reader that does not read. A reader that falls further behind
//! than the scrollback reaches loses what it missed. The guest is never held up.

mod line;
mod log;
mod scrollback;
mod server;

pub(crate) use line::Line;
pub(crate) use log::ConsoleLog;
pub(crate) use server::ConsoleServer;
