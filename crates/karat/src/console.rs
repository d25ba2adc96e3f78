//! A machine's serial console in this terminal.
//!
//! The terminal is put in raw mode while attached, so that every key reaches the guest; only Ctrl-] is kept, to detach. The
//! machine goes on after that.

use std::io::{IsTerminal, Write};
use std::process::ExitCode;

use client::{Client, Console, ConsoleEnd};
use rustix::termios::{OptionalActions, Termios, tcgetattr, tcsetattr};
use tokio::io::AsyncReadExt;

use crate::output::say;

/// Ctrl-], as `telnet` and `virsh console` have it.
const DETACH: u8 = 0x1d;

/// Why the console was left.
enum Left {
    Detached,
    Ended(ConsoleEnd),
}

/// Shows the console until the person detaches or the machine ends. Success unless the connection breaks.
pub(crate) async fn attach(client: &Client, vm: &str) -> anyhow::Result<ExitCode> {
    let console = client.console(vm).await?;
    let raw = RawTerminal::enter();
    let left = relay(console).await;
    drop(raw);
    match left? {
        Left::Detached => say(&format!("\ndetached; `karat console {vm}` attaches again")),
        Left::Ended(end) if end.reason.is_empty() => say("\nthe console was closed"),
        Left::Ended(end) => say(&format!("\nthe console was closed: {}", end.reason)),
    }
    Ok(ExitCode::SUCCESS)
}

async fn relay(console: Console) -> anyhow::Result<Left> {
    let Console { mut input, mut output } = console;
    let mut keyboard = tokio::io::stdin();
    let mut keys = [0; 1024];
    let mut typing = true;
    loop {
        tokio::select! {
            printed = output.next() => match printed? {
                Ok(bytes) => show(&bytes)?,
                Err(end) => return Ok(Left::Ended(end)),
            },
            read = keyboard.read(&mut keys), if typing => {
                // End of input leaves the screen on: `echo poweroff | karat console web` shows what follows.
                let count = read.unwrap_or(0);
                typing = count > 0;
                let typed = keys.get(..count).unwrap_or_default();
                let kept = typed.split(|key| *key == DETACH).next().unwrap_or_default();
                if !kept.is_empty() {
                    input.send(kept).await?;
                }
                if typed.contains(&DETACH) {
                    input.close().await?;
                    return Ok(Left::Detached);
                }
            }
        }
    }
}

fn show(bytes: &[u8]) -> std::io::Result<()> {
    let mut stdout = std::io::stdout();
    stdout.write_all(bytes)?;
    stdout.flush()
}

/// Raw mode for as long as this lives; nothing where stdin is no terminal.
struct RawTerminal(Option<Termios>);

impl RawTerminal {
    fn enter() -> Self {
        let stdin = std::io::stdin();
        if !stdin.is_terminal() {
            return Self(None);
        }
        let Ok(before) = tcgetattr(&stdin) else {
            return Self(None);
        };
        let mut raw = before.clone();
        raw.make_raw();
        match tcsetattr(&stdin, OptionalActions::Now, &raw) {
            Ok(()) => Self(Some(before)),
            Err(_) => Self(None),
        }
    }
}

impl Drop for RawTerminal {
    fn drop(&mut self) {
        if let Some(before) = &self.0 {
            // Nothing better can be done for a terminal that went away.
            _ = tcsetattr(std::io::stdin(), OptionalActions::Now, before);
        }
    }
}
