'use strict';

// What tells of splices without being part of the program: diagnostics channels, and
// NODE_DEBUG=tls.

const common = require('../common');
if (!common.hasCrypto)
  common.skip('missing crypto');

const assert = require('assert');
const { AsyncLocalStorage } = require('async_hooks');
const { spawnSync } = require('child_process');
const { subscribe, unsubscribe } = require('diagnostics_channel');
const tls = require('tls');
if (tls.TLSSplice === undefined)
  common.skip('built without TLSSplice');

const { closing, run, socketPair, tlsPair, turns } = require('../common/tls-splice');

// As a child, with NODE_DEBUG: one splice that ends, and one that is stopped.
if (process.argv[2] === 'child') {
  run(async () => {
    for (const end of [true, false]) {
      const { client, server } = await tlsPair({ allowHalfOpen: true });
      const { 0: endpoint, 1: other } = await socketPair();
      const splice = server.spliceTo({ stream: endpoint, direction: 'in' }).start();
      other.resume();
      if (end)
        client.end();
      else
        splice.stop();
      await splice.finished;
    }
  });
  return;
}

const storage = new AsyncLocalStorage();
const names = ['tls.splice.start', 'tls.splice.error', 'tls.splice.end'];

// What is published while the function runs, each with the context it is published in.
async function published(callback) {
  const messages = [];
  const listeners = names.map((name) => (message, channel) => {
    assert.strictEqual(channel, name);
    messages.push({ name: name.slice('tls.splice.'.length), store: storage.getStore(), ...message });
  });
  names.forEach((name, i) => subscribe(name, listeners[i]));
  try {
    await callback();
  } finally {
    names.forEach((name, i) => unsubscribe(name, listeners[i]));
  }
  return messages;
}

async function world(connect = socketPair) {
  const { client, server } = await tlsPair({ allowHalfOpen: true });
  client.on('error', () => {});
  const pair = await connect();
  const { 0: endpoint, 1: other } = Array.isArray(pair) ? pair : [pair.server, pair.client];
  other.on('error', () => {}).resume();
  return { client, server, endpoint, other };
}

const mine = new Error('mine');
const endings = {
  end: ({ client, other }) => { client.resume().end('x'); other.end(); },
  stopped: ({ splice }) => splice.stop(),
  aborted: ({ controller }) => controller.abort(),
  destroyed: ({ server }) => server.destroy(),
  error: ({ endpoint }) => endpoint.destroy(),
};

for (const connect of [socketPair, tlsPair]) {
  for (const [reason, end] of Object.entries(endings)) {
    run(async () => {
      const sockets = await world(connect);
      const { server, endpoint } = sockets;
      const controller = new AbortController();
      let splice;
      const messages = await published(async () => {
        storage.run('maker', () => {
          splice = server.spliceTo({ stream: endpoint, signal: controller.signal });
        });
        splice.on('error', () => {});
        assert.strictEqual(splice.state, 'idle');
        splice.start();
        await turns();
        storage.run('other', () => end({ ...sockets, splice, controller }));
        await splice.finished.catch(() => {});
      });
      const expected = ['start', ...(reason === 'error' ? ['error'] : []), 'end'];
      assert.deepStrictEqual(messages.map(({ name }) => name), expected);
      for (const { name, handle, socket, stats, error, store } of messages) {
        assert.strictEqual(handle, splice);
        assert.strictEqual(socket, server);
        assert.strictEqual(store, 'maker');
        assert.strictEqual(stats.reason, name === 'start' ? null : reason);
        assert.strictEqual(error, name === 'error' ? splice.errored : undefined);
      }
      assert.deepStrictEqual(messages.at(-1).stats, splice.stats);
    });
  }
}

// The handle is the only one that there is of a pipeToNative().
run(async () => {
  const { client, server, endpoint, other } = await world();
  let stats;
  const messages = await published(async () => {
    const done = server.pipeToNative(endpoint);
    endings.end({ client, other });
    stats = await done;
  });
  assert.deepStrictEqual(messages.map(({ name }) => name), ['start', 'end']);
  assert.strictEqual(messages[0].handle, messages[1].handle);
  assert(messages[0].handle instanceof tls.TLSSplice);
  assert.deepStrictEqual(messages[1].stats, stats);
});

// One that was never started is not reported; one that fails at once is.
run(async () => {
  const { server, endpoint } = await world();
  const messages = await published(async () => {
    await server.spliceTo({ stream: endpoint }).stop();
    const splice = server.spliceTo({ stream: endpoint }).start();
    server.on('error', () => {});
    server.destroy(mine);
    await assert.rejects(splice.finished, mine);
  });
  assert.deepStrictEqual(messages.map(({ name }) => name), ['start', 'error', 'end']);
  assert.strictEqual(messages[1].error, mine);
});

// A subscriber may stop what has started, or throw.
run(async () => {
  const { server, endpoint } = await world();
  const stop = ({ handle }) => { handle.stop(); };
  subscribe('tls.splice.start', stop);
  const splice = server.spliceTo({ stream: endpoint }).start();
  unsubscribe('tls.splice.start', stop);
  assert.strictEqual(splice.state, 'stopping');
  assert.strictEqual((await splice.finished).reason, 'stopped');
});

run(async () => {
  const { server, endpoint } = await world();
  const fail = () => { throw mine; };
  for (const name of names)
    subscribe(name, fail);
  const errors = [];
  const onError = (err) => errors.push(err);
  process.on('uncaughtException', onError);
  const splice = server.spliceTo({ stream: endpoint }).start();
  assert.strictEqual((await splice.stop()).reason, 'stopped');
  await turns();
  process.removeListener('uncaughtException', onError);
  for (const name of names)
    unsubscribe(name, fail);
  assert.deepStrictEqual(errors, [mine, mine]);
});

// A subscriber that takes the promise has been told of the error.
run(async () => {
  const { server, endpoint } = await world();
  let finished;
  const onError = ({ handle }) => { ({ finished } = handle); };
  subscribe('tls.splice.error', onError);
  const splice = server.spliceTo({ stream: endpoint }).start();
  server.on('error', () => {});
  server.destroy(mine);
  await closing(splice);
  unsubscribe('tls.splice.error', onError);
  await assert.rejects(finished, mine);
});

// NODE_DEBUG=tls
{
  const { status, stderr } = spawnSync(process.execPath, [__filename, 'child'], {
    env: { ...process.env, NODE_DEBUG: 'tls' }, encoding: 'utf8',
  });
  assert.strictEqual(status, 0, stderr);
  const lines = stderr.split('\n').map((line) => /^TLS \d+: splice (.*)$/.exec(line)?.[1]).filter(Boolean);
  assert.deepStrictEqual(lines, [
    'start, direction in', 'begin, direction in', 'close, reason end',
    'start, direction in', 'begin, direction in', 'stop, reason stopped', 'close, reason stopped',
  ]);
}
