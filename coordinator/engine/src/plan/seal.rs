//! Sealing: a plan's digest is the SHA-256 of its body's JSON, so that consent binds to exactly what was shown.
//!
//! The JSON is canonical because the body holds only structs, lists, sorted sets, strings and numbers: `serde_json` writes fields
//! in their declared order and there is no map whose order could vary. Whoever adds a map to the body breaks that.

use sha2::{Digest as _, Sha256};

use super::{Plan, PlanBody, SealBroken};
use crate::ids::Digest;

/// The one format that this version writes and reads.
pub const FORMAT: u32 = 1;

/// A plan that was read from somewhere cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    #[error("this is not a plan")]
    Unreadable(#[from] serde_json::Error),
    #[error("the plan has format {found}; this version reads format {FORMAT}")]
    UnknownFormat { found: u32 },
    #[error("the plan was changed after it was sealed")]
    Changed(#[from] SealBroken),
}

impl Plan {
    /// Fixes a body for ever.
    pub fn seal(body: PlanBody) -> Self {
        let digest = digest_of(&body);
        Self { body, digest }
    }

    /// Reads a plan from JSON and accepts it only whole and unchanged.
    pub fn open(json: &[u8]) -> Result<Self, OpenError> {
        let plan: Self = serde_json::from_slice(json)?;
        if plan.body.format != FORMAT {
            return Err(OpenError::UnknownFormat {
                found: plan.body.format,
            });
        }
        plan.verify()?;
        Ok(plan)
    }

    /// Does the digest belong to the content?
    pub fn verify(&self) -> Result<(), SealBroken> {
        let computed = digest_of(&self.body);
        if computed == self.digest {
            Ok(())
        } else {
            Err(SealBroken {
                found: self.digest.clone(),
                computed,
            })
        }
    }
}

fn digest_of(body: &PlanBody) -> Digest {
    let json = serde_json::to_vec(body).expect("a plan body is plain data, which JSON can always hold");
    Digest(format!("sha256:{}", hex::encode(Sha256::digest(&json))))
}
