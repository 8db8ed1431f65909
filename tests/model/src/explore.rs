//! Explores a configuration completely and says what was found.

use std::time::{Duration, Instant};

use stateright::{Checker, HasDiscoveries, Model};

use crate::configuration::Configuration;
use crate::coverage::Met;
use crate::model::Fleetwide;
use crate::properties::is_wanted;

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

/// Breadth first, so that the story of a violation is a shortest one (with one thread) and the depth means something. An
/// exploration ends soon after the first violation.
pub fn explore(configuration: Configuration, threads: usize) -> Report {
    let begun = Instant::now();
    let checker = Fleetwide::new(configuration)
        .checker()
        .threads(threads)
        .finish_when(HasDiscoveries::AnyFailures)
        .spawn_bfs()
        .join();
    let model = checker.model();
    let mut discoveries = checker.discoveries();
    let (mut violations, mut missing) = (Vec::new(), Vec::new());
    for property in model.properties() {
        match (is_wanted(&property), discoveries.remove(property.name)) {
            (true, Some(_)) | (false, None) => {}
            (true, None) => missing.push(property.name.to_owned()),
            (false, Some(path)) => violations.push(Violation {
                property: property.name,
                steps: path.clone().into_actions().len(),
                story: model.narrate(property.name, path),
            }),
        }
    }
    let met: Vec<(Met, u64)> = Met::ALL.iter().map(|met| (*met, model.coverage.of(*met))).collect();
    let expected = model.configuration.expects.iter();
    missing.extend(
        expected
            .filter(|met| model.coverage.of(**met) == 0)
            .map(|met| met.words().to_owned()),
    );
    if !violations.is_empty() {
        // It ended early.
        missing.clear();
    }
    Report {
        name: model.configuration.name,
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
