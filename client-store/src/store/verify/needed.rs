//! Which images and states need what is damaged or missing.

use std::collections::HashMap;

use layer_format::Digest;

use super::VerifyReport;
use crate::error::StoreError;
use crate::store::walk::{Visit, Walk};
use crate::store::{Store, WalkError};

impl Store {
    /// Says which images need the damaged objects, and which are incomplete.
    pub(super) fn find_images(&self, report: &mut VerifyReport) -> Result<(), StoreError> {
        let places: HashMap<Digest, usize> = report.damaged.iter().enumerate().map(|(at, object)| (object.digest, at)).collect();
        for (image, row) in self.image_rows()? {
            let Some(manifest) = self.manifest_of(&image)? else { continue };
            let mut complete = true;
            let mut walk = Walk::default();
            let walked = walk.image(self, &manifest, &mut |visit| {
                if let Some(at) = places.get(&visit.digest) {
                    report.damaged[*at].images.push(image);
                }
                complete &= visit.bytes.is_some()
                    || !places.contains_key(&visit.digest) && self.inner.usable_location(&visit.digest).map_err(WalkError::Store)?.is_some();
                Ok::<_, WalkError>(())
            });
            match walked {
                Err(WalkError::Store(error)) => return Err(error),
                Err(WalkError::Format { .. }) => complete = false,
                Ok(()) => {}
            }
            if !complete {
                report.incomplete_images.push(image);
            }
            if row.complete != complete {
                self.image_update(&image, |row| row.complete = complete)?;
            }
        }
        Ok(())
    }
}

impl Store {
    /// Says which states need the damaged objects, and which are incomplete.
    pub(super) fn find_states(&self, report: &mut VerifyReport) -> Result<(), StoreError> {
        let places: HashMap<Digest, usize> = report.damaged.iter().enumerate().map(|(at, object)| (object.digest, at)).collect();
        let is_bad = |visit: &Visit<'_>| -> Result<bool, StoreError> {
            Ok(places.contains_key(&visit.digest) || visit.bytes.is_none() && self.inner.usable_location(&visit.digest)?.is_none())
        };
        // States share most of what they need: one walk for all says whether there is anything to be told at all.
        let mut any = false;
        self.walk_states(&mut Walk::default(), |_, visit| {
            any |= is_bad(visit)?;
            Ok(())
        })?;
        for (digest, _) in self.states()? {
            let Some(state) = self.state_get(&digest).ok().flatten() else {
                report.incomplete_states.push(digest);
                continue;
            };
            if !any {
                continue;
            }
            let mut complete = true;
            let walked = Walk::default().layers(self, &[state.manifest.sandbox], &mut |visit| {
                complete &= !is_bad(&visit).map_err(WalkError::Store)?;
                if let Some(at) = places.get(&visit.digest) {
                    report.damaged[*at].states.push(digest);
                }
                Ok::<_, WalkError>(())
            });
            match walked {
                Err(WalkError::Store(error)) => return Err(error),
                Err(WalkError::Format { .. }) => complete = false,
                Ok(()) => {}
            }
            if !complete {
                report.incomplete_states.push(digest);
            }
        }
        Ok(())
    }
}
