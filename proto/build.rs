//! Compiles the `.proto` files with protox, so that nobody needs protoc on the machine.

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let files = [
        "rollback/v1/types.proto",
        "rollback/v1/agent.proto",
        "rollback/v1/fleet.proto",
        "rollback/v1/enrollment.proto",
    ];
    let descriptors = protox::compile(files, ["."])?;
    // The descriptors themselves go into the library: a test walks every RPC in them and fails on one that the
    // coordinator's authority table does not name.
    let out = std::path::PathBuf::from(std::env::var("OUT_DIR")?);
    std::fs::write(
        out.join("descriptors.bin"),
        protox::prost::Message::encode_to_vec(&descriptors),
    )?;
    tonic_prost_build::configure()
        .build_transport(false)
        .compile_fds(descriptors)?;
    println!("cargo:rerun-if-changed=rollback");
    Ok(())
}
