#!/usr/bin/env python3
"""Builds libtls_splice.a with cargo, for tls_splice.gyp."""

import argparse
import os
import pathlib
import shutil
import subprocess
import sys

HERE = pathlib.Path(__file__).resolve().parent


def openssl_symbols(archive):
  """OpenSSL's functions that the archive brings along. There must be none: the
  SSL objects come from Node, and so must the code that works on them."""
  nm = os.environ.get('NM') or shutil.which('nm') or shutil.which('llvm-nm')
  if not nm:
    return []
  symbols = subprocess.run([nm, '-g', '-P', archive], check=True, text=True,
                           stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
  lines = [line.split() for line in symbols.stdout.splitlines()]
  return [name for name, kind, *_ in (line for line in lines if len(line) > 1)
          if kind in 'TDBRWV' and
          name.lstrip('_').startswith(('SSL_', 'BIO_', 'ERR_', 'EVP_'))]


def host_triple(rustc):
  output = subprocess.check_output([rustc, '-vV'], text=True)
  return next(line.split()[1] for line in output.splitlines()
              if line.startswith('host: '))


def build(options):
  env = dict(os.environ)
  # OpenSSL is linked by Node. Here its headers count, and those must be the
  # ones that Node is compiled with.
  env['OPENSSL_NO_VENDOR'] = '1'
  env['OPENSSL_LIBS'] = ''
  env['OPENSSL_STATIC'] = '0'
  if options.openssl_includes:
    includes = (HERE / options.openssl_includes).resolve()
    env['OPENSSL_INCLUDE_DIR'] = str(includes)
    env['OPENSSL_LIB_DIR'] = str(includes)

  target_dir = pathlib.Path(options.target_dir).resolve()
  command = [env.get('CARGO', 'cargo'), 'build', '--release', '--frozen',
             '--lib', '--manifest-path', str(HERE / 'Cargo.toml'),
             '--target-dir', str(target_dir)]
  built = target_dir
  if options.asan:
    # A flag of nightly compilers, which stable ones have but hide. Naming the
    # target keeps it away from build scripts and procedural macros.
    triple = host_triple(env.get('RUSTC', 'rustc'))
    env['RUSTC_BOOTSTRAP'] = '1'
    env['RUSTFLAGS'] = env.get('RUSTFLAGS', '') + ' -Zsanitizer=address'
    command += ['--target', triple]
    built /= triple
  try:
    subprocess.run(command, check=True, cwd=HERE, env=env)
  except FileNotFoundError:
    sys.exit('tls_splice needs cargo, which was not found (set CARGO)')
  except subprocess.CalledProcessError as error:
    sys.exit(error.returncode)

  name = 'tls_splice.lib' if os.name == 'nt' else 'libtls_splice.a'
  archive = built / 'release' / name
  symbols = openssl_symbols(archive)
  if symbols:
    sys.exit(f'{archive} defines symbols of OpenSSL: {" ".join(symbols[:5])}')
  output = pathlib.Path(options.output)
  output.parent.mkdir(parents=True, exist_ok=True)
  shutil.copyfile(archive, output)


def main():
  parser = argparse.ArgumentParser(description=__doc__)
  parser.add_argument('--list-sources', action='store_true')
  parser.add_argument('--target-dir')
  parser.add_argument('--output')
  parser.add_argument('--openssl-includes')
  parser.add_argument('--asan', action='store_true')
  options = parser.parse_args()
  if options.list_sources:
    sources = (HERE / 'rust' / 'src').glob('**/*.rs')
    print('\n'.join(sorted(s.relative_to(HERE).as_posix() for s in sources)))
  else:
    build(options)


if __name__ == '__main__':
  main()
