'use strict';

// A write to the TLS peer fails while bytes of the peer, and its close_notify behind
// them, are held for a sink that takes nothing. Whoever gets the bytes in the end,
// the failure comes after them: once to each splice that still sends, and to the
// socket, although the end of the peer would hide that the connection is gone.

const assert = require('assert');
const { once } = require('events');
const fs = require('fs');

const { alerts, kWarning, recordPair } = require('./tls-records');
const {
  MiB, closing, fifo, payload, pipeSocket, run, settled, socketPair, turns,
} = require('./tls-splice');

const kHeld = 10_000;
const held = Buffer.concat([...payload(kHeld)]);
const kLost = /^(ECONNRESET|EPIPE)$/;

// Until the kernel takes no more of it. What its reader still buffers makes room once.
async function fill(fd) {
  for (let bytes = 1; bytes > 0;) {
    bytes = 0;
    assert.throws(() => {
      for (;;)
        bytes += fs.writeSync(fd, Buffer.alloc(4096));
    }, { code: 'EAGAIN' });
    await turns();
  }
}

// Full sinks, and sources: the options for each direction, and what writes to the
// source.
const endpoints = {
  'FIFOs': async () => {
    const sink = fifo();
    const source = fifo();
    await fill(sink.writer);
    const writer = pipeSocket(source.writer, { readable: false });
    let { reader } = sink;
    return {
      in: { fd: sink.writer },
      out: { fd: source.reader },
      writer,
      fail() {
        fs.closeSync(reader);
        reader = null;
      },
      drop() {
        writer.destroy();
        for (const fd of [sink.writer, source.reader, reader]) {
          if (fd !== null)
            fs.closeSync(fd);
        }
      },
    };
  },
  'descriptors': async () => {
    const { 0: reader, 1: sink } = await socketPair('unix', { pauseOnConnect: true });
    const { 0: writer, 1: source } = await socketPair('unix', { pauseOnConnect: true });
    await fill(sink._handle.fd);
    return {
      in: { fd: sink._handle.fd },
      out: { fd: source._handle.fd },
      writer,
      fail: () => reader.destroy(),
      drop: () => [reader, sink, writer, source].forEach((socket) => socket.destroy()),
    };
  },
  'one descriptor': async () => {
    const { 0: other, 1: endpoint } = await socketPair('unix', { pauseOnConnect: true });
    await fill(endpoint._handle.fd);
    return {
      duplex: { fd: endpoint._handle.fd },
      writer: other,
      fail: () => other.destroy(),
      drop: () => [other, endpoint].forEach((socket) => socket.destroy()),
    };
  },
  'streams': async () => {
    const { 0: reader, 1: sink } = await socketPair();
    const { 0: writer, 1: source } = await socketPair();
    sink.cork();
    sink.write('It is corked.');
    return {
      in: { stream: sink },
      out: { stream: source },
      writer,
      fail: () => sink.destroy(),
      drop: () => [reader, sink, writer, source].forEach((socket) => socket.destroy()),
    };
  },
  'one stream': async () => {
    const { 0: other, 1: endpoint } = await socketPair();
    endpoint.cork();
    endpoint.write('It is corked.');
    return {
      duplex: { stream: endpoint },
      writer: other,
      fail: () => endpoint.destroy(),
      drop: () => [other, endpoint].forEach((socket) => socket.destroy()),
    };
  },
};

// The handles in the order in which they are started.
const orders = [['in', 'out'], ['out', 'in'], ['duplex']];

// How the write fails: at once, or as the answer to one for which libuv waits.
const writes = {
  'at once': async ({ server, endpoint, raw }) => {
    raw.resetAndDestroy();
    // The second write fails for sure: the first may be what brings the RST.
    for (const byte of 'xy') {
      await settled(() => server.bytesWritten);
      endpoint.writer.write(byte);
    }
    await settled(() => server.bytesWritten);
  },
  'later': async ({ raw, outbound, server }) => {
    assert(outbound.stats.stallsOut > 0);
    raw.resetAndDestroy();
    await settled(() => server.bytesWritten);
  },
};

async function setUp({ make, order, write, version, allowHalfOpen, closeNotify, name }) {
  const endpoint = await make();
  const { peer, socket: server, tap, raw } = await recordPair({
    minVersion: version, maxVersion: version, allowHalfOpen: true,
  });
  server.allowHalfOpen = allowHalfOpen;
  for (const socket of [peer, raw, tap, endpoint.writer])
    socket.on('error', () => {});
  raw.setNoDelay();
  // Afterwards `tap` has its keys.
  peer.write('x');
  await once(server, 'data');
  server.pause();
  const controllers = {};
  const splices = {};
  const errors = {};
  for (const direction of order) {
    controllers[direction] = new AbortController();
    const { signal } = controllers[direction];
    const splice = server.spliceTo({ ...endpoint[direction], direction, signal });
    errors[direction] = [];
    splice.on('error', (err) => errors[direction].push(err));
    splices[direction] = splice.start();
  }
  const outbound = splices.out ?? splices.duplex;
  const inbound = splices.in ?? splices.duplex;
  await turns();
  if (write === 'later') {
    // More than the kernel takes of it
    peer.pause();
    for (const chunk of payload(16 * MiB))
      endpoint.writer.write(chunk);
    await settled(() => outbound.stats.bytesOut);
  }
  tap.send(tap.data(held), ...(closeNotify ? [tap.alert(kWarning, alerts.close_notify)] : []));
  await settled(() => server.bytesRead);
  assert.strictEqual(server.bytesRead, 1 + kHeld, name);
  assert.strictEqual(inbound.stats.closeNotify, closeNotify, name);
  await writes[write]({ server, endpoint, raw, outbound });
  for (const splice of Object.values(splices))
    assert.strictEqual(splice.state, 'running', name);
  assert.strictEqual(server.destroyed, false, name);
  return { server, endpoint, splices, inbound, outbound, controllers, errors };
}

// What ends the splice that reads, or all of them.
const ends = {
  'stop() of the one that reads': ({ inbound }) => inbound.stop(),
  'stop() of all': ({ splices }) => Object.values(splices).forEach((splice) => splice.stop()),
  'stop() of all, the one that reads last': ({ splices, inbound }) => {
    for (const splice of Object.values(splices)) {
      if (splice !== inbound)
        splice.stop();
    }
    inbound.stop();
  },
  'the abort of the one that reads': ({ controllers }) => (controllers.in ?? controllers.duplex).abort(),
  'the abort of all': ({ controllers }) => Object.values(controllers).forEach((controller) => controller.abort()),
  'a sink that fails': ({ endpoint }) => endpoint.fail(),
};

function* cases(kinds) {
  for (const kind of kinds) {
    const make = endpoints[kind];
    for (const order of orders) {
      if ((order[0] === 'duplex') !== kind.startsWith('one'))
        continue;
      for (const write of Object.keys(writes)) {
        for (const version of ['TLSv1.2', 'TLSv1.3']) {
          for (const allowHalfOpen of [true, false]) {
            for (const closeNotify of allowHalfOpen ? [true, false] : [true]) {
              const name = `${kind}, ${order}, ${write}, ${version}, ${allowHalfOpen}, ${closeNotify}`;
              yield { make, order, write, version, allowHalfOpen, closeNotify, name };
            }
          }
        }
      }
    }
  }
}

// All cases of the endpoints with these names.
function testHeldWrites(...kinds) {
  for (const test of cases(kinds)) {
    for (const { 0: how, 1: end } of Object.entries(ends)) {
      const name = `${test.name}: ${how}`;
      // One handle is all of them.
      if (test.order[0] === 'duplex' && how.includes('of the one'))
        continue;
      run(async () => {
        const world = await setUp(test);
        const { server, endpoint, splices, outbound, errors } = world;
        const events = [];
        let bytes = 0;
        server.on('data', (chunk) => bytes += chunk.length).resume();
        server.on('error', (err) => events.push([err, bytes]));
        const closed = [closing(server), ...Object.values(splices).map(closing)];
        end(world);
        await Promise.all(closed);
        await turns();
        assert.strictEqual(events.length, 1, name);
        const { 0: { 0: error, 1: before } } = events;
        assert.match(error.code, kLost, name);
        assert.strictEqual(error.syscall, 'write', name);
        assert.strictEqual(before, kHeld, name);
        assert.strictEqual(bytes, kHeld, name);
        const { duplex } = errors;
        if (how === 'a sink that fails') {
          const { length, 0: failure } = duplex ?? errors.in;
          assert.strictEqual(length, 1, name);
          assert.strictEqual(failure.side, 'endpoint', name);
        } else {
          assert.deepStrictEqual(duplex ?? errors.in, [], name);
        }
        if (duplex === undefined) {
          // It has the error of the socket, if it has not been stopped before.
          const isStopped = how.endsWith('of all') || how.includes('of all,');
          assert.deepStrictEqual(errors.out, isStopped ? [] : [error], name);
          assert.strictEqual(outbound.errored, isStopped ? null : error, name);
          if (!isStopped)
            assert.strictEqual(error.side, 'tls', name);
        }
        endpoint.drop();
      });
    }

    // The next splice takes the bytes from JavaScript, which has had no turn to read
    // them, and then the failure.
    for (const next of [['in'], ['duplex'], ['in', 'out'], ['out', 'in']]) {
      for (const how of ['stop() of the one that reads', 'stop() of all']) {
        const all = how === 'stop() of all';
        if (!all && (test.order.length === 1 || `${next}` !== 'in'))
          continue;
        const name = `${test.name}: ${how}, and ${next}`;
        run(async () => {
          const { server, endpoint, splices, inbound, outbound } = await setUp(test);
          const { 0: stream, 1: other } = await socketPair('unix');
          const errors = [];
          server.on('error', (err) => errors.push(err));
          const closed = closing(server);
          await Promise.all((all ? Object.values(splices) : [inbound]).map((splice) => splice.stop()));
          const started = next.map((direction) => [
            direction, server.spliceTo({ stream, direction }).start(),
          ]);
          if (!all)
            started.push(['out', outbound]);
          let bytes = 0;
          const got = new Promise((resolve) => other.on('data', (chunk) => {
            bytes += chunk.length;
            if (bytes === kHeld)
              resolve();
          }));
          const outcomes = await Promise.all(started.map(async ({ 0: direction, 1: { finished } }) => [
            direction, await finished.then(() => null, (err) => err),
          ]));
          await Promise.all([closed, got]);
          assert.strictEqual(errors.length, 1, name);
          assert.match(errors[0].code, kLost, name);
          for (const { 0: direction, 1: outcome } of outcomes) {
            // One that only reads has come to the end of what the peer sends, if there
            // is one.
            const hasEnded = test.closeNotify && direction === 'in';
            assert.strictEqual(outcome, hasEnded ? null : errors[0], name);
          }
          assert.strictEqual(started.reduce((sum, { 1: { stats } }) => sum + stats.bytesIn, 0), kHeld, name);
          other.destroy();
          endpoint.drop();
        });
      }
    }
  }
}

module.exports = { testHeldWrites };
