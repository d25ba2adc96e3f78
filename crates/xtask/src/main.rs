//! The project's own commands.

fn main() -> anyhow::Result<()> {
    anyhow::bail!("no command is built yet")
}
