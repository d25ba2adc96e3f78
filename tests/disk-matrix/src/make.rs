//! Images made by QEMU's programs, and what they hold before the engine touches them.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};

use crate::header;
use crate::kind::{Backing, Extra, Fill, Kind};
use crate::random::Random;
use crate::stack::{Format, Layer, Stack};
use crate::tools::{self, qemu_img, qemu_io, text};

/// Type of the header extension that nobody knows.
pub const UNKNOWN_EXTENSION: u32 = 0x4b41_7261;

/// What is in it, when it has `len` bytes.
pub fn unknown_data(len: u32) -> Vec<u8> {
    (1..=u8::MAX).cycle().step_by(7).take(len as usize).collect()
}

/// Files with bytes to write, so that different places hold different bytes.
const NOISES: u64 = 6;

/// An image, and what it has to keep.
pub struct Made {
    /// Its files.
    pub stack: Stack,
    /// Its contents.
    pub contents: Vec<u8>,
    /// Its snapshots by name, and their contents.
    pub snapshots: Vec<(String, Vec<u8>)>,
}

/// Makes an image of this kind in `dir`, which is empty.
pub fn make(kind: &Kind, seed: u64, dir: &Path) -> Result<Made> {
    let mut maker = Maker {
        kind,
        random: Random::new(seed),
        dir,
    };
    maker.noise()?;
    let mut layers = match &kind.backing {
        Some(backing) => maker.below(backing)?,
        None => Vec::new(),
    };
    let top = dir.join("top.qcow2");
    let data_file = maker.create(&top, layers.first())?;
    maker.history(&top)?;
    let mut snapshots = Vec::new();
    for number in 0..kind.snapshots() {
        let name = format!("snap{number}");
        qemu_img(&["snapshot", "-c", &name, text(&top)?])?;
        if kind.has(Extra::Grown) {
            qemu_img(&["resize", "-q", "-f", "qcow2", text(&top)?, "+1M"])?;
        }
        maker.scatter(&top, 12)?;
        let raw = dir.join("snapshot.raw");
        tools::snapshot_to_raw(&top, &name, &raw)?;
        snapshots.push((name, fs::read(&raw)?));
    }
    maker.patch(&top)?;
    let contents = if kind.refused().is_some() {
        Vec::new()
    } else {
        let raw = dir.join("model.raw");
        tools::to_raw(&top, &raw)?;
        fs::read(&raw)?
    };
    layers.insert(
        0,
        Layer {
            path: top,
            format: Format::Qcow2,
        },
    );
    Ok(Made {
        stack: Stack { layers, data_file },
        contents,
        snapshots,
    })
}

struct Maker<'a> {
    kind: &'a Kind,
    random: Random,
    dir: &'a Path,
}

impl Maker<'_> {
    fn noise(&mut self) -> Result<()> {
        for number in 0..NOISES {
            // Half of each compresses well, and no length divides another.
            let mut bytes = self.random.bytes(3000 + 517 * usize::try_from(number)?);
            bytes.extend(std::iter::repeat_n(u8::try_from(number)? + 1, 5000));
            fs::write(self.dir.join(format!("noise{number}")), bytes)?;
        }
        Ok(())
    }

    fn some_noise(&mut self) -> String {
        let number = self.random.below(NOISES);
        self.dir.join(format!("noise{number}")).display().to_string()
    }

    /// The backing files, the one right below the image first.
    fn below(&mut self, backing: &Backing) -> Result<Vec<Layer>> {
        let mut layers: Vec<Layer> = Vec::new();
        for level in (1..=backing.depth).rev() {
            let folder = self.dir.join(format!("below{level}"));
            fs::create_dir(&folder)?;
            let path = folder.join("disk");
            match backing.format {
                Format::Raw => {
                    let len = usize::try_from(backing.size)?;
                    let mut bytes = self.random.bytes(len);
                    // Holes, so that a raw file has both.
                    for hole in bytes.chunks_mut(200_000).skip(1).step_by(3) {
                        hole.fill(0);
                    }
                    fs::write(&path, bytes)?;
                }
                Format::Qcow2 => self.qcow2_below(&path, backing, layers.first())?,
            }
            let format = backing.format;
            layers.insert(0, Layer { path, format });
        }
        Ok(layers)
    }

    fn qcow2_below(&mut self, path: &Path, backing: &Backing, under: Option<&Layer>) -> Result<()> {
        let mut options = format!("cluster_size={}", backing.cluster);
        if backing.extended {
            options.push_str(",extended_l2=on");
        }
        let size = backing.size.to_string();
        let name = under.map(|layer| self.name_for(layer)).transpose()?;
        let mut args = vec!["create", "-q", "-f", "qcow2", "-o", &options];
        if let (Some(layer), Some(name)) = (under, &name) {
            args.extend(["-b", name, "-F", layer.format.name()]);
        }
        args.extend([text(path)?, &size]);
        qemu_img(&args)?;
        let plan = Plan {
            size: backing.size,
            cluster: backing.cluster,
        };
        let commands = if backing.compressed {
            self.compress(&plan, 1)
        } else {
            self.writes(&plan, 16)
        };
        qemu_io(path, &commands)
    }

    /// What to write into an image as the name of a file below it. All live one folder apart, at most.
    fn name_for(&self, layer: &Layer) -> Result<String> {
        let relative = self.kind.backing.is_some_and(|backing| backing.relative);
        let path = text(&layer.path)?.to_owned();
        if !relative {
            return Ok(path);
        }
        let folder = layer.path.parent().and_then(Path::file_name).context("no folder")?;
        let from_top = folder == "below1";
        let folder = folder.to_string_lossy();
        Ok(if from_top {
            format!("{folder}/disk")
        } else {
            format!("../{folder}/disk")
        })
    }

    /// Creates the image; its data file.
    fn create(&self, top: &Path, under: Option<&Layer>) -> Result<Option<PathBuf>> {
        let mut options = self.kind.options.clone();
        let mut data_file = None;
        let mut secret = false;
        for extra in &self.kind.extras {
            match extra {
                Extra::DataFile | Extra::DataFileRaw => {
                    let path = self.dir.join("data");
                    options.push(format!("data_file={}", path.display()));
                    if *extra == Extra::DataFileRaw {
                        options.push("data_file_raw=on".to_owned());
                    }
                    data_file = Some(path);
                }
                Extra::Encrypted(format) => {
                    secret = true;
                    options.push(format!("encrypt.format={format},encrypt.key-secret=key"));
                    if *format == "luks" {
                        options.push("encrypt.iter-time=10".to_owned());
                    }
                }
                _ => {}
            }
        }
        let options = options.join(",");
        let size = self.kind.size.to_string();
        let name = under.map(|layer| self.name_for(layer)).transpose()?;
        let mut args = vec!["create", "-q", "-f", "qcow2", "-o", &options];
        if secret {
            args.extend(["--object", "secret,id=key,data=karat"]);
        }
        if let (Some(layer), Some(name)) = (under, &name) {
            args.extend(["-b", name, "-F", layer.format.name()]);
        }
        args.extend([text(top)?, &size]);
        qemu_img(&args)?;
        if self.kind.has(Extra::Bitmap(true)) || self.kind.has(Extra::Bitmap(false)) {
            let how = if self.kind.has(Extra::Bitmap(true)) {
                "--enable"
            } else {
                "--disable"
            };
            qemu_img(&[
                "bitmap",
                "--add",
                how,
                "-g",
                "65536",
                "-f",
                "qcow2",
                text(top)?,
                "marks",
            ])?;
        }
        Ok(data_file)
    }

    fn history(&mut self, top: &Path) -> Result<()> {
        let plan = Plan {
            size: self.kind.size,
            cluster: self.kind.cluster,
        };
        let commands = match self.kind.fill {
            Fill::Empty => return Ok(()),
            Fill::Scattered => self.writes(&plan, 28),
            Fill::Compressed => self.compress(&plan, 1),
            Fill::Mixed => {
                let mut commands = self.compress(&plan, 2);
                commands.extend(self.writes(&plan, 8));
                commands
            }
            Fill::Zeroes => self.zeroes(&plan),
        };
        qemu_io(top, &commands)
    }

    fn scatter(&mut self, top: &Path, count: u64) -> Result<()> {
        let plan = Plan {
            size: self.kind.size,
            cluster: self.kind.cluster,
        };
        let commands = self.writes(&plan, count);
        qemu_io(top, &commands)
    }

    fn writes(&mut self, plan: &Plan, count: u64) -> Vec<String> {
        (0..count)
            .map(|number| {
                let (offset, len) = plan.range(&mut self.random);
                match number % 8 {
                    5 => format!("write -z {offset} {len}"),
                    6 => format!("write -zu {offset} {len}"),
                    7 => format!("discard {offset} {len}"),
                    _ => format!("write -s {} {offset} {len}", self.some_noise()),
                }
            })
            .collect()
    }

    /// Compresses every `step`th stretch of clusters.
    fn compress(&mut self, plan: &Plan, step: usize) -> Vec<String> {
        let stretch = plan.cluster.max(plan.size / 40 / plan.cluster * plan.cluster);
        let whole = plan.size / plan.cluster * plan.cluster;
        (0..whole)
            .step_by(usize::try_from(stretch).unwrap_or(usize::MAX))
            .step_by(step)
            .map(|offset| {
                let len = stretch.min(whole - offset);
                format!("write -c -s {} {offset} {len}", self.some_noise())
            })
            .collect()
    }

    fn zeroes(&mut self, plan: &Plan) -> Vec<String> {
        let mut commands = self.writes(plan, 10);
        for number in 0..16 {
            let (offset, len) = plan.range(&mut self.random);
            let (offset, len) = (
                offset / plan.cluster * plan.cluster,
                len.next_multiple_of(plan.cluster).min(plan.size),
            );
            let len = len.min(plan.size - offset);
            let how = if number % 2 == 0 { "-z" } else { "-zu" };
            commands.push(format!("write {how} {offset} {len}"));
        }
        commands.extend(self.writes(plan, 6));
        commands
    }

    /// What QEMU's programs can not do.
    fn patch(&self, top: &Path) -> Result<()> {
        for extra in &self.kind.extras {
            match extra {
                Extra::UnknownExtension(len) => {
                    header::add_extension(top, UNKNOWN_EXTENSION, &unknown_data(*len))?;
                }
                Extra::UnknownCompatible => header::set_feature(top, header::Features::Compatible, 62)?,
                Extra::UnknownAutoclear => header::set_feature(top, header::Features::Autoclear, 62)?,
                Extra::UnknownIncompatible => header::set_feature(top, header::Features::Incompatible, 62)?,
                _ => {}
            }
        }
        if self.kind.refused().is_none() {
            let checked = tools::check(top)?;
            ensure!(checked.corruptions == 0, "the image was made corrupt");
        }
        Ok(())
    }
}

/// Where requests go.
struct Plan {
    size: u64,
    cluster: u64,
}

impl Plan {
    /// Sectors, of lengths from one sector to some clusters.
    fn range(&self, random: &mut Random) -> (u64, u64) {
        let longest = (self.cluster * 5 / 2).clamp(4096, 1 << 20);
        let len = (random.below(longest) + 1).next_multiple_of(512).min(self.size);
        let offset = random.below((self.size - len) / 512 + 1) * 512;
        (offset, len)
    }
}
