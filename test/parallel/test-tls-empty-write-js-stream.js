'use strict';

// While a stream of JavaScript below a TLSSocket has yet to complete an empty write, the peer asks
// for a renegotiation. What TLS answers waits, since such a stream takes one write at a time, and
// goes out before what JavaScript writes next.

const common = require('../common');
if (!common.hasCrypto)
  common.skip('missing crypto');

const assert = require('assert');
const { once } = require('events');
const fixtures = require('../common/fixtures');
const { Duplex, duplexPair } = require('stream');
const tls = require('tls');

const key = fixtures.readKey('agent1-key.pem');
const cert = fixtures.readKey('agent1-cert.pem');
// TLS 1.3 has no renegotiation.
const maxVersion = 'TLSv1.2';

async function test() {
  const { 0: raw, 1: other } = duplexPair();
  const reached = Promise.withResolvers();
  const below = new Duplex({
    read() {},
    write(chunk, encoding, callback) {
      if (chunk.length > 0)
        raw.write(chunk, callback);
      else
        reached.resolve(callback);
    },
    final(callback) {
      raw.end(callback);
    },
  });
  raw.on('data', (chunk) => below.push(chunk));
  raw.on('end', () => below.push(null));

  const server = new tls.TLSSocket(other, {
    isServer: true, secureContext: tls.createSecureContext({ key, cert, maxVersion }),
  });
  const client = tls.connect({ socket: below, rejectUnauthorized: false, maxVersion });
  await once(client, 'secureConnect');
  client.resume();
  // After this nothing of the handshake is on its way any more.
  await new Promise((resolve) => client.write('first ', resolve));
  const order = [];
  client.write('', common.mustCall(() => order.push('empty')));
  client.write('behind it', common.mustCall(() => order.push('behind it')));
  const complete = await reached.promise;

  // The client has read the request when this listener is called.
  const requested = once(raw, 'data');
  const renegotiated = new Promise((resolve) => server.renegotiate({}, resolve));
  const received = server.setEncoding('utf8').toArray();
  await requested;
  assert.deepStrictEqual(order, []);
  complete();
  assert.ifError(await renegotiated);
  client.end();
  assert.strictEqual((await received).join(''), 'first behind it');
  assert.deepStrictEqual(order, ['empty', 'behind it']);
}

test().then(common.mustCall());
