//! What a machine prints: live, or what is left of it.

use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};

use api_types::ErrorCode;
use tokio::net::UnixStream;

use crate::failure::Failure;
use crate::host::Host;
use crate::machine::RunDir;

/// Name of the newest console log in a machine's log directory.
const CONSOLE_LOG: &str = "console.log";
/// Most that is read of a log at once, bytes.
const TAIL_MAX: u64 = 16 << 20;

/// A machine's console.
pub enum Console {
    /// The machine has a process: first comes what it printed before, then what it prints; what is written, the guest reads.
    Live(UnixStream),
    /// It has none.
    Ended(LogTail),
}

/// The end of a console log.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LogTail {
    /// The last bytes that were printed.
    pub bytes: Vec<u8>,
    /// In what phase the machine is, and why, for people.
    pub state: String,
}

impl Host {
    /// The console of a machine; up to `tail_bytes` of its log where it has no process.
    pub async fn console(&self, name_or_id: &str, tail_bytes: u64) -> Result<Console, Failure> {
        let vm = self.vm(name_or_id).await?;
        let socket = RunDir::new(&self.0.context.config.run_dir, vm.id).console();
        if let Ok(stream) = UnixStream::connect(&socket).await {
            return Ok(Console::Live(stream));
        }
        self.log(name_or_id, tail_bytes).await.map(Console::Ended)
    }

    /// The last `tail_bytes` of a machine's console log.
    pub async fn log(&self, name_or_id: &str, tail_bytes: u64) -> Result<LogTail, Failure> {
        let vm = self.vm(name_or_id).await?;
        let path = self.0.context.log_dir(vm.id).join(CONSOLE_LOG);
        let read = tokio::task::spawn_blocking(move || read_tail(&path, tail_bytes).map_err(|error| (path, error)));
        let failed = |text| Failure::new(ErrorCode::Internal, text);
        let bytes = read
            .await
            .map_err(|_| failed("the work was lost".to_owned()))?
            .map_err(|(path, error): (PathBuf, _)| failed(format!("{} can not be read: {error}", path.display())))?;
        let why = vm.status.message.map(|why| format!(": {why}")).unwrap_or_default();
        let state = format!("machine {} is {:?}{why}", vm.spec.name, vm.status.phase);
        Ok(LogTail { bytes, state })
    }
}

fn read_tail(path: &Path, tail_bytes: u64) -> io::Result<Vec<u8>> {
    let mut file = match File::open(path) {
        Ok(file) => file,
        // Nothing was printed yet.
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(error),
    };
    let wanted = tail_bytes.min(TAIL_MAX);
    let length = file.metadata()?.len();
    file.seek(SeekFrom::Start(length.saturating_sub(wanted)))?;
    let mut bytes = Vec::new();
    file.take(wanted).read_to_end(&mut bytes)?;
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tail_is_the_end_of_the_file_or_all_of_it() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join(CONSOLE_LOG);
        assert!(read_tail(&path, 10).unwrap().is_empty());
        std::fs::write(&path, "login: ").unwrap();
        assert_eq!(read_tail(&path, 3).unwrap(), b"n: ");
        assert_eq!(read_tail(&path, u64::MAX).unwrap(), b"login: ");
    }
}
