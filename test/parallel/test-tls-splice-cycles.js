'use strict';

// start() and stop() again and again in one transfer, with JS in between:
// nothing is lost, repeated or reordered.

const common = require('../common');
if (!common.hasCrypto)
  common.skip('missing crypto');

const assert = require('assert');
const tls = require('tls');
if (tls.TLSSplice === undefined)
  common.skip('built without TLSSplice');

const {
  MiB, receive, run, send, socketPair, tlsPair, turns,
} = require('../common/tls-splice');

const kSize = 6 * MiB + 1;

for (const version of ['TLSv1.2', 'TLSv1.3']) {
  for (const highWaterMark of [undefined, 5000]) {
    // In: JS passes on to the same endpoint what it gets between the splices.
    run(async () => {
      const { client, server } = await tlsPair({
        minVersion: version, maxVersion: version, allowHalfOpen: true,
      });
      const { 0: endpoint, 1: other } = await socketPair();
      const received = receive(other);
      let fromJS = 0;
      const onData = (chunk) => {
        fromJS += chunk.length;
        endpoint.write(chunk);
      };
      server.on('data', onData);
      server.on('end', common.mustCall(() => endpoint.end()));
      const sending = send(client, kSize);
      let spliced = 0;
      let cycles = 0;
      while (!server.readableEnded) {
        if (endpoint.writableLength === 0 && endpoint.writable) {
          const splice = server.spliceTo({
            stream: endpoint, direction: 'in', end: false, highWaterMark,
          }).start();
          await turns(cycles % 7);
          const { bytesIn } = await splice.stop();
          spliced += bytesIn;
          cycles++;
        }
        await turns(cycles % 3);
      }
      await sending;
      (await received).check(kSize);
      assert.strictEqual(spliced + fromJS, kSize);
      assert.strictEqual(server.bytesRead, kSize);
      assert(cycles > 3);
    });

    // Out: JS sends what the endpoint yields between the splices.
    run(async () => {
      const { client, server } = await tlsPair({
        minVersion: version, maxVersion: version, allowHalfOpen: true,
      });
      const { 0: endpoint, 1: other } = await socketPair();
      const received = receive(client);
      const sending = send(other, kSize);
      let fromJS = 0;
      endpoint.on('data', (chunk) => {
        fromJS += chunk.length;
        server.write(chunk);
      });
      endpoint.on('end', common.mustCall(() => server.end()));
      let spliced = 0;
      let cycles = 0;
      while (!endpoint.readableEnded && !endpoint.destroyed) {
        const splice = server.spliceTo({
          stream: endpoint, direction: 'out', end: false, highWaterMark,
        }).start();
        await turns(cycles % 7);
        const { bytesOut } = await splice.stop();
        spliced += bytesOut;
        cycles++;
        await turns(cycles % 3);
      }
      await sending;
      (await received).check(kSize);
      assert.strictEqual(spliced + fromJS, kSize);
      assert.strictEqual(server.bytesWritten, kSize);
      assert(cycles > 3);
    });
  }
}

// Both at once, back to back, on two sockets of one connection
run(async () => {
  const { client, server } = await tlsPair({ allowHalfOpen: true });
  const ends = [];
  const lasts = [];
  let cycling = true;
  for (const socket of [client, server]) {
    const { 0: endpoint, 1: other } = await socketPair();
    ends.push(other);
    lasts.push((async () => {
      let cycles = 0;
      for (; cycling; cycles++) {
        const splice = socket.spliceTo({ stream: endpoint }).start();
        await turns(cycles % 5);
        assert.strictEqual((await splice.stop()).reason, 'stopped');
      }
      assert(cycles > 3);
      return socket.spliceTo({ stream: endpoint }).start();
    })());
  }
  const receivers = ends.map((other) => receive(other));
  const sending = ends.map((other, i) => send(other, kSize, { seed: i, end: false }));
  await Promise.all(receivers.map(({ receiver }) => receiver.reached(kSize)));
  await Promise.all(sending);
  receivers[0].receiver.check(kSize, 1);
  receivers[1].receiver.check(kSize, 0);
  cycling = false;
  // Only now: what ends in the middle of a stop is not started again.
  const splices = await Promise.all(lasts);
  for (const other of ends)
    other.end();
  await Promise.all(receivers);
  for (const { finished } of splices)
    assert.strictEqual((await finished).reason, 'end');
});
