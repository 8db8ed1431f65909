//! `rollbackctl explain`

use clap::Args;
use rollback_proto::problem::{Code, Problem};

use crate::exit::ExitCode;
use crate::output::{self, text::clean};

/// The page that is generated from the codes, so that nothing is said twice.
const PAGE: &str = include_str!("../../docs/errors.md");

/// Say what an error code means and what to do
///
/// Examples:
///   rollbackctl explain RB0203
#[derive(Args, Debug)]
#[command(verbatim_doc_comment)]
pub struct ExplainArgs {
    /// As it stands in the message: RB0203
    #[arg(value_name = "CODE")]
    pub code: String,
}

pub fn run(args: &ExplainArgs) -> anyhow::Result<ExitCode> {
    let wanted = args.code.to_uppercase();
    let Some((meaning, remedy)) = explained(&wanted) else {
        let text = format!("there is no code `{}`", clean(&args.code));
        return Err(Problem::new(Code::NotFound, text)
            .remedy("a code is RB and four digits, as in the message")
            .into());
    };
    output::data(&format!("{wanted}: {meaning}\n  what to do: {remedy}"))?;
    Ok(ExitCode::Done)
}

/// Meaning and remedy, from the row of the page.
fn explained(code: &str) -> Option<(String, String)> {
    let row = PAGE
        .lines()
        .find_map(|line| line.strip_prefix(&format!("| `{code}` | ")))?;
    let (meaning, remedy) = row.trim_end_matches(" |").split_once(" | ")?;
    Some((meaning.replace("\\|", "|"), remedy.replace("\\|", "|")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_code_is_explained() {
        for code in Code::ALL {
            let (meaning, remedy) = explained(code.id()).unwrap_or_else(|| panic!("{code} is not explained"));
            assert!(!meaning.is_empty(), "{code}");
            assert_eq!(remedy, code.remedy(), "{code}");
        }
        assert_eq!(explained("RB"), None);
    }
}
