'use strict';

// pipeToNative() follows stream.pipeline(): whatever keeps it from running to the end
// rejects the promise and destroys the socket, and nobody has to listen to 'error'.

const common = require('../common');
if (!common.hasCrypto)
  common.skip('missing crypto');
if (common.isWindows)
  common.skip('no FIFOs on Windows');

const assert = require('assert');
const { subscribe, unsubscribe } = require('diagnostics_channel');
const { getEventListeners, once } = require('events');
const fs = require('fs');
const tls = require('tls');
if (tls.TLSSplice === undefined)
  common.skip('built without TLSSplice');

const {
  MiB, fifo, run, send, settled, socketPair, tlsOver, tlsPair, turns,
} = require('../common/tls-splice');

const badRecord = Buffer.from('ff030300050000000000', 'hex');

const endpoints = {
  async stream() {
    const { 0: endpoint, 1: other } = await socketPair('unix');
    return { target: endpoint, endpoint, other };
  },
  async tls() {
    const { client: other, server: endpoint } = await tlsPair({ allowHalfOpen: true });
    return { target: endpoint, endpoint, other };
  },
  async fd() {
    const { 0: other, 1: owner } = await socketPair('unix', { pauseOnConnect: true });
    return { target: owner._handle.fd, other };
  },
};

// The listeners of both sockets, by the names of their events.
function listeners(...sockets) {
  return sockets.map((socket) => socket && Object.fromEntries(
    socket.eventNames().map((name) => [String(name), socket.listenerCount(name)])));
}

// Not once(), which listens to 'error'.
function hasClosed(socket) {
  return new Promise((resolve) => socket.once('close', resolve));
}

// An end of both sides leaves no listeners behind.
for (const open of Object.values(endpoints)) {
  run(async () => {
    const { client, server } = await tlsPair({ allowHalfOpen: true });
    const { target, endpoint, other } = await open();
    const { signal } = new AbortController();
    const before = listeners(server, endpoint);
    const done = server.pipeToNative(target, { signal });
    client.resume().end('there');
    other.resume().end('back');
    const stats = await done;
    assert.strictEqual(stats.reason, 'end');
    assert.strictEqual(stats.bytesIn, 5);
    assert.strictEqual(stats.bytesOut, 4);
    assert.deepStrictEqual(listeners(server, endpoint), before);
    assert.strictEqual(getEventListeners(signal, 'abort').length, 0);
  });
}

// An abort, at any time, whatever the peer and the endpoint do: here neither of them reads.
const reason = new Error('the reason');
for (const { 0: kind, 1: open } of Object.entries(endpoints)) {
  for (const when of ['before', 'at once', 'later']) {
    for (const autoClose of [false, true]) {
      if (kind === 'fd' && autoClose)
        continue;
      run(async () => {
        const { client, server } = await tlsPair({ allowHalfOpen: true });
        client.on('error', () => {});
        const { target, endpoint, other } = await open();
        other.on('error', () => {});
        const controller = new AbortController();
        const { signal } = controller;
        const before = listeners(server, endpoint);
        const closed = hasClosed(server);
        const errors = [];
        // As stream.pipeline() does, the socket tells why it is destroyed.
        server.on('error', (err) => errors.push(err));
        server.on('data', common.mustNotCall());
        server.pause();
        other.pause();
        client.pause();
        if (when === 'before')
          controller.abort(reason);
        const done = server.pipeToNative(target, { autoClose, signal });
        if (when === 'later') {
          send(client, 16 * MiB).catch(() => {});
          send(other, 16 * MiB).catch(() => {});
          await settled(() => server.bytesRead + server.bytesWritten);
        }
        if (when !== 'before') {
          controller.abort(reason);
          assert.strictEqual(server.destroyed, true);
        }
        await assert.rejects(done, (err) => {
          assert.deepStrictEqual(errors, [err]);
          assert.strictEqual(server.errored, err);
          assert.strictEqual(err.name, 'AbortError');
          assert.strictEqual(err.code, 'ABORT_ERR');
          assert.strictEqual(err.cause, reason);
          assert.strictEqual(err.stats.reason, 'aborted');
          assert.strictEqual(err.stats.bytesIn > 0, when === 'later');
          return true;
        });
        assert.strictEqual(server.destroyed, true);
        server.removeAllListeners('data');
        assert.strictEqual(getEventListeners(signal, 'abort').length, 0);
        if (endpoint) {
          assert.strictEqual(endpoint.listenerCount('error'), before[1].error ?? 0);
          assert.strictEqual(endpoint.destroyed, autoClose);
        }
        await closed;
        assert.strictEqual(server.listenerCount('error'), (before[0].error ?? 0) + 1);
      });
    }
  }
}

// The reason of a signal is the one that it has by itself, too.
run(async () => {
  const { server } = await tlsPair();
  const { 0: endpoint } = await socketPair();
  await assert.rejects(
    server.pipeToNative(endpoint, { signal: AbortSignal.timeout(1) }),
    ({ name, cause }) => name === 'AbortError' && cause.name === 'TimeoutError');
});

// With autoClose, an abort cuts short what comes after the end of both sides, which stays
// an end.
run(async () => {
  const { client, server } = await tlsPair({ allowHalfOpen: true });
  const { 0: endpoint, 1: other } = await socketPair();
  const controller = new AbortController();
  other.pause();
  endpoint.write(Buffer.alloc(16 * MiB));
  const done = server.pipeToNative(endpoint, {
    direction: 'out', autoClose: true, signal: controller.signal,
  });
  other.end('x');
  client.resume();
  await once(client, 'end');
  await settled(() => endpoint.writableLength);
  controller.abort();
  assert.strictEqual((await done).reason, 'end');
  assert.strictEqual(server.destroyed, false);
  assert.strictEqual(endpoint.destroyed, true);
});

// What destroys the socket in the middle. Nobody listens to 'error', which is emitted all
// the same.
const mine = new Error('mine');
const failures = {
  'destroy()': {
    fail: ({ server }) => server.destroy(),
    error: { code: 'ERR_STREAM_PREMATURE_CLOSE', side: 'tls' },
  },
  'destroy(error)': {
    fail: ({ server }) => server.destroy(mine),
    error: mine,
  },
  'a bad record': {
    fail: ({ raw }) => raw.write(badRecord),
    error: { code: /^ERR_SSL_/, side: 'tls' },
  },
  'a reset': {
    fail: ({ raw }) => raw.resetAndDestroy(),
    error: { code: 'ECONNRESET', side: 'tls' },
  },
  'the endpoint': {
    fail: ({ endpoint }) => endpoint.destroy(mine),
    error: { message: 'mine', side: 'endpoint' },
  },
  'the endpoint without an error': {
    fail: ({ endpoint }) => endpoint.destroy(),
    error: { code: 'ERR_STREAM_PREMATURE_CLOSE', side: 'endpoint' },
  },
};
for (const connect of [endpoints.stream, endpoints.tls]) {
  for (const { 0: name, 1: { fail, error } } of Object.entries(failures)) {
    run(async () => {
      const { client, server, raw } = await tlsPair({ raw: true, allowHalfOpen: true });
      const { endpoint, other } = await connect();
      for (const socket of [client, raw, other])
        socket.on('error', () => {});
      // A tls.Server listens to its sockets.
      for (const socket of [server, endpoint])
        socket.removeAllListeners('error');
      const closed = hasClosed(server);
      const done = server.pipeToNative(endpoint);
      client.write('x');
      await settled(() => server.bytesRead);
      fail({ server, endpoint, raw });
      const err = await done.catch((err) => err);
      await assert.rejects(Promise.reject(err), error);
      assert.strictEqual(server.destroyed, true);
      // With an error of TLS the socket is destroyed after it has emitted that.
      const isToldBefore = name === 'a bad record';
      assert.strictEqual(server.errored, name === 'destroy()' || isToldBefore ? null : err);
      await closed;
      assert.strictEqual(server.listenerCount('error'), 0);
      assert.strictEqual(endpoint.listenerCount('error'), 0);
    });
  }
}

// An error that JavaScript's own reading or writing of the endpoint comes upon.
for (const direction of ['in', 'out']) {
  run(async () => {
    const { client, server } = await tlsPair({ allowHalfOpen: true });
    client.on('error', () => {});
    const { 0: endpoint, 1: other } = await socketPair();
    const done = server.pipeToNative(endpoint, { direction });
    if (direction === 'in') {
      endpoint.resume();
      other.resetAndDestroy();
    } else {
      // The splice has no room for what it reads, so that it does not see the reset itself.
      client.pause();
      server.pause();
      send(other, 64 * MiB).catch(() => {});
      await settled(() => server.bytesWritten);
      other.resetAndDestroy();
      endpoint.write('x');
    }
    await assert.rejects(done, (err) => {
      assert.strictEqual(err, endpoint.errored);
      assert.match(err.code, /^(ECONNRESET|EPIPE)$/);
      assert.strictEqual(err.side, 'endpoint');
      return true;
    });
    assert.strictEqual(endpoint.listenerCount('error'), 0);
  });
}

// A _destroy() of the user's that takes its time: the socket emits 'error' when nobody waits
// for the promise any more.
for (const fail of [({ server }) => server.destroy(mine), ({ endpoint }) => endpoint.destroy()]) {
  run(async () => {
    const { client, server } = await tlsPair({ allowHalfOpen: true });
    client.on('error', () => {});
    server.removeAllListeners('error');
    const { endpoint, other } = await endpoints.stream();
    const { _destroy } = server;
    let callBack;
    const hasBegun = new Promise((resolve) => {
      server._destroy = function(err, callback) {
        callBack = () => callback(err);
        _destroy.call(this, err, resolve);
      };
    });
    const done = server.pipeToNative(endpoint);
    fail({ server, endpoint });
    const err = await done.catch((err) => err);
    await hasBegun;
    assert.strictEqual(server.errored, err);
    const told = new Promise((resolve) => {
      const { emit } = server;
      server.emit = function(event, ...args) {
        if (event === 'error')
          resolve(args[0]);
        return emit.call(this, event, ...args);
      };
    });
    callBack();
    assert.strictEqual(await told, err);
    other.destroy();
  });
}

// An error of the endpoint comes out of the socket as well, with every byte before it.
run(async () => {
  const { client, server } = await tlsPair({ allowHalfOpen: true });
  client.on('error', () => {});
  const { endpoint, other } = await endpoints.stream();
  const events = [];
  for (const event of ['error', 'close'])
    server.on(event, (arg) => events.push([event, arg]));
  const done = server.pipeToNative(endpoint);
  client.write('x');
  await settled(() => server.bytesRead);
  endpoint.destroy();
  await assert.rejects(done, (err) => {
    assert.strictEqual(err.code, 'ERR_STREAM_PREMATURE_CLOSE');
    assert.deepStrictEqual(events, [['error', err]]);
    return true;
  });
  await once(server, 'close');
  assert.deepStrictEqual(events.slice(1), [['close', true]]);
  other.destroy();
});

// Who has got the splice from a diagnostics channel can stop it: both sides have not ended.
run(async () => {
  const { client, server } = await tlsPair({ allowHalfOpen: true });
  client.on('error', () => {});
  const { endpoint } = await endpoints.stream();
  let splice;
  const onStart = ({ handle }) => { splice = handle; };
  subscribe('tls.splice.start', onStart);
  const done = server.pipeToNative(endpoint);
  unsubscribe('tls.splice.start', onStart);
  assert.strictEqual((await splice.stop()).reason, 'stopped');
  await assert.rejects(done, { code: 'ERR_STREAM_PREMATURE_CLOSE' });
  assert.strictEqual(server.destroyed, true);
  assert.strictEqual(endpoint.destroyed, false);
});

// A listener of the user is called as ever.
run(async () => {
  const { client, server } = await tlsPair();
  client.on('error', () => {});
  const { 0: endpoint } = await socketPair();
  server.on('error', common.mustCall((err) => assert.strictEqual(err, mine)));
  const done = server.pipeToNative(endpoint);
  server.destroy(mine);
  await assert.rejects(done, mine);
});

// In the handshake: nobody is told but the promise.
run(async () => {
  const { 0: endpoint } = await socketPair();
  const { 0: a, 1: b } = await socketPair();
  const { client, server } = tlsOver(a, b, {
    client: { maxVersion: 'TLSv1.2' }, server: { minVersion: 'TLSv1.3' },
  });
  server.on('error', () => {});
  await assert.rejects(client.pipeToNative(endpoint), { code: /^ERR_SSL_/, side: 'tls' });
  assert.strictEqual(client.destroyed, true);
});

// The two directions by a promise each
run(async () => {
  const { client, server } = await tlsPair({ allowHalfOpen: true });
  client.on('error', () => {});
  const { reader, writer } = fifo();
  const { reader: source, writer: other } = fifo();
  server.removeAllListeners('error');
  const done = [
    server.pipeToNative(writer, { direction: 'in' }),
    server.pipeToNative(source, { direction: 'out' }),
  ];
  assert.strictEqual(server.listenerCount('error'), 2);
  const closed = hasClosed(server);
  server.destroy(mine);
  for (const each of done)
    await assert.rejects(each, mine);
  await closed;
  assert.strictEqual(server.listenerCount('error'), 0);
  for (const fd of [reader, writer, source, other])
    fs.closeSync(fd);
});

// A socket that was destroyed in the same tick has yet to emit its error, which the promise
// has.
for (const victim of ['endpoint', 'server']) {
  for (const autoClose of [false, true]) {
    run(async () => {
      const { client, server } = await tlsPair();
      client.on('error', () => {});
      const { endpoint } = await endpoints.stream();
      const failure = new Error('failure');
      ({ endpoint, server })[victim].destroy(failure);
      await assert.rejects(server.pipeToNative(endpoint, { autoClose }), (err) => {
        assert.strictEqual(err, failure);
        assert.strictEqual(err.side, victim === 'server' ? 'tls' : 'endpoint');
        return true;
      });
      assert.strictEqual(endpoint.destroyed, autoClose || victim === 'endpoint');
    });
  }
}

// Who listens to the addition and the removal of listeners may throw.
run(async () => {
  const { client, server } = await tlsPair({ allowHalfOpen: true });
  const { endpoint, other } = await endpoints.stream();
  const errors = [];
  const onError = (err) => errors.push(err);
  process.on('uncaughtException', onError);
  const fail = (name) => {
    if (name === 'error')
      throw mine;
  };
  const before = server.listenerCount('error');
  endpoint.on('newListener', fail);
  server.on('removeListener', fail);
  const done = server.pipeToNative(endpoint);
  client.resume().end('there');
  other.resume().end('back');
  assert.strictEqual((await done).reason, 'end');
  await turns();
  process.removeListener('uncaughtException', onError);
  assert(errors.length >= 2);
  assert(errors.every((err) => err === mine));
  assert.strictEqual(server.listenerCount('error'), before);
});
