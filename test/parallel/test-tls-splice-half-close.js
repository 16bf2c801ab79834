'use strict';

// Each direction ends by itself. With `end: false` nothing is passed on: the
// endpoint stays writable, and JS can go on writing to the TLS peer.

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

const kSize = 1 * MiB + 13;

// The TLS peer ends first, then the endpoint has much to say; and the other
// way round.
run(async () => {
  const { client, server } = await tlsPair({ allowHalfOpen: true });
  const { 0: endpoint, 1: other } = await socketPair();
  const splice = server.spliceTo({ stream: endpoint }).start();
  client.end('a question');
  assert.strictEqual(`${(await once(other, 'data'))[0]}`, 'a question');
  await once(other, 'end');
  assert.strictEqual(splice.state, 'running');
  const received = receive(client);
  await send(other, kSize);
  (await received).check(kSize);
  const stats = await splice.finished;
  assert.strictEqual(stats.reason, 'end');
  assert.strictEqual(stats.bytesOut, kSize);
});

run(async () => {
  const { client, server } = await tlsPair({ allowHalfOpen: true });
  const { 0: endpoint, 1: other } = await socketPair();
  const splice = server.spliceTo({ stream: endpoint }).start();
  other.end('a question');
  assert.strictEqual(`${(await once(client, 'data'))[0]}`, 'a question');
  await once(client, 'end');
  assert.strictEqual(splice.state, 'running');
  const received = receive(other);
  await send(client, kSize);
  (await received).check(kSize);
  const stats = await splice.finished;
  assert.strictEqual(stats.reason, 'end');
  assert.strictEqual(stats.bytesIn, kSize);
  assert.strictEqual(stats.closeNotify, true);
});

// end: false, the TLS peer ends
run(async () => {
  const { client, server } = await tlsPair({ allowHalfOpen: true });
  const { 0: endpoint, 1: other } = await socketPair();
  other.on('end', common.mustNotCall());
  const splice = server.spliceTo({ stream: endpoint, direction: 'in', end: false }).start();
  client.end('first ');
  assert.strictEqual(`${(await once(other, 'data'))[0]}`, 'first ');
  assert.strictEqual((await splice.finished).reason, 'end');
  endpoint.write('second');
  assert.strictEqual(`${(await once(other, 'data'))[0]}`, 'second');
});

// end: false, the endpoint ends
run(async () => {
  const { client, server } = await tlsPair({ allowHalfOpen: true });
  const { 0: endpoint, 1: other } = await socketPair();
  client.on('end', common.mustNotCall());
  const splice = server.spliceTo({ stream: endpoint, direction: 'out', end: false }).start();
  other.end('first ');
  assert.strictEqual(`${(await once(client, 'data'))[0]}`, 'first ');
  assert.strictEqual((await splice.finished).reason, 'end');
  server.write('second');
  assert.strictEqual(`${(await once(client, 'data'))[0]}`, 'second');
  // And so can the next splice.
  const next = await socketPair();
  const again = server.spliceTo({ stream: next[0], direction: 'out', end: false }).start();
  next[1].end('third');
  assert.strictEqual(`${(await once(client, 'data'))[0]}`, 'third');
  assert.strictEqual((await again.finished).bytesOut, 5);
});

// end: false in both directions: writing is JS's as soon as that one is over.
run(async () => {
  const { client, server } = await tlsPair({ allowHalfOpen: true });
  const { 0: endpoint, 1: other } = await socketPair();
  const splice = server.spliceTo({ stream: endpoint, end: false }).start();
  assert.throws(() => server.write('no'), { code: 'ERR_INVALID_STATE' });
  other.end('out');
  assert.strictEqual(`${(await once(client, 'data'))[0]}`, 'out');
  await settled(() => splice.stats.bytesOut);
  assert.strictEqual(splice.state, 'running');
  server.write('JS');
  assert.strictEqual(`${(await once(client, 'data'))[0]}`, 'JS');
  client.end('in');
  assert.strictEqual(`${(await once(other, 'data'))[0]}`, 'in');
  const stats = await splice.finished;
  assert.strictEqual(stats.bytesIn, 2);
  assert.strictEqual(stats.bytesOut, 3);
});
