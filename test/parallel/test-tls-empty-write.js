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

// The TLSSocket below has yet to flush its session tickets, so that it encrypts the empty write as any
// other, and takes no second one: the handshake waits.
async function busyBelow() {
  const { 0: raw, 1: other } = duplexPair();
  const below = new Duplex({
    read() {},
    write(chunk, encoding, callback) {
      raw.write(chunk);
      setImmediate(() => setImmediate(callback));
    },
    final(callback) {
      raw.end(callback);
    },
  });
  raw.on('data', (chunk) => below.push(chunk));
  raw.on('end', () => below.push(null));
  const options = { isServer: true, secureContext: tls.createSecureContext({ key, cert }) };
  const outer = new tls.TLSSocket(below, options);
  const inner = once(outer, 'secure').then(() => new Promise((resolve) => setImmediate(() => {
    const socket = new tls.TLSSocket(outer, options);
    socket.write('', common.mustSucceed());
    resolve(socket);
  })));
  const client = tls.connect({ socket: other, rejectUnauthorized: false });
  const socket = await inner;
  const innerClient = tls.connect({ socket: client, rejectUnauthorized: false });
  innerClient.end('first');
  assert.strictEqual((await socket.setEncoding('utf8').toArray()).join(''), 'first');
}

// TLS in TLS ends, and in the same tick the TLSSocket right below may have an empty write. Returns how
// many bytes come before the end of the TCP connection.
async function sentAtEnd(layers, hasEmptyWrite) {
  const received = Promise.withResolvers();
  const options = { isServer: true, secureContext: tls.createSecureContext({ key, cert }) };
  const listener = net.createServer({ allowHalfOpen: true }, (socket) => {
    for (let i = 0; i < layers; i++)
      socket = new tls.TLSSocket(socket, options);
    socket.on('data', received.resolve);
  });
  await once(listener.listen(0), 'listening');
  const relay = net.createServer({ allowHalfOpen: true });
  await once(relay.listen(0), 'listening');
  const relayed = once(relay, 'connection');
  const sockets = [net.connect(relay.address().port)];
  const { 0: accepted } = await relayed;
  const forward = net.connect(listener.address().port);
  forward.pipe(accepted).pipe(forward);
  for (let i = 0; i < layers; i++) {
    sockets.unshift(tls.connect({ socket: sockets[0], rejectUnauthorized: false }));
    await once(sockets[0], 'secureConnect');
  }
  // After this nothing is on its way any more.
  await new Promise((resolve) => sockets[0].resume().write('first', resolve));
  await received.promise;

  let bytes = 0;
  accepted.on('data', (chunk) => { bytes += chunk.length; });
  if (hasEmptyWrite)
    sockets[1].write('');
  sockets[0].end();
  await once(accepted, 'end');
  for (const end of [listener, relay])
    end.close();
  for (const socket of [...sockets, accepted, forward])
    socket.destroy();
  return bytes;
}

// No close_notify waits for an empty write that is not one of a stream of JavaScript.
async function closeNotify(layers) {
  const expected = await sentAtEnd(layers, false);
  assert.notStrictEqual(expected, 0);
  assert.strictEqual(await sentAtEnd(layers, true), expected);
}

renegotiation().then(common.mustCall());
busyBelow().then(common.mustCall());
for (const layers of [2, 3])
  closeNotify(layers).then(common.mustCall());
