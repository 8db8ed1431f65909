//! `switch`: the migrations themselves, in either direction, part after part, and what became of them when nobody heard
//! the end.
//!
//! A switch begins wherever the live database is on the map of its route ([`super::travel`]): at the beginning, or at a
//! waypoint where an earlier run was cut off. When a part fails, the database goes back by the rehearsed way; only a
//! database that is where it was before counts as a failure, any other end is unclear to people and says where it stands.

use std::time::{Duration, Instant};

use rollback_proto::kill_point;
use rollback_proto::problem::{Code, Problem};

use super::connect::Settings;
use super::loss::Loss;
use super::migrate::{Job, LegError, Migrator};
use super::put_back::Returned;
use super::route::{Direction, Route};
use super::sql_error::{is_passing, sql_problem};
use super::stage::first;
use super::staging::{self, Rehearsed, Staging};
use super::tool::Tool;
use super::travel::{Found, Map, Place, Way, Waypoint};
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

/// Why a journey did not reach its goal.
enum Stuck {
    /// The part that leads on from this place failed, and nothing of it took effect.
    At(Place, Problem),
    /// It cannot be said where the database is, or nothing leads on from there.
    Lost(Problem),
}

/// Part after part on the live database.
struct Journey<'a> {
    driver: &'a PostgresDriver,
    step: &'a StepContext,
    migrator: Migrator<'a>,
    map: Map<'a>,
    losses: &'a [Loss],
    /// Never tried again: it failed already.
    failed: Option<Place>,
    returned: Option<Returned>,
    /// What was put back by a part whose end nobody heard.
    unheard: Option<String>,
    /// The next statement was cut off before, so the database is not quite at its waypoint.
    cut_off: bool,
}

impl Journey<'_> {
    /// Runs parts until the end of the trail to `goal`.
    async fn travel(&mut self, from: Place, goal: Way) -> Result<(), Stuck> {
        let mut place = from;
        let mut unheard = 0;
        loop {
            // A statement that was cut off leads on by its own trail only.
            if !self.cut_off {
                place = self.map.seen_from(place, goal);
            }
            let Some(part) = self.map.part_after(place) else {
                return Ok(());
            };
            if self.failed == Some(place) {
                let message = format!(
                    "nothing leads back from here but what failed ({})",
                    self.map.describe(place)
                );
                return Err(Stuck::At(place, Problem::new(Code::DatabaseUnclear, message)));
            }
            let leg = self.map.leg(place.way);
            let next = place.next(leg);
            let none = Loss::default();
            let loss = match leg.direction {
                Direction::Down => self.losses.get(place.at).unwrap_or(&none),
                Direction::Up => &none,
            };
            let (from, to) = (self.map.point(place), self.map.point(next));
            let job = Job {
                leg,
                part: place.at,
                from: from.as_ref().filter(|_| !std::mem::take(&mut self.cut_off)),
                to: to.as_ref(),
                loss,
            };
            let operation = match leg.direction {
                Direction::Down => "migrate_down",
                Direction::Up => "migrate_up",
            };
            self.step.progress(format!("migrating: {}", leg.describe(part)));
            let problem = match self.step.operation(operation, self.migrator.run(job)).await {
                Ok(ran) => {
                    Returned::gather(&mut self.returned, ran.returned);
                    kill_point::pass(|| format!("migrate.part.{}", place.at + 1));
                    (place, unheard) = (next, 0);
                    continue;
                }
                Err(LegError::RolledBack(problem)) => return Err(Stuck::At(place, problem)),
                Err(LegError::Unknown(problem)) => problem,
            };
            self.step
                .progress(format!("{}; looking at what became of it", problem.message));
            unheard += 1;
            let again = unheard < UNHEARD && !self.step.time_left().is_zero();
            match self.look(goal).await.map_err(Stuck::Lost)? {
                Found::At(found) if self.same(found, next) && leg.is_of_a_tool() => {
                    // What it has brought is filled before it is run again.
                    let last = next.at == leg.parts.len();
                    let filled = match leg.direction {
                        Direction::Down => Ok(None),
                        Direction::Up => self.migrator.put_back_brought(last).await,
                    };
                    Returned::gather(&mut self.returned, filled.map_err(Stuck::Lost)?);
                    place = next;
                }
                Found::At(found) if self.same(found, next) => {
                    self.unheard = self.driver.account(self.step, leg.direction, &self.migrator.kept).await;
                    place = next;
                }
                Found::At(found) if self.same(found, place) => {
                    if !again || said_so(&problem) {
                        return Err(Stuck::At(place, nothing_changed(problem)));
                    }
                    self.step.progress("nothing was changed; trying again");
                }
                Found::Interrupted {
                    place: found,
                    leftovers,
                    invalid,
                } if self.same(found, place) => {
                    if let Err(left) = self.migrator.clear(&leftovers).await {
                        return Err(Stuck::Lost(with(problem, &left.message)));
                    }
                    if !invalid.is_empty() && !again {
                        let why = format!(
                            "index {} was left invalid; running the step again goes on",
                            invalid.join(", ")
                        );
                        return Err(Stuck::Lost(with(problem, &why)));
                    }
                    self.cut_off = !invalid.is_empty();
                    if invalid.is_empty() && (!again || said_so(&problem)) {
                        return Err(Stuck::At(place, nothing_changed(problem)));
                    }
                }
                Found::At(_) | Found::Interrupted { .. } | Found::Nowhere => return Err(Stuck::Lost(problem)),
            }
        }
    }

    /// Whether two places are the same state.
    fn same(&self, a: Place, b: Place) -> bool {
        a == b || self.map.point(a) == self.map.point(b)
    }

    /// Where the live database is, when no transaction of ours is left there.
    async fn look(&self, goal: Way) -> Result<Found, Problem> {
        let state = self.driver.settled_state(self.step).await?;
        let seen = self.driver.waypoint(state)?;
        Ok(match self.map.find(&seen, goal) {
            Found::Nowhere => return Err(self.map.nearest(&seen)),
            found @ (Found::At(_) | Found::Interrupted { .. }) => found,
        })
    }

    /// To the end of the way there, or back to where it began.
    async fn go(&mut self, from: Place) -> Result<(), Failure> {
        let (place, problem) = match self.travel(from, Way::There).await {
            Ok(()) => return Ok(()),
            Err(Stuck::Lost(problem)) => return Err(Failure::Indeterminate(problem)),
            Err(Stuck::At(place, problem)) => (place, problem),
        };
        let origin = Place::new(Way::There, 0);
        if self.same(place, origin) {
            return Err(Failure::Failed(problem));
        }
        self.step.progress(format!(
            "{}; going back from {}",
            problem.message,
            self.map.describe(place)
        ));
        self.failed = Some(place);
        match self.travel(place, Way::Back).await {
            Ok(()) => Err(Failure::Failed(with(
                problem,
                "what had been run before it was taken back",
            ))),
            Err(Stuck::At(at, why)) => {
                let stands = format!("the database stands {}: {}", self.map.describe(at), why.message);
                Err(Failure::Indeterminate(with(problem, &stands).remedy(GO_ON)))
            }
            Err(Stuck::Lost(why)) => {
                let message = format!("going back failed, too: {}", why.message);
                Err(Failure::Indeterminate(with(problem, &message).remedy(GO_ON)))
            }
        }
    }
}

const GO_ON: &str = "take away the cause and run the step again: it goes on from where the database stands";

fn with(mut problem: Problem, more: &str) -> Problem {
    problem.message.push_str("; ");
    problem.message.push_str(more);
    problem
}

/// The server, or the tool, answered that it failed: trying again would lead to the same.
fn said_so(problem: &Problem) -> bool {
    problem.code == Code::MigrationFailed || problem.code == Code::MigrationToolFailed
}

fn nothing_changed(problem: Problem) -> Problem {
    let code = if problem.code == Code::DatabaseUnclear {
        Code::MigrationFailed
    } else {
        problem.code
    };
    Problem::new(code, format!("{}; nothing was changed", problem.message)).remedy(problem.remedy)
}

impl PostgresDriver {
    pub(super) async fn do_switch(&self, step: &StepContext) -> Result<Done, Failure> {
        let sessions = self.connector.patient(step);
        let state = step.operation("read_schema", self.state(sessions)).await?;
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
            Found::At(place) => (place, false),
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
                self.migrator(step, &self.config.database, &settings, &tag)
                    .clear(&leftovers)
                    .await?;
                (place, !invalid.is_empty())
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
        journey.go(place).await?;
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
        while tool
            .still_runs(self.connector.settling(step), &self.config.database)
            .await?
        {
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
