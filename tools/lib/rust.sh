# shellcheck shell=bash disable=SC2034,SC2154
# Cargo in the sandbox, for the tests and checks. Sourced after sandbox.sh.

# Each clone has its own: two of them must not take turns at compiling everything. It is tools/test's.
cargo_target=$cache/test-$repo_key

cargo_env=(CARGO_TARGET_DIR="$cargo_target" CARGO_TERM_COLOR=never)

# cargo_run ARGUMENT...
cargo_run() { sandbox_run env "${cargo_env[@]}" cargo "$@"; }

# cargo_asan ARGUMENT...: with AddressSanitizer, a flag of nightly compilers, which stable ones have but hide. Naming the
# target keeps it away from build scripts and procedural macros.
cargo_asan() {
  sandbox_run env "${cargo_env[@]}" RUSTC_BOOTSTRAP=1 RUSTFLAGS=-Zsanitizer=address cargo "$@" --target "$(uname -m)-unknown-linux-gnu"
}

# tun_exec: makes out/tun-exec (tools/tun-exec). Static, since it is to run in the sandbox and on the host.
tun_exec() {
  local target
  target=$(uname -m)-unknown-linux-gnu
  step 'out/tun-exec' sandbox_run env "${cargo_env[@]}" RUSTFLAGS=-Ctarget-feature=+crt-static \
    cargo build --release --locked --bin tun-exec --target "$target" --manifest-path "$repo/Cargo.toml"
  cmp -s "$cargo_target/$target/release/tun-exec" "$repo/out/tun-exec" ||
    install "$cargo_target/$target/release/tun-exec" "$repo/out/tun-exec"
}
