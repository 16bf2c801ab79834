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
      endpoint.on('close', autoClose ? common.mustCall() : () => {});
      client.write('x');
      await settled(() => splice.stats.bytesIn);
      finish({ client, server, splice, controller });
      assert.strictEqual((await splice.finished).reason, reason);
      if (autoClose) {
        if (!endpoint.closed)
          await once(endpoint, 'close');
      } else {
        await settled(() => 0);
        assert.strictEqual(endpoint.destroyed, false);
      }
    });
  }
}

// A stream whose other side does not read is not waited for by destroy(). What it
// has not written by then does not count.
for (const connect of [socketPair, () => socketPair('unix'), tlsPair]) {
  run(async () => {
    const { client, server } = await tlsPair({ allowHalfOpen: true });
    client.on('error', () => {});
    const pair = await connect();
    const { 0: endpoint, 1: other } = Array.isArray(pair) ? pair : [pair.server, pair.client];
    other.on('error', () => {});
    other.pause();
    const splice = server.spliceTo({
      stream: endpoint, direction: 'in', autoClose: true,
    }).start();
    const write = () => {
      while (client.write(Buffer.alloc(65536)));
    };
    client.on('drain', write);
    write();
    await settled(() => splice.stats.bytesIn);
    assert(splice.stats.stallsIn > 0);
    client.removeListener('drain', write);
    server.destroy();
    const { bytesIn, reason } = await splice.finished;
    assert.strictEqual(reason, 'destroyed');
    if (!endpoint.closed)
      await once(endpoint, 'close');
    let received = 0;
    other.on('data', (chunk) => { received += chunk.length; });
    other.resume();
    await new Promise((resolve) => finished(other, { writable: false }, resolve));
    if (connect === tlsPair)
      assert(received <= bytesIn);
    else
      assert.strictEqual(received, bytesIn);
    other.destroy();
    client.destroy();
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
