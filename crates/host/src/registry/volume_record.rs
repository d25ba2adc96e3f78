//! What is kept of a volume.

use api_types::{
    OperationKind, Volume, VolumeAttachment, VolumeCheck, VolumeCondition, VolumeRepair, VolumeSource, VolumeState,
    VolumeUpload, VolumeWish,
};
use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use spec::{DiskFormat, OperationId, VolumeId};

/// What a volume's files take.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Sizes {
    /// Space on the host, bytes.
    pub(crate) usage_bytes: u64,
    /// Length of the upload, bytes.
    pub(crate) received_bytes: u64,
}

/// A volume as the registry keeps it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct VolumeRecord {
    pub(crate) id: VolumeId,
    /// What was asked for.
    pub(crate) wish: VolumeWish,
    /// How its bytes lie in its file, once that is known.
    pub(crate) format: Option<DiskFormat>,
    /// Size the guest sees, bytes, once that is known.
    pub(crate) size_bytes: Option<u64>,
    /// Digest of the image it is made from.
    pub(crate) image: Option<String>,
    /// The store that has this image, where that is not the default one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) image_store: Option<String>,
    /// The volume it is copied from.
    pub(crate) copied_from: Option<VolumeId>,
    pub(crate) state: VolumeState,
    pub(crate) reason: Option<String>,
    pub(crate) message: Option<String>,
    /// Length of the upload when all of it had come, bytes.
    #[serde(default)]
    pub(crate) sent_bytes: Option<u64>,
    /// When `state` or `reason` last changed.
    pub(crate) changed_at: Timestamp,
    /// What is being done to it. The next daemon goes on with it.
    pub(crate) job: Option<Job>,
    pub(crate) last_check: Option<VolumeCheck>,
    pub(crate) created_at: Timestamp,
    /// Its files, top first: each reads what it does not hold from the next. Empty: there is one, number 0.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub(crate) layers: Vec<LayerFile>,
    /// Files it does not consist of any more, to be removed.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub(crate) dropped: Vec<LayerFile>,
    /// Number of the file that was added last. None comes twice: what a machine tells of one must not be taken for another's.
    #[serde(default)]
    pub(crate) last_file: u32,
    /// The row's own; what is written here is not kept.
    pub(crate) revision: u64,
}

/// One file of a volume.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct LayerFile {
    /// Told apart by this; 0 for the one the volume was made with.
    pub(crate) number: u32,
    pub(crate) format: DiskFormat,
}

/// Work on a volume, and the operation it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Job {
    pub(crate) operation: OperationId,
    pub(crate) task: Task,
    /// How many daemons have begun it since one last stopped it in order.
    #[serde(default)]
    pub(crate) begun: u32,
}

impl Job {
    /// New work.
    pub(crate) const fn new(operation: OperationId, task: Task) -> Self {
        Self {
            operation,
            task,
            begun: 1,
        }
    }
}

/// Kinds of work. Each can be begun anew after it was cut off anywhere.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Task {
    /// Fill a new volume from its source.
    Create,
    /// Look at what was uploaded, and make a volume of it.
    Finish,
    /// Make it this large.
    Resize {
        /// Bytes.
        size_bytes: u64,
    },
    /// Check it.
    Check {
        /// What to repair.
        repair: Option<VolumeRepair>,
    },
    /// Have the machine that runs with it go on in an overlay.
    Snapshot {
        /// The overlay's file.
        overlay: LayerFile,
    },
    /// Have the machine copy into the top what is below it.
    Stream,
    /// Have the machine copy it into a file and go on there.
    Move {
        /// The file.
        target: LayerFile,
    },
    /// Have the machine that runs with another volume copy that into this one.
    Mirror,
    /// Copy into the newest file what it reads from older ones and from the image: it stands alone then.
    Rebase,
    /// Write what the newest file holds into the one below it, which is the volume's newest then.
    Commit,
}

impl Task {
    /// Whether a machine process does it. What that left is looked at by the next daemon, not done again.
    pub(crate) const fn is_live(self) -> bool {
        self.new_file().is_some() || matches!(self, Self::Stream | Self::Mirror)
    }

    /// Whether the volume consists of other files when it is done.
    pub(crate) const fn changes_files(self) -> bool {
        self.new_file().is_some() || matches!(self, Self::Stream | Self::Rebase | Self::Commit)
    }

    /// Whether it fills a new volume.
    pub(crate) const fn is_new(self) -> bool {
        matches!(self, Self::Create | Self::Finish | Self::Mirror)
    }

    /// The file that is on top afterwards.
    pub(crate) const fn new_file(self) -> Option<LayerFile> {
        match self {
            Self::Snapshot { overlay: file } | Self::Move { target: file } => Some(file),
            _ => None,
        }
    }

    pub(crate) const fn kind(self) -> OperationKind {
        match self {
            Self::Create => OperationKind::VolumeCreate,
            Self::Finish => OperationKind::VolumeUpload,
            Self::Resize { .. } => OperationKind::VolumeResize,
            Self::Check { .. } => OperationKind::VolumeCheck,
            Self::Snapshot { .. } => OperationKind::VolumeSnapshot,
            Self::Stream => OperationKind::VolumeStream,
            Self::Move { .. } | Self::Mirror => OperationKind::VolumeMirror,
            Self::Rebase => OperationKind::VolumeRebase,
            Self::Commit => OperationKind::VolumeCommit,
        }
    }

    /// Why a volume is as it is while this goes on, in one word.
    const fn reason(self) -> &'static str {
        match self {
            Self::Create => "Creating",
            Self::Finish => "TakingOver",
            Self::Resize { .. } => "Resizing",
            Self::Check { repair: None } => "Checking",
            Self::Check { .. } => "Repairing",
            Self::Snapshot { .. } => "TakingSnapshot",
            Self::Stream => "Streaming",
            Self::Move { .. } => "Moving",
            Self::Mirror => "Copying",
            Self::Rebase => "Rebasing",
            Self::Commit => "Committing",
        }
    }
}

impl VolumeRecord {
    pub(crate) fn name(&self) -> &str {
        &self.wish.name
    }

    /// Whether `name` is this volume's name or id.
    pub(crate) fn is_called(&self, name: &str) -> bool {
        self.name() == name || self.id.to_string() == name
    }

    /// Whether it keeps only what differs from its image.
    pub(crate) fn shares_image(&self) -> bool {
        let whole = self.wish.compressed || matches!(self.wish.source, VolumeSource::Image { copy: true, .. });
        self.image.is_some() && self.bottom_format() == Some(DiskFormat::Qcow2) && !whole
    }

    fn bottom_format(&self) -> Option<DiskFormat> {
        self.layers.last().map(|layer| layer.format).or(self.format)
    }

    /// Its files, top first; at least one.
    pub(crate) fn files(&self) -> Vec<LayerFile> {
        if self.layers.is_empty() {
            return vec![self.top()];
        }
        self.layers.clone()
    }

    /// The file that is written.
    pub(crate) fn top(&self) -> LayerFile {
        self.layers.first().copied().unwrap_or(LayerFile {
            number: 0,
            format: self.format.unwrap_or(DiskFormat::Raw),
        })
    }

    /// A file it never had.
    pub(crate) fn new_file(&self, format: DiskFormat) -> LayerFile {
        let files = self.layers.iter().chain(&self.dropped).map(|layer| layer.number);
        let taken = files.chain([self.last_file]);
        LayerFile {
            number: taken.max().unwrap_or(0) + 1,
            format,
        }
    }

    /// Takes over what a task that changes its files came to.
    pub(crate) fn settle(&mut self, task: Task, done: bool) {
        let had = self.files();
        let has = match (task, done) {
            (Task::Snapshot { overlay }, true) => std::iter::once(overlay).chain(had.iter().copied()).collect(),
            (Task::Stream | Task::Rebase, true) => vec![self.top()],
            (Task::Commit, true) if had.len() > 1 => had.iter().skip(1).copied().collect(),
            (Task::Move { target }, true) => vec![target],
            _ => had.clone(),
        };
        if done && matches!(task, Task::Stream | Task::Rebase | Task::Move { .. }) {
            // It stands alone.
            self.image = None;
        }
        let gone = had
            .into_iter()
            .chain(task.new_file())
            .filter(|file| !has.contains(file));
        self.dropped.extend(gone);
        self.format = has.first().map(|top| top.format).or(self.format);
        self.layers = has;
    }

    /// The image that must stay for this volume's sake.
    pub(crate) fn needs_image(&self) -> Option<&str> {
        let needed = match self.state {
            VolumeState::Creating => true,
            VolumeState::Ready => self.shares_image(),
            VolumeState::Failed | VolumeState::Deleting => false,
        };
        self.image.as_deref().filter(|_| needed)
    }

    /// The volume that is being copied into this one.
    pub(crate) fn copies(&self) -> Option<VolumeId> {
        self.copied_from.filter(|_| self.state == VolumeState::Creating)
    }

    /// Whether it is to be sent and was not sent completely.
    pub(crate) fn awaits_upload(&self) -> bool {
        self.state == VolumeState::Creating
            && self.job.is_none()
            && matches!(self.wish.source, VolumeSource::Upload { .. })
    }

    /// Moves to `state`; `reason` and `message` replace what was there.
    pub(crate) fn enter(&mut self, state: VolumeState, reason: Option<&str>, message: Option<String>, now: Timestamp) {
        self.state = state;
        self.reason = reason.map(str::to_owned);
        self.message = message;
        self.changed_at = now;
    }

    /// As the API shows it.
    pub(crate) fn describe(&self, attached_to: Vec<VolumeAttachment>, sizes: Sizes) -> Volume {
        let shares = self.shares_image() && !matches!(self.state, VolumeState::Failed);
        Volume {
            id: self.id,
            name: self.wish.name.clone(),
            format: self.format,
            size_bytes: self.size_bytes,
            usage_bytes: sizes.usage_bytes,
            source: self.wish.source.clone(),
            image_digest: self.image.clone().filter(|_| shares),
            preallocation: self.wish.preallocation,
            state: self.state,
            reason: self.reason.clone(),
            message: self.message.clone(),
            operation: self.job.map(|job| job.operation),
            upload: self.awaits_upload().then_some(VolumeUpload {
                received_bytes: sizes.received_bytes,
            }),
            layers: Vec::new(),
            attached_to,
            last_check: self.last_check.clone(),
            conditions: self.conditions(),
            created_at: self.created_at,
            revision: self.revision,
        }
    }

    fn conditions(&self) -> Vec<VolumeCondition> {
        let condition = |kind: &str, status, reason: &str| VolumeCondition {
            kind: kind.to_owned(),
            status,
            reason: reason.to_owned(),
            message: self.message.clone().unwrap_or_default(),
            last_transition_at: self.changed_at,
        };
        let word = self.reason.as_deref();
        let (bound, ready) = match self.state {
            VolumeState::Creating => ((false, word.unwrap_or("Creating")), (false, word.unwrap_or("Creating"))),
            VolumeState::Ready => ((true, "Bound"), (true, "Ready")),
            VolumeState::Failed => ((false, word.unwrap_or("Failed")), (false, word.unwrap_or("Failed"))),
            VolumeState::Deleting => ((true, "Deleting"), (false, "Deleting")),
        };
        let running = match self.job {
            Some(job) => (true, job.task.reason()),
            None if self.state == VolumeState::Failed => (false, word.unwrap_or("Failed")),
            None if self.awaits_upload() => (false, "AwaitingUpload"),
            None => (false, "Completed"),
        };
        vec![
            condition("Bound", bound.0, bound.1),
            condition("Running", running.0, running.1),
            condition("Ready", ready.0, ready.1),
        ]
    }
}
