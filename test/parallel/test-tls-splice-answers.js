'use strict';

// Whoever reads what a splice gives back may answer at once: from the stop of a splice on,
// JavaScript may write, and what it writes follows what the splice has read.

const common = require('../common');
if (!common.hasCrypto)
  common.skip('missing crypto');

const tls = require('tls');
if (tls.TLSSplice === undefined)
  common.skip('built without TLSSplice');

const assert = require('assert');
const { once } = require('events');
const { Duplex } = require('stream');
const { closing, run, settled, socketPair, tlsOver, turns } = require('../common/tls-splice');

const kSent = 8 * 1024 * 1024;

async function tlsPair(wrap = (socket) => socket, options) {
  const sockets = await socketPair('unix');
  const { client, server } = tlsOver(...sockets.map(wrap), options);
  await Promise.all([once(client, 'secure'), once(server, 'secure')]);
  return [client, server];
}

// A splice that holds bytes of the peer, since its endpoint takes no more.
async function holding(kind, wrap) {
  const [peer, socket] = await tlsPair(wrap, { allowHalfOpen: true });
  const [far, endpoint] = kind === 'tls' ? await tlsPair() : await socketPair('unix');
  for (const each of [peer, socket, far, endpoint])
    each.on('error', () => {});
  far.pause();
  const target = kind === 'fd' ? { fd: endpoint._handle.fd } : { stream: endpoint };
  return { peer, socket, far, endpoint, target };
}

async function start({ peer, socket, far, target }) {
  const splice = socket.spliceTo(target).start();
  // The source has its say as well.
  far.write('from the source, ');
  peer.write(Buffer.alloc(kSent, '.'));
  await settled(() => splice.stats.bytesIn);
  assert.ok(splice.stats.bytesIn < kSent);
  return splice;
}

function gather(stream) {
  const gathered = { text: '' };
  stream.on('data', (chunk) => { gathered.text += chunk; }).resume();
  return gathered;
}

async function until(condition) {
  while (!condition())
    await turns(1);
}

const stops = {
  stop: ({ splice }) => splice.stop(),
  abort: ({ controller }) => controller.abort(),
  failure: ({ far }) => far.destroy(),
};

function overJavaScript(socket) {
  return Duplex.from({ readable: socket, writable: socket });
}

for (const kind of ['fd', 'stream', 'tls']) {
  for (const [name, stop] of Object.entries(stops)) {
    for (const wrap of [undefined, overJavaScript]) {
      // A listener that was there before the splice echoes what it gets.
      run(async () => {
        const controller = new AbortController();
        const all = await holding(kind, wrap);
        all.target.signal = controller.signal;
        const { peer, socket } = all;
        let echoed = 0;
        const answers = [];
        socket.on('data', (chunk) => {
          echoed += chunk.length;
          socket.write(`<${chunk.length}>`, common.mustSucceed());
          answers.push(`<${chunk.length}>`);
        });
        const received = gather(peer);
        const splice = await start(all);
        splice.on('error', () => {});
        const stopped = closing(splice);
        stop({ ...all, splice, controller });
        const { bytesIn, reason } = await stopped;
        assert.strictEqual(reason, { stop: 'stopped', abort: 'aborted', failure: 'error' }[name]);
        // All of it comes back to JavaScript, but what the endpoint has taken.
        await until(() => bytesIn + echoed === kSent);
        const expected = `from the source, ${answers.join('')}`;
        await until(() => received.text.length >= expected.length);
        assert.ok(received.text === expected);
        for (const each of [peer, socket, all.far, all.endpoint])
          each.destroy();
      });
    }
  }
}

// The other socket can be answered to as well.
for (const kind of ['stream', 'tls']) {
  run(async () => {
    const all = await holding(kind);
    const { socket, far, endpoint } = all;
    all.peer.resume();
    socket.pipe(endpoint);
    const splice = await start(all);
    let received = 0;
    far.on('data', (chunk) => { received += chunk.length; }).resume();
    await splice.stop();
    await until(() => received === kSent);
    for (const each of [all.peer, socket, far, endpoint])
      each.destroy();
  });
}

// What is written between stop() and the end of the splice follows what the splice has
// read, and counts as waiting.
run(async () => {
  const all = await holding('stream', overJavaScript);
  const { peer, socket, far } = all;
  peer.pause();
  const splice = socket.spliceTo({ ...all.target, direction: 'out' }).start();
  far.write(Buffer.alloc(20_000, 's'));
  await settled(() => splice.stats.bytesOut);
  assert.throws(() => socket.write('no'), { code: 'ERR_INVALID_STATE' });
  const stopped = splice.stop();
  socket.write('written ');
  assert.strictEqual(socket.writableLength, 8);
  socket.end('and ended');
  const received = gather(peer);
  await stopped;
  await once(peer, 'end');
  const { bytesOut } = splice.stats;
  assert.strictEqual(received.text, `${'s'.repeat(bytesOut)}written and ended`);
  for (const each of [peer, socket, far, all.endpoint])
    each.destroy();
});

// Each write, and end(), is called back if the socket is destroyed before the splice has
// given it back: also by the splice itself, which does not wait for ever.
function countCallbacks(socket) {
  const counts = { first: 0, second: 0, end: 0 };
  socket.write('written', () => { counts.first++; });
  socket.write('and more', () => { counts.second++; });
  socket.end(() => { counts.end++; });
  return counts;
}

for (const kind of ['fd', 'stream', 'tls']) {
  for (const wrap of [undefined, overJavaScript]) {
    for (const error of [undefined, new Error('of the user')]) {
      for (const later of [0, 1]) {
        run(async () => {
          const all = await holding(kind, wrap);
          const { socket, peer } = all;
          peer.pause();
          const splice = await start(all);
          splice.on('error', () => {});
          const closed = Promise.all([closing(splice), closing(socket)]);
          splice.stop();
          const counts = countCallbacks(socket);
          await turns(later);
          socket.destroy(error);
          await closed;
          await turns();
          assert.deepStrictEqual(counts, { first: 1, second: 1, end: 1 });
          for (const each of [peer, socket, all.far, all.endpoint])
            each.destroy();
        });
      }
    }
  }
}

// The network is gone in a renegotiation, and the splice destroys the socket in the end.
run(async () => {
  const [raw, mine] = await socketPair('unix');
  let isOpen = true;
  const cuttable = new Duplex({
    read() { raw.resume(); },
    write(chunk, encoding, callback) { isOpen ? raw.write(chunk, callback) : callback(); },
    final(callback) { callback(); },
  });
  raw.on('data', (chunk) => isOpen && cuttable.push(chunk));
  const { client, server } = tlsOver(cuttable, mine, { maxVersion: 'TLSv1.2', allowHalfOpen: true });
  await Promise.all([once(client, 'secure'), once(server, 'secure')]);
  const [far, endpoint] = await socketPair('unix');
  server.on('error', () => {});
  server.resume();
  const splice = server.spliceTo({ stream: endpoint, direction: 'out' }).start();
  splice.on('error', () => {});
  far.write('bytes');
  await settled(() => splice.stats.bytesOut);
  isOpen = false;
  server.renegotiate({ rejectUnauthorized: false }, () => {});
  await turns();
  far.write(Buffer.alloc(100_000));
  await turns();
  const closed = Promise.all([closing(splice), closing(server)]);
  splice.stop();
  const counts = countCallbacks(server);
  await closed;
  await turns();
  assert.deepStrictEqual(counts, { first: 1, second: 1, end: 1 });
  for (const each of [raw, client, far, endpoint])
    each.destroy();
});

// A socket that has failed takes writes as it does without a splice: it calls them back.
run(async () => {
  const all = await holding('stream');
  const { peer, socket, far, endpoint } = all;
  const splice = await start(all);
  splice.on('error', () => {});
  socket._writableState.errored = new Error('of a write');
  const stopped = splice.stop();
  const written = new Promise((resolve) => socket.write('written', resolve));
  socket.destroy();
  assert.ok(await written instanceof Error);
  await stopped;
  for (const each of [peer, socket, far, endpoint])
    each.destroy();
});

// 'drain' comes when the socket is given back: its listener can start the next splice, and
// what it throws does not keep this one open.
for (const throws of [false, true]) {
  run(async () => {
    const [peer, socket] = await tlsPair(undefined, { server: { highWaterMark: 0 } });
    assert.strictEqual(socket.writableHighWaterMark, 0);
    const [far, endpoint] = await socketPair('unix');
    const [farOfNext, endpointOfNext] = await socketPair('unix');
    const received = gather(peer);
    const splice = socket.spliceTo({ stream: endpoint, direction: 'out' }).start();
    far.write('of the first splice');
    await until(() => received.text.length > 0);
    let next;
    const error = new Error('of a listener');
    if (throws)
      process.once('uncaughtException', common.mustCall((err) => assert.strictEqual(err, error)));
    socket.once('drain', common.mustCall(() => {
      if (throws)
        throw error;
      next = socket.spliceTo({ stream: endpointOfNext, direction: 'out' }).start();
    }));
    const closed = closing(splice);
    splice.stop();
    socket.write('!');
    assert.strictEqual((await closed).reason, 'stopped');
    await until(() => received.text.endsWith('!'));
    if (!throws) {
      await until(() => next !== undefined);
      assert.throws(() => socket.write('no'), { code: 'ERR_INVALID_STATE' });
      farOfNext.write(', of the next one');
      await until(() => received.text.endsWith('one'));
    }
    for (const each of [peer, socket, far, endpoint, farOfNext, endpointOfNext])
      each.destroy();
  });
}

// A _write() that the user sets during the splice gets an empty chunk, and the socket ends:
// also if the peer does not read, so that bytes of the splice are still on their way.
for (const isFull of [false, true]) {
  run(async () => {
    const all = await holding('stream');
    const { peer, socket, far, endpoint } = all;
    peer.pause();
    const splice = socket.spliceTo({ ...all.target, direction: 'out' }).start();
    far.write(Buffer.alloc(isFull ? kSent : 5, 's'));
    await settled(() => splice.stats.bytesOut);
    const { _write } = tls.TLSSocket.prototype;
    socket._write = function(...args) { return Reflect.apply(_write, this, args); };
    socket._writev = null;
    const stopped = splice.stop();
    const ended = new Promise((resolve) => socket.end(' and more', common.mustSucceed(resolve)));
    const { bytesOut } = await stopped;
    const received = gather(peer);
    await Promise.all([once(peer, 'end'), ended]);
    assert.ok(received.text === `${'s'.repeat(bytesOut)} and more`);
    assert.strictEqual(socket.writableLength, 0);
    for (const each of [peer, socket, far, endpoint])
      each.destroy();
  });
}

// One that throws does so in a tick, and the splice stops.
for (const isCorked of [false, true]) {
  run(async () => {
    const all = await holding('stream');
    const { peer, socket, far, endpoint } = all;
    const splice = socket.spliceTo({ ...all.target, direction: 'out' }).start();
    far.write('bytes');
    await settled(() => splice.stats.bytesOut);
    const error = new Error('of the user');
    socket._write = socket._writev = () => { throw error; };
    if (isCorked)
      socket.cork();
    process.once('uncaughtException', common.mustCall((err) => assert.strictEqual(err, error)));
    assert.strictEqual((await splice.stop()).reason, 'stopped');
    for (const each of [peer, socket, far, endpoint])
      each.destroy();
  });
}

// One that throws for a chunk that was written, and held back by cork(), before the splice.
run(async () => {
  const { peer, socket, far, endpoint } = await holding('stream');
  socket.cork();
  socket.write('corked');
  const splice = socket.spliceTo({ stream: endpoint }).start();
  await turns();
  const error = new Error('of the user');
  socket._writev = null;
  socket._write = () => { throw error; };
  process.once('uncaughtException', common.mustCall((err) => assert.strictEqual(err, error)));
  assert.strictEqual((await splice.stop()).reason, 'stopped');
  endpoint.write('The endpoint is free.');
  for (const each of [peer, socket, far, endpoint])
    each.destroy();
});

// One that holds the empty chunk's callback, and then destroys the socket, or throws, for the
// chunk behind it.
for (const throws of [false, true]) {
  run(async () => {
    const all = await holding('stream');
    const { peer, socket, far, endpoint } = all;
    const splice = socket.spliceTo({ ...all.target, direction: 'out' }).start();
    far.write('bytes');
    await settled(() => splice.stats.bytesOut);
    const error = new Error('of the user');
    let goOn;
    socket._write = (chunk, encoding, callback) => {
      if (chunk.length === 0) {
        goOn = callback;
      } else if (throws) {
        throw error;
      } else {
        socket.destroy();
        callback();
      }
    };
    const stopped = splice.stop();
    socket.write('answer', () => {});
    try {
      goOn();
    } catch (err) {
      assert.strictEqual(err, error);
    }
    await stopped;
    endpoint.write('The endpoint is free.');
    for (const each of [peer, socket, far, endpoint])
      each.destroy();
  });
}
