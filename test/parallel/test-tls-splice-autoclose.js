'use strict';

// With autoClose the endpoint is closed exactly once, however the splice ends;
// without, it stays open.

const common = require('../common');
if (!common.hasCrypto)
  common.skip('missing crypto');
if (common.isWindows)
  common.skip('no FIFOs on Windows');

const assert = require('assert');
const { once } = require('events');
const fs = require('fs');
const net = require('net');
const { finished } = require('stream');
const tls = require('tls');
if (tls.TLSSplice === undefined)
  common.skip('built without TLSSplice');

const {
  closing, fifo, isOpen, run, settled, socketPair, tlsPair,
} = require('../common/tls-splice');

const endings = {
  end: ({ client }) => client.end(),
  stopped: ({ splice }) => splice.stop(),
  aborted: ({ controller }) => controller.abort(),
  destroyed: ({ server }) => server.destroy(),
  error: ({ client, reader }) => {
    fs.closeSync(reader);
    client.write('x');
  },
};

for (const autoClose of [false, true]) {
  for (const { 0: reason, 1: finish } of Object.entries(endings)) {
    // A file descriptor
    run(async () => {
      const { client, server } = await tlsPair({ allowHalfOpen: true });
      client.on('error', () => {});
      const { reader, writer } = fifo();
      const controller = new AbortController();
      const splice = server.spliceTo({
        fd: writer, direction: 'in', autoClose, signal: controller.signal,
      });
      splice.on('error', () => {});
      assert(isOpen(writer));
      const closed = closing(splice);
      splice.start();
      client.write('x');
      await settled(() => splice.stats.bytesIn);
      finish({ client, server, splice, controller, reader });
      assert.strictEqual((await closed).reason, reason);
      assert.strictEqual(isOpen(writer), !autoClose);
      // Once: whoever has the number next keeps it.
      const next = [];
      while (autoClose && !next.includes(writer))
        next.push(fs.openSync(__filename));
      await splice.stop();
      await settled(() => 0);
      for (const fd of next)
        fs.closeSync(fd);
      if (!autoClose)
        fs.closeSync(writer);
      if (reason !== 'error')
        fs.closeSync(reader);
    });

    // A stream
    if (reason === 'error')
      continue;
    run(async () => {
      const { client, server } = await tlsPair({ allowHalfOpen: true });
      client.on('error', () => {});
      const { 0: endpoint, 1: other } = await socketPair();
      other.resume();
      const controller = new AbortController();
      const splice = server.spliceTo({
        stream: endpoint, direction: 'in', autoClose, signal: controller.signal,
      }).start();
      let closes = 0;
      endpoint.on('close', () => closes++);
      // First the endpoint is closed, then everybody is told.
      splice.on('close', common.mustCall(() => {
        assert.strictEqual(splice.state, 'closed');
        assert.strictEqual(closes, autoClose ? 1 : 0);
      }));
      client.write('x');
      await settled(() => splice.stats.bytesIn);
      finish({ client, server, splice, controller });
      assert.strictEqual((await splice.finished).reason, reason);
      assert.strictEqual(closes, autoClose ? 1 : 0);
      if (!autoClose) {
        await settled(() => 0);
        assert.strictEqual(endpoint.destroyed, false);
      }
    });
  }
}

// A stream whose other side does not read is not waited for, unless both sides have
// come to their end. What it has not written by then does not count, and is given
// back, if there is somebody to give it to.
const connections = { tcp: socketPair, unix: () => socketPair('unix'), tls: tlsPair };

async function open(connect) {
  const { client, server, raw } = await tlsPair({ allowHalfOpen: true, raw: true });
  const pair = await connect();
  const { 0: endpoint, 1: other } = Array.isArray(pair) ? pair : [pair.server, pair.client];
  for (const socket of [client, server, raw, endpoint, other])
    socket.on('error', () => {});
  let closed = false;
  endpoint.on('close', () => { closed = true; });
  const controller = new AbortController();
  return {
    client, server, raw, endpoint, other, controller, isClosed: () => closed,
  };
}

for (const { 0: kind, 1: connect } of Object.entries(connections)) {
  for (const [reason, cut] of [
    ['stopped', ({ splice }) => splice.stop()],
    ['aborted', ({ controller }) => controller.abort()],
    ['destroyed', ({ server }) => server.destroy()],
    ['error', ({ endpoint }) => endpoint.destroy()],
  ]) {
    run(async () => {
      const world = await open(connect);
      const { client, server, endpoint, other, controller, isClosed } = world;
      other.pause();
      const splice = server.spliceTo({
        stream: endpoint, direction: 'in', autoClose: true, signal: controller.signal,
      }).start();
      splice.on('error', () => {});
      let rest = 0;
      server.on('data', (chunk) => { rest += chunk.length; });
      let sent = 0;
      const write = () => {
        do
          sent += 65536;
        while (client.write(Buffer.alloc(65536)));
      };
      client.on('drain', write);
      write();
      await settled(() => splice.stats.bytesIn);
      assert(splice.stats.stallsIn > 0);
      client.removeListener('drain', write);
      const done = closing(splice);
      cut({ ...world, splice });
      assert.strictEqual(endpoint.destroyed, true);
      const { bytesIn, reason: actual } = await done;
      assert.strictEqual(actual, reason);
      assert.strictEqual(isClosed(), true);
      let received = 0;
      other.on('data', (chunk) => { received += chunk.length; });
      other.resume();
      await new Promise((resolve) => finished(other, { writable: false }, resolve));
      if (kind === 'tls')
        assert(received <= bytesIn);
      else
        assert.strictEqual(received, bytesIn);
      if (reason === 'destroyed') {
        assert.strictEqual(rest, 0);
      } else {
        // It is an ordinary socket again, with every other byte.
        client.end();
        await once(server, 'end');
        assert.strictEqual(bytesIn + rest, sent);
      }
      other.destroy();
      client.destroy();
      server.destroy();
    });
  }
}

// At the end of both sides it writes what JS has given it, however long that takes.
// stop(), abort and destroy() cut it short.
for (const connect of Object.values(connections)) {
  for (const cut of [
    null,
    ({ splice }) => splice.stop(),
    ({ controller }) => controller.abort(),
    ({ server }) => server.destroy(),
    ({ server }) => server.destroy(new Error('mine')),
  ]) {
    run(async () => {
      const world = await open(connect);
      const { client, server, endpoint, other, controller, isClosed } = world;
      other.pause();
      const size = 16 * 1024 * 1024;
      endpoint.write(Buffer.alloc(size));
      const done = server.spliceTo({
        stream: endpoint, direction: 'out', autoClose: true, signal: controller.signal,
      }).start();
      client.resume();
      other.end('x');
      await once(client, 'end');
      await settled(() => endpoint.writableLength);
      assert.strictEqual(done.state, 'stopping');
      assert.strictEqual(done.stats.reason, 'end');
      assert.strictEqual(endpoint.destroyed, false);
      let received = 0;
      other.on('data', (chunk) => { received += chunk.length; });
      other.pause();
      const ended = new Promise((resolve) => finished(other, { writable: false }, resolve));
      const closed = closing(done);
      if (cut)
        cut({ ...world, splice: done });
      else
        other.resume();
      const stats = await closed;
      assert.strictEqual(stats.reason, 'end');
      assert.strictEqual(stats.bytesOut, 1);
      assert.strictEqual(isClosed(), true);
      assert.deepStrictEqual(await done.stop(), stats);
      other.resume();
      await ended;
      if (cut)
        assert(received < size, `${received}`);
      else
        assert.strictEqual(received, size);
      for (const socket of [client, server, other])
        socket.destroy();
    });
  }
}

// The same by pipeToNative(), which is fulfilled when the endpoint is closed, and
// without the listeners that Node's destroySoon() adds.
for (const connect of Object.values(connections)) {
  run(async () => {
    const { client, server, endpoint, other, isClosed } = await open(connect);
    other.pause();
    const size = 16 * 1024 * 1024;
    endpoint.write(Buffer.alloc(size));
    let isOver = false;
    const done = server.pipeToNative(endpoint, { direction: 'out', autoClose: true })
      .finally(() => { isOver = true; });
    client.resume();
    other.end('x');
    await once(client, 'end');
    endpoint.removeAllListeners();
    endpoint.on('close', common.mustCall());
    await settled(() => endpoint.writableLength);
    assert.strictEqual(isOver, false);
    let received = 0;
    other.on('data', (chunk) => { received += chunk.length; });
    await new Promise((resolve) => finished(other.resume(), { writable: false }, resolve));
    assert.strictEqual(received, size);
    assert.strictEqual((await done).reason, 'end');
    assert.strictEqual(endpoint.closed, true);
    assert.strictEqual(isClosed(), false);  // That listener was removed.
    for (const socket of [client, server, other])
      socket.destroy();
  });
}

// When the endpoint has been closed by somebody else, too
for (const started of [false, true]) {
  run(async () => {
    const { server, endpoint, isClosed } = await open(socketPair);
    const splice = server.spliceTo({ stream: endpoint, autoClose: true });
    splice.on('error', () => {});
    const closed = closing(splice);
    if (started)
      splice.start();
    endpoint.destroy();
    if (!started) {
      assert.throws(() => splice.start(), { code: 'ERR_SOCKET_CLOSED' });
      splice.stop();
    }
    assert.strictEqual((await closed).reason, started ? 'error' : 'stopped');
    assert.strictEqual(isClosed(), true);
    server.destroy();
  });
}

// Also when it was never started
run(async () => {
  const { server } = await tlsPair();
  const { reader, writer } = fifo();
  await server.spliceTo({ fd: writer, direction: 'in' }).stop();
  assert(isOpen(writer));
  await server.spliceTo({ fd: writer, direction: 'in', autoClose: true }).stop();
  assert(!isOpen(writer));
  fs.closeSync(reader);
});

// The number can be reused while a splice runs that does not own it.
run(async () => {
  const { client, server } = await tlsPair({ allowHalfOpen: true });
  const { reader, writer } = fifo();
  const splice = server.spliceTo({ fd: writer, direction: 'in' }).start();
  fs.closeSync(writer);
  const stranger = fifo();
  const again = fs.openSync(stranger.path, 'r+');
  assert([stranger.reader, stranger.writer, again].includes(writer));
  client.end('x');
  assert.strictEqual((await splice.finished).bytesIn, 1);
  const buffer = Buffer.alloc(10);
  assert.strictEqual(fs.readSync(reader, buffer), 1);
  assert.strictEqual(fs.readSync(reader, buffer), 0);
  assert(isOpen(writer));
  assert.throws(() => fs.readSync(stranger.reader, buffer), { code: 'EAGAIN' });
  for (const fd of [reader, stranger.reader, stranger.writer, again])
    fs.closeSync(fd);
});

// The end() of the stream may be the user's, who forgets the callback, or throws.
for (const end of [
  (stream) => { net.Socket.prototype.end.call(stream); },
  () => { throw new Error('of the user'); },
]) {
  run(async () => {
    const { client, server } = await tlsPair({ allowHalfOpen: true });
    const { 0: endpoint, 1: far } = await socketPair('unix');
    const uncaught = end.length === 0 && once(process, 'uncaughtException');
    let endpointClosed = false;
    endpoint.on('close', () => { endpointClosed = true; });
    endpoint.end = () => end(endpoint);
    const splice = server.spliceTo({ stream: endpoint, direction: 'in', autoClose: true, end: false }).start();
    far.resume();
    client.end('x');
    assert.strictEqual((await splice.finished).reason, 'end');
    assert.strictEqual(endpointClosed, true);
    if (uncaught)
      assert.strictEqual((await uncaught)[0].message, 'of the user');
    far.destroy();
    server.destroy();
  });
}
