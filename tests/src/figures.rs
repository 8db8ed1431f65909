//! Durations of a rollback, read from its report (`rollback show ID -o json`).
//!
//! Overhead is what a rollback takes beyond the raw operations (pg_dump, restore, migration, process start, reload …)
//! of its critical path. The path is found from the steps' times alone: the step that ended last, before it the step
//! that ended last before that one began, and so on.
//!
//! Some operations only look (read the schema, find the tools): the host does them, but somebody who worked by hand might
//! not. So there is a second, stricter figure, in which looking counts as overhead, too.

use anyhow::{Context, Result};
use comfy_table::{CellAlignment, Table, presets};
use jiff::Timestamp;
use serde_json::{Value, json};

/// Raw operations of a step that are named, the longest first.
const SHOWN: usize = 4;

/// Operations that only look.
const LOOKS: [&str; 4] = ["look_", "read_", "find_tools", "observe"];

#[derive(Clone, Debug, PartialEq)]
pub struct Phase {
    pub name: String,
    pub ms: f64,
    /// Raw operations on the critical path inside this phase.
    pub raw_ms: f64,
}

#[derive(Clone, Debug)]
pub struct Step {
    pub phase: String,
    pub host: String,
    pub component: String,
    pub action: String,
    begun: Timestamp,
    ended: Timestamp,
    /// Name and milliseconds.
    pub operations: Vec<(String, f64)>,
}

impl Step {
    fn raw_ms(&self) -> f64 {
        self.operations.iter().map(|(_, ms)| ms).sum()
    }

    fn looks_ms(&self) -> f64 {
        let looks = |name: &str| LOOKS.iter().any(|look| name.starts_with(look));
        self.operations
            .iter()
            .filter(|(name, _)| looks(name))
            .map(|(_, ms)| ms)
            .sum()
    }

    fn took_ms(&self) -> f64 {
        millis(self.begun, self.ended)
    }
}

#[derive(Clone, Debug)]
pub struct Figures {
    pub total_ms: f64,
    pub phases: Vec<Phase>,
    pub critical: Vec<Step>,
}

impl Figures {
    pub fn of_report(report: &Value) -> Result<Self> {
        let (begun, ended) = span(report)?.context("the rollback has ended")?;
        let steps = report["steps"].as_array().context("the report lists steps")?;
        let steps = steps.iter().map(step).collect::<Result<Vec<_>>>()?;
        let critical = critical_path(steps.into_iter().flatten().collect());
        let mut phases = Vec::new();
        for phase in report["phases"].as_array().context("the report lists phases")? {
            let name = phase["name"].as_str().context("a phase has a name")?.to_owned();
            let Some((begun, ended)) = span(phase)? else { continue };
            let raw_ms = critical.iter().filter(|s| s.phase == name).map(Step::raw_ms).sum();
            phases.push(Phase {
                name,
                ms: millis(begun, ended),
                raw_ms,
            });
        }
        Ok(Self {
            total_ms: millis(begun, ended),
            phases,
            critical,
        })
    }

    pub fn raw_ms(&self) -> f64 {
        self.critical.iter().map(Step::raw_ms).sum()
    }

    /// Share of the total that is the program's own.
    pub fn overhead_ratio(&self) -> f64 {
        (self.total_ms - self.raw_ms()) / self.total_ms
    }

    /// The same with looking counted as overhead.
    pub fn strict_overhead_ratio(&self) -> f64 {
        let looks: f64 = self.critical.iter().map(Step::looks_ms).sum();
        (self.total_ms - self.raw_ms() + looks) / self.total_ms
    }

    pub fn to_json(&self) -> Value {
        let phases: serde_json::Map<String, Value> = self
            .phases
            .iter()
            .map(|p| (p.name.clone(), json!(round(p.ms))))
            .collect();
        json!({
            "total_ms": round(self.total_ms),
            "raw_operations_ms": round(self.raw_ms()),
            "overhead_ratio": (self.overhead_ratio() * 1000.0).round() / 1000.0,
            "strict_overhead_ratio": (self.strict_overhead_ratio() * 1000.0).round() / 1000.0,
            "phases_ms": phases,
        })
    }

    /// Phases, and the steps of the critical path with their raw operations.
    pub fn tables(&self) -> String {
        let mut phases = table(&["PHASE", "TOOK ms", "RAW OPERATIONS ms"]);
        for phase in &self.phases {
            phases.add_row([
                phase.name.clone(),
                round(phase.ms).to_string(),
                round(phase.raw_ms).to_string(),
            ]);
        }
        phases.add_row([
            "total".to_owned(),
            round(self.total_ms).to_string(),
            round(self.raw_ms()).to_string(),
        ]);
        let mut steps = table(&["CRITICAL PATH", "TOOK ms", "RAW OPERATIONS"]);
        for step in &self.critical {
            let mut operations = step.operations.clone();
            operations.sort_by(|a, b| b.1.total_cmp(&a.1));
            let more = operations.len().saturating_sub(SHOWN);
            operations.truncate(SHOWN);
            let mut shown: Vec<String> = operations.iter().map(|(n, ms)| format!("{n} {}", round(*ms))).collect();
            if more > 0 {
                shown.push(format!("{more} more"));
            }
            let name = format!("{} {}/{} {}", step.phase, step.host, step.component, step.action);
            steps.add_row([name, round(step.took_ms()).to_string(), shown.join(", ")]);
        }
        for table in [&mut phases, &mut steps] {
            if let Some(column) = table.column_mut(1) {
                column.set_cell_alignment(CellAlignment::Right);
            }
        }
        if let Some(column) = phases.column_mut(2) {
            column.set_cell_alignment(CellAlignment::Right);
        }
        format!("{phases}\n\n{steps}")
    }
}

fn table(header: &[&str]) -> Table {
    let mut table = Table::new();
    table.load_style(presets::NOTHING).set_header(header);
    table
}

fn round(ms: f64) -> f64 {
    // The sum of nothing is -0.
    (ms * 10.0).round() / 10.0 + 0.0
}

fn millis(from: Timestamp, to: Timestamp) -> f64 {
    to.duration_since(from).as_secs_f64() * 1000.0
}

/// `started_at` and `ended_at`; `None` when one is absent.
fn span(value: &Value) -> Result<Option<(Timestamp, Timestamp)>> {
    let time = |key: &str| -> Result<Option<Timestamp>> {
        let Some(text) = value[key].as_str() else {
            return Ok(None);
        };
        text.parse()
            .map(Some)
            .with_context(|| format!("{key} is a time: {text}"))
    };
    Ok(time("started_at")?.zip(time("ended_at")?))
}

fn step(value: &Value) -> Result<Option<Step>> {
    let Some((begun, ended)) = span(value)? else {
        return Ok(None);
    };
    let text = |key: &str| value[key].as_str().unwrap_or_default().to_owned();
    let operations = value["operations"].as_array().cloned().unwrap_or_default();
    let operation = |o: &Value| -> Result<(String, f64)> {
        let name = o["name"].as_str().context("an operation has a name")?;
        let ms = o["ms"]
            .as_f64()
            .with_context(|| format!("operation {name} has a duration: {o}"))?;
        Ok((name.to_owned(), ms))
    };
    Ok(Some(Step {
        phase: text("phase"),
        host: text("host"),
        component: text("component"),
        action: text("action"),
        begun,
        ended,
        operations: operations.iter().map(operation).collect::<Result<_>>()?,
    }))
}

/// In the order of time.
fn critical_path(mut steps: Vec<Step>) -> Vec<Step> {
    steps.sort_by_key(|s| s.ended);
    let mut path: Vec<Step> = Vec::new();
    while let Some(step) = steps.pop() {
        if path.last().is_none_or(|next| step.ended <= next.begun) {
            path.push(step);
        }
    }
    path.reverse();
    path
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(ms: i64) -> String {
        Timestamp::from_millisecond(1_790_000_000_000 + ms)
            .expect("a time")
            .to_string()
    }

    fn step(name: &str, phase: &str, from: i64, to: i64, raw: f64) -> Value {
        json!({
            "host": name, "component": "c", "action": "switch", "phase": phase,
            "started_at": at(from), "ended_at": at(to),
            "operations": [{ "name": "work", "ms": raw }],
        })
    }

    #[test]
    fn the_path_goes_through_the_slower_of_parallel_steps() {
        let report = json!({
            "started_at": at(0),
            "ended_at": at(100),
            "phases": [
                { "name": "stage", "started_at": at(0), "ended_at": at(60) },
                { "name": "app", "started_at": at(60), "ended_at": at(100) },
                { "name": "proxy" },
            ],
            "steps": [
                step("quick", "stage", 2, 20, 10.0),
                step("slow", "stage", 2, 58, 50.0),
                step("last", "app", 61, 98, 30.0),
                { "host": "unfinished", "phase": "app", "started_at": at(99) },
            ],
        });
        let figures = Figures::of_report(&report).expect("figures");
        let hosts: Vec<&str> = figures.critical.iter().map(|s| s.host.as_str()).collect();
        assert_eq!(hosts, ["slow", "last"]);
        assert!(
            (figures.overhead_ratio() - 0.2).abs() < 1e-9,
            "{}",
            figures.overhead_ratio()
        );
        assert_eq!(figures.phases.len(), 2);
        assert!((figures.phases[0].raw_ms - 50.0).abs() < 1e-9);
    }
}
