//! What is agreed to before the rollback: on the terminal, or on the command line with the plan's figures.

use std::io::{IsTerminal, Write};

use anyhow::Context as _;
use rollback_proto::v1::{Consent, PlanRollbackResponse};
use serde_json::json;

use super::Wanted;
use super::consent::{Accept, Shown};
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
        consent: Option<Consent>,
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
pub async fn ask(
    client: &mut Client,
    wanted: &Wanted,
    accept: Option<Accept>,
    format: Format,
) -> anyhow::Result<Answer> {
    let response = show(client, wanted).await?;
    let verdict = plan::verdict(&response);
    if verdict == ExitCode::Blocked {
        return blocked(&response, format);
    }
    let shown = response.plan.as_ref().and_then(|p| Shown::of(p, &response.findings));
    let consent = match (&shown, accept) {
        // Nobody agreed to the loss yet: that is the question, and there is no other.
        (Some(shown), None) => {
            let question = format!("{} ", shown.question());
            let answer = tokio::task::block_in_place(|| read_answer(&question))?;
            let Some(consent) = shown.answered(&answer) else {
                return Ok(Answer::No);
            };
            output::note(&shown.words(consent));
            return Ok(yes(response, Some(consent)));
        }
        (shown, Some(accept)) => apply(shown.as_ref(), accept)?,
        (None, None) => None,
    };
    let question = if verdict == ExitCode::Done {
        "Nothing would change. Verify the whole fleet all the same?".to_owned()
    } else if wanted.question.is_empty() {
        let release = response.plan.as_ref().map(|p| clean(&p.release)).unwrap_or_default();
        format!("Roll the fleet back to {release}?")
    } else {
        wanted.question.clone()
    };
    let agreed = confirm(&question)?;
    Ok(if agreed { yes(response, consent) } else { Answer::No })
}

/// A question that is answered with y or yes; anything else is no. Needs a terminal.
pub fn confirm(question: &str) -> anyhow::Result<bool> {
    // Nothing else waits on this thread while a person thinks; the connection's pings run on the other ones.
    let answer = tokio::task::block_in_place(|| read_answer(&format!("{question} [y/N] ")))?;
    Ok(matches!(answer.trim().to_lowercase().as_str(), "y" | "yes"))
}

/// `--yes` with a consent that goes by what the plan shows: the plan is shown, and nobody is asked.
pub async fn accept_shown(client: &mut Client, wanted: &Wanted, format: Format) -> anyhow::Result<Answer> {
    let response = show(client, wanted).await?;
    if plan::verdict(&response) == ExitCode::Blocked {
        return blocked(&response, format);
    }
    let shown = response.plan.as_ref().and_then(|p| Shown::of(p, &response.findings));
    let consent = apply(shown.as_ref(), Accept::Shown)?;
    Ok(yes(response, consent))
}

/// Says in words what the flag comes to.
fn apply(shown: Option<&Shown>, accept: Accept) -> anyhow::Result<Option<Consent>> {
    let Some(shown) = shown else {
        output::note("the plan restores no database: there is no loss to agree to");
        return Ok(None);
    };
    let consent = shown.accepted(accept)?;
    output::note(&shown.words(consent));
    Ok(Some(consent))
}

/// A saved plan, too, is shown as the coordinator has it, and not as the file says.
async fn show(client: &mut Client, wanted: &Wanted) -> anyhow::Result<PlanRollbackResponse> {
    output::note("Asking every host whether it can …");
    let saved = wanted.saved.as_ref().map(|(sealed, _)| sealed.clone());
    let response = plan::fetch(client, wanted.target.clone(), saved.unwrap_or_default()).await?;
    // Agreeing is what comes next, or has been done on the command line.
    output::note(&format!("\n{}", plan::text(&response, "", Paint::stderr())));
    Ok(response)
}

fn yes(response: PlanRollbackResponse, consent: Option<Consent>) -> Answer {
    let digest = response.plan.map(|p| p.digest).unwrap_or_default();
    Answer::Yes { digest, consent }
}

fn blocked(response: &PlanRollbackResponse, format: Format) -> anyhow::Result<Answer> {
    output::note("Blocked: nothing was touched.");
    if format == Format::Json {
        output::data(&blocked_document(response))?;
    }
    Ok(Answer::Blocked)
}

fn read_answer(question: &str) -> anyhow::Result<String> {
    let mut stderr = std::io::stderr().lock();
    write!(stderr, "{question}")
        .and_then(|()| stderr.flush())
        .context("ask on the terminal")?;
    let mut answer = String::new();
    std::io::stdin().read_line(&mut answer).context("read the answer")?;
    Ok(answer)
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
