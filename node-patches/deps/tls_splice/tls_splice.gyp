{
  'variables': {
    'tls_splice_archive': '<(SHARED_INTERMEDIATE_DIR)/tls_splice/<(STATIC_LIB_PREFIX)tls_splice<(STATIC_LIB_SUFFIX)',
    # The headers of an OpenSSL that is not Node.js's own, relative to the top of
    # the tree; empty: where pkg-config finds them.
    'tls_splice_openssl_includes%': '',
  },
  'targets': [
    {
      'target_name': 'tls_splice',
      # Not a static library in gyp's eyes, since cargo makes the archive. What
      # depends on it waits for the archive and links it.
      'type': 'none',
      'direct_dependent_settings': {
        'include_dirs': [ 'include' ],
      },
      'link_settings': {
        'libraries': [ '<(tls_splice_archive)' ],
      },
      'variables': {
        'cargo_flags': [],
        'conditions': [
          [ 'node_shared_openssl=="false"', {
            'cargo_flags': [ '--openssl-includes', 'deps/openssl/openssl/include' ],
          }, 'tls_splice_openssl_includes!=""', {
            'cargo_flags': [ '--openssl-includes', '<(tls_splice_openssl_includes)' ],
          }],
          [ 'asan==1', {
            'cargo_flags': [ '--asan' ],
          }],
        ],
      },
      'actions': [
        {
          'action_name': 'tls_splice_cargo',
          'message': 'cargo build of deps/tls_splice',
          'inputs': [
            'cargo.py',
            'Cargo.lock',
            'Cargo.toml',
            '<!@(<(python) cargo.py --list-sources)',
          ],
          'outputs': [ '<(tls_splice_archive)' ],
          'action': [
            '<(python)', 'cargo.py',
            '--arch', '<(target_arch)',
            '--target-dir', '<(INTERMEDIATE_DIR)/cargo',
            '--output', '<@(_outputs)',
            '<@(cargo_flags)',
          ],
        },
      ],
    },
  ],
}
