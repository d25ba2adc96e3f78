//! Puts Karat's qcow2 engine to the proof.

fn main() -> anyhow::Result<()> {
    disk_matrix::cli::run(&[&disk_matrix::Karat])
}
