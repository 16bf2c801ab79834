'use strict';

// A splice of a TLSSocket that runs over another one, whose TLS fails. Node tells
// only that one, which stays open; and a write that waits behind one of TLS's own
// which fails is never called back. The splice ends in each case, and the bytes
// that it holds come first.

const common = require('../common');
if (!common.hasCrypto)
  common.skip('missing crypto');

const assert = require('assert');
const { once } = require('events');
const tls = require('tls');
if (tls.TLSSplice === undefined)
  common.skip('built without TLSSplice');

const {
  Receiver, closing, payload, record, run, settled, socketPair, tlsOver, tlsPair, turns,
} = require('../common/tls-splice');
const { RecordTap, alerts, kWarning } = require('../common/tls-records');

const kVersions = ['TLSv1.2', 'TLSv1.3'];

// `raw` is at the peer's end of the TCP connection.
async function nested(version, { handshake = true } = {}) {
  const { 0: raw, 1: mine } = await socketPair();
  raw.setNoDelay(true);
  const outer = tlsOver(raw, mine);
  const options = { minVersion: version, maxVersion: version };
  await Promise.all([once(outer.client, 'secure'), once(outer.server, 'secure')]);
  const { client, server } = tlsOver(outer.client, outer.server, { server: options, client: options });
  // It tells of what is done to it here, and may do so more than once.
  for (const socket of [raw, outer.client, outer.server, client])
    socket.on('error', () => {});
  server.allowHalfOpen = client.allowHalfOpen = true;
  client.resume();
  if (handshake) {
    await Promise.all([once(client, 'secure'), once(server, 'secure')]);
    await turns();
  }
  return { raw, outer, client, server };
}

function watch(splice) {
  const events = record(splice, ['error', 'close']);
  const closed = closing(splice);
  return async (code) => {
    const { reason } = await closed;
    assert.deepStrictEqual(events, ['error', 'close']);
    assert.strictEqual(reason, 'error');
    assert.strictEqual(splice.errored.code, code);
    assert.strictEqual(splice.errored.side, 'tls');
  };
}

function failBelow({ raw }) {
  raw.write('This is not a record of TLS.');
}

// The handles in the order in which they are started.
const kHandles = [['in'], ['out'], ['duplex'], ['in', 'out'], ['out', 'in']];

for (const version of kVersions) {
  for (const directions of kHandles) {
    run(async () => {
      const tlsSockets = await nested(version);
      const { server } = tlsSockets;
      const { 0: far, 1: endpoint } = await socketPair('unix');
      server.resume();
      const ends = directions.map((direction) => {
        const splice = server.spliceTo({ stream: endpoint, direction });
        const end = watch(splice);
        splice.start();
        return end;
      });
      server.on('error', common.mustCall(({ code }) => assert.strictEqual(code, 'EPROTO')));
      await turns();
      failBelow(tlsSockets);
      for (const end of ends)
        await end('EPROTO');
      assert.strictEqual(server.destroyed, true);
      assert.strictEqual(endpoint.destroyed, false);
      far.destroy();
      endpoint.destroy();
    });
  }

  // A sink that takes nothing yet.
  for (const directions of [['in'], ['duplex'], ['in', 'out'], ['out', 'in']]) {
    run(async () => {
      const tlsSockets = await nested(version);
      const { client, server } = tlsSockets;
      const { 0: far, 1: endpoint } = await socketPair('unix');
      far.pause();
      const skipped = 8 * 1024 * 1024;
      endpoint.write(Buffer.alloc(skipped));
      const ends = directions.map((direction) => {
        const splice = server.spliceTo({ stream: endpoint, direction });
        const end = watch(splice);
        splice.start();
        return end;
      });
      server.on('error', common.mustCall(({ code }) => assert.strictEqual(code, 'EPROTO')));
      // Both arrive in one piece, so that nobody can stop in between.
      const size = 5_000;
      await turns();
      for (const chunk of payload(size))
        client.write(chunk);
      const failed = once(tlsSockets.outer.server, '_tlsError');
      failBelow(tlsSockets);
      await failed;
      await turns();
      assert.strictEqual(server.destroyed, false);
      const receiver = new Receiver();
      let toSkip = skipped;
      far.on('data', (chunk) => {
        const skip = Math.min(toSkip, chunk.length);
        toSkip -= skip;
        if (skip < chunk.length)
          receiver.update(chunk.subarray(skip));
      });
      far.resume();
      for (const end of ends)
        await end('EPROTO');
      await receiver.reached(size);
      receiver.check(size);
      far.destroy();
      endpoint.destroy();
    });
  }

  run(async () => {
    const { 0: far, 1: endpoint } = await socketPair('unix');
    // In this very turn the handshake cannot be done.
    const tlsSockets = await nested(version, { handshake: false });
    const { server } = tlsSockets;
    const splice = server.spliceTo({ stream: endpoint });
    const end = watch(splice);
    splice.start();
    server.on('error', () => {});
    failBelow(tlsSockets);
    const { 0: { code } } = await once(splice, 'error');
    assert.match(code, /^ERR_SSL_/);
    await end(code);
    assert.strictEqual(server.destroyed, true);
    far.destroy();
    endpoint.destroy();
  });
}

// The outer TLS has failed before the splice starts, and nobody has told the inner
// socket of it: with the handles in each order, and by start() or pipeToNative().
for (const version of kVersions) {
  for (const directions of kHandles) {
    for (const moment of ['before spliceTo()', 'before start()']) {
      run(async () => {
        const tlsSockets = await nested(version);
        const { server } = tlsSockets;
        const { 0: far, 1: endpoint } = await socketPair('unix');
        server.resume();
        server.on('error', common.mustCall(({ code }) => assert.strictEqual(code, 'EPROTO')));
        const make = () => directions.map((direction) => server.spliceTo({ stream: endpoint, direction }));
        const early = moment === 'before start()' ? make() : null;
        const failed = once(tlsSockets.outer.server, '_tlsError');
        failBelow(tlsSockets);
        await failed;
        await turns();
        assert.strictEqual(server.destroyed, false);
        const splices = early ?? make();
        const ends = splices.map(watch);
        for (const splice of splices)
          splice.start();
        for (const end of ends)
          await end('EPROTO');
        assert.strictEqual(server.destroyed, true);
        assert.strictEqual(endpoint.destroyed, false);
        far.destroy();
        endpoint.destroy();
      });
    }
  }

  for (const direction of ['in', 'out', 'duplex']) {
    run(async () => {
      const tlsSockets = await nested(version);
      const { server } = tlsSockets;
      const { 0: far, 1: endpoint } = await socketPair('unix');
      server.resume();
      server.on('error', common.mustCall());
      const failed = once(tlsSockets.outer.server, '_tlsError');
      failBelow(tlsSockets);
      await failed;
      await turns();
      await assert.rejects(server.pipeToNative(endpoint, { direction }), { code: 'EPROTO', side: 'tls' });
      assert.strictEqual(server.destroyed, true);
      far.destroy();
      endpoint.destroy();
    });
  }
}

// 'out' waits for what JavaScript has written, which the peer does not read, when the
// outer TLS fails.
for (const version of kVersions) {
  for (const directions of kHandles.filter((handles) => `${handles}` !== 'in')) {
    for (const allowHalfOpen of [true, false]) {
      run(async () => {
        const tlsSockets = await nested(version);
        const { client, server, outer } = tlsSockets;
        const { 0: far, 1: endpoint } = await socketPair('unix');
        server.allowHalfOpen = allowHalfOpen;
        server.resume();
        client.pause();
        // More than the kernel and Node take of it.
        const written = new Promise((resolve) => server.write(Buffer.alloc(32 * 1024 * 1024), resolve));
        await settled(() => outer.server.bytesWritten - outer.server.writableLength);
        assert(server.writableLength > 0);
        const errors = [];
        server.on('error', (err) => errors.push(err));
        const splices = directions.map((direction) => server.spliceTo({ stream: endpoint, direction }));
        const outcomes = splices.map((splice) => {
          const closed = closing(splice);
          splice.on('error', (err) => errors.push(err));
          splice.start();
          return closed;
        });
        far.write('This waits behind it.');
        await turns();
        assert(splices.every(({ state }) => state === 'running'));
        const closed = closing(server);
        failBelow(tlsSockets);
        for (const { reason, bytesOut } of await Promise.all(outcomes)) {
          // The first of two destroys the socket.
          assert.match(reason, /^(error|destroyed)$/);
          assert.strictEqual(bytesOut, 0);
        }
        await closed;
        assert.strictEqual((await written) instanceof Error, true);
        // Each of the splices, and the socket, has the same error.
        assert.strictEqual(errors.length, splices.length + 1);
        assert.match(errors[0].code, /^(EPROTO|ERR_SSL_\w+)$/);
        assert.strictEqual(errors[0].side, 'tls');
        for (const err of errors)
          assert.strictEqual(err, errors[0]);
        assert.strictEqual(endpoint.destroyed, false);
        far.destroy();
        endpoint.destroy();
      });
    }
  }
}

// A destroy() of the user's that does nothing: the splice fails all the same, before it has
// begun and after that.
for (const version of kVersions) {
  for (const handshake of [false, true]) {
    run(async () => {
      const tlsSockets = await nested(version, { handshake });
      const { server } = tlsSockets;
      const { 0: far, 1: endpoint } = await socketPair('unix');
      server.on('error', () => {});
      server.destroy = () => {};
      const splice = server.spliceTo({ stream: endpoint });
      const closed = closing(splice);
      splice.on('error', common.mustCall());
      splice.start();
      failBelow(tlsSockets);
      assert.strictEqual((await closed).reason, 'error');
      assert.match(splice.errored.code, /^ERR_SSL_/);
      assert.strictEqual(splice.errored.side, 'tls');
      delete server.destroy;
      for (const socket of [server, far, endpoint])
        socket.destroy();
    });
  }
}

// As nested(), with a peer whose close_notify `tap` can send, and which reads nothing.
async function nestedWithTap(version) {
  const { 0: raw, 1: mine } = await socketPair();
  raw.setNoDelay(true);
  const outer = tlsOver(raw, mine);
  await Promise.all([once(outer.client, 'secure'), once(outer.server, 'secure')]);
  const tap = new RecordTap(outer.client);
  const options = { minVersion: version, maxVersion: version, allowHalfOpen: true };
  const { client: peer, server } = tlsOver(tap, outer.server, options);
  tap.follow(peer);
  for (const socket of [raw, outer.client, outer.server, tap, peer])
    socket.on('error', () => {});
  await Promise.all([once(peer, 'secure'), once(server, 'secure')]);
  peer.write('x');
  assert.strictEqual(`${(await once(server, 'data'))[0]}`, 'x');
  outer.client.pause();
  return { raw, outer, tap, peer, server };
}

// The same when the peer has ended before, so that nothing comes in any more that could fail:
// while 'out' waits for a write of JavaScript, and while its bytes wait for the peer.
for (const version of kVersions) {
  for (const { direction, isBegun } of [
    { direction: 'out', isBegun: false },
    { direction: 'out', isBegun: true },
    { direction: 'duplex', isBegun: false },
    { direction: 'duplex', isBegun: true },
  ]) {
    run(async () => {
      const { raw, outer, tap, server } = await nestedWithTap(version);
      const { 0: far, 1: endpoint } = await socketPair('unix');
      const bytes = Buffer.alloc(32 * 1024 * 1024);
      if (!isBegun) {
        server.write(bytes, () => {});
        await settled(() => outer.server.bytesWritten - outer.server.writableLength);
      }
      const splice = server.spliceTo({ stream: endpoint, direction }).start();
      const check = watch(splice);
      if (isBegun) {
        far.write(bytes, () => {});
        await settled(() => splice.stats.bytesOut);
      }
      const failed = once(server, 'error');
      const ended = once(server.resume(), 'end');
      tap.send(tap.alert(kWarning, alerts.close_notify));
      await ended;
      await turns();
      assert.strictEqual(splice.state, 'running');
      failBelow({ raw });
      const { 0: err } = await failed;
      await check(err.code);
      assert.strictEqual(splice.errored, err);
      assert.match(err.code, /^(EPROTO|ERR_SSL_\w+)$/);
      for (const socket of [raw, far, endpoint])
        socket.destroy();
    });
  }
}

// JavaScript has the end in its buffer, and has not read what comes before it.
for (const version of kVersions) {
  run(async () => {
    const { raw, tap, peer, server } = await nestedWithTap(version);
    const { 0: far, 1: endpoint } = await socketPair('unix');
    server.pause();
    const splice = server.spliceTo({ stream: endpoint, direction: 'out' }).start();
    const check = watch(splice);
    far.write(Buffer.alloc(32 * 1024 * 1024), () => {});
    await settled(() => splice.stats.bytesOut);
    const failed = once(server, 'error');
    peer.write('unread');
    await turns();
    tap.send(tap.alert(kWarning, alerts.close_notify));
    await turns();
    assert.strictEqual(server.readableEnded, false);
    failBelow({ raw });
    const { 0: err } = await failed;
    await check(err.code);
    assert.strictEqual(splice.errored, err);
    for (const socket of [raw, far, endpoint])
      socket.destroy();
  });
}

// The sink is full, and the peer's end is held behind the bytes for it, when the outer TLS
// fails: 'in' ends all the same when the sink has taken all of them, or is stopped, before the
// splices are told or after that, and 'out' fails then.
for (const version of kVersions) {
  for (const { directions, stops } of [
    { directions: ['duplex'], stops: 'never' },
    ...['never', 'before', 'after'].flatMap((stops) => [
      { directions: ['in', 'out'], stops },
      { directions: ['out', 'in'], stops },
    ]),
  ]) {
    run(async () => {
      const { raw, outer, tap, peer, server } = await nestedWithTap(version);
      const { 0: far, 1: endpoint } = await socketPair('unix');
      far.pause();
      endpoint.write(Buffer.alloc(8 * 1024 * 1024));
      server.resume();
      const splices = directions.map((direction) => server.spliceTo({ stream: endpoint, direction }).start());
      const closed = splices.map(closing);
      const errors = [];
      for (const splice of splices)
        splice.on('error', (err) => errors.push(err));
      const failed = once(server, 'error');
      const last = splices.find((splice, i) => directions[i] !== 'in');
      far.write(Buffer.alloc(32 * 1024 * 1024), () => {});
      await settled(() => last.stats.bytesOut);
      // All of it arrives in one piece: reading stops when the sink is full.
      const stop = () => splices[directions.indexOf('in')].stop();
      const failedBelow = once(outer.server, '_tlsError');
      if (stops === 'before') {
        const { _tlsError } = outer.server;
        outer.server._tlsError = function(err) {
          setImmediate(stop);
          return Reflect.apply(_tlsError, this, [err]);
        };
      }
      peer.write(Buffer.alloc(5_000));
      await turns(1);
      tap.send(tap.alert(kWarning, alerts.close_notify));
      failBelow({ raw });
      await failedBelow;
      await turns();
      if (stops !== 'before')
        assert.ok(splices.every(({ state }) => state === 'running'));
      if (stops === 'after')
        stop();
      if (stops === 'never')
        far.resume();
      const { 0: err } = await failed;
      const reasons = (await Promise.all(closed)).map(({ reason }) => reason);
      const reasonOfIn = stops === 'never' ? 'end' : 'stopped';
      assert.deepStrictEqual(
        reasons, directions.map((direction) => (direction === 'in' ? reasonOfIn : 'error')));
      assert.deepStrictEqual(errors, [err]);
      assert.match(err.code, /^(EPROTO|ERR_SSL_\w+)$/);
      for (const socket of [raw, far, endpoint])
        socket.destroy();
    });
  }
}

// The peer has ended, and 'in' waits for the TLSSocket that it is spliced to, which has yet to
// send what it got, when the outer TLS fails: that does not concern 'in'. A second handle, with
// 'out', fails, and the socket is destroyed with the error.
for (const version of kVersions) {
  for (const hasOut of [false, true]) {
    run(async () => {
      const { raw, outer, tap, peer, server } = await nestedWithTap(version);
      outer.client.resume();
      const sink = await tlsPair({ allowHalfOpen: true });
      sink.client.pause();
      sink.server.resume();
      const splice = server.spliceTo({ stream: sink.server, direction: 'in' }).start();
      const errors = [];
      splice.on('error', (err) => errors.push(err));
      const closed = closing(splice);
      let size = 0;
      while (sink.server._handle._parent.writeQueueSize === 0) {
        size += 64 * 1024;
        peer.write(Buffer.alloc(64 * 1024));
        await settled(() => splice.stats.bytesIn);
      }
      assert.strictEqual(splice.stats.bytesIn, size);
      const ended = once(server.resume(), 'end');
      tap.send(tap.alert(kWarning, alerts.close_notify));
      await ended;
      const { 0: far, 1: endpoint } = await socketPair('unix');
      let failed = once(outer.server, '_tlsError');
      if (hasOut) {
        const out = server.spliceTo({ stream: endpoint, direction: 'out' }).start();
        const check = watch(out);
        await turns();
        failed = once(server, 'error').then(({ 0: { code } }) => check(code));
      } else {
        server.on('error', common.mustNotCall());
      }
      failBelow({ raw });
      await failed;
      await turns();
      if (!hasOut) {
        assert.strictEqual(splice.state, 'running');
        let received = 0;
        sink.client.on('data', ({ length }) => { received += length; });
        await once(sink.client.resume(), 'end');
        assert.strictEqual(received, size);
        assert.strictEqual(server.destroyed, false);
      }
      assert.strictEqual((await closed).reason, hasOut ? 'destroyed' : 'end');
      assert.deepStrictEqual(errors, hasOut ? [server.errored] : []);
      for (const socket of [raw, server, far, endpoint, sink.client, sink.server])
        socket.destroy();
    });
  }
}

// What Node has written itself, as tickets, fails. The kernel tells that once: for
// whoever reads it is an end. What JavaScript writes then never calls back.
for (const direction of ['out', 'duplex']) {
  for (const wait of [0, 1, 2, 3]) {
    run(async () => {
      const { raw, client, server } = await nested('TLSv1.3', { handshake: false });
      const { 0: far, 1: endpoint } = await socketPair('unix');
      server.on('error', () => {});
      client.on('error', () => {});
      await once(server, 'secure');
      raw.resetAndDestroy();
      await turns(wait);
      if (!server.destroyed) {
        server.resume();
        server.write('x');
        const splice = server.spliceTo({ stream: endpoint, direction });
        splice.on('error', common.mustCall(({ code }) => assert.match(code, /^(ECONNRESET|EPIPE)$/)));
        const closed = closing(splice);
        splice.start();
        far.end('to be sent');
        assert.match((await closed).reason, /^(error|destroyed)$/);
      }
      far.destroy();
      endpoint.destroy();
    });
  }
}
