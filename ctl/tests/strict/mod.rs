//! Documents against docs/schema/v1.json. Stricter than the schema is for its readers: a field that it does not name fails,
//! so that nothing is written that is not documented.

#![allow(dead_code, reason = "each test program uses its own part")]

use boon::{Compiler, Schemas};
use serde_json::{Value, json};

const SCHEMA: &str = include_str!("../../../docs/schema/v1.json");
const URL: &str = "mem:///v1.json";

/// Panics with what is wrong where. `document` is one that a verb wrote, with `schema` and `kind`.
pub fn check(document: &Value) {
    let mut schema: Value = serde_json::from_str(SCHEMA).expect("docs/schema/v1.json is JSON");
    let kind = document["kind"].as_str().expect("every document has a kind").to_owned();
    let definition = format!("document_{kind}");
    assert!(
        schema["$defs"].get(&definition).is_some(),
        "kind {kind} is not in docs/schema/v1.json; add $defs/{definition}, and to oneOf"
    );
    let listed = schema["oneOf"].as_array().expect("a list");
    let reference = json!({"$ref": format!("#/$defs/{definition}")});
    assert!(listed.contains(&reference), "{definition} is not in oneOf");
    close(&mut schema);
    if let Some(root) = schema.as_object_mut() {
        // Only the definitions: an error about the one document is worth more than one about twenty.
        root.remove("oneOf");
        root.remove("$id");
    }
    let mut compiler = Compiler::new();
    compiler.enable_format_assertions();
    compiler.add_resource(URL, schema).expect("a schema");
    let mut schemas = Schemas::new();
    let compiled = compiler
        .compile(&format!("{URL}#/$defs/{definition}"), &mut schemas)
        .unwrap_or_else(|error| panic!("docs/schema/v1.json: {error:#}"));
    if let Err(error) = schemas.validate(document, compiled) {
        panic!("docs/schema/v1.json does not describe this {kind}:\n{error:#}\n{document:#}");
    }
}

/// Forbids what is not named.
fn close(schema: &mut Value) {
    match schema {
        Value::Object(object) => {
            if object.contains_key("properties") && !object.contains_key("additionalProperties") {
                object.insert("additionalProperties".to_owned(), json!(false));
            }
            object.values_mut().for_each(close);
        }
        Value::Array(items) => items.iter_mut().for_each(close),
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => {}
    }
}
