'use strict';

// What TLS itself sends and gets in between: session tickets, and new keys by
// renegotiation.

const common = require('../common');
if (!common.hasCrypto)
  common.skip('missing crypto');

const assert = require('assert');
const { once } = require('events');
const { duplexPair } = require('stream');
const tls = require('tls');
if (tls.TLSSplice === undefined)
  common.skip('built without TLSSplice');

const {
  MiB, closing, receive, run, send, settled, socketPair, tlsOver, tlsPair, turns,
} = require('../common/tls-splice');

const kSize = 4 * MiB + 31;

// A server that asks for it counts it twice.
tls.CLIENT_RENEG_LIMIT = 10;

// TLS 1.3: the tickets come after the handshake, while 'in' is spliced, and
// JS hears of them.
run(async () => {
  const { 0: endpoint, 1: other } = await socketPair();
  const { client, server } = await tlsPair({
    minVersion: 'TLSv1.3', allowHalfOpen: true,
  });
  const sessions = [];
  client.on('session', (session) => sessions.push(session));
  const splice = client.spliceTo({ stream: endpoint }).start();
  server.write('x');
  await once(other, 'data');
  assert.strictEqual(sessions.length > 0, true);
  assert.strictEqual(splice.state, 'running');
  await splice.stop();
});

// TLS 1.2: JS can renegotiate only when nothing is spliced; afterwards, a
// splice goes on with the new keys.
run(async () => {
  const { 0: endpoint, 1: other } = await socketPair();
  const { client, server } = await tlsPair({
    maxVersion: 'TLSv1.2', allowHalfOpen: true,
  });
  server.resume();
  client.resume();
  await new Promise((resolve) => {
    assert.strictEqual(client.renegotiate({}, common.mustSucceed(resolve)), true);
  });
  const splice = server.spliceTo({ stream: endpoint }).start();
  const inward = receive(other);
  const outward = receive(client);
  await Promise.all([
    send(client, kSize, { seed: 1 }), send(other, kSize, { seed: 2 }),
  ]);
  (await inward).check(kSize, 1);
  (await outward).check(kSize, 2);
  assert.strictEqual((await splice.finished).reason, 'end');
});

// While it is spliced, asked for by the peer
run(async () => {
  const { 0: endpoint, 1: other } = await socketPair();
  const { client, server } = await tlsPair({
    maxVersion: 'TLSv1.2', allowHalfOpen: true,
  });
  const splice = server.spliceTo({ stream: endpoint }).start();
  const inward = receive(other);
  const outward = receive(client);
  for (const kind of ['before', 'after']) {
    client.write(kind);
    await inward.receiver.reached(kind === 'before' ? 6 : 11);
    other.write(kind);
    await outward.receiver.reached(kind === 'before' ? 6 : 11);
    // OpenSSL does not take other data in the middle of a handshake.
    await new Promise((resolve) => {
      assert.strictEqual(client.renegotiate({}, common.mustSucceed(resolve)), true);
    });
  }
  client.end();
  other.end();
  await Promise.all([inward, outward]);
  const stats = await splice.finished;
  assert.strictEqual(stats.reason, 'end');
  assert.strictEqual(stats.bytesIn, 11);
  assert.strictEqual(stats.bytesOut, 11);
});

// While it is spliced, asked for by its JS, with data of the peer that was sent
// before and waits for the sink, and data of the source. SSL_write() has to read
// the peer's answer, and fails if it meets the data.
for (const highWaterMark of [4096, undefined]) {
  run(async () => {
    const { 0: endpoint, 1: other } = await socketPair('unix');
    const { client, server } = await tlsPair({
      maxVersion: 'TLSv1.2', allowHalfOpen: true,
    });
    other.pause();
    const splice = client.spliceTo({ stream: endpoint, highWaterMark }).start();
    const sent = [send(server, kSize, { seed: 1, end: false })];
    await settled(() => splice.stats.bytesIn);
    assert.notStrictEqual(splice.stats.bytesIn, kSize);
    const outward = receive(server);
    const done = new Promise((resolve) => {
      assert.strictEqual(client.renegotiate({}, common.mustSucceed(resolve)), true);
    });
    sent.push(send(other, kSize, { seed: 2, end: false }));
    await turns();
    const inward = receive(other);
    await Promise.all([...sent, done, inward.receiver.reached(kSize),
                       outward.receiver.reached(kSize)]);
    server.end();
    other.end();
    (await inward).check(kSize, 1);
    (await outward).check(kSize, 2);
    assert.strictEqual((await splice.finished).reason, 'end');
  });
}

// A client that renegotiates with a server that does not answer, for now.
async function unanswered() {
  const { 0: a, 1: b } = await socketPair();
  const { client, server } = tlsOver(a, b, { maxVersion: 'TLSv1.2', allowHalfOpen: true });
  await Promise.all([once(client, 'secure'), once(server, 'secure')]);
  const { 0: endpoint, 1: other } = await socketPair();
  for (const socket of [client, server, endpoint, other])
    socket.on('error', () => {});
  return {
    client,
    server,
    endpoint,
    other,
    renegotiate() {
      b._handle.readStop();
      assert.strictEqual(client.renegotiate({}, () => {}), true);
    },
    answer: () => b._handle.readStart(),
  };
}

const timedOut = { code: 'ERR_TLS_HANDSHAKE_TIMEOUT' };

// A destroy() of the user's that does nothing, or throws, does not keep stop() waiting.
for (const { own, throws } of [
  { own() {} },
  { own() { throw new RangeError('not now'); }, throws: true },
]) {
  run(async () => {
    const { client, server, endpoint, other, renegotiate } = await unanswered();
    const splice = client.spliceTo({ stream: endpoint }).start();
    renegotiate();
    other.write('x');
    await turns();
    client.destroy = own;
    const thrown = throws && once(process, 'uncaughtException');
    assert.strictEqual((await splice.stop()).reason, 'stopped');
    if (throws)
      assert((await thrown)[0] instanceof RangeError);
    delete client.destroy;
    for (const socket of [client, server, endpoint, other])
      socket.destroy();
  });
}
const ends = {
  stopped: ({ splice }) => splice.stop(),
  aborted: ({ controller }) => controller.abort(),
  error: ({ endpoint }) => endpoint.destroy(),
};

// Of two TLSSockets that both wait for their peers, both are lost at the same time, and
// the splice has given both back when it closes.
run(async () => {
  const worlds = [await unanswered(), await unanswered()];
  const { 0: { client: socket }, 1: { client: stream } } = worlds;
  const splice = socket.spliceTo({ stream }).start();
  const errors = [socket, stream].map((socket) => once(socket, 'error'));
  await Promise.all(worlds.map(({ server }) => {
    server.write('moves');
    return once(server, 'data');
  }));
  for (const { renegotiate } of worlds)
    renegotiate();
  for (const { server } of worlds)
    server.write('held');
  await turns();
  const { reason } = await splice.stop();
  assert.strictEqual(reason, 'stopped');
  for (const { client: socket } of worlds) {
    assert.strictEqual(socket.destroyed, true);
    assert.throws(() => socket.spliceTo({ fd: 1, direction: 'in' }), { code: 'ERR_SOCKET_CLOSED' });
  }
  for (const { 0: error } of await Promise.all(errors))
    assert.strictEqual(error.code, timedOut.code);
});

for (const direction of ['out', 'duplex']) {
  for (const reason of Object.keys(ends)) {
    // What is held can neither be sent nor given back, so the socket is lost. The
    // splice says why it has ended, and the socket why it has.
    run(async () => {
      const world = await unanswered();
      const { client, endpoint, other } = world;
      const controller = new AbortController();
      const splice = client.spliceTo({
        stream: endpoint, direction, signal: controller.signal,
      }).start();
      await turns();
      world.renegotiate();
      other.write('held');
      await settled(() => splice.stats.peakBufferedOut);
      const closed = closing(splice);
      let error;
      splice.on('error', (err) => { error = err; });
      const failed = new Promise((resolve) => client.on('error', resolve));
      ends[reason]({ splice, controller, endpoint });
      await turns();
      assert.strictEqual(splice.state, 'stopping');
      assert.strictEqual(client.destroyed, false);
      const stats = await closed;
      assert.strictEqual(stats.reason, reason);
      assert.strictEqual(stats.bytesOut, 0);
      assert.strictEqual(error?.code, reason === 'error' ? 'ERR_STREAM_PREMATURE_CLOSE' : undefined);
      assert.strictEqual(client.destroyed, true);
      const err = await failed;
      assert.throws(() => { throw err; }, timedOut);
    });

    // It answers before that.
    run(async () => {
      const world = await unanswered();
      const { client, server, endpoint, other, renegotiate, answer } = world;
      const controller = new AbortController();
      const splice = client.spliceTo({
        stream: endpoint, direction, signal: controller.signal,
      }).start();
      await turns();
      renegotiate();
      other.write('held');
      await settled(() => splice.stats.peakBufferedOut);
      const closed = closing(splice);
      splice.on('error', () => {});
      ends[reason]({ splice, controller, endpoint });
      await turns();
      answer();
      const { reason: actual, bytesOut } = await closed;
      assert.strictEqual(actual, reason);
      assert.strictEqual(bytesOut, 4);
      assert.strictEqual(client.destroyed, false);
      client.end(' back');
      assert.strictEqual((await server.setEncoding('utf8').toArray()).join(''), 'held back');
    });
  }

  // With nothing held there is nothing to wait for.
  run(async () => {
    const { client, server, endpoint, renegotiate, answer } = await unanswered();
    const splice = client.spliceTo({ stream: endpoint, direction }).start();
    await turns();
    renegotiate();
    assert.strictEqual((await splice.stop()).reason, 'stopped');
    assert.strictEqual(client.destroyed, false);
    answer();
    client.end('alive');
    assert.strictEqual((await server.setEncoding('utf8').toArray()).join(''), 'alive');
  });
}

// The endpoint is a TLSSocket whose peer does not answer.
run(async () => {
  const { client: endpoint, renegotiate } = await unanswered();
  const { client, server } = await tlsPair({ allowHalfOpen: true });
  const splice = server.spliceTo({ stream: endpoint, direction: 'in' }).start();
  await turns();
  renegotiate();
  client.write('held');
  await settled(() => splice.stats.bytesIn);
  const failed = once(endpoint, 'error');
  assert.strictEqual((await splice.stop()).reason, 'stopped');
  const { 0: err } = await failed;
  assert.throws(() => { throw err; }, timedOut);
  assert.strictEqual(server.destroyed, false);
  client.write('alive');
  assert.strictEqual(`${await once(server, 'data')}`, 'alive');
});

// While it is spliced, asked for by its JS: as the client and as the server, over
// whatever stream, with or without data in both directions.
const streams = {
  'TCP': () => socketPair(),
  'a Unix socket': () => socketPair('unix'),
  'a Duplex': () => duplexPair(),
  'TLS in TLS': async () => {
    const { client, server } = await tlsPair({ allowHalfOpen: true });
    return [client, server];
  },
};
for (const [name, make] of Object.entries(streams)) {
  for (const role of ['client', 'server']) {
    for (const directions of [['duplex'], ['out'], ['in'], ['in', 'out'], ['out', 'in']]) {
      for (const size of [0, 300_007]) {
        run(async () => {
          const { 0: a, 1: b } = await make();
          const pair = tlsOver(a, b, { maxVersion: 'TLSv1.2', allowHalfOpen: true });
          await once(pair.client, 'secureConnect');
          const socket = pair[role];
          const peer = pair[role === 'client' ? 'server' : 'client'];
          const { 0: endpoint, 1: other } = await socketPair();
          const splices = directions.map((direction) =>
            socket.spliceTo({ stream: endpoint, direction }).start());
          const hasIn = directions[0] !== 'out' || directions.length === 2;
          const hasOut = directions[0] !== 'in' || directions.length === 2;
          const inward = receive(hasIn ? other : socket);
          const outward = receive(peer);
          const source = hasOut ? other : socket;
          await turns();
          let secure = 0;
          peer.on('secure', () => secure++);
          let renegotiated = 0;
          const renegotiate = () => new Promise((resolve) => {
            assert.strictEqual(socket.renegotiate({}, common.mustSucceed(() => {
              renegotiated++;
              resolve();
            })), true, name);
          });
          // Only one side of them sends while the handshake is going on: OpenSSL
          // takes no data in the middle of it.
          for (let i = 1; i <= 2; i++) {
            const sent = send(source, size, { seed: 2, end: false });
            await renegotiate();
            // That was in a callback of OpenSSL.
            await turns(1);
            await sent;
            await outward.receiver.reached(size * i);
            await send(peer, size, { seed: 1, end: false });
            await inward.receiver.reached(size * i);
          }
          assert.strictEqual(renegotiated, 2);
          assert.strictEqual(secure, 2);
          for (const splice of splices) {
            assert.strictEqual(splice.state, 'running');
            await splice.stop();
          }
        });
      }
    }
  }
}

// A stop() while the empty write of renegotiate() is under way in a stream of JavaScript,
// which takes no other write before that is complete.
for (const role of ['server', 'client']) {
  for (const isFull of [false, true]) {
    for (const direction of ['in', 'duplex']) {
      run(async () => {
        const { 0: endpoint, 1: other } = await socketPair();
        const ends = duplexPair({ allowHalfOpen: true });
        for (const end of ends) {
          const { _write } = end;
          end._write = (chunk, encoding, callback) => {
            Reflect.apply(_write, end, [chunk, encoding, () => setImmediate(setImmediate, callback)]);
          };
        }
        const pair = tlsOver(ends[0], ends[1], { maxVersion: 'TLSv1.2', allowHalfOpen: true });
        await Promise.all([once(pair.client, 'secureConnect'), once(pair.server, 'secure')]);
        const socket = pair[role];
        const peer = pair[role === 'server' ? 'client' : 'server'];
        peer.resume();
        const splice = socket.spliceTo({ stream: endpoint, direction, end: false, highWaterMark: 20_000 }).start();
        if (isFull) {
          other.pause();
          peer.write(Buffer.alloc(12 * MiB));
          await settled(() => socket.bytesRead);
        }
        const renegotiated = new Promise((resolve) => {
          assert.strictEqual(socket.renegotiate({}, common.mustSucceed(resolve)), true);
        });
        const stopped = splice.stop();
        socket.resume();
        other.resume();
        await stopped;
        await renegotiated;
        socket.write('still there');
        assert.strictEqual(`${(await once(peer, 'data'))[0]}`, 'still there');
        for (const end of ends)
          end.destroy();
      });
    }
  }
}
