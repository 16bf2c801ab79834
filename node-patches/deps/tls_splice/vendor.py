"""Leaves of vendored crates what compiling takes, and their licence.

usage: vendor.py DIRECTORY, of `cargo vendor`. Tests and examples go, and of
libc what is for systems where nothing of this is compiled, which together are
most of it; and carriage returns, which patches in mails do not keep.
.cargo-checksum.json, by which cargo checks each file, is made to agree. All
crates can be had under the MIT licence; a second one is left out.
"""

import hashlib
import json
import pathlib
import sys

KEPT = ('Cargo.toml', 'LICENSE', 'LICENSE-MIT', 'README.md', 'build.rs')
KEPT_DIRECTORIES = ('build/', 'src/')

# Of src/ and its directories, libc's for Linux (with glibc or musl) on the
# processors that V8 has, and for macOS. `mod` items for others are behind
# cfg(), so that rustc does not look for their files.
LINUX_32 = ('arm', 'mod.rs', 'x86')
LINUX_64 = ('aarch64', 'loongarch64', 'mod.rs', 'powerpc64', 'powerpc64.rs',
            'riscv64', 's390x.rs', 'x86_64')
LIBC = {
  'src': ('lib.rs', 'macros.rs', 'new', 'primitives.rs', 'types.rs', 'unix'),
  'src/new': ('apple', 'common', 'glibc', 'linux_uapi', 'mod.rs', 'musl'),
  'src/unix': ('bsd', 'linux_like', 'mod.rs'),
  'src/unix/bsd': ('apple', 'mod.rs'),
  'src/unix/linux_like': ('linux', 'linux_l4re_shared.rs', 'mod.rs'),
  'src/unix/linux_like/linux': ('arch', 'gnu', 'mod.rs', 'musl'),
  'src/unix/linux_like/linux/gnu/b32': LINUX_32,
  'src/unix/linux_like/linux/gnu/b64': LINUX_64,
  'src/unix/linux_like/linux/musl/b32': LINUX_32,
  'src/unix/linux_like/linux/musl/b64': LINUX_64,
}


def is_for_others(name):
  parts = name.split('/')
  return any(parts[i] not in LIBC.get('/'.join(parts[:i]), parts)
             for i in range(1, len(parts)))


def prune(crate):
  record = crate / '.cargo-checksum.json'
  package = json.loads(record.read_text())['package']
  files = {}
  for path in sorted(crate.rglob('*'), reverse=True):
    name = path.relative_to(crate).as_posix()
    if path.is_dir():
      if not any(path.iterdir()):
        path.rmdir()
    elif (name in KEPT or name.startswith(KEPT_DIRECTORIES)) and not (
        crate.name == 'libc' and is_for_others(name)):
      content = path.read_bytes().replace(b'\r\n', b'\n')
      path.write_bytes(content)
      path.chmod(0o644)
      files[name] = hashlib.sha256(content).hexdigest()
    elif path != record:
      path.unlink()
  record.write_text(json.dumps({'files': files, 'package': package}, indent=1,
                               sort_keys=True) + '\n')


for directory in pathlib.Path(sys.argv[1]).iterdir():
  prune(directory)
