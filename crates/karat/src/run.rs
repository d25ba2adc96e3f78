//! `karat run`: from a reference to a running machine in one command.

use std::process::ExitCode;

use api_types::{BootWish, NetworkWish, Vm, VmSpec};
use client::Client;

use crate::args::{Format, MachineArgs, RunArgs};
use crate::network_arg::Network;
use crate::output::{say, write};
use crate::{console, images, vms};

/// Pulls the image if it is not here, makes the machine, starts it, and attaches to its console.
pub(crate) async fn run(client: &Client, args: RunArgs, format: Format) -> anyhow::Result<ExitCode> {
    let vm = make(client, &args.machine).await?;
    if let Err(error) = vms::start_one(client, &vm.spec.name).await {
        let from = vm
            .image_digest
            .map(|digest| format!(" from {digest}"))
            .unwrap_or_default();
        say(&format!(
            "{} was made{from} but does not run; `karat rm {}` removes it",
            vm.spec.name, vm.spec.name
        ));
        return Err(error);
    }
    if args.detach {
        let vm = client.vm(&vm.spec.name).await?;
        write(format, &vm, |vm| format!("{}\n", vm.spec.name))?;
        return Ok(ExitCode::SUCCESS);
    }
    say(&format!("{} runs; Ctrl-] leaves its console", vm.spec.name));
    console::attach(client, &vm.spec.name).await
}

/// Pulls the image if it is not here, and makes the machine.
pub(crate) async fn create(client: &Client, args: &MachineArgs, format: Format) -> anyhow::Result<()> {
    let vm = make(client, args).await?;
    write(format, &vm, |vm| format!("{}\n", vm.spec.name))
}

async fn make(client: &Client, args: &MachineArgs) -> anyhow::Result<Vm> {
    if let Some(image) = &args.image {
        images::ensure(client, image).await?;
    }
    Ok(client.create_vm(&wish(args)).await?)
}

fn wish(args: &MachineArgs) -> VmSpec {
    let boot = BootWish {
        kernel: args.kernel.clone(),
        initrd: args.initrd.clone(),
        cmdline: args.cmdline.clone(),
    };
    let networks = args.network.iter().filter_map(|network| match network {
        Network::None => None,
        Network::Tap(tap) => Some(NetworkWish {
            tap: tap.clone(),
            mac: None,
            queue_pairs: None,
        }),
    });
    let name = args.name.clone();
    VmSpec {
        name: name.unwrap_or_else(|| name_for(args.image.as_deref().unwrap_or_default())),
        image: args.image.clone(),
        cpus: args.cpus,
        topology: None,
        memory: args.memory,
        memory_backing: None,
        disk_size: args.disk_size,
        disk_bus: args.disk_bus,
        boot: (boot != BootWish::default()).then_some(boot),
        disks: args.volume.clone(),
        networks: networks.collect(),
    }
}

/// The last word of the repository and four random hexadecimal digits: `registry/library/debian:12` gives `debian-3fa9`.
fn name_for(image: &str) -> String {
    let repository = image.split('@').next().unwrap_or(image);
    let last = repository.rsplit('/').next().unwrap_or(repository);
    let word = last.split(':').next().unwrap_or(last).to_lowercase();
    let letters: String = word
        .chars()
        .filter(|c| c.is_ascii_lowercase() || c.is_ascii_digit())
        .take(40)
        .collect();
    let letters = if letters.is_empty() || letters == "sha256" {
        "vm"
    } else {
        &letters
    };
    let random = uuid::Uuid::new_v4().simple().to_string();
    format!("{letters}-{}", random.get(..4).unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_come_from_the_repository() {
        for (image, start) in [
            ("localhost:5000/karat/debian:12", "debian-"),
            ("Debian_Cloud", "debiancloud-"),
            ("registry/x/web@sha256:00", "web-"),
            ("sha256:0011", "vm-"),
            ("///", "vm-"),
        ] {
            let name = name_for(image);
            assert!(
                name.starts_with(start) && name.len() == start.len() + 4,
                "{image}: {name}"
            );
        }
    }
}
