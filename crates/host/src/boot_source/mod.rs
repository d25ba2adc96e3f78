//! Boot sources: images that are tracked. All decisions are made in the crate `boot-sources`; here they are carried out.
//!
//! One task looks at all sources whenever something changed and when the next poll is due (`track`). In one transaction it compares
//! each definition with what it was, asks each source's state for its next step, decides what is to be removed, and notes how all
//! are doing (`settle`). Polls and imports are tasks of their own, never two of one source (`work`).
//!
//! ```text
//!   files, API ──▶ definitions ──▶ settle ──▶ poll ──▶ import ──▶ alias
//!                                    ▲  │                           │
//!                                    │  └──▶ removal of old imports │
//!                                    └──────────── wake ────────────┘
//! ```

mod api;
mod definitions;
mod settle;
mod show;
mod track;
mod work;
