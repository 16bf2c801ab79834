'use strict';

// The stream under the TLSSocket may be another than TCP: a Unix socket, a
// Duplex of JavaScript, or another TLSSocket.

const common = require('../common');
if (!common.hasCrypto)
  common.skip('missing crypto');

const assert = require('assert');
const { once } = require('events');
const { Duplex, duplexPair } = require('stream');
const tls = require('tls');
if (tls.TLSSplice === undefined)
  common.skip('built without TLSSplice');

const {
  MiB, duplexOver, receive, run, send, settled, socketPair, tlsOver, tlsPair, turns,
} = require('../common/tls-splice');

const kSize = 2 * MiB + 19;

const streams = {
  'a Unix socket': () => socketPair('unix'),
  'a Duplex': () => duplexPair(),
  'a Duplex over TCP': async () => {
    const pair = await socketPair();
    return pair.map((socket) => Duplex.from({ readable: socket, writable: socket }));
  },
  'TLS in TLS': async () => {
    const { client, server } = await tlsPair({ allowHalfOpen: true });
    return [client, server];
  },
  'TLS in TLS in TLS': async () => {
    const { client, server } = await tlsPair({ allowHalfOpen: true });
    const inner = tlsOver(client, server, { allowHalfOpen: true });
    await once(inner.client, 'secureConnect');
    return [inner.client, inner.server];
  },
};

for (const version of ['TLSv1.2', 'TLSv1.3']) {
  for (const make of Object.values(streams)) {
    // There and back
    run(async () => {
      const { 0: a, 1: b } = await make();
      const { client, server } = tlsOver(a, b, {
        minVersion: version, maxVersion: version, allowHalfOpen: true,
      });
      await once(client, 'secureConnect');
      const { 0: endpoint, 1: other } = await socketPair();
      const splice = server.spliceTo({ stream: endpoint }).start();
      const inward = receive(other);
      const outward = receive(client);
      await Promise.all([
        send(client, kSize, { seed: 1, end: false }),
        send(other, kSize, { seed: 2, end: false }),
        inward.receiver.reached(kSize),
        outward.receiver.reached(kSize),
      ]);
      inward.receiver.check(kSize, 1);
      outward.receiver.check(kSize, 2);
      assert.strictEqual(splice.stats.bytesIn, kSize);
      assert.strictEqual(splice.stats.bytesOut, kSize);
      // A duplexPair() whose other side is gone does not come to its end.
      if (make === streams['a Duplex']) {
        await splice.stop();
        return;
      }
      client.end();
      other.end();
      await Promise.all([inward, outward]);
      const stats = await splice.finished;
      assert.strictEqual(stats.closeNotify, true);
      assert.strictEqual(stats.reason, 'end');
    });

    // Backpressure, and stop() in the middle of it
    run(async () => {
      const { 0: a, 1: b } = await make();
      const { client, server } = tlsOver(a, b, {
        minVersion: version, maxVersion: version, allowHalfOpen: true,
      });
      await once(client, 'secureConnect');
      const { 0: other, 1: endpoint } =
        await socketPair('unix', { pauseOnConnect: true });
      other.pause();
      const size = 24 * MiB;
      const sending = send(client, size);
      const splice = server.spliceTo({
        stream: endpoint, direction: 'in', highWaterMark: 100000,
      }).start();
      await settled(() => splice.stats.bytesIn);
      const { bytesIn, peakBufferedIn } = await splice.stop();
      assert(bytesIn < size);
      assert(peakBufferedIn <= 100000, `${peakBufferedIn}`);
      const received = receive(other);
      server.pipe(endpoint);
      await sending;
      (await received).check(size);
    });
  }
}

// An empty write in each turn does not keep the source waiting: the payload is
// there by the time that as many turns have passed as it can take.
for (const [name, make] of Object.entries({ 'TCP': () => socketPair(), ...streams })) {
  for (const direction of ['out', 'duplex']) {
    run(async () => {
      const { 0: a, 1: b } = await make();
      const { client, server } = tlsOver(a, b, { allowHalfOpen: true });
      await once(client, 'secureConnect');
      const { 0: endpoint, 1: other } = await socketPair();
      const outward = receive(client);
      const splice = server.spliceTo({ stream: endpoint, direction }).start();
      let writes = 0;
      let called = 0;
      const sending = send(other, kSize, { end: false });
      for (let i = 0; i < 20_000 && outward.receiver.bytes < kSize; i++) {
        writes++;
        server.write('', common.mustSucceed(() => called++));
        await new Promise(setImmediate);
      }
      assert.strictEqual(outward.receiver.bytes, kSize, name);
      await sending;
      outward.receiver.check(kSize);
      await turns();
      assert.strictEqual(called, writes);
      if (make === streams['a Duplex'])
        return splice.stop();
      client.end();
      other.end();
      await outward;
      await splice.finished;
    });
  }
}

// A Duplex that takes its time is not written to twice at once: not when splices
// have waited for what was corked before them, nor beside an empty write.
for (const emptyWrite of [false, true]) run(async () => {
  const { 0: a, 1: b } = await socketPair();
  const slow = new Duplex({
    read() { b.resume(); },
    write(chunk, encoding, callback) {
      b.write(chunk, () => setImmediate(callback));
    },
    final(callback) { b.end(callback); },
  });
  b.on('data', (chunk) => slow.push(chunk));
  b.on('end', () => slow.push(null));
  const { client, server } = tlsOver(a, slow, { allowHalfOpen: true });
  await once(client, 'secureConnect');
  const { 0: endpoint, 1: other } = await socketPair();
  const inward = receive(client);
  endpoint.pause();
  const sending = send(other, kSize);
  await once(endpoint, 'readable');
  server.cork();
  for (let i = 0; i < 2; i++)
    await server.spliceTo({ stream: endpoint, direction: 'out' }).start().stop();
  if (emptyWrite)
    server.write('');
  server.uncork();
  const splice = server.spliceTo({ stream: endpoint, direction: 'out' }).start();
  await sending;
  await splice.finished;
  (await inward).check(kSize);
});

// stop(), an abort and end() inside the write of a Duplex, which may be done at
// once or later
const acts = {
  stopped: ({ splice }) => splice.stop(),
  aborted: ({ controller }) => controller.abort(),
  end: ({ server }) => server.end(),
};
for (const [reason, act] of Object.entries(acts)) {
  for (const direction of ['out', 'duplex']) {
    for (const sync of [true, false]) {
      run(async () => {
        const { 0: a, 1: b } = duplexPair();
        let inside = null;
        const under = new Duplex({
          read() {},
          write(chunk, encoding, callback) {
            inside?.();
            inside = null;
            b.write(chunk, sync ? undefined : callback);
            if (sync)
              callback();
          },
          final(callback) { b.end(callback); },
        });
        b.on('data', (chunk) => under.push(chunk));
        b.on('end', () => under.push(null));
        const { client, server } = tlsOver(a, under, { allowHalfOpen: true });
        await Promise.all([once(client, 'secure'), once(server, 'secure')]);
        const { 0: endpoint, 1: other } = await socketPair();
        other.resume();
        const received = receive(client);
        const controller = new AbortController();
        const { signal } = controller;
        const splice = server.spliceTo({ stream: endpoint, direction, signal }).start();
        // What TLS says by itself after the handshake is written before.
        await turns();
        other.write('hello');
        await new Promise((resolve) => {
          inside = () => {
            act({ controller, server, splice });
            resolve();
          };
        });
        if (reason === 'end')
          client.end();
        const stats = await splice.finished;
        assert.strictEqual(stats.reason, reason);
        assert.strictEqual(stats.bytesOut, 5);
        server.end();
        assert.strictEqual((await received).bytes, 5);
      });
    }
  }
}

// end() waits for 'out', and then the stream below closes without an error.
for (const wait of [0, 1, 2, 3]) {
  run(async () => {
    const { 0: a, 1: b } = await socketPair();
    const under = new Duplex({
      read() { a.resume(); },
      write(chunk, encoding, callback) { a.write(chunk, callback); },
      final(callback) { a.end(callback); },
      destroy(err, callback) {
        a.destroy();
        callback(err);
      },
    });
    a.on('data', (chunk) => under.push(chunk));
    a.on('end', () => under.push(null));
    a.on('error', (err) => under.destroy(err));
    a.on('close', () => under.destroy());
    const { client, server } = tlsOver(under, b);
    await Promise.all([once(client, 'secure'), once(server, 'secure')]);
    for (const socket of [client, server, under])
      socket.on('error', () => {});
    const closed = new Promise((resolve) => client.on('close', resolve));
    const { 0: endpoint } = await socketPair();
    b.resetAndDestroy();
    await turns(wait);
    if (!client.destroyed) {
      const splice = client.spliceTo({ stream: endpoint }).start();
      splice.on('error', () => {});
      client.end();
    }
    await closed;
  });
}

// Node calls JavaScript to write to the stream below, and a tick that is due by then
// throws. The exception is the user's; the write, and the splice, are not concerned.
run(async () => {
  const { 0: a, 1: b } = await socketPair();
  let throws = false;
  const under = new Duplex({
    read() { b.resume(); },
    write(chunk, encoding, callback) {
      b.write(chunk, callback);
      if (throws) {
        throws = false;
        process.nextTick(() => { throw new Error('of the user'); });
      }
    },
    final(callback) { b.end(callback); },
  });
  b.on('data', (chunk) => under.push(chunk));
  b.on('end', () => under.push(null));
  const { client, server } = tlsOver(a, under, { allowHalfOpen: true });
  await Promise.all([once(client, 'secureConnect'), once(server, 'secure')]);
  const { 0: endpoint, 1: other } = await socketPair();
  const splice = server.spliceTo({ stream: endpoint, direction: 'out' }).start();
  const received = receive(client);
  other.write('one');
  await received.receiver.reached(3);
  const uncaught = once(process, 'uncaughtException');
  throws = true;
  other.write('two');
  assert.strictEqual((await uncaught)[0].message, 'of the user');
  other.end('three');
  assert.strictEqual((await splice.finished).bytesOut, 11);
  assert.strictEqual((await received).bytes, 11);
});

// A Duplex says when it is not read any more, in the middle of what gives the socket back.
// Nobody else can take the direction over then.
run(async () => {
  const { 0: a, 1: b } = await socketPair();
  const under = Duplex.from({ readable: b, writable: b });
  const { client, server } = tlsOver(a, under, { allowHalfOpen: true });
  await Promise.all([once(client, 'secureConnect'), once(server, 'secure')]);
  const { 0: endpoint, 1: other } = await socketPair('unix');
  const { 0: another, 1: far } = await socketPair('unix');
  const splice = server.spliceTo({ stream: endpoint, direction: 'in' }).start();
  const received = receive(other);
  client.write('one');
  await received.receiver.reached(3);
  under.once('pause', common.mustCall(() => {
    assert.strictEqual(splice.state, 'stopping');
    assert.throws(() => server.spliceTo({ stream: another, direction: 'in' }).start(),
                  { code: 'ERR_INVALID_STATE' });
  }));
  await splice.stop();
  const next = server.spliceTo({ stream: another, direction: 'in' }).start();
  client.end('two');
  await next.finished;
  assert.strictEqual((await receive(far)).bytes, 3);
  for (const socket of [server, endpoint, other])
    socket.destroy();
});

// An empty write that a stream of JavaScript does not complete keeps what is written after
// it, as without a splice, but keeps nothing from being read after stop().
run(async () => {
  const { 0: a, 1: b } = duplexPair();
  const { _write } = b;
  const held = new Promise((resolve) => {
    b._write = (chunk, encoding, callback) => {
      if (chunk.length === 0)
        resolve(callback);
      else
        Reflect.apply(_write, b, [chunk, encoding, callback]);
    };
  });
  const { client, server } = tlsOver(a, b, { allowHalfOpen: true });
  await Promise.all([once(client, 'secureConnect'), once(server, 'secure')]);
  const { 0: endpoint, 1: other } = await socketPair();
  const splice = server.spliceTo({ stream: endpoint, direction: 'in', end: false }).start();
  client.write('before');
  assert.strictEqual(`${(await once(other, 'data'))[0]}`, 'before');
  const written = new Promise((resolve) => server.write('', resolve));
  const complete = await held;
  await splice.stop();
  client.write('after');
  assert.strictEqual(`${(await once(server, 'data'))[0]}`, 'after');
  complete();
  await written;
  server.end('and back');
  assert.strictEqual(`${(await once(client, 'data'))[0]}`, 'and back');
  client.end();
  await once(server, 'end');
  for (const end of [a, b])
    end.destroy();
});

// The socket is destroyed between 'close' of the splice and the turn in which TLS reads on, when an
// empty write has made TLS read before.
run(async () => {
  const { 0: a, 1: b } = duplexPair();
  const { client, server } = tlsOver(a, b, { allowHalfOpen: true });
  await Promise.all([once(client, 'secureConnect'), once(server, 'secure')]);
  const { 0: endpoint, 1: other } = await socketPair();
  const splice = server.spliceTo({ stream: endpoint, direction: 'in', highWaterMark: 1000 }).start();
  client.write(Buffer.alloc(8 * MiB));
  await settled(() => splice.stats.bytesIn);
  splice.stop();
  await once(splice, 'close');
  // What JavaScript has yet to read makes TLS wait.
  assert.notStrictEqual(server.readableLength, 0);
  const reached = new Promise((resolve) => b._write = resolve);
  server.write('');
  assert.strictEqual((await reached).length, 0);
  const closed = once(b, 'close');
  b.destroy();
  await closed;
  server.destroy();
  await turns();
  for (const stream of [client, a, endpoint, other])
    stream.destroy();
});

// An empty write that a stream of JavaScript never completes holds up what is written, but not what
// is read, also after the sink was full.
run(async () => {
  const { 0: a, 1: b } = await socketPair();
  const below = duplexOver(b);
  const { _write: write } = below;
  below._write = (chunk, encoding, callback) => {
    if (chunk.length > 0)
      Reflect.apply(write, below, [chunk, encoding, callback]);
  };
  const { client, server } = tlsOver(a, below, { allowHalfOpen: true });
  await Promise.all([once(client, 'secureConnect'), once(server, 'secure')]);
  const { 0: endpoint, 1: other } = await socketPair();
  const splice = server.spliceTo({ stream: endpoint, direction: 'in' }).start();
  server.write('');
  const size = 8 * MiB;
  send(client, size);
  await settled(() => splice.stats.bytesIn);
  assert(splice.stats.bytesIn < size);
  (await receive(other)).check(size);
  for (const stream of [client, server, below, b, endpoint])
    stream.destroy();
});
