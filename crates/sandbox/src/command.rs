//! A program to run confined, and the loop that watches it.

use std::ffi::{OsStr, OsString};
use std::io::{self, Read};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::fs::OFlags;
use rustix::pipe::PipeFlags;
use rustix::process::{Pid, PidfdFlags, Resource, Signal};

use crate::child::{self, Preparation};
use crate::{End, Gap, Outcome, RunError, rules};

/// How often the stop request is looked at while the program is silent.
const STOP_CHECK: Duration = Duration::from_millis(100);
/// Bytes of standard error kept for the report.
const STDERR_TAIL_BYTES: usize = 4096;

/// Upper bounds on what a confined program may use. No core dump is ever written.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    /// CPU time of all its threads; rounded up to a second.
    pub cpu: Duration,
    /// Address space, bytes.
    pub address_space_bytes: u64,
    /// Size of any file it writes, bytes.
    pub file_size_bytes: u64,
    /// Open descriptors.
    pub open_files: u64,
}

impl Default for Limits {
    /// A minute of CPU, 1 GiB of address space, 64 descriptors, and no file may be written.
    fn default() -> Self {
        Self {
            cpu: Duration::from_secs(60),
            address_space_bytes: 1 << 30,
            file_size_bytes: 0,
            open_files: 64,
        }
    }
}

/// A program to be run to its end, confined as the crate describes.
///
/// Nothing is allowed unless it was asked for: [`ConfinedCommand::read`] and [`ConfinedCommand::write`] name what it may open
/// besides the system's programs and libraries.
#[derive(Debug)]
pub struct ConfinedCommand {
    program: PathBuf,
    arguments: Vec<OsString>,
    read: Vec<PathBuf>,
    write: Vec<PathBuf>,
    limits: Limits,
    deadline: Duration,
}

impl ConfinedCommand {
    /// `program` by its absolute path; it must be killed if it has not ended `deadline` after its start.
    pub fn new(program: impl Into<PathBuf>, deadline: Duration) -> Self {
        Self {
            program: program.into(),
            arguments: Vec::new(),
            read: Vec::new(),
            write: Vec::new(),
            limits: Limits::default(),
            deadline,
        }
    }

    /// Adds an argument.
    #[must_use]
    pub fn arg(mut self, argument: impl AsRef<OsStr>) -> Self {
        self.arguments.push(argument.as_ref().to_os_string());
        self
    }

    /// Lets it read `path`, which must exist: a file, or a directory and all below it.
    #[must_use]
    pub fn read(mut self, path: impl AsRef<Path>) -> Self {
        self.read.push(path.as_ref().to_path_buf());
        self
    }

    /// Lets it read and write `path`, which must exist: a file, or a directory and all below it.
    #[must_use]
    pub fn write(mut self, path: impl AsRef<Path>) -> Self {
        self.write.push(path.as_ref().to_path_buf());
        self
    }

    /// Replaces the default limits.
    #[must_use]
    pub fn limits(mut self, limits: Limits) -> Self {
        self.limits = limits;
        self
    }

    /// Runs the program to its end and returns how it ended. Blocks; the calling thread must not end before (it cannot, in
    /// this call), since the program dies with the thread that started it.
    ///
    /// `on_stdout` sees standard output as it comes, in pieces of any size. `stop` is asked at least ten times a second; true
    /// kills the program. When the program has ended, by itself or not, its whole session is killed: it leaves nothing behind.
    pub fn run(self, on_stdout: &mut dyn FnMut(&[u8]), stop: &dyn Fn() -> bool) -> Result<Outcome, RunError> {
        if !self.program.is_file() {
            return Err(RunError::NoProgram(self.program));
        }
        let ruleset = rules::build(&self.program, &self.read, &self.write)?;
        let mut gaps = Vec::new();
        if ruleset.is_none() {
            gaps.push(Gap::Landlock);
        }
        let spawn_failed = |source: io::Error| RunError::Spawn {
            program: self.program.clone(),
            source,
        };
        let (report_in, report) =
            rustix::pipe::pipe_with(PipeFlags::CLOEXEC).map_err(|errno| spawn_failed(errno.into()))?;
        let mut command = Command::new(&self.program);
        command
            .args(&self.arguments)
            .env_clear()
            .env("LC_ALL", "C")
            .current_dir("/")
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        let preparation = Preparation {
            ruleset,
            report,
            parent: rustix::process::getpid(),
            limits: self.rlimits(),
        };
        child::install(&mut command, preparation);
        let spawned = command.spawn();
        drop(command); // Holds the write end of the report pipe.
        let mut child = Running(spawned.map_err(spawn_failed)?);
        let mut report = Vec::new();
        let watched = std::fs::File::from(report_in)
            .read_to_end(&mut report)
            .and_then(|_| watch(&mut child, self.deadline, on_stdout, stop));
        if report.contains(&child::REPORT_NO_NETWORK_NAMESPACE) {
            gaps.push(Gap::Network);
        }
        let (end, stderr_tail) = watched.map_err(|source| RunError::Watch {
            program: self.program.clone(),
            source,
        })?;
        Ok(Outcome { end, stderr_tail, gaps })
    }

    fn rlimits(&self) -> Vec<(Resource, u64)> {
        let cpu_s = self.limits.cpu.as_secs() + u64::from(self.limits.cpu.subsec_nanos() > 0);
        vec![
            (Resource::Core, 0),
            (Resource::Cpu, cpu_s.max(1)),
            (Resource::As, self.limits.address_space_bytes),
            (Resource::Fsize, self.limits.file_size_bytes),
            (Resource::Nofile, self.limits.open_files),
        ]
    }
}

/// A started program; killed with its session and reaped when dropped.
struct Running(Child);

impl Running {
    fn pid(&self) -> Option<Pid> {
        i32::try_from(self.0.id()).ok().and_then(Pid::from_raw)
    }

    /// Kills the program and whatever it started. The child is not reaped yet, so its id still names its session.
    fn kill(&self) {
        if let Some(pid) = self.pid() {
            let _ = rustix::process::kill_process_group(pid, Signal::KILL); // Gone already is as good.
        }
    }

    fn finish(&mut self) -> io::Result<std::process::ExitStatus> {
        self.kill();
        self.0.wait()
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        if let Ok(None) = self.0.try_wait() {
            let _ = self.finish(); // Nobody is left to tell.
        }
    }
}

fn watch(
    child: &mut Running,
    deadline: Duration,
    on_stdout: &mut dyn FnMut(&[u8]),
    stop: &dyn Fn() -> bool,
) -> io::Result<(End, String)> {
    let pid = child.pid().ok_or(io::ErrorKind::InvalidInput)?;
    let pidfd = rustix::process::pidfd_open(pid, PidfdFlags::empty())?;
    let mut stdout = Output::new(child.0.stdout.take().map(OwnedFd::from))?;
    let mut stderr = Output::new(child.0.stderr.take().map(OwnedFd::from))?;
    let mut tail = Vec::new();
    let ends_at = Instant::now() + deadline;
    let killed = loop {
        stdout.drain(on_stdout)?;
        stderr.drain(&mut |piece| keep_tail(&mut tail, piece))?;
        if stop() {
            break Some(End::Stopped);
        }
        let left = ends_at.saturating_duration_since(Instant::now());
        if left.is_zero() {
            break Some(End::DeadlinePassed);
        }
        if wait(&pidfd, [&stdout, &stderr], left.min(STOP_CHECK))? {
            break None;
        }
    };
    let status = child.finish()?;
    // Its session is dead: what is in the pipes is all there will be.
    stdout.drain(on_stdout)?;
    stderr.drain(&mut |piece| keep_tail(&mut tail, piece))?;
    let end = match (killed, status.code(), status.signal()) {
        (Some(end), ..) => end,
        (None, Some(code), _) => End::Exited(code),
        (None, None, signal) => End::Signalled(signal.unwrap_or_default()),
    };
    Ok((end, String::from_utf8_lossy(&tail).trim().to_owned()))
}

/// Waits for output, the program's end (true) or the timeout.
fn wait(pidfd: &OwnedFd, outputs: [&Output; 2], timeout: Duration) -> io::Result<bool> {
    let mut fds = vec![PollFd::new(pidfd, PollFlags::IN)];
    fds.extend(
        outputs
            .iter()
            .filter_map(|output| output.0.as_ref())
            .map(|fd| PollFd::from_borrowed_fd(fd.as_fd(), PollFlags::IN)),
    );
    let timeout = Timespec {
        tv_sec: i64::try_from(timeout.as_secs()).unwrap_or(i64::MAX),
        tv_nsec: i64::from(timeout.subsec_nanos()),
    };
    match rustix::event::poll(&mut fds, Some(&timeout)) {
        Ok(_) => Ok(fds.first().is_some_and(|fd| !fd.revents().is_empty())),
        Err(rustix::io::Errno::INTR) => Ok(false),
        Err(errno) => Err(errno.into()),
    }
}

/// The reading end of one of the program's outputs; `None` once it has ended.
struct Output(Option<OwnedFd>);

impl Output {
    fn new(fd: Option<OwnedFd>) -> io::Result<Self> {
        if let Some(fd) = &fd {
            rustix::fs::fcntl_setfl(fd, OFlags::NONBLOCK)?;
        }
        Ok(Self(fd))
    }

    /// Hands on what is there now, up to 1 MiB so that a flood cannot keep the deadline from being looked at.
    fn drain(&mut self, sink: &mut dyn FnMut(&[u8])) -> io::Result<()> {
        let mut buffer = [0; 16 << 10];
        for _ in 0..64 {
            let Some(fd) = &self.0 else { return Ok(()) };
            match rustix::io::read(fd, &mut buffer) {
                Ok(0) => self.0 = None,
                Ok(length) => sink(buffer.get(..length).unwrap_or_default()),
                Err(rustix::io::Errno::INTR) => {}
                Err(rustix::io::Errno::AGAIN) => return Ok(()),
                Err(errno) => return Err(errno.into()),
            }
        }
        Ok(())
    }
}

fn keep_tail(tail: &mut Vec<u8>, piece: &[u8]) {
    tail.extend_from_slice(piece);
    let excess = tail.len().saturating_sub(STDERR_TAIL_BYTES);
    tail.drain(..excess);
}

#[cfg(test)]
#[path = "command_tests.rs"]
mod tests;
