'use strict';

// A peer that does what others do not (hostile.py), and this process, which sends back what it gets. A record size
// limit is not among it, since OpenSSL has no RFC 8449; programs.js has the maximum fragment length that it has.

const assert = require('assert');

const { moves, toClients, toServers } = require('./paths');
const { digest, Program, Received } = require('./streams');

// What is odd, but allowed: everything arrives, and the connection ends as it should. `versions` are those of TLS in
// which there is such a thing.
const allowed = {
  one_byte_records: {},
  empty_records: {},
  full_records: {},
  padding: { versions: ['TLSv1.3'] },
  key_updates: { versions: ['TLSv1.3'] },
  key_updates_while_receiving: { versions: ['TLSv1.3'] },
  many_key_updates: { versions: ['TLSv1.3'] },
  byte_by_byte: {},
  user_canceled: {},
  data_after_close_notify: {},
  data_before_close_notify: {},
  truncated_record: {},
  no_close_notify: {},
};

const kEither = 'bad_mac_after_data';

// How a connection breaks: the code of the error, for each version that has one, and for the role of the peer.
const broken = {
  many_empty_records: 'ERR_SSL_RECORD_TOO_SMALL',
  many_warnings: 'ERR_SSL_TOO_MANY_WARN_ALERTS',
  fatal_alert: 'ERR_SSL_TLSV1_ALERT_INTERNAL_ERROR',
  bad_mac: /^ERR_SSL_(CIPHER_OPERATION_FAILED|DECRYPTION_FAILED_OR_BAD_RECORD_MAC)$/,
  // Without a splice, what is sent back may meet the error first, and what came before the damage may be lost.
  [kEither]: /^(ERR_SSL_(CIPHER_OPERATION_FAILED|DECRYPTION_FAILED_OR_BAD_RECORD_MAC)|EPROTO)$/,
  oversized_record: 'ERR_SSL_ENCRYPTED_LENGTH_TOO_LONG',
  too_much_cleartext: 'ERR_SSL_DATA_LENGTH_TOO_LONG',
  reset: 'ECONNRESET',
  not_tls: ['ERR_SSL_WRONG_VERSION_NUMBER', 'ERR_SSL_BAD_RECORD_TYPE'],
  unknown_record: ['ERR_SSL_UNEXPECTED_RECORD', 'ERR_SSL_BAD_RECORD_TYPE'],
  // With TLS 1.3 OpenSSL ignores it if it is the client.
  change_cipher_spec: {
    client: ['ERR_SSL_DECRYPTION_FAILED_OR_BAD_RECORD_MAC', 'ERR_SSL_BAD_RECORD_TYPE'],
    server: ['ERR_SSL_DECRYPTION_FAILED_OR_BAD_RECORD_MAC', undefined],
  },
  empty_handshake_record: [undefined, 'ERR_SSL_BAD_LENGTH'],
  finished_again: 'ERR_SSL_UNEXPECTED_MESSAGE',
};

// What pipeline() does not report: it sees an end there.
const unreported = { unknown_alert: 'ERR_SSL_UNKNOWN_ALERT_TYPE' };
const versions = ['TLSv1.2', 'TLSv1.3'];

async function echo({ readable, writable }) {
  const received = new Received(readable);
  readable.on('data', (chunk) => writable.write(chunk));
  const end = await received.end;
  writable.end();
  return { end, got: digest(received.bytes) };
}

class Peer {
  constructor(...args) {
    this.program = new Program([process.env.PEERS_PYTHON, `${__dirname}/hostile.py`, ...args]);
  }

  // The port of a server.
  async listening() {
    return (await this.program.printed(/^listening on .*:(\d+)$/m))[1];
  }

  // What it says of a connection, which is its `count`th.
  async use(version, name, count) {
    this.program.stdin.write(`${version} ${name}\n`);
    const { 0: lines } = await this.program.printed(new RegExp(`(?:^\\{.*\\}\n){${count}}`, 'm'));
    return JSON.parse(lines.trim().split('\n').at(-1));
  }
}

// One connection for each case, of which there is the outcome at both ends and in between. Where the connection broke,
// what is still under way to this end may be lost.
async function outcomes(version, cases, peer, pathOf) {
  const all = {};
  let count = 0;
  for (const name of cases) {
    const path = await pathOf();
    const [here, there, { protocol, error }] = await Promise.all([
      path.open().then(echo),
      peer.use(version, name, ++count),
      path.outcome(),
    ]);
    assert.strictEqual(protocol, version);
    all[name] = error ? { error, got: here.got, there } : { here, there };
  }
  return all;
}

const roles = {
  async client(make, move, version, cases) {
    const path = await make(move);
    return outcomes(version, cases, new Peer('client', path.port), () => path);
  },
  async server(make, move, version, cases) {
    const peer = new Peer('server');
    const port = await peer.listening();
    return outcomes(version, cases, peer, () => make(move, port, version));
  },
};

function isExpected(name, role, version, { error, here, there }) {
  const known = broken[name] ?? unreported[name];
  const codes = known?.[role] ?? known;
  const expected = Array.isArray(codes) ? codes[versions.indexOf(version)] : codes;
  if (expected instanceof RegExp)
    return expected.test(error);
  return error === expected && (error !== undefined || (here.end === 'end' && here.got === there.got));
}

function check(all, role, version) {
  const others = Object.entries(all).filter(([name, outcome]) => !isExpected(name, role, version, outcome));
  assert.deepStrictEqual(Object.fromEntries(others), {});
}

function withoutEither({ [kEither]: { there }, ...others }) {
  return { ...others, [kEither]: { there } };
}

function add(test) {
  for (const [role, kinds] of Object.entries({ client: toClients, server: toServers })) {
    for (const [kind, make] of Object.entries(kinds)) {
      for (const version of versions) {
        const cases = [
          ...Object.keys(allowed).filter((name) => (allowed[name].versions ?? versions).includes(version)),
          ...Object.keys(broken),
        ];
        test(`tlslite-ng as ${role}, ${version}, ${kind}`, 'tlslite-ng', async () => {
          const [splice, pipeline] = await Promise.all(moves.map((move) => roles[role](make, move, version, cases)));
          assert.deepStrictEqual(withoutEither(splice), withoutEither(pipeline));
          assert.strictEqual(splice[kEither].got, digest('before'));
          check(splice, role, version);
          check(pipeline, role, version);
          check(await roles[role](make, 'splice', version, Object.keys(unreported)), role, version);
        });
      }
    }
  }
}

module.exports = { add, setUp: {} };
