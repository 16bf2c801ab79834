'use strict';

// Whatever is allowed to be held, everything arrives.

const common = require('../common');
if (!common.hasCrypto)
  common.skip('missing crypto');

const assert = require('assert');
const tls = require('tls');
if (tls.TLSSplice === undefined)
  common.skip('built without TLSSplice');

const {
  receive, run, send, socketPair, tlsPair,
} = require('../common/tls-splice');

async function test(highWaterMark, size) {
  const { client, server } = await tlsPair({ allowHalfOpen: true });
  const { 0: endpoint, 1: other } = await socketPair();
  const done = server.pipeToNative(endpoint, { highWaterMark });
  const inward = receive(other);
  const outward = receive(client);
  await Promise.all([
    send(client, size, { seed: 1 }), send(other, size, { seed: 2 }),
  ]);
  const stats = await done;
  (await inward).check(size, 1);
  (await outward).check(size, 2);
  assert.strictEqual(stats.bytesIn, size);
  assert.strictEqual(stats.bytesOut, size);
  // Of one byte at least, and the record that is made of it.
  const most = Math.max(highWaterMark, 64);
  assert(stats.peakBufferedIn <= most, `${stats.peakBufferedIn}`);
  assert(stats.peakBufferedOut <= most, `${stats.peakBufferedOut}`);
}

run(async () => {
  for (const size of [0, 1, 16384, 70000])
    await test(1, Math.min(size, 16384));
  for (const highWaterMark of [2, 1000, 16383, 16384, 16385, 100000, 2 ** 24, 2 ** 40, Number.MAX_SAFE_INTEGER])
    await test(highWaterMark, highWaterMark < 1000 ? 20000 : 1e6);
});
