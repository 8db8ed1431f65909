//! The question before the rollback.

use std::io::{IsTerminal, Write};

use anyhow::Context as _;
use rollback_proto::v1::{PlanRollbackResponse, RollbackTarget};
use serde_json::json;

use crate::cli::Format;
use crate::client::Client;
use crate::exit::ExitCode;
use crate::fleet::plan;
use crate::output::paint::Paint;
use crate::output::text::clean;
use crate::output::{self, json as documents};

pub enum Answer {
    /// To the plan with this digest.
    Yes {
        digest: String,
    },
    No,
    /// There was nothing to ask: the plan cannot be followed.
    Blocked,
}

/// Somebody who can read the question and answer it.
pub fn has_terminal() -> bool {
    std::io::stdin().is_terminal() && std::io::stderr().is_terminal()
}

/// Shows the plan with its findings and asks. Everything goes to stderr: it is talk, not data.
pub async fn ask(client: &mut Client, target: RollbackTarget, format: Format) -> anyhow::Result<Answer> {
    output::note("Asking every host whether it can …");
    let response = plan::fetch(client, target).await?;
    output::note(&format!("\n{}", plan::text(&response, Paint::stderr())));
    let question = match plan::verdict(&response) {
        ExitCode::Blocked => {
            output::note("Blocked: nothing was touched.");
            if format == Format::Json {
                output::data(&blocked_document(&response))?;
            }
            return Ok(Answer::Blocked);
        }
        ExitCode::Done => "Nothing would change. Verify the whole fleet all the same?".to_owned(),
        ExitCode::HasChanges
        | ExitCode::Error
        | ExitCode::Partial
        | ExitCode::NotReached
        | ExitCode::ScopeHeld
        | ExitCode::StillRunning => {
            let release = response.plan.as_ref().map(|p| clean(&p.release)).unwrap_or_default();
            format!("Roll the fleet back to {release}?")
        }
    };
    // Nothing else waits on this thread while a person thinks; the connection's pings run on the other ones.
    let yes = tokio::task::block_in_place(|| read_yes(&question))?;
    let digest = response.plan.map(|p| p.digest).unwrap_or_default();
    Ok(if yes { Answer::Yes { digest } } else { Answer::No })
}

fn read_yes(question: &str) -> anyhow::Result<bool> {
    let mut stderr = std::io::stderr().lock();
    write!(stderr, "{question} [y/N] ")
        .and_then(|()| stderr.flush())
        .context("ask on the terminal")?;
    let mut answer = String::new();
    std::io::stdin().read_line(&mut answer).context("read the answer")?;
    Ok(matches!(answer.trim().to_lowercase().as_str(), "y" | "yes"))
}

fn blocked_document(response: &PlanRollbackResponse) -> String {
    let body = json!({
        "rollback_id": null,
        "state": null,
        "blocked": true,
        "exit_code": ExitCode::Blocked.number(),
        "phases": [],
        "findings": documents::findings(&response.findings),
    });
    documents::document("rollback", body)
}
