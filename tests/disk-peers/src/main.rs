//! Puts other qcow2 implementations to the same proof as Karat's: `--engine imago` or `--engine qcow2-rs`.

mod call;
mod imago_engine;
mod qcow2_rs_engine;

fn main() -> anyhow::Result<()> {
    disk_matrix::cli::run(&[&imago_engine::Imago, &qcow2_rs_engine::Qcow2Rs])
}
