'use strict';

// What TLS itself sends and gets in between: session tickets, and new keys by
// renegotiation.

const common = require('../common');
if (!common.hasCrypto)
  common.skip('missing crypto');

const assert = require('assert');
const { once } = require('events');
const tls = require('tls');
if (tls.TLSSplice === undefined)
  common.skip('built without TLSSplice');

const {
  MiB, receive, run, send, settled, socketPair, tlsPair, turns,
} = require('../common/tls-splice');

const kSize = 4 * MiB + 31;

// TLS 1.3: the tickets come after the handshake, while 'in' is spliced, and
// JS hears of them.
run(async () => {
  const { 0: endpoint, 1: other } = await socketPair();
  const { client, server } = await tlsPair({
    minVersion: 'TLSv1.3', allowHalfOpen: true,
  });
  const sessions = [];
  client.on('session', (session) => sessions.push(session));
  const splice = client.spliceTo({ stream: endpoint }).start();
  server.write('x');
  await once(other, 'data');
  assert.strictEqual(sessions.length > 0, true);
  assert.strictEqual(splice.state, 'running');
  await splice.stop();
});

// TLS 1.2: JS can renegotiate only when nothing is spliced; afterwards, a
// splice goes on with the new keys.
run(async () => {
  const { 0: endpoint, 1: other } = await socketPair();
  const { client, server } = await tlsPair({
    maxVersion: 'TLSv1.2', allowHalfOpen: true,
  });
  server.resume();
  client.resume();
  await new Promise((resolve) => {
    assert.strictEqual(client.renegotiate({}, common.mustSucceed(resolve)), true);
  });
  const splice = server.spliceTo({ stream: endpoint }).start();
  const inward = receive(other);
  const outward = receive(client);
  await Promise.all([
    send(client, kSize, { seed: 1 }), send(other, kSize, { seed: 2 }),
  ]);
  (await inward).check(kSize, 1);
  (await outward).check(kSize, 2);
  assert.strictEqual((await splice.finished).reason, 'end');
});

// While it is spliced, asked for by the peer
run(async () => {
  const { 0: endpoint, 1: other } = await socketPair();
  const { client, server } = await tlsPair({
    maxVersion: 'TLSv1.2', allowHalfOpen: true,
  });
  const splice = server.spliceTo({ stream: endpoint }).start();
  const inward = receive(other);
  const outward = receive(client);
  for (const kind of ['before', 'after']) {
    client.write(kind);
    await inward.receiver.reached(kind === 'before' ? 6 : 11);
    other.write(kind);
    await outward.receiver.reached(kind === 'before' ? 6 : 11);
    // OpenSSL does not take other data in the middle of a handshake.
    await new Promise((resolve) => {
      assert.strictEqual(client.renegotiate({}, common.mustSucceed(resolve)), true);
    });
  }
  client.end();
  other.end();
  await Promise.all([inward, outward]);
  const stats = await splice.finished;
  assert.strictEqual(stats.reason, 'end');
  assert.strictEqual(stats.bytesIn, 11);
  assert.strictEqual(stats.bytesOut, 11);
});

// While it is spliced, asked for by its JS, with data of the peer that was sent
// before and waits for the sink, and data of the source. SSL_write() has to read
// the peer's answer, and fails if it meets the data.
for (const highWaterMark of [4096, undefined]) {
  run(async () => {
    const { 0: endpoint, 1: other } = await socketPair('unix');
    const { client, server } = await tlsPair({
      maxVersion: 'TLSv1.2', allowHalfOpen: true,
    });
    other.pause();
    const splice = client.spliceTo({ stream: endpoint, highWaterMark }).start();
    const sent = [send(server, kSize, { seed: 1, end: false })];
    await settled(() => splice.stats.bytesIn);
    assert.notStrictEqual(splice.stats.bytesIn, kSize);
    const outward = receive(server);
    const done = new Promise((resolve) => {
      assert.strictEqual(client.renegotiate({}, common.mustSucceed(resolve)), true);
    });
    sent.push(send(other, kSize, { seed: 2, end: false }));
    await turns();
    const inward = receive(other);
    await Promise.all([...sent, done, inward.receiver.reached(kSize),
                       outward.receiver.reached(kSize)]);
    server.end();
    other.end();
    (await inward).check(kSize, 1);
    (await outward).check(kSize, 2);
    assert.strictEqual((await splice.finished).reason, 'end');
  });
}
