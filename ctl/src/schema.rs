//! `rollbackctl schema`

use clap::Args;
use rollback_proto::problem::{Code, Problem};
use serde_json::{Value, json};

use crate::exit::ExitCode;
use crate::output;

/// The one file in which all documents are described; docs/json.md says how it may change.
const SCHEMA: &str = include_str!("../../docs/schema/v1.json");

/// Print the JSON Schema of what -o json writes
///
/// Every document has a `kind`; without one, the schema of all documents is printed.
/// Within one version fields are only added, and no value changes its meaning.
///
/// Examples:
///   rollbackctl schema                     all of it
///   rollbackctl schema --kinds             which kinds are there?
///   rollbackctl schema fleet_plan          of one kind
#[derive(Args, Debug)]
#[command(verbatim_doc_comment)]
pub struct SchemaArgs {
    /// As it stands in the document's `kind`
    #[arg(value_name = "KIND")]
    pub kind: Option<String>,
    /// List the kinds, one a line
    #[arg(long, conflicts_with = "kind")]
    pub kinds: bool,
}

pub fn run(args: &SchemaArgs) -> anyhow::Result<ExitCode> {
    let mut schema: Value = serde_json::from_str(SCHEMA)?;
    let kinds = kinds(&schema);
    match &args.kind {
        None if args.kinds => output::data(&kinds.join("\n"))?,
        None => output::data(SCHEMA)?,
        Some(kind) if kinds.contains(kind) => {
            // The definitions stay where they are; only the way in is another one.
            schema["$ref"] = json!(format!("#/$defs/document_{kind}"));
            if let Some(schema) = schema.as_object_mut() {
                schema.remove("oneOf");
            }
            output::data(&serde_json::to_string_pretty(&schema)?)?;
        }
        Some(kind) => {
            let text = format!("there is no document of kind `{}`", output::text::clean(kind));
            return Err(Problem::new(Code::NotFound, text)
                .remedy(format!("one of: {}", kinds.join(", ")))
                .into());
        }
    }
    Ok(ExitCode::Done)
}

fn kinds(schema: &Value) -> Vec<String> {
    let definitions = schema["$defs"].as_object();
    let names = definitions.into_iter().flat_map(|defs| defs.keys());
    names
        .filter_map(|name| name.strip_prefix("document_").map(str::to_owned))
        .collect()
}
