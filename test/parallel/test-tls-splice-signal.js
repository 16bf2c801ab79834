'use strict';

// An AbortSignal stops the splice, and no more than that. With pipeToNative() it does
// more: see test-tls-splice-pipe.js.

const common = require('../common');
if (!common.hasCrypto)
  common.skip('missing crypto');

const assert = require('assert');
const { getEventListeners, once } = require('events');
const tls = require('tls');
if (tls.TLSSplice === undefined)
  common.skip('built without TLSSplice');

const { record, run, socketPair, tlsPair } = require('../common/tls-splice');

run(async () => {
  const { client, server } = await tlsPair({ allowHalfOpen: true });
  const { 0: endpoint, 1: other } = await socketPair();
  const controller = new AbortController();
  const { signal } = controller;
  const splice = server.spliceTo({ stream: endpoint, signal });
  const events = record(splice, ['error', 'close']);
  splice.start();
  client.write('spliced');
  assert.strictEqual(`${(await once(other, 'data'))[0]}`, 'spliced');
  controller.abort(new Error('not an error of the splice'));
  const stats = await splice.finished;
  assert.strictEqual(stats.reason, 'aborted');
  assert.deepStrictEqual(events, ['close']);
  assert.strictEqual(server.destroyed, false);
  assert.strictEqual(endpoint.destroyed, false);
  assert.deepStrictEqual(await splice.stop(), stats);
  assert.strictEqual(getEventListeners(signal, 'abort').length, 0);
  client.write('ordinary');
  assert.strictEqual(`${(await once(server, 'data'))[0]}`, 'ordinary');
  server.write('ordinary');
  assert.strictEqual(`${(await once(client, 'data'))[0]}`, 'ordinary');
});

// Aborted before the start
run(async () => {
  const { server } = await tlsPair();
  const { 0: endpoint } = await socketPair();
  const splice = server.spliceTo({ stream: endpoint, signal: AbortSignal.abort() });
  assert.strictEqual(splice.state, 'idle');
  assert.strictEqual(splice.start(), splice);
  assert.strictEqual((await splice.finished).reason, 'aborted');
  assert.strictEqual(server.destroyed, false);
  // The directions are free.
  await server.spliceTo({ stream: endpoint }).start().stop();
});

// A signal that is never used is let go at the end.
run(async () => {
  const { server } = await tlsPair();
  const { 0: endpoint } = await socketPair();
  const { signal } = new AbortController();
  const splice = server.spliceTo({ stream: endpoint, signal }).start();
  assert.strictEqual(getEventListeners(signal, 'abort').length, 1);
  assert.strictEqual((await splice.stop()).reason, 'stopped');
  assert.strictEqual(getEventListeners(signal, 'abort').length, 0);
});

// start() throws what its signal does, and has taken nothing.
for (const signal of [
  { aborted: false },
  { get aborted() { throw new Error('mine'); } },
  { aborted: false, addEventListener() { throw new Error('mine'); } },
]) {
  run(async () => {
    const { client, server } = await tlsPair();
    const { 0: endpoint, 1: other } = await socketPair();
    const splice = server.spliceTo({ stream: endpoint, signal });
    assert.throws(() => splice.start(), /mine|not a function/);
    assert.strictEqual(splice.state, 'idle');
    // The directions are free, and the socket is JS's.
    server.write('ordinary');
    assert.strictEqual(`${(await once(client, 'data'))[0]}`, 'ordinary');
    const another = server.spliceTo({ stream: endpoint }).start();
    client.write('spliced');
    assert.strictEqual(`${(await once(other, 'data'))[0]}`, 'spliced');
    await another.stop();
    assert.strictEqual((await splice.stop()).reason, 'stopped');
  });
}

// `aborted` is looked at before the splice takes anything, whatever the user does when it
// is.
const kActions = {
  stop: ({ splice }) => splice.stop(),
  start: ({ splice }) => splice.start(),
  destroy: ({ server }) => server.destroy(),
  another: ({ server, endpoint, more }) => more.push(server.spliceTo({ stream: endpoint }).start()),
  throw: () => { throw new RangeError('aborted?'); },
};
for (const action of Object.keys(kActions)) {
  for (let when = 1; when <= 3; when++) {
    run(async () => {
      const { client, server } = await tlsPair({ allowHalfOpen: true });
      const { 0: endpoint, 1: other } = await socketPair();
      const { signal } = new AbortController();
      const world = { server, endpoint, more: [] };
      let reads = 0;
      Object.defineProperty(signal, 'aborted', {
        get() {
          if (++reads === when && world.splice)
            kActions[action](world);
          return false;
        },
      });
      world.splice = server.spliceTo({ stream: endpoint, signal });
      const events = record(world.splice, ['error', 'close']);
      let thrown;
      try {
        world.splice.start();
      } catch (err) {
        thrown = err.code ?? err.name;
      }
      if (thrown !== undefined) {
        const possible = {
          destroy: 'ERR_SOCKET_CLOSED', another: 'ERR_INVALID_STATE', throw: 'RangeError',
        };
        assert.strictEqual(thrown, possible[action]);
        assert.strictEqual(world.splice.state, 'idle');
      }
      for (const splice of [world.splice, ...world.more]) {
        if (splice.state === 'running') {
          const arrived = once(other, 'data');
          client.write('spliced');
          assert.strictEqual(`${(await arrived)[0]}`, 'spliced');
        }
        const { reason } = await splice.stop();
        assert.strictEqual(reason, server.destroyed && !thrown ? 'destroyed' : 'stopped');
      }
      assert.deepStrictEqual(events, ['close']);
      if (!server.destroyed) {
        const back = once(server, 'data');
        client.write('ordinary');
        assert.strictEqual(`${(await back)[0]}`, 'ordinary');
      }
      client.destroy();
      server.destroy();
    });
  }
}
