'use strict';

// A source whose other end is gone when it is read: what is still in it is read
// first, and then it has ended.

const common = require('../common');
if (!common.hasCrypto)
  common.skip('missing crypto');
if (common.isWindows)
  common.skip('no FIFOs on Windows');

const assert = require('assert');
const { spawnSync } = require('child_process');
const { once } = require('events');
const fs = require('fs');
const net = require('net');
const tls = require('tls');
if (tls.TLSSplice === undefined)
  common.skip('built without TLSSplice');

const {
  closing, fifo, payload, receive, run, settled, socketPair, tlsPair,
} = require('../common/tls-splice');

// What a pipe holds
const kSize = 60000;
const { 0: chunk } = [...payload(kSize)];

// What has hung up, with the payload still in it
const sources = {
  'a FIFO': async () => {
    const { reader, writer } = fifo();
    assert.strictEqual(fs.writeSync(writer, chunk), kSize);
    fs.closeSync(writer);
    return { fd: reader };
  },
  'a FIFO of a process that has gone': async () => {
    const { reader, writer } = fifo();
    const { status } = spawnSync('cat', { input: chunk, stdio: ['pipe', writer, 'inherit'] });
    assert.strictEqual(status, 0);
    fs.closeSync(writer);
    return { fd: reader };
  },
  'a FIFO as a stream': async () => {
    const { reader, writer } = fifo();
    assert.strictEqual(fs.writeSync(writer, chunk), kSize);
    fs.closeSync(writer);
    return { stream: new net.Socket({ fd: reader, manualStart: true }) };
  },
  'a Unix socket': async () => {
    const { 0: other, 1: endpoint } = await socketPair('unix', { pauseOnConnect: true });
    other.end(chunk);
    other.destroySoon();
    await closing(other);
    return { stream: endpoint };
  },
  'a TCP socket': async () => {
    const { 0: other, 1: endpoint } = await socketPair('tcp', { pauseOnConnect: true });
    other.end(chunk);
    other.destroySoon();
    await closing(other);
    return { fd: endpoint._handle.fd };
  },
};

for (const { 0: name, 1: make } of Object.entries(sources)) {
  for (const stall of [false, true]) {
    run(async () => {
      const { client, server } = await tlsPair({ allowHalfOpen: true });
      const options = await make();
      if (stall)
        client.pause();
      const splice = server.spliceTo({
        ...options, direction: 'out', highWaterMark: stall ? 10000 : undefined,
      }).start();
      if (stall)
        await settled(() => splice.stats.bytesOut);
      (await receive(client)).check(kSize);
      const stats = await splice.finished;
      assert.strictEqual(stats.bytesOut, kSize, name);
      assert.strictEqual(stats.reason, 'end');
      assert.strictEqual(server.destroyed, false);
      client.end('still there');
      assert.strictEqual((await server.setEncoding('latin1').toArray()).join(''), 'still there');
      if (options.fd !== undefined && name.startsWith('a FIFO'))
        fs.closeSync(options.fd);
    });
  }
}

// As both: the rest can be read, although a write fails. The error is the
// splice's, and what was read before it is sent.
run(async () => {
  const { client, server } = await tlsPair({ allowHalfOpen: true });
  const { 0: other, 1: endpoint } = await socketPair('unix', { pauseOnConnect: true });
  other.end(chunk);
  other.destroySoon();
  await closing(other);
  const splice = server.spliceTo({ stream: endpoint, end: false }).start();
  const received = receive(client);
  await received.receiver.reached(kSize);
  received.receiver.check(kSize);
  assert.strictEqual(splice.state, 'running');
  const failed = once(splice, 'error');
  client.write('x');
  assert.strictEqual((await failed)[0].code, 'EPIPE');
  assert.strictEqual(splice.stats.bytesOut, kSize);
  assert.strictEqual(`${(await once(server, 'data'))[0]}`, 'x');
});
