'use strict';

// destroy() of the socket: not one more byte, and the handle closes. The
// endpoint stays its owner's.

const common = require('../common');
if (!common.hasCrypto)
  common.skip('missing crypto');

const assert = require('assert');
const { once } = require('events');
const tls = require('tls');
if (tls.TLSSplice === undefined)
  common.skip('built without TLSSplice');

const {
  MiB, record, run, send, settled, socketPair, tlsPair,
} = require('../common/tls-splice');

async function busy(options) {
  const { client, server } = await tlsPair();
  client.on('error', () => {});
  const { 0: endpoint, 1: other } = await socketPair();
  other.pause();
  const splice = server.spliceTo({ stream: endpoint, ...options });
  const events = record(splice, ['error', 'close']);
  splice.start();
  send(client, 32 * MiB).catch(() => {});  // It is cut off.
  send(other, 32 * MiB).catch(() => {});
  await settled(() => splice.stats.bytesIn + splice.stats.bytesOut);
  return { client, server, endpoint, other, splice, events };
}

run(async () => {
  const { server, endpoint, splice, events } = await busy();
  server.destroy();
  const stats = await splice.finished;
  assert.strictEqual(stats.reason, 'destroyed');
  assert.deepStrictEqual(events, ['close']);
  assert.strictEqual(splice.state, 'closed');
  assert.strictEqual(endpoint.destroyed, false);
  assert.deepStrictEqual(await splice.stop(), stats);
  assert.deepStrictEqual(splice.stats, stats);
});

run(async () => {
  const { server, endpoint, splice, events } = await busy();
  const mine = new Error('mine');
  const failed = once(splice, 'error');
  const socketFailed = once(server, 'error');
  server.destroy(mine);
  assert.strictEqual((await failed)[0], mine);
  assert.strictEqual((await socketFailed)[0], mine);
  await assert.rejects(splice.finished, mine);
  assert.deepStrictEqual(events, ['error', 'close']);
  assert.strictEqual(splice.stats.reason, 'destroyed');
  assert.strictEqual(endpoint.destroyed, false);
});

// By pipeToNative(): it was asked to run to the end, and did not.
run(async () => {
  const { client, server } = await tlsPair();
  client.on('error', () => {});
  const { 0: endpoint } = await socketPair();
  const done = server.pipeToNative(endpoint);
  server.destroy();
  await assert.rejects(done, { code: 'ERR_STREAM_PREMATURE_CLOSE', side: 'tls' });
  assert.strictEqual(endpoint.destroyed, false);
});

run(async () => {
  const { client, server } = await tlsPair();
  client.on('error', () => {});
  const { 0: endpoint } = await socketPair();
  const mine = new Error('mine');
  const done = server.pipeToNative(endpoint);
  server.on('error', common.mustCall((err) => assert.strictEqual(err, mine)));
  server.destroy(mine);
  await assert.rejects(done, mine);
});

// While it stops
run(async () => {
  const { server, splice, events } = await busy();
  const stopped = splice.stop();
  server.destroy();
  assert.strictEqual((await stopped).reason, 'stopped');
  assert.deepStrictEqual(events, ['close']);
});

// In the turn of start(), and by a listener of what the end brings
run(async () => {
  const { client, server } = await tlsPair();
  client.on('error', () => {});
  const { 0: endpoint } = await socketPair();
  const splice = server.spliceTo({ stream: endpoint }).start();
  server.destroy();
  assert.strictEqual((await splice.finished).reason, 'destroyed');
});

run(async () => {
  const { client, server } = await tlsPair({ allowHalfOpen: true });
  const { 0: endpoint } = await socketPair();
  const splice = server.spliceTo({ stream: endpoint }).start();
  server.on('end', common.mustCall(() => server.destroy()));
  client.end();
  client.on('error', () => {});
  assert.strictEqual((await splice.finished).reason, 'destroyed');
});

// An idle splice learns of it when it is started.
run(async () => {
  const { client, server } = await tlsPair();
  client.on('error', () => {});
  const { 0: endpoint } = await socketPair();
  const splice = server.spliceTo({ stream: endpoint });
  server.destroy();
  assert.throws(() => splice.start(), { code: 'ERR_SOCKET_CLOSED' });
  assert.strictEqual((await splice.stop()).reason, 'stopped');
});
