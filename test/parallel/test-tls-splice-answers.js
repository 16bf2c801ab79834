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
  assert.notStrictEqual(splice.stats.bufferedIn, 0);
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
  await until(() => splice.stats.bytesOut > 0 || splice.stats.bufferedOut > 0);
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
