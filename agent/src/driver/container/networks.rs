//! Networks of a container: what is carried over to its successor, and making a stopped container have exactly that.
//!
//! A stopped container holds no address: connecting it only writes down what it gets when it is started. So a successor
//! has all its networks, with the static addresses of the live container, long before the switch.
//!
//! Traps: the engine adds the short id of a container to its aliases; the default bridge takes neither aliases nor
//! addresses; engines before 25 take one network at most when a container is made.

use std::collections::BTreeMap;

use bollard::models::{EndpointIpamConfig, EndpointSettings};

use super::seen::Seen;

const DEFAULT_BRIDGE: &str = "bridge";

/// The endpoints of a container as somebody asked for them, by network.
pub fn endpoints(container: &Seen) -> BTreeMap<String, EndpointSettings> {
    let mode = container.network_mode();
    if mode == "host" || mode == "none" || mode.starts_with("container:") {
        return BTreeMap::new();
    }
    container
        .networks()
        .into_iter()
        .flatten()
        .map(|(name, endpoint)| (name.clone(), asked_for(container, name, endpoint)))
        .collect()
}

fn asked_for(container: &Seen, network: &str, endpoint: &EndpointSettings) -> EndpointSettings {
    if network == DEFAULT_BRIDGE {
        return EndpointSettings::default();
    }
    let mut aliases: Vec<String> = endpoint.aliases.clone().unwrap_or_default();
    aliases.retain(|alias| alias != container.short_id() && alias != container.id());
    aliases.sort();
    aliases.dedup();
    let mut links = endpoint.links.clone().unwrap_or_default();
    links.sort();
    EndpointSettings {
        ipam_config: endpoint.ipam_config.clone().and_then(address),
        aliases: (!aliases.is_empty()).then_some(aliases),
        links: (!links.is_empty()).then_some(links),
        driver_opts: endpoint.driver_opts.clone().filter(|o| !o.is_empty()),
        gw_priority: endpoint.gw_priority.filter(|p| *p != 0),
        ..EndpointSettings::default()
    }
}

fn address(config: EndpointIpamConfig) -> Option<EndpointIpamConfig> {
    let given = |text: Option<String>| text.filter(|t| !t.is_empty());
    let config = EndpointIpamConfig {
        ipv4_address: given(config.ipv4_address),
        ipv6_address: given(config.ipv6_address),
        link_local_ips: config.link_local_ips.filter(|ips| !ips.is_empty()),
    };
    (config != EndpointIpamConfig::default()).then_some(config)
}

/// The network that the container is made with: the one that its mode names.
pub fn first(container: &Seen, endpoints: &BTreeMap<String, EndpointSettings>) -> Option<String> {
    let mode = match container.network_mode() {
        "" | "default" => DEFAULT_BRIDGE,
        mode => mode,
    };
    if endpoints.contains_key(mode) {
        return Some(mode.to_owned());
    }
    // A mode may also be a network's id.
    let by_id = container
        .networks()
        .into_iter()
        .flatten()
        .find(|(_, endpoint)| endpoint.network_id.as_deref() == Some(mode));
    by_id.map(|(name, _)| name.clone())
}

/// The MAC address on a network that somebody chose. Engines before 28 derive theirs from the address; later ones make
/// theirs by chance, where what was chosen cannot be told.
pub fn chosen_mac(container: &Seen) -> Option<(String, String)> {
    let endpoints = container.networks().into_iter().flatten();
    endpoints
        .filter_map(|(network, endpoint)| {
            let mac = endpoint.mac_address.as_deref().filter(|m| !m.is_empty())?;
            let address: std::net::Ipv4Addr = endpoint.ip_address.as_deref()?.parse().ok()?;
            let [a, b, c, d] = address.octets();
            let derived = format!("02:42:{a:02x}:{b:02x}:{c:02x}:{d:02x}");
            (!mac.eq_ignore_ascii_case(&derived)).then(|| (network.clone(), mac.to_owned()))
        })
        .next()
}
