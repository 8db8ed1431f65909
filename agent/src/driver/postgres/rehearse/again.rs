//! The way there a second time, on the copy that went there and back: what was undone can be wanted again.
//!
//! A way back may bring back schema and data and still not all that the way there needs: an object that neither the schema's
//! fingerprint nor the figures show, or a note somewhere that it was run already. Then a rollback after an undo would stop
//! on its way, and that is known here before anything is done to the live database.
//!
//! No figures are compared: what the way there does to the data was seen the first time.

use rollback_proto::problem::{Code, Problem};

use super::{Seen, rehearsal_failed};
use crate::driver::postgres::PostgresDriver;
use crate::driver::postgres::loss::Loss;
use crate::driver::postgres::migrate::{Job, LegError, Migrator};
use crate::driver::postgres::route::{Direction, Leg, Route};
use crate::driver::postgres::tool::guard;
use crate::step::StepContext;

impl PostgresDriver {
    /// Fails unless it ends where it is recorded to end. Nobody goes back from there: the copy is dropped.
    pub(super) async fn rehearse_again(
        &self,
        step: &StepContext,
        route: &Route,
        migrator: &Migrator<'_>,
        seen: &Seen,
    ) -> Result<(), Problem> {
        let leg = &route.there;
        let direction = leg.direction.word();
        step.progress(format!("rehearsing {direction} a second time: {}", leg.names()));
        if !leg.is_of_a_tool() {
            return step.operation("rehearse_again", parts_again(migrator, leg, seen)).await;
        }
        // Which migrations one run takes is the tool's affair, and may depend on when they were brought up: only the end
        // is compared. Another rollback has a rehearsal, and waypoints, of its own.
        let sessions = self.connector.patient(step);
        let tool = migrator.tool()?;
        let begin = route.back.end();
        let nothing = Loss::default();
        let work = async {
            let arrived = self.tool_leg(step, leg, &begin, migrator, &nothing).await;
            arrived.map(|_| ()).map_err(|p| second_time(leg.direction, &p))
        };
        step.operation(
            "rehearse_again",
            guard::while_running(sessions, tool.own_tables(), &[migrator.database], work),
        )
        .await
    }
}

/// Each part has to end where it ended the first time.
async fn parts_again(migrator: &Migrator<'_>, leg: &Leg, seen: &Seen) -> Result<(), Problem> {
    let end = leg.end();
    // Nothing is kept, because nobody is going to ask for it. What the first way down kept was put back, and goes.
    let nothing = Loss::default();
    for (part, to) in seen.there.iter().chain([&end]).enumerate() {
        let job = Job {
            leg,
            part,
            from: None,
            to: Some(to),
            loss: &nothing,
        };
        let ran = migrator.run(job).await;
        ran.map_err(|(LegError::RolledBack(p) | LegError::Unknown(p))| {
            second_time(leg.direction, &rehearsal_failed(&p))
        })?;
    }
    Ok(())
}

fn second_time(direction: Direction, problem: &Problem) -> Problem {
    let (there, back) = match direction {
        Direction::Down => ("down", "up"),
        Direction::Up => ("up", "down"),
    };
    Problem::new(
        Code::RehearsalFailed,
        format!(
            "going {there} a second time fails, though the first time and the way back {back} went well: {}",
            problem.message
        ),
    )
    .remedy(format!(
        "make the way {back} leave everything as the way {there} needs it, or else a rollback could not be repeated after an \
         undo; the live database was not touched"
    ))
}
