//! What a person has to know of now: shown by `/readyz` and by `rollbackctl doctor` for as long as it lasts.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};

/// A cheap handle. By subject, so that the same trouble is there once and can be taken back.
#[derive(Clone, Debug, Default)]
pub struct Troubles(Arc<Mutex<BTreeMap<String, String>>>);

impl Troubles {
    pub fn begin(&self, subject: String, what: String) {
        tracing::error!(subject, "{what}");
        self.lock().insert(subject, what);
    }

    pub fn over(&self, subject: &str) {
        self.lock().remove(subject);
    }

    pub fn all(&self) -> Vec<String> {
        let troubles = self.lock();
        troubles
            .iter()
            .map(|(subject, what)| format!("{subject}: {what}"))
            .collect()
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, BTreeMap<String, String>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
