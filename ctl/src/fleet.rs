//! `rollbackctl fleet …`

pub mod converge;
pub mod hold;
pub mod plan;
pub mod plan_file;
pub mod readiness;
pub mod rollback;
pub mod status;
pub mod target;
pub mod unhold;

use clap::Subcommand;

use crate::cli::Format;

#[derive(Subcommand, Debug)]
pub enum Verb {
    Status(status::StatusArgs),
    Plan(plan::PlanArgs),
    Rollback(rollback::RollbackArgs),
    Readiness(readiness::ReadinessArgs),
    Converge(converge::ConvergeArgs),
    Hold(hold::HoldArgs),
    Unhold(unhold::UnholdArgs),
}

impl Verb {
    pub fn format(&self) -> Format {
        match self {
            Verb::Status(args) => args.output.output,
            Verb::Plan(args) => args.output.output,
            Verb::Rollback(args) => args.output.output,
            Verb::Readiness(args) => args.output.output,
            Verb::Converge(args) => args.output.output,
            Verb::Hold(args) => args.output.output,
            Verb::Unhold(args) => args.output.output,
        }
    }
}
