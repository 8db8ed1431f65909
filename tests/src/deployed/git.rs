//! A Node.js service from git, run by pm2: a worktree for each version, `npm ci`, a link, `pm2 startOrReload`.
//!
//! ```text
//! <root>/repository/             the clone
//! <root>/releases/<version>/     worktrees
//! <root>/current                 link to the live one
//! <root>/.env                    PORT and GREETING, which ecosystem.config.cjs hands to pm2
//! ```

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};

use super::{Deployed, key};
use crate::pm2::{Pm2, Pm2Process};
use crate::process::{self, run};
use crate::zekka::Version;

/// What pm2 calls the application.
pub const PROCESS: &str = "zekka-app";

/// The dependencies, without those of development. All of them are in the repository: nothing is fetched.
const INSTALL: [&str; 6] = ["npm", "ci", "--omit=dev", "--offline", "--no-audit", "--no-fund"];

/// A git repository with a tag for each version.
#[derive(Clone, Debug)]
pub struct Repository {
    pub dir: PathBuf,
}

impl Repository {
    pub fn init(dir: &Path) -> Result<Self> {
        std::fs::create_dir_all(dir).context("make the repository's directory")?;
        let repository = Self { dir: dir.to_owned() };
        repository.git(&["init", "--quiet", "--initial-branch=main"])?;
        Ok(repository)
    }

    /// Runs git there, with a configuration that does not depend on whose machine this is.
    pub fn git(&self, args: &[&str]) -> Result<String> {
        let mut git = Command::new("git");
        git.arg("-C").arg(&self.dir).args(args);
        git.env("GIT_CONFIG_GLOBAL", "/dev/null")
            .env("GIT_CONFIG_SYSTEM", "/dev/null");
        for who in ["AUTHOR", "COMMITTER"] {
            git.env(format!("GIT_{who}_NAME"), "zekka");
            git.env(format!("GIT_{who}_EMAIL"), "zekka@zekka.example");
        }
        run(&mut git).map(|out| out.trim_end().to_owned())
    }

    /// Commits these files, besides those that are there already, and tags the commit with the version's name.
    pub fn commit(&self, version: Version, files: &[(&str, &str)]) -> Result<()> {
        for (name, text) in files {
            let path = self.dir.join(name);
            let parent = path.parent().context("a file is in a directory")?;
            std::fs::create_dir_all(parent).with_context(|| format!("make the directory of {name}"))?;
            std::fs::write(&path, text).with_context(|| format!("write {name}"))?;
        }
        self.git(&["add", "--all"])?;
        self.git(&["commit", "--quiet", "--message", version.name()])?;
        self.git(&["tag", version.name()]).map(drop)
    }

    /// The commit that a name means.
    pub fn resolve(&self, name: &str) -> Result<String> {
        self.git(&["rev-parse", "--verify", &format!("{name}^{{commit}}")])
    }
}

#[derive(Clone, Debug)]
pub struct GitApp {
    pub root: PathBuf,
    pub repository: Repository,
    pub pm2: Pm2,
    pub port: u16,
}

impl GitApp {
    /// Makes the repository, with all tags, beneath the root. Nothing is live yet.
    pub fn lay_out(pm2: &Pm2, root: &Path) -> Result<Self> {
        std::fs::create_dir_all(root.join("releases")).context("make the directory of releases")?;
        let repository = Repository::init(&root.join("repository"))?;
        for version in Version::ALL {
            let number = version.name().trim_start_matches('v');
            let with_version = |text: &str| text.replace("{version}", number);
            let package = with_version(include_str!("../../zekka/node/package.json"));
            let lock = with_version(include_str!("../../zekka/node/package-lock.json"));
            let files = [
                ("package.json", package.as_str()),
                ("package-lock.json", lock.as_str()),
                ("server.js", include_str!("../../zekka/node/server.js")),
                (
                    "ecosystem.config.cjs",
                    include_str!("../../zekka/node/ecosystem.config.cjs"),
                ),
                (
                    "lib/greeter/package.json",
                    include_str!("../../zekka/node/lib/greeter/package.json"),
                ),
                (
                    "lib/greeter/index.js",
                    include_str!("../../zekka/node/lib/greeter/index.js"),
                ),
                (
                    "dev/linter/package.json",
                    include_str!("../../zekka/node/dev/linter/package.json"),
                ),
                (
                    "dev/linter/index.js",
                    include_str!("../../zekka/node/dev/linter/index.js"),
                ),
                (".gitignore", "node_modules/\n.env\n"),
            ];
            repository.commit(version, &files)?;
        }
        Ok(Self {
            root: root.to_owned(),
            repository,
            pm2: pm2.clone(),
            port: process::free_port()?,
        })
    }

    pub fn current(&self) -> PathBuf {
        self.root.join("current")
    }

    pub fn env_file(&self) -> PathBuf {
        self.root.join(".env")
    }

    /// What pm2 says of the process. An error when it has none of that name.
    pub fn process(&self) -> Result<Pm2Process> {
        let all = self.pm2.list()?;
        all.into_iter()
            .find(|p| p.name == PROCESS)
            .with_context(|| format!("pm2 has no {PROCESS}"))
    }

    /// The commit of what is live, as git sees it.
    pub fn live_commit(&self) -> Result<String> {
        let live = Repository { dir: self.current() };
        live.resolve("HEAD")
    }
}

impl Deployed for GitApp {
    fn port(&self) -> u16 {
        self.port
    }

    fn install(&self, version: Version) -> Result<()> {
        let release = Path::new("releases").join(version.name());
        let dir = self.root.join(&release);
        if !dir.exists() {
            let dir = dir.to_str().context("the directory's name is UTF-8")?;
            self.repository
                .git(&["worktree", "add", "--quiet", "--detach", dir, version.name()])?;
        }
        run(Command::new(INSTALL[0]).args(&INSTALL[1..]).current_dir(&dir))?;
        let env = format!("PORT={}\nGREETING={}\n", self.port, version.greeting());
        std::fs::write(self.env_file(), env).context("write .env")?;
        let temp = self.root.join("current.new");
        std::os::unix::fs::symlink(&release, &temp).context("make the link")?;
        std::fs::rename(&temp, self.current()).context("swap the link")?;
        // A reload keeps the directory of the old process, so it is made anew.
        if self.process().is_ok() {
            self.pm2.run(&["delete", PROCESS], &self.root)?;
        }
        self.pm2
            .run(&["start", "ecosystem.config.cjs"], &self.current())
            .map(drop)
    }

    fn component(&self) -> String {
        let env = self.env_file().display().to_string();
        [
            "[[component]]\nname = \"env\"\nkind = \"env-file\"\n".to_owned(),
            key("path", &env),
            "[[component]]\nname = \"api\"\nkind = \"git\"\nreads = [\"env\"]\n".to_owned(),
            key("root", self.root.display()),
            key("repository", self.repository.dir.display()),
            format!("install = {INSTALL:?}\n"),
            format!(
                "process = {{ manager = \"pm2\", name = \"{PROCESS}\", ecosystem = \"ecosystem.config.cjs\", \
                 home = \"{}\", binary = \"{}\", env_file = \"{env}\" }}\n",
                self.pm2.home().display(),
                self.pm2.program().display(),
            ),
            self.health(),
        ]
        .concat()
    }
}
