//! Traps of making a container anew: each test is named after one.

use rollback_agent::driver::{Action, Driver};

use crate::docker::Docker;
use crate::fixture::{App, Images, PLAIN, inside};

#[tokio::test]
async fn anonymous_volumes_are_kept() {
    let images = Images {
        old: "VOLUME /data",
        new: "VOLUME /data",
    };
    let app = App::new(images, &["-v", "/scratch", "--mount", "type=volume,dst=/third"], "");
    for dir in ["/data", "/scratch", "/third"] {
        let write = format!("echo precious > {dir}/file");
        inside(&app.docker, &app.name(), &["sh", "-c", &write]);
    }
    app.roll_back().await;
    for dir in ["/data", "/scratch", "/third"] {
        let file = format!("{dir}/file");
        assert_eq!(inside(&app.docker, &app.name(), &["cat", &file]), "precious");
    }
    // What is written now must be there after the undo, and after everything that is not live was removed.
    inside(&app.docker, &app.name(), &["sh", "-c", "echo newer > /data/file"]);
    app.undo().await;
    app.forward(Action::Discard).await.expect("discard");
    assert_eq!(inside(&app.docker, &app.name(), &["cat", "/data/file"]), "newer");
}

#[tokio::test]
async fn several_networks_with_aliases_and_static_addresses_are_kept() {
    let docker = Docker::new();
    let (front, inner) = (docker.name("front"), docker.name("inner"));
    // Address pools that no default pool of the engine has; one per test program at a time.
    let octet = 1 + std::process::id() % 250;
    let subnet = format!("10.213.{octet}.0/24");
    let address = format!("10.213.{octet}.77");
    docker.run(&["network", "create", "--subnet", &subnet, &front]);
    docker.run(&["network", "create", &inner]);
    let arguments = ["--network", &front, "--ip", &address, "--network-alias", "api"];
    let app = App::at(docker, PLAIN, &arguments, "");
    app.docker.run(&[
        "network",
        "connect",
        "--alias",
        "api-inner",
        "--alias",
        "second",
        &inner,
        &app.name(),
    ]);
    app.roll_back().await;

    let short = app.docker.inspect(&app.name(), "{{slice .Id 0 12}}");
    let at = |network: &str, what: &str| {
        let template = format!("{{{{(index .NetworkSettings.Networks \"{network}\").{what}}}}}");
        app.docker.inspect(&app.name(), &template)
    };
    assert_eq!(at(&front, "IPAddress"), address);
    assert_eq!(at(&front, "IPAMConfig.IPv4Address"), address);
    assert_eq!(
        at(&front, "Aliases"),
        format!("[api {short}]"),
        "its own short id, not the old one's"
    );
    assert_eq!(at(&inner, "Aliases"), format!("[api-inner second {short}]"));
    assert_eq!(
        app.docker.inspect(&app.name(), "{{len .NetworkSettings.Networks}}"),
        "2"
    );
    // Aliases are for others: a name that resolves, to a server that answers.
    let ask = |name: &str, network: &str| {
        let url = format!("http://{name}:8080/version");
        let image = format!("{}:v3.0.0", app.docker.repository());
        let client = app.docker.name("client");
        app.docker.run(&[
            "run",
            "--rm",
            "--name",
            &client,
            "--network",
            network,
            &image,
            "wget",
            "-q",
            "-O",
            "-",
            &url,
        ])
    };
    assert_eq!(ask("api", &front), "v2.9.0");
    assert_eq!(ask("second", &inner), "v2.9.0");
    assert_eq!(ask(&app.name(), &inner), "v2.9.0");

    app.undo().await;
    assert_eq!(at(&front, "IPAddress"), address);
    assert_eq!(ask("api-inner", &inner), "v3.0.0");
}

#[tokio::test]
async fn restart_policies_are_taken_away_and_given_back() {
    for policy in ["always", "unless-stopped", "on-failure:3"] {
        let app = App::new(PLAIN, &["--restart", policy], "");
        let current = |name: &str| {
            let template = "{{.HostConfig.RestartPolicy.Name}}:{{.HostConfig.RestartPolicy.MaximumRetryCount}}";
            app.docker.inspect(name, template)
        };
        let own = current(&app.name());
        app.forward(Action::Stage).await.expect("stage");
        assert_eq!(
            current(&app.staged()),
            "no:0",
            "a daemon that comes up must not start it"
        );
        app.forward(Action::Stop).await.expect("stop");
        assert_eq!(current(&app.name()), "no:0");
        // A second stop must not forget what the policy was.
        app.forward(Action::Stop).await.expect("stop");
        app.forward(Action::Switch).await.expect("switch");
        app.forward(Action::Start).await.expect("start");
        assert_eq!(current(&app.name()), own);
        assert_eq!(current(&app.before()), "no:0");
        app.undo().await;
        assert_eq!(current(&app.name()), own);
    }
}

#[tokio::test]
async fn healthchecks_of_the_container_and_of_the_image() {
    // The old image has its own; the container was given an interval, which stays.
    let old =
        "HEALTHCHECK --interval=1h CMD [\"wget\", \"-q\", \"-O\", \"/dev/null\", \"http://127.0.0.1:8080/version\"]";
    let new = "HEALTHCHECK --interval=2h CMD [\"true\"]";
    let app = App::new(Images { old, new }, &["--health-interval", "300ms"], "");
    app.roll_back().await;
    assert_eq!(app.docker.inspect(&app.name(), "{{.State.Health.Status}}"), "healthy");
    let check = app.docker.inspect(
        &app.name(),
        "{{.Config.Healthcheck.Interval}} {{index .Config.Healthcheck.Test 1}}",
    );
    assert_eq!(check, "300ms wget");
}

#[tokio::test]
async fn a_healthcheck_that_fails_fails_the_start() {
    let old = "HEALTHCHECK --interval=100ms --retries=2 CMD [\"false\"]";
    let app = App::new(Images { old, new: "" }, &[], "");
    for action in [Action::Stage, Action::Stop, Action::Switch] {
        app.forward(action).await.expect("move");
    }
    let problem = crate::host::failed(app.forward(Action::Start).await);
    assert!(problem.message.contains("says unhealthy"), "{}", problem.message);
    assert!(!app.docker.running(&app.name()));
}

#[tokio::test]
async fn image_defaults_are_not_frozen() {
    let old = "ENV COLOR=old PATH=/old:/bin EXTRA=image\nWORKDIR /old\nUSER 11:11\nLABEL color=old\nEXPOSE 1111\n\
               STOPSIGNAL SIGINT\nENTRYPOINT [\"/serve\"]\nCMD [\"old\"]";
    let new = "ENV COLOR=new PATH=/new:/bin EXTRA=image\nWORKDIR /new\nUSER 22:22\nLABEL color=new\nEXPOSE 2222\n\
               STOPSIGNAL SIGTERM\nENTRYPOINT [\"/serve\"]\nCMD [\"new\"]";
    let arguments = [
        "-e",
        "MINE=1",
        "-e",
        "EXTRA=mine",
        "--label",
        "mine=1",
        "--expose",
        "3333",
    ];
    let app = App::new(Images { old, new }, &arguments, "");
    app.forward(Action::Stage).await.expect("stage");
    let show = |template: &str| app.docker.inspect(&app.staged(), template);
    let env = show("{{range .Config.Env}}{{.}} {{end}}");
    for expected in ["COLOR=old", "PATH=/old:/bin", "VERSION=v2.9.0", "MINE=1", "EXTRA=mine"] {
        assert!(env.contains(expected), "{expected}: {env}");
    }
    assert_eq!(
        show("{{.Config.WorkingDir}} {{.Config.User}} {{.Config.StopSignal}}"),
        "/old 11:11 SIGINT"
    );
    assert_eq!(show("{{.Config.Entrypoint}} {{.Config.Cmd}}"), "[/serve] [old]");
    assert_eq!(
        show("{{index .Config.Labels \"color\"}} {{index .Config.Labels \"mine\"}}"),
        "old 1"
    );
    let ports = show("{{range $port, $_ := .Config.ExposedPorts}}{{$port}} {{end}}");
    assert_eq!(ports, "1111/tcp 3333/tcp");
    assert_eq!(show("{{.Config.Hostname}}"), show("{{slice .Id 0 12}}"));
}

#[tokio::test]
async fn what_was_asked_for_stays() {
    let port = crate::host::free_port();
    let publish = format!("127.0.0.1:{port}:8080");
    let dir = tempfile::tempdir().expect("temporary directory");
    let bind = format!("{}:/bound:ro", dir.path().display());
    let docker = Docker::new();
    let named = format!("{}:/named", docker.name("volume"));
    let arguments = [
        "-p",
        &publish,
        "-v",
        &bind,
        "-v",
        &named,
        "--ulimit",
        "nofile=123:456",
        "--cap-drop",
        "CHOWN",
        "--cap-add",
        "NET_ADMIN",
        "--memory",
        "64m",
        "--tmpfs",
        "/quick",
        "--read-only=false",
        "--sysctl",
        "net.core.somaxconn=99",
        "--add-host",
        "peer:10.0.0.1",
        "--dns",
        "10.0.0.2",
        "--hostname",
        "chosen",
        "--init",
        "--log-opt",
        "max-size=1m",
        "--stop-timeout",
        "3",
        "--security-opt",
        "no-new-privileges",
        "--shm-size",
        "32m",
        "--workdir",
        "/www",
        "--user",
        "0:0",
        "--entrypoint",
        "/serve",
        "--",
        "with",
        "arguments",
    ];
    let app = App::at(docker, PLAIN, &arguments, "");
    app.forward(Action::Stage).await.expect("stage");
    let compared = [
        "{{json .HostConfig.PortBindings}}",
        "{{json .HostConfig.Ulimits}}",
        "{{json .HostConfig.CapDrop}}{{json .HostConfig.CapAdd}}",
        "{{json .HostConfig.Memory}}{{json .HostConfig.MemorySwap}}{{json .HostConfig.ShmSize}}",
        "{{json .HostConfig.Tmpfs}}{{json .HostConfig.Sysctls}}{{json .HostConfig.LogConfig}}",
        "{{json .HostConfig.ExtraHosts}}{{json .HostConfig.Dns}}{{json .HostConfig.Init}}",
        "{{json .HostConfig.SecurityOpt}}{{json .HostConfig.Binds}}{{json .HostConfig.NetworkMode}}",
        "{{json .Config.Hostname}}{{json .Config.StopTimeout}}{{json .Config.WorkingDir}}{{json .Config.User}}",
        "{{json .Config.Entrypoint}}{{json .Config.Cmd}}",
    ];
    for template in compared {
        assert_eq!(
            app.docker.inspect(&app.staged(), template),
            app.docker.inspect(&app.name(), template),
            "{template}"
        );
    }
    // A published port can only be had when the live container has let go of it.
    app.roll_back().await;
    assert_eq!(
        app.docker.inspect(&app.name(), "{{json .NetworkSettings.Ports}}"),
        format!("{{\"8080/tcp\":[{{\"HostIp\":\"127.0.0.1\",\"HostPort\":\"{port}\"}}]}}")
    );
}

#[tokio::test]
async fn labels_of_compose_are_not_forged() {
    let hash = "com.docker.compose.config-hash";
    let project = "com.docker.compose.project";
    let (hashed, named) = (format!("{hash}=0123"), format!("{project}=zekka"));
    let app = App::new(PLAIN, &["--label", &hashed, "--label", &named], "");
    let found = app.prepare().await;
    assert!(
        found.iter().any(|f| f.problem.message.contains("made by compose")),
        "{found:?}"
    );
    app.forward(Action::Stage).await.expect("stage");
    let labels = app.docker.inspect(&app.staged(), "{{json .Config.Labels}}");
    assert!(labels.contains(project) && !labels.contains(hash), "{labels}");
}

/// `docker run` writes the path down as it was given, the engine mounts it without the slash.
#[tokio::test]
async fn a_volume_at_a_path_with_a_slash_at_its_end_is_carried_once() {
    let docker = Docker::new();
    let bind = format!("{}:/named/", docker.name("volume"));
    let arguments = ["-v", &bind, "--mount", "type=volume,dst=/nameless/", "-v", "/scratch/"];
    let app = App::at(docker, PLAIN, &arguments, "");
    let dirs = ["/named", "/nameless", "/scratch"];
    for dir in dirs {
        inside(
            &app.docker,
            &app.name(),
            &["sh", "-c", &format!("echo precious > {dir}/file")],
        );
    }
    app.roll_back().await;
    for dir in dirs {
        assert_eq!(
            inside(&app.docker, &app.name(), &["cat", &format!("{dir}/file")]),
            "precious"
        );
    }
}

/// There, back, and there again, each time as another rollback: what was asked for is the same after every one of them.
#[tokio::test]
async fn nothing_wears_off_in_four_rollbacks() {
    let docker = Docker::new();
    let network = docker.name("net");
    let octet = 1 + std::process::id() % 250;
    let (subnet, address) = (format!("10.214.{octet}.0/24"), format!("10.214.{octet}.9"));
    docker.run(&["network", "create", "--subnet", &subnet, &network]);
    let arguments = [
        "--network",
        &network,
        "--ip",
        &address,
        "--network-alias",
        "api",
        "--restart",
        "on-failure:4",
        "-e",
        "MINE=1",
        "-v",
        "/scratch",
    ];
    let images = Images {
        old: "VOLUME /data\nENV COLOR=old",
        new: "VOLUME /data\nENV COLOR=new",
    };
    let app = App::at(docker, images, &arguments, "");
    inside(
        &app.docker,
        &app.name(),
        &["sh", "-c", "echo precious | tee /data/file > /scratch/file"],
    );
    for (turn, id) in ["rb-1", "rb-2", "rb-3", "rb-4"].into_iter().enumerate() {
        let (from, to, color) = match turn % 2 {
            0 => (&app.new, &app.old, "old"),
            _ => (&app.old, &app.new, "new"),
        };
        let step = |action| {
            rollback_agent::step::StepContext::new(
                id.into(),
                "part".into(),
                action,
                from.clone(),
                to.clone(),
                std::time::Duration::from_secs(30),
                app.host.vault.clone(),
                std::sync::Arc::new(rollback_agent::step::NoProgress),
            )
        };
        assert_eq!(app.driver.prepare(&step(Action::Prepare)).await.len(), 0);
        app.driver.stage(&step(Action::Stage)).await.expect("stage");
        app.driver.stop(&step(Action::Stop)).await.expect("stop");
        app.driver.switch(&step(Action::Switch)).await.expect("switch");
        app.driver.start(&step(Action::Start)).await.expect("start");
        app.driver.verify(&step(Action::Verify)).await.expect("verify");
        app.driver.finish(&step(Action::Finish)).await.expect("finish");

        let kept = app.docker.name(&format!("app.before-{id}"));
        assert_eq!(app.docker.containers(), [app.name(), kept.clone()]);
        assert_eq!(
            (app.image_of(&app.name()), app.image_of(&kept)),
            (to.digest.clone(), from.digest.clone())
        );
        let show = |template: &str| app.docker.inspect(&app.name(), template);
        let policy = "{{.HostConfig.RestartPolicy.Name}}:{{.HostConfig.RestartPolicy.MaximumRetryCount}}";
        assert_eq!(
            (show(policy), app.docker.inspect(&kept, policy)),
            ("on-failure:4".into(), "no:0".into())
        );
        assert_eq!(
            show("{{range .NetworkSettings.Networks}}{{.IPAddress}} {{.Aliases}}{{end}}"),
            format!("{address} [api {}]", show("{{slice .Id 0 12}}"))
        );
        let env = show("{{range .Config.Env}}{{.}} {{end}}");
        assert!(
            env.contains("MINE=1") && env.contains(&format!("COLOR={color}")),
            "{env}"
        );
        for file in ["/data/file", "/scratch/file"] {
            assert_eq!(inside(&app.docker, &app.name(), &["cat", file]), "precious");
        }
    }
}
