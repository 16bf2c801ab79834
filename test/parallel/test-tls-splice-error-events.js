'use strict';

// 'error' without a listener throws as for any emitter, unless somebody looks
// at the promise; the promise is never reported as unhandled.

const common = require('../common');
if (!common.hasCrypto)
  common.skip('missing crypto');
if (common.isWindows)
  common.skip('no FIFOs on Windows');

const assert = require('assert');
const { once } = require('events');
const fs = require('fs');
const tls = require('tls');
if (tls.TLSSplice === undefined)
  common.skip('built without TLSSplice');

const { closing, fifo, run, tlsPair, turns } = require('../common/tls-splice');

process.on('unhandledRejection', common.mustNotCall());

// A splice to a FIFO without a reader, which fails.
async function failing(prepare) {
  const { client, server } = await tlsPair({ allowHalfOpen: true });
  server.on('error', common.mustNotCall());
  const { reader, writer } = fifo();
  fs.closeSync(reader);
  const splice = server.spliceTo({ fd: writer, direction: 'in' });
  fs.closeSync(writer);
  const closed = closing(splice);
  prepare(splice);
  splice.start();
  client.write('x');
  return closed;
}

// Both listeners throw: both are reported, the one of 'error' first.
for (const also of [true, false]) {
  run(async () => {
    const thrown = [];
    const onUncaught = (err) => thrown.push(err.message);
    process.on('uncaughtException', onUncaught);
    await failing((splice) => {
      splice.on('error', () => { throw new Error('of error'); });
      splice.on('close', common.mustCall(() => {
        thrown.push('close');
        if (also)
          throw new Error('of close');
      }));
    });
    await turns();
    process.removeListener('uncaughtException', onUncaught);
    assert.deepStrictEqual(thrown, ['of error', 'close', ...(also ? ['of close'] : [])]);
  });
}

// Nobody listens.
run(async () => {
  const uncaught = once(process, 'uncaughtException');
  const stats = await failing(() => {});
  assert.strictEqual(stats.reason, 'error');
  const { 0: error } = await uncaught;
  assert.strictEqual(error.code, 'EPIPE');
});

run(async () => {
  process.on('uncaughtException', common.mustNotCall());

  // A listener
  await failing((splice) => splice.on('error', common.mustCall((error) => {
    assert.strictEqual(error.code, 'EPIPE');
    assert.strictEqual(splice.state, 'closed');
  })));

  // `finished` was read, and nobody handles it.
  await failing((splice) => assert(splice.finished instanceof Promise));

  // Both
  await failing((splice) => {
    splice.on('error', common.mustCall());
    assert.rejects(splice.finished, { code: 'EPIPE' }).then(common.mustCall());
  });

  // stop() was called, for whatever reason.
  let stopped;
  const stats = await failing((splice) => {
    splice.on('newListener', common.mustNotCall());
    process.nextTick(() => { stopped = splice.stop(); });
  });
  assert.deepStrictEqual(await stopped, stats);
});
