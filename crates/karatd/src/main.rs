//! `karatd`: the daemon. Reads its configuration, opens the host, serves the API on a UNIX socket, and ends when told.
//!
//! Machines are processes of their own: they go on when this program ends, however it ends, and are found again by the next.

mod config;
mod image_section;
mod migration_section;
mod notify;
mod peers;
mod reader;
mod socket;

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use anyhow::Context;
use clap::Parser;
use host::Host;
use rest::Closing;
use tokio::signal::unix::{SignalKind, signal};

use config::Config;
use migration_section::TlsConfig;

/// Where the configuration is read from unless told otherwise; it may be missing there.
const DEFAULT_CONFIG: &str = "/etc/karat/karat.toml";
/// Exit status for wrong usage or configuration.
const EXIT_USAGE: u8 = 2;
/// Most threads for work that blocks: files and the registry.
const BLOCKING_THREADS: usize = 32;
/// How long an idle thread for blocking work is kept.
const BLOCKING_KEPT: Duration = Duration::from_secs(5);

/// Turns golden images into running KVM machines.
#[derive(Debug, Parser)]
#[command(version, about)]
struct Arguments {
    /// Configuration file. Default: /etc/karat/karat.toml, where it may be missing.
    #[arg(long, value_name = "PATH")]
    config: Option<PathBuf>,
    /// Say everything that is wrong with the configuration, and end.
    #[arg(long)]
    check_config: bool,
    /// Print the API's description, and end.
    #[arg(long)]
    print_openapi: bool,
}

#[expect(
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "answers and errors of a command line"
)]
fn main() -> ExitCode {
    let arguments = Arguments::parse();
    if arguments.print_openapi {
        print!("{}", rest::openapi_json());
        return ExitCode::SUCCESS;
    }
    let (path, must_exist) = match &arguments.config {
        Some(path) => (path.as_path(), true),
        None => (Path::new(DEFAULT_CONFIG), false),
    };
    let config = match Config::read(path, must_exist) {
        Ok(config) => config,
        Err(problems) => {
            for problem in &problems {
                eprintln!("karatd: {}: {problem}", path.display());
            }
            return ExitCode::from(EXIT_USAGE);
        }
    };
    if arguments.check_config {
        println!("{}: ok", path.display());
        return ExitCode::SUCCESS;
    }
    if let Err(error) = telemetry::init("karatd") {
        eprintln!("karatd: {error}");
        return ExitCode::from(EXIT_USAGE);
    }
    match run(config) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            tracing::error!("{error:#}");
            notify::status(&format!("failed: {error:#}"));
            ExitCode::FAILURE
        }
    }
}

fn run(config: Config) -> anyhow::Result<()> {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(config.worker_threads)
        .max_blocking_threads(BLOCKING_THREADS)
        .thread_keep_alive(BLOCKING_KEPT)
        .enable_all()
        .build()
        .context("threads can not be started")?;
    let result = runtime.block_on(serve(config));
    // Work on files that does not look up is left behind; whatever it was, the next start clears it away.
    runtime.shutdown_timeout(BLOCKING_KEPT);
    result
}

async fn serve(config: Config) -> anyhow::Result<()> {
    // Before anything is begun, so that no signal is lost.
    let mut terminate = signal(SignalKind::terminate()).context("SIGTERM can not be watched")?;
    let mut interrupt = signal(SignalKind::interrupt()).context("SIGINT can not be watched")?;
    let grace = config.shutdown_grace;
    let host = Host::open(config.host.clone())
        .await
        .context("the host can not be opened")?;
    let listener = socket::listen(&config).await?;
    let group = peers::group_id(&config.socket_group);
    if group.is_none() {
        tracing::warn!(
            group = config.socket_group,
            "no such group: only root and this user may use the API"
        );
    }
    let closing = Closing::new();
    let router = rest::router(host.clone(), closing.clone());
    let remote = serve_remote(config.tls.clone(), router.clone(), closing.clone()).await?;
    let local = rest::serve(listener, router, closing.clone(), move |peer| peers::may(peer, group));
    let serving = tokio::spawn(async { tokio::join!(local, remote) });
    notify::ready(&format!("serving on {}", config.socket.display()));
    tracing::info!(socket = %config.socket.display(), version = env!("CARGO_PKG_VERSION"), "ready");
    let watchdog = tokio::spawn(notify::watchdog(host.clone()));
    tokio::select! {
        _ = terminate.recv() => {}
        _ = interrupt.recv() => {}
    }
    tracing::info!("ending; machines go on");
    notify::stopping();
    closing.begin();
    host.close();
    if tokio::time::timeout(grace, serving).await.is_err() {
        tracing::warn!(
            seconds = grace.as_secs(),
            "requests were still under way and are cut off"
        );
    }
    watchdog.abort();
    Ok(())
}

/// Serves the API for other hosts, if that is configured.
async fn serve_remote(
    tls: Option<TlsConfig>,
    router: rest::Router,
    closing: Closing,
) -> anyhow::Result<impl Future<Output = ()>> {
    let prepared = match tls {
        None => None,
        Some(tls) => {
            let listener = tokio::net::TcpListener::bind(tls.listen).await;
            let listener = listener.with_context(|| format!("{} can not be listened on (tls.listen)", tls.listen))?;
            let loaded = tls
                .settings
                .load()
                .context("the API can not be served over TLS ([tls])")?;
            tracing::info!(address = %tls.listen, "serving other hosts");
            Some((listener, loaded))
        }
    };
    Ok(async move {
        if let Some((listener, tls)) = prepared {
            rest::serve_tls(listener, tls, router, closing).await;
        }
    })
}
