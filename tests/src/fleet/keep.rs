//! Leaving a fleet up for a person to try things on.

use anyhow::{Context, Result};

use super::Fleet;
use crate::agent::Agent;

impl Fleet {
    /// Lets every process go and says how to use the fleet and how to end it. The builder must have been told.
    pub fn leave_running(mut self) -> Result<String> {
        let apps = self.zekka.hosts.iter().filter_map(|h| h.pid());
        let agents = self.agents.values().filter_map(Agent::pid);
        let servers = [self.coordinator.pid(), self.nginx.pid()].into_iter().flatten();
        let pids: Vec<String> = agents.chain(servers).chain(apps).map(|pid| pid.to_string()).collect();
        let dir = self.dir().display();
        let script = format!(
            "#!/bin/sh\n# Ends this fleet and removes its directory.\n\
             kill {} 2>/dev/null\n\
             for app in {dir}/hosts/app-*/opt/zekka/run/app.pid; do kill \"$(cat \"$app\")\" 2>/dev/null; done\n\
             kill -INT {} 2>/dev/null\n\
             while kill -0 {} 2>/dev/null; do sleep 0.1; done\n\
             rm -rf {dir}\n",
            pids.join(" "),
            self.postgres.pid(),
            self.postgres.pid(),
        );
        let stop = self.dir().join("stop");
        std::fs::write(&stop, script).context("write the script that ends the fleet")?;

        let ctl = self.ctl.program().display().to_string();
        let text = format!(
            "The fleet stays up in {dir}. Try:\n\
             \x20 export ROLLBACKCTL_CONTEXT={}\n\
             \x20 {ctl} fleet status\n\
             \x20 {ctl} rollback show latest\n\
             \x20 {ctl} release list\n\
             \x20 {ctl} fleet plan --to v3.0.0\n\
             \x20 curl -i {}\n\
             End it with: sh {}\n",
            self.ctl.context().display(),
            self.nginx.url("/api/version"),
            stop.display(),
        );
        for agent in self.agents.values_mut() {
            agent.let_go();
        }
        self.coordinator.let_go();
        self.nginx.let_go();
        self.postgres.let_go();
        self.zekka.let_go = true;
        self.dir.disable_cleanup(true);
        Ok(text)
    }
}
