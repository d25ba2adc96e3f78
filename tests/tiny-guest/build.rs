//! Links the payload at a fixed address, whatever folder cargo is called from.

fn main() {
    let folder = std::env::var("CARGO_MANIFEST_DIR").expect("cargo sets it");
    println!("cargo::rerun-if-changed=layout.ld");
    println!("cargo::rustc-link-arg=-T{folder}/layout.ld");
    println!("cargo::rustc-link-arg=--no-pie");
    println!("cargo::rustc-link-arg=--build-id=none");
}
