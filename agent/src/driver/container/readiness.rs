//! What `prepare` finds: everything that would make a later move fail, as far as it can be known by looking.

use std::collections::BTreeSet;

use bollard::models::ContainerSummary;
use rollback_proto::problem::{Code, Problem};

use super::environment::Environment;
use super::managed::Managed;
use super::networks;
use super::seen::Seen;
use crate::driver::Finding;
use crate::step::StepContext;

/// The version of the API from which on engines do not derive MAC addresses (28).
const MACS_BY_CHANCE: (usize, usize) = (1, 48);

impl Managed {
    pub async fn findings(&self, step: &StepContext) -> Result<Vec<Finding>, Problem> {
        let mut findings = Vec::new();
        let live = self.live().await?;
        if live.image() != step.from.digest && live.image() != step.to.digest {
            findings.push(Finding::blocker(self.wrong(&live, step)));
        }
        findings.extend(self.about_images(step, &live).await?);
        findings.extend(self.about_the_live_one(&live).await?);
        findings.extend(self.about_names(step).await?);
        findings.extend(self.about_neighbours(&live).await?);
        match self.environment().await {
            Ok(file) => findings.extend(self.about_environment(&live, file.as_ref())),
            Err(problem) => findings.push(Finding::blocker(problem)),
        }
        Ok(findings)
    }

    async fn about_images(&self, step: &StepContext, live: &Seen) -> Result<Vec<Finding>, Problem> {
        let mut findings = Vec::new();
        let pin = self.pin_of(&step.to.digest).await?;
        if self.engine.image(&step.to.digest).await?.is_none() {
            let can_pull = self.pull && pin.as_ref().is_some_and(|p| !p.from_registry.is_empty());
            findings.push(match can_pull {
                true => Finding::warning(self.missing(&step.to)),
                false => Finding::blocker(self.missing(&step.to)),
            });
        }
        if self.engine.image(live.image()).await?.is_none() {
            findings.push(Finding::blocker(Problem::new(
                Code::RevisionMissing,
                format!(
                    "the image {} of the live container {} is gone: what came from it cannot be told from what was asked for",
                    live.image(),
                    self.container
                ),
            )));
        }
        if let Some(reference) = pin.and_then(|p| p.reference) {
            let means = self.engine.image(&reference).await?.and_then(|i| i.id);
            if means.is_some_and(|id| id != step.to.digest) {
                findings.push(Finding::warning(
                    Problem::new(
                        Code::NameMoved,
                        format!(
                            "{reference} means another image now than when {} was recorded",
                            step.to.version
                        ),
                    )
                    .remedy("nothing: the recorded image is used, by its id"),
                ));
            }
        }
        Ok(findings)
    }

    async fn about_the_live_one(&self, live: &Seen) -> Result<Vec<Finding>, Problem> {
        let mut findings = Vec::new();
        let unfit = |why: &str, remedy: &str| {
            Finding::blocker(
                Problem::new(Code::ContainerUnfit, format!("container {} {why}", self.container)).remedy(remedy),
            )
        };
        let version = self.engine.client().await?.client_version();
        let derives_macs = (version.major_version, version.minor_version) < MACS_BY_CHANCE;
        if live.auto_remove() {
            findings.push(unfit(
                "was started with --rm: the engine would remove it, and the way back, when it is stopped",
                "replace it once by hand with one that was started without --rm",
            ));
        }
        if live.label("com.docker.swarm.task.id").is_some() {
            findings.push(unfit(
                "is a task of a swarm service, which would bring it back by itself",
                "roll the service back with docker service rollback",
            ));
        }
        if live.has_label_beginning("com.docker.compose.") {
            findings.push(Finding::warning(
                Problem::new(
                    Code::ContainerUnfit,
                    format!(
                        "container {} was made by compose, which would make it anew at the next `up`",
                        self.container
                    ),
                )
                .remedy("declare the component with kind = \"compose\""),
            ));
        }
        if let Some((network, mac)) = networks::chosen_mac(live).filter(|_| derives_macs) {
            findings.push(unfit(
                &format!("has the chosen MAC address {mac} on {network}, which is not carried over"),
                "replace it once by hand without --mac-address",
            ));
        }
        Ok(findings)
    }

    /// Values that the live container does not have from the env file.
    fn about_environment(&self, live: &Seen, file: Option<&Environment>) -> Option<Finding> {
        let (file, path) = (file?, self.env_file.as_ref()?);
        let (mut other, shared) = (file.names(), file.names_shared_with(live));
        other.retain(|name| !shared.contains(name));
        if !live.running() || other.is_empty() {
            return None;
        }
        let problem = Problem::new(
            Code::ContainerUnfit,
            format!(
                "container {} runs with other values than {} gives for {}: the file was changed since it was started, or the values were given beside it",
                self.container,
                path.display(),
                Vec::from_iter(other).join(", ")
            ),
        );
        Some(Finding::warning(problem.remedy(
            "its successor gets the file's values; write what was given with -e into the file, or take env_file out of the component",
        )))
    }

    async fn about_names(&self, step: &StepContext) -> Result<Vec<Finding>, Problem> {
        let names = self.names(&step.rollback_id)?;
        let notes = self.notes().await?;
        let mut findings = Vec::new();
        for name in [&names.staged, &names.before] {
            if let Some(other) = self.look(name).await?
                && !notes.ours(&other, &self.component)
            {
                findings.push(Finding::blocker(
                    Problem::new(
                        Code::ContainerUnfit,
                        format!(
                            "the name {name} is taken by container {}, which is not ours",
                            other.short_id()
                        ),
                    )
                    .remedy(format!("rename or remove it: docker rename {name} …")),
                ));
            }
        }
        Ok(findings)
    }

    /// Other containers that stand in the way, or would be left behind.
    async fn about_neighbours(&self, live: &Seen) -> Result<Vec<Finding>, Problem> {
        let mut findings = Vec::new();
        let ports = host_ports(live);
        let shared = [
            format!("container:{}", live.id()),
            format!("container:{}", self.container),
        ];
        for other in self.list().await? {
            if other.id.as_deref() == Some(live.id()) {
                findings.extend(linked_by(&other).map(|guest| {
                    Finding::blocker(
                        Problem::new(
                            Code::ContainerUnfit,
                            format!(
                                "container {guest} has a link (--link) to {}, which would stay with the old container",
                                self.container
                            ),
                        )
                        .remedy("put both into a network of their own, where the name is enough, and make it anew without --link"),
                    )
                }));
                continue;
            }
            let mode = other.host_config.as_ref().and_then(|h| h.network_mode.clone());
            if mode.is_some_and(|mode| shared.contains(&mode)) {
                findings.push(Finding::blocker(
                    Problem::new(
                        Code::ContainerUnfit,
                        format!(
                            "container {} lives in the network of {}, and would lose it",
                            name_of(&other),
                            self.container
                        ),
                    )
                    .remedy("give it a network of its own, or roll both back with kind = \"compose\""),
                ));
            }
            let taken = other
                .ports
                .iter()
                .flatten()
                .filter_map(|p| Some((p.public_port?, p.typ?.to_string())))
                .find(|port| ports.contains(port));
            if let Some((port, _)) = taken {
                findings.push(Finding::blocker(
                    Problem::new(
                        Code::ContainerUnfit,
                        format!(
                            "port {port} of the host, which {} publishes, is in use by container {}",
                            self.container,
                            name_of(&other)
                        ),
                    )
                    .remedy("stop that container"),
                ));
            }
        }
        Ok(findings)
    }
}

fn name_of(container: &ContainerSummary) -> String {
    let names = container.names.as_deref().unwrap_or_default();
    match names.first() {
        Some(name) => name.trim_start_matches('/').to_owned(),
        None => container.id.clone().unwrap_or_default(),
    }
}

/// Containers that are linked to this one: the engine lists it as `/GUEST/ALIAS`, too.
fn linked_by(container: &ContainerSummary) -> impl Iterator<Item = &str> {
    let names = container.names.iter().flatten();
    names.filter_map(|name| name.trim_start_matches('/').split_once('/').map(|(guest, _)| guest))
}

/// Ports of the host, with their protocol, that the container asks for by number, where it asks for them on every address: on two addresses of
/// one host, one port may be used twice.
fn host_ports(container: &Seen) -> BTreeSet<(u16, String)> {
    let bindings = container.host().and_then(|h| h.port_bindings.as_ref());
    bindings
        .into_iter()
        .flatten()
        .flat_map(|(inner, bindings)| bindings.iter().flatten().map(move |binding| (inner, binding)))
        .filter(|(_, binding)| matches!(binding.host_ip.as_deref(), None | Some("" | "0.0.0.0" | "::")))
        .filter_map(|(inner, binding)| {
            let port = binding.host_port.as_deref()?.parse().ok().filter(|port| *port != 0)?;
            let protocol = inner.split_once('/').map_or("tcp", |(_, protocol)| protocol);
            Some((port, protocol.to_owned()))
        })
        .collect()
}
