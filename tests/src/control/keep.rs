//! Leaving a fleet up for a person to try things on.

use std::path::Path;

use anyhow::{Context, Result};

use super::Control;

impl Control {
    /// Lets every process and the directory go, and says how to use the fleet and how to end it. The options must have
    /// said `keep`. `hints` are further commands to try.
    pub fn leave_running(&mut self, hints: &[String]) -> Result<String> {
        let stop = self.dir().join("stop");
        let ends: String = self.held.iter_mut().map(|held| held.let_go()).collect();
        std::fs::write(&stop, stop_script(self.dir(), &ends)).context("write the script that ends the fleet")?;

        let ctl = self.ctl.program().display().to_string();
        let hints: String = hints.iter().map(|hint| format!("  {hint}\n")).collect();
        let text = format!(
            "The fleet stays up in {}. Try:\n\
             \x20 export ROLLBACKCTL_CONTEXT={}\n\
             \x20 {ctl} fleet status\n\
             \x20 {ctl} rollback show latest\n\
             \x20 {ctl} release list\n\
             \x20 {ctl} fleet plan --to v3.0.0\n\
             {hints}\
             End it with: sh {}\n",
            self.dir().display(),
            self.ctl.context().display(),
            stop.display(),
        );
        for agent in self.agents.values_mut() {
            agent.let_go();
        }
        for coordinator in self.coordinators_mut() {
            coordinator.let_go();
        }
        if let Some(store) = &self.store_server {
            store.let_go();
        }
        self.dir.disable_cleanup(true);
        Ok(text)
    }
}

/// Ends what belongs to the fleet *then*, whoever started it: a PID that is remembered may be a stranger's by that time,
/// and a daemon that was restarted by hand has another one. Belonging is: one of our programs, and the fleet's
/// directory in its command line, or as its program or its working directory. `ends` ends what is found otherwise, after
/// the programs under test, and before what it might bring back (a unit with `Restart=always`).
fn stop_script(dir: &Path, ends: &str) -> String {
    format!(
        r#"#!/bin/sh
# Ends this fleet and removes its directory.
dir='{}'

# PIDs of the fleet's processes that run one of these programs.
ours() {{
    for p in /proc/[0-9]*; do
        exe=$(readlink "$p/exe" 2>/dev/null) || continue
        name=${{exe##*/}}
        case " $* " in *" ${{name%% *}} "*) ;; *) continue ;; esac
        cwd=$(readlink "$p/cwd" 2>/dev/null)
        case "$exe:$cwd/:$(tr '\0' ' ' 2>/dev/null <"$p/cmdline")" in
            *"$dir"/*) echo "${{p#/proc/}}" ;;
        esac
    done
}}
# Waits until none of these programs is left.
gone() {{
    tries=0
    while [ -n "$(ours "$@")" ]; do
        tries=$((tries + 1))
        if [ $tries -gt 150 ]; then
            echo "Still running: $(ours "$@" | tr '\n' ' ')" >&2
            exit 1
        fi
        sleep 0.1
    done
}}

for pid in $(ours rollback-agent rollback-coordinator); do
    kill "$pid" 2>/dev/null
done
gone rollback-agent rollback-coordinator
{ends}for pid in $(ours nginx zekka-app); do
    kill "$pid" 2>/dev/null
done
# PostgreSQL is asked through its postmaster, which ends the others in order.
for data in "$dir/hosts/db-1/postgres/data" "$dir/store/postgres/data"; do
    postmaster=$(head -n 1 "$data/postmaster.pid" 2>/dev/null)
    for pid in $(ours postgres); do
        [ "$pid" != "$postmaster" ] || kill -INT "$pid" 2>/dev/null
    done
done
gone nginx zekka-app postgres
rm -rf "$dir"
"#,
        dir.display()
    )
}
