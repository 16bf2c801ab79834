'use strict';

// Endpoints that are full before a splice has had its first turn; and what fails behind the
// bytes that are held for them, which is reported after these bytes, whoever gets them in the
// end.

const assert = require('assert');
const { once } = require('events');
const fs = require('fs');

const { alerts, kFatal, recordPair } = require('./tls-records');
const {
  closing, fifo, payload, pipeSocket, record, run, settled, socketPair, turns,
} = require('./tls-splice');

// Full endpoints: each with the option for spliceTo(), the bytes that fill it,
// and what reads it in the end.
const sinks = {
  // The kernel's buffer is full.
  'a FIFO': () => {
    const { reader, writer } = fifo();
    const source = fifo();
    let filled = 0;
    try {
      for (;;)
        filled += fs.writeSync(writer, Buffer.alloc(4096));
    } catch (err) {
      assert.strictEqual(err.code, 'EAGAIN');
    }
    let socket;
    return {
      options: { fd: writer },
      source: { fd: source.reader },
      filled,
      read: () => socket = pipeSocket(reader, { writable: false }),
      fail() {
        fs.closeSync(reader);
        socket = { destroy() {} };
      },
      drop() {
        for (const fd of [writer, source.reader, source.writer])
          fs.closeSync(fd);
        if (socket)
          socket.destroy();
        else
          fs.closeSync(reader);
      },
    };
  },
  // JavaScript has more to write to it.
  'a net.Socket': async () => {
    const { 0: endpoint, 1: other } = await socketPair();
    endpoint.on('error', () => {});
    other.on('error', () => {});
    endpoint.cork();
    endpoint.write('filled');
    return {
      options: { stream: endpoint },
      filled: 6,
      read() {
        process.nextTick(() => endpoint.uncork());
        return other;
      },
      fail: () => endpoint.destroy(),
      drop() {
        endpoint.destroy();
        other.destroy();
      },
    };
  },
};

// What JavaScript has buffered is there for the first turn of a splice.
async function isBuffered(server) {
  server.read(0);
  await once(server, 'readable');
  assert(server.readableLength > 0);
}

// What comes behind bytes that are held.
const kHeld = 10_000;
const held = Buffer.concat([...payload(kHeld)]);
const faults = {
  'a bad record': {
    record: (tap) => tap.garbage(),
    code: /^ERR_SSL_(CIPHER_OPERATION_FAILED|DECRYPTION_FAILED_OR_BAD_RECORD_MAC)$/,
  },
  'a fatal alert': {
    record: (tap) => tap.alert(kFatal, alerts.internal_error),
    code: /^ERR_SSL_TLSV1_ALERT_INTERNAL_ERROR$/,
  },
  'a reset': {
    code: /^ECONNRESET$/,
  },
};

// In which order handles take the directions.
const orders = [['in'], ['duplex'], ['in', 'out'], ['out', 'in']];

function* cases(kind, moments) {
  const makeSink = sinks[kind];
  for (const { 0: what, 1: fault } of Object.entries(faults)) {
    for (const order of orders) {
      for (const moment of moments) {
        for (const version of ['TLSv1.2', 'TLSv1.3']) {
          // With a reset the kernel drops what has not been read.
          if (!fault.record && moment === 'together')
            continue;
          if (kind === 'a FIFO' && order[0] !== 'in' && order.length === 1)
            continue;
          const name = `${kind}, ${what}, ${order}, ${moment}, ${version}`;
          yield { makeSink, ...fault, order, moment, version, name };
        }
      }
    }
  }
}

// For what is spliced again
async function nextEndpoint(by) {
  const { 0: other, 1: endpoint } = await socketPair('unix', { pauseOnConnect: by === 'fd' });
  return [by === 'fd' ? { fd: endpoint._handle.fd } : { stream: endpoint }, other];
}

async function setUp({ makeSink, record, order, moment, version, name }) {
  const sink = await makeSink();
  const { peer, socket: server, tap, raw } = await recordPair({
    minVersion: version, maxVersion: version, allowHalfOpen: true,
  });
  for (const socket of [peer, server, raw])
    socket.on('error', () => {});
  // What is written arrives in this turn, and does not wait for the kernel's
  // acknowledgement of what came before.
  raw.setNoDelay();
  // Afterwards `tap` has its keys.
  peer.write('x');
  assert.strictEqual(`${(await once(server, 'data'))[0]}`, 'x');
  server.pause();
  const controller = new AbortController();
  const start = () => order.map((direction) => {
    // Of a FIFO this is the end that is written to.
    const options = direction === 'out' && sink.source ? sink.source : sink.options;
    return server.spliceTo({ ...options, direction, signal: controller.signal }).start();
  });
  let splices;
  if (moment === 'before') {
    peer.write(held);
    await isBuffered(server);
    splices = start();
    await settled(() => server.bytesRead);
    if (record)
      tap.send(record(tap));
    else
      raw.resetAndDestroy();
  } else {
    splices = start();
    await turns();
    tap.send(tap.data(held), record(tap));
  }
  await settled(() => server.bytesRead);
  assert.strictEqual(server.bytesRead, 1 + kHeld, name);
  await turns();
  assert.strictEqual(server.destroyed, false, name);
  return { server, splices, sink, controller };
}

// All cases of one kind of sink. `moments` are when the bytes arrive: 'before' the first turn,
// so that what comes behind them is not read; or 'together' with what comes behind them, which
// is read then.
function testFaults(kind, ...moments) {
  for (const test of cases(kind, moments)) {
    const { code, name } = test;

    // The endpoint gets the bytes, and then there is the error.
    run(async () => {
      const { server, splices, sink } = await setUp(test);
      const failed = splices.map((splice) => assert.rejects(splice.finished, { code }));
      const closed = closing(server);
      const errors = [];
      server.on('error', (err) => errors.push(err));
      let bytes = 0;
      const got = new Promise((resolve) => sink.read().on('data', (chunk) => {
        bytes += chunk.length;
        if (bytes === sink.filled + kHeld)
          resolve();
      }));
      await Promise.all([...failed, got, closed]);
      for (const { stats } of splices)
        assert.strictEqual(stats.reason, 'error', name);
      assert.strictEqual(splices.reduce((sum, { stats }) => sum + stats.bytesIn, 0), kHeld);
      assert.strictEqual(errors.length, 1, name);
      assert.match(errors[0].code, code);
      sink.drop();
    });

    // The bytes come back to JavaScript, and then there is the error.
    for (const end of ['stop', 'stop and read', 'abort', 'fail']) {
      run(async () => {
        const { server, splices, sink, controller } = await setUp(test);
        const events = [];
        let bytes = 0;
        const read = () => server.on('data', (chunk) => bytes += chunk.length).resume();
        if (end !== 'stop and read')
          read();
        server.on('end', () => events.push('end'));
        const failed = new Promise((resolve) => server.on('error', (err) => {
          events.push(err.code);
          resolve();
        }));
        const over = Promise.allSettled(splices.map(({ finished }) => finished));
        if (end === 'fail')
          sink.fail();
        else if (end === 'abort')
          controller.abort();
        else if (end === 'stop and read')
          Promise.all(splices.map((splice) => splice.stop())).then(read);
        else
          splices.forEach((splice) => splice.stop());
        await Promise.all([failed, over]);
        await turns();
        assert.strictEqual(bytes, kHeld, `${name}, ${end}`);
        assert.strictEqual(events.length, 1, `${name}, ${end}: ${events}`);
        assert.match(events[0], code);
        sink.drop();
      });
    }

    // The next splice gives the bytes back, too, and then there is the error. If JavaScript
    // is the first to read it, it comes as without a splice: a TLSSocket that no tls.Server
    // has made emits only '_tlsError', and is not destroyed.
    for (const moment of ['at once', 'later']) {
      run(async () => {
        const { server, splices, sink } = await setUp(test);
        const second = await test.makeSink();
        const events = record(server, ['end', 'error', 'close']);
        const failed = new Promise((resolve) => {
          server.on('error', resolve);
          server.on('_tlsError', resolve);
        });
        await Promise.all(splices.map((splice) => splice.stop()));
        const next = test.order.map((direction) => {
          const options = direction === 'out' && second.source ? second.source : second.options;
          return server.spliceTo({ ...options, direction }).start();
        });
        if (moment === 'later')
          await turns();
        await Promise.all(next.map((splice) => splice.stop()));
        let bytes = 0;
        server.on('data', (chunk) => bytes += chunk.length).resume();
        const { code: actual } = await failed;
        assert.match(actual, test.record ? /^ERR_SSL_/ : code, name);
        assert.strictEqual(bytes, kHeld, `${name}, ${moment}`);
        assert.ok(!events.includes('end'), `${name}, ${moment}`);
        server.destroy();
        sink.drop();
        second.drop();
      });
    }

    // The next splice takes the bytes from JavaScript, which has had no turn to read
    // them, and then there is the error.
    const inAlone = test.order.length > 1 ? ['in alone'] : [];
    for (const end of ['stop', 'abort', 'close', ...inAlone]) {
      for (const by of ['stream', 'fd']) {
        run(async () => {
          const { server, splices, sink, controller } = await setUp(test);
          const { 0: endpoint, 1: other } = await nextEndpoint(by);
          const failures = [];
          const failed = new Promise((resolve) => server.on('error', (err) => {
            failures.push(err);
            resolve();
          }));
          const inbound = splices[test.order[0] === 'out' ? 1 : 0];
          const goesOn = end === 'in alone' ? splices.filter((splice) => splice !== inbound) : [];
          const stopped = splices.filter((splice) => !goesOn.includes(splice));
          const next = [];
          const start = () => {
            for (const direction of end === 'in alone' ? ['in'] : test.order)
              next.push(server.spliceTo({ ...endpoint, direction }).start());
          };
          if (end === 'close') {
            // Inside of the last of their listeners
            let left = stopped.length;
            const started = Promise.all(stopped.map((splice) => new Promise((resolve) => {
              splice.on('close', () => {
                if (--left === 0)
                  start();
                resolve();
              });
            })));
            stopped.forEach((splice) => splice.stop());
            await started;
          } else {
            if (end === 'abort')
              controller.abort();
            await Promise.all(stopped.map((splice) => splice.stop()));
            start();
          }
          let bytes = 0;
          const got = new Promise((resolve) => other.on('data', (chunk) => {
            bytes += chunk.length;
            if (bytes === kHeld)
              resolve();
          }));
          const errors = await Promise.all([...next, ...goesOn].map(
            (splice) => splice.finished.then(() => null, (err) => err)));
          await failed;
          for (const error of errors) {
            assert.match(error?.code, code, `${name}, ${end}`);
            assert.strictEqual(error.side, 'tls');
          }
          assert.strictEqual(failures.length, 1, `${name}, ${end}`);
          assert.match(failures[0].code, code);
          assert.strictEqual(next.reduce((sum, { stats }) => sum + stats.bytesIn, 0), kHeld, `${name}, ${end}`);
          assert.strictEqual(inbound.stats.bytesIn, 0);
          await got;
          other.destroy();
          sink.drop();
        });
      }
    }
  }
}

module.exports = { isBuffered, sinks, testFaults };
