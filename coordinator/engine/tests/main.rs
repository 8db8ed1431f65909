//! Tests of the engine, one file for each subject; see the modules.

mod behaviour;
mod databases;
mod fleets;
mod journals;
mod linting;
mod planning;
mod properties;
mod purity;
mod runbooks;
mod scopes;
mod steering;
mod table;
mod world;
