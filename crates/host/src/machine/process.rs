//! A machine process as the daemon sees it: a pidfd, and the child where it is one.

use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::process::ExitStatusExt;
use std::process::Child;

use control::{EndReason, EndReport};
use rustix::process::{Pid, PidfdFlags, Signal};
use tokio::io::unix::AsyncFd;

use super::lifecycle::End;

/// A process that runs, or has ended and was not asked yet how. Dropping it does nothing to the process.
pub(crate) struct Process {
    pid: u32,
    pidfd: AsyncFd<OwnedFd>,
    child: Option<Child>,
}

/// How a process ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Exit {
    /// With this status.
    Code(i32),
    /// By this signal.
    Signal(i32),
    /// It was not our child, so nobody told us.
    Unknown,
}

impl Process {
    /// One that was just started. On error it was killed.
    pub(crate) fn spawned(mut child: Child) -> io::Result<Self> {
        match open_pidfd(child.id()) {
            Ok(pidfd) => Ok(Self {
                pid: child.id(),
                pidfd,
                child: Some(child),
            }),
            Err(error) => {
                child.kill()?;
                child.wait()?;
                Err(error)
            }
        }
    }

    /// One that an earlier daemon started. The caller makes sure, after this, that `pid` still is the process it meant.
    pub(crate) fn found(pid: u32) -> io::Result<Self> {
        let pidfd = open_pidfd(pid)?;
        Ok(Self {
            pid,
            pidfd,
            child: None,
        })
    }

    /// Its process id.
    pub(crate) const fn pid(&self) -> u32 {
        self.pid
    }

    /// Waits until it has ended. May be dropped and called again.
    pub(crate) async fn exited(&mut self) -> Exit {
        // A pidfd reads as ready once the process has ended, and stays so (pidfd_open(2)).
        if let Err(error) = self.pidfd.readable().await {
            tracing::error!(pid = self.pid, %error, "pidfd can not be watched");
        }
        match self.child.as_mut().map(Child::wait) {
            Some(Ok(status)) => match (status.code(), status.signal()) {
                (Some(code), _) => Exit::Code(code),
                (None, Some(signal)) => Exit::Signal(signal),
                (None, None) => Exit::Unknown,
            },
            _ => Exit::Unknown,
        }
    }

    /// Ends it at once; nothing if it has ended.
    pub(crate) fn kill(&self) {
        if let Err(error) = rustix::process::pidfd_send_signal(self.pidfd.get_ref(), Signal::KILL)
            && error != rustix::io::Errno::SRCH
        {
            tracing::error!(pid = self.pid, %error, "machine process can not be killed");
        }
    }
}

fn open_pidfd(pid: u32) -> io::Result<AsyncFd<OwnedFd>> {
    let pid = i32::try_from(pid)
        .ok()
        .and_then(Pid::from_raw)
        .ok_or(io::ErrorKind::InvalidInput)?;
    let pidfd = rustix::process::pidfd_open(pid, PidfdFlags::NONBLOCK)?;
    #[expect(
        deprecated,
        reason = "deprecated for types whose descriptor may change or close early; an OwnedFd's can not, and its successor is unsafe"
    )]
    AsyncFd::with_interest(pidfd, tokio::io::Interest::READABLE)
}

/// What the end of a process means, given what it wrote down, if it did.
pub(crate) fn end(exit: Exit, report: Option<EndReport>) -> End {
    if let Some(report) = report {
        return End {
            reason: reason(report.reason).to_owned(),
            clean: report.reason.is_clean(),
            message: report.message,
        };
    }
    let (reason, message) = match exit {
        Exit::Signal(signal) => (
            "Killed",
            format!(
                "the machine process was killed by {}; the guest lost power, its disk is kept",
                signal_name(signal)
            ),
        ),
        Exit::Code(code) => (
            "Crashed",
            format!("the machine process ended with status {code} and without a report; its log says more"),
        ),
        Exit::Unknown => (
            "Killed",
            "process is gone without a report: killed by SIGKILL or crashed; the guest lost power, its disk is kept"
                .to_owned(),
        ),
    };
    End {
        reason: reason.to_owned(),
        message,
        clean: false,
    }
}

const fn reason(reason: EndReason) -> &'static str {
    match reason {
        EndReason::GuestPowerOff => "GuestPowerOff",
        EndReason::Requested => "Requested",
        EndReason::TripleFault => "TripleFault",
        EndReason::VcpuFailed => "VcpuFailed",
        EndReason::DebugExit { .. } => "DebugExit",
        EndReason::BuildFailed => "BuildFailed",
        EndReason::Departed => "Departed",
        EndReason::ArrivalFailed => "ArrivalFailed",
        EndReason::Internal => "Internal",
    }
}

/// Name of a signal, signal(7).
fn signal_name(signal: i32) -> String {
    let known = match signal {
        4 => "SIGILL",
        6 => "SIGABRT",
        7 => "SIGBUS",
        9 => "SIGKILL",
        11 => "SIGSEGV",
        15 => "SIGTERM",
        31 => "SIGSYS",
        _ => return format!("signal {signal}"),
    };
    known.to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::process::Command;

    async fn exit_of(program: &str, arguments: &[&str], kill: bool) -> Exit {
        let child = Command::new(program).args(arguments).spawn().unwrap();
        let mut process = Process::spawned(child).unwrap();
        if kill {
            process.kill();
        }
        process.exited().await
    }

    #[tokio::test]
    async fn ends_are_told_apart() {
        assert_eq!(exit_of("/bin/sh", &["-c", "exit 3"], false).await, Exit::Code(3));
        assert_eq!(exit_of("/bin/sleep", &["60"], true).await, Exit::Signal(9));
        let killed = end(Exit::Signal(9), None);
        assert_eq!((killed.reason.as_str(), killed.clean), ("Killed", false));
        assert!(killed.message.contains("SIGKILL"), "{}", killed.message);
    }

    #[tokio::test]
    async fn a_process_that_is_no_child_is_watched_and_killed_too() {
        let mut child = Command::new("/bin/sleep").arg("60").spawn().unwrap();
        let mut found = Process::found(child.id()).unwrap();
        found.kill();
        assert_eq!(found.exited().await, Exit::Unknown);
        child.wait().unwrap();
        found.kill();
        assert!(Process::found(child.id()).is_err());
    }

    #[test]
    fn the_report_has_the_last_word() {
        let report = EndReport {
            id: spec::VmId::random(),
            reason: EndReason::TripleFault,
            message: "rip=0".to_owned(),
            resets: 0,
            at_unix_s: 0,
        };
        let told = end(Exit::Code(1), Some(report));
        assert_eq!((told.reason.as_str(), told.clean), ("TripleFault", false));
    }
}
