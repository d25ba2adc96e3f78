//! `karat volume …`.

use std::process::ExitCode;

use anyhow::Context;
use api_types::{
    DiskMirror, ErrorCode, OperationId, VmPhase, Volume, VolumeAccepted, VolumeCheckRequest, VolumeConvert,
    VolumeMeasureRequest, VolumeRepair, VolumeResize, VolumeSource, VolumeState,
};
use client::{Client, ClientError, Upload};

use crate::args::Format;
use crate::output::{columns, fields, human, say, write};
use crate::progress::{Progress, Sending};
use crate::volume_args::{AttachArgs, CreateArgs, FormArgs, UploadArgs, VolumeCommand};

/// Carries a command out.
pub(crate) async fn run(client: &Client, command: VolumeCommand, format: Format) -> anyhow::Result<ExitCode> {
    match command {
        VolumeCommand::Create(args) => create(client, args, format).await?,
        VolumeCommand::Ls => list(client, format).await?,
        VolumeCommand::Show { volume } => write(format, &client.volume(&volume).await?, describe)?,
        VolumeCommand::Resize { volume, size } => {
            let accepted = client.resize_volume(&volume, &VolumeResize { size }).await?;
            done(client, accepted, "resizing", format).await?;
        }
        VolumeCommand::Rm { volumes } => {
            for volume in volumes {
                client.remove_volume(&volume).await?;
                say(&format!("removed {volume}"));
            }
        }
        VolumeCommand::Check { volume, repair } => return check(client, &volume, repair, format).await,
        VolumeCommand::Convert { volume, name, form } => convert(client, &volume, name, form, format).await?,
        VolumeCommand::Commit { volume } => {
            let accepted = client.commit_volume(&volume).await?;
            done(client, accepted, "committing", format).await?;
        }
        VolumeCommand::Rebase { volume } => {
            let accepted = client.rebase_volume(&volume).await?;
            done(client, accepted, "rebasing", format).await?;
        }
        VolumeCommand::Measure { volume, form } => measure(client, &volume, form, format).await?,
        VolumeCommand::Upload(args) => upload(client, args, format).await?,
        VolumeCommand::Snapshot { .. }
        | VolumeCommand::Stream { .. }
        | VolumeCommand::Copy { .. }
        | VolumeCommand::Move { .. }
        | VolumeCommand::Limit(_) => live(client, command, format).await?,
        VolumeCommand::Attach(args) => attach(client, args).await?,
        VolumeCommand::Detach { volume, vm } => {
            let vm = client.detach_disk(&vm, &volume).await?;
            say(&format!("detached {volume} from {}", vm.spec.name));
        }
    }
    Ok(ExitCode::SUCCESS)
}

/// What is done to a volume under its machine.
async fn live(client: &Client, command: VolumeCommand, format: Format) -> anyhow::Result<()> {
    let (accepted, doing) = match command {
        VolumeCommand::Snapshot { volume } => {
            let vm = holder(client, &volume).await?;
            (client.snapshot_disk(&vm, &volume).await?, "taking a snapshot of")
        }
        VolumeCommand::Stream { volume } => {
            let vm = holder(client, &volume).await?;
            (client.stream_disk(&vm, &volume).await?, "streaming")
        }
        VolumeCommand::Copy { volume, name, format } => {
            let vm = holder(client, &volume).await?;
            let name = Some(name);
            let mirror = DiskMirror { name, format };
            (client.mirror_disk(&vm, &volume, &mirror).await?, "copying into")
        }
        VolumeCommand::Move { volume, format } => {
            let vm = holder(client, &volume).await?;
            let mirror = DiskMirror { name: None, format };
            (client.mirror_disk(&vm, &volume, &mirror).await?, "moving")
        }
        VolumeCommand::Limit(args) => {
            let vm = holder(client, &args.volume).await?;
            client.limit_disk(&vm, &args.volume, &args.limits()).await?;
            say(&format!("limited {} of {vm}", args.volume));
            return Ok(());
        }
        _ => return Ok(()),
    };
    done(client, accepted, doing, format).await
}

/// The machine that has a volume and may write it.
async fn holder(client: &Client, volume: &str) -> anyhow::Result<String> {
    let found = client.volume(volume).await?;
    let holder = found.attached_to.into_iter().find(|one| !one.read_only);
    let holder = holder.with_context(|| format!("no machine has volume {volume} for writing: attach it first"))?;
    Ok(holder.vm)
}

async fn create(client: &Client, args: CreateArgs, format: Format) -> anyhow::Result<()> {
    let accepted = client.create_volume(&args.wish()).await?;
    done(client, accepted, "creating", format).await
}

async fn convert(client: &Client, volume: &str, name: String, form: FormArgs, format: Format) -> anyhow::Result<()> {
    let convert = VolumeConvert {
        name,
        format: form
            .format
            .context("name the new format: --format raw, or --format qcow2")?,
        preallocation: form.preallocation,
        cluster_size: form.cluster_size,
        compressed: form.compressed,
    };
    let accepted = client.convert_volume(volume, &convert).await?;
    done(client, accepted, "copying into", format).await
}

async fn measure(client: &Client, volume: &str, form: FormArgs, format: Format) -> anyhow::Result<()> {
    anyhow::ensure!(!form.compressed, "what compression saves is known only when it is done");
    let wanted = VolumeMeasureRequest {
        format: form
            .format
            .context("name the format of the copy: --format raw, or --format qcow2")?,
        preallocation: form.preallocation,
        cluster_size: form.cluster_size,
    };
    let measured = client.measure_volume(volume, &wanted).await?;
    write(format, &measured, |measured| {
        fields(&[
            ("required", human(measured.required_bytes)),
            ("fully allocated", human(measured.fully_allocated_bytes)),
        ])
    })
}

async fn attach(client: &Client, args: AttachArgs) -> anyhow::Result<()> {
    let volume = args.volume.clone();
    let vm = args.vm.clone();
    let vm = client.attach_disk(&vm, &args.wish()).await?;
    let when = match vm.status.phase {
        VmPhase::Running | VmPhase::Paused => "",
        _ => "; it has it from its next start on",
    };
    say(&format!("attached {volume} to {}{when}", vm.spec.name));
    Ok(())
}

/// Makes the volume, or finds the one that was begun, and sends what it lacks.
async fn upload(client: &Client, args: UploadArgs, format: Format) -> anyhow::Result<()> {
    let path = &args.file;
    let opened = tokio::fs::File::open(path).await;
    let file = opened.with_context(|| format!("{} can not be opened", path.display()))?;
    let length = file.metadata().await.context("its length can not be read")?.len();
    anyhow::ensure!(length > 0, "{} is empty: there is nothing to send", path.display());
    let volume = match client.create_volume(&args.wish()).await {
        Ok(accepted) => accepted.volume,
        Err(ClientError::Refused(problem)) if problem.code == ErrorCode::NameTaken => begun_before(client, &args)
            .await?
            .ok_or(ClientError::Refused(problem))?,
        Err(error) => return Err(error.into()),
    };
    let first = volume.upload.map_or(0, |upload| upload.received_bytes);
    anyhow::ensure!(
        first <= length,
        "volume {} has received {first} bytes, and {} has {length}: it is another file; remove the volume and begin anew",
        volume.name,
        path.display()
    );
    if first > 0 {
        say(&format!("going on after {}", human(first)));
    }
    let sending = Sending::new(&args.name, first, length);
    let shown = sending.clone();
    let upload = Upload { file, length, first };
    let sent = client
        .upload_volume(&args.name, upload, move |sent| shown.show(sent))
        .await;
    drop(sending);
    let accepted = match sent {
        Ok(accepted) => accepted,
        Err(error) => {
            say(&format!(
                "the same command goes on where it ended, `karat volume rm {}` gives up",
                args.name
            ));
            return Err(error.into());
        }
    };
    done(client, accepted, "taking over", format).await
}

/// The volume of this name, if it still waits for what is sent.
async fn begun_before(client: &Client, args: &UploadArgs) -> anyhow::Result<Option<Volume>> {
    let volume = client.volume(&args.name).await?;
    Ok(Some(volume).filter(|volume| volume.upload.is_some() && volume.source == args.wish().source))
}

async fn check(
    client: &Client,
    volume: &str,
    repair: Option<VolumeRepair>,
    format: Format,
) -> anyhow::Result<ExitCode> {
    let accepted = client.check_volume(volume, &VolumeCheckRequest { repair }).await?;
    let name = accepted.volume.name;
    wait(client, accepted.operation, &format!("checking {name}")).await?;
    let volume = client.volume(&name).await?;
    write(format, &volume, report)?;
    let (errors, leaks) = volume.last_check.map_or((0, 0), |check| (check.errors, check.leaks));
    if errors == 0 && leaks == 0 {
        return Ok(ExitCode::SUCCESS);
    }
    let what = if errors > 0 { "all" } else { "leaks" };
    say(&format!(
        "`karat volume check {name} --repair {what}` repairs it, while no machine runs with it"
    ));
    Ok(ExitCode::FAILURE)
}

/// Waits for what was begun, and prints the volume.
async fn done(client: &Client, accepted: VolumeAccepted, doing: &str, format: Format) -> anyhow::Result<()> {
    let name = accepted.volume.name;
    wait(client, accepted.operation, &format!("{doing} {name}")).await?;
    write(format, &client.volume(&name).await?, |volume| {
        format!("{}\n", volume.name)
    })
}

async fn wait(client: &Client, operation: Option<OperationId>, doing: &str) -> anyhow::Result<()> {
    let Some(operation) = operation else { return Ok(()) };
    let progress = Progress::new(doing);
    client.wait(operation, |operation| progress.show(operation)).await?;
    Ok(())
}

async fn list(client: &Client, format: Format) -> anyhow::Result<()> {
    write(format, &client.volumes().await?, |volumes| {
        let row = |volume: &Volume| {
            [
                volume.name.clone(),
                state(volume),
                volume.format.map(word).unwrap_or_default(),
                volume.size_bytes.map(human).unwrap_or_default(),
                human(volume.usage_bytes),
                attached(volume),
            ]
        };
        columns(
            ["NAME", "STATE", "FORMAT", "SIZE", "USAGE", "ATTACHED TO"],
            &volumes.iter().map(row).collect::<Vec<_>>(),
        )
    })
}

fn describe(volume: &Volume) -> String {
    let upload = volume.upload.map(|upload| human(upload.received_bytes));
    let ready = volume.state == VolumeState::Ready;
    fields(&[
        ("name", volume.name.clone()),
        ("id", volume.id.to_string()),
        ("state", state(volume)),
        ("reason", volume.reason.clone().unwrap_or_default()),
        ("message", volume.message.clone().unwrap_or_default()),
        ("format", volume.format.map(word).unwrap_or_default()),
        ("size", volume.size_bytes.map(human).unwrap_or_default()),
        ("usage", human(volume.usage_bytes)),
        ("made from", source(&volume.source)),
        ("shares blocks with", volume.image_digest.clone().unwrap_or_default()),
        (
            "files",
            volume
                .layers
                .iter()
                .map(|layer| layer.file.as_str())
                .collect::<Vec<_>>()
                .join(" on "),
        ),
        ("preallocation", word(volume.preallocation)),
        ("received", upload.unwrap_or_default()),
        (
            "operation",
            volume.operation.map(|id| id.to_string()).unwrap_or_default(),
        ),
        ("attached to", if ready { attached(volume) } else { String::new() }),
        (
            "last check",
            volume
                .last_check
                .as_ref()
                .map(|check| found(check, " "))
                .unwrap_or_default(),
        ),
        ("created", volume.created_at.to_string()),
    ])
}

fn report(volume: &Volume) -> String {
    match &volume.last_check {
        Some(check) => format!("{}: {}\n", volume.name, found(check, "\n  ")),
        None => format!("{}: not checked\n", volume.name),
    }
}

fn found(check: &api_types::VolumeCheck, separator: &str) -> String {
    let mut text = if check.errors == 0 && check.leaks == 0 {
        "sound".to_owned()
    } else {
        format!("{} errors, {} leaked clusters", check.errors, check.leaks)
    };
    if check.errors_repaired + check.leaks_repaired > 0 {
        text = format!(
            "{text}; {} errors repaired, {} clusters given back",
            check.errors_repaired, check.leaks_repaired
        );
    }
    for detail in &check.details {
        text.push_str(separator);
        text.push_str(detail);
    }
    text
}

fn source(source: &VolumeSource) -> String {
    match source {
        VolumeSource::Blank {} => "nothing".to_owned(),
        VolumeSource::Image { image, .. } => format!("image {image}"),
        VolumeSource::Volume { volume } => format!("volume {volume}"),
        VolumeSource::Upload { .. } => "an upload".to_owned(),
    }
}

fn state(volume: &Volume) -> String {
    word(volume.state)
}

fn attached(volume: &Volume) -> String {
    let machines = volume.attached_to.iter().map(|one| {
        let how = if one.read_only { " (read-only)" } else { "" };
        format!("{}{how}", one.vm)
    });
    machines.collect::<Vec<_>>().join(", ")
}

/// A word of the API.
fn word<T: serde::Serialize>(value: T) -> String {
    match serde_json::to_value(value) {
        Ok(serde_json::Value::String(word)) => word,
        _ => String::new(),
    }
}
