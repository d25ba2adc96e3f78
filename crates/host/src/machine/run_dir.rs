//! A machine's run directory: its sockets, and the report its process leaves.

use std::fs::{self, DirBuilder};
use std::io;
use std::os::unix::fs::DirBuilderExt;
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};

use control::{EndReport, REPORT_FILE};
use spec::VmId;

/// Longest report that is read, bytes; a fault with the registers of every vCPU fits.
const REPORT_MAX: u64 = 1 << 20;

/// `<run_dir>/vms/<id>`, whether it exists or not.
#[derive(Debug, Clone)]
pub(crate) struct RunDir {
    id: VmId,
    path: PathBuf,
}

/// The sockets a new machine process inherits.
pub(crate) struct Listeners {
    pub(crate) control: UnixListener,
    pub(crate) console: UnixListener,
}

impl RunDir {
    /// Of the machine `id`.
    pub(crate) fn new(run_dir: &Path, id: VmId) -> Self {
        Self {
            id,
            path: parent(run_dir).join(id.to_string()),
        }
    }

    /// The directory.
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// Where the machine process answers the daemon.
    pub(crate) fn control(&self) -> PathBuf {
        self.path.join("control.sock")
    }

    /// Where the machine's console is.
    pub(crate) fn console(&self) -> PathBuf {
        self.path.join("console.sock")
    }

    /// Makes the directory anew, empty, and listens in it. Only for a machine without a process.
    pub(crate) fn prepare(&self) -> io::Result<Listeners> {
        self.remove()?;
        DirBuilder::new().recursive(true).mode(0o700).create(&self.path)?;
        Ok(Listeners {
            control: UnixListener::bind(self.control())?,
            console: UnixListener::bind(self.console())?,
        })
    }

    /// Removes the directory and all in it; nothing if it is not there.
    pub(crate) fn remove(&self) -> io::Result<()> {
        match fs::remove_dir_all(&self.path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
            other => other,
        }
    }

    /// The report the machine process left, if it did and it is about this machine.
    pub(crate) fn report(&self) -> Option<EndReport> {
        let path = self.path.join(REPORT_FILE);
        let length = fs::metadata(&path).ok()?.len();
        if length > REPORT_MAX {
            tracing::warn!(path = %path.display(), length, "report of a machine is too long to be one");
            return None;
        }
        let bytes = fs::read(&path).ok()?;
        match serde_json::from_slice::<EndReport>(&bytes) {
            Ok(report) if report.id == self.id => Some(report),
            Ok(report) => {
                tracing::warn!(path = %path.display(), other = %report.id, "report is about another machine");
                None
            }
            Err(error) => {
                tracing::warn!(path = %path.display(), %error, "report of a machine is not understood");
                None
            }
        }
    }
}

/// Ids of the machines that have a run directory.
pub(crate) fn present(run_dir: &Path) -> Vec<VmId> {
    let Ok(entries) = fs::read_dir(parent(run_dir)) else {
        return Vec::new();
    };
    entries
        .filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok())
        .collect()
}

fn parent(run_dir: &Path) -> PathBuf {
    run_dir.join("vms")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn is_made_anew_and_reports_only_its_own_machine() {
        let root = tempfile::tempdir().unwrap();
        let dir = RunDir::new(root.path(), VmId::random());
        drop(dir.prepare().unwrap());
        let report = |id: VmId| {
            format!(
                r#"{{"id": "{id}", "reason": {{"kind": "requested"}}, "message": "", "resets": 0, "at_unix_s": 0}}"#
            )
        };
        let file = dir.path().join(REPORT_FILE);
        for (text, told) in [
            (report(dir.id), true),
            (report(VmId::random()), false),
            ("{".to_owned(), false),
        ] {
            fs::write(&file, text).unwrap();
            assert_eq!(dir.report().is_some(), told);
        }
        assert_eq!(present(root.path()), [dir.id]);
        let listeners = dir.prepare().unwrap();
        assert!(!file.exists() && dir.control().exists() && dir.console().exists());
        drop(listeners);
        dir.remove().unwrap();
        dir.remove().unwrap();
        assert!(present(root.path()).is_empty());
    }
}
