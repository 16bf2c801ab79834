# shellcheck shell=bash disable=SC2154
# The Rust core on platforms that are not built for here. Sourced after rust.sh.

platforms=(aarch64-unknown-linux-gnu x86_64-apple-darwin aarch64-apple-darwin x86_64-pc-windows-msvc)

# platforms_check: the core compiles for each of them, as far as that goes without a linker, and clippy has nothing to
# say. Debian has their standard library as source only (rust-src), so cargo compiles that too, with the crates in its
# lock file: minutes the first time. That is a flag of nightly compilers, which stable ones have but hide.
platforms_check() {
  local release platform targets=()
  release=$(sandbox_run rustc -vV | sed -n 's/^release: //p')
  if [[ ! -d $sandbox_root/usr/src/rustc-$release ]]; then
    echo "rust-src is not of rustc's version, $release: the sandbox is older than the archive (tools/build --clean)"
    return 1
  fi
  for platform in "${platforms[@]}"; do targets+=(--target "$platform"); done
  # openssl-sys has the C compiler expand macros of OpenSSL's headers, which that for this machine does as well as any
  # other, as long as it gets no flags for the target. Nothing is linked.
  sandbox_run env "${cargo_env[@]}" RUSTC_BOOTSTRAP=1 CC=cc CRATE_CC_NO_DEFAULTS=1 \
    OPENSSL_INCLUDE_DIR=/usr/include OPENSSL_LIB_DIR="/usr/lib/$triplet" OPENSSL_LIBS= \
    cargo clippy --locked --lib --keep-going -Zbuild-std "${targets[@]}" -- -D warnings
}
