//! Stands in for `karat-vmm` in the daemon's tests: speaks the same protocol on the same sockets, and runs no guest.
//!
//! The command line of the machine it is given says how it behaves: `refuse` answers `Create` with a bad kernel, `die` ends
//! in the middle of it, `sda` does as `refuse` unless the first disk is on the SCSI bus, `deaf` ignores the power button, `loop` is reset again and again for a while. Work on disks goes on a step whenever it is asked for reports; `stay` never
//! comes to its end, `die-before` and `die-after` kill the process just before and after it does, `late-` before either begins a
//! snapshot a second after the request, `moves=DIRECTORY` can be held at each step of a move. `save-full` has no room when it is saved,
//! `save-die` ends there, `save-slow` takes its time. What is typed on its console comes back in upper case.

#![allow(clippy::expect_used, reason = "a stand-in that can not go on is to be seen to end")]

#[path = "fake_moves/mod.rs"]
mod moves;

use std::io::{Read, Write};
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::FileExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use control::{
    CreateVm, Decoder, DiskChange, DiskJob, DiskJobReport, DiskJobState, DiskLatency, DiskLayer, DiskReport, EndReason,
    EndReport, FdRole, FromVm, Hello, MigrationNews, PROTOCOL_VERSION, REPORT_FILE, Refusal, RefusalKind, ToVm,
    VmAction, VmEvent, VmRequest, VmState, VmStatus,
};
use disk_image::{BackingName, Chain, ConvertOptions, CreateOptions, Layer};
use rustix::process::{PidfdFlags, PidfdGetfdFlags};
use spec::{DiskBus, DiskFormat, DiskLimits, Name};

/// What it prints when it starts.
const GREETING: &[u8] = b"fake machine\r\n";

struct Machine {
    status: VmStatus,
    deaf: bool,
    mode: String,
    disks: Vec<FakeDisk>,
    files: Vec<(FdRole, OwnedFd)>,
    peers: Vec<UnixStream>,
    decisions: moves::Decisions,
    last_news: Option<MigrationNews>,
}

struct FakeDisk {
    name: Name,
    scsi: bool,
    /// Top first, each with its file.
    layers: Vec<(DiskLayer, OwnedFd)>,
    job: Option<DiskJobReport>,
    mirror: Option<Mirror>,
}

/// A copy under way.
struct Mirror {
    layer: DiskLayer,
    file: OwnedFd,
    note: Option<OwnedFd>,
}

/// What a job makes each time that somebody asks, of [`JOB_BYTES`].
const STEP_BYTES: u64 = 1 << 20;
const JOB_BYTES: u64 = 3 << 20;

impl Machine {
    fn change_disk(&mut self, disk: &Name, change: &DiskChange, fds: &mut Vec<OwnedFd>) -> Result<(), String> {
        if let DiskChange::Attach { spec, chain } = change {
            self.disks.push(FakeDisk {
                name: spec.name.clone(),
                scsi: true,
                layers: chain.layers.iter().cloned().zip(fds.drain(..)).collect(),
                job: None,
                mirror: None,
            });
            return Ok(());
        }
        let mode = self.mode.clone();
        let index = self.disks.iter().position(|one| one.name == *disk);
        let index = index.ok_or_else(|| format!("there is no disk {disk}"))?;
        if *change == DiskChange::Detach {
            if !self.disks[index].scsi {
                return Err("it is not on the SCSI bus".to_owned());
            }
            self.disks.remove(index);
            return Ok(());
        }
        self.disks[index].change(change, fds, &mode)
    }

    fn work_and_report(&mut self) -> Vec<DiskReport> {
        self.disks.iter_mut().for_each(|disk| disk.work(&self.mode));
        self.disks.iter().map(FakeDisk::report).collect()
    }
}

impl FakeDisk {
    fn change(&mut self, change: &DiskChange, fds: &mut Vec<OwnedFd>, mode: &str) -> Result<(), String> {
        match change {
            DiskChange::Resize { size_bytes } => {
                rustix::fs::ftruncate(&self.layers[0].1, *size_bytes).map_err(|error| error.to_string())
            }
            DiskChange::Snapshot { overlay, backing } => self.snapshot(overlay, backing, fds.remove(0), mode),
            DiskChange::Stream => {
                self.begin(DiskJob::Stream, self.layers[0].0.name.clone());
                Ok(())
            }
            DiskChange::Mirror { target, pivot, .. } => {
                let file = fds.remove(0);
                let note = pivot.then(|| fds.remove(0));
                self.begin(DiskJob::Mirror, target.name.clone());
                let layer = target.clone();
                self.mirror = Some(Mirror { layer, file, note });
                Ok(())
            }
            DiskChange::Cancel => {
                self.mirror = None;
                let job = self.job.as_mut().ok_or("there is no job")?;
                job.state = DiskJobState::Cancelled;
                Ok(())
            }
            _ => Ok(()),
        }
    }

    /// What changes in the old top from now on would be a fault: it is closed.
    fn snapshot(&mut self, overlay: &DiskLayer, backing: &str, file: OwnedFd, mode: &str) -> Result<(), String> {
        let mode = match mode.strip_prefix("late-") {
            Some(mode) => {
                std::thread::sleep(Duration::from_secs(1));
                mode
            }
            None => mode,
        };
        if mode == "die-before" {
            std::process::exit(7);
        }
        let backing = BackingName {
            name: backing.to_owned(),
            format: if self.layers[0].0.format == DiskFormat::Raw {
                "raw"
            } else {
                "qcow2"
            }
            .to_owned(),
        };
        let mut options = CreateOptions::qcow2(4 << 20);
        if let CreateOptions::Qcow2(options) = &mut options {
            options.backing = Some(backing);
        }
        let file = std::fs::File::from(file);
        disk_image::create(&file, None, &options).map_err(|error| error.to_string())?;
        // Opened anew, it is not locked any more.
        let old = format!("/proc/self/fd/{}", self.layers[0].1.as_raw_fd());
        self.layers[0].1 = std::fs::File::open(old).map_err(|error| error.to_string())?.into();
        self.layers.insert(0, (overlay.clone(), file.into()));
        if mode == "die-after" {
            std::process::exit(7);
        }
        Ok(())
    }

    fn begin(&mut self, job: DiskJob, target: String) {
        let state = DiskJobState::Running {
            done_bytes: 0,
            total_bytes: JOB_BYTES,
        };
        self.job = Some(DiskJobReport { job, target, state });
    }

    /// A step of the job; `stay` never comes to the end.
    fn work(&mut self, mode: &str) {
        let Some(job) = &mut self.job else { return };
        let DiskJobState::Running { done_bytes, .. } = &mut job.state else {
            return;
        };
        if mode == "die-before" {
            std::process::exit(7);
        }
        if *done_bytes < JOB_BYTES - STEP_BYTES || mode == "stay" {
            *done_bytes = (*done_bytes + STEP_BYTES).min(JOB_BYTES - STEP_BYTES);
            return;
        }
        job.state = DiskJobState::Done;
        match (job.job, self.mirror.take()) {
            (DiskJob::Mirror, Some(mirror)) => self.finish(mirror),
            _ => {
                disk_image::rebase(&self.chain(true), None, &()).expect("a disk that stands alone");
                self.layers.truncate(1);
            }
        }
        if mode == "die-after" {
            std::process::exit(7);
        }
    }

    /// Copies what the disk shows, or a raw disk into a raw image.
    fn finish(&mut self, mirror: Mirror) {
        if mirror.layer.format == DiskFormat::Qcow2 && mirror.note.is_none() {
            return self.convert(&mirror.file);
        }
        let source = std::fs::File::from(self.layers[0].1.try_clone().expect("a descriptor"));
        let target = std::fs::File::from(mirror.file.try_clone().expect("a descriptor"));
        let mut bytes = vec![0; usize::try_from(source.metadata().expect("a length").len()).expect("a small disk")];
        source.read_exact_at(&mut bytes, 0).expect("the disk");
        target.write_all_at(&bytes, 0).expect("the copy");
        if let Some(note) = mirror.note {
            std::fs::File::from(note)
                .write_all_at(control::PIVOTED, 0)
                .expect("the note");
            self.layers = vec![(mirror.layer, mirror.file)];
        }
    }

    fn chain(&self, to_write: bool) -> Chain {
        let mut layers = self.layers.iter().zip(0..).map(|((told, file), place)| Layer {
            name: told.name.clone(),
            format: told.format,
            file: file.try_clone().expect("a descriptor").into(),
            writable: to_write && place == 0,
            data_file: None,
        });
        Chain::new(layers.next().expect("a top"), layers.collect())
    }

    fn convert(&self, target: &OwnedFd) {
        let chain = self.chain(false);
        let size_bytes = disk_image::virtual_size(&chain).expect("a disk");
        let target = std::fs::File::from(target.try_clone().expect("a descriptor"));
        let options = ConvertOptions::to(CreateOptions::qcow2(size_bytes));
        disk_image::convert(&chain, &target, &options, &()).expect("the copy");
    }

    fn report(&self) -> DiskReport {
        DiskReport {
            name: self.name.clone(),
            size_bytes: 4 << 20,
            layers: self.layers.iter().map(|(layer, _)| layer.clone()).collect(),
            limits: DiskLimits::default(),
            job: self.job.clone(),
            reads: DiskLatency {
                count: 3,
                total_ns: 1_500_000_000,
                within: vec![1; control::LATENCY_BOUNDS_US.len()],
                ..DiskLatency::default()
            },
            writes: DiskLatency::default(),
            flushes: DiskLatency::default(),
            trims: DiskLatency::default(),
            read_bytes: 4096,
            written_bytes: 0,
            errors: 0,
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
        mode: String::new(),
        disks: Vec::new(),
        files: Vec::new(),
        peers: Vec::new(),
        decisions: moves::Decisions::default(),
        last_news: None,
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
            migration: machine.last_news.clone(),
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
            let may_depart = lock(shared).status.state.may(VmAction::Depart);
            answer(stream, &mut lock(shared), number, &request, &mut fds);
            match &request {
                VmRequest::Depart(depart) if may_depart => {
                    moves::depart(Arc::clone(shared), depart.key, std::mem::take(&mut fds));
                }
                VmRequest::Arrive(arrive) => moves::arrive(Arc::clone(shared), arrive),
                _ => {}
            }
            if request == VmRequest::Start && lock(shared).mode == "loop" {
                let machine = Arc::clone(shared);
                std::thread::spawn(move || reset_again_and_again(&machine));
            }
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
        VmRequest::Save => (VmAction::Save, None),
        VmRequest::Depart(_) => (VmAction::Depart, None),
        VmRequest::DepartTune { .. }
        | VmRequest::DepartCancel
        | VmRequest::DepartLinks { .. }
        | VmRequest::DepartDecided { .. } => (VmAction::SteerDeparture, None),
        VmRequest::Arrive(_) => (VmAction::Arrive, Some(VmState::Arriving)),
        VmRequest::ArriveDecided { .. } => (VmAction::DecideArrival, None),
    }
}

fn answer(stream: &UnixStream, machine: &mut Machine, number: u64, request: &VmRequest, fds: &mut Vec<OwnedFd>) {
    let (action, mut state) = meaning(request);
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
    if *request == VmRequest::Save
        && let Err(message) = save(machine, &fds.remove(0))
    {
        return refuse(RefusalKind::NoSpace, &message);
    }
    if let Err(message) = hear_decision(machine, request) {
        return refuse(RefusalKind::WrongState, message);
    }
    let create = match request {
        VmRequest::Create(create) => {
            if create
                .fds
                .iter()
                .any(|role| matches!(role, FdRole::SavedDirectory { .. }))
            {
                state = Some(VmState::Paused);
            }
            Some(&**create)
        }
        VmRequest::Arrive(arrive) => Some(&arrive.create),
        _ => None,
    };
    if let Some(create) = create
        && let Err(message) = become_machine(machine, create, fds)
    {
        refuse(RefusalKind::BadKernel, message);
        std::process::exit(1);
    }
    if let VmRequest::Disk { disk, change } = request
        && let Err(message) = machine.change_disk(disk, change, fds)
    {
        return refuse(RefusalKind::NoSuchDisk, &message);
    }
    if *request == VmRequest::DiskReports {
        let disks = machine.work_and_report();
        return say(stream, &FromVm::Disks { number, disks });
    }
    if *request == VmRequest::Start {
        machine.status.first_entry_us = Some(100);
    }
    if *request == VmRequest::Reset {
        reset(machine);
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
    end_after(machine, request);
}

/// Some requests are the end of it.
fn end_after(machine: &Machine, request: &VmRequest) {
    match request {
        VmRequest::PowerButton if !machine.deaf => {
            end(machine, EndReason::GuestPowerOff, "the guest powered itself off");
        }
        VmRequest::Quit => end(machine, EndReason::Requested, "ended on request"),
        _ => {}
    }
}

/// What is said to a machine on its way.
fn hear_decision(machine: &mut Machine, request: &VmRequest) -> Result<(), &'static str> {
    match request {
        VmRequest::DepartCancel if machine.decisions.closed => return Err("the machine has left, or is about to"),
        VmRequest::DepartCancel => machine.decisions.cancelled = true,
        VmRequest::DepartDecided { departed } | VmRequest::ArriveDecided { departed } => {
            machine.decisions.departed = Some(*departed);
        }
        _ => {}
    }
    Ok(())
}

/// Takes its files, and its manners from the command line.
fn become_machine(machine: &mut Machine, create: &CreateVm, fds: &mut Vec<OwnedFd>) -> Result<(), &'static str> {
    machine.status.id = Some(create.machine.id());
    machine.files = create.fds.iter().copied().zip(fds.drain(..)).collect();
    machine.disks = take_disks(create, &mut machine.files);
    match create.machine.cmdline() {
        "refuse" => return Err("the kernel is no kernel"),
        "die" => std::process::exit(7),
        "sda" if !machine.disks.first().is_some_and(|disk| disk.scsi) => {
            return Err("the first disk is not on the SCSI bus");
        }
        cmdline => {
            machine.deaf = cmdline == "deaf";
            cmdline.clone_into(&mut machine.mode);
        }
    }
    Ok(())
}

/// What a real one leaves, as far as the daemon looks at it; `save-…` says what happens instead.
fn save(machine: &Machine, directory: &OwnedFd) -> Result<(), String> {
    let put = |name: &str, bytes: &[u8]| {
        let flags = rustix::fs::OFlags::CREATE | rustix::fs::OFlags::WRONLY | rustix::fs::OFlags::CLOEXEC;
        let mode = rustix::fs::Mode::RUSR | rustix::fs::Mode::WUSR;
        let file = rustix::fs::openat(directory, name, flags, mode).map_err(|error| error.to_string())?;
        std::fs::File::from(file)
            .write_all(bytes)
            .map_err(|error| error.to_string())
    };
    put("memory", &[1; 8192])?;
    match machine.mode.as_str() {
        "save-full" => return Err("memory can not be written: no space left on device".to_owned()),
        "save-die" => std::process::exit(7),
        "save-slow" => std::thread::sleep(Duration::from_secs(2)),
        _ => {}
    }
    put("state", b"a state")
}

fn reset(machine: &mut Machine) {
    machine.status.resets += 1;
    let resets = machine.status.resets;
    tell(machine, &FromVm::Event(VmEvent::GuestReset { resets }));
}

/// Some hundred times within two seconds.
fn reset_again_and_again(machine: &Shared) {
    for _ in 0..400 {
        reset(&mut lock(machine));
        std::thread::sleep(Duration::from_millis(5));
    }
}

fn take_disks(create: &CreateVm, files: &mut Vec<(FdRole, OwnedFd)>) -> Vec<FakeDisk> {
    let mut take = |wanted: FdRole| {
        let place = files
            .iter()
            .position(|(role, _)| *role == wanted)
            .expect("a file for each layer");
        files.remove(place).1
    };
    let disks = create.machine.disks().iter().zip(&create.chains).zip(0..);
    disks
        .map(|((spec, chain), index)| FakeDisk {
            name: spec.name.clone(),
            scsi: spec.bus == DiskBus::Scsi,
            layers: (0..)
                .zip(&chain.layers)
                .map(|(layer, told)| (told.clone(), take(FdRole::Disk { index, layer })))
                .collect(),
            job: None,
            mirror: None,
        })
        .collect()
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
