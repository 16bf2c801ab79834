'use strict';

// Renegotiation (TLS 1.2) runs listeners of JS in the middle of what the pump
// does: 'keylog' and 'newSession' on the server. They may stop, end or destroy the
// splice, let it begin, or start another. An end runs listeners as well, which may
// throw.

const common = require('../common');
if (!common.hasCrypto)
  common.skip('missing crypto');

const assert = require('assert');
const { SSL_OP_NO_TICKET } = require('crypto').constants;
const { once } = require('events');
const tls = require('tls');
if (tls.TLSSplice === undefined)
  common.skip('built without TLSSplice');

const {
  MiB, cert, key, receive, record, run, send, settled, socketPair, tlsPair, turns,
} = require('../common/tls-splice');

const kSize = 3e6;
const state = { code: 'ERR_INVALID_STATE' };

// A server whose socket is spliced while the client renegotiates; `inside` runs
// in the callback, and `before` before the splice.
async function renegotiate(callback, direction, inside, before = () => {}) {
  const { 0: endpoint, 1: other } = await socketPair();
  let armed = false;
  let called = 0;
  const call = () => {
    if (!armed)
      return;
    armed = false;
    called++;
    inside(context);
  };
  const listener = tls.createServer({
    key, cert, maxVersion: 'TLSv1.2', allowHalfOpen: true, secureOptions: SSL_OP_NO_TICKET,
  }).listen(0);
  const accepted = once(listener, 'secureConnection');
  await once(listener, 'listening');
  if (callback === 'newSession') {
    listener.on('newSession', (id, data, done) => {
      call();
      // Until then nothing that is encrypted is sent.
      setImmediate(done);
    });
  }
  const client = tls.connect({
    port: listener.address().port, rejectUnauthorized: false, allowHalfOpen: true,
  });
  const { 0: server } = await accepted;
  await turns(5);
  listener.close();
  if (callback === 'keylog')
    server.on('keylog', call);
  client.on('error', () => {});
  server.on('error', () => {});
  before(server);
  const splice = server.spliceTo({ stream: endpoint, direction }).start();
  const events = record(splice, ['error', 'close']);
  const context = { client, server, endpoint, other, splice };
  // One of them has decrypted, and encrypted, before.
  client.write('before');
  await once(direction === 'out' ? server : other, 'data');
  armed = true;
  const renegotiated = new Promise((resolve) => {
    assert.strictEqual(client.renegotiate({}, resolve), true);
    client.on('close', resolve);
  });
  return {
    ...context,
    events,
    renegotiated: renegotiated.then((err) => {
      assert.strictEqual(called, 1);
      return err;
    }),
  };
}

// Both directions work, with whoever has them.
async function check({ client, server, other }, spliced) {
  const inward = receive(spliced ? other : server);
  const outward = receive(client);
  await Promise.all([
    send(client, kSize, { seed: 1 }),
    send(spliced ? other : server, kSize, { seed: 2 }),
  ]);
  (await inward).check(kSize, 1);
  (await outward).check(kSize, 2);
}

for (const callback of ['keylog', 'newSession']) {
  // Nothing but looking
  run(async () => {
    const context = await renegotiate(callback, 'duplex', ({ server, splice }) => {
      assert.strictEqual(splice.state, 'running');
      assert.strictEqual(splice.stats.bytesIn, 6);
      assert.throws(() => server.spliceTo({ stream: context.endpoint }).start(), state);
    });
    assert.ifError(await context.renegotiated);
    await check(context, true);
    assert.strictEqual((await context.splice.finished).reason, 'end');
  });

  // The direction is 'in', and what TLS answers goes out.
  run(async () => {
    const context = await renegotiate(callback, 'in', () => {});
    assert.ifError(await context.renegotiated);
    const inward = receive(context.other);
    const outward = receive(context.client);
    await Promise.all([
      send(context.client, kSize, { seed: 1 }), send(context.server, kSize, { seed: 2 }),
    ]);
    (await inward).check(kSize, 1);
    (await outward).check(kSize, 2);
  });

  for (const direction of ['in', 'out', 'duplex']) {
    run(async () => {
      const context = await renegotiate(callback, direction, ({ splice }) => {
        splice.stop();
        splice.stop();
        assert.strictEqual(splice.state, 'stopping');
        assert.throws(() => splice.start(), state);
      });
      const { splice, events } = context;
      assert.ifError(await context.renegotiated);
      assert.strictEqual((await splice.finished).reason, 'stopped');
      await turns(1);
      assert.deepStrictEqual(events, ['close']);
      await check(context, false);
    });

    run(async () => {
      const { client, server, endpoint, splice, events, renegotiated } =
        await renegotiate(callback, direction, ({ server }) => server.destroy());
      assert.strictEqual((await splice.finished).reason, 'destroyed');
      await turns(1);
      assert.deepStrictEqual(events, ['close']);
      assert.strictEqual(server.destroyed, true);
      assert.strictEqual(endpoint.destroyed, false);
      client.destroy();
      await renegotiated;
    });

    // The next splice, as soon as that is possible
    run(async () => {
      let next;
      const context = await renegotiate(callback, direction, ({ server, endpoint, splice }) => {
        splice.on('close', () => { next = server.spliceTo({ stream: endpoint }).start(); });
        splice.stop();
      });
      assert.ifError(await context.renegotiated);
      await context.splice.finished;
      await turns(1);
      await check(context, true);
      const stats = await next.finished;
      assert.strictEqual(stats.reason, 'end');
      assert.strictEqual(stats.bytesOut, kSize);
      assert.strictEqual(stats.bytesIn, kSize);
    });
  }

  for (const direction of ['out', 'duplex']) {
    // The end of the socket, which the pump is told as soon as it can be
    run(async () => {
      const { client, server, other, splice, renegotiated } =
        await renegotiate(callback, direction, ({ server }) => server.end());
      assert.ifError(await renegotiated);
      const inward = receive(direction === 'out' ? server : other);
      (await receive(client)).check(0);
      await send(client, kSize, { seed: 1 });
      (await inward).check(kSize, 1);
      assert.strictEqual((await splice.finished).reason, 'end');
    });

    // The last of what 'out' has waited for
    run(async () => {
      const context = await renegotiate(callback, direction, ({ server }) => server.uncork(),
                                        (server) => server.cork());
      assert.ifError(await context.renegotiated);
      const outward = receive(context.client);
      await send(context.other, kSize, { seed: 2 });
      (await outward).check(kSize, 2);
      context.client.end();
      assert.strictEqual((await context.splice.finished).reason, 'end');
    });
  }

  // The other direction, from inside
  run(async () => {
    let second;
    const context = await renegotiate(callback, 'in', ({ server, endpoint }) => {
      second = server.spliceTo({ stream: endpoint, direction: 'out' }).start();
    });
    assert.ifError(await context.renegotiated);
    await check(context, true);
    assert.strictEqual((await context.splice.finished).reason, 'end');
    assert.strictEqual((await second.finished).bytesOut, kSize);
  });

  // Nothing was spliced before.
  run(async () => {
    let second;
    const context = await renegotiate(callback, 'out', ({ server, endpoint }) => {
      server.removeAllListeners('data');
      second = server.spliceTo({ stream: endpoint, direction: 'in' }).start();
    });
    assert.ifError(await context.renegotiated);
    await check(context, true);
    assert.strictEqual((await context.splice.finished).reason, 'end');
    assert.strictEqual((await second.finished).bytesIn, kSize);
  });
}

function fail() {
  throw new Error('mine');
}

// 'data' for what the sink did not take
run(async () => {
  const { client, server } = await tlsPair({ allowHalfOpen: true });
  const { 0: other, 1: endpoint } = await socketPair('unix', { pauseOnConnect: true });
  other.pause();
  const size = 32 * MiB;
  const sending = send(client, size);
  const splice = server.spliceTo({ stream: endpoint, direction: 'in' }).start();
  const events = record(splice, ['error', 'close']);
  await settled(() => splice.stats.bytesIn);
  let bytes = 0;
  server.once('data', (chunk) => {
    bytes += chunk.length;
    fail();
  });
  server.on('data', (chunk) => { bytes += chunk.length; });
  const uncaught = once(process, 'uncaughtException');
  const ended = once(server, 'end');
  const stats = await splice.stop();
  assert.strictEqual((await uncaught)[0].message, 'mine');
  assert.strictEqual(stats.reason, 'stopped');
  assert.deepStrictEqual(events, ['close']);
  await Promise.all([sending, ended]);
  assert.strictEqual(bytes + stats.bytesIn, size);
});

// 'data' for what the endpoint gets back
run(async () => {
  const { client, server } = await tlsPair({ allowHalfOpen: true });
  const { 0: endpoint, 1: other } = await socketPair('unix');
  other.write('hello');
  await once(endpoint, 'readable');
  client.pause();
  // More than the kernel takes: 'out' waits.
  server.write(Buffer.alloc(16 * MiB));
  const splice = server.spliceTo({ stream: endpoint }).start();
  const events = record(splice, ['error', 'close']);
  endpoint.once('data', fail);
  const uncaught = once(process, 'uncaughtException');
  assert.strictEqual((await splice.stop()).reason, 'stopped');
  assert.strictEqual((await uncaught)[0].message, 'mine');
  assert.deepStrictEqual(events, ['close']);
});

// With autoClose it gets nothing back: it is destroyed.
run(async () => {
  const { client, server } = await tlsPair({ allowHalfOpen: true });
  const { 0: endpoint, 1: other } = await socketPair('unix');
  other.write('hello');
  await once(endpoint, 'readable');
  client.pause();
  server.write(Buffer.alloc(16 * MiB));
  const splice = server.spliceTo({ stream: endpoint, autoClose: true }).start();
  endpoint.on('data', common.mustNotCall());
  assert.strictEqual((await splice.stop()).reason, 'stopped');
  assert.strictEqual(endpoint.closed, true);
});
