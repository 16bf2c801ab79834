'use strict';

// How much all splices on one event loop move in one turn of it: with 200 busy
// ones not more than with 20. This is counted in bytes.

const common = require('../common');
if (!common.hasCrypto)
  common.skip('missing crypto');

const assert = require('assert');
const tls = require('tls');
if (tls.TLSSplice === undefined)
  common.skip('built without TLSSplice');

const { MiB, payload, receive, run, socketPair, tlsPair } = require('../common/tls-splice');

const kSplices = 200;
const kSize = 400 * 1024;
// What a turn allows is 2 MiB, and an eighth more. But a splice that has begun goes on until
// its share is spent, and how many splices are busy is an estimate: some have to wait for
// a turn until the kernel has more for them.
const kPerTurn = 2 * MiB;
const kMostPerTurn = 2.5 * MiB;
// At first no splice knows how many others there are.
const kFirstTurns = 4;

// Waits until the kernel has the bytes.
function written(stream) {
  const bytes = Buffer.concat([...payload(kSize)]);
  return new Promise((resolve) => stream.write(bytes, resolve));
}

// A splice that is not started, and has all that it is to move before it.
async function prepare(direction) {
  const { client, server } = await tlsPair({ allowHalfOpen: true });
  const { 0: near, 1: far } = await socketPair();
  await written(direction === 'in' ? client : far);
  const { receiver } = receive(direction === 'in' ? far : client);
  return { splice: server.spliceTo({ stream: near, direction }), receiver };
}

for (const direction of ['in', 'out']) {
  run(async () => {
    const all = await Promise.all(Array.from({ length: kSplices }, () => prepare(direction)));
    const moved = () => all.reduce((sum, { splice: { stats } }) => sum + stats.bytesIn + stats.bytesOut, 0);

    for (const { splice } of all)
      splice.start();
    const turns = [];
    for (let before = 0; before < kSplices * kSize;) {
      await new Promise(setImmediate);
      const now = moved();
      if (now > before)
        turns.push(now - before);
      before = now;
    }
    const later = turns.slice(kFirstTurns);
    assert(later.length > 0, `${direction}: ${turns}`);
    for (const bytes of later)
      assert(bytes <= kMostPerTurn, `${direction}: ${turns}`);
    const mean = later.reduce((sum, bytes) => sum + bytes) / later.length;
    assert(mean <= kPerTurn * 9 / 8, `${direction}: ${turns}`);

    await Promise.all(all.map(({ receiver }) => receiver.reached(kSize)));
    for (const { receiver } of all)
      receiver.check(kSize);
    await Promise.all(all.map(({ splice }) => splice.stop()));
  });
}
