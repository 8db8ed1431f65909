//! What both ends of rollbackctl's wire must agree on: the messages, who a peer is, how it is let in, how a trace
//! crosses a call, and what error codes mean.
//!
//! Leaves out everything that only one program needs.

pub mod identity;
pub mod jitter;
pub mod kill_point;
pub mod names;
pub mod problem;
pub mod telemetry;
pub mod tls;

/// Generated from `proto/rollback/v1/*.proto`.
#[expect(clippy::doc_markdown, clippy::large_enum_variant, reason = "generated code")]
pub mod v1 {
    tonic::include_proto!("rollback.v1");
}

/// The compiled `.proto` files (a serialized `FileDescriptorSet`), for tests that walk every RPC.
pub const DESCRIPTORS: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/descriptors.bin"));
