//! End-to-end harness: real daemons and real guests.
