#!/usr/bin/env python3
"""Builds libtls_splice.a with cargo, for tls_splice.gyp."""

import argparse
import os
import pathlib
import shutil
import subprocess
import sys

HERE = pathlib.Path(__file__).resolve().parent
NODE = HERE.parent.parent

# gyp's names, where they are not Rust's.
ARCHITECTURES = {
  'arm': 'armv7',
  'arm64': 'aarch64',
  'ia32': 'i686',
  'loong64': 'loongarch64',
  'ppc64': 'powerpc64le',
  'riscv64': 'riscv64gc',
  'x64': 'x86_64',
}


def run(command, **options):
  try:
    return subprocess.run(command, check=True, text=True, **options)
  except FileNotFoundError:
    sys.exit(f'tls_splice needs {command[0]}, which was not found')
  except subprocess.CalledProcessError as error:
    sys.exit(f'{" ".join(command)} failed ({error.returncode})')


def target_triple(arch):
  """That of the compiler itself, but for another architecture if one is built
  for: the system and the C library are the same then."""
  output = run([os.environ.get('RUSTC', 'rustc'), '-vV'],
               stdout=subprocess.PIPE).stdout
  host = next(line.split()[1] for line in output.splitlines()
              if line.startswith('host: '))
  own, rest = host.split('-', 1)
  arch = ARCHITECTURES.get(arch, arch)
  if arch == own:
    return host
  if arch == 'armv7':
    rest = rest.removesuffix('eabihf') + 'eabihf'
  return f'{arch}-{rest}'


def openssl_symbols(archive):
  """OpenSSL's functions that the archive brings along. There must be none: the
  SSL objects come from Node.js, and so must the code that works on them."""
  nm = os.environ.get('NM') or shutil.which('nm') or 'llvm-nm'
  output = run([nm, '-g', '-P', str(archive)], stdout=subprocess.PIPE,
               stderr=subprocess.DEVNULL).stdout
  lines = [line.split() for line in output.splitlines()]
  return [name for name, kind, *_ in (line for line in lines if len(line) > 1)
          if kind in 'TDBRWV' and
          name.lstrip('_').startswith(('SSL_', 'BIO_', 'ERR_', 'EVP_'))]


def build(options):
  env = dict(os.environ)
  # OpenSSL is linked by Node.js. Here its headers count, and those must be the
  # ones that Node.js is compiled with.
  env['OPENSSL_NO_VENDOR'] = '1'
  env['OPENSSL_LIBS'] = ''
  env['OPENSSL_STATIC'] = '0'
  if options.openssl_includes:
    includes = (NODE / options.openssl_includes).resolve()
    env['OPENSSL_INCLUDE_DIR'] = str(includes)
    env['OPENSSL_LIB_DIR'] = str(includes)
  # Panics name source files, wherever this is built.
  flags = [env.get('RUSTFLAGS', ''), f'--remap-path-prefix={NODE}=.']
  if options.asan:
    # A flag of nightly compilers, which stable ones have but hide.
    env['RUSTC_BOOTSTRAP'] = '1'
    flags.append('-Zsanitizer=address')
  env['RUSTFLAGS'] = ' '.join(flags).strip()

  triple = target_triple(options.arch)
  target_dir = pathlib.Path(options.target_dir).resolve()
  # Naming the target keeps the flags away from build scripts.
  run([env.get('CARGO', 'cargo'), 'build', '--release', '--frozen', '--lib',
       '--manifest-path', str(HERE / 'Cargo.toml'),
       '--target', triple, '--target-dir', str(target_dir)], cwd=HERE, env=env)

  archive = target_dir / triple / 'release' / 'libtls_splice.a'
  symbols = openssl_symbols(archive)
  if symbols:
    sys.exit(f'{archive} defines symbols of OpenSSL: {" ".join(symbols[:5])}')
  output = pathlib.Path(options.output)
  output.parent.mkdir(parents=True, exist_ok=True)
  shutil.copyfile(archive, output)
  # Of Rust's standard library there is more of it than of Node.js.
  strip = shutil.which('strip')
  if strip and not options.asan:
    run([strip, '-S', str(output)])


def main():
  parser = argparse.ArgumentParser(description=__doc__)
  parser.add_argument('--list-sources', action='store_true')
  parser.add_argument('--arch')
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
