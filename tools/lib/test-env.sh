# shellcheck shell=bash
# test_environment FOLDER: what Node's tests see. What they write goes to FOLDER. Debian's OpenSSL wants stronger keys
# than those of the tests; without a configuration of the host's, the outcome is the same everywhere.
test_environment() {
  export NODE_TEST_DIR=$1/tmp OPENSSL_CONF=$1/openssl.cnf
  mkdir "$NODE_TEST_DIR"
  cat >"$OPENSSL_CONF" <<'CNF'
nodejs_conf = nodejs_init
[nodejs_init]
ssl_conf = ssl_sect
[ssl_sect]
system_default = system_default_sect
[system_default_sect]
CipherString = DEFAULT:@SECLEVEL=1
CNF
  unset NODE_OPTIONS NODE_EXTRA_CA_CERTS NODE_PATH SSL_CERT_FILE SSL_CERT_DIR NODE_PENDING_DEPRECATION NODE_DEBUG
}
