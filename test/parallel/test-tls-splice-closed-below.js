'use strict';

// A stream of JavaScript that has ended both ways closes itself. Its 'close' would destroy the
// TLSSocket that runs over it, although the splice may have yet to deliver what it has read of the
// stream.

const common = require('../common');
if (!common.hasCrypto)
  common.skip('missing crypto');

const assert = require('assert');
const { once } = require('events');
const net = require('net');
const { Duplex } = require('stream');
const tls = require('tls');
if (tls.TLSSplice === undefined)
  common.skip('built without TLSSplice');

const {
  MiB, cert, closing, duplexOver, key, receive, run, send, socketPair, tlsOver, track, turns,
} = require('../common/tls-splice');

// So many layers of TLS over two connected streams.
async function connect(peer, socket, layers, options) {
  for (let layer = 0; layer < layers; layer++) {
    ({ client: peer, server: socket } = tlsOver(peer, socket, options));
    await Promise.all([once(peer, 'secureConnect'), once(socket, 'secure')]);
  }
  return { peer, socket };
}

// A TLSSocket over a Duplex that the TLSSocket has ended.
async function connectDuplex(layers) {
  const { 0: a, 1: b } = await socketPair();
  const below = duplexOver(b);
  const { peer, socket } = await connect(a, below, layers, { allowHalfOpen: true });
  socket.end();
  await once(peer.resume(), 'end');
  return { below, peer, socket };
}

// A TLSSocket over a net.Socket that was not connected yet when the TLSSocket was made, so that the
// TLSSocket uses it as any stream. It ends itself when the peer has ended, as sockets do.
async function connectSocket(layers) {
  const listener = tls.createServer({ key, cert, allowHalfOpen: true });
  listener.listen(0);
  await once(listener, 'listening');
  const below = new net.Socket();
  let socket = tls.connect({ socket: below, rejectUnauthorized: false });
  track(below, socket);
  below.connect(listener.address().port);
  const accepted = once(listener, 'secureConnection');
  await once(socket, 'secureConnect');
  let { 0: peer } = await accepted;
  listener.close();
  for (let layer = 1; layer < layers; layer++) {
    ({ client: socket, server: peer } = tlsOver(socket, peer, { server: { allowHalfOpen: true } }));
    await once(socket, 'secureConnect');
  }
  peer.resume();
  return { below, peer, socket };
}

// A TLSSocket over a Duplex that gives all that it gets from now on at once, and then ends both ways.
async function connectHolding(layers) {
  const { 0: a, 1: b } = await socketPair();
  let held = null;
  const below = new Duplex({
    allowHalfOpen: false,
    read() {},
    write(chunk, encoding, callback) { b.write(chunk, callback); },
    final(callback) { b.end(callback); },
  });
  b.on('data', (chunk) => held?.push(chunk) ?? below.push(chunk));
  b.on('end', () => {
    below.pause();
    below.push(Buffer.concat(held));
    below.push(null);
    below.resume();
  });
  const { peer, socket } = await connect(a, below, layers);
  held = [];
  return { below, peer: peer.resume(), socket };
}

// The close_notify cannot be written if the TLSSocket ends between 'end' and 'close' of a socket below.
function onError(err) {
  assert.strictEqual(err.code, 'EPIPE');
}

// Sends through the connection, and resolves when the stream below has closed. The splice leaves
// bytes for its next turn.
async function startAndClose({ below, peer, socket }, endpoint, { size, ...options }) {
  const splice =
    socket.spliceTo({ stream: endpoint, direction: 'in', highWaterMark: 16, ...options }).start();
  splice.on('error', onError);
  socket.on('error', onError);
  const closesBelow = closing(below);
  send(peer, size);
  await closesBelow;
  return splice;
}

// Of TLS in TLS, Node.js does not always emit the 'close' of the inner TLSSocket.
async function destroyed(socket) {
  while (!socket.destroyed)
    await turns(1);
}

// All bytes arrive: at the endpoint, in JavaScript after a stop(), or at the endpoint of the next
// splice.
for (const make of [connectDuplex, connectSocket]) {
  for (const layers of [1, 2]) {
    for (const size of [70_000, 100_000, 300_000, 2 * MiB + 19]) {
      run(() => delivered({ make, layers, size }));
      run(() => delivered({ make, layers, size, next: 'splice' }));
      for (const autoClose of [false, true])
        run(() => delivered({ make, layers, size, next: 'JavaScript', autoClose }));
    }
  }
}

async function delivered({ make, layers, size, next, autoClose }) {
  const connection = await make(layers);
  const { peer, socket } = connection;
  const { 0: endpoint, 1: other } = await socketPair();
  const receiving = receive(other);
  const { receiver } = receiving;
  let splice = await startAndClose(connection, endpoint, { size, autoClose });
  if (next === 'JavaScript') {
    const { bytesIn } = await splice.stop();
    // What JavaScript gets now lies behind what the endpoint has yet to give.
    const rest = [];
    await new Promise((resolve) => {
      let bytes = bytesIn;
      socket.on('data', (chunk) => {
        rest.push(chunk);
        bytes += chunk.length;
        if (bytes === size)
          resolve();
      });
      if (bytes === size)
        resolve();
    });
    await receiver.reached(bytesIn);
    rest.forEach((chunk) => receiver.update(chunk));
    endpoint.end();
  } else {
    // There may be nothing left.
    if (next === 'splice' && (await splice.stop()).reason !== 'end')
      splice = socket.spliceTo({ stream: endpoint, direction: 'in' }).start();
    const { reason } = await splice.finished.catch(({ code }) => ({ reason: code }));
    assert(reason === 'end' || (make === connectSocket && reason === 'EPIPE'));
  }
  (await receiving).check(size);
  await destroyed(socket);
  for (const stream of [peer, endpoint, other])
    stream.destroy();
}

// While the sink is full, the TLSSocket, or the endpoint, may end or write. The TLSSocket cannot reach
// its peer any more, but all that the peer has sent is delivered.
const acts = {
  'nothing': { act() {} },
  'nothing, both directions': { act() {}, direction: 'duplex' },
  'end()': { act: ({ socket }) => socket.end() },
  'an empty write': { act: ({ socket }) => socket.write('', common.mustSucceed()) },
  'the end of the endpoint': { act: ({ other }) => other.end(), direction: 'duplex' },
  'bytes of the endpoint': {
    act: ({ other }) => other.write('lost'), direction: 'duplex', code: 'EPIPE',
  },
};
for (const layers of [1, 2]) {
  for (const [name, how] of Object.entries(acts))
    run(() => acted(layers, name, how));
}

async function acted(layers, name, { act, direction = 'in', code }) {
  const size = MiB;
  const connection = await connectHolding(layers);
  const { peer, socket } = connection;
  const { 0: endpoint, 1: other } = await socketPair('unix');
  other.pause();
  const splice = await startAndClose(connection, endpoint, { size, direction });
  // Some turns later, TLS knows that the stream has closed.
  await turns(5);
  assert.strictEqual(socket.destroyed, false);
  act({ socket, other });
  const receiving = receive(other);
  const outcome = splice.finished.then(({ reason }) => reason, (err) => err.code);
  assert.strictEqual(await outcome, code ?? 'end', name);
  await destroyed(socket);
  await receiving.receiver.reached(size);
  receiving.receiver.check(size);
  for (const stream of [peer, endpoint, other])
    stream.destroy();
}

// A write of JavaScript fails as it does when TCP has closed.
for (const layers of [1, 2]) {
  run(async () => {
    const connection = await connectHolding(layers);
    const { peer, socket } = connection;
    const { 0: endpoint, 1: other } = await socketPair('unix');
    other.pause();
    const splice = await startAndClose(connection, endpoint, { size: MiB });
    await turns(5);
    socket.write('lost');
    const { 0: err } = await once(socket, 'error');
    assert.strictEqual(err.code, 'EPIPE');
    await assert.rejects(splice.finished, { code: 'EPIPE' });
    for (const stream of [peer, endpoint, other])
      stream.destroy();
  });
}
