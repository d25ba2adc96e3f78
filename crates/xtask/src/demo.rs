//! The demonstration: from Debian packages to a login prompt in a machine that karatd runs.

use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, ensure};

use crate::cache::own_dir;
use crate::guests::{self, PROGRAMS};
use crate::lab::{HostConfig, Lab, Payload, images};
use crate::registry::Registry;
use crate::tools::{as_root, asset, root, run, say};
use crate::{golden, packages, probe};

/// How long the demonstration may take once everything is built.
const LIMIT: Duration = Duration::from_secs(420);
/// What the golden image is called in the registry.
const IMAGE: &str = "karat/debian:12";

/// Builds everything and shows it; `programs` is a directory with the product's programs, where they are built already.
pub fn show(programs: Option<&Path>) -> Result<()> {
    let begun = Instant::now();
    packages::install(&[packages::COMPILER, packages::IMAGES, packages::LAB, packages::REGISTRY])?;
    // Images are made of packages by mostly one core and the network; the programs are compiled meanwhile.
    let (built, container) = std::thread::scope(|scope| {
        let images = scope.spawn(|| golden::debian_container().and_then(|layout| images::host(false).map(|_| layout)));
        let built = programs.map_or_else(|| guests::build(None), |dir| Ok(dir.to_path_buf()));
        (
            built,
            images
                .join()
                .unwrap_or_else(|_| Err(anyhow!("building the images panicked"))),
        )
    });
    let (built, container) = (built?, container?);
    let registry = Registry::start()?;
    let digest = registry.push(&container, IMAGE)?;
    say(format!("the golden image is {IMAGE}@{digest}"));
    say(format!(
        "everything is built after {:.0} s; the demonstration begins",
        begun.elapsed().as_secs_f32()
    ));
    if probe::boots_stock_kernels()? {
        directly(&built, &registry)?;
    } else {
        in_lab(&built, &registry)?;
    }
    say(format!(
        "the demonstration took {:.0} s in all",
        begun.elapsed().as_secs_f32()
    ));
    Ok(())
}

fn in_lab(built: &Path, registry: &Registry) -> Result<()> {
    let mut payload = Payload::new(&own_dir("payload", "demo")?)?;
    for name in PROGRAMS {
        payload.add(&built.join(name), &format!("bin/{name}"))?;
    }
    payload.add_tree(&root().join("packaging"), "packaging")?;
    payload.add(&asset("demo.sh"), "demo.sh")?;
    let outer = format!("10.0.2.2:{}", registry.port());
    payload.script(&format!(
        "#!/bin/bash\nexec bash /payload/demo.sh service /payload/bin /payload/packaging {outer} /var/tmp/demo\n"
    ))?;
    let lab = Lab::boot("demo", false, &[(HostConfig::default(), &payload)])?;
    let outcomes = lab.finish(LIMIT)?;
    ensure!(
        outcomes.iter().all(|outcome| outcome.status == 0),
        "the demonstration failed, see above"
    );
    Ok(())
}

fn directly(built: &Path, registry: &Registry) -> Result<()> {
    let here = format!("127.0.0.1:{}", registry.port());
    let work = std::env::temp_dir().join(format!("karat-demo-{}", std::process::id()));
    let mut demo = as_root("timeout");
    demo.arg(LIMIT.as_secs().to_string())
        .arg("bash")
        .arg(asset("demo.sh"))
        .arg("transient");
    run(demo.arg(built).arg(root().join("packaging")).arg(here).arg(work))
        .context("the demonstration failed, see above")
}
