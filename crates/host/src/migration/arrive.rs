//! The target: makes room for a machine, waits for it, and gives everything back when it does not come.

use std::net::SocketAddr;
use std::os::fd::OwnedFd;
use std::time::Duration;

use api_types::{ErrorCode, EventReason, IncomingMigrationWish, MigrationPhase, Vm};
use client::{Client, Remote};
use control::{MigrationNews, VmRequest};
use jiff::Timestamp;
use spec::MigrationId;
use tokio::net::TcpListener;
use tokio::sync::OwnedSemaphorePermit;
use tokio_util::sync::CancellationToken;

use super::identity::Identity;
use super::{preflight, tell, unknown};
use crate::create::Unfinished;
use crate::failure::{Failure, chain};
use crate::host::Host;
use crate::machine::{Arrival, LaterLock, Machine};
use crate::moves::{ArrivalRecord, News, may_follow};
use crate::registry::{About, RegistryError};

/// How long to wait before the source, or the registry, is asked again.
const RETRY: Duration = Duration::from_secs(1);
/// How often it is looked whether the source is still at it.
const LOOK_EVERY: Duration = Duration::from_secs(10);
/// How long the source's process has to let go of the disks.
const LOCK_TIMEOUT: Duration = Duration::from_secs(60);
/// How often a disk is tried meanwhile.
const LOCK_RETRY: Duration = Duration::from_millis(100);

/// A machine that is on its way here.
struct Coming {
    host: Host,
    record: ArrivalRecord,
    machine: Machine,
    news: News,
    give_up: CancellationToken,
    /// What is to be locked when it is here.
    locks: Vec<LaterLock>,
    /// Kept until it is over.
    _turn: Option<OwnedSemaphorePermit>,
}

/// What a machine needs to be received.
struct Place {
    listener: OwnedFd,
    address: SocketAddr,
    identity: Option<Identity>,
}

/// Goes on with an arrival that an earlier daemon was at.
pub(super) async fn resume(host: Host, mut record: ArrivalRecord, news: News) {
    let moves = &host.0.context.moves;
    let give_up = moves.begin(record.key.id);
    let turn = moves.total.clone().try_acquire_owned().ok();
    let Ok((_, machine)) = host.machine(&record.vm.to_string()).await else {
        record.failure = Some(gone("what was here for it is gone"));
        finish(&host, &mut record, MigrationPhase::Failed).await;
        return;
    };
    let coming = Coming {
        host,
        record,
        machine,
        news,
        give_up,
        locks: Vec::new(),
        _turn: turn,
    };
    // Once it was here, it is here for ever.
    let is_ours = coming.record.phase == MigrationPhase::Running || coming.ask().await;
    if is_ours {
        let decided = VmRequest::ArriveDecided { departed: true };
        if let Err(failure) = coming.machine.steer(decided, Vec::new()).await {
            tracing::debug!(error = %failure, "the process of a machine that arrived does not wait for a decision");
        }
        coming.follow().await;
    } else {
        let text = "the daemon of the target was restarted meanwhile";
        coming.give_back(gone(text)).await;
    }
}

impl Host {
    /// Machines that come, or came, from other hosts, newest first.
    pub async fn arrivals(&self) -> Result<Vec<ArrivalRecord>, Failure> {
        let found = self
            .registry()
            .change(|change| -> Result<Vec<ArrivalRecord>, RegistryError> { change.moves() });
        found.await.map_err(|error: RegistryError| Failure::from(error))
    }

    /// One of them.
    pub async fn arrival(&self, id: MigrationId) -> Result<ArrivalRecord, Failure> {
        let found = self
            .registry()
            .change(move |change| change.find_move::<ArrivalRecord>(id));
        let found = found.await.map_err(|error: RegistryError| Failure::from(error))?;
        found.ok_or_else(|| unknown(id))
    }

    /// Asks for a machine that is on its way to be given up. The source has the last word: if it has given it away, it comes.
    pub async fn give_up_arrival(&self, id: MigrationId) -> Result<(), Failure> {
        let record = self.arrival(id).await?;
        if record.phase.is_final() {
            let text = format!("migration {id} is over ({:?})", record.phase);
            return Err(Failure::new(ErrorCode::WrongState, text));
        }
        self.0.context.moves.cancel(id);
        Ok(())
    }

    /// Looks whether a machine of another host can come, and makes everything ready for it. Nothing is left when it can not.
    pub async fn receive_migration(&self, wish: IncomingMigrationWish) -> Result<ArrivalRecord, Failure> {
        let moves = &self.0.context.moves;
        let turn = moves.total.clone().try_acquire_owned().map_err(|_| {
            let most = self.0.context.config.migration.total_max;
            let text = format!("{most} moves are under way on this host already (migration.parallel_total); ask again");
            Failure::new(ErrorCode::HostLacks, text)
        })?;
        self.check_arrival(&wish).await?;
        let _name = self.reserve(&wish.vm.spec.name).await?;
        let place = self.receiving_place().await?;
        let (vm, mut record) = self.record_arrival(&wish).await?;
        let news = moves.follow(vm.id, record.key);
        let give_up = moves.begin(record.key.id);
        record.address.clone_from(&self.advertised(place.address));
        record.port = Some(place.address.port());
        record.certificate = place.identity.as_ref().map(Identity::certificate);
        let credentials = match (place.identity, &wish.certificate) {
            (Some(identity), Some(peer)) => identity.credentials(peer).map(Some),
            _ => Ok(None),
        };
        // From here on there is a record, and `Coming` sees to it that it goes.
        let arrival = credentials.map(|credentials| Arrival {
            key: record.key,
            credentials,
            listener: place.listener,
            patience_ms: wish.patience_ms,
        });
        let arrival = match arrival {
            Ok(arrival) => arrival,
            Err(failure) => {
                let machine = Machine::supervise(&self.0.context, vm);
                self.lock_machines().insert(record.vm, machine.clone());
                let coming = self.coming(record, machine, news, give_up, turn);
                coming.give_back(failure.clone()).await;
                return Err(failure);
            }
        };
        let (machine, received) = Machine::receive(&self.0.context, vm, arrival);
        self.lock_machines().insert(record.vm, machine.clone());
        let mut coming = self.coming(record, machine, news, give_up, turn);
        let received = received.await.unwrap_or_else(|_| Err(gone("its task was lost")));
        match received {
            Ok(locks) => coming.locks = locks,
            Err(failure) => {
                coming.give_back(failure.clone()).await;
                return Err(failure);
            }
        }
        write(self, &coming.record).await;
        let record = coming.record.clone();
        tokio::spawn(coming.follow());
        Ok(record)
    }

    fn coming(
        &self,
        record: ArrivalRecord,
        machine: Machine,
        news: News,
        give_up: CancellationToken,
        turn: OwnedSemaphorePermit,
    ) -> Coming {
        Coming {
            host: self.clone(),
            record,
            machine,
            news,
            give_up,
            locks: Vec::new(),
            _turn: Some(turn),
        }
    }

    async fn receiving_place(&self) -> Result<Place, Failure> {
        let config = &self.0.context.config.migration;
        let failed = |error: std::io::Error| {
            let text = format!("{} can not be listened on (migration.bind): {error}", config.bind);
            Failure::new(ErrorCode::Internal, text)
        };
        let listener = TcpListener::bind((config.bind, 0)).await.map_err(failed)?;
        let address = listener.local_addr().map_err(failed)?;
        let listener = listener.into_std().map_err(failed)?;
        listener.set_nonblocking(false).map_err(failed)?;
        let identity = if config.plain { None } else { Some(Identity::make()?) };
        Ok(Place {
            listener: listener.into(),
            address,
            identity,
        })
    }

    /// What the source is told of the address; nothing when it is that of the API.
    fn advertised(&self, address: SocketAddr) -> Option<String> {
        let advertised = self.0.context.config.migration.advertise.clone();
        advertised.or_else(|| (!address.ip().is_unspecified()).then(|| address.ip().to_string()))
    }

    /// The daemon that a machine comes from: one of the configured hosts, or another that the same authority knows.
    pub(super) fn source_of(&self, wish: &IncomingMigrationWish) -> Result<Client, Failure> {
        self.source_at(&wish.source_url)
    }

    fn source_at(&self, url: &str) -> Result<Client, Failure> {
        let config = &self.0.context.config.migration;
        if let Some(remote) = config.hosts.values().find(|remote| remote.url() == url) {
            return Ok(Client::remote(remote.clone()));
        }
        let files = config.files.clone().ok_or_else(|| {
            let text = format!("this host knows no {url} ([hosts]), and has no certificate to ask it with ([tls])");
            Failure::new(ErrorCode::WrongState, text)
        })?;
        let remote = Remote::new(url, files);
        Ok(Client::remote(
            remote.map_err(|error| Failure::of(ErrorCode::InvalidRequest, &error))?,
        ))
    }

    /// Makes the machine's directory and its record.
    async fn record_arrival(&self, wish: &IncomingMigrationWish) -> Result<(Vm, ArrivalRecord), Failure> {
        let context = &self.0.context;
        let directory = Unfinished::make(context, wish.vm.id)?;
        let vm = Vm {
            id: wish.vm.id,
            spec: wish.vm.spec.clone(),
            image_digest: None,
            status: preflight::arriving(),
            conditions: Vec::new(),
            created_at: wish.vm.created_at,
            revision: 1,
        };
        let record = ArrivalRecord::new(wish);
        let (row, arrival) = (vm.clone(), record.clone());
        let noted = self.registry().change(move |change| -> Result<(), Failure> {
            let taken = |error: RegistryError| {
                if error.is_conflict() {
                    let text = format!(
                        "machine {}, or one of its name or on its way, is here already",
                        row.spec.name
                    );
                    Failure::new(ErrorCode::NameTaken, text)
                } else {
                    error.into()
                }
            };
            change.insert_vm(&row).map_err(taken)?;
            change.insert_move(&arrival).map_err(taken)?;
            let text = format!(
                "machine {} is on its way here from {}",
                row.spec.name, arrival.source_url
            );
            change.event(&About::Vm(row.id, &row.spec.name), EventReason::Created, &text)?;
            Ok(tell(change, arrival.key.id, &row.spec.name, &text)?)
        });
        noted.await?;
        directory.keep();
        Ok((vm, record))
    }
}

impl Coming {
    /// Until the machine lives here, or will not.
    async fn follow(mut self) {
        let mut reason = None;
        loop {
            let news = tokio::select! {
                news = self.news.recv() => news,
                () = self.give_up.cancelled(), if self.record.phase != MigrationPhase::Running => {
                    if !self.ask().await {
                        let text = "the source gave the move up";
                        return self.give_back(Failure::new(ErrorCode::Cancelled, text)).await;
                    }
                    self.decided(true).await;
                    // It is too late to give it up.
                    self.give_up = CancellationToken::new();
                    continue;
                }
                () = tokio::time::sleep(LOOK_EVERY), if self.record.phase != MigrationPhase::Running => {
                    if self.source_is_done().await {
                        self.give_up.cancel();
                    }
                    continue;
                }
            };
            match news {
                Some(MigrationNews::Arrived { .. }) => self.arrived().await,
                Some(MigrationNews::Complete) => {
                    self.arrived().await;
                    return self.end(MigrationPhase::Succeeded).await;
                }
                Some(MigrationNews::InDoubt { .. }) => {
                    let departed = self.ask().await;
                    self.decided(departed).await;
                }
                Some(MigrationNews::ArrivalFailed { reason: why }) => reason = Some(why),
                Some(_) => {}
                None if self.record.phase == MigrationPhase::Running => {
                    return self.end(MigrationPhase::Succeeded).await;
                }
                None => return self.process_is_gone(reason).await,
            }
        }
    }

    async fn arrived(&mut self) {
        if !may_follow(self.record.phase, MigrationPhase::Running) {
            return;
        }
        self.record.phase = MigrationPhase::Running;
        write(&self.host, &self.record).await;
        let locks = std::mem::take(&mut self.locks);
        if !locks.is_empty() {
            tokio::spawn(take_locks(self.record.vm_name.clone(), locks));
        }
    }

    async fn decided(&self, departed: bool) {
        if let Err(failure) = self
            .machine
            .steer(VmRequest::ArriveDecided { departed }, Vec::new())
            .await
        {
            tracing::info!(error = %failure, departed, "the process of a machine that arrives does not wait for a decision");
        }
    }

    /// Without a process here, only the source's ledger knows whose the machine is; unless the process said that it gave up, which it
    /// does only where the source has it or will.
    async fn process_is_gone(self, reason: Option<String>) {
        if reason.is_none() && self.ask().await {
            if let Err(failure) = self.machine.settle_arrival(true).await {
                tracing::debug!(error = %failure, "the machine is here already");
            }
            return self.end(MigrationPhase::Succeeded).await;
        }
        let text = reason.unwrap_or_else(|| "the machine process ended before the machine was here".to_owned());
        self.give_back(Failure::new(ErrorCode::MachineFailed, text)).await;
    }

    /// Asks the source until it answers; true when the machine has departed there, and is ours.
    async fn ask(&self) -> bool {
        let (id, token) = (self.record.key.id, self.record.key.token);
        loop {
            let error = match self.host.source_at(&self.record.source_url) {
                Ok(client) => match client.decide_migration(id, token).await {
                    Ok(departed) => return departed,
                    Err(error) => chain(&error),
                },
                Err(failure) => failure.to_string(),
            };
            let url = &self.record.source_url;
            tracing::warn!(migration = %id, url, error, "the source of a move does not say where the machine is; it is asked again");
            tokio::time::sleep(RETRY).await;
        }
    }

    /// Whether the source says by itself that the move is over.
    async fn source_is_done(&self) -> bool {
        let Ok(client) = self.host.source_at(&self.record.source_url) else {
            return false;
        };
        match client.migration(self.record.key.id).await {
            Ok(there) => there.phase.is_final(),
            Err(error) => error.code() == Some(ErrorCode::NotFound),
        }
    }

    /// Everything that was made for the machine goes.
    async fn give_back(mut self, failure: Failure) {
        loop {
            match self.machine.settle_arrival(false).await {
                Ok(()) => break,
                Err(failure) if matches!(failure.code, ErrorCode::NotFound | ErrorCode::WrongState) => break,
                Err(failure) => {
                    tracing::error!(vm = self.record.vm_name, error = %failure, "what was made for a machine that does not come remains; it is tried again");
                    tokio::time::sleep(RETRY).await;
                }
            }
        }
        self.host.lock_machines().remove(&self.record.vm);
        let phase = match failure.code {
            ErrorCode::Cancelled => MigrationPhase::Cancelled,
            _ => MigrationPhase::Failed,
        };
        self.record.failure = Some(failure);
        self.end(phase).await;
    }

    async fn end(mut self, phase: MigrationPhase) {
        finish(&self.host, &mut self.record, phase).await;
    }
}

/// The source's process lets go of the disks when it ends, which it does when nothing is needed of it any more.
async fn take_locks(vm: String, locks: Vec<LaterLock>) {
    let taken = tokio::task::spawn_blocking(move || {
        let until = std::time::Instant::now() + LOCK_TIMEOUT;
        for lock in locks {
            while let Err(error) = lock.take() {
                if std::time::Instant::now() > until {
                    return Err(chain(&error));
                }
                std::thread::sleep(LOCK_RETRY);
            }
        }
        Ok(())
    });
    if let Ok(Err(error)) = taken.await {
        tracing::error!(
            vm,
            error,
            "a disk of a machine that arrived can not be locked; let nobody else use it"
        );
    }
}

async fn finish(host: &Host, record: &mut ArrivalRecord, phase: MigrationPhase) {
    let moves = &host.0.context.moves;
    moves.unfollow(record.vm, &record.key);
    record.phase = phase;
    record.ended_at = Some(Timestamp::now());
    write(host, record).await;
    moves.forget(record.key.id);
}

/// Writes how the arrival is, and tells it; tried until it works, for nobody else knows.
async fn write(host: &Host, record: &ArrivalRecord) {
    let why = record
        .failure
        .as_ref()
        .map(|failure| format!(": {failure}"))
        .unwrap_or_default();
    let text = format!(
        "the move of machine {} to this host is {:?}{why}",
        record.vm_name, record.phase
    );
    tracing::info!(migration = %record.key.id, "{text}");
    loop {
        let (row, text) = (record.clone(), text.clone());
        let written = host.registry().change(move |change| -> Result<(), RegistryError> {
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

fn gone(why: &str) -> Failure {
    Failure::new(ErrorCode::MachineFailed, format!("the machine did not come: {why}"))
}
