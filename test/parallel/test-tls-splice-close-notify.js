'use strict';

// The end of what the TLS peer sends, with and without close_notify: the
// endpoint gets every byte and then the end, JS sees 'end', and the stats tell
// the two apart.

const common = require('../common');
if (!common.hasCrypto)
  common.skip('missing crypto');

const assert = require('assert');
const { once } = require('events');
const tls = require('tls');
if (tls.TLSSplice === undefined)
  common.skip('built without TLSSplice');

const {
  MiB, receive, run, send, settled, socketPair, tlsOver, tlsPair,
} = require('../common/tls-splice');

const kSize = 1 * MiB + 9;

for (const version of ['TLSv1.2', 'TLSv1.3']) {
  for (const stall of [false, true]) {
    run(async () => {
      for (const closeNotify of [true, false]) {
        const { 0: a, 1: b } = await socketPair();
        const { client, server } = tlsOver(a, b, {
          minVersion: version, maxVersion: version, allowHalfOpen: true,
        });
        await once(client, 'secureConnect');
        const { 0: other, 1: endpoint } =
          await socketPair('unix', { pauseOnConnect: true });
        other.pause();
        const ended = once(server, 'end');
        server.on('data', common.mustNotCall());
        const splice = server.spliceTo({ stream: endpoint, direction: 'in' }).start();
        await send(client, kSize, { end: closeNotify });
        if (!closeNotify) {
          await settled(() => a.writableLength + splice.stats.bytesIn);
          a.end();
        }
        if (stall)
          await settled(() => splice.stats.bytesIn);
        (await receive(other)).check(kSize);
        await ended;
        const stats = await splice.finished;
        assert.strictEqual(stats.bytesIn, kSize);
        assert.strictEqual(stats.closeNotify, closeNotify);
        assert.strictEqual(stats.reason, 'end');
        // The other direction is JS's still.
        assert.strictEqual(server.writable, true);
        client.resume();
        server.end();
      }
    });
  }
}

// Without allowHalfOpen, the end of one direction is the end of the other.
run(async () => {
  const { client, server } = await tlsPair();
  const { 0: endpoint, 1: other } = await socketPair();
  const splice = server.spliceTo({ stream: endpoint }).start();
  other.write('an answer');
  assert.strictEqual(`${(await once(client, 'data'))[0]}`, 'an answer');
  client.end();
  await once(other.resume(), 'end');
  const stats = await splice.finished;
  assert.strictEqual(stats.reason, 'end');
  assert.strictEqual(stats.closeNotify, true);
  assert.strictEqual(stats.bytesOut, 9);
  await once(client, 'close');
});

// It had come before the splice did.
run(async () => {
  const { client, server } = await tlsPair({ allowHalfOpen: true });
  const { 0: endpoint, 1: other } = await socketPair();
  client.end('all of it');
  await settled(() => server.readableLength);
  assert.strictEqual(server.readableLength, 9);
  const splice = server.spliceTo({ stream: endpoint, direction: 'in' }).start();
  assert.strictEqual((await other.setEncoding('utf8').toArray()).join(''), 'all of it');
  const stats = await splice.finished;
  assert.strictEqual(stats.bytesIn, 9);
  assert.strictEqual(stats.reason, 'end');
  assert.strictEqual(stats.closeNotify, true);
});
