'use strict';

// An endpoint that fails: 'error' with the system's code, and the socket is
// handed back alive, with what the endpoint did not take. pipeToNative()
// rejects, and destroys the socket.

const common = require('../common');
if (!common.hasCrypto)
  common.skip('missing crypto');
if (common.isWindows)
  common.skip('no FIFOs on Windows');

const assert = require('assert');
const { once } = require('events');
const fs = require('fs');
const tls = require('tls');
if (tls.TLSSplice === undefined)
  common.skip('built without TLSSplice');

const {
  MiB, Receiver, closing, fifo, pipeSocket, receive, record, run, send, settled,
  socketPair, tlsPair,
} = require('../common/tls-splice');

const kSize = 4 * MiB;

// The reader of a FIFO goes away in the middle.
run(async () => {
  const { client, server } = await tlsPair({ allowHalfOpen: true });
  const { reader, writer } = fifo();
  const sending = send(client, kSize);
  const splice = server.spliceTo({ fd: writer, direction: 'in' });
  const events = record(splice, ['error', 'close']);
  const closed = closing(splice);
  const failed = new Promise((resolve) => splice.on('error', resolve));
  splice.start();
  await settled(() => splice.stats.bytesIn);
  const { bytesIn } = splice.stats;
  assert(bytesIn > 0);
  // All of what it has taken, and not one byte more.
  const receiver = new Receiver();
  const buffer = Buffer.alloc(bytesIn);
  const n = fs.readSync(reader, buffer);
  receiver.update(buffer.subarray(0, n));
  fs.closeSync(reader);
  const error = await failed;
  assert.strictEqual(error.code, 'EPIPE');
  assert.strictEqual(error.syscall, 'write');
  assert.match(error.message, /^write EPIPE/);
  const stats = await closed;
  assert.strictEqual(stats.reason, 'error');
  assert.strictEqual(stats.closeNotify, false);
  assert.deepStrictEqual(events, ['error', 'close']);
  await assert.rejects(splice.finished, error);
  assert.deepStrictEqual(await splice.stop(), stats);
  assert.strictEqual(server.destroyed, false);

  // What was lost is in the FIFO that nobody reads any more.
  assert.strictEqual(n, bytesIn);
  assert.strictEqual(stats.bytesIn, bytesIn);
  await receive(server, receiver);
  await sending;
  receiver.check(kSize);
  // It writes, too.
  server.end('still there');
  assert.strictEqual((await client.setEncoding('utf8').toArray()).join(''), 'still there');
  fs.closeSync(writer);
});

// A Unix socket whose other side is gone
run(async () => {
  const { client, server } = await tlsPair({ allowHalfOpen: true });
  const { 0: endpoint, 1: other } = await socketPair('unix');
  const splice = server.spliceTo({ stream: endpoint, direction: 'in' }).start();
  const failed = once(splice, 'error');
  other.destroy();
  await once(other, 'close');
  const receiver = new Receiver();
  const received = receive(server, receiver);
  client.write('first');
  const { 0: error } = await failed;
  assert.strictEqual(error.code, 'EPIPE');
  assert.strictEqual(error.syscall, 'write');
  client.end();
  await received;
  assert.strictEqual(receiver.bytes, 5);
  assert.strictEqual(server.destroyed, false);
  assert.strictEqual(splice.stats.bytesIn, 0);
});

// A TCP connection that is reset, while it is only read
run(async () => {
  const { client, server } = await tlsPair({ allowHalfOpen: true });
  const { 0: endpoint, 1: other } = await socketPair();
  const splice = server.spliceTo({ stream: endpoint, direction: 'out' }).start();
  other.write('first');
  assert.strictEqual(`${(await once(client, 'data'))[0]}`, 'first');
  const failed = once(splice, 'error');
  other.resetAndDestroy();
  const { 0: error } = await failed;
  assert.strictEqual(error.code, 'ECONNRESET');
  assert.strictEqual(error.syscall, 'read');
  assert.strictEqual(server.destroyed, false);
  // No end that has not been there, and JS can write again.
  server.write('second');
  assert.strictEqual(`${(await once(client, 'data'))[0]}`, 'second');
});

// The same by pipeToNative()
run(async () => {
  const { client, server } = await tlsPair();
  const { reader, writer } = fifo();
  fs.closeSync(reader);
  const done = server.pipeToNative(writer, { direction: 'in' });
  const closed = closing(server);
  let emitted;
  server.on('error', common.mustCall((err) => { emitted = err; }));
  client.write('x');
  client.on('error', () => {});
  await assert.rejects(done, (err) => {
    assert.strictEqual(err.code, 'EPIPE');
    assert.strictEqual(err.syscall, 'write');
    assert.strictEqual(err, emitted);
    return true;
  });
  assert.strictEqual(server.destroyed, true);
  await closed;
  fs.closeSync(writer);
});

// The endpoint's owner destroys it.
run(async () => {
  const { client, server } = await tlsPair({ allowHalfOpen: true });
  const { 0: endpoint, 1: other } = await socketPair();
  const splice = server.spliceTo({ stream: endpoint }).start();
  other.write('x');
  await once(client, 'data');
  const failed = once(splice, 'error');
  endpoint.destroy();
  const { 0: error } = await failed;
  assert.strictEqual(error.code, 'ERR_STREAM_PREMATURE_CLOSE');
  assert.strictEqual(server.destroyed, false);
  server.write('y');
  assert.strictEqual(`${(await once(client, 'data'))[0]}`, 'y');
});

// A device that is full
if (common.isLinux) {
  run(async () => {
    const { client, server } = await tlsPair({ allowHalfOpen: true });
    const fd = fs.openSync('/dev/full', 'w');
    let splice;
    try {
      splice = server.spliceTo({ fd, direction: 'in' });
    } catch (err) {
      // Not before files are endpoints.
      assert.strictEqual(err.code, 'ERR_INVALID_ARG_VALUE');
      fs.closeSync(fd);
      return;
    }
    const failed = once(splice.start(), 'error');
    client.end('x');
    assert.strictEqual((await failed)[0].code, 'ENOSPC');
    assert.strictEqual((await server.setEncoding('utf8').toArray()).join(''), 'x');
    fs.closeSync(fd);
  });
}

// Not used when the splice is for the other direction alone
run(async () => {
  const { client, server } = await tlsPair({ allowHalfOpen: true });
  const { reader, writer } = fifo();
  const splice = server.spliceTo({ fd: reader, direction: 'out' }).start();
  const writing = pipeSocket(writer, { readable: false });
  client.write('to JS');
  assert.strictEqual(`${(await once(server, 'data'))[0]}`, 'to JS');
  writing.end('from the FIFO');
  assert.strictEqual((await client.setEncoding('utf8').toArray()).join(''), 'from the FIFO');
  await splice.finished;
  fs.closeSync(reader);
});
