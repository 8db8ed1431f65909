//! The file's text into [`Settings`]. Every error keeps its line: the parts are read from the parser's own tree, which
//! knows where each value stands.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::PathBuf;

use rollback_proto::names::check_name;
use rollback_proto::problem::Problem;
use rollback_proto::telemetry;
use serde::Deserialize;
use serde::de::IgnoredAny;
use toml::Spanned;
use toml::de::{DeTable, DeValue, ValueDeserializer};

use super::component::{Component, KINDS, Kind};
use super::mistake::line_of;
use super::{Mistake, Settings};
use crate::check::Check;
use crate::driver::checked::NamedCheck;

/// Every key outside of `[[component]]` and `[[check]]`.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Top {
    name: Spanned<String>,
    #[serde(default = "default_listen")]
    listen: SocketAddr,
    advertise: Option<Spanned<String>>,
    coordinators: Spanned<Vec<Spanned<String>>>,
    #[serde(default = "default_state")]
    state: PathBuf,
    #[serde(default = "default_pki")]
    pki: PathBuf,
    #[serde(default)]
    labels: BTreeMap<Spanned<String>, String>,
    #[serde(default)]
    telemetry: Telemetry,
    // Read elsewhere; here for the list of known keys.
    #[serde(default, rename = "component")]
    _component: Option<IgnoredAny>,
    #[serde(default, rename = "check")]
    _check: Option<IgnoredAny>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields, default)]
struct Telemetry {
    otlp: Option<String>,
    log: String,
    json: bool,
}

impl Default for Telemetry {
    fn default() -> Self {
        Self {
            otlp: None,
            log: "info".to_owned(),
            json: false,
        }
    }
}

fn default_listen() -> SocketAddr {
    SocketAddr::from(([0, 0, 0, 0], 7445))
}

fn default_state() -> PathBuf {
    PathBuf::from("/var/lib/rollback-agent")
}

fn default_pki() -> PathBuf {
    PathBuf::from("/etc/rollback-agent/pki")
}

pub(super) fn read(text: &str) -> Result<Settings, Mistake> {
    let wrong = |error: toml::de::Error| Mistake::from_toml(text, &error);
    let mut root = DeTable::parse(text).map_err(wrong)?;
    let components = tables(text, "component", root.get_mut().remove("component"))?;
    let checks = tables(text, "check", root.get_mut().remove("check"))?;
    let components = read_components(text, components)?;
    let top = Top::deserialize(toml::Deserializer::from(root)).map_err(wrong)?;
    let bad_name = |span: usize, problem: Problem| Mistake::at(line_of(text, span), problem.message);

    check_name("host", top.name.get_ref()).map_err(|problem| bad_name(top.name.span().start, problem))?;
    for label in top.labels.keys() {
        check_name("label", label.get_ref()).map_err(|problem| bad_name(label.span().start, problem))?;
    }
    if top.coordinators.get_ref().is_empty() {
        let line = line_of(text, top.coordinators.span().start);
        return Err(Mistake::at(
            line,
            "coordinators is empty: name at least one, as host:port",
        ));
    }
    for address in top.coordinators.get_ref().iter().chain(&top.advertise) {
        check_address(address.get_ref()).map_err(|why| Mistake::at(line_of(text, address.span().start), why))?;
    }
    for (key, path) in [("state", &top.state), ("pki", &top.pki)] {
        if !path.is_absolute() {
            return Err(Mistake::whole(format!(
                "{key} must be an absolute path, not {:?}",
                path.display().to_string()
            )));
        }
    }
    let name = top.name.into_inner();
    Ok(Settings {
        telemetry: telemetry::Settings {
            service: "rollback-agent",
            instance: name.clone(),
            otlp_endpoint: top.telemetry.otlp,
            log: top.telemetry.log,
            json: top.telemetry.json,
        },
        name,
        listen: top.listen,
        advertise: top.advertise.map(Spanned::into_inner),
        coordinators: top
            .coordinators
            .into_inner()
            .into_iter()
            .map(Spanned::into_inner)
            .collect(),
        state: top.state,
        pki: top.pki,
        labels: top
            .labels
            .into_iter()
            .map(|(key, value)| (key.into_inner(), value))
            .collect(),
        checks: read_checks(text, checks, &components)?,
        components,
    })
}

type Tables<'t> = Vec<Spanned<DeTable<'t>>>;

/// The tables of `[[key]]`.
fn tables<'t>(text: &str, key: &str, value: Option<Spanned<DeValue<'t>>>) -> Result<Tables<'t>, Mistake> {
    let Some(value) = value else { return Ok(Vec::new()) };
    let not_tables = |at: usize| Mistake::at(line_of(text, at), format!("write [[{key}]], once for each {key}"));
    let span = value.span();
    let DeValue::Array(items) = value.into_inner() else {
        return Err(not_tables(span.start));
    };
    items
        .into_iter()
        .map(|item| {
            let span = item.span();
            match item.into_inner() {
                DeValue::Table(table) => Ok(Spanned::new(span, table)),
                DeValue::String(_)
                | DeValue::Integer(_)
                | DeValue::Float(_)
                | DeValue::Boolean(_)
                | DeValue::Datetime(_)
                | DeValue::Array(_) => Err(not_tables(span.start)),
            }
        })
        .collect()
}

fn read_components(text: &str, tables: Tables<'_>) -> Result<Vec<Component>, Mistake> {
    let mut components: Vec<Component> = Vec::with_capacity(tables.len());
    for mut table in tables {
        let line = line_of(text, table.span().start);
        let name = take_name(text, "component", &mut table)?;
        if let Some(other) = components.iter().find(|c| c.name == name) {
            return Err(Mistake::at(
                line,
                format!("component {name} is declared twice, first in line {}", other.line),
            ));
        }
        let within = format!("component {name}");
        let kind = take_string(text, &within, "kind", &mut table)?;
        let kind_line = line_of(text, kind.span().start);
        let kind = kind.into_inner();
        let Some(read) = Kind::read(&kind, keys(table)) else {
            return Err(Mistake::at(
                kind_line,
                format!("{within}: there is no kind {kind:?}; there are {}", KINDS.join(", ")),
            )
            .meant(&kind, KINDS));
        };
        let kind = read.map_err(|error| Mistake::in_part(text, &within, line, &error))?;
        components.push(Component { name, kind, line });
    }
    Ok(components)
}

fn read_checks(text: &str, tables: Tables<'_>, components: &[Component]) -> Result<Vec<NamedCheck>, Mistake> {
    let mut checks: Vec<NamedCheck> = Vec::with_capacity(tables.len());
    for mut table in tables {
        let line = line_of(text, table.span().start);
        let name = take_name(text, "check", &mut table)?;
        let within = format!("check {name}");
        let component = take_string(text, &within, "component", &mut table)?;
        let component_line = line_of(text, component.span().start);
        let component = component.into_inner();
        if !components.iter().any(|c| c.name == component) {
            let known = components.iter().map(|c| c.name.as_str());
            let message = format!("{within}: {component:?} is not a component of this host");
            return Err(Mistake::at(component_line, message).meant(&component, known));
        }
        let check = Check::deserialize(keys(table)).map_err(|error| Mistake::in_part(text, &within, line, &error))?;
        if checks.iter().any(|c| c.name == name) {
            return Err(Mistake::at(line, format!("{within} is declared twice")));
        }
        checks.push(NamedCheck { name, component, check });
    }
    Ok(checks)
}

fn keys(table: Spanned<DeTable<'_>>) -> ValueDeserializer<'_> {
    let span = table.span();
    Spanned::new(span, DeValue::Table(table.into_inner())).into()
}

fn take_name(text: &str, what: &str, table: &mut Spanned<DeTable<'_>>) -> Result<String, Mistake> {
    let name = take_string(text, what, "name", table)?;
    check_name(what, name.get_ref())
        .map_err(|problem| Mistake::at(line_of(text, name.span().start), problem.message))?;
    Ok(name.into_inner())
}

fn take_string(
    text: &str,
    within: &str,
    key: &str,
    table: &mut Spanned<DeTable<'_>>,
) -> Result<Spanned<String>, Mistake> {
    let line = line_of(text, table.span().start);
    let value = table
        .get_mut()
        .remove(key)
        .ok_or_else(|| Mistake::at(line, format!("{within}: the key `{key}` is missing")))?;
    let span = value.span();
    String::deserialize(ValueDeserializer::from(value))
        .map(|string| Spanned::new(span, string))
        .map_err(|error| Mistake::in_part(text, &format!("{within}: `{key}`"), line, &error))
}

fn check_address(address: &str) -> Result<(), String> {
    let port = address
        .rsplit_once(':')
        .filter(|(host, _)| !host.is_empty())
        .and_then(|(_, port)| port.parse::<u16>().ok());
    match port {
        Some(port) if port > 0 && !address.contains(['/', '@', ' ']) => Ok(()),
        Some(_) | None => Err(format!("{address:?} is not host:port")),
    }
}
