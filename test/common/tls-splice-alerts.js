'use strict';

// The peer sends an alert, or a record that is none, behind data that is still on
// its way: the endpoint gets the data, and what comes out then is that error,
// whatever else goes wrong meanwhile.

const common = require('../common');
const assert = require('assert');
const { once } = require('events');
const fs = require('fs');
const { Duplex } = require('stream');

const { alerts, kFatal, kWarning, recordPair } = require('./tls-records');
const {
  closing, receive, record, run, settled, socketPair, tlsOver, turns,
} = require('./tls-splice');

// Runs all cases with these handles, each of which is a list of directions in the order in
// which they start. `others` are for cases that one direction is enough for.
function testAlerts(handles, others = []) {
  const versions = ['TLSv1.2', 'TLSv1.3'];
  const kinds = ['fd', 'stream'];

  // What is behind the data: the records, and the code of the error. `isSilent`: JavaScript
  // is not told of the failure if it is read without a splice.
  const failures = [
    {
      make: (tap) => [tap.alert(kFatal, alerts.internal_error)],
      code: /^ERR_SSL_TLSV1_ALERT_INTERNAL_ERROR$/,
    },
    // OpenSSL takes 32.
    {
      make: (tap) => Array.from({ length: 1000 }, () => tap.empty()),
      code: /^ERR_SSL_RECORD_TOO_SMALL$/,
    },
    // And of these four.
    {
      make: (tap) => Array.from({ length: 5 }, () => tap.alert(kWarning, alerts.user_canceled)),
      code: /^ERR_SSL_TOO_MANY_WARN_ALERTS$/,
    },
    {
      make: (tap) => [tap.garbage()],
      code: /^ERR_SSL_(DECRYPTION_FAILED_OR_BAD_RECORD_MAC|CIPHER_OPERATION_FAILED)$/,
    },
    {
      make: (tap) => [tap.alert(kFatal, 199)],
      code: /^ERR_SSL_UNKNOWN_ALERT_TYPE$/,
      isSilent: true,
    },
  ];

  const loud = failures.filter(({ isSilent }) => !isSilent);

  // What happens to the connection right behind it.
  const endings = {
    none: () => {},
    fin: (raw) => raw.end(),
    rst: (raw) => raw.resetAndDestroy(),
  };

  // What is not a dimension of its own below varies from test to test, the same way
  // each time.
  let state = 1;
  function either(...values) {
    state = (state * 48271) % 0x7fffffff;
    return values[state % values.length];
  }

  // A TLSSocket whose peer can send anything, and an endpoint, whose other side
  // reads when it is told to.
  async function connect(version, options) {
    const pair = await recordPair({
      isServer: either(false, true),
      minVersion: version,
      maxVersion: version,
      allowHalfOpen: true,
      ...options,
    });
    const { peer, socket, raw } = pair;
    raw.setNoDelay();  // It is all sent when the connection is reset.
    raw.on('error', () => {});
    peer.on('error', () => {});
    const { 0: endpoint, 1: other } = await socketPair('unix');
    // JS has what came before.
    peer.write('first');
    await once(socket, 'readable');
    assert.strictEqual(`${socket.read()}`, 'first');
    return { ...pair, endpoint, other };
  }

  async function tlsEndpoint() {
    // Of TCP the kernel may take more at any time.
    const below = await socketPair('unix');
    const { client: other, server: endpoint } = tlsOver(...below.map(
      (socket) => Duplex.from({ readable: socket, writable: socket })));
    await Promise.all([once(other, 'secure'), once(endpoint, 'secure')]);
    endpoint.on('error', () => {});
    other.on('error', () => {});
    other.pause();
    return { endpoint, other };
  }

  // Until its buffers are full. Returns how many bytes that took.
  async function fill(endpoint, kind) {
    const chunk = Buffer.alloc(64 * 1024, '.');
    let bytes = 0;
    const write = () => {
      if (kind !== 'fd')
        return endpoint.writableLength > 0 ? 0 : (endpoint.write(chunk), chunk.length);
      try {
        return fs.writeSync(endpoint._handle.fd, chunk);
      } catch (err) {
        assert.strictEqual(err.code, 'EAGAIN');
        return 0;
      }
    };
    // The other side may have read ahead.
    for (let full = 0; full < 5;) {
      const written = write();
      bytes += written;
      if (written > 0) {
        full = 0;
      } else {
        full++;
        await turns(1);
      }
    }
    return bytes;
  }

  function splice({ socket, endpoint }, kind, directions, options) {
    const errors = [];
    socket.on('error', (err) => errors.push(err));
    const target = kind === 'stream' ? { stream: endpoint } : { fd: endpoint._handle.fd };
    const splices = directions.map(
      (direction) => socket.spliceTo({ ...target, direction, ...options }));
    return {
      errors,
      splices,
      events: splices.map((handle) => record(handle, ['error', 'close'])),
      stats: splices.map(closing),
      outcomes: splices.map((handle) => handle.finished.then(
        () => assert.fail('It has ended without an error'), (err) => err)),
    };
  }

  // The same error has come out of the socket and of each splice, once it has what
  // came before.
  async function check({ socket, endpoint, other }, spliced, code, bytes) {
    const { errors, splices, events, outcomes, stats } = spliced;
    const { 0: error, ...others } = await Promise.all(outcomes);
    assert.match(error.code ?? error.message, code);
    for (const other of Object.values(others))
      assert.strictEqual(other, error);
    assert.strictEqual(errors[0], error);
    for (const { reason, closeNotify } of await Promise.all(stats)) {
      assert.strictEqual(reason, 'error');
      assert.strictEqual(closeNotify, false);
    }
    for (const names of events)
      assert.deepStrictEqual(names, ['error', 'close']);
    assert.strictEqual(socket.destroyed, true);
    if (bytes !== undefined)
      assert.strictEqual(bytesIn(splices), bytes);
    // The endpoint has got no end of it.
    assert.strictEqual(endpoint.writable, true);
    assert.strictEqual(other.readableEnded, false);
  }

  function bytesIn(splices) {
    return splices.reduce((sum, { stats }) => sum + stats.bytesIn, 0);
  }

  // Calls it for each combination.
  function each(...dimensions) {
    const callback = dimensions.pop();
    const visit = (values, { 0: first, ...rest }) => {
      if (first === undefined)
        return run(() => callback(...values));
      for (const value of first)
        visit([...values, value], Object.values(rest));
    };
    visit([], dimensions);
  }

  const kData = 3000;

  // The sink is full. Data and the failure have been decrypted when the connection
  // ends, if it does, and what the source yields cannot be sent any more.
  async function testHeld(version, kind, directions, { make, code }, end, options) {
    const all = await connect(version, options);
    const { socket, tap, raw, peer, endpoint, other } = all;
    const filled = await fill(endpoint, kind);
    const spliced = splice(all, kind, directions);
    const { bytesRead } = socket;
    // Ciphertext may wait for the peer to read, or it takes all.
    const isStuck = either(false, true);
    if (isStuck)
      raw.pause();
    else
      peer.resume();
    for (const handle of spliced.splices)
      handle.start();
    if (isStuck) {
      other.write(Buffer.alloc(16 * 1024 * 1024));
      await settled(() => socket.bytesWritten);
    } else {
      await turns(5);
    }
    tap.send(tap.data('x'.repeat(kData)), ...make(tap));
    while (socket.bytesRead === bytesRead)
      await turns(1);
    end(raw);
    for (let i = 0; i < 10; i++) {
      other.write('y'.repeat(1000));
      await turns(1);
    }
    // Not before the data.
    assert.strictEqual(bytesIn(spliced.splices), 0);
    assert.deepStrictEqual(spliced.errors, []);
    assert.strictEqual(socket.destroyed, false);
    const received = receive(other);
    await check(all, spliced, code, kData);
    await received.receiver.reached(filled + kData);
    assert.strictEqual(received.receiver.bytes, filled + kData);
  }

  each(versions, kinds, handles, failures, Object.values(endings), testHeld);
  each(versions, kinds, handles, failures, [endings.none],
       (...args) => testHeld(...args, {
         wrap: (socket) => Duplex.from({ readable: socket, writable: socket }),
       }));

  // The sink takes a little at a time, and both directions are busy: wherever the
  // failure is when the splice has to wait.
  each(versions, kinds, handles, failures, async (version, kind, directions, { make, code }) => {
    const all = await connect(version);
    const { tap, raw, peer, endpoint, other } = all;
    const filled = await fill(endpoint, kind);
    const highWaterMark = either(undefined, 20_000, 1000);
    const spliced = splice(all, kind, directions, { highWaterMark });
    peer.resume();
    for (const handle of spliced.splices)
      handle.start();
    await turns(either(0, 1, 2, 3));
    const size = either(1, 5, 17, 40) * 10_000;
    for (let sent = 0; sent < size; sent += 10_000) {
      tap.send(tap.data('x'.repeat(10_000)));
      await turns(either(0, 1));
    }
    const records = make(tap);
    tap.send(...records.splice(0, either(1, 20, 1000)));
    if (records.length > 0)
      tap.send(...records);
    either(endings.none, endings.fin)(raw);
    let received = 0;
    other.on('readable', () => {
      // Chunk by chunk, with something sent for each.
      const chunk = other.read();
      if (chunk === null)
        return;
      received += chunk.length;
      other.write('y'.repeat(1000));
    });
    await check(all, spliced, code, size);
    while (received < filled + size)
      await turns(1);
    assert.strictEqual(received, filled + size);
  });

  // It comes together with what makes JS start the splice, so before or after that,
  // and before the first turn.
  each(versions, kinds, handles, loud, Object.values(endings),
       async (version, kind, directions, { make, code }, end) => {
         const all = await connect(version);
         const { tap, raw, peer, endpoint, other } = all;
         const { 0: trigger, 1: triggered } = await socketPair();
         const filled = either(false, true) ? await fill(endpoint, kind) : 0;
         const spliced = splice(all, kind, directions);
         peer.resume();
         triggered.on('data', common.mustCall(() => {
           for (const handle of spliced.splices)
             handle.start();
         }));
         await turns(5);
         const before = either(false, true);
         if (before)
           trigger.write('now');
         tap.send(tap.data('x'.repeat(kData)), ...make(tap));
         if (!before)
           trigger.write('now');
         end(raw);
         const received = receive(other);
         await check(all, spliced, code, kData);
         await received.receiver.reached(filled + kData);
         assert.strictEqual(received.receiver.bytes, filled + kData);
       });

  // JS has been told before start(): what it has not read goes to the endpoint, and
  // the splice fails for the same reason.
  each(versions, kinds, [...handles, ...others], loud,
       async (version, kind, directions, { make, code }) => {
         const all = await connect(version);
         const { socket, tap, peer, other } = all;
         peer.resume();
         const spliced = splice(all, kind, directions);
         const start = () => {
           for (const handle of spliced.splices)
             handle.start();
         };
         const isInside = either(false, true);
         if (isInside)
           socket.once('error', start);
         const failed = once(socket, 'error');
         tap.send(tap.data('x'.repeat(kData)), ...make(tap));
         await failed;
         if (!isInside)
           start();
         other.write('y');
         const received = receive(other);
         const takesIn = directions.some((direction) => direction !== 'out');
         await check(all, spliced, code, takesIn ? kData : 0);
         if (takesIn)
           await received.receiver.reached(kData);
       });

  // The splice is stopped, two handles in either order, when it holds what the failure
  // is behind, or has just read it, and is about to encrypt. The socket gets what is
  // held, and then the failure.
  each(versions, ['fd', 'stream', 'tls'], [...failures, { code: /^(ECONNRESET|EPIPE)$/ }],
       ['data', 'readable'], handles,
       async (version, kind, { make, code }, event, directions) => {
         const isLate = either(false, true);
         const wait = either(0, 1, 2);
         const all = await connect(version);
         const { socket, tap, peer, raw } = all;
         const { endpoint, other } = kind === 'tls' ? await tlsEndpoint() : all;
         await fill(endpoint, kind);
         peer.resume();
         const errors = [];
         let read = 0;
         socket.on('error', (err) => errors.push(err));
         socket.on(event, (chunk = socket.read()) => {
           assert.deepStrictEqual(errors, []);
           read += chunk?.length ?? 0;
         });
         const target = kind === 'fd' ? { fd: endpoint._handle.fd } : { stream: endpoint };
         const splices = directions.map((direction) => socket.spliceTo({ ...target, direction }));
         const into = splices.find((_, i) => directions[i] !== 'out').start();
         tap.send(tap.data('x'.repeat(kData)), ...make?.(tap) ?? []);
         while (into.stats.peakBufferedIn === 0)
           await turns(1);
         const start = () => {
           for (const splice of splices)
             splice.start();
         };
         if (!isLate)
           start();
         other.write('y');
         if (make === undefined)
           raw.resetAndDestroy();
         if (isLate)
           start();
         await turns(wait);
         const failed = errors[0] ?? new Promise((resolve) => socket.once('error', resolve));
         for (const { bytesIn } of await Promise.all(splices.map((splice) => splice.stop())))
           assert.strictEqual(bytesIn, 0);
         const { code: actual, message } = await failed;
         assert.match(actual ?? message, code);
         assert.strictEqual(read, kData);
         assert.strictEqual(errors.length, 1);
         endpoint.destroy();
         other.destroy();
       });

  // A peer that resets the connection right behind it, while it is sent to. The
  // write may fail before the alert has been read, as without a splice; nothing else
  // takes its place.
  each(versions, kinds, handles, failures, async (version, kind, directions, { make, code }) => {
    const all = await connect(version);
    const { socket, tap, raw, peer, other } = all;
    const spliced = splice(all, kind, directions);
    peer.resume();
    const received = receive(other);
    for (const handle of spliced.splices)
      handle.start();
    const closed = closing(socket);
    const sending = (async () => {
      while (!socket.destroyed) {
        other.write('y'.repeat(1000));
        await turns(1);
      }
    })();
    await turns(either(1, 2, 3, 4, 5));
    tap.send(tap.data('x'.repeat(kData)), ...make(tap));
    raw.resetAndDestroy();
    await Promise.all([closed, sending]);
    await check(all, spliced, new RegExp(`${code.source}|^(ECONNRESET|EPIPE)$`));
    if (code.test(spliced.errors[0].code))
      await received.receiver.reached(kData);
  });

  // user_canceled is a warning, and no failure: a close_notify after it is one, and
  // what comes after that is nothing.
  for (const after of [
    () => [],
    (tap) => [tap.alert(kFatal, alerts.internal_error)],
    (tap) => [tap.garbage()],
  ]) {
    each(versions, kinds, handles, [endings.none, endings.fin],
         async (version, kind, directions, end) => {
           const all = await connect(version);
           const { socket, tap, raw, peer, endpoint, other } = all;
           const filled = either(false, true) ? await fill(endpoint, kind) : 0;
           const target = kind === 'stream' ? { stream: endpoint } : { fd: endpoint._handle.fd };
           const splices = directions.map(
             (direction) => socket.spliceTo({ ...target, direction }).start());
           const outcomes = splices.map(({ finished }) => finished);
           const ended = once(socket, 'end');
           const answer = receive(peer);
           tap.send(tap.data('one '));
           tap.send(tap.alert(kWarning, alerts.user_canceled), tap.data('two '));
           tap.send(tap.alert(kWarning, alerts.user_canceled),
                    tap.alert(kWarning, alerts.close_notify), ...after(tap));
           end(raw);
           // No FIN has to come for that.
           const received = receive(other);
           await Promise.all([received, ended]);
           assert.strictEqual(received.receiver.bytes, filled + 8);
           assert.strictEqual(socket.destroyed, false);
           // The other direction is as it was.
           other.end('an answer');
           await answer;
           assert.strictEqual(answer.receiver.bytes, 9);
           for (const stats of await Promise.all(outcomes))
             assert.strictEqual(stats.reason, 'end');
           assert.strictEqual(bytesIn(splices), 8);
           const { closeNotify } = splices.at(directions.indexOf('in')).stats;
           assert.strictEqual(closeNotify, true);
         });
  }

  // The splice holds what is in front of such an end, and is stopped, or its sink fails. JavaScript
  // gets both, and no FIN has to come for that.
  each(versions, kinds, handles, [endings.none, endings.fin], [false, true],
       async (version, kind, directions, end, fails) => {
         const { socket, tap, raw, peer, endpoint, other } = await connect(version);
         await fill(endpoint, kind);
         peer.resume();
         const target = kind === 'stream' ? { stream: endpoint } : { fd: endpoint._handle.fd };
         const splices = directions.map((direction) => socket.spliceTo({ ...target, direction }).start());
         const into = splices.find((_, i) => directions[i] !== 'out');
         tap.send(tap.data('one '), tap.alert(kWarning, alerts.user_canceled),
                  tap.alert(kWarning, alerts.close_notify));
         end(raw);
         while (into.stats.peakBufferedIn === 0)
           await turns(1);
         await turns();
         const received = receive(socket);
         for (const handle of splices)
           handle.on('error', fails ? ({ side }) => assert.strictEqual(side, 'endpoint') : common.mustNotCall());
         if (fails) {
           endpoint.on('error', () => {});
           other.destroy();
           await closing(into);
         }
         const [{ bytesIn }] = await Promise.all([into, ...splices].map((handle) => handle.stop()));
         assert.strictEqual(bytesIn, 0);
         await received;
         assert.strictEqual(received.receiver.bytes, 4);
         for (const stream of [socket, endpoint, other])
           stream.destroy();
       });
}

module.exports = { testAlerts };
