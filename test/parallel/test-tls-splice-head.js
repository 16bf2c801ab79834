'use strict';

// The `head` option: bytes that go to the endpoint before what the socket has. They count,
// and go to JavaScript if the endpoint does not take them.

const common = require('../common');
if (!common.hasCrypto)
  common.skip('missing crypto');
if (common.isWindows)
  common.skip('no FIFOs on Windows');

const assert = require('assert');
const { once } = require('events');
const fs = require('fs');
const net = require('net');
const tls = require('tls');
if (tls.TLSSplice === undefined)
  common.skip('built without TLSSplice');

const tmpdir = require('../common/tmpdir');
const {
  MiB, cert, closing, fifo, key, receive, run, settled, socketPair, tlsOver, tlsPair,
  track, turns,
} = require('../common/tls-splice');

async function text(stream) {
  return (await stream.setEncoding('utf8').toArray()).join('');
}

// Without a string, since long ones that are joined and compared outlive the process.
async function assertReads(stream, ...expected) {
  const chunks = await stream.toArray();
  assert.ok(Buffer.concat(chunks).equals(Buffer.concat(expected)));
}

// The peer has ended, and JavaScript knows.
async function endedPair() {
  const { client, server } = await tlsPair({ allowHalfOpen: true });
  client.end();
  await once(server.resume(), 'end');
  return { client, server };
}

const endpoints = {
  async stream() {
    const { 0: endpoint, 1: other } = await socketPair();
    return { target: endpoint, other };
  },
  async fd() {
    const { 0: other, 1: owner } = await socketPair('unix', { pauseOnConnect: true });
    return { target: owner._handle.fd, other };
  },
  async tls() {
    const { client: other, server: endpoint } = await tlsPair({ allowHalfOpen: true });
    return { target: endpoint, other };
  },
};

// In front of what JavaScript has buffered, and in whatever form
for (const head of [
  Buffer.from('head '),
  new Uint8Array(0),
  new Uint16Array([0x6568, 0x6461]),
  new DataView(new Uint8Array(Buffer.from('-head-')).buffer, 1, 4),
]) {
  for (const open of Object.values(endpoints)) {
    run(async () => {
      const { client, server } = await tlsPair({ allowHalfOpen: true });
      const { target, other } = await open();
      client.write('buffered ');
      await once(server, 'readable');
      const done = server.pipeToNative(target, { head });
      client.end('more');
      other.end();
      client.resume();
      const bytes = Buffer.from(head.buffer, head.byteOffset, head.byteLength);
      const expected = `${bytes}buffered more`;
      assert.strictEqual(await text(other), expected);
      const { bytesIn } = await done;
      assert.strictEqual(bytesIn, expected.length);
    });
  }
}

// Of a socket that is not secure yet, and whose endpoint is not connected: if the splice ends
// before that, JavaScript gets the head, unless the socket is gone.
for (const flowing of [true, false]) {
  for (const end of ['begin', 'stop', 'destroy']) {
    run(async () => {
      const { 0: a, 1: b } = await socketPair();
      const { client, server } = tlsOver(a, b, { allowHalfOpen: true });
      client.on('error', () => {});
      const { 0: endpoint, 1: other } = await socketPair();
      let received = '';
      if (flowing)
        server.on('data', (chunk) => received += chunk);
      const head = Buffer.from('head ');
      const splice = server.spliceTo({ stream: endpoint, direction: 'in', head }).start();
      assert.strictEqual(received, '');
      if (end === 'stop')
        await splice.stop();
      else if (end === 'destroy')
        server.destroy();
      if (end === 'destroy')
        return;
      client.end('more');
      if (end === 'begin') {
        assert.strictEqual(await text(other), 'head more');
        await splice.finished;
        assert.strictEqual(received, '');
      } else if (flowing) {
        await once(server, 'end');
        assert.strictEqual(received, 'head more');
      } else {
        assert.strictEqual(await text(server), 'head more');
      }
    });
  }
}

// Whoever reads it then is not called inside of what ends the splice, and may answer, to
// either socket. What comes later comes behind it.
for (const kind of ['stream', 'tls']) {
  for (const end of ['stop', 'abort', 'aborted', 'endpoint']) {
    run(async () => {
      const { 0: a, 1: b } = await socketPair();
      const { client, server } = tlsOver(a, b, { allowHalfOpen: true });
      const { target: endpoint, other } = await endpoints[kind]();
      other.on('error', () => {});
      let isInside = false;
      let received = '';
      server.on('data', (chunk) => {
        assert.strictEqual(isInside, false);
        if (received === '') {
          server.write('answer');
          if (end !== 'endpoint')
            endpoint.write('copy');
        }
        received += chunk;
      });
      const controller = new AbortController();
      const { signal } = controller;
      isInside = true;
      if (end === 'aborted')
        controller.abort();
      const splice = server.spliceTo({ stream: endpoint, head: Buffer.from('head '), signal }).start();
      splice.on('error', () => {});
      if (end === 'stop')
        splice.stop();
      else if (end === 'abort')
        controller.abort();
      else if (end === 'endpoint')
        endpoint.destroy();
      isInside = false;
      if (end !== 'endpoint')
        assert.strictEqual(splice.state, 'stopping');
      client.end('more');
      const answer = text(client);
      await splice.finished.catch(() => {});
      await once(server, 'end');
      assert.strictEqual(received, 'head more');
      server.end();
      assert.strictEqual(await answer, 'answer');
      if (end !== 'endpoint')
        assert.strictEqual(`${await once(other, 'data')}`, 'copy');
      endpoint.destroy();
    });
  }
}

// A splice that is never started leaves it to the caller.
run(async () => {
  const { client, server } = await tlsPair({ allowHalfOpen: true });
  const { 0: endpoint, 1: other } = await socketPair();
  const head = Buffer.from('head ');
  await server.spliceTo({ stream: endpoint, direction: 'in', head }).stop();
  const splice = server.spliceTo({ stream: endpoint, direction: 'in', head }).start();
  client.end('more');
  assert.strictEqual(await text(other), 'head more');
  assert.strictEqual((await splice.finished).bytesIn, 9);
});

// What the endpoint has not taken goes back, from the head on.
for (const how of ['stop', 'fail']) {
  run(async () => {
    const { client, server } = await tlsPair({ allowHalfOpen: true });
    const { reader, writer } = fifo();
    const head = Buffer.alloc(1 << 20, 'head');
    const splice = server.spliceTo({ fd: writer, direction: 'in', head }).start();
    splice.on('error', () => {});
    const closed = closing(splice);
    client.end('more');
    await settled(() => splice.stats.bytesIn);
    server.pause();
    if (how === 'stop')
      splice.stop();
    else
      fs.closeSync(reader);
    const { bytesIn, reason } = await closed;
    assert.strictEqual(reason, how === 'stop' ? 'stopped' : 'error');
    assert(bytesIn < head.length);
    await assertReads(server, head.subarray(bytesIn), Buffer.from('more'));
    fs.closeSync(writer);
    if (how === 'stop')
      fs.closeSync(reader);
  });
}

// Neither does an endpoint that never reads keep the splice from stopping.
for (const kind of ['stream', 'tls']) {
  run(async () => {
    const { client, server } = await tlsPair({ allowHalfOpen: true });
    const { target, other } = await endpoints[kind]();
    other.pause();
    const head = Buffer.alloc(16 << 20, 'head');
    const splice = server.spliceTo({ stream: target, head }).start();
    await settled(() => splice.stats.bytesIn);
    client.end('more');
    server.pause();
    const { bytesIn, reason } = await splice.stop();
    assert.strictEqual(reason, 'stopped');
    assert(bytesIn > 0 && bytesIn < head.length);
    await assertReads(server, head.subarray(bytesIn), Buffer.from('more'));
    const received = receive(other);
    target.end();
    await received;
    assert.strictEqual(received.receiver.bytes, bytesIn);
    target.destroy();
  });
}

// The peer has ended. The bytes go to the endpoint all the same, and are not lost in silence.
for (const open of Object.values(endpoints)) {
  const head = Buffer.alloc(16 << 20, 'head');
  run(async () => {
    const { client, server } = await endedPair();
    const { target, other } = await open();
    const done = server.pipeToNative(target, { head });
    assert.strictEqual((await receive(other)).bytes, head.length);
    other.end('back');
    assert.strictEqual(await text(client), 'back');
    assert.strictEqual((await done).bytesIn, head.length);
  });

  // An end of the endpoint is that of the socket, which has then ended both ways, and closes.
  run(async () => {
    const { client, server } = await endedPair();
    const { target, other } = await open();
    other.pause();
    const rejected = assert.rejects(server.pipeToNative(target, { head }),
                                    { code: 'ERR_STREAM_PREMATURE_CLOSE', side: 'tls' });
    other.end('back');
    assert.strictEqual(await text(client), 'back');
    await rejected;
    assert.strictEqual(server.destroyed, true);
    other.destroy();
  });

  // Nobody expects bytes after 'end'. The socket is given back alive, and can be written to.
  for (const how of ['stop', 'fail']) {
    run(async () => {
      const { client, server } = await endedPair();
      const { target, other } = await open();
      other.pause();
      server.on('data', common.mustNotCall());
      const options = typeof target === 'number' ? { fd: target } : { stream: target };
      const splice = server.spliceTo({ ...options, head }).start();
      splice.on('error', () => {});
      target.on?.('error', () => {});
      const closed = closing(splice);
      await settled(() => splice.stats.bytesIn);
      if (how === 'stop')
        splice.stop();
      else
        other.destroy();
      const { bytesIn, reason } = await closed;
      assert.strictEqual(reason, how === 'stop' ? 'stopped' : 'error');
      assert(bytesIn < head.length);
      assert.strictEqual(server.destroyed, false);
      server.end('answer');
      assert.strictEqual(await text(client), 'answer');
      target.destroy?.();
    });
  }
}

// An empty one has no part in how a splice ends: the socket has ended both ways, and destroys
// itself before the splice has had its first turn.
run(async () => {
  const { client, server } = await endedPair();
  const { target, other } = await endpoints.stream();
  client.resume();
  server.end();
  await new Promise((resolve) => server.once('finish', common.mustCall(() => {
    resolve(server.pipeToNative(target, { direction: 'in', head: Buffer.alloc(0) }));
    assert.strictEqual(server.destroyed, false);
  })));
  assert.strictEqual(server.destroyed, true);
  await once(other.resume(), 'end');
});

// JavaScript reads the last bytes of a socket, which has ended but has yet to emit 'end', and
// passes them on: that comes behind them. The stream takes its time to connect.
for (const direction of ['in', 'duplex']) {
  run(async () => {
    const { client, server } = await tlsPair();
    const listener = net.createServer().listen(0);
    await once(listener, 'listening');
    const accepted = once(listener, 'connection');
    const waiting = Promise.withResolvers();
    client.resume().end('request');
    while (!server._readableState.ended) {
      await turns(1);
      server.read(0);
    }
    const head = server.read();
    assert.strictEqual(`${head}`, 'request');
    const endpoint = net.connect({
      port: listener.address().port,
      host: 'backend.example',
      autoSelectFamily: false,
      lookup: (name, options, callback) => waiting.promise.then(() => callback(null, '127.0.0.1', 4)),
    });
    const done = server.pipeToNative(endpoint, { direction, head });
    await turns();
    assert.strictEqual(server.readableEnded, false);
    waiting.resolve();
    const { 0: other } = await accepted;
    assert.strictEqual(await text(other), 'request');
    assert.strictEqual((await done).bytesIn, head.length);
    endpoint.destroy();
    listener.close();
  });
}

// A socket with an `onread` buffer gets them there, whenever the splice ends.
for (const event of ['connect', 'secureConnect']) {
  run(async () => {
    const { 0: endpoint, 1: other } = await socketPair();
    const listener = tls.createServer({ key, cert }).listen(0);
    await once(listener, 'listening');
    const accepted = once(listener, 'secureConnection');
    let received = '';
    const all = Promise.withResolvers();
    const client = tls.connect({
      port: listener.address().port,
      rejectUnauthorized: false,
      onread: {
        buffer: Buffer.alloc(3),
        callback(n, buffer) {
          received += buffer.toString('latin1', 0, n);
          if (received === 'head more')
            all.resolve();
        },
      },
    });
    track(client);
    await once(client, event);
    // What was written before keeps the endpoint from taking more.
    other.pause();
    endpoint.write(Buffer.alloc(16 << 20));
    const bytes = new Uint8Array(Buffer.from('-head -')).buffer;
    const head = new DataView(bytes, 1, 5);
    await client.spliceTo({ stream: endpoint, direction: 'in', head }).start().stop();
    assert.strictEqual(received, 'head ');
    const { 0: server } = await accepted;
    track(server);
    listener.close();
    server.write('more');
    await all.promise;
    endpoint.destroy();
  });
}

// The socket closes while a thread writes the head to a file: that is no end.
run(async () => {
  tmpdir.refresh();
  const path = tmpdir.resolve('head');
  const head = Buffer.alloc(64 * MiB);
  const { server } = await endedPair();
  const file = fs.openSync(path, 'w');
  const done = server.pipeToNative(file, { direction: 'in', head, highWaterMark: 64 * 1024 });
  while (fs.fstatSync(file).size === 0)
    await turns(1);
  server.end();
  await assert.rejects(done, { code: 'ERR_STREAM_PREMATURE_CLOSE' });
  fs.closeSync(file);
});

// Memory that the user has transferred. A descriptor with autoClose stays the user's.
for (const make of [(buffer) => new DataView(buffer), (buffer) => new Uint8Array(buffer)]) {
  run(async () => {
    const { server } = await tlsPair();
    const buffer = new ArrayBuffer(8);
    const head = make(buffer);
    structuredClone(buffer, { transfer: [buffer] });
    const { reader, writer } = fifo();
    const options = { direction: 'in', autoClose: true, head };
    assert.throws(() => server.spliceTo({ fd: writer, ...options }), { code: 'ERR_INVALID_ARG_VALUE' });
    fs.fstatSync(writer);
    await assert.rejects(server.pipeToNative(writer, options), { code: 'ERR_INVALID_ARG_VALUE' });
    assert.throws(() => fs.fstatSync(writer), { code: 'EBADF' });
    fs.closeSync(reader);
  });

  for (const onread of [undefined, { buffer: Buffer.alloc(100), callback: common.mustNotCall() }]) {
    run(async () => {
      const listener = tls.createServer({ key, cert }).listen(0);
      await once(listener, 'listening');
      const { 0: endpoint } = await socketPair();
      const socket = tls.connect({ port: listener.address().port, rejectUnauthorized: false, onread });
      track(socket);
      const buffer = new ArrayBuffer(8);
      const splice = socket.spliceTo({ stream: endpoint, direction: 'in', head: make(buffer) }).start();
      structuredClone(buffer, { transfer: [buffer] });
      assert.strictEqual((await splice.stop()).reason, 'stopped');
      await once(socket, 'secureConnect');
      assert.strictEqual(socket.destroyed, false);
      listener.close();
    });
  }
}

// What the user has made of the properties of a head has no part in it.
run(async () => {
  const { client, server } = await tlsPair({ allowHalfOpen: true });
  const { 0: endpoint, 1: other } = await socketPair();
  const head = Buffer.from('head');
  for (const name of ['buffer', 'byteLength', 'byteOffset', 'length'])
    Object.defineProperty(head, name, { get: common.mustNotCall() });
  const done = server.pipeToNative(endpoint, { head });
  client.resume().end();
  other.end();
  assert.strictEqual(await text(other), 'head');
  assert.strictEqual((await done).bytesIn, 4);
});
