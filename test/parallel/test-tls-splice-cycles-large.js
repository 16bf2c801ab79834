'use strict';

// A hundred times start() and stop() in one transfer of 100 MiB, in one
// direction, while JS has the other: nothing is lost, repeated or reordered.

const common = require('../common');
if (!common.hasCrypto)
  common.skip('missing crypto');

const assert = require('assert');
const { once } = require('events');
const tls = require('tls');
if (tls.TLSSplice === undefined)
  common.skip('built without TLSSplice');

const {
  MiB, payload, receive, run, send, socketPair, tlsPair, turns,
} = require('../common/tls-splice');

const kCycles = 100;
const kSize = kCycles * MiB;
const kBack = 8 * MiB + 3;

// Each cycle has its part of the payload under way, and stops in the middle of
// it. The last one runs to the end.
async function cycle(from, received, start, ready = () => {}) {
  const chunks = payload(kSize);
  let spliced = 0;
  for (let i = 1; i <= kCycles; i++) {
    for (let bytes = 0; bytes < MiB;) {
      const { value } = chunks.next();
      from.write(value);
      bytes += value.length;
    }
    await ready();
    const splice = start();
    while (received.receiver.bytes < i * MiB &&
           splice.stats.bytesIn + splice.stats.bytesOut < MiB / 2) {
      await turns(1);
    }
    if (i === kCycles) {
      from.end();
      await received;
    }
    const stats = await splice.stop();
    spliced += stats.bytesIn + stats.bytesOut;
    await turns(i % 3);
  }
  assert(spliced > kSize / 4, `${spliced}`);
  return spliced;
}

// In, and JS writes
run(async () => {
  const { client, server } = await tlsPair({ allowHalfOpen: true });
  const { 0: endpoint, 1: other } = await socketPair();
  const received = receive(other);
  const back = receive(client);
  let fromJS = 0;
  server.on('data', (chunk) => {
    fromJS += chunk.length;
    if (!endpoint.write(chunk))
      server.pause();
  });
  endpoint.on('drain', () => server.resume());
  const sending = send(server, kBack, { seed: 2 });
  const spliced = await cycle(
    client, received,
    () => server.spliceTo({ stream: endpoint, direction: 'in' }).start(),
    async () => {
      if (endpoint.writableLength > 0)
        await once(endpoint, 'drain');
    });
  await sending;
  (await received).check(kSize);
  (await back).check(kBack, 2);
  assert.strictEqual(spliced + fromJS, kSize);
  assert.strictEqual(server.bytesRead, kSize);
  assert.strictEqual(server.bytesWritten, kBack);
});

// Out, and JS reads
run(async () => {
  const { client, server } = await tlsPair({ allowHalfOpen: true });
  const { 0: endpoint, 1: other } = await socketPair();
  const received = receive(client);
  const back = receive(server);
  let fromJS = 0;
  endpoint.on('data', (chunk) => {
    fromJS += chunk.length;
    if (!server.write(chunk))
      endpoint.pause();
  });
  server.on('drain', () => endpoint.resume());
  const sending = send(client, kBack, { seed: 2 });
  const spliced = await cycle(
    other, received,
    () => server.spliceTo({ stream: endpoint, direction: 'out' }).start());
  await sending;
  (await received).check(kSize);
  (await back).check(kBack, 2);
  assert.strictEqual(spliced + fromJS, kSize);
  assert.strictEqual(server.bytesRead, kBack);
  assert.strictEqual(server.bytesWritten, kSize);
});
