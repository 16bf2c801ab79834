'use strict';

// stop() gives back an ordinary socket: the next byte is the one that follows
// what was spliced, in both directions.

const common = require('../common');
if (!common.hasCrypto)
  common.skip('missing crypto');

const assert = require('assert');
const fs = require('fs');
const { once } = require('events');
const tls = require('tls');
if (tls.TLSSplice === undefined)
  common.skip('built without TLSSplice');

const {
  MiB, Receiver, fifo, pipeSocket, receive, record, run, send, settled,
  socketPair, tlsPair, turns,
} = require('../common/tls-splice');

// Idempotent, in each state
run(async () => {
  const { server } = await tlsPair();
  const { 0: endpoint } = await socketPair();
  const splice = server.spliceTo({ stream: endpoint });
  const events = record(splice, ['close', 'error']);
  const idle = server.spliceTo({ stream: endpoint });
  const { reason } = await idle.stop();
  assert.strictEqual(reason, 'stopped');
  assert.strictEqual(idle.state, 'closed');

  splice.start();
  const promise = splice.stop();
  assert.strictEqual(splice.state, 'stopping');
  assert.strictEqual(splice.stop(), promise);
  const stats = await promise;
  assert.strictEqual(stats.reason, 'stopped');
  assert.strictEqual(splice.state, 'closed');
  assert.strictEqual(splice.stop(), promise);
  assert.deepStrictEqual(await splice.stop(), stats);
  assert.deepStrictEqual(await splice.finished, stats);
  assert.deepStrictEqual(events, ['close']);
  assert.strictEqual(server.destroyed, false);
  assert.strictEqual(endpoint.destroyed, false);
});

// The sockets are ordinary ones again.
run(async () => {
  const { client, server } = await tlsPair({ allowHalfOpen: true });
  const { 0: endpoint, 1: other } = await socketPair();
  const splice = server.spliceTo({ stream: endpoint }).start();
  client.write('spliced');
  assert.strictEqual(`${(await once(other, 'data'))[0]}`, 'spliced');
  other.write('spliced back');
  assert.strictEqual(`${(await once(client, 'data'))[0]}`, 'spliced back');
  const stats = await splice.stop();
  assert.strictEqual(stats.bytesIn, 7);
  assert.strictEqual(stats.bytesOut, 12);

  client.write('ordinary');
  assert.strictEqual(`${(await once(server, 'data'))[0]}`, 'ordinary');
  server.write('ordinary back');
  assert.strictEqual(`${(await once(client, 'data'))[0]}`, 'ordinary back');
  other.write('endpoint');
  assert.strictEqual(`${(await once(endpoint, 'data'))[0]}`, 'endpoint');
  endpoint.write('endpoint back');
  assert.strictEqual(`${(await once(other, 'data'))[0]}`, 'endpoint back');
  assert.strictEqual(server.bytesRead, 15);
  assert.strictEqual(server.bytesWritten, 25);

  // Both ends, as without a splice
  client.end();
  await once(server.resume(), 'end');
  server.end();
  await once(client.resume(), 'end');
});

// In the middle of a transfer, with a sink that is full: what it has not taken
// reaches 'data'.
run(async () => {
  for (const kind of ['tcp', 'unix']) {
    const { client, server } = await tlsPair({ allowHalfOpen: true });
    const { 0: other, 1: endpoint } =
      await socketPair(kind, { pauseOnConnect: true });
    other.pause();
    const size = 32 * MiB;
    const sending = send(client, size);
    const splice = server.spliceTo({ stream: endpoint, direction: 'in' }).start();
    await settled(() => splice.stats.bytesIn);
    const { bytesIn, stallsIn } = await splice.stop();
    assert(bytesIn < size);
    assert(stallsIn > 0);
    // First what the sink got, then what JS gets.
    const receiver = new Receiver();
    const received = receive(other, receiver);
    endpoint.end();
    await received;
    assert.strictEqual(receiver.bytes, bytesIn);
    await receive(server, receiver);
    await sending;
    receiver.check(size);
    assert.strictEqual(server.bytesRead, size);
  }
});

// In the middle of a transfer, with a TLS peer that does not read: what was
// taken from the source reaches it, what was not stays with the source.
run(async () => {
  for (const kind of ['tcp', 'unix']) {
    const { client, server } = await tlsPair({ allowHalfOpen: true });
    const { 0: other, 1: endpoint } = await socketPair(kind);
    client.pause();
    const size = 32 * MiB;
    const sending = send(other, size);
    const splice = server.spliceTo({ stream: endpoint, direction: 'out' }).start();
    await settled(() => splice.stats.bytesOut);
    const stopped = splice.stop();
    const receiver = new Receiver();
    const received = receive(client, receiver);
    const { bytesOut } = await stopped;
    assert(bytesOut < size);
    await receiver.reached(bytesOut);
    assert.strictEqual(receiver.bytes, bytesOut);
    endpoint.pipe(server);
    await received;
    await sending;
    receiver.check(size);
    assert.strictEqual(server.bytesWritten, size);
  }
});

// stop() does not emit 'data' from inside itself.
run(async () => {
  const { client, server } = await tlsPair({ allowHalfOpen: true });
  const { 0: endpoint } = await socketPair('tcp', { pauseOnConnect: true });
  let inside = true;
  server.on('data', () => assert.strictEqual(inside, false));
  const splice = server.spliceTo({ stream: endpoint, direction: 'in' }).start();
  send(client, 32 * MiB).catch(() => {});  // It is cut off.
  await settled(() => splice.stats.bytesIn);
  const promise = splice.stop();
  inside = false;
  await promise;
  await once(server, 'data');
});

// What JS had read to the end before it was taken over
for (const stop of [true, false]) {
  run(async () => {
    const { reader, writer } = fifo();
    const filler = Buffer.alloc(4096);
    let filled = 0;
    assert.throws(() => {
      for (;;)
        filled += fs.writeSync(writer, filler);
    }, { code: 'EAGAIN' });
    const { client, server } = await tlsPair({ allowHalfOpen: true });
    const readable = () => {};
    server.on('readable', readable);
    send(client, 10_000);
    await settled(() => server.readableLength + server._readableState.ended);
    assert.strictEqual(server._readableState.ended, true);
    server.removeListener('readable', readable);

    const splice = server.spliceTo({ fd: writer, direction: 'in' }).start();
    const received = receive(server);
    await turns();
    assert.strictEqual(server.readableEnded, false);
    if (stop) {
      await splice.stop();
      (await received).check(10_000);
    } else {
      const source = pipeSocket(reader);
      const sink = new Receiver();
      let skip = filled;
      source.on('data', (chunk) => {
        const n = Math.min(skip, chunk.length);
        skip -= n;
        sink.update(chunk.subarray(n));
      });
      assert.strictEqual((await splice.finished).reason, 'end');
      await sink.reached(10_000);
      sink.check(10_000);
      (await received).check(0);
      source.destroy();
    }
    assert.strictEqual(server.readableEnded, true);
  });
}

// A listener to 'data' ends the socket when it gets the first of what comes back:
// that does not touch the rest, which has yet to be decrypted.
for (const maxVersion of ['TLSv1.2', 'TLSv1.3']) {
  for (const highWaterMark of [1000, 100_000]) {
    run(async () => {
      const { client, server } = await tlsPair({ allowHalfOpen: true, maxVersion });
      const { 0: endpoint } = await socketPair();
      const size = 12 * MiB;
      const splice = server.spliceTo({ stream: endpoint, direction: 'in', highWaterMark }).start();
      const sending = send(client, size);
      await settled(() => splice.stats.bytesIn);
      let rest = 0;
      server.on('data', (chunk) => {
        rest += chunk.length;
        if (!server.writableEnded)
          server.end();
      });
      const ended = [once(server, 'end'), once(client.resume(), 'end')];
      const { bytesIn } = await splice.stop();
      await Promise.all([sending, ...ended]);
      assert.strictEqual(bytesIn + rest, size);
      endpoint.destroy();
    });
  }
}
