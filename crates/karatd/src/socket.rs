//! The API's socket: inherited from systemd, or made.

use std::fs::Permissions;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use anyhow::{Context, bail};
use listenfd::ListenFd;
use tokio::net::{UnixListener, UnixStream};

use crate::config::Config;
use crate::peers;

/// The owner and the group may connect.
const MODE: u32 = 0o660;
/// The directory it is in, where that has to be made.
const PARENT_MODE: u32 = 0o755;

/// The listening socket.
pub(crate) async fn listen(config: &Config) -> anyhow::Result<UnixListener> {
    let inherited = ListenFd::from_env().take_unix_listener(0);
    if let Some(listener) = inherited.context("what was inherited is no UNIX socket; see karatd.socket")? {
        listener.set_nonblocking(true)?;
        return Ok(UnixListener::from_std(listener)?);
    }
    let path = config.socket.as_path();
    if let Some(parent) = path.parent().filter(|parent| !parent.exists()) {
        std::fs::create_dir_all(parent)
            // The group has to get through, whatever the umask.
            .and_then(|()| std::fs::set_permissions(parent, Permissions::from_mode(PARENT_MODE)))
            .with_context(|| format!("{} can not be made", parent.display()))?;
    }
    clear(path).await?;
    // Until its mode is widened, only the owner may connect: the usual umask takes the right to write from all others.
    let listener = UnixListener::bind(path).with_context(|| format!("{} can not be made", path.display()))?;
    let failed = || format!("access to {} can not be set", path.display());
    if let Some(group) = peers::group_id(&config.socket_group)
        && rustix::process::geteuid().is_root()
    {
        std::os::unix::fs::chown(path, None, Some(group)).with_context(failed)?;
    }
    std::fs::set_permissions(path, Permissions::from_mode(MODE)).with_context(failed)?;
    Ok(listener)
}

/// Removes the socket an earlier daemon left; one that is answered is left alone.
async fn clear(path: &Path) -> anyhow::Result<()> {
    match UnixStream::connect(path).await {
        Ok(_) => bail!("another karatd answers on {}; stop it first", path.display()),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(()),
        Err(error) if error.kind() == std::io::ErrorKind::ConnectionRefused => {
            std::fs::remove_file(path).with_context(|| format!("{} can not be removed", path.display()))
        }
        Err(error) => Err(error).with_context(|| format!("{} can not be used as the socket", path.display())),
    }
}
