//! The kinds of threads.

/// What a thread is for, and so which system calls it may make: see `calls`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum ThreadKind {
    /// The main thread, once all is set up: control connections and the last report.
    Control,
    /// Starts the other threads, and does for them what they may not.
    Steward,
    /// The serial console: its readers and its log.
    Console,
    /// Builds, saves, changes and ends the machine.
    StateDriver,
    /// Runs the guest.
    Vcpu,
    /// Serves queues of a virtio device.
    QueueWorker,
    /// Transfers for an executor without a ring.
    Transfer,
    /// Computes for executors.
    Offload,
    /// A long change of a disk, and the threads it starts.
    DiskJob,
    /// Looks on and tells, or keeps vCPUs slow, beside a migration.
    Watch,
    /// Moves the machine to or from another process, and the threads it starts.
    Migration,
}

impl ThreadKind {
    /// All of them, in the order of their numbers.
    pub const ALL: [Self; 11] = [
        Self::Control,
        Self::Steward,
        Self::Console,
        Self::StateDriver,
        Self::Vcpu,
        Self::QueueWorker,
        Self::Transfer,
        Self::Offload,
        Self::DiskJob,
        Self::Watch,
        Self::Migration,
    ];

    /// For people, as in "the … thread".
    pub const fn name(self) -> &'static str {
        match self {
            Self::Control => "control",
            Self::Steward => "steward",
            Self::Console => "console",
            Self::StateDriver => "state driver",
            Self::Vcpu => "vcpu",
            Self::QueueWorker => "queue worker",
            Self::Transfer => "transfer",
            Self::Offload => "offload",
            Self::DiskJob => "disk job",
            Self::Watch => "watch",
            Self::Migration => "migration",
        }
    }

    /// Its place in [`Self::ALL`].
    pub(crate) const fn index(self) -> usize {
        self as usize
    }
}
