'use strict';

// A net.Socket as the endpoint: what JavaScript has to do with it before, while
// and after it is spliced.

const common = require('../common');
if (!common.hasCrypto)
  common.skip('missing crypto');

const assert = require('assert');
const { createHook } = require('async_hooks');
const { spawn } = require('child_process');
const { once } = require('events');
const http = require('http');
const net = require('net');
const { Duplex } = require('stream');
const { setTimeout: sleep } = require('timers/promises');
const tls = require('tls');
if (tls.TLSSplice === undefined)
  common.skip('built without TLSSplice');

const {
  MiB, Receiver, closing, payload, receive, run, send, settled, socketPair, tlsOver, tlsPair,
  turns,
} = require('../common/tls-splice');

const text = async (socket) => `${(await once(socket, 'data'))[0]}`;
const all = async (socket) => Buffer.concat(await socket.toArray()).toString();

for (const kind of ['tcp', 'unix']) {
  // What JS has written goes first: corked, or more than the kernel takes.
  run(async () => {
    const { client, server } = await tlsPair({ allowHalfOpen: true });
    const { 0: endpoint, 1: other } = await socketPair(kind);
    endpoint.cork();
    endpoint.write('corked ');
    const splice = server.spliceTo({ stream: endpoint }).start();
    client.end('spliced');
    // The other direction does not wait.
    other.write('back');
    assert.strictEqual(await text(client), 'back');
    assert.strictEqual(splice.stats.bytesIn, 0);
    endpoint.uncork();
    assert.strictEqual(await all(other), 'corked spliced');
  });

  run(async () => {
    const { client, server } = await tlsPair({ allowHalfOpen: true });
    const { 0: other, 1: endpoint } = await socketPair(kind, { pauseOnConnect: true });
    other.pause();
    const before = [...payload(8 * MiB)];
    for (const chunk of before)
      endpoint.write(chunk);
    assert(endpoint.writableLength > 0);
    const splice = server.spliceTo({ stream: endpoint, direction: 'in' }).start();
    const sent = send(client, 4 * MiB, { seed: 2 });
    await settled(() => server.bytesRead);
    assert.strictEqual(splice.stats.bytesIn, 0);
    const first = new Receiver();
    const last = new Receiver();
    other.on('data', (chunk) => {
      const n = Math.min(chunk.length, 8 * MiB - first.bytes);
      first.update(chunk.subarray(0, n));
      last.update(chunk.subarray(n));
    });
    other.resume();
    await Promise.all([sent, once(other, 'end')]);
    first.check(8 * MiB);
    last.check(4 * MiB, 2);
    assert.strictEqual((await splice.finished).bytesIn, 4 * MiB);
    assert.strictEqual(endpoint.bytesWritten, 12 * MiB);
  });

  // stop() while that waits
  run(async () => {
    const { client, server } = await tlsPair({ allowHalfOpen: true });
    const { 0: endpoint, 1: other } = await socketPair(kind);
    endpoint.cork();
    endpoint.write('corked ');
    const splice = server.spliceTo({ stream: endpoint }).start();
    client.write('to JS');
    await settled(() => server.bytesRead);
    const { reason, bytesIn } = await splice.stop();
    assert.strictEqual(reason, 'stopped');
    assert.strictEqual(bytesIn, 0);
    const received = text(other);
    endpoint.uncork();
    assert.strictEqual(await received, 'corked ');
    assert.strictEqual(await text(server), 'to JS');
  });

  // The counters of the socket
  run(async () => {
    const { client, server } = await tlsPair({ allowHalfOpen: true });
    const { 0: endpoint, 1: other } = await socketPair(kind);
    endpoint.write('123');
    await once(other, 'data');
    other.write('12345');
    await once(endpoint, 'data');
    const done = server.pipeToNative(endpoint);
    const received = [receive(other), receive(client)];
    await Promise.all([
      send(client, 3 * MiB, { seed: 1 }), send(other, 2 * MiB, { seed: 2 }),
    ]);
    (await received[0]).check(3 * MiB, 1);
    (await received[1]).check(2 * MiB, 2);
    await done;
    assert.strictEqual(endpoint.bytesWritten, 3 * MiB + 3);
    assert.strictEqual(endpoint.bytesRead, 2 * MiB + 5);
  });

  // stop() with a sink that does not read: what the stream has is on its way.
  run(async () => {
    const { client, server } = await tlsPair({ allowHalfOpen: true });
    const { 0: other, 1: endpoint } = await socketPair(kind, { pauseOnConnect: true });
    other.pause();
    const size = 24 * MiB;
    const sent = send(client, size);
    const splice = server.spliceTo({ stream: endpoint, direction: 'in' }).start();
    await settled(() => splice.stats.bytesIn);
    const { bytesIn, stallsIn, peakBufferedIn } = await splice.stop();
    assert.strictEqual(stallsIn, 1);
    assert(peakBufferedIn <= 256 * 1024);
    assert(bytesIn < size);
    // It gives way to what JavaScript writes next.
    server.pipe(endpoint);
    const received = await receive(other);
    received.check(size);
    await sent;
  });

  // The socket's own options may be changed.
  run(async () => {
    const { client, server } = await tlsPair({ allowHalfOpen: true });
    const { 0: endpoint, 1: other } = await socketPair(kind);
    endpoint.setKeepAlive(true, 1000);
    const splice = server.spliceTo({ stream: endpoint }).start();
    endpoint.setNoDelay(true);
    endpoint.setKeepAlive(false);
    endpoint.pause();
    endpoint.resume();
    client.write('x');
    assert.strictEqual(await text(other), 'x');
    await splice.stop();
    other.write('y');
    assert.strictEqual(await text(endpoint), 'y');
  });

  // One that was paused before stays so.
  run(async () => {
    const { client, server } = await tlsPair({ allowHalfOpen: true });
    const { 0: other, 1: endpoint } = await socketPair(kind, { pauseOnConnect: true });
    const splice = server.spliceTo({ stream: endpoint }).start();
    const received = text(client);
    other.write('spliced');
    assert.strictEqual(await received, 'spliced');
    await splice.stop();
    const { bytesRead } = endpoint;
    // As often as it would have been read by now
    const { 0: a, 1: b } = await socketPair(kind);
    other.write('for JS');
    for (let i = 0; i < 3; i++) {
      a.write('x');
      await once(b, 'data');
    }
    assert.strictEqual(endpoint.bytesRead, bytesRead);
    assert.strictEqual(await text(endpoint.resume()), 'for JS');
  });
}

// allowHalfOpen is what it was: 'end' comes when the splice is over, and ends the
// socket unless it may be half-open.
for (const allowHalfOpen of [true, false]) {
  run(async () => {
    const { client, server } = await tlsPair({ allowHalfOpen: true });
    const { 0: endpoint, 1: other } = await socketPair('tcp', { allowHalfOpen });
    const splice = server.spliceTo({ stream: endpoint, direction: 'out' }).start();
    const received = all(client);
    const ended = once(endpoint, 'end');
    other.end('x');
    assert.strictEqual(await received, 'x');
    await splice.finished;
    await ended;
    await turns();
    assert.strictEqual(endpoint.writableEnded, !allowHalfOpen);
  });
}

// The idle time of the endpoint begins when nothing moves any more.
for (const direction of ['in', 'out']) {
  run(async () => {
    const { client, server } = await tlsPair({ allowHalfOpen: true });
    const { 0: endpoint, 1: other } = await socketPair();
    const { 0: from, 1: to } = direction === 'in' ? [client, other] : [other, client];
    const kTimeout = common.platformTimeout(200);
    let timeouts = 0;
    endpoint.setTimeout(kTimeout, () => timeouts++);
    const splice = server.spliceTo({ stream: endpoint, direction }).start();
    let longest = 0;
    let last = performance.now();
    for (let i = 0; i < 12; i++) {
      await sleep(kTimeout / 4);
      from.write('x');
      await once(to, 'data');
      longest = Math.max(longest, performance.now() - last);
      last = performance.now();
    }
    // On a machine that is too slow for that there is nothing to see.
    if (longest < kTimeout * 0.9)
      assert.strictEqual(timeouts, 0);
    if (timeouts === 0)
      await once(endpoint, 'timeout');
    assert.strictEqual(splice.state, 'running');
    const again = once(endpoint, 'timeout');
    await splice.stop();
    await again;
  });
}

// Two splices, one each way, share it; two of the same direction do not.
run(async () => {
  const { client, server } = await tlsPair({ allowHalfOpen: true });
  const second = await tlsPair({ allowHalfOpen: true });
  const { 0: endpoint, 1: other } = await socketPair();
  server.spliceTo({ stream: endpoint, direction: 'in' }).start();
  second.server.spliceTo({ stream: endpoint, direction: 'out' }).start();
  for (const direction of ['in', 'out', 'duplex']) {
    const third = (await tlsPair()).server;
    assert.throws(() => third.spliceTo({ stream: endpoint, direction }).start(),
                  { code: 'ERR_INVALID_STATE' });
  }
  client.write('there');
  assert.strictEqual(await text(other), 'there');
  other.write('back');
  assert.strictEqual(await text(second.client), 'back');
});

// States in which it is refused
run(async () => {
  const { server } = await tlsPair({ allowHalfOpen: true });
  const value = { code: 'ERR_INVALID_ARG_VALUE' };
  const state = { code: 'ERR_INVALID_STATE' };

  const listener = net.createServer().listen(0);
  await once(listener, 'listening');
  const connecting = net.connect(listener.address().port);
  assert.throws(() => server.spliceTo({ stream: new net.Socket() }), state);
  assert.strictEqual(server.spliceTo({ stream: connecting }).state, 'idle');
  await once(connecting, 'connect');
  connecting.destroy();
  assert.throws(() => server.spliceTo({ stream: connecting }),
                { code: 'ERR_SOCKET_CLOSED' });
  listener.close();

  const { 0: ended } = await socketPair();
  ended.end();
  for (const direction of ['in', 'duplex'])
    assert.throws(() => server.spliceTo({ stream: ended, direction }).start(), state);

  const { 0: decoding } = await socketPair();
  decoding.setEncoding('utf8');
  assert.throws(() => server.spliceTo({ stream: decoding }), state);

  // No handle of libuv's: a Duplex, and a net.Socket over one
  const { 0: plain } = await socketPair();
  const duplex = Duplex.from({ readable: plain, writable: plain });
  assert.throws(() => server.spliceTo({ stream: duplex }), value);
  const inner = tls.connect({ socket: duplex, rejectUnauthorized: false });
  inner.on('error', () => {});
  const JSStreamSocket = inner._handle._parentWrap;
  assert(JSStreamSocket instanceof net.Socket);
  assert.throws(() => server.spliceTo({ stream: JSStreamSocket }),
                { ...value, message: /no native handle; use pipe\(\)/ });
});

// While an HTTP parser reads it
run(async () => {
  const { server } = await tlsPair();
  const listener = http.createServer(common.mustCall((req, res) => {
    assert.throws(() => server.spliceTo({ stream: req.socket }),
                  { code: 'ERR_INVALID_STATE' });
    res.end();
  })).listen(0);
  await once(listener, 'listening');
  const { 0: response } = await once(http.get({
    port: listener.address().port, agent: false,
  }), 'response');
  await once(response.resume(), 'end');
  listener.close();
});

// Ended by the other side, and read to its end by JavaScript: nothing to send
run(async () => {
  const { client, server } = await tlsPair({ allowHalfOpen: true });
  const { 0: endpoint, 1: other } = await socketPair();
  other.end('read by JS');
  assert.strictEqual(await all(endpoint), 'read by JS');
  if (endpoint.destroyed)
    return;
  const received = all(client);
  const { reason } = await server.pipeToNative(endpoint, { direction: 'out' });
  assert.strictEqual(reason, 'end');
  assert.strictEqual(await received, '');
});

// Ended between start() and the end of the handshake: what it has been given is
// its own, and gets there.
run(async () => {
  const { 0: a, 1: b } = await socketPair();
  const { 0: other, 1: endpoint } = await socketPair('tcp', { pauseOnConnect: true });
  const { client, server } = tlsOver(a, b, { allowHalfOpen: true });
  const splice = server.spliceTo({ stream: endpoint, direction: 'in' });
  const failed = once(splice, 'error');
  endpoint.write(Buffer.concat([...payload(8 * MiB)]));
  splice.start();
  assert.throws(() => endpoint.end('LEAK'), { code: 'ERR_INVALID_STATE' });
  endpoint.end();
  client.on('error', () => {});
  assert.strictEqual((await failed)[0].code, 'ERR_INVALID_STATE');
  assert.strictEqual(endpoint.destroyed, false);
  (await receive(other)).check(8 * MiB);
});

// Given away to another process
run(async () => {
  for (const direction of ['in', 'out', 'duplex']) {
    const { server } = await tlsPair({ allowHalfOpen: true });
    const { 0: endpoint } = await socketPair();
    const splice = server.spliceTo({ stream: endpoint, direction });
    const failed = once(splice, 'error');
    splice.start();
    await turns();
    const child = spawn(process.execPath, ['-e', 'process.on("message", () => process.exit())'],
                        { stdio: ['ignore', 'inherit', 'inherit', 'ipc'] });
    const closed = once(child, 'close');
    child.send('take it', endpoint);
    assert.strictEqual((await failed)[0].code, 'ERR_STREAM_PREMATURE_CLOSE');
    assert.strictEqual(server.destroyed, false);
    await closed;
  }
});

// Hooks are called when the stream is full, and may end the splice there.
for (const end of [({ server }) => server.destroy(), ({ splice }) => splice.stop(),
                   ({ endpoint }) => endpoint.destroy()]) {
  run(async () => {
    const { client, server } = await tlsPair({ allowHalfOpen: true });
    const { 0: other, 1: endpoint } = await socketPair('unix', { pauseOnConnect: true });
    other.pause();
    for (const socket of [client, server, endpoint, other])
      socket.on('error', () => {});
    const splice = server.spliceTo({ stream: endpoint, direction: 'in' });
    splice.on('error', () => {});
    const closed = closing(splice);
    let writes = 0;
    const hook = createHook({
      init(id, type, trigger) {
        if (type === 'WRITEWRAP' && trigger === endpoint._handle?.getAsyncId() && writes++ === 0)
          end({ server, splice, endpoint });
      },
    }).enable();
    splice.start();
    send(client, 4 * MiB).catch(() => {});
    await closed;
    hook.disable();
    assert.strictEqual(writes, 1);
  });
}

// Destroyed in the middle
run(async () => {
  const { client, server } = await tlsPair({ allowHalfOpen: true });
  const { 0: endpoint, 1: other } = await socketPair();
  other.on('error', () => {});
  send(client, 16 * MiB).catch(() => {});
  const splice = server.spliceTo({ stream: endpoint });
  const failed = once(splice, 'error');
  splice.start();
  await once(other, 'data');
  endpoint.destroy();
  assert.match((await failed)[0].code, /^(ERR_STREAM_PREMATURE_CLOSE|EPIPE|ECANCELED)$/);
  assert.strictEqual(server.destroyed, false);
});
