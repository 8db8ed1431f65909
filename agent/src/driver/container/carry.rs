//! What the successor of a container is made of: everything that somebody asked for when the live one was made, and
//! nothing that only came from the old image.
//!
//! The engine writes an image's defaults into every container made from it and does not say which is which. So the live
//! container is compared with its own image: what is equal is left out, and the new image's defaults take its place.
//!
//! Invariants:
//! - A volume without a name is carried over by the name that the engine gave it: its data stays with the component.
//! - Labels by which compose recognises its work are carried over only where they stay true.
//! - The successor has no restart policy until it is started: a policy lets the engine start a container by itself, and
//!   here only `start` does.

use std::collections::{BTreeSet, HashMap};

use bollard::models::{
    ContainerConfig, ContainerCreateBody, HealthConfig, HostConfig, ImageConfig, MountType, NetworkingConfig,
};

use super::environment::Environment;
use super::networks;
use super::seen::{OUR_LABELS, Seen, never};

/// Labels of compose that say something about the container's image or about compose's own work on it.
const UNTRUE_OF_A_SUCCESSOR: [&str; 3] = [
    "com.docker.compose.config-hash",
    "com.docker.compose.image",
    "com.docker.compose.replace",
];

/// What the engine calls a mount that is a volume.
const VOLUME: &str = "volume";

/// What besides the live container goes into its successor.
pub struct Successor<'a> {
    /// Reference or id of its image.
    pub image: &'a str,
    pub labels: HashMap<String, String>,
    /// The env file's content now.
    pub environment: Option<&'a Environment>,
    /// Variables of the live container that came from an earlier content of the env file.
    pub env_names: &'a BTreeSet<String>,
}

pub fn body(live: &Seen, old_image: &ImageConfig, successor: Successor<'_>) -> ContainerCreateBody {
    let config = live.config().cloned().unwrap_or_default();
    let mode = live.network_mode();
    let joined = mode.starts_with("container:");
    let endpoints = networks::endpoints(live);
    let first = networks::first(live, &endpoints).and_then(|name| endpoints.get(&name).map(|e| (name, e.clone())));
    let (entrypoint, cmd) = command(&config, old_image);
    // With a joined network these belong to the other container, and the engine refuses them.
    let own = |value: Option<String>| value.filter(|v| !joined && !v.is_empty());
    let uts_of_host = live.host().and_then(|h| h.uts_mode.as_deref()) == Some("host");
    ContainerCreateBody {
        hostname: own(config.hostname.clone()).filter(|h| h != live.short_id() && !uts_of_host),
        domainname: own(config.domainname.clone()).filter(|_| !uts_of_host),
        user: differing(&config.user, &old_image.user),
        attach_stdin: config.attach_stdin,
        attach_stdout: config.attach_stdout,
        attach_stderr: config.attach_stderr,
        exposed_ports: added(&config.exposed_ports, &old_image.exposed_ports).filter(|_| !joined),
        tty: config.tty,
        open_stdin: config.open_stdin,
        stdin_once: config.stdin_once,
        env: Some(environment(&config, old_image, &successor)),
        cmd,
        healthcheck: config
            .healthcheck
            .as_ref()
            .and_then(|own| health(own, old_image.healthcheck.as_ref())),
        args_escaped: None,
        image: Some(successor.image.to_owned()),
        volumes: added(&config.volumes, &old_image.volumes),
        working_dir: differing(&config.working_dir, &old_image.working_dir),
        entrypoint,
        network_disabled: config.network_disabled,
        on_build: None,
        labels: Some(labels(&config, old_image, successor.labels)),
        stop_signal: differing(&config.stop_signal, &old_image.stop_signal),
        stop_timeout: config.stop_timeout,
        shell: config.shell.clone().filter(|s| old_image.shell.as_ref() != Some(s)),
        host_config: Some(host(live)),
        networking_config: first.map(|(name, endpoint)| NetworkingConfig {
            endpoints_config: Some(HashMap::from([(name, endpoint)])),
        }),
    }
}

fn differing(own: &Option<String>, image: &Option<String>) -> Option<String> {
    own.clone()
        .filter(|v| !v.is_empty() && v != image.as_deref().unwrap_or_default())
}

fn added(own: &Option<Vec<String>>, image: &Option<Vec<String>>) -> Option<Vec<String>> {
    let image = image.as_deref().unwrap_or_default();
    let rest: Vec<String> = own.iter().flatten().filter(|v| !image.contains(v)).cloned().collect();
    (!rest.is_empty()).then_some(rest)
}

/// An entrypoint that somebody gave takes the image's command away, so a command beside it was given, too.
fn command(config: &ContainerConfig, image: &ImageConfig) -> (Option<Vec<String>>, Option<Vec<String>>) {
    let given = |own: &Option<Vec<String>>| own.clone().filter(|v| !v.is_empty());
    let (entrypoint, cmd) = (given(&config.entrypoint), given(&config.cmd));
    if entrypoint != given(&image.entrypoint) {
        // The engine's way of saying "none, whatever the image has".
        return (Some(entrypoint.unwrap_or_else(|| vec![String::new()])), cmd);
    }
    (None, cmd.filter(|cmd| Some(cmd) != image.cmd.as_ref()))
}

fn environment(config: &ContainerConfig, image: &ImageConfig, successor: &Successor<'_>) -> Vec<String> {
    let defaults = image.env.as_deref().unwrap_or_default();
    let from_file = successor.environment.map(Environment::names).unwrap_or_default();
    let name_of = |line: &str| line.split_once('=').map_or(line, |(name, _)| name).to_owned();
    let mut lines: Vec<String> = config
        .env
        .iter()
        .flatten()
        .filter(|line| !defaults.contains(line))
        .filter(|line| {
            let name = name_of(line);
            successor.environment.is_none() || !(from_file.contains(&name) || successor.env_names.contains(&name))
        })
        .cloned()
        .collect();
    lines.extend(successor.environment.into_iter().flat_map(Environment::lines));
    lines
}

/// The engine takes each part that is not given from the image.
fn health(own: &HealthConfig, image: Option<&HealthConfig>) -> Option<HealthConfig> {
    let none = HealthConfig::default();
    let image = image.unwrap_or(&none);
    let number = |own: Option<i64>, image: Option<i64>| own.filter(|n| *n != 0 && Some(*n) != image);
    let rest = HealthConfig {
        test: own.test.clone().filter(|t| Some(t) != image.test.as_ref()),
        interval: number(own.interval, image.interval),
        timeout: number(own.timeout, image.timeout),
        retries: number(own.retries, image.retries),
        start_period: number(own.start_period, image.start_period),
        start_interval: number(own.start_interval, image.start_interval),
    };
    (rest != HealthConfig::default()).then_some(rest)
}

fn labels(config: &ContainerConfig, image: &ImageConfig, ours: HashMap<String, String>) -> HashMap<String, String> {
    let defaults = image.labels.clone().unwrap_or_default();
    let mut all: HashMap<String, String> = config
        .labels
        .iter()
        .flatten()
        .filter(|(name, value)| defaults.get(*name) != Some(value))
        .filter(|(name, _)| !name.starts_with(OUR_LABELS) && !UNTRUE_OF_A_SUCCESSOR.contains(&name.as_str()))
        .map(|(name, value)| (name.clone(), value.clone()))
        .collect();
    all.extend(ours);
    all
}

fn host(live: &Seen) -> HostConfig {
    let mut host = live.host().cloned().unwrap_or_default();
    host.restart_policy = Some(never());
    host.container_id_file = None;
    host.links = host.links.map(|links| links.iter().map(|l| link(l)).collect());
    name_volumes(live, &mut host);
    host
}

/// Inspected as `/db:/app/alias`, asked for as `db:alias`.
fn link(text: &str) -> String {
    match text.split_once(':') {
        Some((target, alias)) => format!(
            "{}:{}",
            target.trim_start_matches('/'),
            alias.rsplit('/').next().unwrap_or(alias)
        ),
        None => text.to_owned(),
    }
}

/// A path in a container, written as the engine writes it of a mount: without the slash at its end that was asked for.
fn as_mounted(path: &str) -> String {
    match path.trim_end_matches('/') {
        "" => "/".to_owned(),
        path => path.to_owned(),
    }
}

/// Gives every volume that was asked for without a name the name that it has.
fn name_volumes(live: &Seen, host: &mut HostConfig) {
    let mut covered: BTreeSet<String> = host
        .binds
        .iter()
        .flatten()
        .filter(|bind| bind.contains(':'))
        .filter_map(|bind| bind.split(':').nth(1).map(as_mounted))
        .collect();
    let mounted = live.0.mounts.as_deref().unwrap_or_default();
    let volume_at = |target: &str| {
        mounted
            .iter()
            .find(|m| m.typ.as_deref() == Some(VOLUME) && m.destination.as_deref() == Some(target))
    };
    for mount in host.mounts.iter_mut().flatten() {
        let Some(target) = mount.target.as_deref().map(as_mounted) else {
            continue;
        };
        let nameless = mount.source.as_deref().unwrap_or_default().is_empty();
        if mount.typ == Some(MountType::VOLUME) && nameless {
            mount.source = volume_at(&target).and_then(|m| m.name.clone());
        }
        covered.insert(target);
    }
    let mut binds = host.binds.take().unwrap_or_default();
    // A path alone asks for a nameless volume; it is named below.
    binds.retain(|bind| bind.contains(':'));
    for mount in mounted {
        let (Some(VOLUME), Some(name), Some(destination)) = (mount.typ.as_deref(), &mount.name, &mount.destination)
        else {
            continue;
        };
        if covered.insert(destination.clone()) {
            let mode = if mount.rw == Some(false) { ":ro" } else { "" };
            binds.push(format!("{name}:{destination}{mode}"));
        }
    }
    host.binds = (!binds.is_empty()).then_some(binds);
}
