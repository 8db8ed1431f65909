//! Images of the sample application, made on this machine from nothing: no registry is asked.
//!
//! A base image holds the program and its shared libraries; each version adds its `release.json` and its GREETING, which
//! thereby is a default *of the image* and must change with it. `redis` holds the host's redis-server.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};
use tempfile::TempDir;

use super::Docker;
use crate::binaries::Binaries;
use crate::process::run;
use crate::zekka::Version;

/// Where the application listens inside of a container.
pub const IMAGE_PORT: u16 = 3000;

/// All versions of the application as images `<repository>:<version>`.
#[derive(Clone, Debug)]
pub struct AppImages {
    docker: Docker,
    repository: String,
}

impl AppImages {
    /// Builds v2.9.0, v2.9.1 and v3.0.0.
    pub fn build(docker: &Docker, binaries: &Binaries) -> Result<Self> {
        let images = Self {
            docker: docker.clone(),
            repository: docker.name("zekka"),
        };
        let program = binaries.path("zekka-app");
        let dockerfile = format!(
            "ENV PORT={IMAGE_PORT} HOST=0.0.0.0\n\
             EXPOSE {IMAGE_PORT}\n\
             CMD [\"/app/bin/zekka-app\", \"serve\"]\n\
             HEALTHCHECK --interval=1s --timeout=3s --retries=3 CMD [\"/app/bin/zekka-app\", \"check\"]\n"
        );
        docker.build_from_program(&images.base(), &program, "app/bin/zekka-app", &dockerfile)?;
        for version in Version::ALL {
            images.build_version(version, "{}")?;
        }
        Ok(images)
    }

    /// The repository: the name without a tag.
    pub fn repository(&self) -> &str {
        &self.repository
    }

    /// Name and tag of a version.
    pub fn name(&self, version: Version) -> String {
        format!("{}:{}", self.repository, version.name())
    }

    /// The image with the program and no version: what a Dockerfile of the application begins with.
    pub fn base(&self) -> String {
        format!("{}-base:1", self.repository)
    }

    pub fn id(&self, version: Version) -> Result<String> {
        self.docker.image_id(&self.name(version))
    }

    /// Builds a version anew, never healthy this time. Its tag then means another image: do it before it is deployed.
    pub fn make_unhealthy(&self, version: Version) -> Result<()> {
        let faults = format!("{{\"{}\": {{\"unhealthy\": true}}}}", version.name());
        self.build_version(version, &faults)
    }

    fn build_version(&self, version: Version, faults: &str) -> Result<()> {
        let dir = tempfile::tempdir().context("make a build context")?;
        write(dir.path(), "release.json", version.release_json())?;
        write(dir.path(), "faults.json", faults)?;
        let dockerfile = format!(
            "FROM {}\nCOPY release.json faults.json /app/\nENV GREETING={}\n",
            self.base(),
            version.greeting()
        );
        write(dir.path(), "Dockerfile", &dockerfile)?;
        self.docker.build(&self.name(version), dir.path())
    }
}

impl Docker {
    /// `docker build` of a directory with a Dockerfile.
    pub fn build(&self, name: &str, context: &Path) -> Result<()> {
        let context = context.to_str().context("the context's name is UTF-8")?;
        let label = self.label();
        // Nothing can be pulled here, and nothing from another run may be taken for ours.
        let args = [
            "build",
            "--quiet",
            "--force-rm",
            "--label",
            &label,
            "--tag",
            name,
            context,
        ];
        self.run(&args).map(drop).with_context(|| format!("build {name}"))
    }

    /// An image with one program of this machine, at a path, with the libraries that it needs, and more Dockerfile.
    pub fn build_from_program(&self, name: &str, program: &Path, path: &str, dockerfile: &str) -> Result<()> {
        let dir = root_with(program, path)?;
        let text = format!("FROM scratch\nCOPY root/ /\n{dockerfile}");
        write(dir.path(), "Dockerfile", &text)?;
        self.build(name, dir.path())
    }

    /// An image with this machine's redis-server, listening on 6379.
    pub fn redis_image(&self) -> Result<String> {
        let name = format!("{}:7", self.name("redis"));
        let dockerfile = "EXPOSE 6379\n\
                          CMD [\"/usr/bin/redis-server\", \"--bind\", \"0.0.0.0\", \"--protected-mode\", \"no\", \
                          \"--save\", \"\", \"--daemonize\", \"no\"]\n";
        self.build_from_program(
            &name,
            Path::new("/usr/bin/redis-server"),
            "usr/bin/redis-server",
            dockerfile,
        )?;
        Ok(name)
    }
}

fn write(dir: &Path, name: &str, text: &str) -> Result<()> {
    std::fs::write(dir.join(name), text).with_context(|| format!("write {name}"))
}

/// A directory with `root/`: a program, its loader, its libraries, and an empty `/tmp`.
fn root_with(program: &Path, path: &str) -> Result<TempDir> {
    let dir = tempfile::tempdir().context("make a build context")?;
    let root = dir.path().join("root");
    let copy = |from: &Path, to: &Path| -> Result<()> {
        let parent = to.parent().context("a file is in a directory")?;
        std::fs::create_dir_all(parent).context("make a directory of the image")?;
        std::fs::copy(from, to)
            .map(drop)
            .with_context(|| format!("copy {}", from.display()))
    };
    std::fs::create_dir_all(root.join("tmp")).context("make /tmp of the image")?;
    copy(program, &root.join(path))?;
    // Smaller images are built quicker. Without strip they are only bigger.
    let _ = run(Command::new("strip").arg("--strip-debug").arg(root.join(path)));
    for library in libraries(program)? {
        let inside = library.strip_prefix("/").context("a library's path is absolute")?;
        copy(&library, &root.join(inside))?;
    }
    Ok(dir)
}

/// Paths of the shared libraries that a program needs, and of its loader.
fn libraries(program: &Path) -> Result<BTreeSet<PathBuf>> {
    // Lines like `libc.so.6 => /lib/… (0x…)` and `/lib64/ld-linux-x86-64.so.2 (0x…)`.
    let out = run(Command::new("ldd").arg(program))?;
    let words = out.split_ascii_whitespace();
    Ok(words.filter(|word| word.starts_with('/')).map(PathBuf::from).collect())
}
