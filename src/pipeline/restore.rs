//! The window state of a start: the newest snapshot and the deltas since, for every view whose state fits.
//!
//! It fits if all of them have a section under the key of the view's store (see `state::image`): a store that is missing
//! in one was another then, or was not there, and its windows would lack the rows of that time.

use std::collections::BTreeSet;
use std::sync::Arc;

use super::run::{Runner, too_large};
use super::start::Pipeline;
use super::watermark::Watermark;
use crate::checkpoint::Recovery;
use crate::sql::session::QueryContext;
use crate::state::panes::COMPACT_AT;
use crate::state::{PaneStore, image};
use crate::{Error, Result};

/// Whose window state a start forgets.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum ResetState {
    /// Of the windowed views that are new or changed, so that what is kept does not fit.
    Changed,
    /// Of all windowed views.
    All,
}

impl Pipeline {
    /// Brings the window state back. Returns the views whose windows begin anew, for what is kept does not fit them.
    ///
    /// # Errors
    /// There are such views, and no `reset`; the state is damaged.
    pub(super) async fn restore(&mut self, recovery: &Recovery, reset: Option<ResetState>) -> Result<Vec<String>> {
        let mut stores = self.empty_stores();
        let images = recovery.snapshot.iter().map(|(_, image)| (image, true));
        let images: Vec<_> = images.chain(recovery.deltas.iter().map(|(_, delta)| (delta, false))).collect();
        let kept = images.iter().map(|(image, _)| image::keys(image)).collect::<Result<Vec<BTreeSet<String>>>>()?;
        let key = |store: &PaneStore| store.definition().key();
        let fits: Vec<bool> = stores.iter().map(|store| kept.iter().all(|keys| keys.contains(&key(store)))).collect();
        let unfit = self.views(|store| !fits[store]);
        if !unfit.is_empty() && reset.is_none() {
            return Err(changed(&unfit));
        }
        let context = QueryContext::new(self.program.state(), 1);
        for (bytes, snapshot) in images.into_iter().filter(|_| reset != Some(ResetState::All)) {
            let mut sections = image::read(bytes)?;
            for (store, _) in stores.iter_mut().zip(&fits).filter(|(_, fits)| **fits) {
                let Some(states) = sections.remove(&store.definition().key()) else { continue };
                match snapshot {
                    // One entry of a list a batch: the lists are as long as they were.
                    true => states.iter().try_for_each(|batch| store.restore(std::slice::from_ref(batch)))?,
                    false if states.is_empty() => {}
                    false => {
                        let watermark = self.watermarks.get(&store.definition().source).and_then(Watermark::value);
                        let after = watermark.unwrap_or(i64::MIN);
                        store.restored(&states, after, &context).await.map_err(|error| too_large(&error))?;
                    }
                }
            }
        }
        for store in &mut stores {
            let watermark = self.watermarks.get(&store.definition().source).and_then(Watermark::value);
            store.evict(watermark.unwrap_or(i64::MIN));
        }
        self.runner = Runner::new(Arc::clone(&self.program), stores);
        self.since_snapshot = recovery.deltas.len() as u64;
        Ok(unfit)
    }

    /// Makes a reset durable: the next start goes on from it, without being asked to.
    ///
    /// # Errors
    /// The checkpoint's.
    pub(super) async fn reset(&mut self, which: ResetState, unfit: Vec<String>) -> Result<()> {
        let Some(last) = self.next.checked_sub(1) else { return Ok(()) }; // nothing was kept yet
        let views = match which {
            ResetState::Changed => unfit,
            ResetState::All => {
                self.runner = Runner::new(Arc::clone(&self.program), self.empty_stores());
                self.views(|_| true)
            }
        };
        if views.is_empty() {
            tracing::info!("no window state was reset: that of every windowed view fits");
            return Ok(());
        }
        let image = self.image()?;
        self.checkpoint.snapshot(last, image).await?;
        tracing::warn!(
            "the window state of {} was reset: their windows that were open begin anew, and count only what comes now",
            views.join(", ")
        );
        Ok(())
    }

    fn empty_stores(&self) -> Vec<PaneStore> {
        let definitions = self.program.windows.stores.iter();
        definitions.map(|definition| PaneStore::new(Arc::clone(definition), COMPACT_AT)).collect()
    }

    /// The windowed views of some stores.
    fn views(&self, of: impl Fn(usize) -> bool) -> Vec<String> {
        self.program.windows.views.iter().filter(|view| of(view.store)).map(|view| view.name.clone()).collect()
    }
}

fn changed(views: &[String]) -> Error {
    let views = views.join(", ");
    Error::user(format!("windowed view {views} is new, or its SQL has changed: there is no kept state that fits it"))
        .cause(
            "the aggregate, its keys, its input, the windows' size, or the version of DataFusion is another; or whatever reads \
             it was turned off for a while",
        )
        .hint("change it back, or start with --reset-state: of this view, windows that are open now begin anew")
}
