//! Filling what the project's own tool has brought back, in transactions beside its own.
//!
//! Before the tool runs up, what is not there of the rows that this rollback kept, or else an earlier one, is noted in the
//! kept schema itself. After a run what has come of it is filled: this rollback's rows at once, an earlier rollback's when
//! the tool has ended, if all of them have a place then.

use rollback_proto::problem::{Code, Problem};
use sqlx::postgres::PgConnection;

use super::{Chosen, Returned, SAVEPOINT, later, or_back_to_savepoint, own, same_types, sorted_by_presence};
use crate::driver::postgres::connect::{ident, run};
use crate::driver::postgres::kept::{self, KeepError, Kept};
use crate::driver::postgres::loss::Name;
use crate::driver::postgres::privileges::Privileges;
use crate::driver::postgres::sql_error::sql_problem;

/// What rows there are to fill: this rollback's own, or the newest of the earlier ones that `wanted` holds for.
async fn find(
    c: &mut PgConnection,
    own: &str,
    wanted: impl Fn(&Kept) -> bool,
) -> Result<Option<(String, Kept)>, Problem> {
    if let Some(kept) = kept::read(c, own).await? {
        return Ok((!kept.put_back).then(|| (own.to_owned(), kept)));
    }
    let earlier = kept::of_component(c, own).await?;
    Ok(earlier.into_iter().find(|(_, kept)| !kept.put_back && wanted(kept)))
}

/// Notes which of the kept things are not there: only those are filled when they have come. Adds to earlier notes.
pub(in crate::driver::postgres) async fn note_absent(
    c: &mut PgConnection,
    own: &str,
    numbers: &[i64],
) -> Result<(), KeepError> {
    let found = find(c, own, |kept| kept.is_of(numbers) && !kept.parts.is_empty()).await;
    let Some((schema, mut kept)) = found.map_err(KeepError::Problem)? else {
        return Ok(());
    };
    let absent = sorted_by_presence(c, &kept).await?.1;
    let sequences = kept.sequences.iter().enumerate();
    let places: Vec<usize> = sequences
        .filter(|(_, (name, ..))| absent.sequences.contains(name))
        .map(|(i, _)| i)
        .collect();
    kept.absent_sequences.extend(places);
    kept.absent.extend(absent.parts);
    kept.write(c, &schema).await
}

/// What was noted as absent and is there now.
async fn brought(c: &mut PgConnection, kept: &Kept) -> Result<Chosen, KeepError> {
    let mut present = sorted_by_presence(c, kept).await?.0;
    present.parts.retain(|i| kept.absent.contains(i));
    let noted = |name: &Name| {
        let mut places = kept.absent_sequences.iter().filter_map(|i| kept.sequences.get(*i));
        places.any(|(known, ..)| known == name)
    };
    present.sequences.retain(noted);
    Ok(present)
}

pub(in crate::driver::postgres) async fn is_waiting(c: &mut PgConnection, own: &str) -> Result<bool, Problem> {
    let Some((_, kept)) = find(c, own, |kept| !kept.absent.is_empty()).await? else {
        return Ok(false);
    };
    match brought(c, &kept).await {
        Ok(chosen) => Ok(!chosen.parts.is_empty()),
        Err(KeepError::Problem(problem)) => Err(problem),
        Err(KeepError::Sql(error)) => Err(sql_problem(Code::DatabaseUnclear, "look for kept rows", &error)),
    }
}

pub(in crate::driver::postgres) async fn put_back_brought(
    c: &mut PgConnection,
    own_schema: &str,
    rollback_id: &str,
    last: bool,
) -> Result<Option<Returned>, KeepError> {
    let found = find(c, own_schema, |kept| !kept.absent.is_empty()).await;
    let Some((schema, mut kept)) = found.map_err(KeepError::Problem)? else {
        return Ok(None);
    };
    let chosen = brought(c, &kept).await?;
    if schema != own_schema {
        return if last {
            earlier(c, &schema, kept, &chosen, rollback_id).await
        } else {
            Ok(None)
        };
    }
    if chosen.parts.is_empty() && chosen.sequences.is_empty() && !last {
        return Ok(None);
    }
    kept.absent.retain(|i| !chosen.parts.contains(i));
    kept.absent_sequences.clear();
    if last {
        // A way down that turned round half-way has kept things that no run took away.
        let present = sorted_by_presence(c, &kept).await?.0;
        kept.returned = (0..kept.parts.len())
            .map(|i| kept.is_returned(i) || present.parts.contains(&i))
            .collect();
    }
    let parts = own(c, &schema, kept, &chosen, rollback_id, last).await?;
    Ok(Some(Returned {
        parts,
        ..Returned::default()
    }))
}

/// What an earlier rollback kept, when the tool has ended: all of it has a place, or none is filled.
async fn earlier(
    c: &mut PgConnection,
    schema: &str,
    mut kept: Kept,
    chosen: &Chosen,
    rollback_id: &str,
) -> Result<Option<Returned>, KeepError> {
    let unfit = |why: &str| {
        Ok(Some(Returned {
            unfit: vec![(schema.to_owned(), why.to_owned())],
            ..Returned::default()
        }))
    };
    kept.absent.clear();
    kept.absent_sequences.clear();
    if (0..kept.parts.len()).any(|i| !kept.is_returned(i) && !chosen.parts.contains(&i)) {
        kept.write(c, schema).await?;
        return unfit("the migrations do not bring all of it back");
    }
    if !same_types(c, schema, &kept).await? {
        kept.write(c, schema).await?;
        return unfit("its columns have other types now");
    }
    let made: Vec<String> = kept
        .parts
        .iter()
        .filter(|part| part.key.is_none())
        .map(|part| part.table.quoted())
        .chain(chosen.sequences.iter().map(Name::quoted))
        .collect();
    let before = Privileges::read(c).await?.without(&made);
    let origin = kept.origin();
    run(c, format!("SAVEPOINT {SAVEPOINT}")).await?;
    let tried = later(c, schema, kept, chosen, rollback_id, &before, true).await;
    match or_back_to_savepoint(c, tried).await? {
        Ok(parts) => Ok(Some(Returned {
            from: Some(format!("{schema} ({origin})")),
            parts,
            ..Returned::default()
        })),
        Err(problem) => {
            // What was noted of it was taken back with the rest.
            if let Some(mut kept) = kept::read(c, schema).await.map_err(KeepError::Problem)? {
                kept.absent.clear();
                kept.absent_sequences.clear();
                kept.write(c, schema).await?;
            }
            unfit(&problem.message)
        }
    }
}

/// What was kept before a run down that never began, because the agent was killed: all of it is in its place. It is
/// going to be kept anew.
pub(in crate::driver::postgres) async fn forget_what_never_went(
    c: &mut PgConnection,
    schema: &str,
) -> Result<(), KeepError> {
    let Some(kept) = kept::read(c, schema).await.map_err(KeepError::Problem)? else {
        return Ok(());
    };
    let all_there = sorted_by_presence(c, &kept).await?.1.parts.is_empty();
    let never_up = kept.absent.is_empty() && kept.returned.is_empty();
    if !kept.put_back && never_up && all_there && !kept.parts.is_empty() {
        run(c, format!("DROP SCHEMA {} CASCADE", ident(schema))).await?;
    }
    Ok(())
}
