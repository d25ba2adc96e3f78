//! A wire that breaks: forwards connections to a real server, and ends the first ones early.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

/// The wire; it ends when this is dropped.
pub(crate) struct Cutter {
    pub(crate) port: u16,
    connections: Arc<AtomicU64>,
    task: tokio::task::JoinHandle<()>,
}

impl Drop for Cutter {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Cutter {
    /// Forwards to `target` of this host. Connection n ends after `cuts[n]` bytes towards the client; those after the last never.
    pub(crate) async fn start(target: u16, cuts: Vec<u64>) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let connections = Arc::new(AtomicU64::new(0));
        let counter = Arc::clone(&connections);
        let task = tokio::spawn(async move {
            let mut wires = tokio::task::JoinSet::new();
            let mut cuts = cuts.into_iter();
            while let Ok((client, _)) = listener.accept().await {
                counter.fetch_add(1, Ordering::SeqCst);
                let cut = cuts.next();
                wires.spawn(async move {
                    let server = TcpStream::connect(("127.0.0.1", target)).await?;
                    forward(client, server, cut).await
                });
            }
        });
        Self {
            port,
            connections,
            task,
        }
    }

    pub(crate) fn connections(&self) -> u64 {
        self.connections.load(Ordering::SeqCst)
    }
}

async fn forward(mut client: TcpStream, mut server: TcpStream, cut: Option<u64>) -> std::io::Result<()> {
    let (mut from_client, mut to_client) = client.split();
    let (mut from_server, mut to_server) = server.split();
    let back = async {
        let mut left = cut.unwrap_or(u64::MAX);
        let mut buffer = vec![0; 16 << 10];
        while left > 0 {
            let wanted = buffer.len().min(usize::try_from(left).unwrap_or(usize::MAX));
            let count = from_server.read(&mut buffer[..wanted]).await?;
            if count == 0 {
                break;
            }
            to_client.write_all(&buffer[..count]).await?;
            left -= count as u64;
        }
        to_client.shutdown().await
    };
    tokio::select! {
        result = back => result,
        result = tokio::io::copy(&mut from_client, &mut to_server) => result.map(|_| ()),
    }
}
