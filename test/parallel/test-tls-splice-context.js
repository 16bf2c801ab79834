'use strict';

// The asynchronous context of a splice is that of its maker: AsyncLocalStorage
// in its listeners and promises, and a resource of its own for async_hooks.

const common = require('../common');
if (!common.hasCrypto)
  common.skip('missing crypto');

const assert = require('assert');
const {
  AsyncLocalStorage, createHook, executionAsyncId, executionAsyncResource,
} = require('async_hooks');
const tls = require('tls');
if (tls.TLSSplice === undefined)
  common.skip('built without TLSSplice');

const { run, socketPair, tlsPair, turns } = require('../common/tls-splice');

const storage = new AsyncLocalStorage();
const resources = new Map();
createHook({
  init(asyncId, type, triggerAsyncId, resource) {
    if (type === 'TLSSPLICE')
      resources.set(asyncId, { resource, executionAsyncId: executionAsyncId(), calls: 0 });
  },
  before(asyncId) {
    if (resources.has(asyncId))
      resources.get(asyncId).calls++;
  },
  destroy(asyncId) {
    if (resources.has(asyncId))
      resources.get(asyncId).destroyed = true;
  },
}).enable();

// Two on sockets that were made elsewhere, at once; whoever ends them is in
// another context.
run(async () => {
  const outer = [];
  for (const name of ['a', 'b']) {
    const { client, server } = await tlsPair({ allowHalfOpen: true });
    const { 0: endpoint, 1: other } = await socketPair();
    const closed = storage.run(name, async () => {
      const splice = server.spliceTo({ stream: endpoint });
      const store = new Promise((resolve) => {
        splice.on('close', () => resolve(storage.getStore()));
      });
      splice.start();
      await splice.finished;
      assert.strictEqual(storage.getStore(), name);
      assert.strictEqual(await store, name);
    });
    outer.push({ client, other, closed });
  }
  storage.run('c', () => {
    for (const { client, other } of outer) {
      client.end('x');
      other.resume().end();
    }
  });
  for (const { client, closed } of outer) {
    await closed;
    client.resume();
  }
});

// Whatever ends it, in whatever context: both events are in that of its maker.
const mine = new Error('mine');
for (const [reason, end] of Object.entries({
  'stopped': ({ splice }) => splice.stop(),
  'aborted': ({ controller }) => controller.abort(),
  'destroyed': ({ server }) => server.destroy(),
  'destroyed with an error': ({ server }) => server.destroy(mine),
  'error': ({ endpoint }) => endpoint.destroy(),
  'end': ({ client, other }) => { client.resume().end(); other.resume().end(); },
})) {
  for (const started of [true, false]) {
    for (const autoClose of [true, false]) {
      if (!started && reason !== 'stopped')
        continue;
      run(async () => {
        const { client, server } = await tlsPair({ allowHalfOpen: true });
        const { 0: endpoint, 1: other } = await socketPair();
        for (const socket of [client, server, other])
          socket.on('error', () => {});
        const controller = new AbortController();
        const splice = storage.run('maker', () => server.spliceTo({
          stream: endpoint, autoClose, signal: controller.signal,
        }));
        const stores = [];
        const closed = new Promise((resolve) => {
          splice.on('error', () => stores.push(storage.getStore()));
          splice.on('close', () => {
            stores.push(storage.getStore());
            resolve();
          });
        });
        if (started)
          storage.run('starter', () => splice.start());
        await turns();
        storage.run('ender', () => end({ client, server, endpoint, other, splice, controller }));
        await closed;
        const fails = reason.includes('error');
        assert.deepStrictEqual(stores, fails ? ['maker', 'maker'] : ['maker']);
      });
    }
  }
}

// An 'error' without a listener is an uncaught exception, in that context, too.
run(async () => {
  const { server } = await tlsPair();
  const { 0: endpoint } = await socketPair();
  server.on('error', () => {});
  const splice = storage.run('maker', () => server.spliceTo({ stream: endpoint }));
  const closed = new Promise((resolve) => splice.on('close', () => resolve(storage.getStore())));
  process.once('uncaughtException', common.mustCall((err) => assert.strictEqual(err, mine)));
  splice.start();
  storage.run('ender', () => server.destroy(mine));
  assert.strictEqual(await closed, 'maker');
});

// pipeToNative()
run(async () => {
  const { client, server } = await tlsPair({ allowHalfOpen: true });
  const { 0: endpoint, 1: other } = await socketPair();
  const done = storage.run('pipe', () => server.pipeToNative(endpoint).then(
    common.mustCall(() => storage.getStore())));
  client.end();
  other.resume().end();
  client.resume();
  assert.strictEqual(await done, 'pipe');
});

// The resource
run(async () => {
  const { client, server } = await tlsPair({ allowHalfOpen: true });
  const { 0: endpoint, 1: other } = await socketPair();
  const known = new Set(resources.keys());
  const id = executionAsyncId();
  const splice = server.spliceTo({ stream: endpoint });
  const { 0: asyncId } = [...resources.keys()].filter((id) => !known.has(id));
  const entry = resources.get(asyncId);
  assert.strictEqual(entry.executionAsyncId, id);
  assert.notStrictEqual(entry.resource, executionAsyncResource());
  splice.start();
  client.end('x');
  other.resume().end();
  client.resume();
  await splice.finished;
  // It is by this resource that JS hears of the end.
  assert(entry.calls > 0);
  while (!entry.destroyed)
    await turns(1);
});
