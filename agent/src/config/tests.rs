//! What the file may say, and how it is told what it may not.

use std::collections::BTreeSet;

use super::component::{KINDS, Kind};
use super::*;

const TOP: &str = "name = \"app-1\"\ncoordinators = [\"127.0.0.1:7443\"]\n";

fn wrong(text: &str) -> String {
    let settings = match Settings::parse(text) {
        Err(mistake) => return mistake.to_string(),
        Ok(settings) => settings,
    };
    let place = tempfile::tempdir().expect("temporary directory");
    let vault = Arc::new(Vault::open(place.path()).expect("vault"));
    settings
        .drivers(&vault)
        .err()
        .map(|mistake| mistake.to_string())
        .expect("a mistake")
}

#[test]
fn reads_every_key_of_a_full_file() {
    let text = r#"
        name = "app-1"
        listen = "127.0.0.1:7445"
        advertise = "app-1:7445"
        coordinators = ["coord-1:7443", "coord-2:7443"]
        state = "/var/lib/rollback-agent"
        pki = "/etc/rollback-agent/pki"
        [labels]
        tier = "app"
        [telemetry]
        otlp = "http://127.0.0.1:4317"
        log = "debug"
        json = true
        [[component]]
        name = "env"
        kind = "env-file"
        path = "/opt/zekka/.env.production"
        [[component]]
        name = "api"
        kind = "release-dir"
        root = "/opt/zekka"
        reads = ["env"]
        [[component]]
        name = "db"
        kind = "postgres"
        database = "zekka_production"
        user = "zekka"
        migrations = "/opt/zekka/migrations"
        backups = "/var/backups/zekka"
        [[check]]
        name = "redis-port"
        component = "api"
        tcp = "127.0.0.1:6379"
    "#;
    let settings = Settings::parse(text).expect("valid");
    assert_eq!(
        settings
            .components
            .iter()
            .map(|c| (c.name.as_str(), c.line))
            .collect::<Vec<_>>(),
        [("env", 14), ("api", 18), ("db", 23)]
    );
    assert!(matches!(&settings.components[0].kind, Kind::EnvFile(env) if env.path.ends_with(".env.production")));
    assert_eq!(settings.checks[0].component, "api");
    assert_eq!(settings.labels["tier"], "app");
    assert_eq!(settings.telemetry.instance, "app-1");
    let place = tempfile::tempdir().expect("temporary directory");
    let drivers = settings
        .drivers(&Arc::new(Vault::open(place.path()).expect("vault")))
        .expect("drivers");
    assert_eq!(drivers[1].1.info().reads.into_iter().collect::<Vec<_>>(), ["env"]);
}

#[test]
fn the_address_for_the_coordinator_follows_from_what_is_known() {
    let parse = |more: &str| Settings::parse(&format!("{TOP}{more}")).expect("valid");
    let bound = |text: &str| text.parse().expect("an address");
    assert_eq!(parse("").address(bound("0.0.0.0:7445")), "app-1:7445");
    assert_eq!(parse("").address(bound("127.0.0.1:40001")), "127.0.0.1:40001");
    assert_eq!(
        parse("advertise = \"10.0.0.7:1\"").address(bound("0.0.0.0:7445")),
        "10.0.0.7:1"
    );
}

#[test]
fn a_mistake_is_named_with_its_line_and_a_guess() {
    let component = |keys: &str| format!("{TOP}[[component]]\nname = \"env\"\n{keys}");
    let cases = [
        (
            format!("{TOP}lisen = \"127.0.0.1:1\""),
            ":3: unknown key `lisen`, did you mean `listen`?",
        ),
        (
            format!("{TOP}[[componnet]]\nname = \"x\""),
            ":3: unknown key `componnet`, did you mean `component`?",
        ),
        (
            format!("{TOP}zzzzzzzz = 1"),
            ":3: unknown key `zzzzzzzz`; the keys here are name, listen, advertise, coordinators, state, pki, labels, \
             telemetry, component, check",
        ),
        (
            format!("{TOP}[telemetry]\nlgo = \"info\""),
            ":4: unknown key `lgo`, did you mean `log`?",
        ),
        (
            component("kind = \"env-file\"\npth = \"/x\""),
            ":6: component env: unknown key `pth`, did you mean `path`?",
        ),
        (
            component("kind = \"env-file\""),
            ":3: component env: the key `path` is missing",
        ),
        (
            component("path = \"/x\""),
            ":3: component env: the key `kind` is missing",
        ),
        (
            component("kind = \"env-fiel\"\npath = \"/x\""),
            ":5: component env: there is no kind \"env-fiel\"; there are container, compose, release-dir, git, env-file, \
             nginx, postgres; did you mean \"env-file\"?",
        ),
        (
            component("kind = 3"),
            ":5: component env: `kind`: invalid type: integer `3`, expected a string",
        ),
        (
            component("kind = \"env-file\"\npath = \"/x\"\n[[component]]\nname = \"env\"\nkind = \"env-file\""),
            ":7: component env is declared twice, first in line 3",
        ),
        (
            component("kind = \"release-dir\"\nroot = \"/srv\"\nreads = [\"evn\"]").replace("\"env\"", "\"api\"")
                + "\n[[component]]\nname = \"env\"\nkind = \"env-file\"\npath = \"/x\"",
            ":3: component api reads \"evn\", which is not a component of this host; did you mean \"env\"?",
        ),
        (
            component("kind = \"env-file\"\npath = \"/x\"").replace("\"env\"", "\"--help\""),
            ":4: component name \"--help\": it begins with '-' or '.'",
        ),
        (
            TOP.replace("app-1", "../etc"),
            ":1: host name \"../etc\": it begins with '-' or '.'",
        ),
        (
            "coordinators = []\nname = \"a\"".into(),
            ":1: coordinators is empty: name at least one, as host:port",
        ),
        (
            TOP.replace("127.0.0.1:7443", "http://c:1"),
            ":2: \"http://c:1\" is not host:port",
        ),
        ("coordinators = [\"c:1\"]".into(), ":1: the key `name` is missing"),
        (
            format!("{TOP}state = \"var\""),
            ": state must be an absolute path, not \"var\"",
        ),
        (
            format!("{TOP}[[check]]\nname = \"x\"\ncomponent = \"aip\"\ntcp = \"c:1\""),
            ":5: check x: \"aip\" is not a component of this host",
        ),
        (
            format!("{TOP}component = 3"),
            ":3: write [[component]], once for each component",
        ),
    ];
    for (text, expected) in cases {
        assert_eq!(wrong(&text), expected, "in:\n{text}");
    }
}

#[test]
fn broken_toml_is_named_with_its_line() {
    let mistake = wrong(&format!("{TOP}[[component\nname = 1"));
    assert!(mistake.starts_with(":3: "), "{mistake}");
}

#[test]
fn a_flood_is_not_echoed() {
    let mistake = wrong(&TOP.replace("app-1", &"x".repeat(64 * 1024)));
    assert!(mistake.len() < 300, "{} bytes", mistake.len());
}

#[test]
fn the_commented_examples_are_configurations() {
    let examples = [
        (include_str!("../../../deploy/examples/agent.toml"), 4, 6),
        (include_str!("../../../deploy/examples/agent-docker.toml"), 2, 2),
        (include_str!("../../../deploy/examples/agent-compose.toml"), 2, 0),
        (include_str!("../../../deploy/examples/agent-git-pm2.toml"), 2, 0),
        (
            include_str!("../../../deploy/examples/agent-artifact-systemd.toml"),
            1,
            2,
        ),
    ];
    let mut shown = BTreeSet::new();
    for (text, components, checks) in examples {
        let settings = Settings::parse(text).expect("an example");
        let place = tempfile::tempdir().expect("temporary directory");
        let vault = Arc::new(Vault::open(place.path()).expect("vault"));
        let drivers = settings.drivers(&vault).expect("its values");
        assert_eq!((drivers.len(), settings.checks.len()), (components, checks));
        shown.extend(drivers.iter().map(|(_, driver)| driver.info().kind));
    }
    assert_eq!(shown, BTreeSet::from(KINDS), "every kind has its example");
}
