//! The enrolled agents.

use jiff::Timestamp;
use rollback_proto::v1::AgentInfo;

use super::paint::{Paint, Tone};
use super::table::{Table, cell, plain};
use super::text::{clean, duration, millis, or_none, stamp, timestamp};

/// `now`: to say how long ago an agent was seen, and whether its certificate has ended.
pub fn list(agents: &[AgentInfo], now: Timestamp, paint: Paint) -> String {
    if agents.is_empty() {
        return "No agent is enrolled. Make a token for a host: rollbackctl agent token NAME\n".to_owned();
    }
    let header = [
        "NAME",
        "STATE",
        "LAST SEEN",
        "ADDRESS",
        "VERSION",
        "CERTIFICATE UNTIL",
        "COMPONENTS",
        "LABELS",
    ];
    let mut table = Table::new(paint, &header);
    for agent in agents {
        let seen = match timestamp(agent.last_seen.as_ref()) {
            Some(at) => format!("{} ago", duration(millis(at, now))),
            // A replica that follows hears no heartbeats: it knows who is connected by the journal alone.
            None if agent.connected => "-".to_owned(),
            None => "never".to_owned(),
        };
        let expires = timestamp(agent.certificate_expires.as_ref());
        let expired = expires.is_some_and(|at| at <= now);
        let components: Vec<String> = agent
            .components
            .iter()
            .map(|c| format!("{}({})", clean(&c.name), clean(&c.kind)))
            .collect();
        let mut labels: Vec<String> = agent
            .labels
            .iter()
            .map(|(k, v)| format!("{}={}", clean(k), clean(v)))
            .collect();
        labels.sort();
        table.row([
            plain(clean(&agent.name)),
            if agent.connected {
                cell(Tone::Good, "connected")
            } else {
                cell(Tone::Bad, "AWAY")
            },
            plain(seen),
            plain(or_none(&agent.address)),
            plain(or_none(&agent.version)),
            cell(if expired { Tone::Bad } else { Tone::Plain }, stamp(expires)),
            plain(or_none(&components.join(" "))),
            plain(labels.join(" ")),
        ]);
    }
    table.render(0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::output::samples::{self, golden};

    #[test]
    fn agents_here_and_away() {
        let agents: Vec<AgentInfo> = samples::fleet().hosts.into_iter().filter_map(|h| h.agent).collect();
        golden!("agents", list(&agents, samples::at(5_000), Paint::PLAIN));
    }

    #[test]
    fn never_seen_is_said_of_nobody_who_is_connected() {
        let row = |connected| {
            let agent = AgentInfo {
                name: "app-9".to_owned(),
                connected,
                ..AgentInfo::default()
            };
            let text = list(&[agent], samples::at(0), Paint::PLAIN);
            let words: Vec<String> = text
                .lines()
                .nth(1)
                .unwrap_or("")
                .split_whitespace()
                .map(str::to_owned)
                .collect();
            words[1..3].join(" ")
        };
        assert_eq!((row(true).as_str(), row(false).as_str()), ("connected -", "AWAY never"));
    }
}
