//! What the background checks found. Answered from the store, at once, by every replica.

use jiff::Timestamp;
use rollback_proto::problem::{Code, Problem};
use rollback_proto::v1;
use tonic::Request;

use super::Api;
use super::releases::PREVIOUS;
use crate::convert;
use crate::readiness::{self, Checked};

impl Api {
    pub async fn readiness(
        &self,
        request: Request<v1::GetReadinessRequest>,
    ) -> Result<v1::GetReadinessResponse, Problem> {
        let wanted = request.into_inner().release;
        let mut known = readiness::known(self.store()).await?;
        match wanted.as_str() {
            "" => {}
            PREVIOUS => known.truncate(1),
            name => {
                known.retain(|checked| checked.release == name);
                if known.is_empty() {
                    // A name that nobody knows is another mistake.
                    self.release_called(name).await?;
                    return Err(not_checked(name));
                }
            }
        }
        let now = Timestamp::now();
        Ok(v1::GetReadinessResponse {
            releases: known.iter().map(|checked: &Checked| checked.to_wire(now)).collect(),
            now: Some(convert::timestamp(now)),
        })
    }
}

fn not_checked(name: &str) -> Problem {
    let message = format!(
        "release {name} is not checked in the background: only the last stable ones before what runs now are, and a new \
         one is with the next round"
    );
    Problem::new(Code::NotFound, message).remedy(format!("ask the hosts now: rollbackctl fleet plan --to {name}"))
}
