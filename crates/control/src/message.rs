//! Everything that can be said.

use serde::{Deserialize, Serialize};
use spec::{MachineSpec, Name, VmId};

use crate::disk::{DiskChain, DiskChange, DiskJob, DiskJobState, DiskReport};
use crate::migration::{DepartVm, LinkCredentials, MigrationKey, MigrationNews};
use crate::report::EndReport;
use crate::state::VmState;

/// Grows when a message changes its meaning; a daemon adopts only processes that speak its own version or an older one.
pub const PROTOCOL_VERSION: u32 = 5;
/// File descriptor of the listening control socket in a new machine process (first after the standard three).
pub const CONTROL_LISTENER_FD: i32 = 3;
/// File descriptor of the listening console socket in a new machine process.
pub const CONSOLE_LISTENER_FD: i32 = 4;

/// Daemon to machine process.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ToVm {
    /// Chosen by the sender, unique among its unanswered requests.
    pub number: u64,
    /// What is asked.
    pub request: VmRequest,
}

/// What the daemon asks. Every request is answered by exactly one [`FromVm::Done`], [`FromVm::Disks`] or
/// [`FromVm::Refused`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum VmRequest {
    /// Become this machine; the files travel with the frame. Answered when memory, devices and vCPUs stand. With an
    /// [`FdRole::SavedDirectory`], it is the machine that was saved there, and paused.
    Create(Box<CreateVm>),
    /// Run.
    Start,
    /// Stop vCPUs and drain devices; answered when all is quiet.
    Pause,
    /// Go on.
    Resume,
    /// Press the power button; the guest decides what follows.
    PowerButton,
    /// Power-cycle the machine.
    Reset,
    /// Write the report and exit; answered just before.
    Quit,
    /// Tell the state.
    Status,
    /// Change a disk; answered when it is changed.
    Disk {
        /// Its name.
        disk: Name,
        /// How.
        #[serde(flatten)]
        change: DiskChange,
    },
    /// Save the paused machine into a directory, which travels with the frame; answered when all of it is durable. The disks are
    /// no part of it: they are as the guest left them, flushed.
    Save,
    /// Tell what the disks are and did; answered by [`FromVm::Disks`].
    DiskReports,
    /// Move to another process; answered when the move has begun, and [`MigrationNews`] tell the rest.
    Depart(Box<DepartVm>),
    /// Give the move this much of the network from now on.
    DepartTune {
        /// Bytes per second over all streams; 0 is no limit.
        bandwidth_bytes_per_s: u64,
    },
    /// Give the move up. Refused when the machine has departed, or is about to.
    DepartCancel,
    /// New sockets, connected to the target, travel with the frame: the one for control, then those for pages.
    DepartLinks {
        /// How many.
        count: u32,
    },
    /// What is on record: the answer to [`MigrationNews::Decide`].
    DepartDecided {
        /// The machine has departed; else it stays.
        departed: bool,
    },
    /// Become a machine that comes from elsewhere, and run it when it is there. [`MigrationNews`] tell the rest.
    Arrive(Box<ArriveVm>),
    /// What is on record at the source: the answer to [`MigrationNews::InDoubt`].
    ArriveDecided {
        /// The machine has departed there; else it stays there.
        departed: bool,
    },
}

/// A machine and the files that belong to it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CreateVm {
    /// What to build.
    pub machine: MachineSpec,
    /// What each disk of the machine consists of, in their order.
    pub chains: Vec<DiskChain>,
    /// What each file that came with the frame is for, in order. Exactly one of each needed role, none twice.
    pub fds: Vec<FdRole>,
    /// The console log is rotated at this size, bytes.
    pub console_log_max_bytes: u64,
    /// How many rotated console logs are kept.
    pub console_log_keep: u32,
}

/// Become a machine that comes from elsewhere.
///
/// The files of the machine travel with it, as with a creation, and a [`FdRole::MigrationListener`]. Answered when memory,
/// devices and vCPUs stand, and the listener is being accepted on.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ArriveVm {
    /// The machine.
    pub create: CreateVm,
    /// Which attempt. Another one is refused.
    pub key: MigrationKey,
    /// Over TLS with these; plain where there are none.
    pub credentials: Option<LinkCredentials>,
    /// Longest wait for the source, and between two signs of it before it has said how long it may be silent, milliseconds.
    pub patience_ms: u64,
}

/// What a file is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(tag = "role", rename_all = "snake_case")]
pub enum FdRole {
    /// Kernel, open for reading.
    Kernel,
    /// Initial RAM file system, open for reading.
    Initrd,
    /// A layer of the disk at this place of [`MachineSpec::disks`].
    Disk {
        /// The disk's place.
        index: u32,
        /// The layer's place in its chain, from the top.
        layer: u32,
    },
    /// The data file of such a layer.
    DiskData {
        /// The disk's place.
        index: u32,
        /// The layer's place in its chain, from the top.
        layer: u32,
    },
    /// One queue pair of the interface at this place of [`MachineSpec::nets`]: a tap in multi-queue mode with virtio headers.
    Tap {
        /// The interface's place.
        index: u32,
        /// The pair, from 0.
        pair: u32,
    },
    /// Directory in which `console.log` and its predecessors are kept.
    LogDirectory,
    /// Directory in which the report is left.
    RunDirectory,
    /// Directory that [`VmRequest::Save`] filled: the machine is not booted, it goes on from there, and is paused when it is
    /// created. Its specification has to be the same in all a guest can see.
    SavedDirectory {
        /// Its memory is mapped instead of read: the machine stands at once, however much it is, and pages come when they are
        /// touched. Checksums of memory are not looked at then, and the file must not change while the machine is there.
        lazy: bool,
        /// It is not the machine that was saved, at another place, but a copy, of which there may be more: the guest is told, so that
        /// its random numbers are not those of the others.
        #[serde(default)]
        copy: bool,
    },
    /// Listening socket on which the source of [`VmRequest::Arrive`] connects.
    MigrationListener,
}

/// Machine process to daemon.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "says", rename_all = "snake_case")]
pub enum FromVm {
    /// The first frame of every connection.
    Hello(Hello),
    /// The request with this number was carried out.
    Done {
        /// The request's number.
        number: u64,
        /// How things stand now.
        status: VmStatus,
    },
    /// The request with this number was not carried out, and changed nothing, except that a failed `Create` ends the process.
    Refused {
        /// The request's number.
        number: u64,
        /// Why.
        refusal: Refusal,
    },
    /// What was asked for by [`VmRequest::DiskReports`].
    Disks {
        /// The request's number.
        number: u64,
        /// One for each disk, in no order.
        disks: Vec<DiskReport>,
    },
    /// Something happened.
    Event(VmEvent),
}

/// Who is speaking.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Hello {
    /// [`PROTOCOL_VERSION`] of the machine process.
    pub protocol: u32,
    /// Its process id.
    pub pid: u32,
    /// Version of the program.
    pub version: String,
    /// How things stand.
    pub status: VmStatus,
    /// What was told last of a migration, if there was one.
    #[serde(default)]
    pub migration: Option<MigrationNews>,
}

/// How things stand.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct VmStatus {
    /// The machine, once it was created.
    pub id: Option<VmId>,
    /// Its state.
    pub state: VmState,
    /// How often the guest was reset since the start.
    pub resets: u32,
    /// Microseconds from `Start`, or from the `Resume` of a machine that was saved, to the first entry into guest code, once it happened.
    pub first_entry_us: Option<u64>,
}

/// Why a request was not carried out.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Refusal {
    /// For programs.
    pub kind: RefusalKind,
    /// For people.
    pub message: String,
}

/// Kinds of refusal.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum RefusalKind {
    /// Not in this state; see [`VmState::may`].
    WrongState,
    /// The kernel or initrd can not be booted.
    BadKernel,
    /// The host lacks what the machine needs: memory, huge pages, a KVM capability.
    HostLacks,
    /// A file that came along is missing, doubled or of the wrong kind, or a disk image that can not be used.
    BadFile,
    /// The file system is full.
    NoSpace,
    /// There is no disk of this name, or there is one already.
    NoSuchDisk,
    /// Anything else; the message says what.
    Failed,
}

/// Something that happened without being asked for, or as a consequence.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum VmEvent {
    /// The state is another one now.
    StateChanged {
        /// Which.
        state: VmState,
    },
    /// The guest was reset and starts anew.
    GuestReset {
        /// How often by now.
        resets: u32,
    },
    /// A job that is at work on a disk, or was, stands so.
    DiskJob {
        /// The disk.
        disk: Name,
        /// The job.
        job: DiskJob,
        /// How it stands.
        #[serde(flatten)]
        state: DiskJobState,
    },
    /// A migration has something to say.
    Migration(MigrationNews),
    /// The machine ended; the same report is in the run directory.
    Ended {
        /// Why.
        report: EndReport,
    },
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::disk::{DiskJobReport, DiskLatency, DiskLayer};
    use crate::report::EndReason;
    use spec::{ByteSize, DiskFormat, DiskLimits};

    fn layer() -> DiskLayer {
        DiskLayer {
            name: "/d".to_owned(),
            format: DiskFormat::Qcow2,
            writable: true,
            data_file: Some("/e".to_owned()),
        }
    }

    fn report_of_a_disk() -> DiskReport {
        DiskReport {
            name: "root".parse().unwrap(),
            size_bytes: 1,
            layers: vec![layer()],
            limits: DiskLimits::default(),
            job: Some(DiskJobReport {
                job: DiskJob::Stream,
                target: "/d".to_owned(),
                state: DiskJobState::Failed {
                    message: "m".to_owned(),
                },
            }),
            reads: DiskLatency {
                count: 1,
                within: vec![0, 1],
                ..DiskLatency::default()
            },
            writes: DiskLatency::default(),
            flushes: DiskLatency::default(),
            trims: DiskLatency::default(),
            read_bytes: 2,
            written_bytes: 3,
            errors: 4,
        }
    }

    #[test]
    fn every_change_of_a_disk_crosses_unchanged() {
        let chain = DiskChain {
            layers: vec![layer(), layer()],
        };
        assert_eq!(chain.file_count(), 4);
        let spec: spec::DiskSpec = serde_json::from_str(
            r#"{"name": "d", "serial": "s", "bus": "scsi", "read_only": true, "cdrom": true, "queues": 1,
                "cache": "direct", "sector": 4096, "limits": {"bytes_per_s": "1M"}}"#,
        )
        .unwrap();
        let limits = DiskLimits {
            bytes_per_s: Some(ByteSize::from_bytes(5)),
            ..DiskLimits::default()
        };
        for change in [
            DiskChange::Resize { size_bytes: u64::MAX },
            DiskChange::Limit { limits },
            DiskChange::Attach {
                spec: Box::new(spec),
                chain,
            },
            DiskChange::Snapshot {
                overlay: layer(),
                backing: "d".to_owned(),
            },
            DiskChange::Stream,
            DiskChange::Mirror {
                target: layer(),
                is_zero: true,
                pivot: false,
            },
            DiskChange::Cancel,
            DiskChange::Detach,
        ] {
            let disk = "d".parse().unwrap();
            let request = VmRequest::Disk { disk, change };
            let message = ToVm { number: 1, request };
            let text = serde_json::to_string(&message).unwrap();
            assert_eq!(serde_json::from_str::<ToVm>(&text).unwrap(), message, "{text}");
        }
    }

    /// Tags of nested messages share one JSON object, so they must not have one name.
    #[test]
    fn every_message_of_a_machine_crosses_unchanged() {
        let status = VmStatus {
            id: Some(VmId::random()),
            state: VmState::Running,
            resets: 1,
            first_entry_us: Some(2),
        };
        let report = EndReport {
            id: VmId::random(),
            reason: EndReason::DebugExit { code: 3 },
            message: "m".to_owned(),
            resets: 1,
            at_unix_s: 4,
        };
        let refusal = Refusal {
            kind: RefusalKind::BadKernel,
            message: "m".to_owned(),
        };
        let hello = Hello {
            protocol: PROTOCOL_VERSION,
            pid: 5,
            version: "6".to_owned(),
            status: status.clone(),
            migration: Some(MigrationNews::Departed),
        };
        let state = VmState::Paused;
        for message in [
            FromVm::Hello(hello),
            FromVm::Done { number: 7, status },
            FromVm::Refused { number: 8, refusal },
            FromVm::Event(VmEvent::StateChanged { state }),
            FromVm::Event(VmEvent::GuestReset { resets: 9 }),
            FromVm::Event(VmEvent::DiskJob {
                disk: "d".parse().unwrap(),
                job: DiskJob::Stream,
                state: DiskJobState::Running {
                    done_bytes: 1,
                    total_bytes: 2,
                },
            }),
            FromVm::Disks {
                number: 10,
                disks: vec![report_of_a_disk()],
            },
            FromVm::Event(VmEvent::Ended { report }),
        ] {
            let text = serde_json::to_string(&message).unwrap();
            assert_eq!(serde_json::from_str::<FromVm>(&text).unwrap(), message, "{text}");
        }
    }
}
