'use strict';

// Code of the user that runs where a program seldom has any: in pause() of the stream
// below, in async_hooks, in a tick behind the bytes that a splice gives back. And what a
// socket has that no program would give it.

const common = require('../common');
if (!common.hasCrypto)
  common.skip('missing crypto');

const assert = require('assert');
const { createHook } = require('async_hooks');
const { pbkdf2 } = require('crypto');
const { once } = require('events');
const fs = require('fs');
const net = require('net');
const { Duplex } = require('stream');
const tls = require('tls');
if (tls.TLSSplice === undefined)
  common.skip('built without TLSSplice');

const tmpdir = require('../common/tmpdir');
const {
  MiB, duplexOver, receive, run, settled, socketPair, tlsOver, tlsPair, track, turns,
} = require('../common/tls-splice');

tmpdir.refresh();

async function fill(socket) {
  do
    socket.write(Buffer.alloc(MiB));
  while (socket.writableLength === 0);
  await settled(() => socket._handle.writeQueueSize);
}

// A TLSSocket over a stream of JavaScript, and its peer, which runs over TCP.
async function overDuplex(options) {
  const { 0: a, 1: b } = await socketPair();
  const under = Duplex.from({ readable: b, writable: b });
  const { client: peer, server: socket } = tlsOver(a, under, options);
  await Promise.all([once(peer, 'secureConnect'), once(socket, 'secure')]);
  for (const each of [peer, socket, a, b, under])
    each.on('error', () => {});
  return { peer, socket, under };
}

// JavaScript has written behind what a splice still sends. The socket is destroyed, and
// connected again without TLS, before that is sent.
for (const write of ['write', 'end']) {
  run(async () => {
    const { client, server } = await tlsPair();
    client.on('error', () => {});
    const { 0: endpoint, 1: other } = await socketPair('unix', { pauseOnConnect: true });
    const listener = net.createServer((socket) => track(socket)).listen(0);
    await once(listener, 'listening');
    await fill(endpoint);
    client.pause();
    const splice = server.spliceTo({ stream: endpoint }).start();
    splice.on('error', () => {});
    client.write(Buffer.alloc(50_000));
    other.write(Buffer.alloc(24 * MiB));
    await settled(() => splice.stats.bytesOut);
    server.once('data', common.mustCall(() => process.nextTick(() => {
      server.destroy();
      server.connect(listener.address().port);
    })));
    const stopped = splice.stop();
    server[write]('behind');
    await stopped;
    // What was to be sent before is not sent now, and not asked of the other handle.
    await turns(50);
    server.destroy();
    listener.close();
  });
}

// A hook destroys the socket in the turn of a splice, while a file is being read.
run(async () => {
  const { socket } = await overDuplex();
  const file = tmpdir.resolve('source');
  fs.writeFileSync(file, Buffer.alloc(3 * MiB));
  const fd = fs.openSync(file);
  const ids = new Set();
  let isArmed = false;
  const hook = createHook({
    init(id, type) {
      if (type === 'TLSSPLICE')
        ids.add(id);
    },
    before(id) {
      if (isArmed && ids.has(id)) {
        isArmed = false;
        socket.destroy();
      }
    },
  }).enable();
  const splice = socket.spliceTo({ fd, direction: 'out' });
  splice.on('error', () => {});
  // All threads are busy, so that the file is not read.
  for (let i = 0; i < 4; i++)
    pbkdf2('a', 'b', 100_000, 64, 'sha512', () => {});
  splice.start();
  await turns(4);
  isArmed = true;
  socket.write('');
  await assert.doesNotReject(splice.stop());
  hook.disable();
  assert.strictEqual(socket.destroyed, true);
  fs.closeSync(fd);
});

// A renegotiation that is asked for before the first turn: the stream below has a write to
// complete, and takes no other.
for (const direction of ['in', 'out', 'duplex']) {
  for (const count of [0, 1, 2]) {
    run(async () => {
      const { 0: a, 1: b } = await socketPair();
      const { client, server } = tlsOver(duplexOver(b), a, { maxVersion: 'TLSv1.2' });
      await Promise.all([once(client, 'secureConnect'), once(server, 'secure')]);
      server.resume();
      await turns(20);
      const { 0: endpoint, 1: other } = await socketPair('unix');
      other.resume();
      const splice = client.spliceTo({ stream: endpoint, direction }).start();
      await turns(count);
      await new Promise((resolve) => client.renegotiate({}, common.mustSucceed(resolve)));
      await turns(1);
      await splice.stop();
      await new Promise((resolve) => client.write('x', common.mustSucceed(resolve)));
    });
  }
}

// pause() of the stream below, which a stopping splice calls, starts another splice: that
// would overtake the bytes that are given back.
run(async () => {
  const { peer, socket, under } = await overDuplex();
  const { 0: endpoint, 1: other } = await socketPair('unix');
  const { 0: second } = await socketPair('unix');
  other.pause();
  await fill(endpoint);
  const splice = socket.spliceTo({ fd: endpoint._handle.fd, direction: 'in' }).start();
  peer.write(Buffer.alloc(200_000, 'x'));
  await settled(() => splice.stats.peakBufferedIn);
  const { pause } = under;
  let refused = 0;
  under.pause = function() {
    under.pause = pause;
    const result = pause.call(this);
    if (splice.state !== 'running') {
      assert.throws(() => socket.spliceTo({ stream: second, direction: 'in' }).start(), {
        code: 'ERR_INVALID_STATE',
      });
      refused++;
    }
    return result;
  };
  const received = receive(socket);
  const { bytesIn } = await splice.stop();
  peer.end();
  assert.strictEqual((await received).bytes, 200_000 - bytesIn);
  assert.strictEqual(refused, 1);
});

// A Writable that has no _writev() writes chunk by chunk.
for (const _writev of [null, undefined]) {
  run(async () => {
    const { client, server } = await tlsPair({ allowHalfOpen: true });
    const { 0: endpoint, 1: other } = await socketPair();
    const received = receive(client);
    server._writev = _writev;
    server.cork();
    server.write('one');
    server.write('two');
    const splice = server.spliceTo({ stream: endpoint }).start();
    server.uncork();
    await received.receiver.reached(6);
    other.write('spliced');
    await received.receiver.reached(13);
    await splice.stop();
    assert.strictEqual(server._writev, _writev);
    server.end();
    await received;
  });
}

// A stream below that is a proxy, of which a trap throws when the splice looks for the sockets
// that the socket runs over: start() takes nothing, and the end of a splice does not look. When
// the splice looks whether one of those has failed, the exception is reported as uncaught.
for (const trap of ['getPrototypeOf', 'isExtensible']) {
  run(async () => {
    let throws = false;
    const { 0: a, 1: b } = await socketPair();
    const under = new Proxy(b, {
      [trap](...args) {
        if (throws)
          throw new Error(trap);
        return Reflect[trap](...args);
      },
    });
    const { client, server } = tlsOver(a, under);
    await Promise.all([once(client, 'secureConnect'), once(server, 'secure')]);
    const { 0: endpoint, 1: other } = await socketPair();
    const splice = server.spliceTo({ stream: endpoint });
    throws = true;
    assert.throws(() => splice.start(), { message: trap });
    assert.strictEqual(splice.state, 'idle');
    throws = false;
    splice.start();
    client.write('bytes');
    await once(other, 'data');
    throws = true;
    assert.strictEqual((await splice.stop()).reason, 'stopped');
    throws = false;
    for (const each of [client, server, endpoint, other])
      each.destroy();
  });
}

run(async () => {
  let throws = false;
  const { 0: a, 1: b } = await socketPair();
  const error = new Error('of the proxy');
  const under = new Proxy(b, {
    get(target, name) {
      if (throws && name === '_handle')
        throw error;
      return Reflect.get(target, name);
    },
  });
  const { client, server } = tlsOver(a, under);
  await Promise.all([once(client, 'secureConnect'), once(server, 'secure')]);
  const { 0: endpoint, 1: other } = await socketPair();
  process.once('uncaughtException', common.mustCall((err) => assert.strictEqual(err, error)));
  throws = true;
  const splice = server.spliceTo({ stream: endpoint }).start();
  throws = false;
  client.write('bytes');
  assert.strictEqual(`${(await once(other, 'data'))[0]}`, 'bytes');
  assert.strictEqual((await splice.stop()).reason, 'stopped');
  for (const each of [client, server, endpoint, other])
    each.destroy();
});
