//! `switch`: the migrations themselves, in either direction, part after part, and what became of them when nobody heard
//! the end.
//!
//! A switch begins wherever the live database is on the map of its route ([`super::travel`]): at the beginning, or at a
//! waypoint where an earlier run was cut off. When a part fails, the database goes back by the rehearsed way; only a
//! database that is where it was before counts as a failure, any other end is unclear to people and says where it stands.

mod journey;

use std::path::Path;
use std::time::{Duration, Instant};

use rollback_proto::problem::{Code, Problem};

use self::journey::{GO_ON, Journey, with};
use super::connect::Settings;
use super::route::{Direction, Route};
use super::sql_error::{is_passing, sql_problem};
use super::stage::first;
use super::staging::{self, Rehearsed, Staging, file_problem};
use super::tool::Tool;
use super::travel::{Found, Map, Way, Waypoint};
use super::{PostgresDriver, State, kept, tool_locks};
use crate::driver::{Done, Failure, Probe};
use crate::step::StepContext;

/// How long a transaction of ours whose client is gone may go on before it is ended.
const PATIENCE: Duration = Duration::from_secs(15);

/// And how long after that its end is waited for.
const ENDING: Duration = Duration::from_secs(15);

/// Between two looks.
const LOOK: Duration = Duration::from_millis(100);

/// Times that a part is run when nobody heard its end and nothing had happened.
const UNHEARD: u32 = 2;

impl PostgresDriver {
    pub(super) async fn do_switch(&self, step: &StepContext) -> Result<Done, Failure> {
        let mark = Staging::new(&self.config.backups, &self.tag(step)).under_way();
        match self.switch_from_here(step, &mark).await {
            Err(Failure::Failed(problem)) if mark.exists() => {
                let why = "an earlier run of this step was cut off on its way";
                Err(Failure::Indeterminate(with(problem, why).remedy(GO_ON)))
            }
            ended => ended,
        }
    }

    /// `mark` is a file that is there for as long as the live database may be between the ends.
    async fn switch_from_here(&self, step: &StepContext, mark: &Path) -> Result<Done, Failure> {
        let sessions = self.connector.patient(step);
        let state = step.operation("read_schema", self.state(sessions)).await?;
        if state.digest == step.to.digest || state.digest == step.from.digest {
            remove(mark)?;
        }
        if state.digest == step.to.digest {
            let filled = match self.config.tool {
                Some(_) => self.fill_what_was_brought(step).await?,
                None => String::new(),
            };
            return Ok(Done::at(
                state.revision(),
                format!("the schema is there already{filled}"),
            ));
        }
        let moved = self.moved(&state, step);
        let is_at_from = state.digest == step.from.digest;
        let refused = |problem: Problem| if is_at_from { problem } else { moved.clone() };
        let route = self.planned_route(step).map_err(first).map_err(refused)?;
        let rehearsed = self.rehearsed(step, &route.digest()).map_err(refused)?;
        let route = with_runs(route, &rehearsed, step);
        let map = map(&route, &rehearsed, step).map_err(refused)?;
        let seen = self.waypoint(state)?;
        let (place, cut_off) = match map.find(&seen, Way::There) {
            Found::At(place) => (place, Vec::new()),
            Found::Interrupted {
                place,
                leftovers,
                invalid,
            } => {
                step.progress(format!(
                    "going on {}, where a statement was cut off",
                    map.describe(place)
                ));
                let settings = Settings::new();
                let tag = self.tag(step);
                let migrator = self.migrator(step, &self.config.database, &settings, &tag);
                let cleared = step.operation("drop_invalid_index", migrator.clear(&leftovers)).await;
                cleared.map_err(|problem| {
                    let stands = format!("the database stands {}", map.describe(place));
                    Failure::Indeterminate(with(problem, &stands).remedy(GO_ON))
                })?;
                (place, invalid)
            }
            Found::Nowhere => return Err(moved.into()),
        };
        if place.at > 0 {
            step.progress(format!("going on {}", map.describe(place)));
        }
        let settings = Settings::new();
        let tag = self.tag(step);
        let mut journey = Journey {
            driver: self,
            step,
            migrator: self.migrator(step, &self.config.database, &settings, &tag),
            map,
            losses: &rehearsed.losses,
            failed: None,
            returned: None,
            unheard: None,
            cut_off,
        };
        std::fs::write(mark, "").map_err(|e| file_problem(format!("write {}", mark.display()), &e))?;
        let ended = journey.go(place).await;
        match &ended {
            Ok(()) | Err(Failure::Failed(_)) => remove(mark)?,
            Err(Failure::Indeterminate(_)) => {}
        }
        ended?;
        let returned = match journey.returned.take() {
            Some(returned) => Some(returned.describe()),
            None => journey.unheard.take(),
        };
        let seen = step
            .operation("read_schema", self.state(sessions))
            .await
            .map_err(Failure::Indeterminate)?;
        if seen.digest != step.to.digest {
            // The transaction compared the schema before it committed: somebody changed it since.
            return Err(Failure::Indeterminate(self.moved(&seen, step)));
        }
        let leg = &route.there;
        let summary = format!(
            "{} {}{}",
            leg.names(),
            leg.direction.word(),
            returned.unwrap_or_default()
        );
        Ok(Done::at(seen.revision(), summary))
    }

    /// After a run of the project's own tool that nobody heard the end of.
    async fn fill_what_was_brought(&self, step: &StepContext) -> Result<String, Problem> {
        let (settings, tag) = (Settings::new(), self.tag(step));
        let migrator = self.migrator(step, &self.config.database, &settings, &tag);
        if !step
            .operation("look_at_kept_rows", migrator.is_waiting_to_be_filled())
            .await?
        {
            return Ok(String::new());
        }
        let filled = step.operation("put_back", migrator.put_back_brought(true)).await?;
        Ok(filled.map(|r| r.describe()).unwrap_or_default())
    }

    /// What of a state tells where it is on a map.
    fn waypoint(&self, state: State) -> Result<Waypoint, Problem> {
        Ok(Waypoint {
            applied: self.applied_set(&state)?,
            schema: state.schema,
        })
    }

    /// What was put back by a way up whose end nobody heard.
    async fn account(&self, step: &StepContext, direction: Direction, kept: &str) -> Option<String> {
        match direction {
            Direction::Down => None,
            Direction::Up => {
                let mut c = self.connector.patient(step).live().await.ok()?;
                let found = kept::account(&mut c, kept, &step.rollback_id).await;
                let _ = sqlx::Connection::close(c).await;
                found.ok().flatten()
            }
        }
    }

    /// `stage` of this very rollback must have ended well, with this very SQL; for either direction.
    fn rehearsed(&self, step: &StepContext, route: &str) -> Result<Rehearsed, Problem> {
        let refused = |why: &str| {
            Problem::new(
                Code::RehearsalFailed,
                format!("refusing to migrate {}: {why}", self.config.database),
            )
            .remedy("start the rollback anew; the live database was not touched")
        };
        let staging = Staging::new(&self.config.backups, &self.tag(step));
        let found: Option<Rehearsed> = staging::read_json(&staging.rehearsed())?;
        let rehearsed = found.ok_or_else(|| refused("it was not rehearsed for this rollback"))?;
        let (ends, asked) = ([&rehearsed.from, &rehearsed.to], [&step.from.digest, &step.to.digest]);
        if rehearsed.rollback_id != step.rollback_id || rehearsed.component != self.component {
            return Err(refused("what was rehearsed belongs to another rollback"));
        }
        if ends != asked && ends != [asked[1], asked[0]] {
            return Err(refused("the rehearsal was between other revisions"));
        }
        if rehearsed.route != route {
            return Err(refused("the SQL of the migrations is not what was rehearsed"));
        }
        Ok(rehearsed)
    }

    /// What became of a switch? Waits for a transaction of ours that may still be running: an answer given before its
    /// end could be wrong a moment later.
    pub(super) async fn settle(&self, step: &StepContext) -> Probe {
        match self.settled_state(step).await {
            Err(problem) => Probe::Indeterminate(Problem::new(Code::DatabaseUnclear, problem.message)),
            Ok(state) if state.digest == step.to.digest && self.is_not_filled(step).await => {
                Probe::Repeatable("the schema is there, but not all that was kept has been put back".to_owned())
            }
            Ok(state) if state.digest == step.to.digest => {
                Probe::Applied(Done::at(state.revision(), "found applied after an interruption"))
            }
            Ok(state) if state.digest == step.from.digest => {
                Probe::Repeatable("the schema is where it was before the step".to_owned())
            }
            Ok(state) => {
                let moved = self.moved(&state, step);
                match self.half_way(step, state) {
                    Ok(recognised) => Probe::Repeatable(recognised),
                    Err(None) => Probe::Indeterminate(Problem::new(Code::DatabaseUnclear, moved.message)),
                    Err(Some(nearest)) => {
                        let message = format!("{}; {}", moved.message, nearest.message);
                        Probe::Indeterminate(Problem::new(Code::DatabaseUnclear, message))
                    }
                }
            }
        }
    }

    /// Rows wait for a table that the project's own tool has brought back.
    async fn is_not_filled(&self, step: &StepContext) -> bool {
        let (settings, tag) = (Settings::new(), self.tag(step));
        let migrator = self.migrator(step, &self.config.database, &settings, &tag);
        self.config.tool.is_some() && migrator.is_waiting_to_be_filled().await.unwrap_or(true)
    }

    /// A tool goes on when the agent that ran it was killed.
    async fn tool_has_ended(&self, step: &StepContext) -> Result<(), Problem> {
        let Some(tool) = Tool::of(&self.config, &self.component) else {
            return Ok(());
        };
        let until = Instant::now() + PATIENCE + ENDING;
        while tool.still_runs(self.connector.settling(step)).await? {
            if Instant::now() >= until {
                let message = "the migration tool of an earlier run is still at work in the database";
                return Err(Problem::new(Code::DatabaseUnclear, message)
                    .remedy("wait for it, or end it; then run the step again"));
            }
            tokio::time::sleep(LOOK).await;
        }
        Ok(())
    }

    /// Where a database is that is at neither end: on the map of this rollback's rehearsal, or what it is nearest to.
    fn half_way(&self, step: &StepContext, state: State) -> Result<String, Option<Problem>> {
        let route = self.planned_route(step).map_err(|_| None)?;
        let rehearsed = self.rehearsed(step, &route.digest()).map_err(|_| None)?;
        let route = with_runs(route, &rehearsed, step);
        let map = map(&route, &rehearsed, step).map_err(|_| None)?;
        let seen = self.waypoint(state).map_err(|_| None)?;
        match map.find(&seen, Way::There) {
            Found::At(place) => Ok(format!("half-way, recognised: {}", map.describe(place))),
            Found::Interrupted {
                place,
                leftovers,
                invalid,
            } => {
                let indexes: Vec<String> = leftovers.into_iter().chain(invalid).collect();
                Ok(format!(
                    "half-way, recognised: {}, in a statement that left index {} invalid",
                    map.describe(place),
                    indexes.join(", ")
                ))
            }
            // A leg of one part has no way to be half-way.
            Found::Nowhere if route.there.parts.len() == 1 && route.back.parts.len() == 1 => Err(None),
            Found::Nowhere => Err(Some(map.nearest(&seen))),
        }
    }

    /// The state when no transaction of ours is left: an earlier one whose client is gone is waited for, and ended when
    /// that takes too long. Asks for its lock again and again: a session that waits for a lock would stand in the way of a
    /// CONCURRENTLY statement.
    async fn settled_state(&self, step: &StepContext) -> Result<State, Problem> {
        let sessions = self.connector.settling(step);
        let begun = Instant::now();
        let mut lost = 0;
        let mut ended = false;
        loop {
            let mut waiting = sessions.live().await?;
            let key = tool_locks::own_key(&self.config.database);
            let result = loop {
                match tool_locks::try_own(&mut waiting, key).await {
                    Ok(false) if begun.elapsed() > PATIENCE && !ended => {
                        ended = true;
                        if let Err(e) = tool_locks::end_holder(&mut waiting, key).await {
                            break Err(e);
                        }
                    }
                    Ok(false) if begun.elapsed() > PATIENCE + ENDING => break Ok(false),
                    Ok(false) => tokio::time::sleep(LOOK).await,
                    answer @ (Ok(true) | Err(_)) => break answer,
                }
            };
            match result {
                Ok(true) => {
                    self.tool_has_ended(step).await?;
                    let state = self.state(sessions).await;
                    // Ends the session, and the lock with it.
                    let _ = sqlx::Connection::close(waiting).await;
                    return state;
                }
                Ok(false) => {
                    let message = "an earlier migration of ours is still running and could not be ended";
                    return Err(Problem::new(Code::DatabaseUnclear, message));
                }
                Err(e) if is_passing(&e) && lost < UNHEARD => lost += 1,
                Err(e) => {
                    return Err(sql_problem(
                        Code::DatabaseUnclear,
                        "wait for an earlier migration of ours to end",
                        &e,
                    ));
                }
            }
        }
    }
}

/// Succeeds when there is nothing.
fn remove(mark: &Path) -> Result<(), Problem> {
    match std::fs::remove_file(mark) {
        Err(e) if e.kind() != std::io::ErrorKind::NotFound => {
            Err(file_problem(format!("remove {}", mark.display()), &e))
        }
        Ok(()) | Err(_) => Ok(()),
    }
}

/// Waypoints between the ends, on the way there and on the way back, as this step travels.
fn between<'a>(rehearsed: &'a Rehearsed, step: &StepContext) -> (&'a [Waypoint], &'a [Waypoint]) {
    if rehearsed.from == step.from.digest {
        (&rehearsed.there, &rehearsed.back)
    } else {
        (&rehearsed.back, &rehearsed.there)
    }
}

fn with_runs(route: Route, rehearsed: &Rehearsed, step: &StepContext) -> Route {
    let (there, back) = between(rehearsed, step);
    route.with_runs(there.len() + 1, back.len() + 1)
}

/// The map of a rehearsed route, as this step travels it.
fn map<'a>(route: &'a Route, rehearsed: &Rehearsed, step: &StepContext) -> Result<Map<'a>, Problem> {
    let (there, back) = between(rehearsed, step);
    Map::new(&route.there, there, &route.back, back).ok_or_else(|| {
        Problem::new(
            Code::RehearsalFailed,
            "the rehearsal went by other parts than these migrations have",
        )
        .remedy("start the rollback anew; the live database was not touched")
    })
}
