//! Compiles the CSI driver's protocols, without a `protoc` on the machine.

use std::error::Error;

const PROTOCOLS: &str = "src/delivery/csi/proto";

fn main() -> Result<(), Box<dyn Error>> {
    println!("cargo::rerun-if-changed={PROTOCOLS}");
    let files = ["csi.proto", "pluginregistration.proto"];
    let descriptors = protox::compile(files, [PROTOCOLS])?;
    tonic_prost_build::configure()
        .build_client(false)
        .build_transport(false)
        // A publish request holds the pod's tokens.
        .skip_debug(["."])
        .compile_fds(descriptors)?;
    Ok(())
}
