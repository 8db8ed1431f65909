//! Agreeing to a loss of data: what `--accept-data-loss` says, what the plan shows, and what is agreed to in the end.
//!
//! The figures of a plan are those of the moment in which it was looked at, and writers go on until they are stopped. So what
//! is agreed to leaves some room above them, and the agents count again before they exchange anything. A number holds for each
//! database by itself, because each agent counts its own.

use rollback_proto::problem::{Code, Problem};
use rollback_proto::v1::{Consent, Finding, Plan};

use crate::output::loss::{self, expected, rows_of, thousands};
use crate::output::text::{clean, name_some};

/// Rows that may be written between the look and the exchange, beside a tenth of what the plan shows.
const ROOM: u64 = 1000;

/// Databases that a message names before it only counts.
const NAMED: usize = 5;

/// `--accept-data-loss`
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Accept {
    /// Bare: what the plan shows, and some room.
    Shown,
    /// At most so many.
    Rows(u64),
    /// However many, also when nobody knows.
    Any,
}

/// What the value is when none is given.
pub const SHOWN: &str = "shown";

pub fn parse(text: &str) -> Result<Accept, String> {
    match text {
        SHOWN => Ok(Accept::Shown),
        "all" => Ok(Accept::Any),
        _ => number(text)
            .map(Accept::Rows)
            .ok_or_else(|| format!("`{text}` is neither a number of rows nor `all`")),
    }
}

/// Also as it is printed: "1,132".
fn number(text: &str) -> Option<u64> {
    text.replace([',', '_'], "").parse().ok()
}

/// What the plan's findings say of the loss.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Shown {
    databases: usize,
    /// In all of them.
    total: u64,
    /// In the one that loses most.
    greatest: u64,
    /// Databases of which nobody knows (all of) it, with the reason.
    unknown: Vec<String>,
}

impl Shown {
    /// `None`: the plan restores nothing.
    pub fn of(plan: &Plan, findings: &[Finding]) -> Option<Self> {
        let databases = expected(plan, findings);
        let known = || databases.iter().filter_map(|d| d.rows());
        let unknown = databases.iter().filter(|d| d.rows().is_none());
        (!databases.is_empty()).then(|| Self {
            databases: databases.len(),
            total: known().fold(0, u64::saturating_add),
            greatest: known().max().unwrap_or(0),
            unknown: unknown
                .map(|d| {
                    let why = d.loss.map_or("its agent does not say", |loss| &loss.unknown);
                    format!("{} ({})", d.place(), clean(why))
                })
                .collect(),
        })
    }

    /// What the plan shows, and room for what is written until the writers stop. Not without all figures.
    pub fn with_room(&self) -> Result<Consent, Problem> {
        if !self.unknown.is_empty() {
            let names = name_some(self.unknown.iter().map(String::as_str), NAMED);
            let text = format!("nobody can tell yet how many rows would be lost in {names}");
            return Err(Problem::new(Code::ConsentNeeded, text).remedy(
                "agree to any loss: --accept-data-loss=all; or to so many rows, if they can be counted before the exchange: \
                 --accept-data-loss=ROWS",
            ));
        }
        let tenth = self.greatest.div_ceil(10);
        let most = self.greatest.saturating_add(tenth).saturating_add(ROOM);
        Ok(Consent { max_rows: Some(most) })
    }

    /// What has been agreed to, in words.
    pub fn words(&self, consent: Consent) -> String {
        let agreed = loss::consent(consent, self.databases);
        let shown = if self.unknown.is_empty() {
            format!("the plan shows {}", thousands(self.total))
        } else {
            format!("the plan shows {}, and does not know all", thousands(self.total))
        };
        format!("agreed to the loss of {agreed}; {shown}")
    }

    /// What an operator has to type to agree. A habit does not type it.
    pub fn password(&self) -> String {
        if self.unknown.is_empty() {
            thousands(self.total)
        } else {
            "all".to_owned()
        }
    }

    /// What the right answer agrees to.
    fn offered(&self) -> Consent {
        self.with_room().unwrap_or(Consent { max_rows: None })
    }

    /// Says what is agreed to before it is agreed to: the number that is typed is not the limit.
    pub fn question(&self) -> String {
        let now = if self.unknown.is_empty() {
            format!("{} would be lost now", rows_of(self.total))
        } else {
            "Nobody can tell yet how many rows would be lost".to_owned()
        };
        let limit = loss::consent(self.offered(), self.databases);
        let password = self.password();
        format!("{now}. To agree to the loss of {limit}, and start, type {password}:")
    }

    /// `None`: that is no agreement.
    pub fn answered(&self, answer: &str) -> Option<Consent> {
        let answer = answer.trim();
        let agreed = if self.unknown.is_empty() {
            number(answer) == Some(self.total)
        } else {
            answer == self.password()
        };
        agreed.then(|| self.offered())
    }

    /// What was said on the command line, applied to this plan.
    pub fn accepted(&self, accept: Accept) -> Result<Consent, Problem> {
        match accept {
            Accept::Shown => self.with_room(),
            // Losses only grow: it would be found out when all has been restored and users are shut out.
            Accept::Rows(rows) if rows < self.greatest => {
                let (agreed, shown) = (rows_of(rows), rows_of(self.greatest));
                let text =
                    format!("the loss of at most {agreed} was agreed to, and a database would lose {shown} already");
                Err(Problem::new(Code::ConsentNeeded, text)
                    .remedy("agree to more: --accept-data-loss=ROWS, or as the plan shows it: --accept-data-loss"))
            }
            Accept::Rows(rows) => Ok(Consent { max_rows: Some(rows) }),
            Accept::Any => Ok(Consent { max_rows: None }),
        }
    }
}

/// What needs no plan to be understood.
pub fn without_plan(accept: Accept) -> Option<Consent> {
    match accept {
        Accept::Shown => None,
        Accept::Rows(rows) => Some(Consent { max_rows: Some(rows) }),
        Accept::Any => Some(Consent { max_rows: None }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::output::samples::restore;

    fn shown(findings: &[Finding]) -> Shown {
        let plan = restore::plan_response().plan.expect("has a plan");
        Shown::of(&plan, findings).expect("it restores a database")
    }

    fn known() -> Shown {
        shown(&restore::plan_response().findings)
    }

    const fn rows(n: u64) -> Option<Consent> {
        Some(Consent { max_rows: Some(n) })
    }

    #[test]
    fn flag_takes_nothing_a_number_or_all() {
        assert_eq!(parse(SHOWN), Ok(Accept::Shown));
        assert_eq!(parse("0"), Ok(Accept::Rows(0)));
        assert_eq!(parse("1,132"), Ok(Accept::Rows(1132)));
        assert_eq!(parse("all"), Ok(Accept::Any));
        for wrong in ["", "-1", "any", "10%"] {
            assert!(parse(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn what_is_shown_is_agreed_to_with_some_room() {
        let shown = known();
        let consent = shown.with_room().expect("all is known");
        assert_eq!(Some(consent), rows(1132));
        assert_eq!(
            shown.words(consent),
            "agreed to the loss of at most 1,132 rows; the plan shows 120"
        );
    }

    /// A wrong digit, a "y" out of habit and an empty line are all no.
    #[test]
    fn only_the_number_itself_agrees() {
        assert_eq!(
            known().question(),
            "120 rows would be lost now. To agree to the loss of at most 1,132 rows, and start, type 120:"
        );
        assert_eq!(known().answered(" 120\n"), rows(1132));
        for no in ["", "y", "yes", "121", "12", "all"] {
            assert_eq!(known().answered(no), None, "{no}");
        }
    }

    /// Figures of some tables are no figures.
    #[test]
    fn unknown_loss_needs_a_word_of_its_own() {
        for findings in [vec![restore::unknown_loss()], Vec::new()] {
            let unknown = shown(&findings);
            let refused = unknown.with_room().expect_err("not all is known");
            assert_eq!(refused.code, Code::ConsentNeeded);
            assert!(refused.remedy.contains("--accept-data-loss=all"), "{}", refused.remedy);
            assert_eq!(unknown.answered("78,000"), None);
            assert_eq!(unknown.answered("yes"), None);
            assert_eq!(unknown.answered("all"), Some(Consent { max_rows: None }));
            let question = unknown.question();
            assert!(
                question.contains("the loss of any number of rows, and start, type all:"),
                "{question}"
            );
            assert_eq!(
                unknown.accepted(Accept::Rows(7)).ok(),
                rows(7),
                "it may be counted in time"
            );
        }
    }

    #[test]
    fn too_little_is_refused_before_anything_is_restored() {
        let refused = known().accepted(Accept::Rows(119)).expect_err("120 are lost already");
        assert_eq!(refused.code, Code::ConsentNeeded);
        assert!(refused.message.contains("120 rows"), "{}", refused.message);
        assert_eq!(known().accepted(Accept::Rows(120)).ok(), rows(120));
    }

    #[test]
    fn each_database_counts_for_itself() {
        let mut response = restore::plan_response();
        let plan = response.plan.as_mut().expect("has a plan");
        let mut other = plan.changes.iter().find(|c| c.from_backup).expect("a restore").clone();
        other.host = "db-2".to_owned();
        plan.changes.push(other);
        let mut finding = response.findings[0].clone();
        finding.host = "db-2".to_owned();
        finding.loss.as_mut().expect("a loss").tables.truncate(1);
        response.findings.push(finding);
        let plan = response.plan.as_ref().expect("has a plan");
        let shown = Shown::of(plan, &response.findings).expect("it restores databases");
        let consent = shown.with_room().expect("all is known");
        assert_eq!(
            shown.words(consent),
            "agreed to the loss of at most 1,132 rows in each of 2 databases; the plan shows 140"
        );
        let question = shown.question();
        assert!(
            question.contains("at most 1,132 rows in each of 2 databases"),
            "{question}"
        );
    }
}
