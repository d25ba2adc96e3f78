//! A stock guest, spoken to over its serial console.

use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use anyhow::{Context, bail, ensure};
use client::{Client, Console};

/// How long a stock guest has from power-on to its shell. In the lab it is a guest of an emulated host.
const BOOT_LIMIT: Duration = Duration::from_secs(90);
/// How long a command has unless the scenario says otherwise.
const COMMAND_LIMIT: Duration = Duration::from_secs(60);
/// What the guest's init prints before it becomes a shell.
const SHELL_WORD: &str = "karat: shell";

/// An attached console with a shell behind it.
pub struct Guest {
    console: Console,
    name: String,
    /// Everything printed since the attachment.
    seen: String,
    /// How much of it was consumed by expectations.
    read: usize,
}

/// Numbers of commands. Never used twice in a run: the scrollback repeats what earlier attachments saw.
static COMMANDS: AtomicU32 = AtomicU32::new(1);

impl Guest {
    /// Attaches and waits for the shell of a guest that boots.
    pub async fn attach(client: &Client, name: &str) -> anyhow::Result<Self> {
        let mut guest = Self::watch(client, name).await?;
        guest.expect(SHELL_WORD, BOOT_LIMIT).await?;
        guest.prepare().await?;
        Ok(guest)
    }

    /// Attaches to a guest whose shell was prepared before: the scrollback ends with an idle shell.
    pub async fn reattach(client: &Client, name: &str) -> anyhow::Result<Self> {
        let mut guest = Self::watch(client, name).await?;
        guest.prepare().await?;
        Ok(guest)
    }

    /// Attaches without expecting anything.
    pub async fn watch(client: &Client, name: &str) -> anyhow::Result<Self> {
        let console = client
            .console(name)
            .await
            .with_context(|| format!("no console of {name}"))?;
        Ok(Self {
            console,
            name: name.to_owned(),
            seen: String::new(),
            read: 0,
        })
    }

    /// Makes the shell quiet: no echo, no prompt, no kernel messages between the lines.
    async fn prepare(&mut self) -> anyhow::Result<()> {
        self.type_line(
            "export PATH=/bin; alias bb=/bin/busybox; /bin/busybox stty -echo; PS1=; PS2=; /bin/busybox dmesg -n 1",
        )
        .await?;
        self.run("true").await.map(drop)
    }

    /// Waits until `text` is printed, and returns what was printed before it since the last expectation.
    pub async fn expect(&mut self, text: &str, limit: Duration) -> anyhow::Result<String> {
        let deadline = tokio::time::Instant::now() + limit;
        loop {
            let fresh = self.seen.get(self.read..).unwrap_or_default();
            if let Some(at) = fresh.find(text) {
                let before = fresh.get(..at).unwrap_or_default().to_owned();
                self.read += at + text.len();
                return Ok(before);
            }
            match tokio::time::timeout_at(deadline, self.console.output.next()).await {
                Ok(Ok(Ok(bytes))) => self.seen.push_str(&String::from_utf8_lossy(&bytes)),
                Ok(Ok(Err(end))) => bail!(
                    "{}: console ended ({}) before {text:?}:\n{}",
                    self.name,
                    end.reason,
                    self.tail()
                ),
                Ok(Err(error)) => {
                    return Err(error).with_context(|| format!("{}: console broke before {text:?}", self.name));
                }
                Err(_) => bail!(
                    "{}: no {text:?} within {} s; the console ends with:\n{}",
                    self.name,
                    limit.as_secs(),
                    self.tail()
                ),
            }
        }
    }

    /// Types a line.
    pub async fn type_line(&mut self, line: &str) -> anyhow::Result<()> {
        self.console
            .input
            .send(format!("{line}\n").as_bytes())
            .await
            .with_context(|| format!("{}: can not type", self.name))
    }

    /// Runs a command, which must succeed; returns what it printed.
    pub async fn run(&mut self, command: &str) -> anyhow::Result<String> {
        self.run_within(command, COMMAND_LIMIT).await
    }

    /// Runs a command that may take longer.
    pub async fn run_within(&mut self, command: &str, limit: Duration) -> anyhow::Result<String> {
        let number = COMMANDS.fetch_add(1, Ordering::Relaxed);
        // The numbers are put together by the shell, so that an echo of the line itself is not taken for its output.
        let (begin, end) = (format!("@begin-{number}@"), format!("@end-{number}-"));
        self.type_line(&format!(
            "echo @begin-$(({number}))@; {command}; echo @end-$(({number}))-$?@"
        ))
        .await?;
        self.expect(&begin, limit).await?;
        let printed = self.expect(&end, limit).await?;
        let status = self.expect("@", limit).await?;
        ensure!(
            status == "0",
            "{}: `{command}` ended with status {status}:\n{printed}",
            self.name
        );
        Ok(printed.replace('\r', "").trim().to_owned())
    }

    /// Starts something that ends the shell, as `reboot`.
    pub async fn leave(&mut self, command: &str) -> anyhow::Result<()> {
        self.type_line(command).await
    }

    /// Waits for the shell again after the guest was reset.
    pub async fn rebooted(&mut self) -> anyhow::Result<()> {
        self.expect(SHELL_WORD, BOOT_LIMIT).await?;
        self.prepare().await
    }

    /// Everything printed since the attachment.
    pub fn transcript(&self) -> &str {
        &self.seen
    }

    fn tail(&self) -> String {
        let lines: Vec<_> = self.seen.lines().rev().take(40).collect();
        lines.into_iter().rev().collect::<Vec<_>>().join("\n")
    }
}
