//! Stands in for `karat-vmm` in the daemon's tests: speaks the same protocol on the same sockets, and runs no guest.
//!
//! The command line of the machine it is given says how it behaves: `refuse` answers `Create` with a bad kernel, `die` ends
//! in the middle of it, `deaf` ignores the power button. Disks are taken to be raw. What is typed on its console comes back in upper case.

use std::io::{Read, Write};
use std::os::fd::OwnedFd;
use std::os::unix::net::{UnixListener, UnixStream};
use std::sync::{Arc, Mutex, PoisonError};

use control::{
    Decoder, DiskChange, EndReason, EndReport, FdRole, FromVm, Hello, PROTOCOL_VERSION, REPORT_FILE, Refusal,
    RefusalKind, ToVm, VmAction, VmEvent, VmRequest, VmState, VmStatus,
};
use rustix::process::{PidfdFlags, PidfdGetfdFlags};
use spec::Name;

/// What it prints when it starts.
const GREETING: &[u8] = b"fake machine\r\n";

struct Machine {
    status: VmStatus,
    deaf: bool,
    disks: Vec<Name>,
    files: Vec<(FdRole, OwnedFd)>,
    peers: Vec<UnixStream>,
}

impl Machine {
    /// Makes the file of a raw disk longer; other changes are only taken note of.
    fn change_disk(&self, disk: &Name, change: &DiskChange) -> Result<(), String> {
        let index = (0..)
            .zip(&self.disks)
            .find_map(|(index, name)| (name == disk).then_some(index))
            .ok_or_else(|| format!("there is no disk {disk}"))?;
        let top = FdRole::Disk { index, layer: 0 };
        let file = self.files.iter().find(|(role, _)| *role == top);
        match (change, file) {
            (DiskChange::Resize { size_bytes }, Some((_, file))) => {
                rustix::fs::ftruncate(file, *size_bytes).map_err(|error| error.to_string())
            }
            _ => Ok(()),
        }
    }
}

type Shared = Arc<Mutex<Machine>>;

fn main() -> std::io::Result<()> {
    let control = inherited(control::CONTROL_LISTENER_FD)?;
    let console = inherited(control::CONSOLE_LISTENER_FD)?;
    let machine = Arc::new(Mutex::new(Machine {
        status: VmStatus {
            id: None,
            state: VmState::Empty,
            resets: 0,
            first_entry_us: None,
        },
        deaf: false,
        disks: Vec::new(),
        files: Vec::new(),
        peers: Vec::new(),
    }));
    std::thread::spawn(move || {
        console
            .incoming()
            .flatten()
            .for_each(|stream| drop(std::thread::spawn(|| echo(stream))));
    });
    for stream in control.incoming() {
        let (stream, machine) = (stream?, Arc::clone(&machine));
        std::thread::spawn(move || serve(&stream, &machine));
    }
    Ok(())
}

fn inherited(fd: i32) -> std::io::Result<UnixListener> {
    let process = rustix::process::pidfd_open(rustix::process::getpid(), PidfdFlags::empty())?;
    Ok(rustix::process::pidfd_getfd(process, fd, PidfdGetfdFlags::empty())?.into())
}

fn echo(mut stream: UnixStream) {
    let mut bytes = [0; 1024];
    let _ = stream.write_all(GREETING); // A reader that went is no matter here.
    while let Ok(length @ 1..) = stream.read(&mut bytes) {
        let _ = stream.write_all(&bytes[..length].to_ascii_uppercase()); // As above.
    }
}

fn serve(stream: &UnixStream, shared: &Shared) -> Option<()> {
    {
        let mut machine = lock(shared);
        let hello = Hello {
            protocol: PROTOCOL_VERSION,
            pid: std::process::id(),
            version: "fake".to_owned(),
            status: machine.status.clone(),
        };
        say(stream, &FromVm::Hello(hello));
        machine.peers.push(stream.try_clone().ok()?);
    }
    let (mut decoder, mut fds, mut bytes) = (Decoder::new(), Vec::new(), [0; 4096]);
    loop {
        let length = control::recv_with_fds(stream, &mut bytes, &mut fds).ok()?;
        if length == 0 {
            return None;
        }
        decoder.push(&bytes[..length]);
        while let Some(ToVm { number, request }) = decoder.next_frame().ok()? {
            answer(stream, &mut lock(shared), number, &request, &mut fds);
        }
    }
}

fn lock(shared: &Shared) -> std::sync::MutexGuard<'_, Machine> {
    shared.lock().unwrap_or_else(PoisonError::into_inner)
}

fn say(mut stream: &UnixStream, frame: &FromVm) {
    if let Ok(bytes) = control::encode(frame) {
        let _ = stream.write_all(&bytes); // A daemon that went is no matter here.
    }
}

/// What a request asks for, and the state that follows from it.
const fn meaning(request: &VmRequest) -> (VmAction, Option<VmState>) {
    match request {
        VmRequest::Create(_) => (VmAction::Create, Some(VmState::Created)),
        VmRequest::Start => (VmAction::Start, Some(VmState::Running)),
        VmRequest::Pause => (VmAction::Pause, Some(VmState::Paused)),
        VmRequest::Resume => (VmAction::Resume, Some(VmState::Running)),
        VmRequest::PowerButton => (VmAction::PowerButton, None),
        VmRequest::Reset => (VmAction::Reset, None),
        VmRequest::Quit => (VmAction::Quit, None),
        VmRequest::Status => (VmAction::Status, None),
        VmRequest::Disk { .. } => (VmAction::ChangeDisk, None),
        VmRequest::DiskReports => (VmAction::DiskReports, None),
    }
}

fn answer(stream: &UnixStream, machine: &mut Machine, number: u64, request: &VmRequest, fds: &mut Vec<OwnedFd>) {
    let (action, state) = meaning(request);
    let refuse = |kind, message: &str| {
        let message = message.to_owned();
        say(
            stream,
            &FromVm::Refused {
                number,
                refusal: Refusal { kind, message },
            },
        );
    };
    if !machine.status.state.may(action) {
        return refuse(RefusalKind::WrongState, "not in this state");
    }
    if let VmRequest::Create(create) = request {
        machine.status.id = Some(create.machine.id());
        machine.disks = create.machine.disks().iter().map(|disk| disk.name.clone()).collect();
        machine.files = create.fds.iter().copied().zip(fds.drain(..)).collect();
        match create.machine.cmdline() {
            "refuse" => {
                refuse(RefusalKind::BadKernel, "the kernel is no kernel");
                std::process::exit(1);
            }
            "die" => std::process::exit(7),
            cmdline => machine.deaf = cmdline == "deaf",
        }
    }
    if let VmRequest::Disk { disk, change } = request
        && let Err(message) = machine.change_disk(disk, change)
    {
        return refuse(RefusalKind::NoSuchDisk, &message);
    }
    if *request == VmRequest::Start {
        machine.status.first_entry_us = Some(100);
    }
    if *request == VmRequest::Reset {
        machine.status.resets += 1;
        tell(
            machine,
            &FromVm::Event(VmEvent::GuestReset {
                resets: machine.status.resets,
            }),
        );
    }
    if let Some(state) = state {
        machine.status.state = state;
        tell(machine, &FromVm::Event(VmEvent::StateChanged { state }));
    }
    say(
        stream,
        &FromVm::Done {
            number,
            status: machine.status.clone(),
        },
    );
    match request {
        VmRequest::PowerButton if !machine.deaf => {
            end(machine, EndReason::GuestPowerOff, "the guest powered itself off");
        }
        VmRequest::Quit => end(machine, EndReason::Requested, "ended on request"),
        _ => {}
    }
}

fn tell(machine: &Machine, frame: &FromVm) {
    for peer in &machine.peers {
        say(peer, frame);
    }
}

fn end(machine: &Machine, reason: EndReason, message: &str) {
    let directory = machine.files.iter().find(|(role, _)| *role == FdRole::RunDirectory);
    if let (Some((_, directory)), Some(id)) = (directory, machine.status.id) {
        let report = EndReport {
            id,
            reason,
            message: message.to_owned(),
            resets: machine.status.resets,
            at_unix_s: 0,
        };
        let flags = rustix::fs::OFlags::CREATE | rustix::fs::OFlags::WRONLY | rustix::fs::OFlags::CLOEXEC;
        let file = rustix::fs::openat(
            directory,
            REPORT_FILE,
            flags,
            rustix::fs::Mode::RUSR | rustix::fs::Mode::WUSR,
        );
        if let (Ok(file), Ok(text)) = (file, serde_json::to_vec(&report)) {
            let _ = std::fs::File::from(file).write_all(&text); // The daemon then sees that there is no report.
        }
        tell(machine, &FromVm::Event(VmEvent::Ended { report }));
    }
    std::process::exit(0);
}
