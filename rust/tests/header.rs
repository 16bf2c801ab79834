//! include/tls_splice.h is what cbindgen makes of the sources.

use std::path::Path;

#[test]
fn the_committed_header_is_current() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let header = root.join("include/tls_splice.h");
    let mut made = Vec::new();
    cbindgen::Builder::new()
        .with_crate(root)
        .with_config(cbindgen::Config::from_file(root.join("cbindgen.toml")).unwrap())
        .generate()
        .unwrap()
        .write(&mut made);
    if std::env::var_os("TLS_SPLICE_BLESS").is_some() {
        std::fs::write(&header, &made).unwrap();
    }
    assert!(
        std::fs::read(&header).unwrap_or_default() == made,
        "include/tls_splice.h is stale: TLS_SPLICE_BLESS=1 cargo test --test header"
    );
}
