//! What a range consists of: the image's map over its backing's.

use disk::{Extent, ExtentKind};

use super::fault::Fault;
use super::map::What;
use super::state::Engine;

/// Runs looked at for one answer; the caller comes again for the rest.
const RUNS_MAX: usize = 1024;

impl Engine {
    /// The extents of a checked guest range, or of its start.
    pub(crate) async fn extents(&self, guest: u64, len: u64) -> Result<Vec<Extent>, Fault> {
        let end = guest + len;
        let mut at = guest;
        let mut extents: Vec<Extent> = Vec::new();
        for _ in 0..RUNS_MAX {
            if at >= end {
                break;
            }
            let run = self.map(at, end - at).await?;
            let run_end = at + run.len;
            match run.what {
                What::Data { .. } | What::Compressed(_) => push(&mut extents, at, run_end, ExtentKind::Data),
                What::Zero => push(&mut extents, at, run_end, ExtentKind::Zero),
                What::Unmapped => {
                    let below = self.image.in_backing(at, run.len);
                    match &self.backing {
                        Some(backing) if below > 0 => {
                            for extent in backing.extents(at, below).await? {
                                push(&mut extents, extent.offset, extent.offset + extent.len, extent.kind);
                            }
                            // The backing may have told less than was asked.
                            let told = extents.last().map_or(run_end, |last| last.offset + last.len);
                            if told < at + below {
                                at = told;
                                continue;
                            }
                            push(&mut extents, at + below, run_end, ExtentKind::Zero);
                        }
                        _ => push(&mut extents, at, run_end, ExtentKind::Zero),
                    }
                }
            }
            at = run_end;
        }
        Ok(extents)
    }
}

/// Adds a piece, as part of the last where it is of its kind.
fn push(extents: &mut Vec<Extent>, from: u64, to: u64, kind: ExtentKind) {
    if from >= to {
        return;
    }
    match extents.last_mut() {
        Some(last) if last.kind == kind => last.len = to - last.offset,
        _ => extents.push(Extent {
            offset: from,
            len: to - from,
            kind,
        }),
    }
}
