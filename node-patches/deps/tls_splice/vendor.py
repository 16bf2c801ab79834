"""Leaves of vendored crates what compiling takes, and their licence.

usage: vendor.py DIRECTORY, of `cargo vendor`. Tests and examples go, which are
most of it, and carriage returns, which patches in mails do not keep;
.cargo-checksum.json, by which cargo checks each file, is made to agree. All
crates can be had under the MIT licence; a second one is left out.
"""

import hashlib
import json
import pathlib
import sys

KEPT = ('Cargo.toml', 'LICENSE', 'LICENSE-MIT', 'README.md', 'build.rs')
KEPT_DIRECTORIES = ('build/', 'src/')


def prune(crate):
  record = crate / '.cargo-checksum.json'
  package = json.loads(record.read_text())['package']
  files = {}
  for path in sorted(crate.rglob('*'), reverse=True):
    name = path.relative_to(crate).as_posix()
    if path.is_dir():
      if not any(path.iterdir()):
        path.rmdir()
    elif name in KEPT or name.startswith(KEPT_DIRECTORIES):
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
