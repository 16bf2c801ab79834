'use strict';

// A sink that does not read stops the sender, and a TLS peer that does not
// read stops the source, with no more than highWaterMark held. Then everything
// arrives.

const common = require('../common');
if (!common.hasCrypto)
  common.skip('missing crypto');

const assert = require('assert');
const tls = require('tls');
if (tls.TLSSplice === undefined)
  common.skip('built without TLSSplice');

const {
  MiB, receive, run, send, settled, socketPair, tlsPair,
} = require('../common/tls-splice');

// More than the kernel's buffers for two sockets take.
const kSize = 32 * MiB;

async function stallIn(highWaterMark, kind) {
  const { client, server } = await tlsPair();
  const { 0: other, 1: endpoint } =
    await socketPair(kind, { pauseOnConnect: true });
  other.pause();
  const splice = server.spliceTo({ stream: endpoint, direction: 'in', highWaterMark });
  splice.start();
  client.resume();
  const sending = send(client, kSize);
  await settled(() => splice.stats.bytesIn + client.writableLength);
  assert(splice.stats.bytesIn < kSize);
  assert(client.writableLength > 0);
  assert(splice.stats.stallsIn > 0);
  const received = receive(other);
  const stats = await splice.finished;
  await sending;
  (await received).check(kSize);
  assert.strictEqual(stats.bytesIn, kSize);
  assert(stats.peakBufferedIn > 0);
  assert(stats.peakBufferedIn <= highWaterMark, `${stats.peakBufferedIn}`);
  assert.strictEqual(stats.peakBufferedOut, 0);
  endpoint.destroy();
  server.end();
}

async function stallOut(highWaterMark, kind) {
  const { client, server } = await tlsPair({ client: { allowHalfOpen: true } });
  const { 0: other, 1: endpoint } = await socketPair(kind);
  const splice = server.spliceTo({ stream: endpoint, direction: 'out', highWaterMark });
  splice.start();
  client.pause();
  const sending = send(other, kSize);
  await settled(() => splice.stats.bytesOut + other.writableLength);
  assert(splice.stats.bytesOut < kSize);
  assert(other.writableLength > 0);
  assert(splice.stats.stallsOut > 0);
  const received = receive(client);
  const stats = await splice.finished;
  await sending;
  (await received).check(kSize);
  assert.strictEqual(stats.bytesOut, kSize);
  assert(stats.peakBufferedOut > 0);
  assert(stats.peakBufferedOut <= highWaterMark, `${stats.peakBufferedOut}`);
  assert.strictEqual(stats.peakBufferedIn, 0);
  endpoint.destroy();
  client.end();
}

run(async () => {
  for (const kind of ['tcp', 'unix']) {
    for (const highWaterMark of [262144, 65536, 20000]) {
      await stallIn(highWaterMark, kind);
      await stallOut(highWaterMark, kind);
    }
  }
});
