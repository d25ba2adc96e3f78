//! The source: from *Pending* to the end. Whatever goes wrong, it is the ledger that says whether the machine stayed.

use std::time::Duration;

use api_types::{ErrorCode, IncomingMigration, IncomingMigrationWish, MigrationPhase, MovingDisk, MovingVm, Vm};
use client::{Client, ClientError, Remote};
use control::{DepartDisk, DepartVm, DiskMove, MigrationNews, MigrationPhase as Told, VmRequest};
use jiff::Timestamp;
use std::os::fd::OwnedFd;
use tokio::net::TcpStream;
use tokio::sync::OwnedSemaphorePermit;
use tokio_util::sync::CancellationToken;

use super::identity::Identity;
use super::{facts, tell};
use crate::failure::{Failure, chain};
use crate::host::Host;
use crate::machine::Machine;
use crate::moves::{self, MigrationRecord, News, may_follow};
use crate::registry::RegistryError;

/// How long to wait before the target, or the registry, is asked again.
const RETRY: Duration = Duration::from_secs(1);
/// How long the target's listener has to take a connection.
const DIAL_TIMEOUT: Duration = Duration::from_secs(10);
/// How long a process has to tell that the machine stayed, once it was told so.
const STAY_TIMEOUT: Duration = Duration::from_secs(30);
/// How often the target is told that a machine does not come; it finds out by itself, too.
const GIVE_UP_TRIES: u32 = 5;

/// A move away from here.
pub(super) struct Departure {
    pub(super) host: Host,
    pub(super) record: MigrationRecord,
    pub(super) machine: Machine,
    pub(super) remote: Remote,
    /// The machine as it was when the move was asked for.
    pub(super) vm: Vm,
    pub(super) disks: Vec<MovingDisk>,
    pub(super) news: News,
    pub(super) cancel: CancellationToken,
}

/// How far an attempt came, for its end.
#[derive(Default)]
struct Reached {
    /// The target was asked to make room.
    asked_target: bool,
    /// The process was told to move the machine.
    told_process: bool,
    /// The process has said that the machine stays.
    stayed: bool,
}

/// Goes on with a move that an earlier daemon was at. If the machine had not departed when this one started, it stays.
pub(super) async fn resume(host: Host, record: MigrationRecord, news: News) {
    let cancel = host.0.context.moves.begin(record.key.id);
    let found = match host.machine(&record.vm.to_string()).await {
        Ok((_, machine)) => Some((machine, host.vm(&record.vm.to_string()).await)),
        Err(_) => None,
    };
    let remote = host.0.context.config.migration.hosts.get(&record.target).cloned();
    let (Some((machine, Ok(vm))), Some(remote)) = (found, remote) else {
        // The machine is gone, which is the last thing that a move does here; or its target is not configured any more.
        let mut record = record;
        let departed = decide(&host, &record).await;
        let why = "the daemon was restarted, and the machine or the target is not known any more";
        let failure = (!departed).then(|| Failure::new(ErrorCode::Internal, why));
        finish(&host, &mut record, failure).await;
        return;
    };
    let departure = Departure {
        host,
        record,
        machine,
        remote,
        vm,
        disks: Vec::new(),
        news,
        cancel,
    };
    departure.go_on().await;
}

impl Departure {
    /// Until the move is over.
    pub(super) async fn run(mut self) {
        let mut reached = Reached::default();
        let attempt = self.attempt(&mut reached).await;
        self.conclude(attempt.err(), &reached).await;
    }

    async fn go_on(mut self) {
        let reached = Reached {
            asked_target: true,
            told_process: true,
            stayed: false,
        };
        if !decide(&self.host, &self.record).await {
            let text = "the daemon of the source was restarted meanwhile; the machine stayed. Ask again";
            let failure = Failure::new(ErrorCode::Internal, text);
            return self.conclude(Some(failure), &reached).await;
        }
        let mut followed = Reached::default();
        let attempt = self.follow(&mut followed).await;
        self.conclude(attempt.err(), &reached).await;
    }

    async fn attempt(&mut self, reached: &mut Reached) -> Result<(), Failure> {
        let mut turn = Some(self.turn().await?);
        self.record.started_at = Some(Timestamp::now());
        self.enter(MigrationPhase::Scheduling).await;
        let identity = match self.host.0.context.config.migration.plain {
            true => None,
            false => Some(Identity::make()?),
        };
        reached.asked_target = true;
        let place = self.schedule(identity.as_ref(), &mut turn).await?;
        let address = place.address.clone().unwrap_or_else(|| self.remote.host().to_owned());
        let port = place.port.unwrap_or_default();
        self.record.target_address = Some(format!("{address}:{port}"));
        self.record.target_vm_detected = true;
        self.enter(MigrationPhase::PreparingTarget).await;
        let credentials = match (identity, &place.certificate) {
            (Some(identity), Some(peer)) => Some(identity.credentials(peer)?),
            (None, None) => None,
            _ => {
                let text = "the target wants memory to be sent in another way than this host (migration.plain)";
                return Err(Failure::new(ErrorCode::WrongState, text));
            }
        };
        let options = moves::told(&self.record.options, &self.disks);
        let links = self.dial(&address, port, u32::from(options.streams) + 1).await?;
        let disks = self.disks.iter().filter_map(|disk| {
            Some(DepartDisk {
                name: disk.name.parse().ok()?,
                how: match disk.how {
                    api_types::DiskWay::Shared => DiskMove::Shared,
                    api_types::DiskWay::Mirrored => DiskMove::Mirrored,
                },
            })
        });
        let depart = DepartVm {
            key: self.record.key,
            options,
            credentials,
            disks: disks.collect(),
        };
        reached.told_process = true;
        self.machine.steer(VmRequest::Depart(Box::new(depart)), links).await?;
        self.follow(reached).await
    }

    /// Waits for a turn: one of those for moves away from here, then one of all.
    async fn turn(&self) -> Result<(OwnedSemaphorePermit, OwnedSemaphorePermit), Failure> {
        let moves = &self.host.0.context.moves;
        let turn = async {
            let outbound = moves.outbound.clone().acquire_owned().await.ok()?;
            Some((outbound, moves.total.clone().acquire_owned().await.ok()?))
        };
        tokio::select! {
            turn = turn => turn.ok_or_else(|| Failure::new(ErrorCode::Internal, "there are no turns any more")),
            () = self.cancel.cancelled() => Err(cancelled()),
        }
    }

    /// Has the target look and make room. One that has no turn is asked again; meanwhile this one's are given to others.
    async fn schedule(
        &self,
        identity: Option<&Identity>,
        turn: &mut Option<(OwnedSemaphorePermit, OwnedSemaphorePermit)>,
    ) -> Result<IncomingMigration, Failure> {
        let config = &self.host.0.context.config.migration;
        let source_url = config.url.clone().ok_or_else(|| {
            let text = "tls.url is not configured, so the target could not ask this host";
            Failure::new(ErrorCode::WrongState, text)
        })?;
        let cpu = facts::cpu().map_err(|error| Failure::of(ErrorCode::Internal, &error))?;
        let client = Client::remote(self.remote.clone());
        loop {
            let wish = IncomingMigrationWish {
                id: self.record.key.id,
                token: self.record.key.token,
                source_url: source_url.clone(),
                vm: MovingVm {
                    id: self.vm.id,
                    spec: self.vm.spec.clone(),
                    created_at: self.vm.created_at,
                },
                disks: self.disks.clone(),
                cpu: cpu.clone(),
                version: env!("CARGO_PKG_VERSION").to_owned(),
                clock: Timestamp::now(),
                certificate: identity.map(Identity::certificate),
                patience_ms: moves::patience_ms(&self.record.options),
            };
            let asked = tokio::select! {
                asked = client.receive_migration(&wish) => asked,
                () = self.cancel.cancelled() => return Err(cancelled()),
            };
            match asked {
                Ok(place) => return Ok(place),
                Err(error) if error.code() == Some(ErrorCode::HostLacks) => {
                    *turn = None;
                    tokio::select! {
                        () = tokio::time::sleep(RETRY) => {}
                        () = self.cancel.cancelled() => return Err(cancelled()),
                    }
                    *turn = Some(self.turn().await?);
                }
                Err(error) => return Err(refused(&self.record.target, error)),
            }
        }
    }

    async fn dial(&self, address: &str, port: u16, count: u32) -> Result<Vec<OwnedFd>, Failure> {
        let dialling = async {
            let mut links = Vec::new();
            for _ in 0..count {
                let stream = TcpStream::connect((address, port)).await?;
                stream.set_nodelay(true)?;
                let stream = stream.into_std()?;
                stream.set_nonblocking(false)?;
                links.push(OwnedFd::from(stream));
            }
            Ok::<_, std::io::Error>(links)
        };
        let dialled = tokio::select! {
            dialled = tokio::time::timeout(DIAL_TIMEOUT, dialling) => dialled,
            () = self.cancel.cancelled() => return Err(cancelled()),
        };
        let dialled = dialled.unwrap_or_else(|_| Err(std::io::ErrorKind::TimedOut.into()));
        dialled.map_err(|error| {
            let text = format!(
                "{} does not take the machine at {address} port {port} ({error}): let its firewall pass it, or set migration.bind there",
                self.record.target
            );
            Failure::new(ErrorCode::Timeout, text)
        })
    }

    /// Listens to the machine process until that is gone or has told that the machine stays.
    async fn follow(&mut self, reached: &mut Reached) -> Result<(), Failure> {
        let (mut departed, mut asked) = (false, false);
        loop {
            let news = tokio::select! {
                news = self.news.recv() => news,
                () = self.cancel.cancelled(), if !asked => {
                    asked = true;
                    if let Err(failure) = self.machine.steer(VmRequest::DepartCancel, Vec::new()).await {
                        tracing::info!(migration = %self.record.key.id, error = %failure, "a move can not be cancelled");
                    }
                    continue;
                }
            };
            match news {
                Some(MigrationNews::Progress(progress)) => {
                    self.host
                        .0
                        .context
                        .moves
                        .note(self.record.key.id, moves::figures(&progress));
                    self.progressed(progress.phase).await;
                }
                Some(MigrationNews::Departed) => departed = true,
                Some(MigrationNews::Stayed { cancelled: true, .. }) => {
                    reached.stayed = true;
                    return Err(cancelled());
                }
                Some(MigrationNews::Stayed { reason, .. }) => {
                    reached.stayed = true;
                    return Err(Failure::new(ErrorCode::MachineFailed, reason));
                }
                Some(MigrationNews::LinksWanted { count, reason }) => self.dial_again(count, &reason).await,
                Some(_) => {}
                None if departed => return Ok(()),
                None => {
                    let text = "the machine process ended while its machine was being moved";
                    return Err(Failure::new(ErrorCode::MachineFailed, text));
                }
            }
        }
    }

    async fn progressed(&mut self, phase: Told) {
        let phase = match phase {
            Told::PreparingTarget => MigrationPhase::PreparingTarget,
            Told::TargetReady => MigrationPhase::TargetReady,
            // It has succeeded when the target says so.
            Told::Running | Told::Succeeded => MigrationPhase::Running,
            Told::Failed | Told::Cancelled => return,
        };
        if may_follow(self.record.phase, phase) {
            self.enter(phase).await;
        }
    }

    /// The streams of a post-copy broke: without new ones, the machine does not come to its memory.
    async fn dial_again(&mut self, count: u32, reason: &str) {
        tracing::warn!(migration = %self.record.key.id, why = reason, "streams of a move broke and are made anew");
        let place = self.record.target_address.clone().unwrap_or_default();
        let Some((address, port)) = place.rsplit_once(':') else {
            return;
        };
        let port = port.parse().unwrap_or_default();
        let made = match self.dial(address, port, count).await {
            Ok(links) => self.machine.steer(VmRequest::DepartLinks { count }, links).await,
            Err(failure) => Err(failure),
        };
        if let Err(failure) = made {
            // The process asks again.
            tracing::warn!(migration = %self.record.key.id, error = %failure, "no new streams for a move");
            tokio::time::sleep(RETRY).await;
        }
    }

    /// The end, whatever it is: first the ledger says where the machine is.
    async fn conclude(mut self, failure: Option<Failure>, reached: &Reached) {
        let departed = decide(&self.host, &self.record).await;
        if departed {
            // A process that only lost its daemon is listened to again; one that is gone is silent at once.
            let mut still = Reached::default();
            if failure.is_some() {
                let _ = self.follow(&mut still).await; // It has departed, whatever the process says last.
            }
            let lost = self.confirmed().await;
            if lost.is_none() {
                forget_machine(&self.host, &self.record, &self.machine).await;
            }
            finish(&self.host, &mut self.record, lost).await;
            return;
        }
        if reached.told_process && !reached.stayed {
            self.call_back().await;
        }
        if reached.asked_target {
            tokio::spawn(give_up(Client::remote(self.remote.clone()), self.record.key.id));
        }
        let failure = failure.unwrap_or_else(|| Failure::new(ErrorCode::Internal, "the machine stayed"));
        finish(&self.host, &mut self.record, Some(failure)).await;
    }

    /// The ledger says that the machine stays, but its process may not know.
    async fn call_back(&mut self) {
        if self.machine.steer(VmRequest::DepartCancel, Vec::new()).await.is_err() {
            return;
        }
        let told = async {
            while let Some(news) = self.news.recv().await {
                if matches!(news, MigrationNews::Stayed { .. }) {
                    return;
                }
            }
        };
        if tokio::time::timeout(STAY_TIMEOUT, told).await.is_err() {
            tracing::warn!(migration = %self.record.key.id, "a machine process does not tell that its machine stays");
        }
    }

    /// Waits until the target says what became of the machine that departed; why it is lost, if it is.
    async fn confirmed(&self) -> Option<Failure> {
        let client = Client::remote(self.remote.clone());
        loop {
            match client.incoming_migration(self.record.key.id).await {
                Ok(there) if there.phase == MigrationPhase::Succeeded => return None,
                Ok(there) if there.phase.is_final() => {
                    let why = there.error.map(|problem| problem.detail).unwrap_or_default();
                    let text = format!(
                        "the machine was given away to {}, which says that it is not there: {why}",
                        self.record.target
                    );
                    return Some(Failure::new(ErrorCode::MachineFailed, text));
                }
                Ok(_) => {}
                Err(error) => {
                    let error = chain(&error);
                    tracing::warn!(migration = %self.record.key.id, error, "the target of a move does not answer; it is asked again");
                }
            }
            tokio::time::sleep(RETRY).await;
        }
    }

    async fn enter(&mut self, phase: MigrationPhase) {
        self.record.phase = phase;
        write(&self.host, &self.record).await;
    }
}

/// What stands in the ledger; if nothing does, that the machine stays.
async fn decide(host: &Host, record: &MigrationRecord) -> bool {
    loop {
        let (key, vm) = (record.key, record.vm);
        match host
            .registry()
            .change(move |change| change.decide(&key, Some(vm), false))
            .await
        {
            Ok(departed) => return departed,
            Err::<_, RegistryError>(error) => {
                let error = chain(&error);
                tracing::error!(migration = %key.id, error, "where a machine is can not be written down; it is tried again");
                tokio::time::sleep(RETRY).await;
            }
        }
    }
}

/// What is left of a machine that lives elsewhere goes.
async fn forget_machine(host: &Host, record: &MigrationRecord, machine: &Machine) {
    match machine.delete(None).await {
        Ok(()) => {
            host.lock_machines().remove(&record.vm);
            // An image may have had its last use.
            host.0.boot.wake.notify_one();
        }
        Err(failure) if failure.code == ErrorCode::NotFound => {}
        Err(failure) => {
            tracing::warn!(vm = record.vm_name, error = %failure, "what is left of a machine that moved away remains; delete it");
        }
    }
}

async fn give_up(client: Client, id: spec::MigrationId) {
    for _ in 0..GIVE_UP_TRIES {
        match client.give_up_incoming(id).await {
            Ok(()) => return,
            Err(error) if matches!(error.code(), Some(ErrorCode::NotFound | ErrorCode::WrongState)) => return,
            Err(error) => tracing::debug!(%id, error = chain(&error), "the target was not told that a machine stays"),
        }
        tokio::time::sleep(RETRY).await;
    }
}

/// Writes how the move ended.
async fn finish(host: &Host, record: &mut MigrationRecord, failure: Option<Failure>) {
    let moves = &host.0.context.moves;
    moves.unfollow(record.vm, &record.key);
    record.progress = moves.figures(record.key.id).or(record.progress.take());
    record.phase = match &failure {
        None => MigrationPhase::Succeeded,
        Some(failure) if failure.code == ErrorCode::Cancelled => MigrationPhase::Cancelled,
        Some(_) => MigrationPhase::Failed,
    };
    record.failure = failure;
    record.ended_at = Some(Timestamp::now());
    write(host, record).await;
    moves.end(record.key.id, record.phase == MigrationPhase::Succeeded);
}

/// Writes how the move is, and tells it; tried until it works, for nobody else knows.
async fn write(host: &Host, record: &MigrationRecord) {
    let why = record
        .failure
        .as_ref()
        .map(|failure| format!(": {failure}"))
        .unwrap_or_default();
    let text = format!(
        "the move of machine {} to {} is {:?}{why}",
        record.vm_name, record.target, record.phase
    );
    tracing::info!(migration = %record.key.id, "{text}");
    loop {
        let (row, text) = (record.clone(), text.clone());
        let written = host.registry().change(move |change| -> Result<(), RegistryError> {
            // The bandwidth may have been changed meanwhile.
            let known = change.find_move::<MigrationRecord>(row.key.id)?;
            let mut row = row;
            if let Some(known) = known {
                row.options = known.options;
            }
            change.update_move(&row)?;
            tell(change, row.key.id, &row.vm_name, &text)
        });
        match written.await {
            Ok(()) => return,
            Err(error) => {
                tracing::error!(migration = %record.key.id, error = chain(&error), "a move can not be written down; it is tried again");
                tokio::time::sleep(RETRY).await;
            }
        }
    }
}

fn cancelled() -> Failure {
    Failure::new(ErrorCode::Cancelled, "cancelled on request; the machine stayed")
}

fn refused(target: &str, error: ClientError) -> Failure {
    match error {
        ClientError::Refused(problem) => Failure {
            code: problem.code,
            detail: format!("{target} does not take the machine: {}", problem.detail),
            problems: problem.errors,
        },
        error => Failure::new(
            ErrorCode::HostLacks,
            format!("{target} was not asked: {}", chain(&error)),
        ),
    }
}
