'use strict';

// A direction that is not spliced stays with JS; two handles may hold the two.
// While 'out' is spliced write() throws, and end() sends what is held.

const common = require('../common');
if (!common.hasCrypto)
  common.skip('missing crypto');

const assert = require('assert');
const { once } = require('events');
const tls = require('tls');
if (tls.TLSSplice === undefined)
  common.skip('built without TLSSplice');

const {
  MiB, receive, run, send, settled, socketPair, tlsPair,
} = require('../common/tls-splice');

const kSize = 2 * MiB + 17;
const state = { code: 'ERR_INVALID_STATE', name: 'Error' };

// In, and JS writes
run(async () => {
  const { client, server } = await tlsPair({ allowHalfOpen: true });
  const { 0: endpoint, 1: other } = await socketPair();
  const splice = server.spliceTo({ stream: endpoint, direction: 'in' }).start();
  const inward = receive(other);
  const outward = receive(client);
  await Promise.all([
    send(client, kSize, { seed: 1 }), send(server, kSize, { seed: 2 }),
  ]);
  (await inward).check(kSize, 1);
  (await outward).check(kSize, 2);
  const stats = await splice.finished;
  assert.strictEqual(stats.bytesIn, kSize);
  assert.strictEqual(stats.bytesOut, 0);
  assert.strictEqual(server.bytesWritten, kSize);
});

// Out, and JS reads
run(async () => {
  const { client, server } = await tlsPair({ allowHalfOpen: true });
  const { 0: endpoint, 1: other } = await socketPair();
  const splice = server.spliceTo({ stream: endpoint, direction: 'out' }).start();
  const inward = receive(server);
  const outward = receive(client);
  await Promise.all([
    send(client, kSize, { seed: 1 }), send(other, kSize, { seed: 2 }),
  ]);
  (await inward).check(kSize, 1);
  (await outward).check(kSize, 2);
  const stats = await splice.finished;
  assert.strictEqual(stats.bytesIn, 0);
  assert.strictEqual(stats.bytesOut, kSize);
  assert.strictEqual(server.bytesRead, kSize);
});

// Two handles, each with an endpoint of its own. One of them stops.
run(async () => {
  const { client, server } = await tlsPair({ allowHalfOpen: true });
  const { 0: sink, 1: received } = await socketPair();
  const { 0: source, 1: sent } = await socketPair('unix');
  const spliceIn = server.spliceTo({ stream: sink, direction: 'in' }).start();
  const spliceOut = server.spliceTo({ stream: source, direction: 'out' }).start();
  assert.throws(() => server.spliceTo({ stream: sink }).start(), state);

  client.write('one');
  assert.strictEqual(`${(await once(received, 'data'))[0]}`, 'one');
  sent.write('two');
  assert.strictEqual(`${(await once(client, 'data'))[0]}`, 'two');

  assert.strictEqual((await spliceIn.stop()).bytesIn, 3);
  client.write('three');
  assert.strictEqual(`${(await once(server, 'data'))[0]}`, 'three');
  assert.throws(() => server.write('no'), state);

  const inward = receive(received);
  const outward = receive(client);
  const again = server.spliceTo({ stream: sink, direction: 'in' }).start();
  await Promise.all([
    send(client, kSize, { seed: 1 }), send(sent, kSize, { seed: 2 }),
  ]);
  (await inward).check(kSize, 1);
  (await outward).check(kSize, 2);
  assert.strictEqual((await again.finished).bytesIn, kSize);
  assert.strictEqual((await spliceOut.finished).bytesOut, kSize + 3);
});

// write() and end() while 'out' is spliced, on the socket of a server and of
// tls.connect()
for (const side of ['server', 'client']) {
  run(async () => {
    const pair = await tlsPair({ allowHalfOpen: true });
    const socket = pair[side];
    const peer = pair[side === 'server' ? 'client' : 'server'];
    const { 0: endpoint, 1: other } = await socketPair();
    peer.pause();
    const splice = socket.spliceTo({ stream: endpoint, direction: 'out' }).start();
    for (const chunk of ['x', Buffer.from('x')]) {
      assert.throws(() => socket.write(chunk), state);
      assert.throws(() => socket.write(chunk, 'latin1', common.mustNotCall()), state);
      assert.throws(() => socket.end(chunk), state);
    }
    assert.strictEqual(socket.destroyed, false);
    assert.strictEqual(socket.writableEnded, false);

    send(other, 32 * MiB).catch(() => {});  // It is not read to its end.
    await settled(() => splice.stats.bytesOut);
    socket.end(common.mustCall());
    const received = receive(peer);
    const stats = await splice.finished;
    assert.strictEqual(stats.reason, 'end');
    assert(stats.bytesOut < 32 * MiB);
    // What had been taken from the endpoint is there, and then close_notify.
    await received;
    assert.strictEqual(received.receiver.bytes, stats.bytesOut);
    assert.strictEqual(endpoint.destroyed, false);
  });

  // write('') is allowed, while the peer does not read and while it does. It is
  // called back, and takes nothing from what the splice sends.
  run(async () => {
    const pair = await tlsPair({ allowHalfOpen: true });
    const socket = pair[side];
    const peer = pair[side === 'server' ? 'client' : 'server'];
    const { 0: endpoint, 1: other } = await socketPair();
    const size = 16 * MiB + 3;
    let empty = 0;
    let called = 0;
    const writeEmpty = () => {
      if (socket.writableEnded)
        return;
      empty++;
      socket.write('', common.mustSucceed(() => called++));
    };
    peer.pause();
    const splice = socket.spliceTo({ stream: endpoint, direction: 'out' }).start();
    writeEmpty();
    const sending = send(other, size);
    await settled(() => splice.stats.bytesOut);
    writeEmpty();
    writeEmpty();
    const received = receive(peer);
    peer.on('data', writeEmpty);
    await sending;
    (await received).check(size);
    assert.strictEqual((await splice.finished).bytesOut, size);
    assert.strictEqual(socket.writableFinished, true);
    assert(empty > 3);
    assert.strictEqual(called, empty);
  });
}

// No 'data' and no 'readable' for JS while 'in' is spliced, nor 'drain'
run(async () => {
  const { client, server } = await tlsPair({ allowHalfOpen: true });
  const { 0: endpoint, 1: other } = await socketPair();
  server.on('drain', common.mustNotCall());
  const splice = server.spliceTo({ stream: endpoint }).start();
  server.on('data', common.mustNotCall());
  server.resume();
  const received = receive(other);
  const back = receive(client);
  server.on('end', common.mustCall());
  await Promise.all([
    send(client, kSize), send(other, kSize),
  ]);
  (await received).check(kSize);
  (await back).check(kSize);
  await splice.finished;
});
