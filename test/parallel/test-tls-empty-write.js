'use strict';

// What TLS itself has to send while a TLSSocket has an empty write.

const common = require('../common');
if (!common.hasCrypto)
  common.skip('missing crypto');

const assert = require('assert');
const { once } = require('events');
const fixtures = require('../common/fixtures');
const net = require('net');
const { Duplex, duplexPair } = require('stream');
const tls = require('tls');

const key = fixtures.readKey('agent1-key.pem');
const cert = fixtures.readKey('agent1-cert.pem');

// A stream of JavaScript has yet to complete the empty write, and the peer asks for a
// renegotiation. The answer waits, since such a stream takes one write at a time, and goes out
// before what JavaScript writes next.
async function renegotiation() {
  // TLS 1.3 has no renegotiation.
  const maxVersion = 'TLSv1.2';
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

// TLS in TLS ends, and in the same tick the outer TLSSocket has an empty write. The close_notify of
// the inner one does not wait: a stream of libuv takes any number of writes.
async function closeNotify() {
  const received = Promise.withResolvers();
  const listener = tls.createServer({ key, cert, allowHalfOpen: true }, (outer) => {
    const inner = new tls.TLSSocket(outer, {
      isServer: true, secureContext: tls.createSecureContext({ key, cert }),
    });
    inner.on('data', received.resolve);
  });
  await once(listener.listen(0), 'listening');
  const relay = net.createServer({ allowHalfOpen: true });
  await once(relay.listen(0), 'listening');
  const relayed = once(relay, 'connection');
  const outer = tls.connect({ port: relay.address().port, rejectUnauthorized: false });
  const { 0: accepted } = await relayed;
  const forward = net.connect(listener.address().port);
  forward.pipe(accepted).pipe(forward);
  await once(outer, 'secureConnect');
  const inner = tls.connect({ socket: outer, rejectUnauthorized: false });
  await once(inner, 'secureConnect');
  // After this nothing is on its way any more.
  inner.resume().write('first');
  await received.promise;

  let bytes = 0;
  accepted.on('data', (chunk) => { bytes += chunk.length; });
  outer.write('');
  inner.end();
  await once(accepted, 'end');
  // A record of the inner TLSSocket's, in one of the outer one's
  assert.notStrictEqual(bytes, 0);
  for (const end of [listener, relay])
    end.close();
  for (const socket of [inner, outer, accepted, forward])
    socket.destroy();
}

for (const test of [renegotiation, closeNotify])
  test().then(common.mustCall());
