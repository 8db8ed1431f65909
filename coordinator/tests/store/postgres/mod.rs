//! What only PostgreSQL's store has to do: races inside a transaction, broken connections, and opening.

pub mod faults;
pub mod opening;
pub mod proxy;
pub mod races;
