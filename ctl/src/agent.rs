//! `rollbackctl agent …`

pub mod list;
pub mod token;

use clap::Subcommand;

use crate::cli::Format;

#[derive(Subcommand, Debug)]
pub enum Verb {
    List(list::ListArgs),
    Token(token::TokenArgs),
}

impl Verb {
    pub fn format(&self) -> Format {
        match self {
            Verb::List(args) => args.output.output,
            Verb::Token(_) => Format::Table,
        }
    }
}
