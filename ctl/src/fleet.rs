//! `rollbackctl fleet …`

pub mod plan;
pub mod rollback;
pub mod status;

use clap::Subcommand;

use crate::cli::Format;

#[derive(Subcommand, Debug)]
pub enum Verb {
    Status(status::StatusArgs),
    Plan(plan::PlanArgs),
    Rollback(rollback::RollbackArgs),
}

impl Verb {
    pub fn format(&self) -> Format {
        match self {
            Verb::Status(args) => args.output.output,
            Verb::Plan(args) => args.output.output,
            Verb::Rollback(args) => args.output.output,
        }
    }
}
