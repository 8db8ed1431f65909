//! A network of a story's own, in which packets between two of its processes can be made to vanish: no reset, no refusal,
//! as when a switch dies. Takes root, CAP_SYS_ADMIN and CAP_NET_ADMIN.
//!
//! The story runs on a thread in a network namespace of its own, and so does everything that it starts: loopback is all
//! there is, and nothing of it is left when the last of these processes has ended. Processes are told apart by a group of
//! their own ([`Launch::group`](crate::process::Launch)): whoever opens a connection marks it with its group, and a cut
//! drops the packets of marked connections to certain ports, in both directions, those that exist and new ones.

use std::io::{BufRead, BufReader};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, ensure};
use futures::future::LocalBoxFuture;
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};
use tokio::sync::oneshot;

use crate::process::run;

/// What a cut is made with, for whoever reads the result.
pub const MADE_WITH: &str = "iptables in a network namespace";

/// Tells a story in a network of its own.
pub async fn alone<T: Send + 'static>(
    story: impl FnOnce() -> LocalBoxFuture<'static, Result<T>> + Send + 'static,
) -> Result<T> {
    let (sender, told) = oneshot::channel();
    // A thread of our own: one of a pool would take the network with it to whatever it does next.
    let tell = move || {
        let result = enter().and_then(|()| {
            let runtime = tokio::runtime::Runtime::new().context("start the runtime")?;
            runtime.block_on(story())
        });
        // Nobody listens any more when the scenario was interrupted.
        let _ = sender.send(result);
    };
    std::thread::Builder::new()
        .name("own-network".to_owned())
        .spawn(tell)
        .context("start the story's thread")?;
    told.await.context("the story's thread panicked")?
}

/// Moves this thread, and all that it starts from here on, into a new network.
fn enter() -> Result<()> {
    let mut holder = Command::new("unshare")
        .args(["--net", "sh", "-c", "ip link set lo up && echo up && read -r _"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .context("make a network namespace")?;
    let mut said = String::new();
    let out = holder.stdout.take().context("its stdout is read here")?;
    BufReader::new(out).read_line(&mut said).context("read what it says")?;
    let entered = (|| {
        ensure!(
            said.trim() == "up",
            "a network namespace cannot be made here (this needs root, CAP_SYS_ADMIN and CAP_NET_ADMIN)"
        );
        let link = std::fs::File::open(format!("/proc/{}/ns/net", holder.id())).context("open the namespace")?;
        move_into_link_name_space(std::os::fd::AsFd::as_fd(&link), Some(LinkNameSpaceType::Network))
            .context("enter the namespace")
    })();
    // The namespace lives on with this thread.
    drop(holder.stdin.take());
    holder.wait().context("wait for unshare")?;
    entered
}

/// Somebody in the network: the group that its processes run as, and where it listens.
#[derive(Clone, Debug)]
pub struct Party {
    pub name: String,
    pub group: u32,
    pub ports: Vec<u16>,
}

impl Party {
    /// Marks the connections that it opens from here on. Those that it has already cannot be cut.
    pub fn mark(group: u32) -> Result<()> {
        let group = group.to_string();
        let rule = ["-t", "mangle", "-A", "OUTPUT", "-p", "tcp", "--syn"];
        let rule = [&rule[..], &["-m", "owner", "--gid-owner", &group]].concat();
        iptables(&rule, &["-j", "CONNMARK", "--set-mark", &group]).map(drop)
    }
}

/// Packets that vanish. Healed when dropped, as far as that goes.
#[derive(Debug)]
pub struct Cut {
    /// What selects the packets; one list of arguments each.
    rules: Vec<Vec<String>>,
}

impl Cut {
    /// Between each of these and each of those.
    pub fn between(these: &[Party], those: &[Party]) -> Result<Self> {
        let mut cut = Self { rules: Vec::new() };
        let pairs = these.iter().flat_map(|one| those.iter().map(move |other| (one, other)));
        for (one, other) in pairs {
            for (opens, listens) in [(one, other), (other, one)] {
                for port in &listens.ports {
                    let rule = format!(
                        "-p tcp -m connmark --mark {} -m conntrack --ctorigdstport {port} -j DROP",
                        opens.group
                    );
                    let rule: Vec<String> = rule.split(' ').map(str::to_owned).collect();
                    iptables(&["-A", "INPUT"], &rule)?;
                    cut.rules.push(rule);
                }
            }
        }
        Ok(cut)
    }

    /// Packets that vanished so far, of all cuts that are in force.
    pub fn dropped() -> Result<u64> {
        let listed = iptables(&["-n", "-v", "-x", "-L", "INPUT"], &[""; 0])?;
        let drops = listed.lines().filter(|l| l.contains(" DROP "));
        let packets = drops.filter_map(|l| l.split_ascii_whitespace().next()?.parse::<u64>().ok());
        Ok(packets.sum())
    }

    pub fn heal(mut self) -> Result<()> {
        self.remove()
    }

    fn remove(&mut self) -> Result<()> {
        while let Some(rule) = self.rules.pop() {
            iptables(&["-D", "INPUT"], &rule)?;
        }
        Ok(())
    }
}

impl Drop for Cut {
    fn drop(&mut self) {
        // The rules go with the namespace in any case.
        let _ = self.remove();
    }
}

fn iptables(first: &[&str], then: &[impl AsRef<str>]) -> Result<String> {
    let mut command = Command::new("iptables");
    command.arg("-w").args(first).args(then.iter().map(AsRef::as_ref));
    run(&mut command).context("change the network's rules")
}
