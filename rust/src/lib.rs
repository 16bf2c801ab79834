//! The pump.

/// ABI version of this library.
#[no_mangle]
pub extern "C" fn tls_splice_abi_version() -> u32 {
    1
}
