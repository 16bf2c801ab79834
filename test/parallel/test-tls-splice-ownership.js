'use strict';

// The endpoint of pipeToNative() with autoClose is the call's own from the moment
// of that, and is closed by the time at which the promise is rejected, whatever the
// reason. Without autoClose, and by a spliceTo() that throws, nothing is closed.

const common = require('../common');
if (!common.hasCrypto)
  common.skip('missing crypto');
if (common.isWindows)
  common.skip('no FIFOs on Windows');

const assert = require('assert');
const { once } = require('events');
const fs = require('fs');
const net = require('net');
const { Duplex } = require('stream');
const tls = require('tls');
if (tls.TLSSplice === undefined)
  common.skip('built without TLSSplice');

const {
  closing, fifo, isOpen, run, socketPair, tlsPair, turns,
} = require('../common/tls-splice');

const mine = new Error('mine');

// Each has a target: what is given to pipeToNative(), and whether that is closed.
const targets = {
  async fd() {
    const { reader, writer } = fifo();
    return { target: writer, isClosed: () => !isOpen(writer), clean: () => fs.closeSync(reader) };
  },
  async stream() {
    const { 0: target } = await socketPair();
    return { target, ...watched(target) };
  },
  async tls() {
    const { server: target } = await tlsPair();
    return { target, ...watched(target) };
  },
};

// What it was before counts; nobody is to have waited for 'close' alone.
function watched(socket) {
  let closes = 0;
  socket.on('close', () => closes++);
  return {
    isClosed() {
      assert.strictEqual(closes, socket.destroyed ? 1 : 0);
      return socket.destroyed;
    },
    clean: () => socket.destroy(),
  };
}

// What is wrong: options, or what is done before the call. `thrown` is what comes of
// it; `on` the kind of target, if it is not any.
const rejections = {
  direction: { options: { direction: 'up' }, thrown: { code: 'ERR_INVALID_ARG_VALUE' } },
  end: { options: { end: 1 }, thrown: { code: 'ERR_INVALID_ARG_TYPE' } },
  highWaterMark: { options: { highWaterMark: 0 }, thrown: { code: 'ERR_OUT_OF_RANGE' } },
  signal: { options: { signal: 1 }, thrown: { code: 'ERR_INVALID_ARG_TYPE' } },
  getter: { options: { get end() { throw mine; } }, thrown: mine },
  both: {
    on: 'fd', options: { stream: new net.Socket() }, thrown: { code: 'ERR_INVALID_ARG_VALUE' },
  },
  // The writing end of a FIFO
  accessMode: { on: 'fd', options: { direction: 'out' }, thrown: { code: 'ERR_INVALID_ARG_VALUE' } },
  thisIsNone: { options: {}, self: undefined, thrown: { code: 'ERR_INVALID_THIS' } },
  thisIsOther: { options: {}, self: {}, thrown: { code: 'ERR_INVALID_THIS' } },
  thisIsPlain: { options: {}, self: new net.Socket(), thrown: { code: 'ERR_INVALID_THIS' } },
  destroyed: {
    options: {},
    prepare: ({ server }) => { server.destroy(); },
    thrown: { code: 'ERR_SOCKET_CLOSED' },
  },
  // Those of start()
  spliced: {
    byStart: true,
    options: {},
    async prepare({ server }) {
      const { 0: other } = await socketPair();
      return server.spliceTo({ stream: other, direction: 'in' }).start();
    },
    thrown: { code: 'ERR_INVALID_STATE' },
  },
  decodes: {
    byStart: true,
    options: {},
    prepare: ({ server }) => { server.setEncoding('utf8'); },
    thrown: { code: 'ERR_INVALID_STATE' },
  },
  signalThrows: {
    byStart: true,
    options: { signal: { aborted: false, addEventListener() { throw mine; } } },
    thrown: mine,
  },
  endpointEnded: {
    byStart: true,
    on: 'stream',
    options: {},
    prepare: ({ target }) => { target.end(); },
    thrown: { code: 'ERR_INVALID_STATE' },
  },
  endpointDecodes: {
    on: 'stream',
    options: {},
    prepare: ({ target }) => { target.setEncoding('utf8'); },
    thrown: { code: 'ERR_INVALID_STATE' },
  },
  endpointDestroyed: {
    on: 'stream',
    options: {},
    prepare: ({ target }) => { target.destroy(); },
    thrown: { code: 'ERR_SOCKET_CLOSED' },
    wasClosed: true,
  },
};

for (const { 0: name, 1: rejection } of Object.entries(rejections)) {
  for (const { 0: kind, 1: open } of Object.entries(targets)) {
    if ((rejection.on ?? kind) !== kind)
      continue;
    for (const autoClose of [true, false, undefined]) {
      run(async () => {
        const { client, server } = await tlsPair({ allowHalfOpen: true });
        client.on('error', () => {});
        const { target, isClosed, clean } = await open();
        const first = await rejection.prepare?.({ server, target });
        const options = Object.defineProperties(
          { direction: 'in', autoClose },
          Object.getOwnPropertyDescriptors(rejection.options));
        const self = 'self' in rejection ? rejection.self : server;
        const before = server.destroyed;
        const what = `${name}, ${kind}, ${autoClose}`;

        const endpoint = kind === 'fd' ? { fd: target } : { stream: target };
        const { pipeToNative, spliceTo } = tls.TLSSocket.prototype;
        if (!rejection.byStart) {
          const both = Object.defineProperties({ ...endpoint }, Object.getOwnPropertyDescriptors(options));
          assert.throws(() => Reflect.apply(spliceTo, self, [both]), rejection.thrown, what);
          await turns();
          assert.strictEqual(isClosed(), rejection.wasClosed === true, what);
        }

        await assert.rejects(Reflect.apply(pipeToNative, self, [target, options]),
                             rejection.thrown, what);
        assert.strictEqual(isClosed(), autoClose === true || rejection.wasClosed === true, what);
        // It is not the call's.
        assert.strictEqual(server.destroyed, before);
        if (kind === 'fd' && autoClose !== true)
          fs.closeSync(target);
        await first?.stop();
        clean();
        server.destroy();
      });
    }
  }
}

// A number that is no descriptor, or that nobody has open, and what is no stream of
// the operating system, are not touched.
run(async () => {
  const { server } = await tlsPair({ allowHalfOpen: true });
  const fd = fs.openSync(__filename);
  const closed = fs.openSync(__filename);
  fs.closeSync(closed);
  const duplex = new Duplex({ read() {}, write() {} });
  duplex.on('close', common.mustNotCall());
  for (const { 0: target, 1: code } of [
    [-1, 'ERR_OUT_OF_RANGE'],
    [NaN, 'ERR_OUT_OF_RANGE'],
    [fd + 0.5, 'ERR_OUT_OF_RANGE'],
    [2 ** 32 + fd, 'ERR_OUT_OF_RANGE'],
    [`${fd}`, 'ERR_INVALID_ARG_TYPE'],
    [{ fd }, 'ERR_INVALID_ARG_TYPE'],
    [BigInt(fd), 'ERR_INVALID_ARG_TYPE'],
    [undefined, 'ERR_INVALID_ARG_TYPE'],
    [null, 'ERR_INVALID_ARG_TYPE'],
    [{ destroy: common.mustNotCall() }, 'ERR_INVALID_ARG_TYPE'],
    [duplex, 'ERR_INVALID_ARG_VALUE'],
    [closed, 'EBADF'],
  ])
    await assert.rejects(server.pipeToNative(target, { autoClose: true }), { code });
  await turns();
  assert.strictEqual(isOpen(fd), true);
  assert.strictEqual(duplex.destroyed, false);
  assert.strictEqual(server.destroyed, false);
  fs.closeSync(fd);
});

// Without options there is no autoClose.
run(async () => {
  const { server } = await tlsPair({ allowHalfOpen: true });
  const { 0: endpoint } = await socketPair();
  for (const options of [null, 1, 'autoClose', []])
    await assert.rejects(server.pipeToNative(endpoint, options), { code: 'ERR_INVALID_ARG_TYPE' });
  assert.strictEqual(endpoint.destroyed, false);
});

// What the socket itself runs over has libuv open: it closes its own socket.
for (const by of ['fd', 'self', 'raw', 'raw fd']) {
  run(async () => {
    const { client, server, raw } = await tlsPair({ raw: true });
    server.on('error', () => {});
    const { fd } = client._handle;
    const targets = new Map([
      ['fd', fd], ['self', client], ['raw', raw], ['raw fd', raw._handle.fd],
    ]);
    const target = targets.get(by);
    const closed = closing(client);
    await assert.rejects(client.pipeToNative(target, { autoClose: true }),
                         { code: 'ERR_INVALID_ARG_VALUE' });
    assert.strictEqual((by === 'raw' ? raw : client).destroyed, true);
    await closed;
    // Whoever has the number next keeps it.
    const next = [];
    do
      next.push(fs.openSync(__filename));
    while (!next.includes(fd));
    await turns();
    assert.strictEqual(isOpen(fd), true);
    for (const each of next)
      fs.closeSync(each);
  });
}

// And in the end, when it was started.
run(async () => {
  const { client, server } = await tlsPair({ allowHalfOpen: true });
  const { reader, writer } = fifo();
  fs.closeSync(reader);
  const done = server.pipeToNative(writer, { direction: 'in', autoClose: true });
  client.on('error', () => {});
  client.write('x');
  await assert.rejects(done, { code: 'EPIPE' });
  assert.strictEqual(isOpen(writer), false);
  if (!server.closed)
    await once(server, 'close');
});
