//! The engine stays pure: nothing among its dependencies, direct or not, can touch the world.

use std::process::Command;

/// Runtimes, wires and stores; and what would bring chance in.
const BANNED: [&str; 13] = [
    "tokio",
    "async-std",
    "smol",
    "mio",
    "sqlx",
    "tonic",
    "hyper",
    "reqwest",
    "rustls",
    "rand",
    "uuid",
    "tracing",
    "rollback-proto",
];

fn banned(name: &str) -> bool {
    BANNED.iter().any(|b| name == *b || name.starts_with(&format!("{b}-")))
}

#[test]
fn manifest_names_nothing_impure() {
    let manifest: toml::Table = toml::from_str(include_str!("../Cargo.toml")).expect("a manifest is TOML");
    let dependencies = manifest["dependencies"].as_table().expect("a table of dependencies");
    assert!(dependencies.contains_key("serde"), "the test looks at the right table");
    let impure: Vec<&String> = dependencies.keys().filter(|name| banned(name)).collect();
    assert_eq!(impure, Vec::<&String>::new());
}

#[test]
fn dependency_tree_holds_nothing_impure() {
    let output = Command::new(env!("CARGO"))
        .args([
            "tree",
            "-p",
            "rollback-engine",
            "-e",
            "normal",
            "--prefix",
            "none",
            "--offline",
        ])
        .current_dir(env!("CARGO_MANIFEST_DIR"))
        .output()
        .expect("run cargo tree");
    assert!(
        output.status.success(),
        "cargo tree: {}",
        String::from_utf8_lossy(&output.stderr)
    );
    let tree = String::from_utf8(output.stdout).expect("names are UTF-8");
    assert!(tree.contains("serde"), "the tree was read: {tree}");
    let impure: Vec<&str> = tree
        .lines()
        .filter_map(|l| l.split(' ').next())
        .filter(|name| banned(name))
        .collect();
    assert_eq!(impure, Vec::<&str>::new());
}
