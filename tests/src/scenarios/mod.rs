//! The scenarios, one file per subject.

mod bad_input;
mod boot;
mod crash;
mod disk;
mod images;
mod live;
mod load;
mod network;
mod pause;
mod power;
mod storage;
mod unit;

use std::pin::Pin;

use crate::daemon::Daemon;
use crate::environment::Environment;

type Running<'a> = Pin<Box<dyn Future<Output = anyhow::Result<()>> + 'a>>;

/// Something that must hold, shown by doing it.
pub struct Scenario {
    /// Unique, for `--only`.
    pub name: &'static str,
    /// Runs it against a daemon of its own.
    run: for<'a> fn(&'a mut Daemon) -> Running<'a>,
}

impl Scenario {
    /// Runs the scenario in a fresh daemon and ends the daemon afterwards, whatever came out.
    pub async fn run(&self, environment: &Environment) -> anyhow::Result<()> {
        let mut daemon = Daemon::start(environment).await?;
        match (self.run)(&mut daemon).await {
            Ok(()) => daemon.end().await,
            Err(error) => Err(error.context(daemon.account().await)),
        }
    }
}

macro_rules! scenarios {
    ($($module:ident :: $function:ident),* $(,)?) => {
        /// All of them, the quick ones first.
        pub const ALL: &[Scenario] = &[
            $(Scenario { name: concat!(stringify!($module), "/", stringify!($function)), run: |daemon| Box::pin($module::$function(daemon)) },)*
        ];
    };
}

scenarios! {
    bad_input::kernel_that_is_no_kernel,
    bad_input::refusals_leave_nothing_behind,
    bad_input::two_starts_at_once,
    boot::bzimage_with_one_vcpu,
    boot::vmlinux_with_four_vcpus_and_6_gib,
    power::button_reset_and_power_off,
    power::five_resets,
    pause::holds_still_and_goes_on,
    network::ping_both_ways,
    crash::machine_process_killed,
    crash::daemon_killed_under_two_guests,
    storage::chain_on_virtio,
    storage::chain_on_scsi,
    storage::volumes_grow_under_a_guest,
    images::boot_source_follows_a_tag,
    live::disks_change_under_fio,
    unit::a_root_disk_changes_under_the_shipped_service,
    storage::power_cut_under_fio,
    disk::one_gib_survives_a_reboot,
}
