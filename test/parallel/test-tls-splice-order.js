'use strict';

// What JS had before start() keeps its place: what it has read and not passed
// on goes to the endpoint first, what it has written goes to the peer first.

const common = require('../common');
if (!common.hasCrypto)
  common.skip('missing crypto');

const assert = require('assert');
const { once } = require('events');
const tls = require('tls');
if (tls.TLSSplice === undefined)
  common.skip('built without TLSSplice');

const {
  MiB, Receiver, payload, receive, run, send, settled, socketPair, tlsPair,
} = require('../common/tls-splice');

const kSize = 2 * MiB + 5;

// Nobody has read the socket, until its buffers are full.
run(async () => {
  const { client, server } = await tlsPair({ allowHalfOpen: true });
  const { 0: endpoint, 1: other } = await socketPair();
  const sending = send(client, kSize);
  await settled(() => server.readableLength);
  assert(server.readableLength > 0);
  const received = receive(other);
  const splice = server.spliceTo({ stream: endpoint, direction: 'in' }).start();
  await sending;
  (await received).check(kSize);
  assert.strictEqual((await splice.finished).bytesIn, kSize);
  server.end();
  client.resume();
});

// It was flowing, and is paused.
run(async () => {
  const { client, server } = await tlsPair({ allowHalfOpen: true });
  const { 0: endpoint, 1: other } = await socketPair();
  const receiver = new Receiver();
  const sending = send(client, kSize);
  await new Promise((resolve) => {
    server.on('data', function onData(chunk) {
      receiver.update(chunk);
      if (receiver.bytes < 100000)
        return;
      server.pause();
      server.removeListener('data', onData);
      resolve();
    });
  });
  const before = receiver.bytes;
  const received = receive(other, receiver);
  const splice = server.spliceTo({ stream: endpoint, direction: 'in' }).start();
  await sending;
  (await received).check(kSize);
  assert.strictEqual((await splice.finished).bytesIn, kSize - before);
  server.end();
  client.resume();
});

// start() inside a listener of 'data', in the middle of what has arrived
run(async () => {
  const { client, server } = await tlsPair({ allowHalfOpen: true });
  const { 0: endpoint, 1: other } = await socketPair();
  const receiver = new Receiver();
  const sending = send(client, kSize);
  const received = receive(other, receiver);
  server.once('data', common.mustCall((chunk) => {
    receiver.update(chunk);
    server.on('data', common.mustNotCall());
    server.spliceTo({ stream: endpoint, direction: 'in' }).start();
  }));
  await sending;
  (await received).check(kSize);
  server.end();
  client.resume();
});

// unshift(), after the end too
run(async () => {
  for (const ended of [false, true]) {
    const { client, server } = await tlsPair({ allowHalfOpen: true });
    const { 0: endpoint, 1: other } = await socketPair();
    client.write('body');
    if (ended)
      client.end();
    await once(server, 'readable');
    const body = server.read();
    assert.strictEqual(`${body}`, 'body');
    server.unshift(body);
    server.unshift(Buffer.from('head '));
    const splice = server.spliceTo({ stream: endpoint, direction: 'in' }).start();
    client.end();
    assert.strictEqual((await other.setEncoding('utf8').toArray()).join(''), 'head body');
    assert.strictEqual((await splice.finished).bytesIn, 9);
    server.end();
    client.resume();
  }
});

// Writes that are pending
run(async () => {
  const { client, server } = await tlsPair({ allowHalfOpen: true });
  const { 0: endpoint, 1: other } = await socketPair();
  const receiver = new Receiver();
  const chunks = [...payload(kSize)];
  const half = chunks.length / 2;
  const written = [];
  client.pause();
  for (const chunk of chunks.slice(0, half))
    server.write(chunk, common.mustCall(() => written.push(chunk)));
  assert(server.writableLength > 0);
  const splice = server.spliceTo({ stream: endpoint, direction: 'out' }).start();
  for (const chunk of chunks.slice(half))
    other.write(chunk);
  other.end();
  await settled(() => splice.stats.bytesOut);
  const received = receive(client, receiver);
  (await received).check(kSize);
  const stats = await splice.finished;
  assert.strictEqual(written.length, Math.floor(half));
  assert.strictEqual(stats.bytesOut, kSize - written.reduce((sum, { length }) => sum + length, 0));
  assert.strictEqual(server.bytesWritten, kSize);
  client.end();
});

// Writes that are corked
run(async () => {
  const { client, server } = await tlsPair({ allowHalfOpen: true });
  const { 0: endpoint, 1: other } = await socketPair();
  server.cork();
  server.write('one ');
  server.write('two ');
  const splice = server.spliceTo({ stream: endpoint, direction: 'out' }).start();
  other.end('three');
  await settled(() => splice.stats.bytesOut);
  assert.strictEqual(splice.stats.bytesOut, 0);
  server.uncork();
  assert.strictEqual((await client.setEncoding('utf8').toArray()).join(''), 'one two three');
  assert.strictEqual((await splice.finished).bytesOut, 5);
  client.end();
});

// The endpoint has been read by JS.
run(async () => {
  const { client, server } = await tlsPair({ allowHalfOpen: true });
  const { 0: endpoint, 1: other } = await socketPair();
  const sending = send(other, kSize);
  await settled(() => endpoint.readableLength);
  assert(endpoint.readableLength > 0);
  endpoint.on('data', common.mustNotCall());
  endpoint.pause();
  const splice = server.spliceTo({ stream: endpoint, direction: 'out' }).start();
  (await receive(client)).check(kSize);
  await sending;
  assert.strictEqual((await splice.finished).bytesOut, kSize);
  client.end();
});
