//! The nginx driver on a real nginx.

mod backends;
#[path = "../host/mod.rs"]
mod host;
mod little;
mod names;
mod proxy;
mod sites;
mod traps;
