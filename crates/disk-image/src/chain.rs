//! Chains: the images a disk consists of, opened.

use std::fs::File;
use std::io;

use spec::DiskFormat;

/// An external data file.
#[derive(Debug)]
pub struct DataFile {
    /// What to call it in messages.
    pub name: String,
    /// It, open as its image is.
    pub file: File,
}

/// One image.
#[derive(Debug)]
pub struct Layer {
    /// What to call it in messages: its path, as a rule.
    pub name: String,
    /// How its bytes are to be read. Recorded somewhere, or found out by whoever made this.
    pub format: DiskFormat,
    /// The open image.
    pub file: File,
    /// Whether it is open for writing.
    pub writable: bool,
    /// Where it keeps the guest's data, if not in itself.
    pub data_file: Option<DataFile>,
}

/// The images one disk consists of, top first: each reads what it does not hold itself from the next. Never empty.
#[derive(Debug)]
pub struct Chain {
    top: Layer,
    below: Vec<Layer>,
}

impl Layer {
    /// The same image once more, for another chain. The lock is shared.
    pub(crate) fn again(&self) -> io::Result<Self> {
        let data_file = self.data_file.as_ref().map(|data| {
            let file = data.file.try_clone()?;
            Ok::<_, io::Error>(DataFile {
                name: data.name.clone(),
                file,
            })
        });
        Ok(Self {
            name: self.name.clone(),
            format: self.format,
            file: self.file.try_clone()?,
            writable: self.writable,
            data_file: data_file.transpose()?,
        })
    }
}

impl Chain {
    /// A chain of `top` and what is below it, nearest first. Whoever makes one by hand, from descriptors that were passed on, vouches
    /// for the layers belonging together.
    pub const fn new(top: Layer, below: Vec<Layer>) -> Self {
        Self { top, below }
    }

    /// The image on top.
    pub const fn top(&self) -> &Layer {
        &self.top
    }

    /// Those below it, nearest first.
    pub fn below(&self) -> &[Layer] {
        &self.below
    }

    /// The chain below the top, if there is one.
    pub(crate) fn tail(&self) -> io::Result<Option<Self>> {
        let mut below = self.below.iter().map(Layer::again);
        let Some(top) = below.next().transpose()? else {
            return Ok(None);
        };
        Ok(Some(Self::new(top, below.collect::<io::Result<_>>()?)))
    }

    /// All images, top first.
    pub fn layers(&self) -> impl DoubleEndedIterator<Item = &Layer> {
        std::iter::once(&self.top).chain(&self.below)
    }

    /// Takes the chain apart, top first.
    pub fn into_layers(self) -> Vec<Layer> {
        let mut layers = vec![self.top];
        layers.extend(self.below);
        layers
    }
}
