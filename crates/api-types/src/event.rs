//! Events: what happened on the host, in order.

use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// Something happened. Also the data of each message on the event stream, where `id` is the message's id.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Event {
    /// Grows with each event, and when one happens again; replay starts after `Last-Event-ID`.
    pub id: u64,
    /// When.
    #[schema(value_type = String, format = DateTime)]
    pub at: Timestamp,
    /// What it is about.
    pub subject: Subject,
    /// What happened.
    pub reason: EventReason,
    /// For people.
    pub message: String,
    /// When it happened first.
    #[schema(value_type = String, format = DateTime)]
    pub first_at: Timestamp,
    /// How often it happened, with nothing else in between.
    pub count: u32,
}

/// What an event is about.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Subject {
    /// `vms`, `images`, `volumes`, `snapshots`, `boot-sources`, `operations`, `migrations` or `host`.
    pub collection: String,
    /// Its id: a UUID; a digest for images that have one; a name for boot sources.
    pub id: String,
    /// Its name, where it has one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
}

/// What happened, in one word.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub enum EventReason {
    /// A record was made.
    Created,
    /// A record was removed.
    Deleted,
    /// A machine entered another phase, or a volume or an image another state.
    PhaseChanged,
    /// A volume was attached to a machine.
    Attached,
    /// A volume was detached from a machine.
    Detached,
    /// A guest was reset.
    GuestReset,
    /// A running machine was found again after a restart of the daemon.
    Adopted,
    /// A boot source is doing differently, or a machine was made without what its image asks for.
    ConditionChanged,
    /// An operation moved on.
    OperationChanged,
    /// A move of a machine to or from another host entered another phase.
    MigrationChanged,
    /// The daemon started.
    DaemonStarted,
}

/// A page of events.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct EventList {
    /// Oldest first.
    pub items: Vec<Event>,
}
