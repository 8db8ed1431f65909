//! "Full rollback, rebuild from git tag", on a real repository and with real builds.

use std::path::{Path, PathBuf};

use rollback_agent::driver::compose::ComposeDriver;
use rollback_agent::driver::{Action, Driver, Health};
use rollback_proto::problem::Code;

use crate::host::{failed, names, read, script, write};
use crate::project::{Project, Rollback, run, text};

const COMPOSE_FILE: &str = r#"version: "3.8"
services:
  app:
    image: "NAME/app:${IMAGE_TAG}"
    build: ../../src
    env_file: app.env
    ports: ["127.0.0.1:${PORT}:8080"]
"#;

/// A repository with tags v1.0.0 and v2.0.0; v2.0.0 is checked out and deployed as the runbook does it.
struct Repository {
    project: Project,
    root: PathBuf,
    driver: ComposeDriver,
}

impl Repository {
    fn git(&self, argv: &[&str]) -> String {
        git(&self.root, argv)
    }

    fn image(&self, version: &str) -> String {
        self.project
            .docker(&["inspect", "--format", "{{.Id}}", &self.project.app(version)])
    }

    fn forget(&self, version: &str) {
        self.project.docker(&["rmi", "-f", &self.image(version)]);
    }
}

fn git(root: &Path, argv: &[&str]) -> String {
    let identity = [
        "git",
        "-c",
        "user.name=t",
        "-c",
        "user.email=t@example.org",
        "-c",
        "init.defaultBranch=main",
    ];
    text(root, &[&identity, argv].concat())
}

async fn repository(compose_file: &str) -> Repository {
    let project = Project::empty("zakops/infra");
    let root = project.host.path().join("zakops");
    git(&root, &["init", "-q"]);
    write(&root.join(".gitignore"), ".env\napp.env\nlocal.json\n");
    write(&project.dir.join("docker-compose.yml"), &project.filled(compose_file));
    for version in ["v1.0.0", "v2.0.0"] {
        project.sources(&root.join("src"), version, "");
        git(&root, &["add", "-A"]);
        git(&root, &["commit", "-q", "-m", version]);
        git(&root, &["tag", "-a", "-m", version, version]);
        // A branch of the same name that is elsewhere.
        git(&root, &["branch", version, "HEAD"]);
    }
    git(&root, &["branch", "-f", "v1.0.0", "HEAD"]);
    write(&project.dir.join("app.env"), "SECRET=hunter2\n");
    project.declare("v2.0.0");
    project.by_hand(&["build", "-q"]);
    project.by_hand(&["up", "-d"]);
    let config = project.config("").replace(", 'worker'", "");
    let driver = project.driver_of(&format!("{config}\n[rebuild]\nrepository = '{}'", root.display()));
    Repository { project, root, driver }
}

async fn rollback(repository: &Repository) -> Rollback<'_> {
    let from = repository.driver.observe().await.expect("observe").revision;
    let to = repository.driver.resolve("v1.0.0").await.expect("resolve").revision;
    Rollback {
        project: &repository.project,
        driver: &repository.driver,
        from,
        to,
    }
}

/// The project's own checkout is untouched: changed and ignored files there survive, no hook runs. An image that was
/// rebuilt from the recorded commit counts as the revision.
#[tokio::test]
async fn rebuilds_from_a_git_tag_in_a_worktree() {
    let r = repository(COMPOSE_FILE).await;
    let rollback = rollback(&r).await;
    let commit = |tag: &str| {
        format!(
            "commit:{}",
            r.git(&["rev-parse", &format!("refs/tags/{tag}^{{commit}}")])
        )
    };
    assert_eq!(rollback.to.digest, commit("v1.0.0"));
    assert_eq!(rollback.from.digest, commit("v2.0.0"));
    write(&r.root.join("src/www/version"), "dirty");
    write(&r.root.join("local.json"), "{}");
    script(
        &r.root.join(".git/hooks/post-checkout"),
        "touch \"$(git rev-parse --git-common-dir)/hook-ran\"",
    );
    let before = (
        r.git(&["status", "--porcelain", "--ignored"]),
        r.git(&["rev-parse", "HEAD"]),
    );
    let live = r.project.containers();

    assert_eq!(rollback.blockers().await, []);
    // What killed attempts leave: a worktree without a build, a build that is not pinned.
    write(&r.root.join(".git/rollbackctl/compose-part/leftover"), "");
    let appears = async {
        let (dir, reference) = (&r.root, r.project.app("v1.0.0"));
        while run(dir, &[], &["docker", "images", "-q", &reference]).stdout.is_empty() {
            tokio::time::sleep(std::time::Duration::from_millis(5)).await;
        }
    };
    tokio::select! {
        done = rollback.step(Action::Stage) => panic!("ended before it was killed: {done:?}"),
        () = appears => {}
    }
    assert_eq!(
        rollback.blockers().await,
        [],
        "the name that the killed build gave is ours"
    );
    let done = rollback.step(Action::Stage).await.expect("stage");
    assert!(done.summary.contains("built"), "{}", done.summary);
    assert_eq!(r.project.containers(), live, "staging touches no container");
    assert_eq!(names(&r.root.join(".git/rollbackctl")), Vec::<String>::new());
    assert_eq!(r.git(&["worktree", "list"]).lines().count(), 1);
    let again = rollback.step(Action::Stage).await.expect("stage again");
    assert!(
        again.summary.contains("is here"),
        "nothing is built twice: {}",
        again.summary
    );
    for action in [
        Action::Stop,
        Action::Switch,
        Action::Start,
        Action::Verify,
        Action::Finish,
    ] {
        rollback.step(action).await.expect("forward");
    }
    let seen = r.driver.observe().await.expect("observe");
    assert_eq!((seen.revision, seen.health), (rollback.to.clone(), Health::Healthy));
    assert_eq!(
        (
            r.git(&["status", "--porcelain", "--ignored"]),
            r.git(&["rev-parse", "HEAD"])
        ),
        before
    );
    assert_eq!(read(&r.root.join("src/www/version")), "dirty");
    assert!(!r.root.join(".git/hook-ran").exists(), "a hook of the repository ran");
    let after = r.project.containers();
    r.project.by_hand(&["up", "-d"]);
    assert_eq!(r.project.containers(), after);

    rollback.undo().run().await;
    assert_eq!(r.driver.observe().await.expect("observe").revision, rollback.from);
    // Pruned since: built anew under another id, and still the same revision.
    let first = r.image("v1.0.0");
    r.forget("v1.0.0");
    rollback.run().await;
    assert_ne!(r.image("v1.0.0"), first, "rebuilt");
    assert_eq!(r.driver.observe().await.expect("observe").revision, rollback.to);
}

#[tokio::test]
async fn trap_git_tag_moved() {
    let r = repository(COMPOSE_FILE).await;
    let rollback = rollback(&r).await;
    r.git(&["tag", "-f", "v1.0.0", "v2.0.0^{commit}"]);
    assert_eq!(rollback.blockers().await, [Code::NameMoved]);
    // Gone is not moved: the recorded commit is still there.
    r.git(&["tag", "-d", "v1.0.0"]);
    assert_eq!(rollback.blockers().await, []);
    assert_eq!(
        r.driver.resolve("v1.0.0").await.expect_err("no tag").code,
        Code::Unresolved
    );
}

/// Without the variable in its name, the image that is built would take the name of the one that is live.
#[tokio::test]
async fn trap_build_would_overwrite_the_live_image() {
    let named = COMPOSE_FILE.replace("    build", "    labels: {tag: \"${IMAGE_TAG}\"}\n    build");
    let r = repository(&named).await;
    let rollback = rollback(&r).await;
    let file = r.project.dir.join("docker-compose.yml");
    write(&file, &read(&file).replace(":${IMAGE_TAG}\"\n", ":latest\"\n"));
    let live = r.image("v2.0.0");
    assert!(rollback.blockers().await.contains(&Code::ComposeFailed));
    // The tag's compose file gives the image another name than the project's: what is built is not what `up` uses.
    let problem = failed(rollback.step(Action::Stage).await);
    assert_eq!(problem.code, Code::ComposeFailed);
    assert_eq!(r.image("v2.0.0"), live);
    assert_eq!(r.git(&["worktree", "list"]).lines().count(), 1, "no worktree is left");
}
