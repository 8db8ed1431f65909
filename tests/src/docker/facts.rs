//! What `docker inspect` says of a container.

use std::collections::BTreeMap;

use anyhow::{Context, Result};
use serde_json::Value;

use super::Docker;

/// A container as it is in fact.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ContainerFacts {
    pub id: String,
    pub name: String,
    /// `sha256:…`
    pub image_id: String,
    /// The name that it was made from, like `zekka-1f2e:v2.9.0`.
    pub image: String,
    pub running: bool,
    /// On the host; 0 when it does not run.
    pub pid: u32,
    pub exit_code: i64,
    /// RFC 3339, as the engine says it. Another time: the process was started anew.
    pub started_at: String,
    /// How often the engine started it again by itself.
    pub restarts: u64,
    pub restart_policy: String,
    /// `starting`, `healthy`, `unhealthy`; `None` without a healthcheck.
    pub health: Option<String>,
    pub env: BTreeMap<String, String>,
    pub command: Vec<String>,
    pub labels: BTreeMap<String, String>,
    /// By destination.
    pub mounts: BTreeMap<String, MountFacts>,
    /// By name.
    pub networks: BTreeMap<String, NetworkFacts>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MountFacts {
    /// `bind` or `volume`.
    pub kind: String,
    /// Of the volume; anonymous ones have 64 digits.
    pub name: String,
    pub source: String,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NetworkFacts {
    pub address: String,
    /// Asked for by hand; empty when the address was the engine's choice.
    pub static_address: String,
    /// Without those that the engine makes from the container's ID.
    pub aliases: Vec<String>,
}

impl Docker {
    /// The facts of a container, by name or ID. An error when there is none.
    pub fn inspect(&self, container: &str) -> Result<ContainerFacts> {
        let text = self.run(&["inspect", "--type", "container", container])?;
        let all: Value = serde_json::from_str(&text).context("parse docker inspect")?;
        ContainerFacts::read(&all[0]).with_context(|| format!("read docker inspect of {container}"))
    }

    /// The ID of an image, by name.
    pub fn image_id(&self, image: &str) -> Result<String> {
        let out = self.run(&["image", "inspect", "--format", "{{.Id}}", image])?;
        Ok(out.trim().to_owned())
    }
}

impl ContainerFacts {
    fn read(value: &Value) -> Option<Self> {
        let (state, config) = (&value["State"], &value["Config"]);
        let id = text(&value["Id"])?;
        let pairs = config["Env"].as_array().into_iter().flatten();
        let env = pairs.filter_map(|pair| pair.as_str()?.split_once('='));
        let labels = config["Labels"].as_object().into_iter().flatten();
        let mounts = value["Mounts"].as_array().into_iter().flatten();
        let networks = value["NetworkSettings"]["Networks"].as_object().into_iter().flatten();
        Some(Self {
            name: text(&value["Name"])?.trim_start_matches('/').to_owned(),
            image_id: text(&value["Image"])?,
            image: text(&config["Image"])?,
            running: state["Running"].as_bool()?,
            pid: u32::try_from(state["Pid"].as_u64()?).ok()?,
            exit_code: state["ExitCode"].as_i64()?,
            started_at: text(&state["StartedAt"])?,
            restarts: value["RestartCount"].as_u64()?,
            restart_policy: text(&value["HostConfig"]["RestartPolicy"]["Name"]).unwrap_or_default(),
            health: text(&state["Health"]["Status"]),
            env: env.map(|(k, v)| (k.to_owned(), v.to_owned())).collect(),
            command: texts(&config["Cmd"]),
            labels: labels.filter_map(|(k, v)| Some((k.clone(), text(v)?))).collect(),
            mounts: mounts.filter_map(mount).collect(),
            networks: networks.map(|(name, n)| (name.clone(), network(n, &id))).collect(),
            id,
        })
    }
}

fn text(value: &Value) -> Option<String> {
    value.as_str().map(str::to_owned)
}

fn texts(value: &Value) -> Vec<String> {
    value.as_array().into_iter().flatten().filter_map(text).collect()
}

fn mount(value: &Value) -> Option<(String, MountFacts)> {
    let facts = MountFacts {
        kind: text(&value["Type"])?,
        name: text(&value["Name"]).unwrap_or_default(),
        source: text(&value["Source"])?,
    };
    Some((text(&value["Destination"])?, facts))
}

fn network(value: &Value, container: &str) -> NetworkFacts {
    let mut aliases = texts(&value["Aliases"]);
    aliases.retain(|alias| !container.starts_with(alias.as_str()));
    aliases.sort();
    NetworkFacts {
        address: text(&value["IPAddress"]).unwrap_or_default(),
        static_address: text(&value["IPAMConfig"]["IPv4Address"]).unwrap_or_default(),
        aliases,
    }
}
