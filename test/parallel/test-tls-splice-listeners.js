'use strict';

// start() adds a listener to the signal, and the end of a splice removes it. A
// signal can be anything that looks like one, and so may do anything in the middle
// of both. The sockets get no listeners: see test-tls-splice-remove-listeners.js.

const common = require('../common');
if (!common.hasCrypto)
  common.skip('missing crypto');

const assert = require('assert');
const { once } = require('events');
const tls = require('tls');
if (tls.TLSSplice === undefined)
  common.skip('built without TLSSplice');

const {
  closing, receive, run, send, socketPair, tlsPair,
} = require('../common/tls-splice');

// A signal that runs `action` when it gets a listener, or loses one.
function signalWhen(method, action) {
  return {
    aborted: false,
    addEventListener() {},
    removeEventListener() {},
    [method]() {
      this[method] = () => {};
      action();
    },
  };
}

async function world(connect = socketPair) {
  const { client, server } = await tlsPair({ allowHalfOpen: true });
  const pair = await connect();
  const { 0: endpoint, 1: other } = Array.isArray(pair) ? pair : [pair.server, pair.client];
  for (const socket of [client, server, endpoint, other])
    socket.on('error', () => {});
  return { client, server, endpoint, other };
}

// One of the sockets is destroyed inside of start().
for (const connect of [socketPair, tlsPair]) {
  run(async () => {
    for (const victim of ['server', 'endpoint']) {
      const sockets = await world(connect);
      const { server, endpoint } = sockets;
      const splice = server.spliceTo({
        stream: endpoint,
        signal: signalWhen('addEventListener', () => sockets[victim].destroy()),
      });
      assert.throws(() => splice.start(), { code: 'ERR_SOCKET_CLOSED' });
      assert.strictEqual(splice.state, 'idle');
      assert.strictEqual((await splice.stop()).reason, 'stopped');
    }
  });
}

// The splice is stopped, or started, there.
run(async () => {
  const { server, endpoint } = await world();
  const splice = server.spliceTo({
    stream: endpoint, signal: signalWhen('addEventListener', () => splice.stop()),
  });
  splice.on('error', common.mustNotCall());
  assert.strictEqual(splice.start(), splice);
  assert.strictEqual(splice.state, 'closed');
  assert.strictEqual((await splice.finished).reason, 'stopped');
});

run(async () => {
  const { client, server, endpoint, other } = await world();
  const splice = server.spliceTo({
    stream: endpoint, signal: signalWhen('addEventListener', () => splice.start()),
  });
  splice.start();
  assert.strictEqual(splice.state, 'running');
  // It is told of what happens to its sockets once.
  const got = receive(other);
  other.end();
  await send(client, 100_000);
  (await got).check(100_000);
  await splice.finished;
});

run(async () => {
  const { server, endpoint } = await world();
  const splice = server.spliceTo({
    stream: endpoint, signal: signalWhen('addEventListener', () => splice.start()),
  });
  splice.on('error', common.mustCall((err) => {
    assert.strictEqual(err.code, 'ERR_STREAM_PREMATURE_CLOSE');
  }));
  splice.start();
  endpoint.destroy();
  await closing(splice);
});

// Another splice takes a direction there.
run(async () => {
  const { client, server, endpoint, other } = await world();
  let first;
  const splice = server.spliceTo({
    stream: endpoint,
    signal: signalWhen('addEventListener', () => {
      first = server.spliceTo({ stream: endpoint, direction: 'in' }).start();
    }),
  });
  assert.throws(() => splice.start(), { code: 'ERR_INVALID_STATE' });
  assert.strictEqual(first.state, 'running');
  client.write('x');
  assert.strictEqual(`${(await once(other, 'data'))[0]}`, 'x');
  await splice.stop();
  assert.strictEqual((await first.stop()).bytesIn, 1);
});

// It throws when the listener is removed, or starts the next splice.
run(async () => {
  for (const method of ['stop', 'destroy']) {
    const { client, server, endpoint } = await world();
    const error = new Error('on purpose');
    const splice = server.spliceTo({
      stream: endpoint,
      autoClose: true,
      signal: signalWhen('removeEventListener', () => { throw error; }),
    }).start();
    const thrown = new Promise((resolve) => {
      process.once('uncaughtException', resolve);
    });
    if (method === 'stop')
      splice.stop();
    else
      server.destroy();
    assert.strictEqual(await thrown, error);
    assert.strictEqual((await splice.finished).reason, method === 'stop' ? 'stopped' : 'destroyed');
    if (!endpoint.closed)
      await once(endpoint, 'close');
    if (method === 'stop') {
      server.write('x');
      assert.strictEqual(`${(await once(client, 'data'))[0]}`, 'x');
    } else {
      assert.strictEqual(server._handle, null);
    }
  }
});

run(async () => {
  const { client, server, endpoint, other } = await world();
  let next;
  const splice = server.spliceTo({
    stream: endpoint,
    signal: signalWhen('removeEventListener', () => {
      next = server.spliceTo({ stream: endpoint }).start();
    }),
  }).start();
  assert.strictEqual((await splice.stop()).reason, 'stopped');
  client.write('x');
  assert.strictEqual(`${(await once(other, 'data'))[0]}`, 'x');
  assert.strictEqual((await next.stop()).bytesIn, 1);
});
