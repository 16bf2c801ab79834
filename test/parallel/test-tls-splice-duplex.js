'use strict';

// Both directions, to each kind of stream, from both sides of each version of
// TLS: every byte arrives, and the counters say so.

const common = require('../common');
if (!common.hasCrypto)
  common.skip('missing crypto');

const assert = require('assert');
const { once } = require('events');
const tls = require('tls');
if (tls.TLSSplice === undefined)
  common.skip('built without TLSSplice');

const {
  MiB, receive, run, send, socketPair, tlsPair,
} = require('../common/tls-splice');

const kIn = 4 * MiB + 12345;
const kOut = 3 * MiB + 54321;

async function test(version, side, kind) {
  const pair = await tlsPair({
    minVersion: version,
    maxVersion: version,
    allowHalfOpen: true,
  });
  const socket = pair[side];
  const peer = pair[side === 'client' ? 'server' : 'client'];
  const { 0: endpoint, 1: other } = await socketPair(kind);

  socket.on('data', common.mustNotCall());
  const ended = once(socket, 'end');
  const splice = socket.spliceTo({ stream: endpoint });
  splice.on('error', common.mustNotCall());
  const closed = once(splice, 'close');
  assert.strictEqual(splice.state, 'idle');
  assert.strictEqual(splice.start(), splice);
  assert.strictEqual(splice.state, 'running');
  assert.strictEqual(splice.stats.reason, null);

  const inward = receive(other);
  const outward = receive(peer);
  await Promise.all([
    send(peer, kIn, { seed: 1 }),
    send(other, kOut, { seed: 2 }),
  ]);
  (await inward).check(kIn, 1);
  (await outward).check(kOut, 2);
  await ended;

  const { 0: stats } = await closed;
  assert.deepStrictEqual(await splice.finished, stats);
  assert.deepStrictEqual(splice.stats, stats);
  assert.strictEqual(splice.state, 'closed');
  assert.strictEqual(stats.bytesIn, kIn);
  assert.strictEqual(stats.bytesOut, kOut);
  assert.strictEqual(stats.reason, 'end');
  assert.strictEqual(stats.closeNotify, true);
  assert.strictEqual(typeof stats.stallsIn, 'number');
  assert.strictEqual(typeof stats.stallsOut, 'number');
  assert(stats.peakBufferedIn <= 262144, `${stats.peakBufferedIn}`);
  assert(stats.peakBufferedOut <= 262144, `${stats.peakBufferedOut}`);
  // As without a splice: cleartext that was read and written.
  assert.strictEqual(socket.bytesRead, kIn);
  assert.strictEqual(socket.bytesWritten, kOut);
  endpoint.destroy();
}

run(async () => {
  for (const version of ['TLSv1.2', 'TLSv1.3']) {
    for (const side of ['client', 'server']) {
      for (const kind of ['tcp', 'unix'])
        await test(version, side, kind);
    }
  }
});
