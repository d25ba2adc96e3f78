//! The report a machine leaves behind.

use std::fs::File;
use std::io::{self, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::sync::OnceLock;
use std::time::{SystemTime, UNIX_EPOCH};

use control::{EndReason, EndReport, REPORT_FILE};
use rustix::fs::{Mode, OFlags};
use sandbox::{ThreadKind, Violation};
use spec::VmId;

/// What a defect's report needs, from when it is known.
static LAST_WILL: OnceLock<(OwnedFd, VmId)> = OnceLock::new();

/// Writes `report` into `directory`: whole or not at all, and on disk when this returns.
pub(crate) fn write(directory: impl AsFd, report: &EndReport) -> io::Result<()> {
    let temporary = format!(".{REPORT_FILE}.tmp");
    let flags = OFlags::CREATE | OFlags::WRONLY | OFlags::TRUNC | OFlags::CLOEXEC | OFlags::NOFOLLOW;
    let fd = rustix::fs::openat(&directory, &temporary, flags, Mode::from_raw_mode(0o640))?;
    let mut file = File::from(fd);
    serde_json::to_writer_pretty(&mut file, report)?;
    file.write_all(b"\n")?;
    file.sync_all()?;
    rustix::fs::renameat(&directory, &temporary, &directory, REPORT_FILE)?;
    Ok(())
}

/// From now on a defect of this process leaves a report of machine `id` in `directory`.
pub(crate) fn promise(directory: &OwnedFd, id: VmId) {
    if let Ok(directory) = directory.try_clone() {
        // A second machine is refused, so there is only one promise.
        let _ = LAST_WILL.set((directory, id));
    }
}

/// Leaves a report that this process has a defect, where one was promised.
pub(crate) fn leave_defect(message: String) {
    let Some((directory, id)) = LAST_WILL.get() else { return };
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    let report = EndReport {
        id: *id,
        reason: EndReason::Internal,
        message,
        resets: 0,
        at_unix_s: now.as_secs(),
    };
    // There is nobody left to tell if this fails too.
    let _ = write(directory, &report);
}

/// Tells of a system call that ends this process.
pub(crate) fn leave_forbidden(violation: &Violation) {
    tracing::error!(
        thread = violation.kind.map_or("nameless", ThreadKind::name),
        call = violation.call,
        "{violation}; the process ends"
    );
    leave_defect(format!(
        "karat-vmm was stopped: {violation}. Its guest may have taken it over, or it has a defect: please report it. Until that is \
         mended, seccomp = \"log\" in karat.toml lets such calls pass and has the kernel log them"
    ));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_report_replaces_the_one_before_and_leaves_nothing_else() {
        let directory = tempfile::tempdir().unwrap();
        let fd = File::open(directory.path()).unwrap();
        let mut report = EndReport {
            id: VmId::random(),
            reason: EndReason::DebugExit { code: 3 },
            message: "first".to_owned(),
            resets: 2,
            at_unix_s: 1,
        };
        write(&fd, &report).unwrap();
        report.message = "second".to_owned();
        write(&fd, &report).unwrap();
        let text = std::fs::read_to_string(directory.path().join(REPORT_FILE)).unwrap();
        assert_eq!(serde_json::from_str::<EndReport>(&text).unwrap(), report);
        assert_eq!(std::fs::read_dir(directory.path()).unwrap().count(), 1);
    }
}
