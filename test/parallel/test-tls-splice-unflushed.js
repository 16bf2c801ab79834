'use strict';

// stop() while the TLS peer does not read: what was taken from the source is on
// its way, and the socket says so, as it does of what JavaScript has written.

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
  MiB, Receiver, closing, record, run, send, settled, socketPair, tlsOver, tlsPair, turns,
} = require('../common/tls-splice');

const kSize = 24 * MiB;

// What TLS runs over, and the net.Socket at the peer's side
const unders = {
  'TCP': async () => {
    const { 0: a, 1: b } = await socketPair();
    return [a, b, b];
  },
  'a Unix socket': async () => {
    const { 0: a, 1: b } = await socketPair('unix');
    return [a, b, b];
  },
  'a Duplex': async () => {
    const { 0: a, 1: b } = await socketPair();
    a.on('error', () => {});
    const duplex = new Duplex({
      read() { a.resume(); },
      write(chunk, encoding, callback) { a.write(chunk, callback); },
      final(callback) { a.end(callback); },
      destroy(err, callback) {
        a.destroy();
        callback(err);
      },
    });
    a.on('data', (chunk) => duplex.push(chunk));
    a.on('end', () => duplex.push(null));
    a.on('error', (err) => duplex.destroy(err));
    return [duplex, b, b];
  },
  'TLS in TLS': async () => {
    const { client, server, raw } = await tlsPair({ allowHalfOpen: true, raw: true });
    return [server, client, raw];
  },
};

// A socket that is spliced, or written to by JavaScript, and whose peer has read
// nothing. Nothing moves any more.
async function stalled(under, direction) {
  const { 0: a, 1: b, 2: raw } = await unders[under]();
  const { client: peer, server: socket } = tlsOver(b, a, { allowHalfOpen: true });
  await once(peer, 'secureConnect');
  await turns();
  peer.pause();
  const { 0: endpoint, 1: source } = await socketPair();
  if (direction === null) {
    socket.write(Buffer.alloc(kSize));
    await settled(() => raw.bytesRead);
    return { socket, peer, raw, source };
  }
  const splice = socket.spliceTo({ stream: endpoint, direction }).start();
  const sending = send(source, kSize, { end: false });
  sending.catch(() => {});
  await settled(() => splice.stats.bytesOut);
  return { socket, peer, raw, splice, endpoint, source, sending };
}

function count(peer) {
  const receiver = new Receiver();
  peer.on('data', (chunk) => receiver.update(chunk));
  peer.resume();
  return receiver;
}

// What becomes of it when the peer resets the connection, while somebody is
// `waiting`. Without a direction it is not spliced.
async function resetFate(under, direction, waiting) {
  const { socket, peer, raw, splice, source } = await stalled(under, direction);
  for (const each of [source, peer, raw])
    each.on('error', () => {});
  const errors = [];
  const told = [];
  const tell = (err) => told.push(err?.code ?? 'no error');
  socket.on('error', ({ code }) => errors.push(code));
  if (waiting === 'end first')
    socket.end(tell);
  await splice?.stop();
  if (waiting === 'write')
    socket.write('x', tell);
  else if (waiting === 'end')
    socket.end(tell);
  else if (waiting === 'destroySoon')
    socket.destroySoon();
  assert.deepStrictEqual(errors, []);
  if (under === 'a Unix socket')
    raw.destroy();
  else
    raw.resetAndDestroy();
  await closing(socket);
  await turns();
  return { errors, told };
}

const twins = new Map();
for (const under of Object.keys(unders)) {
  for (const direction of ['out', 'duplex']) {
    // The rest of the payload is written by JavaScript, which waits as for what it
    // has written itself.
    run(async () => {
      const { socket, peer, splice, endpoint, sending } = await stalled(under, direction);
      const { bytesOut } = await splice.stop();
      assert(bytesOut < kSize);
      const { writableLength } = socket;
      assert(writableLength > 0);
      assert(writableLength < 2 * MiB, `${writableLength}`);
      assert.strictEqual(socket.bytesWritten, bytesOut);
      assert.strictEqual(socket.writableNeedDrain, writableLength >= socket.writableHighWaterMark);
      const events = record(socket, ['drain', 'error']);
      await turns(50);
      assert.strictEqual(socket.writableLength, writableLength);
      assert.deepStrictEqual(events, []);

      // Written now, it is behind that, and called back later.
      const order = [];
      socket.write('', common.mustSucceed(() => order.push('empty')));
      const drained = socket.writableNeedDrain ?
        once(socket, 'drain').then(() => order.push('drain')) : undefined;
      const receiver = count(peer);
      await drained;
      await settled(() => order.length);
      assert.strictEqual(order.includes('empty'), true);
      assert.strictEqual(socket.writableLength, 0);
      assert.strictEqual(socket.bytesWritten, bytesOut);
      await receiver.reached(bytesOut);
      endpoint.pipe(socket, { end: false });
      await sending;
      await receiver.reached(kSize);
      receiver.check(kSize);
      assert.strictEqual(socket.bytesWritten, kSize);
      socket.end();
      await once(socket, 'finish');
    });

    // Corked, or spliced again meanwhile
    run(async () => {
      const { socket, peer, splice, endpoint, sending } = await stalled(under, direction);
      socket.cork();
      socket.cork();
      const { bytesOut } = await splice.stop();
      assert(socket.writableLength > 0);
      assert.strictEqual(socket.writableCorked, 2);
      assert.strictEqual(socket.bytesWritten, bytesOut);
      socket.uncork();
      socket.uncork();
      let last = socket;
      for (let i = 0; i < 3; i++) {
        last = socket.spliceTo({ stream: endpoint, direction }).start();
        await turns(2);
        if (i < 2)
          assert.strictEqual((await last.stop()).bytesOut, 0);
      }
      const receiver = count(peer);
      await sending;
      await receiver.reached(kSize);
      receiver.check(kSize);
      assert.strictEqual(last.stats.bytesOut, kSize - bytesOut);
      assert.strictEqual(socket.bytesWritten, kSize);
      await last.stop();
      await settled(() => socket.writableLength);
      assert.strictEqual(socket.writableLength, 0);
    });

    // The end waits for it, and comes.
    for (const method of ['end', 'destroySoon', 'end first']) {
      run(async () => {
        const { socket, peer, splice, source } = await stalled(under, direction);
        source.on('error', () => {});
        const events = record(socket, ['finish', 'error']);
        if (method === 'end first')
          socket.end();
        const { bytesOut } = await splice.stop();
        if (method !== 'end first') {
          assert(socket.writableLength > 0);
          socket[method]();
        }
        await turns(50);
        assert.deepStrictEqual(events, []);
        assert.strictEqual(socket.writableFinished, false);
        assert.strictEqual(socket.destroyed, false);
        assert.strictEqual(socket.bytesWritten, bytesOut);
        const receiver = count(peer);
        await once(peer, 'end');
        assert.strictEqual(receiver.bytes, bytesOut);
        if (method !== 'destroySoon')
          await settled(() => events.length);
        else if (!socket.closed)
          await once(socket, 'close');
        assert.deepStrictEqual(events, ['finish']);
        assert.strictEqual(socket.writableLength, 0);
        assert.strictEqual(socket.writableFinished, true);
      });
    }

    // The peer is gone before: one error, which whoever waits is told, as after
    // writes of JavaScript's.
    for (const waiting of ['nobody', 'write', 'end', 'destroySoon', 'end first']) {
      run(async () => {
        const fate = await resetFate(under, direction, waiting);
        assert.strictEqual(fate.errors.length, 1);
        const name = `${under} ${waiting}`;
        if (!twins.has(name))
          twins.set(name, await resetFate(under, null, waiting));
        assert.deepStrictEqual(fate, twins.get(name));
      });
    }

    // destroy() does not wait.
    run(async () => {
      const { socket, peer, splice, source } = await stalled(under, direction);
      source.on('error', () => {});
      peer.on('error', () => {});
      const events = record(socket, ['finish', 'drain', 'error', 'close']);
      await splice.stop();
      const told = [];
      socket.write('x', (err) => told.push(err.code));
      socket.destroy();
      if (!socket.closed)
        await once(socket, 'close');
      await turns();
      assert.deepStrictEqual(events, ['close']);
      assert.strictEqual(told.length, 1);
      assert.match(told[0], /^(ECANCELED|ERR_STREAM_DESTROYED)$/);
    });
  }
}

// With nothing on its way there is nothing to wait for.
run(async () => {
  const { client, server } = await tlsPair({ allowHalfOpen: true });
  const { 0: endpoint, 1: other } = await socketPair();
  const splice = server.spliceTo({ stream: endpoint }).start();
  other.write('x');
  await once(client, 'data');
  await turns();
  server.on('drain', common.mustNotCall());
  await splice.stop();
  assert.strictEqual(server.writableLength, 0);
  assert.strictEqual(server.writableNeedDrain, false);
  server.write('y');
  assert.strictEqual(`${(await once(client, 'data'))[0]}`, 'y');
});
