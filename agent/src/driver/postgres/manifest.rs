//! What lies beside a dump: everything that has to be known of it without restoring it.
//!
//! Written once the dump is proven. Manifests of earlier versions stay readable: what they do not say has a default that
//! claims nothing.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use super::catalog::Schema;
use super::config::Verify;
use super::dump::DumpFormat;
use super::figures::Figures;
use super::horizon::Horizon;
use super::versions::Applied;
use crate::driver::Receipt;

pub(super) const FORMAT: u32 = 1;

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum Proof {
    Restore,
    Checksum,
}

impl Proof {
    pub fn name(self) -> &'static str {
        match self {
            Self::Restore => "restore",
            Self::Checksum => "checksum",
        }
    }
}

impl From<Verify> for Proof {
    fn from(verify: Verify) -> Self {
        match verify {
            Verify::Restore => Self::Restore,
            Verify::Checksum => Self::Checksum,
        }
    }
}

/// Where `taken_at` comes from.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum DatedBy {
    /// The instant of the snapshot.
    #[default]
    Snapshot,
    /// The dump says when it was begun, by the clock and in the time zone of the host that made it.
    Header,
    /// Only the file's modification time is known: it ended then, if nobody touched it since.
    Modified,
}

impl DatedBy {
    pub fn describe(self) -> &'static str {
        match self {
            Self::Snapshot => "its snapshot",
            Self::Header => "the dump's own header",
            Self::Modified => "the file's modification time",
        }
    }
}

#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) struct Manifest {
    pub format: u32,
    /// The managed database, whatever the dump calls the one that it was made of.
    pub database: String,
    pub component: String,
    pub rollback_id: String,
    /// The revision that the backup shows: its digest.
    pub revision: String,
    /// The same for people. Empty in manifests of earlier versions.
    #[serde(default)]
    pub version: String,
    /// The revision as a restored copy shows it, where that was seen. A restore prints some expressions otherwise, so this
    /// may be another digest than `revision`.
    #[serde(default)]
    pub restored_revision: Option<String>,
    /// Of the server that was dumped, as `server_version_num`.
    pub server_version: u32,
    pub taken_at: Timestamp,
    #[serde(default)]
    pub dated_by: DatedBy,
    pub sha256: String,
    /// Of the dump.
    pub bytes: u64,
    #[serde(default)]
    pub dump_format: DumpFormat,
    /// A dump that was taken in and stays where it is. `None`: it lies beside the manifest.
    #[serde(default)]
    pub external: Option<PathBuf>,
    pub figures: Figures,
    pub proof: Option<Proof>,
    /// What the snapshot could see; none for a dump of somebody else's.
    #[serde(default)]
    pub horizon: Option<Horizon>,
    /// Size of the database, as far as it was seen: the live one's, or the restored copy's. 0: unknown.
    #[serde(default)]
    pub database_bytes: u64,
    /// Extensions that the dump makes, with the versions that they had.
    #[serde(default)]
    pub extensions: BTreeMap<String, String>,
    /// Roles that a restore with owners and grants needs.
    #[serde(default)]
    pub roles: BTreeSet<String>,
    /// Integrity checks that did not hold on the restored copy: what went wrong, without data.
    #[serde(default)]
    pub broken: Vec<String>,
    /// Of a dump that was taken in. `None` in manifests of earlier versions.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub shown: Option<Shown>,
}

/// What a restored copy showed, as the copy itself prints it: enough to tell its revision anew, and to record it, without
/// restoring the dump again.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) struct Shown {
    pub schema: Schema,
    pub applied: Applied,
    /// The live schema, as a digest, that last taught which forms belong together; empty when that was not needed.
    #[serde(default)]
    pub taught_by: String,
}

impl Manifest {
    pub fn receipt(&self, path: &Path) -> Receipt {
        Receipt {
            path: path.display().to_string(),
            sha256: self.sha256.clone(),
            bytes: self.bytes,
            verified: self.proof.map(|p| p.name().to_owned()).unwrap_or_default(),
            tables: self.figures.tables.len() as u64,
            rows: self.figures.rows(),
            taken_at: self.taken_at.to_string(),
        }
    }
}
