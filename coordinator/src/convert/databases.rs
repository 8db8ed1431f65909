//! How databases go back, what that costs and who agreed to it, between the wire and the engine.

use rollback_engine::loss::{Consent, DataLoss, TableLoss};
use rollback_engine::plan::DatabaseChoice;
use rollback_proto::problem::{Code, Problem as CodedProblem};
use rollback_proto::v1;

pub fn choice_to_wire(choice: DatabaseChoice) -> v1::DatabaseChoice {
    match choice {
        DatabaseChoice::Auto => v1::DatabaseChoice::Auto,
        DatabaseChoice::Keep => v1::DatabaseChoice::Keep,
        DatabaseChoice::Migrate => v1::DatabaseChoice::Migrate,
        DatabaseChoice::Restore => v1::DatabaseChoice::Restore,
    }
}

/// `None`: what the runbook says. A number that this version does not know must not become that.
pub fn choice_from_wire(number: i32) -> Result<Option<DatabaseChoice>, CodedProblem> {
    match v1::DatabaseChoice::try_from(number) {
        Ok(v1::DatabaseChoice::Unspecified) => Ok(None),
        Ok(v1::DatabaseChoice::Auto) => Ok(Some(DatabaseChoice::Auto)),
        Ok(v1::DatabaseChoice::Keep) => Ok(Some(DatabaseChoice::Keep)),
        Ok(v1::DatabaseChoice::Migrate) => Ok(Some(DatabaseChoice::Migrate)),
        Ok(v1::DatabaseChoice::Restore) => Ok(Some(DatabaseChoice::Restore)),
        Err(_) => {
            let message = format!("the request says {number} of databases, which this coordinator does not know");
            Err(CodedProblem::new(Code::BadRequest, message).remedy("update the coordinator, then try again"))
        }
    }
}

pub fn consent_to_wire(consent: Consent) -> v1::Consent {
    v1::Consent {
        max_rows: consent.max_rows,
    }
}

pub fn consent_from_wire(consent: v1::Consent) -> Consent {
    Consent {
        max_rows: consent.max_rows,
    }
}

pub fn loss_to_wire(loss: &DataLoss) -> v1::DataLoss {
    let table = |t: &TableLoss| v1::TableLoss {
        table: t.table.clone(),
        written: t.written,
        replaced: t.replaced,
    };
    v1::DataLoss {
        backup: loss.backup.clone(),
        taken_at: loss.taken_at.clone(),
        tables: loss.tables.iter().map(table).collect(),
        unknown: loss.unknown.clone(),
        put_aside: loss.put_aside.clone(),
    }
}

pub fn loss_from_wire(loss: v1::DataLoss) -> DataLoss {
    let table = |t: v1::TableLoss| TableLoss {
        table: t.table,
        written: t.written,
        replaced: t.replaced,
    };
    DataLoss {
        backup: loss.backup,
        taken_at: loss.taken_at,
        tables: loss.tables.into_iter().map(table).collect(),
        unknown: loss.unknown,
        put_aside: loss.put_aside,
    }
}

#[cfg(test)]
mod tests {
    use rollback_engine::event::Outcome;

    use super::super::outcome_from_wire;
    use super::*;

    #[test]
    fn choice_that_is_not_known_is_not_what_the_runbook_says() {
        assert_eq!(choice_from_wire(0).expect("nothing was said"), None);
        for choice in [
            DatabaseChoice::Auto,
            DatabaseChoice::Keep,
            DatabaseChoice::Migrate,
            DatabaseChoice::Restore,
        ] {
            let number = choice_to_wire(choice).into();
            assert_eq!(choice_from_wire(number).expect("a known choice"), Some(choice));
        }
        assert_eq!(
            choice_from_wire(99).expect_err("from the future").code,
            Code::BadRequest
        );
    }

    #[test]
    fn loss_survives_the_way_through_the_journal() {
        let loss = v1::DataLoss {
            backup: "db-20261121".to_owned(),
            taken_at: "2026-11-21T03:00:00Z".to_owned(),
            tables: vec![v1::TableLoss {
                table: "public.users".to_owned(),
                written: 100,
                replaced: 3,
            }],
            unknown: "public.events: it took too long".to_owned(),
            put_aside: "shop_before_0123456789abcdef".to_owned(),
        };
        let outcome = outcome_from_wire(v1::Outcome {
            status: v1::outcome::Status::Succeeded.into(),
            findings: vec![v1::Finding {
                severity: v1::Severity::Warning.into(),
                loss: Some(loss.clone()),
                ..v1::Finding::default()
            }],
            loss: Some(loss.clone()),
            ..v1::Outcome::default()
        });
        let json = serde_json::to_string(&outcome).expect("an outcome is JSON");
        let read: Outcome = serde_json::from_str(&json).expect("its own output");
        let told = read.loss.as_ref().map(loss_to_wire);
        assert_eq!(told.as_ref(), Some(&loss));
        assert_eq!(read.findings[0].loss, read.loss);
    }
}
