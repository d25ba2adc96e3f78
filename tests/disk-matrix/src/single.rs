//! One image from its making to its last check: what a child process of the matrix does.

use std::fs;
use std::path::Path;
use std::sync::Arc;

use anyhow::{Context, Result, bail, ensure};
use disk::Access;

use crate::drive::{Plan, drive};
use crate::engine::Engine;
use crate::kind::Kind;
use crate::make::{Made, make};
use crate::shadow::Shadow;
use crate::transfer::{alone, read};
use crate::verify::{self, Stop};

/// Openings of each image that change it.
const ROUNDS: u64 = 4;

/// What is asked of one image.
#[derive(Debug, Clone, Copy)]
pub struct Single<'a> {
    /// Of everything.
    pub seed: u64,
    /// Requests in all.
    pub requests: u32,
    /// An empty directory.
    pub dir: &'a Path,
}

/// Makes an image, changes it in some rounds, and checks it after each.
pub fn run(engine: &dyn Engine, kind: &Kind, single: &Single) -> Result<()> {
    let made = make(kind, single.seed, single.dir).context("the image can not be made")?;
    if let Some(words) = kind.refused() {
        return refused(engine, &made, words);
    }
    let before = verify::features(made.stack.top())?;
    let shadow = Arc::new(Shadow::new(made.contents.clone()));
    let mut leaks = 0;
    for round in 0..ROUNDS {
        let stop = if round % 2 == 0 { Stop::Clean } else { Stop::Unclean };
        use_once(engine, kind, &made, &shadow, (single, round, stop))
            .with_context(|| format!("round {round}, {stop:?} stop"))?;
        verify::image(kind, &made, &shadow.contents(), (stop, &mut leaks))
            .with_context(|| format!("after round {round}, {stop:?} stop"))?;
    }
    // Whatever the unclean stop has left is mended by an opening and a closing.
    alone(async {
        let opened = engine.open(&made.stack, Access::ReadWrite).await?;
        verify::disk(&opened.disk, &shadow.contents()).await?;
        (opened.close)().await
    })
    .context("opened after an unclean stop")?;
    verify::image(kind, &made, &shadow.contents(), (Stop::Unclean, &mut leaks)).context("at the end")?;
    let after = verify::features(made.stack.top())?;
    ensure!(before == after, "features were {before} and are {after}");
    alone(async {
        let opened = engine.open(&made.stack, Access::ReadOnly).await?;
        verify::disk(&opened.disk, &shadow.contents()).await
    })
    .context("opened read-only")
}

fn use_once(
    engine: &dyn Engine,
    kind: &Kind,
    made: &Made,
    shadow: &Arc<Shadow>,
    (single, round, stop): (&Single, u64, Stop),
) -> Result<()> {
    let mut abilities = engine.abilities();
    abilities.grow &= kind.grows();
    // What a dropped write had allocated may leak: not where the check is strict.
    abilities.abandon &= stop == Stop::Unclean;
    let plan = Plan {
        seed: single.seed ^ (round + 1) << 48,
        requests: single.requests / u32::try_from(ROUNDS)?,
        queues: 2,
        depth: 4,
        longest: usize::try_from((kind.cluster * 3).clamp(64 << 10, 1 << 20))?,
        align: usize::try_from(kind.cluster)?,
        abilities,
    };
    alone(async {
        let opened = engine.open(&made.stack, Access::ReadWrite).await.context("open")?;
        let found = verify::disk(&opened.disk, &shadow.contents()).await;
        found.context("as it was opened")?;
        drive(&opened.disk, shadow, &plan)?;
        let io = opened.disk.open_queue()?;
        for dropped in shadow.abandoned() {
            let now = read(&*io, dropped.offset, dropped.bytes.len()).await?;
            shadow.settle(&dropped, &now)?;
        }
        verify::disk(&opened.disk, &shadow.contents())
            .await
            .context("after all requests")?;
        match stop {
            Stop::Clean => {
                drop(io);
                (opened.close)().await.context("close")
            }
            Stop::Unclean => io.flush().await.context("the last flush"),
        }
    })
}

/// Such an image must be refused, with words that say why, and stay as it is.
fn refused(engine: &dyn Engine, made: &Made, words: &[&str]) -> Result<()> {
    let before = fs::read(made.stack.top())?;
    for access in [Access::ReadOnly, Access::ReadWrite] {
        let opened = alone(async { engine.open(&made.stack, access).await.map(drop) });
        let Err(error) = opened else {
            bail!("an image that must be refused was opened ({access:?})");
        };
        let said = format!("{error:#}").to_lowercase();
        ensure!(
            words.iter().any(|word| said.contains(word)),
            "refused with words that do not say why: {said}"
        );
    }
    ensure!(
        fs::read(made.stack.top())? == before,
        "an image that was refused has changed"
    );
    Ok(())
}
