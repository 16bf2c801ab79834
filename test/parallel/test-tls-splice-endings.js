'use strict';

// Every way in which a splice ends, to every kind of endpoint: what the handle
// says, whether the socket lives on, that the endpoint is closed exactly once
// (autoClose) or not at all, that its O_NONBLOCK is as before, and that no file
// descriptor is left over.

const common = require('../common');
if (!common.hasCrypto)
  common.skip('missing crypto');
if (!common.isLinux)
  common.skip('looks at /proc');

const assert = require('assert');
const { once } = require('events');
const fs = require('fs');
const tls = require('tls');
if (tls.TLSSplice === undefined)
  common.skip('built without TLSSplice');

const {
  closing, fifo, isOpen, pipeSocket, record, run, settled, socketPair, tlsPair, turns,
} = require('../common/tls-splice');

const mine = new Error('mine');
const openFiles = () => fs.readdirSync('/proc/self/fd').length;
const flagsOf = (fd) => /flags:\s+(\d+)/.exec(fs.readFileSync(`/proc/self/fdinfo/${fd}`))[1];

// A FIFO that was opened as by a shell: it blocks.
function blockingFifo() {
  const { path, reader, writer } = fifo();
  const result = { reader: fs.openSync(path, 'r'), writer: fs.openSync(path, 'w') };
  fs.closeSync(reader);
  fs.closeSync(writer);
  for (const fd of Object.values(result))
    assert.strictEqual(Number.parseInt(flagsOf(fd), 8) & fs.constants.O_NONBLOCK, 0);
  return result;
}

async function pausedPair(kind) {
  const { 0: other, 1: endpoint } = await socketPair(kind, { pauseOnConnect: true });
  for (const socket of [other, endpoint])
    socket.on('error', () => {});
  other.resume();
  return { other, endpoint };
}

const broken = { code: 'EPIPE', syscall: 'write' };
const reset = { code: 'ECONNRESET', syscall: 'read' };

// The endpoint, as an option, and its other end. `failure` is what comes of the
// other end being gone, if that is not the end of file. What has an `owner`
// cannot be closed by a splice.
const endpoints = {
  fifoIn: {
    direction: 'in',
    failure: broken,
    async open() {
      const { reader, writer } = blockingFifo();
      return { options: { fd: writer }, other: pipeSocket(reader).resume() };
    },
  },
  fifoOut: {
    direction: 'out',
    async open() {
      const { reader, writer } = blockingFifo();
      return { options: { fd: reader }, other: pipeSocket(writer, { readable: false }) };
    },
  },
  unixFd: {
    direction: 'duplex',
    failure: broken,
    owner: true,
    async open() {
      const { other, endpoint } = await pausedPair('unix');
      return { options: { fd: endpoint._handle.fd }, other, endpoint };
    },
  },
  tcpFd: {
    direction: 'duplex',
    failure: reset,
    owner: true,
    async open() {
      const { other, endpoint } = await pausedPair('tcp');
      return { options: { fd: endpoint._handle.fd }, other, endpoint };
    },
  },
};
for (const direction of ['in', 'out', 'duplex']) {
  endpoints[`stream ${direction}`] = {
    direction,
    failure: direction === 'in' ? undefined : reset,
    async open() {
      const { other, endpoint } = await pausedPair('tcp');
      return { options: { stream: endpoint }, other, endpoint };
    },
  };
}

const alive = { destroyed: false, events: ['close'] };
const destroyed = { destroyed: true, events: ['close'] };
const failed = { destroyed: true, events: ['error', 'close'] };

// How it ends, by direction, and what is to be seen then.
const endings = {
  closeNotify: {
    in: ({ client }) => client.end(),
    duplex: ({ client, other }) => { client.end(); other.end(); },
    expected: { reason: 'end', closeNotify: true, ...alive },
  },
  fin: {
    in: ({ raw }) => raw.end(),
    duplex: ({ raw, other }) => { other.end(); raw.end(); },
    expected: { reason: 'end', closeNotify: false, ...alive },
  },
  endpointEOF: {
    out: ({ other }) => other.end(),
    expected: { reason: 'end', closeNotify: false, ...alive },
  },
  end: {
    out: ({ server }) => server.end(),
    duplex: ({ server, client }) => { server.end(); client.end(); },
    expected: { reason: 'end', ...alive },
  },
  endpointFailure: {
    in: ({ client, other }) => { other.destroy(); client.write('y'); },
    out: ({ other }) => other.resetAndDestroy(),
    duplex: ({ client, other, failure }) => {
      if (failure === reset)
        return other.resetAndDestroy();
      other.destroy();
      client.write('y');
    },
    expected: { reason: 'error', destroyed: false, events: ['error', 'close'] },
  },
  reset: {
    any: ({ raw }) => raw.resetAndDestroy(),
    expected: { reason: 'error', error: { code: 'ECONNRESET' }, ...failed },
  },
  badRecord: {
    any: ({ raw }) => raw.write(Buffer.from('ff030300050000000000', 'hex')),
    expected: { reason: 'error', error: { code: /^ERR_SSL_/ }, ...failed },
  },
  destroy: {
    any: ({ server }) => server.destroy(),
    expected: { reason: 'destroyed', ...destroyed },
  },
  destroyWithError: {
    any: ({ server }) => server.destroy(mine),
    expected: { reason: 'destroyed', error: mine, ...failed },
  },
  destroySoon: {
    in: ({ server }) => server.destroySoon(),
    duplex: ({ server }) => server.destroySoon(),
    expected: { reason: 'destroyed', ...destroyed },
  },
  destroySoonOut: {
    out: ({ server }) => server.destroySoon(),
    expected: { reason: 'end', ...destroyed },
  },
  stop: {
    any: ({ splice }) => splice.stop(),
    expected: { reason: 'stopped', ...alive },
  },
  abort: {
    any: ({ controller }) => controller.abort(),
    expected: { reason: 'aborted', ...alive },
  },
};

async function test({ direction, failure, open }, act, expected, autoClose) {
  const { client, server, raw } = await tlsPair({ allowHalfOpen: true, raw: true });
  const { options, other, endpoint } = await open();
  const { fd, stream } = options;
  for (const socket of [client, raw, other])
    socket.on('error', () => {});
  let socketError;
  server.on('error', (err) => { socketError = err; });
  client.resume();
  if (direction === 'out')
    server.resume();
  const controller = new AbortController();
  const flags = fd === undefined ? undefined : flagsOf(fd);
  let closes = 0;
  stream?.on('close', () => closes++);

  const splice = server.spliceTo({
    ...options, direction, autoClose, signal: controller.signal,
  });
  const events = record(splice, ['error', 'close']);
  let error;
  splice.on('error', (err) => { error = err; });
  const closed = closing(splice);
  splice.start();
  // Both directions have been used.
  if (direction !== 'out') {
    client.write('x');
    await once(other, 'data');
  }
  if (direction !== 'in') {
    other.write('x');
    await once(client, 'data');
  }

  if (fd !== undefined)
    assert.strictEqual(flagsOf(fd), flags);
  act({ client, server, raw, splice, controller, other, failure });
  const stats = await closed;
  assert.strictEqual(stats.reason, expected.reason);
  if (expected.closeNotify !== undefined)
    assert.strictEqual(stats.closeNotify, expected.closeNotify);
  assert.strictEqual(stats.bytesIn, direction === 'out' ? 0 : 1);
  assert.strictEqual(stats.bytesOut, direction === 'in' ? 0 : 1);
  assert.deepStrictEqual(events, expected.events);
  if (events.includes('error'))
    assert.throws(() => { throw error; }, expected.error ?? failure);
  // With both directions at their end the socket is, too.
  const dead = expected.destroyed || (stats.reason === 'end' && direction === 'duplex');
  if (dead && !server.closed)
    await closing(server);
  assert.strictEqual(server.destroyed, dead);
  assert.strictEqual(socketError, dead ? error : undefined);

  // The endpoint
  if (stream) {
    // By then, and once.
    if (autoClose)
      assert.strictEqual(closes, 1);
    await turns(5);
    if (autoClose)
      assert.strictEqual(closes, 1);
    else if (stats.reason !== 'end' && stats.reason !== 'error')
      assert.strictEqual(stream.destroyed, false);
  } else if (autoClose) {
    assert.strictEqual(isOpen(fd), false);
    // Whoever has the number next keeps it.
    const next = [];
    do
      next.push(fs.openSync(__filename));
    while (!next.includes(fd));
    await splice.stop();
    await turns(20);
    assert.strictEqual(fs.fstatSync(fd).ino, fs.statSync(__filename).ino);
    for (const fd of next)
      fs.closeSync(fd);
  } else {
    await turns(5);
    assert.strictEqual(flagsOf(fd), flags);
  }

  for (const socket of [client, server, raw, other])
    socket.destroy();
  if (endpoint)
    endpoint.destroy();
  else if (!autoClose)
    fs.closeSync(fd);
}

run(async () => {
  let before;
  for (const { 0: kind, 1: endpoint } of Object.entries(endpoints)) {
    const { direction, failure, owner } = endpoint;
    for (const { 0: name, 1: ending } of Object.entries(endings)) {
      const act = ending[direction] ?? ending.any;
      if (act === undefined || (ending === endings.endpointFailure && !failure))
        continue;
      for (const autoClose of owner ? [false] : [false, true]) {
        try {
          await test(endpoint, act, ending.expected, autoClose);
        } catch (cause) {
          throw new Error(`${kind}, ${name}, autoClose: ${autoClose}`, { cause });
        }
      }
    }
    await settled(openFiles);
    // After the first, Node itself has open what it keeps.
    before ??= openFiles();
    assert(openFiles() <= before, `${openFiles()} > ${before} (${kind})`);
  }
});
