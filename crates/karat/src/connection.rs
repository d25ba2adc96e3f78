//! Which daemon is asked.

use std::path::PathBuf;

use anyhow::Context;
use client::{Client, Remote, TlsFiles};

/// Which daemon is asked: the one of this host, or another over TLS.
#[derive(Debug, clap::Args)]
pub(crate) struct Connection {
    /// Socket of karatd.
    #[arg(long, global = true, env = "KARAT_SOCKET", default_value = client::DEFAULT_SOCKET)]
    socket: PathBuf,
    /// A karatd on another host instead, as https://HOST:PORT; takes --ca, --cert and --key.
    #[arg(long, global = true, env = "KARAT_URL", value_name = "URL")]
    url: Option<String>,
    /// Authority that signed that daemon's certificate, PEM.
    #[arg(long, global = true, env = "KARAT_CA", value_name = "FILE")]
    ca: Option<PathBuf>,
    /// Certificate to show to it, PEM.
    #[arg(long, global = true, env = "KARAT_CERT", value_name = "FILE")]
    cert: Option<PathBuf>,
    /// The certificate's private key, PEM.
    #[arg(long, global = true, env = "KARAT_KEY", value_name = "FILE")]
    key: Option<PathBuf>,
}

impl Connection {
    /// For that daemon; nothing is sent yet.
    pub(crate) fn client(&self) -> anyhow::Result<Client> {
        let Some(url) = &self.url else {
            return Ok(Client::new(&self.socket));
        };
        let needed = |file: &Option<PathBuf>, name: &str| {
            let file = file.clone();
            file.with_context(|| format!("--url takes {name}, too: both sides show certificates"))
        };
        let files = TlsFiles {
            ca: needed(&self.ca, "--ca")?,
            certificate: needed(&self.cert, "--cert")?,
            key: needed(&self.key, "--key")?,
        };
        Ok(Client::remote(Remote::new(url, files)?))
    }
}
