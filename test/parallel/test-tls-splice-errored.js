'use strict';

// `errored` is what has gone wrong, and `side` of that where: on the TLSSocket or
// below it ('tls'), or at the endpoint.

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
  closing, fifo, run, settled, socketPair, tlsOver, tlsPair, turns,
} = require('../common/tls-splice');

const mine = new Error('mine');
const frozen = Object.freeze(new Error('frozen'));

async function stream() {
  const { 0: endpoint, 1: other } = await socketPair();
  return { options: { stream: endpoint }, endpoint, other };
}

async function tlsStream() {
  const { client: other, server: endpoint, raw: otherRaw } =
    await tlsPair({ allowHalfOpen: true, raw: true });
  otherRaw.on('error', () => {});
  return { options: { stream: endpoint }, endpoint, other, otherRaw };
}

const badRecord = Buffer.from('ff030300050000000000', 'hex');
const cases = [
  // The endpoint
  {
    name: 'write error',
    async open() {
      const { reader, writer } = fifo();
      fs.closeSync(reader);
      return { options: { fd: writer, direction: 'in', autoClose: true } };
    },
    act: ({ client }) => client.write('x'),
    side: 'endpoint',
    code: 'EPIPE',
  },
  {
    name: 'read error', open: stream, act: ({ other }) => other.resetAndDestroy(),
    side: 'endpoint', code: 'ECONNRESET',
  },
  {
    name: 'closed early', open: stream, act: ({ endpoint }) => endpoint.destroy(),
    side: 'endpoint', code: 'ERR_STREAM_PREMATURE_CLOSE',
  },
  {
    name: 'TLSSocket closed early', open: tlsStream, act: ({ endpoint }) => endpoint.destroy(),
    side: 'endpoint', code: 'ERR_STREAM_PREMATURE_CLOSE',
  },
  {
    name: 'TLSSocket destroyed', open: tlsStream, act: ({ endpoint }) => endpoint.destroy(mine),
    side: 'endpoint', error: mine,
  },
  {
    name: 'TLSSocket reset', open: tlsStream, act: ({ otherRaw }) => otherRaw.resetAndDestroy(),
    side: 'endpoint', code: 'ECONNRESET',
  },
  {
    name: 'TLSSocket, bad record', open: tlsStream, act: ({ otherRaw }) => otherRaw.write(badRecord),
    side: 'endpoint', code: 'ERR_SSL_BAD_RECORD_TYPE',
  },
  // TLS
  {
    name: 'reset', open: stream, act: ({ raw }) => raw.resetAndDestroy(),
    side: 'tls', code: 'ECONNRESET',
  },
  {
    name: 'bad record', open: stream, act: ({ raw }) => raw.write(badRecord),
    side: 'tls', code: 'ERR_SSL_BAD_RECORD_TYPE',
  },
  {
    name: 'destroyed', open: stream, act: ({ server }) => server.destroy(mine),
    side: 'tls', error: mine, reason: 'destroyed',
  },
  {
    name: 'destroyed, to a TLSSocket', open: tlsStream, act: ({ server }) => server.destroy(mine),
    side: 'tls', error: mine, reason: 'destroyed',
  },
  // Where it cannot be said
  {
    name: 'frozen', open: stream, act: ({ server }) => server.destroy(frozen),
    side: undefined, error: frozen, reason: 'destroyed',
  },
];

for (const { name, open, act, side, code, error, reason = 'error' } of cases) {
  for (const by of ['handle', 'pipeToNative']) {
    run(async () => {
      const { client, server, raw } = await tlsPair({ allowHalfOpen: true, raw: true });
      const world = await open();
      for (const socket of [client, server, raw, world.endpoint, world.other])
        socket?.on('error', () => {});
      if (by === 'pipeToNative') {
        const { fd, stream, ...options } = world.options;
        const done = server.pipeToNative(fd ?? stream, options);
        act({ ...world, client, server, raw });
        const err = await done.then(common.mustNotCall(), (err) => err);
        assert.deepStrictEqual([name, err.side], [name, side]);
        return;
      }
      const splice = server.spliceTo(world.options);
      assert.strictEqual(splice.errored, null);
      assert.throws(() => { splice.errored = 1; }, TypeError);
      const closed = closing(splice);
      let emitted;
      splice.on('error', common.mustCall((err) => {
        emitted = err;
        assert.deepStrictEqual([name, err.side], [name, side]);
        assert.strictEqual(splice.errored, err);
      }));
      splice.start();
      assert.strictEqual(splice.errored, null);
      act({ ...world, client, server, raw });
      const stats = await closed;
      assert.strictEqual(stats.reason, reason);
      assert.strictEqual(splice.errored, emitted);
      if (error)
        assert.strictEqual(emitted, error);
      else
        assert.strictEqual(emitted.code, code);
      if (side)
        assert(Object.keys(emitted).includes('side'));
    });
  }
}

// A primitive has no properties.
run(async () => {
  const { server } = await tlsPair();
  const { 0: endpoint } = await socketPair();
  server.on('error', () => {});
  const splice = server.spliceTo({ stream: endpoint }).start();
  const failed = new Promise((resolve) => splice.on('error', resolve));
  server.destroy('text');
  assert.strictEqual(await failed, 'text');
  assert.strictEqual(splice.errored, 'text');
});

// A handshake that fails
run(async () => {
  const { 0: endpoint } = await socketPair();
  const { 0: a, 1: b } = await socketPair();
  const { client, server } = tlsOver(a, b, {
    client: { maxVersion: 'TLSv1.2' }, server: { minVersion: 'TLSv1.3' },
  });
  client.on('error', () => {});
  server.on('error', () => {});
  const { 0: err } = await once(client.spliceTo({ stream: endpoint }).start(), 'error');
  assert.strictEqual(err.side, 'tls');
});

// No error
run(async () => {
  for (const end of ['stop', 'destroy', 'end']) {
    const { client, server } = await tlsPair({ allowHalfOpen: true });
    const { 0: endpoint, 1: other } = await socketPair();
    const splice = server.spliceTo({ stream: endpoint }).start();
    if (end === 'stop') {
      splice.stop();
    } else if (end === 'destroy') {
      server.destroy();
    } else {
      client.end();
      other.end();
    }
    await splice.finished;
    assert.strictEqual(splice.errored, null);
    client.on('error', () => {});
  }
});

// It fails between two splices of the same TLSSocket, which is the endpoint of one of
// them. The error is the same, and each says where it was for that one.
run(async () => {
  const { server } = await tlsPair({ allowHalfOpen: true });
  const { server: shared, raw } = await tlsPair({ allowHalfOpen: true, raw: true });
  const { 0: endpoint } = await socketPair();
  for (const socket of [raw, shared])
    socket.on('error', () => {});
  const first = server.spliceTo({ stream: shared, direction: 'in' });
  const second = shared.spliceTo({ stream: endpoint, direction: 'in' });
  const sides = {};
  first.on('error', (err) => { sides.first = err.side; });
  second.on('error', (err) => { sides.second = err.side; });
  const closed = [closing(first), closing(second)];
  first.start();
  second.start();
  shared.destroy(mine);
  await Promise.all(closed);
  assert.deepStrictEqual(sides, { first: 'endpoint', second: 'tls' });
});

// stop() inside of 'data' that a failing splice gives back: nobody listens to 'error'.
for (const by of ['endpoint', 'write']) {
  run(async () => {
    const { client, server } = await tlsPair({ allowHalfOpen: true });
    const { 0: endpoint, 1: other } = await socketPair('unix', { pauseOnConnect: true });
    other.on('error', () => {});
    const { reader, writer } = fifo();
    const target = by === 'endpoint' ? { stream: endpoint } : { fd: writer };
    const splice = server.spliceTo({ ...target, direction: 'in' }).start();
    const stopped = new Promise((resolve) => {
      server.once('data', common.mustCall(() => {
        resolve(splice.stop());
        assert.notStrictEqual(splice.errored, null);
      }));
    });
    client.write(Buffer.alloc(8 * 1024 * 1024));
    await settled(() => splice.stats.bytesIn);
    if (by === 'endpoint')
      endpoint.destroy();
    else
      fs.closeSync(reader);
    const { reason } = await stopped;
    assert.strictEqual(reason, 'error');
    assert.strictEqual(splice.errored.code,
                       by === 'endpoint' ? 'ERR_STREAM_PREMATURE_CLOSE' : 'EPIPE');
    assert.strictEqual(splice.errored.side, 'endpoint');
    if (by === 'endpoint')
      fs.closeSync(reader);
    fs.closeSync(writer);
    await turns();
  });
}
