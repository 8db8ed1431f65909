//! `upstream`: which servers of which upstream are whose.
//!
//! Everything here goes into nginx's configuration, so all of it is checked against what may stand there. Whether nginx
//! knows an option is left to `nginx -t`.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::path::PathBuf;

use rollback_proto::names::check_name;
use serde::Deserialize;
use serde::de::value::{MapAccessDeserializer, SeqAccessDeserializer};
use serde::de::{Deserializer, MapAccess, SeqAccess, Visitor};

use super::{Member, Upstream};

/// None, one (`[component.upstream]`) or several (`[[component.upstream]]`).
#[derive(Clone, Debug, Default)]
pub struct Upstreams(pub Vec<UpstreamConfig>);

#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct UpstreamConfig {
    /// The file that the `upstream` block includes, relative to `root` or absolute beneath it.
    pub include: PathBuf,
    /// What follows the address of every server.
    #[serde(default)]
    pub options: String,
    /// By `host/component`, as the coordinator knows it.
    pub backends: BTreeMap<String, BackendConfig>,
}

/// An address, a list of addresses, or a table with `address` and `options`.
#[derive(Clone, Debug)]
pub struct BackendConfig {
    pub address: Vec<String>,
    /// Instead of those of the upstream.
    pub options: Option<String>,
}

impl<'de> Deserialize<'de> for Upstreams {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct OneOrMore;
        impl<'de> Visitor<'de> for OneOrMore {
            type Value = Upstreams;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a table with include and backends, or a list of such tables")
            }

            fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<Upstreams, A::Error> {
                let one = UpstreamConfig::deserialize(MapAccessDeserializer::new(map))?;
                Ok(Upstreams(vec![one]))
            }

            fn visit_seq<A: SeqAccess<'de>>(self, list: A) -> Result<Upstreams, A::Error> {
                Vec::deserialize(SeqAccessDeserializer::new(list)).map(Upstreams)
            }
        }
        deserializer.deserialize_any(OneOrMore)
    }
}

impl<'de> Deserialize<'de> for BackendConfig {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        #[derive(Deserialize)]
        #[serde(untagged, expecting = "`address` must be an address or a list of addresses")]
        enum Addresses {
            One(String),
            More(Vec<String>),
        }

        #[derive(Deserialize)]
        #[serde(deny_unknown_fields)]
        struct Table {
            address: Addresses,
            options: Option<String>,
        }

        struct Short;
        impl<'de> Visitor<'de> for Short {
            type Value = BackendConfig;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an address, a list of addresses, or a table with address and options")
            }

            fn visit_str<E: serde::de::Error>(self, address: &str) -> Result<BackendConfig, E> {
                Ok(BackendConfig {
                    address: vec![address.to_owned()],
                    options: None,
                })
            }

            fn visit_seq<A: SeqAccess<'de>>(self, list: A) -> Result<BackendConfig, A::Error> {
                let address = Vec::deserialize(SeqAccessDeserializer::new(list))?;
                Ok(BackendConfig { address, options: None })
            }

            fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<BackendConfig, A::Error> {
                let Table { address, options } = Table::deserialize(MapAccessDeserializer::new(map))?;
                let address = match address {
                    Addresses::One(address) => vec![address],
                    Addresses::More(list) => list,
                };
                Ok(BackendConfig { address, options })
            }
        }
        deserializer.deserialize_any(Short)
    }
}

impl UpstreamConfig {
    /// `file` is where the include lies.
    pub fn checked(self, file: PathBuf) -> Result<Upstream, String> {
        let shown = self.include.display();
        let mut taken = BTreeSet::new();
        let mut members = Vec::new();
        for (backend, config) in self.backends {
            check_backend(&backend)?;
            if config.address.is_empty() {
                return Err(format!("upstream {shown}: {backend} has no address"));
            }
            for address in &config.address {
                check_address(address).map_err(|why| format!("upstream {shown}: {backend}: {why}"))?;
                // Whoever drained the one would leave the other with its requests.
                if !taken.insert(address.clone()) {
                    return Err(format!("upstream {shown}: {address} stands there twice"));
                }
            }
            let options = config.options.as_deref().unwrap_or(&self.options);
            members.push(Member {
                options: check_options(options).map_err(|why| format!("upstream {shown}: {backend}: {why}"))?,
                backend,
                addresses: config.address,
            });
        }
        if members.is_empty() {
            return Err(format!(
                "upstream {shown}: backends must name at least one host/component"
            ));
        }
        Ok(Upstream { file, members })
    }
}

fn check_backend(backend: &str) -> Result<(), String> {
    let (host, component) = backend
        .split_once('/')
        .ok_or_else(|| format!("backend {backend:?} must be HOST/COMPONENT"))?;
    check_name("host", host)
        .and_then(|()| check_name("component", component))
        .map_err(|problem| format!("backend {backend:?}: {}", problem.message))
}

fn check_address(address: &str) -> Result<(), String> {
    let bad = || format!("{address:?} must be host:port or unix:/path");
    let good = match address.strip_prefix("unix:") {
        Some(path) => {
            path.starts_with('/')
                && path
                    .chars()
                    .all(|c| c.is_ascii_alphanumeric() || matches!(c, '/' | '.' | '_' | '-'))
        }
        None => {
            let (host, port) = address.rsplit_once(':').ok_or_else(bad)?;
            let name = match host.strip_prefix('[').and_then(|host| host.strip_suffix(']')) {
                Some(ip) => ip.parse::<std::net::Ipv6Addr>().is_ok(),
                None => {
                    !host.is_empty()
                        && !host.starts_with(['-', '.'])
                        && host
                            .chars()
                            .all(|c| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-'))
                }
            };
            // "+80" would parse, too.
            name && port.chars().all(|c| c.is_ascii_digit()) && port.parse::<u16>().is_ok_and(|port| port > 0)
        }
    };
    if good { Ok(()) } else { Err(bad()) }
}

/// `name` or `name=value`, separated by spaces.
fn check_options(options: &str) -> Result<Vec<String>, String> {
    let words: Vec<String> = options.split_whitespace().map(str::to_owned).collect();
    for word in &words {
        let (name, value) = word.split_once('=').unwrap_or((word, "0"));
        let good = !name.is_empty()
            && name.chars().all(|c| c.is_ascii_lowercase() || c == '_')
            && !value.is_empty()
            && value
                .chars()
                .all(|c| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-'));
        if !good {
            return Err(format!("option {word:?} must be like backup or max_fails=1"));
        }
        if matches!(name, "down" | "drain") {
            return Err(format!(
                "option {word:?}: who gets no requests is what the driver writes itself"
            ));
        }
    }
    Ok(words)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> Result<Vec<Upstream>, String> {
        #[derive(Deserialize)]
        struct Keys {
            #[serde(default)]
            upstream: Upstreams,
        }
        let keys: Keys = toml::from_str(text).map_err(|e| e.to_string())?;
        keys.upstream.0.into_iter().map(|c| c.checked("/f".into())).collect()
    }

    #[test]
    fn takes_one_or_several_and_short_or_long_backends() {
        let one = "[upstream]\ninclude = 'u'\noptions = 'max_fails=1 fail_timeout=10s'\n[upstream.backends]\n'app-1/api' = \
                   '127.0.0.1:3001'\n'app-2/api' = { address = ['[::1]:1', 'unix:/run/a.sock'], options = 'weight=2' }\n\
                   'app-3/api' = ['a.internal:80', 'b:81']\n";
        let read_one = read(one).expect("good");
        let members = &read_one[0].members;
        assert_eq!(members[0].options, ["max_fails=1", "fail_timeout=10s"]);
        assert_eq!(members[1].options, ["weight=2"]);
        assert_eq!((members[1].addresses.len(), members[2].addresses.len()), (2, 2));
        let more = "[[upstream]]\ninclude = 'u'\nbackends = { 'a/b' = 'x:1' }\n[[upstream]]\ninclude = 'v'\nbackends = { \
                    'a/b' = 'x:2' }\n";
        assert_eq!(read(more).expect("good").len(), 2);
        assert!(read("").expect("none is good").is_empty());
    }

    #[test]
    fn refuses_what_must_not_reach_the_configuration() {
        let with = |backends: &str, options: &str| {
            read(&format!(
                "upstream = {{ include = 'u', options = '{options}', backends = {{ {backends} }} }}"
            ))
        };
        with("'a/b' = 'x:1'", "backup").expect("good");
        for bad in [
            "",
            "'ab' = 'x:1'",
            "'a/b/c' = 'x:1'",
            "'../b' = 'x:1'",
            "'a/b' = 'x'",
            "'a/b' = 'x:0'",
            "'a/b' = 'x:+1'",
            "'a/b' = 'x:1; }'",
            "'a/b' = 'x y:1'",
            "'a/b' = ':1'",
            "'a/b' = 'unix:a'",
            "'a/b' = 'unix:/a b'",
            "'a/b' = []",
            "'a/b' = 'x:1', 'a/c' = 'x:1'",
            "'a/b' = { address = 'x:1', weight = 2 }",
            "'a/b' = 7",
        ] {
            assert!(with(bad, "").is_err(), "{bad}");
        }
        for bad in [
            "down",
            "weight=",
            "=1",
            "weight=1;",
            "weight=$x",
            "a{",
            "\"x\"",
            "drain",
        ] {
            assert!(with("'a/b' = 'x:1'", bad).is_err(), "{bad}");
        }
    }
}
