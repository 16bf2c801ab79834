'use strict';

// Implementations of TLS that are programs for one connection: stdin goes to the other side, and what that sends comes
// to stdout. With each, each of the ways in which a connection ends that the program knows:
//
//   close   the program ends the connection when all has been sent and got
//   half    it says that it will send no more; the other side sends after that
//   last    the other side ends the connection when all has been sent and got
//   renegotiate   like `last`, but with a new handshake first, and this process sends nothing before it has got all;
//                 TLS 1.3 has no such thing

const assert = require('assert');
const fs = require('fs');

const { run } = require('../tun/net');
const { freePort, moves, toClients, toServers } = require('./paths');
const { digest, Program, Received } = require('./streams');

// The files of what the program sends, and the other side: no ASCII, which could be commands.
const files = { get sent() { return fs.readFileSync('sent'); }, get other() { return fs.readFileSync('other'); } };

const dashed = (version) => version.replace('v', '').replace('.', '_').toLowerCase();

const clients = {
  'gnutls-cli': {
    needs: 'gnutls-bin',
    ways: ['close', 'half', 'last'],
    command: (version, port) => [
      'gnutls-cli', '--logfile=/dev/null', '--x509cafile=ca.pem', `--port=${port}`, '--sni-hostname=localhost',
      '--verify-hostname=localhost', `--priority=NORMAL:-VERS-ALL:+VERS-${version.replace('v', '')}`, '127.0.0.1',
    ],
  },
  'openssl s_client': {
    ways: ['close', 'last', 'renegotiate'],
    again: ['R\n', /RENEGOTIATING/],
    command: (version, port) => [
      'openssl', 's_client', '-CAfile', 'ca.pem', '-verify_return_error', '-servername', 'localhost',
      `-${dashed(version)}`, '-connect', `127.0.0.1:${port}`,
    ],
  },
  'openssl s_client, which takes 512 bytes at a time': {
    ways: ['close', 'last'],
    command: (version, port) => [
      ...clients['openssl s_client'].command(version, port),
      '-maxfraglen', '512', '-msg', '-msgfile', `${port}.records`,
    ],
    check(port) {
      const messages = fs.readFileSync(`${port}.records`, 'utf8');
      const headers = messages.matchAll(/^<<< .*RecordHeader.*\n +17 03 03 (..) (..)$/gm);
      const sizes = Array.from(headers, ({ 1: high, 2: low }) => parseInt(high + low, 16));
      assert(sizes.length >= files.other.length / 512, `${sizes.length} records`);
      // With what a cipher adds.
      assert(Math.max(...sizes) <= 512 + 32, `a record of ${Math.max(...sizes)} bytes`);
    },
  },
  'tstclnt': {
    needs: 'libnss3-tools',
    ways: ['last'],
    command: (version, port) => {
      const only = version.toLowerCase().replace('v', '');
      // From the file, since it does not notice the end of a pipe.
      return ['tstclnt', '-A', 'sent', '-h', '127.0.0.1', '-p', port, '-d', 'sql:nss', '-a', 'localhost',
              '-V', `${only}:${only}`];
    },
  },
  'mbedTLS': {
    needs: 'libmbedtls-dev',
    ways: ['close', 'half', 'last'],
    command: (version, port) => ['./mbedtls', 'client', version, port],
  },
};

const servers = {
  'openssl s_server': {
    ways: ['close', 'last', 'renegotiate'],
    again: ['r\n', /SSL_do_handshake -> 1/],
    command: (version) => [
      'openssl', 's_server', '-naccept', '1', '-cert', 'localhost.pem', '-key', 'localhost.key', `-${dashed(version)}`,
      '-accept', '127.0.0.1:0',
    ],
  },
  'mbedTLS': {
    needs: 'libmbedtls-dev',
    ways: ['close', 'half', 'last'],
    command: (version) => ['./mbedtls', 'server', version],
  },
};

function isLast(way) {
  return way === 'last' || way === 'renegotiate';
}

// What this process does with its end.
async function talk({ readable, writable }, way) {
  const { sent, other } = files;
  const received = new Received(readable);
  if (way === 'half')
    await received.end;
  if (way === 'renegotiate')
    await received.atLeast(sent.length);
  writable.write(other);
  await (isLast(way) ? received.atLeast(sent.length) : received.end);
  writable.end();
  return { end: await received.end, got: digest(received.bytes) };
}

// What the program is given, and what becomes of it.
async function use(program, way, again) {
  const { sent, other } = files;
  if (way === 'renegotiate') {
    await program.printed(/^ *Verify return code: 0|^CIPHER is/m);
    program.stdin.write(again[0]);
    await program.printed(again[1]);
  }
  program.stdin.write(sent);
  if (way === 'close')
    await program.stdout.atLeast(other.length);
  if (isLast(way))
    await program.stdout.end;
  program.stdin.end();
  const status = await program.exited;
  // Some say more than what they have got, but that is ASCII.
  const got = program.stdout.bytes.filter((byte) => byte >= 0x80);
  return { status, got: digest(got), stderr: status === 0 ? '' : `${program.stderr}` };
}

async function connection(path, program, way, version, again) {
  const opened = path.open();
  const [here, there, outcome] = await Promise.all([
    opened.then((stream) => talk(stream, way)),
    use(program, way, again),
    path.outcome(),
  ]);
  assert.deepStrictEqual({ way, here, there, outcome }, {
    way,
    here: { end: 'end', got: digest(files.sent) },
    there: { status: 0, got: digest(files.other), stderr: '' },
    outcome: { protocol: version },
  });
}

function waysWith({ ways }, version) {
  return ways.filter((way) => way !== 'renegotiate' || version === 'TLSv1.2');
}

async function useClient(client, make, move, version) {
  const path = await make(move);
  for (const way of waysWith(client, version)) {
    await connection(path, new Program(client.command(version, path.port)), way, version, client.again);
    client.check?.(path.port);
  }
}

async function useServer(server, make, move, version) {
  for (const way of waysWith(server, version)) {
    const program = new Program(server.command(version));
    const { 1: port } = await program.printed(/^(?:listening on|ACCEPT) .*:(\d+)$/m);
    await connection(await make(move, port, version), program, way, version, server.again);
  }
}

// It sends back what it gets, line by line.
async function useGnutlsServ(make, version) {
  const lines = Array.from({ length: 50 }, (_, i) => `${i} `.padEnd(i * 40, 'line') + '\n');
  const port = freePort();
  const server = new Program([
    'gnutls-serv', '--echo', '--quiet', `--port=${port}`, '--x509certfile=localhost.pem', '--x509keyfile=localhost.key',
    `--priority=NORMAL:-VERS-ALL:+VERS-${version.replace('v', '')}`,
  ]);
  await server.listening(port);
  await Promise.all(moves.map(async (move) => {
    const path = await make(move, port, version);
    const { readable, writable } = await path.open();
    const received = new Received(readable);
    let sent = '';
    for (const line of lines) {
      sent += line;
      writable.write(line);
      await received.atLeast(sent.length);
      assert.strictEqual(`${received}`, sent, move);
    }
    writable.end();
    assert.deepStrictEqual(await path.outcome(), { protocol: version });
    assert.strictEqual(await received.end, 'end');
  }));
}

const setUp = {
  'libmbedtls-dev': () => run('a', ['cc', '-O1', '-o', 'mbedtls', `${__dirname}/mbedtls.c`,
                                    '-lmbedtls', '-lmbedx509', '-lmbedcrypto']),
  'libnss3-tools': () => {
    fs.mkdirSync('nss');
    run('a', ['certutil', '-N', '-d', 'sql:nss', '--empty-password']);
    run('a', ['certutil', '-A', '-n', 'ca', '-t', 'CT,,', '-i', 'ca.pem', '-d', 'sql:nss']);
  },
};

function add(test) {
  for (const [all, kinds, use] of [[clients, toClients, useClient], [servers, toServers, useServer]]) {
    for (const [name, program] of Object.entries(all)) {
      for (const [kind, make] of Object.entries(kinds)) {
        for (const version of ['TLSv1.2', 'TLSv1.3']) {
          test(`${name}, ${version}, ${kind}`, program.needs, () =>
            Promise.all(moves.map((move) => use(program, make, move, version))));
        }
      }
    }
  }
  for (const [kind, make] of Object.entries(toServers)) {
    for (const version of ['TLSv1.2', 'TLSv1.3'])
      test(`gnutls-serv, ${version}, ${kind}`, 'gnutls-bin', () => useGnutlsServ(make, version));
  }
}

module.exports = { add, setUp };
