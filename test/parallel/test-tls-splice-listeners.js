'use strict';

// start() adds listeners to the sockets, and the end of a splice removes them:
// 'newListener' and 'removeListener' are emitted in the middle of both, and
// whoever listens to them may do anything.

const common = require('../common');
if (!common.hasCrypto)
  common.skip('missing crypto');

const assert = require('assert');
const { once } = require('events');
const tls = require('tls');
if (tls.TLSSplice === undefined)
  common.skip('built without TLSSplice');

const { run, send, receive, socketPair, tlsPair } = require('../common/tls-splice');

// `action` runs when `emitter` gets or loses a listener to `name`, once.
function when(emitter, event, name, action) {
  const listener = (what) => {
    if (what !== name)
      return;
    emitter.removeListener(event, listener);
    action();
  };
  emitter.on(event, listener);
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
      for (const { 0: emitter, 1: name } of [
        ['server', '_tlsError'],
        ['endpoint', connect === tlsPair ? '_tlsError' : 'close'],
      ]) {
        const sockets = await world(connect);
        const { server, endpoint } = sockets;
        const splice = server.spliceTo({ stream: endpoint });
        when(sockets[emitter], 'newListener', name, () => sockets[victim].destroy());
        assert.throws(() => splice.start(), { code: 'ERR_SOCKET_CLOSED' });
        assert.strictEqual(splice.state, 'idle');
        assert.strictEqual((await splice.stop()).reason, 'stopped');
      }
    }
  });
}

// The splice is stopped, or started, there.
run(async () => {
  const { server, endpoint } = await world();
  const before = server.listenerCount('_tlsError');
  const splice = server.spliceTo({ stream: endpoint });
  splice.on('error', common.mustNotCall());
  when(server, 'newListener', '_tlsError', () => splice.stop());
  assert.strictEqual(splice.start(), splice);
  assert.strictEqual(splice.state, 'closed');
  assert.strictEqual((await splice.finished).reason, 'stopped');
  assert.strictEqual(server.listenerCount('_tlsError'), before);
});

run(async () => {
  const { client, server, endpoint, other } = await world();
  const before = server.listenerCount('_tlsError');
  const splice = server.spliceTo({ stream: endpoint });
  when(server, 'newListener', '_tlsError', () => splice.start());
  splice.start();
  assert.strictEqual(splice.state, 'running');
  assert.strictEqual(server.listenerCount('_tlsError'), before + 1);
  const got = receive(other);
  other.end();
  await send(client, 100_000);
  (await got).check(100_000);
  await splice.finished;
  assert.strictEqual(server.listenerCount('_tlsError'), before);
});

// Another splice takes a direction there.
run(async () => {
  const { client, server, endpoint, other } = await world();
  const splice = server.spliceTo({ stream: endpoint });
  let first;
  when(server, 'newListener', '_tlsError', () => {
    first = server.spliceTo({ stream: endpoint, direction: 'in' }).start();
  });
  assert.throws(() => splice.start(), { code: 'ERR_INVALID_STATE' });
  assert.strictEqual(first.state, 'running');
  client.write('x');
  assert.strictEqual(`${(await once(other, 'data'))[0]}`, 'x');
  await splice.stop();
  assert.strictEqual((await first.stop()).bytesIn, 1);
});

// A listener to 'removeListener' throws, or starts the next splice.
run(async () => {
  for (const method of ['stop', 'destroy']) {
    for (const name of ['_tlsError', 'close']) {
      const { client, server, endpoint } = await world();
      const splice = server.spliceTo({ stream: endpoint, autoClose: true }).start();
      const error = new Error('on purpose');
      when(name === 'close' ? endpoint : server, 'removeListener', name, () => { throw error; });
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
  }
});

run(async () => {
  const { client, server, endpoint, other } = await world();
  const splice = server.spliceTo({ stream: endpoint }).start();
  let next;
  when(server, 'removeListener', '_tlsError', () => {
    next = server.spliceTo({ stream: endpoint }).start();
  });
  assert.strictEqual((await splice.stop()).reason, 'stopped');
  client.write('x');
  assert.strictEqual(`${(await once(other, 'data'))[0]}`, 'x');
  assert.strictEqual((await next.stop()).bytesIn, 1);
});
