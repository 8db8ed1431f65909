//! What every verb that asks a coordinator starts from.

use std::path::PathBuf;

use clap::Args;
use rollback_proto::problem::Problem;

use crate::client::Client;
use crate::context::Context;

#[derive(Args, Clone, Debug)]
pub struct Session {
    /// Which fleet, with which certificate: a context.toml
    ///
    /// Default: the first of $XDG_CONFIG_HOME/rollbackctl/context.toml, ~/.config/rollbackctl/context.toml and
    /// /etc/rollbackctl/context.toml. The coordinator writes one for every operator that it makes a certificate for.
    ///
    /// Its `endpoints` lists every replica, endpoints = ["coord-1:7443", "coord-2:7443"]: any of them answers questions,
    /// and whoever does not lead names the one that does.
    #[arg(
        long,
        global = true,
        env = "ROLLBACKCTL_CONTEXT",
        value_name = "FILE",
        hide_env_values = true,
        help_heading = "Connection"
    )]
    pub context: Option<PathBuf>,
}

impl Session {
    pub fn context(&self) -> Result<Context, Problem> {
        Context::load(self.context.as_deref())
    }

    pub fn client(&self) -> Result<Client, Problem> {
        Client::new(&self.context()?)
    }
}
