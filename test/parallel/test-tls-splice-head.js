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
const tls = require('tls');
if (tls.TLSSplice === undefined)
  common.skip('built without TLSSplice');

const {
  closing, fifo, ipv6, receive, run, settled, socketPair, tlsOver, tlsPair,
} = require('../common/tls-splice');

async function text(stream) {
  return (await stream.setEncoding('utf8').toArray()).join('');
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
    const rest = text(server.pause());
    if (how === 'stop')
      splice.stop();
    else
      fs.closeSync(reader);
    const { bytesIn, reason } = await closed;
    assert.strictEqual(reason, how === 'stop' ? 'stopped' : 'error');
    assert(bytesIn < head.length);
    assert.strictEqual(await rest, `${head.subarray(bytesIn)}more`);
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
    const rest = text(server.pause());
    const { bytesIn, reason } = await splice.stop();
    assert.strictEqual(reason, 'stopped');
    assert(bytesIn > 0 && bytesIn < head.length);
    assert.ok(await rest === `${head.subarray(bytesIn)}more`);
    const received = receive(other);
    target.end();
    await received;
    assert.strictEqual(received.receiver.bytes, bytesIn);
    target.destroy();
  });
}

// It is packets, too.
run(async () => {
  const { client, server } = await tlsPair({ allowHalfOpen: true });
  const { 0: endpoint, 1: other } = await socketPair();
  const packets = [ipv6(100, 1), ipv6(1280, 2)];
  const bytes = Buffer.concat(packets);
  const received = receive(other);
  const splice = server.spliceTo({
    stream: endpoint, direction: 'in', framing: 'ipv6', head: bytes.subarray(0, 120),
  }).start();
  client.write(bytes.subarray(120));
  await received.receiver.reached(bytes.length);
  assert.strictEqual(splice.stats.packetsIn, 2);
  client.end();
  await splice.finished;
});
