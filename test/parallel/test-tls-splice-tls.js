'use strict';

// A TLSSocket as the endpoint of another one: bytes go from one TLS connection
// to the other, and both are ordinary sockets again afterwards.

const common = require('../common');
if (!common.hasCrypto)
  common.skip('missing crypto');

const assert = require('assert');
const { once } = require('events');
const { Duplex } = require('stream');
const tls = require('tls');
if (tls.TLSSplice === undefined)
  common.skip('built without TLSSplice');

const {
  MiB, Receiver, cert, closing, duplexOver, key, receive, record, run, send, settled, socketPair,
  tlsOver, tlsPair, turns,
} = require('../common/tls-splice');

// The peer, a splice's socket, the TLSSocket that is its endpoint, and the peer
// of that.
async function proxy({ a = {}, b = {}, roles = ['server', 'client'], ...options } = {}) {
  const first = await tlsPair({ allowHalfOpen: true, ...options, ...a });
  const second = await tlsPair({ allowHalfOpen: true, ...options, ...b });
  const other = { server: 'client', client: 'server' };
  return {
    near: first[other[roles[0]]],
    socket: first[roles[0]],
    endpoint: second[roles[1]],
    far: second[other[roles[1]]],
  };
}

// The same with peers that can be reset.
async function fragile() {
  const options = { allowHalfOpen: true, raw: true };
  const { client: near, server: socket, raw: nearRaw } = await tlsPair(options);
  const { client: far, server: endpoint, raw: farRaw } = await tlsPair(options);
  for (const socket of [near, nearRaw, far, farRaw])
    socket.on('error', () => {});
  return { near, nearRaw, socket, endpoint, far, farRaw };
}

const text = async (socket) => `${(await once(socket, 'data'))[0]}`;

// Whether both are ordinary sockets that can still do everything.
async function checkAlive({ near, socket, endpoint, far }) {
  for (const { 0: from, 1: to } of [
    [near, socket], [socket, near], [endpoint, far], [far, endpoint],
  ]) {
    const received = text(to);
    from.write('alive');
    assert.strictEqual(await received, 'alive');
  }
  for (const { 0: from, 1: to } of [
    [near, socket], [socket, near], [endpoint, far], [far, endpoint],
  ]) {
    const ended = once(to.resume(), 'end');
    from.end();
    await ended;
  }
}

// Both ways at once, of any version, as either side
for (const versions of [['TLSv1.2', 'TLSv1.3'], ['TLSv1.3', 'TLSv1.2'],
                        ['TLSv1.3', 'TLSv1.3']]) {
  for (const roles of [['server', 'client'], ['client', 'server'],
                       ['server', 'server'], ['client', 'client']]) {
    run(async () => {
      const { near, socket, endpoint, far } = await proxy({
        roles, a: { maxVersion: versions[0] }, b: { maxVersion: versions[1] },
      });
      assert.strictEqual(socket.getProtocol(), versions[0]);
      assert.strictEqual(endpoint.getProtocol(), versions[1]);
      const splice = socket.spliceTo({ stream: endpoint });
      const events = record(splice, ['error', 'close']);
      const closed = closing(splice);
      splice.start();
      const received = Promise.all([receive(far), receive(near)]);
      await Promise.all([
        send(near, 3 * MiB, { seed: 1 }), send(far, 2 * MiB, { seed: 2 }),
      ]);
      const { 0: there, 1: back } = await received;
      there.check(3 * MiB, 1);
      back.check(2 * MiB, 2);
      const stats = await closed;
      assert.deepStrictEqual(events, ['close']);
      assert.strictEqual(stats.reason, 'end');
      assert.strictEqual(stats.closeNotify, true);
      assert.strictEqual(stats.bytesIn, 3 * MiB);
      assert.strictEqual(stats.bytesOut, 2 * MiB);
      assert.strictEqual(socket.bytesRead, 3 * MiB);
      assert.strictEqual(socket.bytesWritten, 2 * MiB);
      assert.strictEqual(endpoint.bytesRead, 2 * MiB);
      assert.strictEqual(endpoint.bytesWritten, 3 * MiB);
    });
  }
}

// Each way ends for itself.
for (const first of ['near', 'far']) {
  run(async () => {
    const sockets = await proxy();
    const done = sockets.socket.pipeToNative(sockets.endpoint);
    const last = first === 'near' ? 'far' : 'near';
    const ended = receive(sockets[last]);
    await send(sockets[first], MiB);
    (await ended).check(MiB);
    const received = receive(sockets[first]);
    await send(sockets[last], MiB, { seed: 2 });
    (await received).check(MiB, 2);
    assert.strictEqual((await done).reason, 'end');
  });
}

// As a proxy that does not care: one side closes, and all is over.
for (const first of ['near', 'far']) {
  run(async () => {
    const sockets = await proxy({ allowHalfOpen: false });
    const all = Object.values(sockets).map((socket) => once(socket.resume(), 'close'));
    const done = sockets.socket.pipeToNative(sockets.endpoint);
    sockets[first].end('last words');
    const { reason, bytesIn, bytesOut } = await done;
    assert.strictEqual(reason, 'end');
    assert.strictEqual(bytesIn + bytesOut, 10);
    await Promise.all(all);
  });
}

// One direction leaves the other to JS.
for (const direction of ['in', 'out']) {
  run(async () => {
    const { near, socket, endpoint, far } = await proxy();
    const splice = socket.spliceTo({ stream: endpoint, direction }).start();
    const { 0: from, 1: to } = direction === 'in' ? [near, far] : [far, near];
    const received = receive(to);
    const sent = send(from, MiB);
    const { 0: between, 1: other } = direction === 'in' ?
      [socket, endpoint] : [endpoint, socket];
    const back = text(from);
    between.write('by JS');
    assert.strictEqual(await back, 'by JS');
    const heard = text(other);
    to.write('to JS');
    assert.strictEqual(await heard, 'to JS');
    // Writing to what the splice writes to is refused.
    assert.throws(() => other.write('x'), { code: 'ERR_INVALID_STATE' });
    await sent;
    (await received).check(MiB);
    assert.strictEqual((await splice.finished).reason, 'end');
    assert.strictEqual(between.destroyed, false);
  });
}

// What JS had read goes first, and so does what it has written.
run(async () => {
  const { near, socket, endpoint, far } = await proxy();
  socket.unshift('read before ');
  endpoint.unshift('the same back ');
  endpoint.cork();
  endpoint.write('written before ');
  process.nextTick(() => endpoint.uncork());
  socket.write('there as well ');
  const splice = socket.spliceTo({ stream: endpoint }).start();
  near.end('spliced');
  far.end('spliced back');
  const received = [far, near].map(async (socket) =>
    Buffer.concat(await socket.toArray()).toString());
  assert.deepStrictEqual(await Promise.all(received), [
    'written before read before spliced',
    'there as well the same back spliced back',
  ]);
  assert.strictEqual((await splice.finished).reason, 'end');
});

// Before either has shaken hands
run(async () => {
  const { 0: a, 1: b } = await socketPair();
  const { 0: c, 1: d } = await socketPair();
  const options = { allowHalfOpen: true };
  const socket = new tls.TLSSocket(b, {
    isServer: true, ...options,
    secureContext: tls.createSecureContext({ key, cert }),
  });
  const { client: endpoint, server: far } = tlsOver(c, d, options);
  const done = socket.pipeToNative(endpoint);
  const near = tls.connect({ socket: a, rejectUnauthorized: false, ...options });
  const received = Promise.all([receive(far), receive(near)]);
  await Promise.all([send(near, MiB, { seed: 1 }), send(far, MiB, { seed: 2 })]);
  const { 0: there, 1: back } = await received;
  there.check(MiB, 1);
  back.check(MiB, 2);
  assert.strictEqual((await done).reason, 'end');
});

// Whoever does not read stops the one who sends.
for (const stalled of ['near', 'far']) {
  run(async () => {
    const sockets = await proxy();
    const { socket, endpoint } = sockets;
    const reader = sockets[stalled].pause();
    const sender = sockets[stalled === 'near' ? 'far' : 'near'];
    const kSize = 24 * MiB;
    const splice = socket.spliceTo({ stream: endpoint, highWaterMark: 128 * 1024 }).start();
    const sent = send(sender, kSize);
    await settled(() => sender.bytesWritten + socket.bytesRead + endpoint.bytesRead);
    const { stats } = splice;
    assert(stats.peakBufferedIn <= 192 * 1024, `${stats.peakBufferedIn}`);
    assert(stats.peakBufferedOut <= 192 * 1024, `${stats.peakBufferedOut}`);
    assert((stalled === 'far' ? socket : endpoint).bytesRead < kSize);
    if (stalled === 'far')
      assert.strictEqual(stats.stallsIn, 1);
    // The other way goes on.
    const answer = text(sender);
    reader.write('still here');
    assert.strictEqual(await answer, 'still here');
    const received = receive(reader);
    await sent;
    (await received).check(kSize);
    reader.end();
    assert.strictEqual((await splice.finished).reason, 'end');
  });
}

// stop() in the middle: not a byte is lost, of either direction.
for (const stalled of [false, true]) {
  run(async () => {
    const sockets = await proxy();
    const { near, socket, endpoint, far } = sockets;
    const kSize = 12 * MiB;
    const splice = socket.spliceTo({ stream: endpoint }).start();
    const receivers = [new Receiver(), new Receiver()];
    const toFar = stalled ? null : receive(far, receivers[0]);
    const toNear = stalled ? null : receive(near, receivers[1]);
    const sending = [send(near, kSize, { seed: 1 }), send(far, kSize, { seed: 2 })];
    if (stalled) {
      far.pause();
      near.pause();
      await settled(() => splice.stats.bytesIn + splice.stats.bytesOut);
    } else {
      await Promise.all(receivers.map((receiver) => receiver.reached(MiB)));
    }
    const stopped = splice.stop();
    assert.strictEqual(splice.stop(), stopped);
    const stats = await stopped;
    assert.strictEqual(stats.reason, 'stopped');
    // JavaScript carries on.
    socket.pipe(endpoint);
    endpoint.pipe(socket);
    const received = [
      toFar ?? receive(far, receivers[0]), toNear ?? receive(near, receivers[1]),
    ];
    await Promise.all([...sending, ...received]);
    receivers[0].check(kSize, 1);
    receivers[1].check(kSize, 2);
  });
}

run(async () => {
  const sockets = await proxy();
  const splice = sockets.socket.spliceTo({ stream: sockets.endpoint }).start();
  const received = text(sockets.far);
  sockets.near.write('x');
  await received;
  await splice.stop();
  await checkAlive(sockets);
});

// One that was never started
run(async () => {
  const sockets = await proxy();
  const { reason } = await sockets.socket.spliceTo({ stream: sockets.endpoint }).stop();
  assert.strictEqual(reason, 'stopped');
  await checkAlive(sockets);
});

// And again, the other way round
run(async () => {
  const { near, socket, endpoint, far } = await proxy();
  for (let i = 0; i < 10; i++) {
    const splice = i % 2 ? socket.spliceTo({ stream: endpoint }) :
      endpoint.spliceTo({ stream: socket });
    splice.start();
    const there = text(far);
    near.write(`${i}`);
    assert.strictEqual(await there, `${i}`);
    const back = text(near);
    far.write(`${-i}`);
    assert.strictEqual(await back, `${-i}`);
    assert.strictEqual((await splice.stop()).reason, 'stopped');
  }
});

// AbortSignal, also one that is aborted already
for (const early of [true, false]) {
  run(async () => {
    const sockets = await proxy();
    const controller = new AbortController();
    const { signal } = controller;
    if (early)
      controller.abort();
    const splice = sockets.socket.spliceTo({ stream: sockets.endpoint, signal });
    splice.start();
    controller.abort();
    assert.strictEqual((await splice.finished).reason, 'aborted');
    await checkAlive(sockets);
  });
}

// What happens to the endpoint, and what comes of it
const broken = [
  ['destroy()', ({ endpoint }) => endpoint.destroy(), 'ERR_STREAM_PREMATURE_CLOSE'],
  ['destroy(err)', ({ endpoint }) => {
    endpoint.on('error', () => {});
    endpoint.destroy(Object.assign(new Error('mine'), { code: 'MINE' }));
  }, 'MINE'],
  ['reset', ({ endpoint, farRaw }) => {
    endpoint.on('error', () => {});
    farRaw.resetAndDestroy();
  }, 'ECONNRESET'],
];
for (const { 0: name, 1: action, 2: code } of broken) {
  run(async () => {
    const sockets = await fragile();
    const { near, socket, endpoint, far } = sockets;
    const splice = socket.spliceTo({ stream: endpoint });
    const events = record(splice, ['error', 'close']);
    const failed = new Promise((resolve) => splice.on('error', resolve));
    const closed = closing(splice);
    splice.start();
    const received = text(far);
    near.write('x');
    await received;
    action(sockets);
    assert.strictEqual((await failed).code, code, name);
    assert.strictEqual((await closed).reason, 'error');
    assert.deepStrictEqual(events, ['error', 'close']);
    // The socket is JavaScript's again.
    const back = text(near);
    socket.write('alive');
    assert.strictEqual(await back, 'alive');
    const there = text(socket);
    near.write('alive');
    assert.strictEqual(await there, 'alive');
  });
}

// The same to the socket: the endpoint is handed back.
for (const how of ['destroy', 'reset']) {
  run(async () => {
    const { near, nearRaw, socket, endpoint, far } = await fragile();
    const splice = socket.spliceTo({ stream: endpoint });
    splice.on('error', () => {});
    socket.on('error', () => {});
    const closed = closing(splice);
    splice.start();
    const received = text(far);
    near.write('x');
    await received;
    if (how === 'destroy')
      socket.destroy();
    else
      nearRaw.resetAndDestroy();
    const { reason } = await closed;
    assert.strictEqual(reason, how === 'destroy' ? 'destroyed' : 'error');
    assert.strictEqual(socket.destroyed, true);
    assert.strictEqual(endpoint.destroyed, false);
    const there = text(far);
    endpoint.write('alive');
    assert.strictEqual(await there, 'alive');
    const back = text(endpoint);
    far.write('alive');
    assert.strictEqual(await back, 'alive');
  });
}

// pipeToNative() destroys the socket then, and autoClose closes the endpoint.
run(async () => {
  const { socket, endpoint, farRaw } = await fragile();
  const done = socket.pipeToNative(endpoint);
  endpoint.on('error', () => {});
  farRaw.resetAndDestroy();
  await assert.rejects(done, { code: 'ECONNRESET' });
  assert.strictEqual(socket.destroyed, true);
});

run(async () => {
  const { near, socket, endpoint, far } = await proxy();
  const closed = once(endpoint, 'close');
  const done = socket.pipeToNative(endpoint, { autoClose: true, direction: 'in' });
  const received = receive(far);
  await send(near, MiB);
  (await received).check(MiB);
  await done;
  await closed;
  assert.strictEqual(socket.destroyed, false);
});

// `end: false`: writing is JavaScript's again, on both sides.
run(async () => {
  const { near, socket, endpoint, far } = await proxy();
  const splice = socket.spliceTo({ stream: endpoint, end: false }).start();
  const received = text(far);
  near.end('x');
  assert.strictEqual(await received, 'x');
  const answer = text(near);
  far.end('y');
  assert.strictEqual(await answer, 'y');
  assert.strictEqual((await splice.finished).reason, 'end');
  const there = text(far);
  endpoint.write('alive');
  assert.strictEqual(await there, 'alive');
  const back = text(near);
  socket.write('alive');
  assert.strictEqual(await back, 'alive');
});

// A peer that goes on when the endpoint's writing has been ended
run(async () => {
  const { near, socket, endpoint, far } = await proxy();
  const splice = socket.spliceTo({ stream: endpoint });
  const failed = once(splice, 'error');
  splice.start();
  far.resume();
  endpoint.end();
  await once(far, 'end');
  near.write('too late');
  const { 0: error } = await failed;
  assert.strictEqual(error.code, 'EPIPE');
  assert.strictEqual(error.syscall, 'write');
  // Not lost: it is given to JavaScript.
  assert.strictEqual(await text(socket), 'too late');
});

// An endpoint that has ended both ways and has closed, while the peer is silent. A peer that
// does not know of it has no reason to end, and is not waited for.
for (const options of [{ direction: 'in' }, { end: false }]) {
  run(async () => {
    const { near, socket, endpoint, far } = await proxy();
    const splice = socket.spliceTo({ stream: endpoint, ...options });
    const failed = once(splice, 'error');
    const closed = closing(splice);
    splice.start();
    const arrived = once(far, 'data');
    near.write('x');
    await arrived;
    endpoint.end();
    far.end();
    if (options.direction === 'in')
      endpoint.resume();
    const { 0: error } = await failed;
    assert.strictEqual(error.code, 'ERR_STREAM_PREMATURE_CLOSE');
    assert.strictEqual(error.side, 'endpoint');
    assert.strictEqual(endpoint.destroyed, true);
    assert.strictEqual((await closed).reason, 'error');
    // The socket is an ordinary one again.
    const back = text(near);
    socket.write('alive');
    assert.strictEqual(await back, 'alive');
    socket.destroy();
  });
}

// A peer that has been told of that end is waited for.
for (const last of [undefined, 'too late']) {
  run(async () => {
    const { near, socket, endpoint, far } = await proxy();
    const splice = socket.spliceTo({ stream: endpoint }).start();
    const outcome = splice.finished.catch((err) => err);
    const told = once(near.resume(), 'end');
    const closed = once(endpoint, 'close');
    endpoint.end();
    far.resume().end();
    await Promise.all([told, closed]);
    await turns();
    assert.strictEqual(splice.state, 'running');
    near.end(last);
    const { reason, code } = await outcome;
    assert.strictEqual(reason ?? code, last ? 'EPIPE' : 'end');
    socket.destroy();
  });
}

// highWaterMark bounds what is held for the other peer, whatever sizes come.
for (const highWaterMark of [70_000, 100_000, 262_144]) {
  run(async () => {
    const { near, socket, endpoint, far } = await proxy();
    near.on('error', () => {});
    far.on('error', () => {});
    const splice = socket.spliceTo({ stream: endpoint, highWaterMark }).start();
    near.pause();
    for (let i = 0; i < 300; i++)
      far.write(Buffer.alloc(1 + (i * 7919) % 90_000));
    await settled(() => splice.stats.bytesOut);
    const { peakBufferedOut } = await splice.stop();
    assert(socket.writableLength > 0);
    assert(socket.writableLength <= highWaterMark, `${socket.writableLength}`);
    assert(socket.writableLength <= peakBufferedOut);
    assert(peakBufferedOut <= highWaterMark);
    socket.destroy();
    endpoint.destroy();
  });
}

// Over JS streams
for (const which of ['a', 'b', 'ab']) {
  run(async () => {
    const over = async (js) => {
      if (!js)
        return tlsPair({ allowHalfOpen: true });
      const pair = (await socketPair()).map((socket) =>
        Duplex.from({ readable: socket, writable: socket }));
      return tlsOver(...pair, { allowHalfOpen: true });
    };
    const first = await over(which.includes('a'));
    const second = await over(which.includes('b'));
    const done = first.server.pipeToNative(second.client);
    const there = receive(second.server);
    const back = receive(first.client);
    await Promise.all([
      send(first.client, MiB, { seed: 1, end: false }),
      send(second.server, MiB, { seed: 2, end: false }),
      there.receiver.reached(MiB),
      back.receiver.reached(MiB),
    ]);
    first.client.end();
    second.server.end();
    (await there).check(MiB, 1);
    (await back).check(MiB, 2);
    assert.strictEqual((await done).reason, 'end');
  });
}

// What a program has put on all objects is no endpoint of the splice that belongs to this one.
run(async () => {
  const { near, socket, endpoint, far } = await proxy();
  const names = ['fd', 'file', 'stream'];
  for (const name of names)
    Object.defineProperty(Object.prototype, name, { configurable: true, value: {} });
  try {
    const joined = socket.pipeToNative(endpoint, { __proto__: null, direction: 'out' });
    far.end('back');
    endpoint.end();
    near.resume();
    assert.strictEqual((await joined).bytesOut, 4);
  } finally {
    for (const name of names)
      delete Object.prototype[name];
  }
  socket.destroy();
});

// The stream below is one of JavaScript and closes itself, while the other TLSSocket has yet to send
// the last bytes.
for (const autoClose of [false, true]) {
  for (const size of [300_000, MiB, 4 * MiB]) {
    run(async () => {
      const { 0: a, 1: b } = await socketPair();
      const { client: near, server: socket } = tlsOver(a, duplexOver(b, { allowHalfOpen: false }));
      await Promise.all([once(near, 'secureConnect'), once(socket, 'secure')]);
      const { client: endpoint, server: far } = await tlsPair();
      const splice =
        socket.spliceTo({ stream: endpoint, autoClose, highWaterMark: 64 * 1024 }).start();
      near.resume();
      send(near, size);
      await settled(() => splice.stats.bytesIn);
      const received = receive(far);
      assert.strictEqual((await splice.finished).reason, 'end');
      (await received).check(size);
      for (const stream of [near, socket, endpoint, far, b])
        stream.destroy();
    });
  }
}

// What is refused, and leaves everything as it is
run(async () => {
  const sockets = await proxy();
  const { socket, endpoint } = sockets;
  const value = { code: 'ERR_INVALID_ARG_VALUE' };
  const state = { code: 'ERR_INVALID_STATE' };
  assert.throws(() => socket.spliceTo({ stream: socket }), value);

  const { 0: plain } = await socketPair();
  const taken = endpoint.spliceTo({ stream: plain, direction: 'out' }).start();
  const refused = socket.spliceTo({ stream: endpoint });
  assert.throws(() => refused.start(), state);
  assert.strictEqual(refused.state, 'idle');
  await taken.stop();

  endpoint.setEncoding('utf8');
  assert.throws(() => socket.spliceTo({ stream: endpoint }).start(), state);
});

run(async () => {
  const sockets = await proxy();
  const { socket, endpoint } = sockets;
  const splice = socket.spliceTo({ stream: endpoint }).start();
  const state = { code: 'ERR_INVALID_STATE' };
  assert.throws(() => socket.spliceTo({ stream: endpoint }).start(), state);
  assert.throws(() => endpoint.spliceTo({ stream: socket }).start(), state);
  await splice.stop();
  await checkAlive(sockets);
});

run(async () => {
  const { socket, endpoint } = await proxy();
  endpoint.destroy();
  assert.throws(() => socket.spliceTo({ stream: endpoint }),
                { code: 'ERR_SOCKET_CLOSED' });
  const other = await proxy();
  other.endpoint.end();
  assert.throws(() => other.socket.spliceTo({ stream: other.endpoint }).start(),
                { code: 'ERR_INVALID_STATE' });
});

// TLS inside of TLS: neither is an endpoint for the other.
run(async () => {
  const outer = await tlsPair({ allowHalfOpen: true });
  const inner = tlsOver(outer.client, outer.server, { allowHalfOpen: true });
  await once(inner.client, 'secureConnect');
  const value = { code: 'ERR_INVALID_ARG_VALUE' };
  assert.throws(() => inner.client.spliceTo({ stream: outer.client }), value);
  assert.throws(() => outer.client.spliceTo({ stream: inner.client }), value);
  // But from one connection into another.
  const done = inner.server.pipeToNative((await socketPair())[0], { direction: 'in' });
  inner.client.end('x');
  assert.strictEqual((await done).bytesIn, 1);
});

// Whatever is destroyed at whatever moment: one 'close', and no crash.
for (const victim of ['near', 'socket', 'endpoint', 'far']) {
  run(async () => {
    for (let delay = 0; delay < 6; delay++) {
      const sockets = await proxy();
      for (const socket of Object.values(sockets))
        socket.on('error', () => {});
      const splice = sockets.socket.spliceTo({ stream: sockets.endpoint });
      splice.on('error', () => {});
      const closed = closing(splice);
      splice.start();
      send(sockets.near, MiB).catch(() => {});
      send(sockets.far, MiB).catch(() => {});
      sockets.near.resume();
      sockets.far.resume();
      await turns(delay);
      sockets[victim].destroy();
      await closed;
      for (const socket of Object.values(sockets))
        socket.destroy();
    }
  });
}

// All bytes have been passed to the endpoint, but not sent: then the splice has not ended, and
// fails with the endpoint. The other direction has ended, or is not spliced.
for (const direction of ['in', 'duplex']) {
  for (const fails of [true, false]) {
    run(async () => {
      const near = await tlsPair({ allowHalfOpen: true });
      let isStuck = false;
      const ends = [0, 1].map(() => new Duplex({
        read() {},
        write(chunk, encoding, callback) {
          if (isStuck)
            return;
          this.other.push(chunk);
          callback();
        },
        final(callback) {
          this.other.push(null);
          callback();
        },
      }));
      ends[0].other = ends[1];
      ends[1].other = ends[0];
      const { client: endpoint, server: far } = tlsOver(ends[0], ends[1], { allowHalfOpen: true });
      await once(endpoint, 'secureConnect');
      near.client.on('error', () => {});
      far.on('error', () => {});
      if (direction === 'duplex')
        far.end();
      await turns();
      isStuck = true;
      const done = near.server.pipeToNative(endpoint, { direction, highWaterMark: MiB });
      near.client.resume();
      await send(near.client, MiB / 2);
      await settled(() => near.server.bytesRead);
      const mine = new Error('the network is down');
      if (fails)
        ends[0].destroy(mine);
      else
        endpoint.destroy();
      await assert.rejects(done, fails ? mine : { code: 'ERR_STREAM_PREMATURE_CLOSE' });
      far.destroy();
    });
  }
}
