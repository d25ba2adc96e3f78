//! The HTTP API's bodies and error codes, shared by the daemon and its clients; the OpenAPI document is derived from them.
//!
//! Times are RFC 3339 in UTC; sizes are Kubernetes quantities where users write them and plain bytes where only programs do.

mod boot_source;
mod disk;
mod event;
mod image;
mod image_cache;
mod image_import;
mod image_upload;
mod metadef;
mod migration;
mod operation;
mod problem;
mod snapshot;
mod vm;
mod volume;

pub use boot_source::{
    BootSource, BootSourceCondition, BootSourceError, BootSourceFrom, BootSourceGarbageCollect, BootSourceImport,
    BootSourceList, BootSourceRetention, BootSourceWish,
};
pub use disk::{DiskMirror, DiskRequests, VmDisk, VmDiskLayer, VmDiskList};
pub use event::{Event, EventList, EventReason, Subject};
pub use image::{Image, ImageAccepted, ImageCondition, ImageCreate, ImageFailure, ImageList, ImagePatch, ImageState};
pub use image_cache::{ImageCache, ImageCacheEntry, ImageCacheState};
pub use image_import::{
    ImageFinding, ImageFsck, ImageImport, ImageImportInfo, ImagePush, ImageStore, ImageStoreList, ImageStoreState,
    ImageSums, ImportOptions,
};
pub use image_upload::{Upload, UploadList, UploadWish};
pub use metadef::{Metadef, MetadefAssociation, MetadefList, MetadefObject, MetadefProperty, MetadefTag};
pub use migration::{
    CpuFacts, DecisionRequest, DiskWay, IncomingMigration, IncomingMigrationList, IncomingMigrationWish, Migration,
    MigrationDecision, MigrationFigures, MigrationList, MigrationMethod, MigrationOptions, MigrationPatch,
    MigrationPhase, MigrationWish, MovingDisk, MovingVm,
};
pub use operation::{Operation, OperationKind, OperationList, OperationPhase, Progress};
pub use problem::{ErrorCode, PROBLEM_CONTENT_TYPE, ProblemBody};
pub use snapshot::{
    Snapshot, SnapshotAccepted, SnapshotList, SnapshotRestore, SnapshotRestored, SnapshotState, SnapshotWish,
};
pub use spec::{
    BootWish, ByteSize, DiskBus, DiskCache, DiskFormat, DiskLimits, DiskWish, HugePagesWish, MemoryBacking,
    MigrationId, NetworkWish, OperationId, Problem, SnapshotId, Topology, VmId, VmSpec, VolumeId,
};
pub use vm::{CloneMethod, Health, RootDisk, StopRequest, Vm, VmCondition, VmList, VmPhase, VmStatus};
pub use volume::{
    Preallocation, Volume, VolumeAccepted, VolumeAttachment, VolumeCheck, VolumeCheckRequest, VolumeCondition,
    VolumeConvert, VolumeLayer, VolumeList, VolumeMeasure, VolumeMeasureRequest, VolumeRepair, VolumeResize,
    VolumeSource, VolumeState, VolumeUpload, VolumeWish,
};
