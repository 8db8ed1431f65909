//! Explores a configuration completely and says what was found.

use std::time::{Duration, Instant};

use stateright::{Checker, HasDiscoveries, Model, Path};

use crate::action::Action;
use crate::configuration::Configuration;
use crate::coverage::Met;
use crate::model::Fleetwide;
use crate::properties::is_wanted;
use crate::world::World;

/// What an exploration came to.
#[derive(Debug)]
pub struct Report {
    pub name: &'static str,
    pub states: usize,
    /// Transitions, also to states that were known.
    pub transitions: usize,
    /// Of the longest shortest path from the beginning.
    pub depth: usize,
    /// States of the real engine.
    pub engine_states: usize,
    pub took: Duration,
    pub violations: Vec<Violation>,
    /// What should have been met, and was not.
    pub missing: Vec<String>,
    pub met: Vec<(Met, u64)>,
}

#[derive(Debug)]
pub struct Violation {
    pub property: &'static str,
    /// How many actions lead to it.
    pub steps: usize,
    pub story: String,
}

impl Report {
    pub fn is_good(&self) -> bool {
        self.violations.is_empty() && self.missing.is_empty()
    }
}

/// Breadth first, so that the depth means something. An exploration ends at the first violation.
pub fn explore(configuration: Configuration, threads: usize) -> Report {
    let begun = Instant::now();
    let name = configuration.name;
    let checker = check(&configuration, threads, None);
    let model = checker.model();
    let discoveries = checker.discoveries();
    let (mut violations, mut missing) = (Vec::new(), Vec::new());
    for property in model.properties() {
        match (is_wanted(&property), discoveries.get(property.name)) {
            (true, Some(_)) | (false, None) => {}
            (true, None) => missing.push(property.name.to_owned()),
            (false, Some(path)) => violations.push(shortest(&configuration, property.name, path.clone())),
        }
    }
    let met: Vec<(Met, u64)> = Met::ALL.iter().map(|met| (*met, model.coverage.of(*met))).collect();
    let expected = configuration.expects.iter();
    missing.extend(expected.filter(|met| model.coverage.of(**met) == 0).map(|met| met.words().to_owned()));
    if !violations.is_empty() {
        // It ended early.
        missing.clear();
    }
    Report {
        name,
        states: checker.unique_state_count(),
        transitions: checker.state_count(),
        depth: checker.max_depth(),
        engine_states: model.machine.len(),
        took: begun.elapsed(),
        violations,
        missing,
        met,
    }
}

fn check(configuration: &Configuration, threads: usize, depth: Option<usize>) -> impl Checker<Fleetwide> + use<> {
    let mut builder = Fleetwide::new(configuration.clone())
        .checker()
        .threads(threads)
        .finish_when(HasDiscoveries::AnyFailures);
    if let Some(depth) = depth {
        builder = builder.target_max_depth(depth);
    }
    builder.spawn_bfs().join()
}

/// The checker looks at states in blocks and keeps the last violation of a block. The shortest story is found by exploring
/// less and less deep, halving each time.
fn shortest(configuration: &Configuration, property: &'static str, path: Path<World, Action>) -> Violation {
    let mut best = path;
    let mut clean = 0;
    loop {
        let steps = best.clone().into_actions().len();
        let tried = clean + (steps - clean) / 2;
        if tried == clean {
            break;
        }
        // A path of so many actions has one state more, and states at the depth itself are not looked at.
        let found = check(configuration, 1, Some(tried + 2)).discoveries().remove(property);
        match found {
            Some(path) => best = path,
            None => clean = tried,
        }
    }
    let steps = best.clone().into_actions().len();
    let story = Fleetwide::new(configuration.clone()).narrate(property, best);
    Violation { property, steps, story }
}
