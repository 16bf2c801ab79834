// Flags: --expose-gc
'use strict';

// A socket that is read with the `onread` option: what comes between two
// splices goes to its buffer, byte by byte in order, and what the sink did not
// take does so too.

const common = require('../common');
if (!common.hasCrypto)
  common.skip('missing crypto');

const assert = require('assert');
const { once } = require('events');
const tls = require('tls');
if (tls.TLSSplice === undefined)
  common.skip('built without TLSSplice');

const {
  MiB, Receiver, receive, run, send, settled, socketPair, tlsPair, turns,
} = require('../common/tls-splice');

const kSize = 6 * MiB + 1;

function onread(callback, length = 1000) {
  return { buffer: Buffer.alloc(length), callback };
}

// start() inside the callback, and stop() again and again. JS passes on to the
// same endpoint what it gets between the splices.
run(async () => {
  const { 0: endpoint, 1: other } = await socketPair();
  let fromJS = 0;
  const splices = [];
  let running = false;
  const { client, server } = await tlsPair({
    allowHalfOpen: true,
    client: {
      onread: onread((n, buffer) => {
        endpoint.write(Buffer.from(buffer.subarray(0, n)));
        fromJS += n;
        // In the middle of a record, most of which is still to be passed on
        if (!running && endpoint.writableLength === 0) {
          running = true;
          splices.push(client.spliceTo({
            stream: endpoint, direction: 'in', end: false, highWaterMark: 5000,
          }).start());
        }
      }),
    },
  });
  client.on('data', common.mustNotCall());
  client.on('end', common.mustCall(() => endpoint.end()));
  const received = receive(other);
  const sending = send(server, kSize);
  while (!client.readableEnded) {
    await turns(2);
    if (running) {
      await splices.at(-1).stop();
      running = false;
    }
  }
  await sending;
  (await received).check(kSize);
  const spliced = splices.reduce((sum, { stats }) => sum + stats.bytesIn, 0);
  assert.strictEqual(fromJS + spliced, kSize);
  assert.strictEqual(client.bytesRead, kSize);
  assert(splices.length > 3);
});

// What a full sink leaves behind
run(async () => {
  const { 0: other, 1: endpoint } = await socketPair('unix', { pauseOnConnect: true });
  other.pause();
  const receiver = new Receiver();
  let spliced = true;
  const { client, server } = await tlsPair({
    allowHalfOpen: true,
    client: {
      onread: onread((n, buffer) => {
        assert.strictEqual(spliced, false);
        receiver.update(buffer.subarray(0, n));
      }, 777),
    },
  });
  const size = 16 * MiB;
  const sending = send(server, size);
  const splice = client.spliceTo({ stream: endpoint, direction: 'in' }).start();
  await settled(() => splice.stats.bytesIn);
  const ended = once(client, 'end');
  const stopped = splice.stop();
  spliced = false;
  endpoint.end();
  const { bytesIn } = await stopped;
  assert(bytesIn < size);
  // First what the sink got: JS's bytes wait for that.
  const first = new Receiver();
  await receive(other, first);
  assert.strictEqual(first.bytes, bytesIn);
  await sending;
  await ended;
  assert.strictEqual(receiver.bytes, size - bytesIn);
  assert.strictEqual(client.bytesRead, size);
});

// A callback that returns false reads no more, after what was left behind.
run(async () => {
  const { 0: other, 1: endpoint } = await socketPair('unix', { pauseOnConnect: true });
  other.pause();
  let calls = 0;
  let asked = 0;
  let bytes = 0;
  let more = false;
  const { client, server } = await tlsPair({
    allowHalfOpen: true,
    client: { onread: onread((n) => { calls++; bytes += n; return more; }, 64 * 1024) },
  });
  const size = 32 * MiB;
  const sending = send(server, size);
  const splice = client.spliceTo({ stream: endpoint, direction: 'in' }).start();
  await settled(() => splice.stats.bytesIn);
  const { bytesIn, peakBufferedIn } = await splice.stop();
  await settled(() => calls);
  assert(calls > 0);
  assert(bytes <= peakBufferedIn, `${bytes}`);
  asked = client.bytesRead;
  await settled(() => client.bytesRead);
  assert.strictEqual(client.bytesRead, asked);
  assert(asked < size);
  // Until it is asked to.
  more = true;
  const ended = once(client, 'end');
  client.resume();
  await Promise.all([sending, ended]);
  assert.strictEqual(bytesIn + bytes, size);
});

// A function that has no new buffer keeps the one it gave before.
run(async () => {
  const { 0: other, 1: endpoint } = await socketPair('unix', { pauseOnConnect: true });
  other.pause();
  const buffers = [Buffer.alloc(5000), undefined, 'junk', null];
  let bytes = 0;
  const { client, server } = await tlsPair({
    allowHalfOpen: true,
    client: {
      onread: {
        buffer: () => buffers.shift(),
        callback(n) { bytes += n; },
      },
    },
  });
  const size = 32 * MiB;
  const sending = send(server, size);
  const splice = client.spliceTo({ stream: endpoint, direction: 'in' }).start();
  await settled(() => splice.stats.bytesIn);
  const ended = once(client, 'end');
  const { bytesIn } = await splice.stop();
  await Promise.all([sending, ended]);
  assert.strictEqual(bytesIn + bytes, size);
});

// An endpoint with `onread` is not read by JS while it is spliced, although it is
// paused and resumed, and is afterwards.
run(async () => {
  const { client, server } = await tlsPair({ allowHalfOpen: true });
  let spliced = true;
  let read;
  const given = new Promise((resolve) => { read = resolve; });
  const { 0: endpoint, 1: other } = await socketPair('tcp', {
    onread: onread((n, buffer) => {
      assert.strictEqual(spliced, false);
      read(`${buffer.subarray(0, n)}`);
    }),
  });
  const splice = server.spliceTo({ stream: endpoint, direction: 'out' }).start();
  const received = receive(client);
  endpoint.pause();
  endpoint.resume();
  await turns();
  await send(other, kSize, { end: false });
  endpoint.pause();
  endpoint.resume();
  await received.receiver.reached(kSize);
  received.receiver.check(kSize);
  assert.strictEqual((await splice.stop()).bytesOut, kSize);
  spliced = false;
  other.write('hello');
  assert.strictEqual(await given, 'hello');
});

// One that was paused before or in the meantime is not read until it is resumed.
for (const early of [false, true]) {
  run(async () => {
    const { server } = await tlsPair({ allowHalfOpen: true });
    let read = '';
    let resumed = false;
    let all;
    const given = new Promise((resolve) => { all = resolve; });
    const { 0: endpoint, 1: other } = await socketPair('tcp', {
      onread: onread((n, buffer) => {
        assert.strictEqual(resumed, true);
        read += buffer.subarray(0, n);
        if (read === 'hello')
          all();
      }),
    });
    if (early)
      endpoint.pause();
    const splice = server.spliceTo({ stream: endpoint, direction: 'out' }).start();
    endpoint.pause();
    await splice.stop();
    other.write('hello');
    await turns();
    resumed = true;
    endpoint.resume();
    await given;
  });
}

// The callback's `false` for what is given back stops the reading, until resume().
run(async () => {
  const { client, server } = await tlsPair({ allowHalfOpen: true });
  client.pause();
  let read = '';
  let all;
  const given = new Promise((resolve) => { all = resolve; });
  const { 0: endpoint, 1: other } = await socketPair('tcp', {
    onread: onread((n, buffer) => {
      read += buffer.subarray(0, n);
      if (read === 'back and more')
        all();
      return read !== 'back ';
    }),
  });
  endpoint.unshift('back ');
  // So that what was unshifted is not sent before stop().
  server.write(Buffer.alloc(16 * MiB));
  const splice = server.spliceTo({ stream: endpoint, direction: 'out' }).start();
  await splice.stop();
  assert.strictEqual(read, 'back ');
  other.write('and more');
  await turns();
  assert.strictEqual(read, 'back ');
  endpoint.resume();
  await given;
});

// A function that returns another buffer each time: each chunk is in the buffer that the
// callback gets, also after the garbage collection of the buffers before.
for (const length of [1000, 64 * 1024]) {
  run(async () => {
    const { 0: other, 1: endpoint } = await socketPair('unix', { pauseOnConnect: true });
    other.pause();
    const parts = [];
    const { client, server } = await tlsPair({
      allowHalfOpen: true,
      client: {
        onread: {
          buffer: () => Buffer.alloc(length),
          callback(n, buffer) {
            if (parts.length % 100 === 0)
              globalThis.gc();
            parts.push(Buffer.from(buffer.subarray(0, n)));
          },
        },
      },
    });
    const size = 16 * MiB;
    const ended = once(client, 'end');
    const sending = send(server, size);
    const splice = client.spliceTo({ stream: endpoint, direction: 'in' }).start();
    await settled(() => splice.stats.bytesIn);
    const { bytesIn } = await splice.stop();
    assert(bytesIn < size);
    endpoint.end();
    const receiver = new Receiver();
    await Promise.all([receive(other, receiver), sending, ended]);
    assert.strictEqual(receiver.bytes, bytesIn);
    for (const part of parts)
      receiver.update(part);
    receiver.check(size);
  });
}

// A splice that is started and stopped in the callback, in the middle of a record: the
// rest of the record is the callback's, whether JS has something else to read or not.
for (const unshifted of ['', 'hello']) {
  run(async () => {
    const { 0: endpoint, 1: other } = await socketPair();
    other.on('data', common.mustNotCall());
    const receiver = new Receiver();
    let stopped;
    const { client, server } = await tlsPair({
      allowHalfOpen: true,
      client: {
        onread: onread((n, buffer) => {
          receiver.update(buffer.subarray(0, n));
          if (stopped !== undefined)
            return;
          stopped = client.spliceTo({ stream: endpoint, direction: 'in' }).start().stop();
          if (unshifted)
            client.unshift(unshifted);
        }),
      },
    });
    const sending = send(server, kSize);
    await Promise.all([sending, receiver.reached(kSize)]);
    receiver.check(kSize);
    assert.strictEqual((await stopped).bytesIn, 0);
    assert.strictEqual(client.readableLength, unshifted.length);
  });
}

// In the callback a splice takes what JS has put back, and gives it back at once: it is the
// next that the callback gets, each time in the buffer that comes with it.
run(async () => {
  const { 0: endpoint } = await socketPair();
  const receiver = new Receiver();
  let calls = 0;
  let buffers = 0;
  let back = '';
  const kept = [];
  const { client, server } = await tlsPair({
    allowHalfOpen: true,
    client: {
      onread: {
        buffer: () => Buffer.alloc([700, 1000, 3][buffers++ % 3]),
        callback(n, buffer) {
          kept.push([buffer, Buffer.from(buffer)]);
          const bytes = buffer.subarray(0, n);
          if (back) {
            assert.strictEqual(`${bytes}`, back.slice(0, n));
            back = back.slice(n);
            return;
          }
          receiver.update(Buffer.from(bytes));
          if (++calls % 10 === 5) {
            back = 'put back';
            client.unshift(back);
            client.spliceTo({ stream: endpoint, direction: 'in' }).start().stop();
          }
        },
      },
    },
  });
  const sending = send(server, kSize);
  await Promise.all([sending, receiver.reached(kSize)]);
  receiver.check(kSize);
  for (const { 0: buffer, 1: then } of kept)
    assert.deepStrictEqual(buffer, then);
});

// A splice that is started and stopped in the callback, and has something to give back
// first, leaves the direction to the one that the next callback starts.
run(async () => {
  const { 0: first } = await socketPair();
  const { 0: endpoint, 1: other } = await socketPair();
  const parts = [];
  let next;
  const { client, server } = await tlsPair({
    allowHalfOpen: true,
    client: {
      onread: onread((n, buffer) => {
        parts.push(Buffer.from(buffer.subarray(0, n)));
        if (parts.length === 1) {
          client.spliceTo({ stream: first, direction: 'in' }).start().stop();
          client.unshift('hello');
        } else if (parts.length === 2) {
          next = client.spliceTo({ stream: endpoint, direction: 'in' }).start();
        }
      }),
    },
  });
  const chunks = [];
  other.on('data', (chunk) => chunks.push(chunk));
  const ended = once(other, 'end');
  await send(server, kSize);
  await ended;
  assert.strictEqual(parts.length, 2);
  assert.strictEqual((await next.finished).reason, 'end');
  const passed = Buffer.concat(chunks);
  assert.strictEqual(`${passed.subarray(0, 5)}`, 'hello');
  const receiver = new Receiver();
  for (const part of [...parts, passed.subarray(5)])
    receiver.update(part);
  receiver.check(kSize);
});

// An endpoint that is paused and resumed in the callback which gets what is given back is
// read on after that.
for (const early of [false, true]) {
  run(async () => {
    const { server } = await tlsPair({ allowHalfOpen: true });
    let read = '';
    let all;
    const given = new Promise((resolve) => { all = resolve; });
    const { 0: endpoint, 1: other } = await socketPair('tcp', {
      onread: onread((n, buffer) => {
        read += buffer.subarray(0, n);
        if (!early)
          endpoint.pause();
        endpoint.resume();
        if (read === 'back and more')
          all();
      }),
    });
    endpoint.on('error', common.mustNotCall());
    endpoint.unshift('back ');
    // So that what was unshifted is not sent before stop().
    server.write(Buffer.alloc(16 * MiB));
    const splice = server.spliceTo({ stream: endpoint, direction: 'out' }).start();
    if (early)
      endpoint.pause();
    await splice.stop();
    assert.strictEqual(read, 'back ');
    other.write('and more');
    await given;
    endpoint.destroy();
  });
}

// A splice that is started by the first bytes of what another one gives back takes the
// rest of them, and the callback sees nothing until it is stopped.
run(async () => {
  const { 0: full, 1: first } = await socketPair('unix', { pauseOnConnect: true });
  full.pause();
  const { 0: endpoint, 1: other } = await socketPair();
  const size = 16 * MiB;
  const parts = [];
  let next;
  const { client, server } = await tlsPair({
    allowHalfOpen: true,
    client: {
      onread: onread((n, buffer) => {
        assert.strictEqual(next, undefined);
        parts.push(Buffer.from(buffer.subarray(0, n)));
        next = client.spliceTo({ stream: endpoint, direction: 'in' }).start();
      }),
    },
  });
  const sending = send(server, size);
  const splice = client.spliceTo({ stream: first, direction: 'in', end: false }).start();
  await settled(() => splice.stats.bytesIn);
  const { bytesIn } = await splice.stop();
  assert(bytesIn < size);
  first.end();
  const receiver = new Receiver();
  await receive(full, receiver);
  assert.strictEqual(receiver.bytes, bytesIn);
  assert.strictEqual(parts.length, 1);
  receiver.update(parts[0]);
  await Promise.all([sending, receive(other, receiver)]);
  receiver.check(size);
  assert.strictEqual((await next.finished).bytesIn, size - bytesIn - parts[0].length);
});
