'use strict';

// A net.Socket that JavaScript has stopped reading, because its Readable was full, or
// has never read: after a splice that has read it, JavaScript sees what comes next.

const common = require('../common');
if (!common.hasCrypto)
  common.skip('missing crypto');

const assert = require('assert');
const { once } = require('events');
const net = require('net');
const tls = require('tls');
if (tls.TLSSplice === undefined)
  common.skip('built without TLSSplice');

const {
  MiB, closing, payload, receive, run, settled, socketPair, tlsPair, track, turns,
} = require('../common/tls-splice');

const kSize = MiB + 7;
const bytes = Buffer.concat([...payload(kSize)]);

// A socket, and the far end of it, which has sent more than a Readable holds.
async function fullSocket(options) {
  const { 0: socket, 1: far } = await socketPair('tcp', options);
  far.write(bytes);
  // Node.js reads as much as there is room for.
  socket.once('readable', () => {});
  await settled(() => socket.bytesRead);
  assert.notStrictEqual(socket.bytesRead, 0);
  assert.notStrictEqual(socket.bytesRead, kSize);
  return { socket, far };
}

// One that nobody has read yet.
async function pausedSocket(options) {
  const server = net.createServer({ ...options, pauseOnConnect: true }).listen(0);
  await once(server, 'listening');
  const far = net.connect({ port: server.address().port, allowHalfOpen: true });
  const { 0: socket } = await once(server, 'connection');
  server.close();
  track(socket, far);
  far.write(bytes);
  return { socket, far };
}

for (const open of [fullSocket, pausedSocket]) {
  // Both sides end: so the stream sees its end, and closes itself as after pipe().
  for (const allowHalfOpen of [false, true]) {
    run(async () => {
      const { client, server } = await tlsPair({ client: { allowHalfOpen: true }, server: { allowHalfOpen } });
      const { socket: stream, far } = await open({ allowHalfOpen });
      const ended = once(stream, 'end');
      const closed = closing(stream);
      const received = receive(client);
      const answered = receive(far);
      const splice = server.pipeToNative(stream);
      far.end();
      (await received).check(kSize);
      client.end('answer');
      assert.strictEqual((await answered).bytes, 6);
      assert.strictEqual((await splice).reason, 'end');
      await ended;
      await closed;
    });
  }
}

// What comes after stop() is for JavaScript, whichever way it reads.
for (const reader of ['readable', 'data', 'iterator']) {
  run(async () => {
    const { client, server } = await tlsPair({ allowHalfOpen: true });
    const { socket: stream, far } = await fullSocket({ allowHalfOpen: true });
    const splice = server.spliceTo({ stream, direction: 'out' }).start();
    await receive(client).receiver.reached(kSize);
    await splice.stop();
    let text = '';
    const ended = new Promise((resolve) => {
      if (reader !== 'iterator')
        stream.once('end', resolve);
      if (reader === 'data') {
        stream.on('data', (chunk) => text += chunk).resume();
      } else if (reader === 'readable') {
        stream.on('readable', () => {
          for (let chunk; (chunk = stream.read()) !== null;)
            text += chunk;
        });
      } else {
        (async () => {
          for await (const chunk of stream)
            text += chunk;
        })().then(resolve);
      }
    });
    far.end('last');
    await ended;
    assert.strictEqual(text, 'last');
  });
}

// A splice that has not begun has read nothing, and nobody else does.
run(async () => {
  const { client, server } = await tlsPair({ allowHalfOpen: true });
  const { socket: stream } = await pausedSocket({ allowHalfOpen: true });
  // 'out' waits for this to be written.
  client.pause();
  server.write(Buffer.alloc(16 * MiB));
  const splice = server.spliceTo({ stream, direction: 'out' }).start();
  await turns();
  assert.strictEqual(stream._handle.reading, true);
  await splice.stop();
  await turns();
  assert.strictEqual(stream._handle.reading, false);
  assert.strictEqual(stream.bytesRead, 0);
});
