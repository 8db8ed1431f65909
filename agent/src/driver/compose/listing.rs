//! What `compose config` says of the services: the name of the image, and whether it can be built here.
//!
//! Version 2 answers in JSON. Version 1 answers in YAML as PyYAML writes it: block style, two spaces for each level, no
//! key behind a key. There, a line with exactly four spaces below `services:` is a key of a service and nothing else:
//! whatever belongs to a key's value, strings of several lines included, stands deeper or in a list. So no more than
//! such lines are read, and a whole YAML reader would be a dependency for two keys.

use std::collections::BTreeMap;

use rollback_proto::problem::{Code, Problem};

/// One service.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Service {
    /// `None`: Compose makes a name from the project and the service.
    pub image: Option<String>,
    pub builds: bool,
}

pub type Services = BTreeMap<String, Service>;

/// From version 2's `config --format json`.
pub fn from_json(text: &str) -> Result<Services, Problem> {
    let unclear = || {
        Problem::new(
            Code::ComposeFailed,
            "`docker compose config --format json` did not answer with services",
        )
    };
    let answer: serde_json::Value = serde_json::from_str(text).map_err(|_| unclear())?;
    let services = answer.get("services").and_then(|s| s.as_object()).ok_or_else(unclear)?;
    Ok(services
        .iter()
        .map(|(name, keys)| {
            let service = Service {
                image: keys.get("image").and_then(|i| i.as_str()).map(str::to_owned),
                builds: keys.get("build").is_some_and(|b| !b.is_null()),
            };
            (name.clone(), service)
        })
        .collect())
}

/// From version 1's `config`.
pub fn from_yaml(text: &str) -> Result<Services, Problem> {
    let mut services = Services::new();
    let mut within = false;
    let mut current: Option<String> = None;
    for line in text.lines() {
        let depth = line.len() - line.trim_start_matches(' ').len();
        let (key, value) = match line.trim_start_matches(' ').split_once(':') {
            Some((key, value)) => (scalar(key), value.trim()),
            None => continue,
        };
        match depth {
            0 => within = key == "services",
            2 if within => {
                services.insert(key.clone(), Service::default());
                current = Some(key);
            }
            4 if within => {
                let Some(service) = current.as_ref().and_then(|name| services.get_mut(name)) else {
                    continue;
                };
                match key.as_str() {
                    "image" => service.image = Some(scalar(value)),
                    "build" => service.builds = true,
                    _ => {}
                }
            }
            _ => {}
        }
    }
    if services.is_empty() {
        return Err(Problem::new(
            Code::ComposeFailed,
            "`docker-compose config` did not answer with services",
        ));
    }
    Ok(services)
}

/// Names of services and images need no escapes; PyYAML quotes those that look like numbers.
fn scalar(text: &str) -> String {
    let text = text.trim();
    for quote in ['\'', '"'] {
        if let Some(inner) = text.strip_prefix(quote).and_then(|t| t.strip_suffix(quote)) {
            return inner.to_owned();
        }
    }
    text.to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// As docker-compose 1.29.2 printed it.
    const PRINTED: &str = r#"services:
  '123':
    image: redis:7
  app:
    build:
      args:
        image: evil
      context: /srv/proj
    command:
    - httpd
    - -f
    environment:
      A: "a: b\n    image: evil"
      B: v1
    image: reg.local:5000/foo/zakops:v1
    labels:
      image: "no"
  bare: {}
version: '3.8'
volumes:
  image: {}
"#;

    fn service(image: Option<&str>, builds: bool) -> Service {
        Service {
            image: image.map(str::to_owned),
            builds,
        }
    }

    #[test]
    fn reads_keys_of_services_and_nothing_that_looks_like_them() {
        let read = from_yaml(PRINTED).expect("services");
        let want = [
            ("123".to_owned(), service(Some("redis:7"), false)),
            ("app".to_owned(), service(Some("reg.local:5000/foo/zakops:v1"), true)),
            ("bare".to_owned(), service(None, false)),
        ];
        assert_eq!(read, Services::from(want));
        assert!(from_yaml("version: '3.8'\n").is_err());
    }

    #[test]
    fn both_versions_read_the_same() {
        let json = r#"{"name": "p", "services": {"123": {"image": "redis:7"}, "bare": {"build": null},
            "app": {"image": "reg.local:5000/foo/zakops:v1", "build": {"context": "/srv/proj"}}}}"#;
        assert_eq!(from_json(json).expect("json"), from_yaml(PRINTED).expect("yaml"));
        assert!(from_json("{}").is_err());
    }
}
