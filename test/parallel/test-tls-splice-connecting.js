'use strict';

// A net.Socket that is still connecting as the endpoint: the splice begins when it is
// connected, and fails if it cannot be.

const common = require('../common');
if (!common.hasCrypto)
  common.skip('missing crypto');

const assert = require('assert');
const { once } = require('events');
const net = require('net');
const tls = require('tls');
if (tls.TLSSplice === undefined)
  common.skip('built without TLSSplice');

const {
  MiB, cert, closing, key, receive, record, run, send, settled, socketPair, tlsOver, tlsPair,
  track, turns,
} = require('../common/tls-splice');

// A server of which `connect()` gives a socket that is still connecting, and `accepted` the
// other end of it.
async function backend(options) {
  const server = net.createServer({ allowHalfOpen: true });
  server.listen(0).unref();  // Nobody may come.
  await once(server, 'listening');
  const { port } = server.address();
  const accepted = once(server, 'connection').then(({ 0: socket }) => {
    track(socket);
    server.close();
    return socket;
  });
  const connect = () => {
    const socket = net.connect({ port, allowHalfOpen: true, ...options });
    track(socket);
    assert.strictEqual(socket.connecting, true);
    return socket;
  };
  return { connect, accepted };
}

// The look-up of the name takes until `go()` is called, which can have an error.
function slow() {
  const waiting = Promise.withResolvers();
  return {
    go: waiting.resolve,
    options: {
      host: 'backend.example',
      lookup: (name, options, callback) => waiting.promise.then((err) => {
        if (err)
          callback(err);
        else if (options.all)
          callback(null, [{ address: '127.0.0.1', family: 4 }]);
        else
          callback(null, '127.0.0.1', 4);
      }),
    },
  };
}

// Both ways, of a socket that is secure and of one that is not yet; what JavaScript has
// written to either before goes first.
for (const isSecure of [true, false]) {
  for (const hasWritten of [false, true]) {
    run(async () => {
      const { connect, accepted } = await backend();
      const pair = isSecure ? await tlsPair({ allowHalfOpen: true }) :
        tlsOver(...await socketPair(), { allowHalfOpen: true });
      const { client, server } = pair;
      const endpoint = connect();
      const done = server.pipeToNative(endpoint);
      const other = await accepted;
      assert.strictEqual(endpoint.listenerCount('error'), 1);
      const sending = [send(client, MiB), send(other, MiB, { seed: 2 })];
      if (hasWritten)
        assert.throws(() => endpoint.write('x'), { code: 'ERR_INVALID_STATE' });
      const received = [receive(other), receive(client)];
      await Promise.all(sending);
      (await received[0]).check(MiB);
      (await received[1]).check(MiB, 2);
      const stats = await done;
      assert.strictEqual(stats.bytesIn, MiB);
      assert.strictEqual(stats.bytesOut, MiB);
      assert.strictEqual(stats.reason, 'end');
      assert.strictEqual(endpoint.listenerCount('error'), 0);
    });
  }
}

for (const direction of ['in', 'out', 'duplex']) {
  // What was written before
  run(async () => {
    const { go, options } = slow();
    const { connect, accepted } = await backend(options);
    const { client, server } = await tlsPair({ allowHalfOpen: true });
    const endpoint = connect();
    const done = { endpoint: endpoint.write('first '), server: server.write('first ') };
    assert.deepStrictEqual(done, { endpoint: true, server: true });
    const splice = server.spliceTo({ stream: endpoint, direction }).start();
    const there = client.setEncoding('utf8').toArray();
    client.end('second');
    await turns();
    go();
    const other = await accepted;
    const back = other.setEncoding('utf8').toArray();
    other.end('second');
    if (direction === 'out')
      endpoint.end();
    if (direction === 'in')
      server.end();
    const stats = await splice.finished;
    assert.strictEqual(stats.bytesIn, direction === 'out' ? 0 : 6);
    assert.strictEqual(stats.bytesOut, direction === 'in' ? 0 : 6);
    assert.strictEqual((await back).join(''), direction === 'out' ? 'first ' : 'first second');
    assert.strictEqual((await there).join(''), direction === 'in' ? 'first ' : 'first second');
    endpoint.destroy();
  });

  // JavaScript has no part in it meanwhile, and what the peer sends is held up to the
  // highWaterMark.
  run(async () => {
    const { go, options } = slow();
    const { connect, accepted } = await backend(options);
    const { client, server } = await tlsPair({ allowHalfOpen: true });
    const endpoint = connect();
    if (direction !== 'out')
      server.on('data', common.mustNotCall());
    const splice = server.spliceTo({ stream: endpoint, direction, highWaterMark: 65536 }).start();
    const sending = send(client, 16 * MiB);
    await settled(() => server.bytesRead);
    assert.strictEqual(splice.state, 'running');
    assert.strictEqual(splice.stats.bytesIn, 0);
    assert(splice.stats.peakBufferedIn <= 65536);
    assert.strictEqual(splice.stats.stallsIn, direction === 'out' ? 0 : 1);
    if (direction !== 'in')
      assert.throws(() => server.write('x'), { code: 'ERR_INVALID_STATE' });
    go();
    const other = await accepted;
    other.end('back');
    client.resume();
    if (direction === 'out') {
      server.resume();
      await once(server, 'end');
    } else {
      (await receive(other)).check(16 * MiB);
    }
    await sending;
    await splice.finished;
    endpoint.destroy();
  });

  // The connection is refused. The socket is given back with every byte.
  run(async () => {
    const { go, options } = slow();
    const { connect } = await backend(options);
    const { client, server } = await tlsPair({ allowHalfOpen: true });
    const endpoint = connect();
    endpoint.on('error', common.mustCall());
    const splice = server.spliceTo({ stream: endpoint, direction }).start();
    const events = record(splice, ['error', 'close']);
    const closed = closing(splice);
    splice.on('error', () => {});
    client.end('all');
    await settled(() => server.bytesRead);
    const refused = Object.assign(new Error('refused'), { code: 'ECONNREFUSED' });
    go(refused);
    assert.strictEqual((await closed).reason, 'error');
    assert.deepStrictEqual(events, ['error', 'close']);
    assert.strictEqual(splice.errored, refused);
    assert.strictEqual(refused.side, 'endpoint');
    assert.strictEqual(server.destroyed, false);
    const rest = server.setEncoding('utf8').toArray();
    assert.strictEqual((await rest).join(''), 'all');
    server.end('answer');
    assert.strictEqual((await client.setEncoding('utf8').toArray()).join(''), 'answer');
  });

  // By pipeToNative(): nobody listens to 'error'.
  run(async () => {
    const server = net.createServer().listen(0);
    await once(server, 'listening');
    const { port } = server.address();
    server.close();
    await once(server, 'close');
    const { client, server: socket } = await tlsPair();
    client.on('error', () => {});
    const endpoint = net.connect({ port, host: '127.0.0.1' });
    await assert.rejects(socket.pipeToNative(endpoint, { direction }),
                         { code: 'ECONNREFUSED', syscall: 'connect', side: 'endpoint' });
    assert.strictEqual(socket.destroyed, true);
    assert.strictEqual(endpoint.destroyed, true);
  });

  // What ends it before the connection is made
  for (const [reason, end] of [
    ['stopped', ({ splice }) => splice.stop()],
    ['aborted', ({ controller }) => controller.abort()],
    ['destroyed', ({ server }) => server.destroy()],
    ['error', ({ endpoint }) => endpoint.destroy()],
  ]) {
    for (const autoClose of [false, true]) {
      run(async () => {
        const { go, options } = slow();
        const { connect, accepted } = await backend(options);
        const { client, server } = await tlsPair({ allowHalfOpen: true });
        client.on('error', () => {});
        const endpoint = connect();
        const controller = new AbortController();
        const { signal } = controller;
        const splice = server.spliceTo({ stream: endpoint, direction, autoClose, signal }).start();
        splice.on('error', common.mustCall((err) => {
          assert.strictEqual(err.code, 'ERR_STREAM_PREMATURE_CLOSE');
        }, reason === 'error' ? 1 : 0));
        const closed = closing(splice);
        client.write('given back');
        await settled(() => server.bytesRead);
        end({ splice, controller, server, endpoint });
        const stats = await closed;
        assert.strictEqual(stats.reason, reason);
        assert.strictEqual(stats.bytesIn, 0);
        assert.strictEqual(endpoint.destroyed, autoClose || reason === 'error');
        if (reason !== 'destroyed')
          assert.strictEqual(`${await once(server, 'data')}`, 'given back');
        go();
        if (endpoint.destroyed)
          return;
        // It is JavaScript's, and connects all the same.
        const other = await accepted;
        other.write('to JS');
        assert.strictEqual(`${await once(endpoint, 'data')}`, 'to JS');
        endpoint.write('from JS');
        assert.strictEqual(`${await once(other, 'data')}`, 'from JS');
      });
    }
  }
}

// An end of the peer is passed on when there is something to pass it to.
run(async () => {
  const { go, options } = slow();
  const { connect, accepted } = await backend(options);
  const { client, server } = await tlsPair({ allowHalfOpen: true });
  const splice = server.spliceTo({ stream: connect(), direction: 'in' }).start();
  client.end();
  await settled(() => server.bytesRead);
  assert.strictEqual(splice.state, 'running');
  go();
  const other = await accepted;
  other.resume();
  await once(other, 'end');
  assert.strictEqual((await splice.finished).reason, 'end');
});

// Without allowHalfOpen the socket closes itself when its peer has ended. The stream is ended
// when it is connected all the same, and what keeps it from being connected is reported.
for (const direction of ['in', 'out', 'duplex']) {
  for (const autoClose of [false, true]) {
    for (const refused of [undefined, Object.assign(new Error('refused'), { code: 'ECONNREFUSED' })]) {
      run(async () => {
        const { go, options } = slow();
        const { connect, accepted } = await backend(options);
        const { client, server } = await tlsPair();
        const endpoint = connect();
        const done = server.pipeToNative(endpoint, { direction, autoClose });
        if (direction === 'out')
          server.resume();
        const closed = closing(server);
        client.resume().end();
        await closed;
        await turns();
        assert.strictEqual(endpoint.connecting, true);
        go(refused);
        if (refused) {
          await assert.rejects(done, (err) => err === refused && err.side === 'endpoint');
          return;
        }
        const other = await accepted;
        if (direction !== 'out' || autoClose) {
          await once(other.resume(), 'end');
          other.end();
        }
        const stats = await done;
        assert.strictEqual(stats.reason, 'end');
        assert.strictEqual(stats.closeNotify, direction !== 'out');
        assert.strictEqual(endpoint.listenerCount('error'), 0);
        if (autoClose)
          return;
        // The stream is JavaScript's, as far as it has not been ended.
        assert.strictEqual(endpoint.writableEnded, direction !== 'out');
        if (direction === 'out') {
          endpoint.write('x');
          assert.strictEqual(`${await once(other, 'data')}`, 'x');
        }
        endpoint.destroy();
      });
    }
  }

  // stop() does not wait for the connection, nor does an abort.
  for (const reason of ['stopped', 'aborted']) {
    run(async () => {
      const { go, options } = slow();
      const { connect, accepted } = await backend(options);
      const { client, server } = await tlsPair();
      const endpoint = connect();
      const controller = new AbortController();
      const { signal } = controller;
      const splice = server.spliceTo({ stream: endpoint, direction, signal }).start();
      if (direction === 'out')
        server.resume();
      const closed = closing(server);
      client.resume().end();
      await closed;
      assert.strictEqual(splice.state, 'running');
      if (reason === 'stopped')
        splice.stop();
      else
        controller.abort();
      assert.strictEqual((await splice.finished).reason, reason);
      go();
      const other = await accepted;
      endpoint.write('from JS');
      assert.strictEqual(`${await once(other, 'data')}`, 'from JS');
      endpoint.destroy();
    });
  }
}

// end() of the socket meanwhile
run(async () => {
  const { go, options } = slow();
  const { connect, accepted } = await backend(options);
  const { client, server } = await tlsPair({ allowHalfOpen: true });
  const splice = server.spliceTo({ stream: connect() }).start();
  const ended = once(client.resume(), 'end');
  server.end();
  client.end('x');
  go();
  assert.strictEqual(`${await once(await accepted, 'data')}`, 'x');
  await ended;
  assert.strictEqual((await splice.finished).reason, 'end');
});

// It waits for no connection, since nothing has been read that would have to be sent.
for (const direction of ['out', 'duplex']) {
  run(async () => {
    const { go, options } = slow();
    const { connect, accepted } = await backend(options);
    const { client, server } = await tlsPair({ allowHalfOpen: true });
    const endpoint = connect();
    server.write('first ');
    const splice = server.spliceTo({ stream: endpoint, direction }).start();
    server.end();
    assert.strictEqual((await client.setEncoding('utf8').toArray()).join(''), 'first ');
    assert.strictEqual(endpoint.connecting, true);
    client.end('x');
    server.resume();
    go();
    const other = await accepted;
    other.write('unread');
    assert.strictEqual((await splice.finished).reason, 'end');
    assert.strictEqual(splice.stats.bytesIn, direction === 'duplex' ? 1 : 0);
    assert.strictEqual(splice.stats.bytesOut, 0);
    // JavaScript has what the endpoint yields.
    assert.strictEqual(`${await once(endpoint, 'data')}`, 'unread');
    endpoint.destroy();
  });
}

// The time that a connection may take passes whatever moves on the other side.
run(async () => {
  const { options } = slow();
  const { connect } = await backend(options);
  const { client, server } = await tlsPair();
  client.on('error', () => {});
  const endpoint = connect();
  const sending = setInterval(() => client.write('x'), 5);
  endpoint.setTimeout(100, () => endpoint.destroy(new Error('too late')));
  await assert.rejects(server.pipeToNative(endpoint), { message: 'too late', side: 'endpoint' });
  clearInterval(sending);
  assert(server.bytesRead > 0);
});

// A stream that cannot be spliced any more when it is connected. What the splice holds is given
// back, and its reader may answer to either socket.
for (const direction of ['in', 'duplex']) {
  run(async () => {
    const { go, options } = slow();
    const { connect, accepted } = await backend(options);
    const { client, server } = await tlsPair({ allowHalfOpen: true });
    const endpoint = connect();
    server.on('data', common.mustCall((chunk) => {
      assert.strictEqual(`${chunk}`, 'held');
      server.write('answer');
      endpoint.write('copy');
    }));
    const splice = server.spliceTo({ stream: endpoint, direction }).start();
    splice.on('error', () => {});
    const closed = closing(splice);
    client.write('held');
    await settled(() => server.bytesRead);
    endpoint.setEncoding('latin1');
    go();
    const other = await accepted;
    assert.strictEqual((await closed).reason, 'error');
    assert.strictEqual(splice.errored.code, 'ERR_INVALID_STATE');
    assert.strictEqual(splice.errored.side, 'endpoint');
    assert.strictEqual(`${await once(client, 'data')}`, 'answer');
    assert.strictEqual(`${await once(other, 'data')}`, 'copy');
    endpoint.destroy();
  });
}

// Of several addresses the first does not answer: the handle is another one then.
run(async () => {
  const { connect, accepted } = await backend({
    host: 'backend.example',
    autoSelectFamily: true,
    lookup: (name, options, callback) => callback(null, [
      { address: '127.0.0.2', family: 4 }, { address: '127.0.0.1', family: 4 },
    ]),
  });
  const { client, server } = await tlsPair({ allowHalfOpen: true });
  const endpoint = connect();
  const done = server.pipeToNative(endpoint);
  client.end('x');
  const other = await accepted;
  assert.strictEqual(`${await once(other, 'data')}`, 'x');
  other.end();
  client.resume();
  assert.strictEqual((await done).bytesIn, 1);
});

// The listeners of 'connect' find a socket that is spliced, and may do what they like.
for (const action of ['destroy', 'stop', 'throw', 'removeAllListeners']) {
  run(async () => {
    const { go, options } = slow();
    const { connect, accepted } = await backend(options);
    const { client, server } = await tlsPair({ allowHalfOpen: true });
    const endpoint = connect();
    const splice = server.spliceTo({ stream: endpoint }).start();
    splice.on('error', () => {});
    const closed = closing(splice);
    const error = new Error('on purpose');
    if (action === 'throw')
      process.once('uncaughtException', common.mustCall((err) => assert.strictEqual(err, error)));
    if (action === 'removeAllListeners') {
      endpoint.removeAllListeners();
    } else {
      endpoint.once('connect', common.mustCall(() => {
        assert.throws(() => endpoint.write('x'), { code: 'ERR_INVALID_STATE' });
        if (action === 'destroy')
          endpoint.destroy();
        else if (action === 'stop')
          splice.stop();
        else
          throw error;
      }));
    }
    client.write('x');
    go();
    const other = await accepted;
    if (action === 'throw' || action === 'removeAllListeners') {
      assert.strictEqual(`${await once(other, 'data')}`, 'x');
      splice.stop();
    }
    const expected = action === 'destroy' ? 'error' : 'stopped';
    assert.strictEqual((await closed).reason, expected);
  });
}

// A tls.TLSSocket that is connecting, both as the socket and as the endpoint
run(async () => {
  const listener = tls.createServer({ key, cert, allowHalfOpen: true }).listen(0);
  await once(listener, 'listening');
  const accepted = once(listener, 'secureConnection');
  const { port } = listener.address();
  const { client, server } = await tlsPair({ allowHalfOpen: true });
  const endpoint = tls.connect({ port, rejectUnauthorized: false, allowHalfOpen: true });
  track(endpoint);
  const done = server.pipeToNative(endpoint);
  client.end('x');
  const { 0: other } = await accepted;
  assert.strictEqual(`${await once(other, 'data')}`, 'x');
  other.end('y');
  assert.strictEqual((await client.setEncoding('utf8').toArray()).join(''), 'y');
  assert.strictEqual((await done).reason, 'end');
  listener.close();
});

run(async () => {
  const refused = Object.assign(new Error('refused'), { code: 'ECONNREFUSED' });
  const { client, server } = await tlsPair();
  client.on('error', () => {});
  const endpoint = tls.connect({
    port: 1, host: 'backend.example', lookup: (name, options, callback) => callback(refused),
  });
  track(endpoint);
  await assert.rejects(server.pipeToNative(endpoint), (err) => {
    assert.strictEqual(err, refused);
    assert.strictEqual(err.side, 'endpoint');
    return true;
  });
  assert.strictEqual(server.destroyed, true);
});

run(async () => {
  const listener = tls.createServer({ key, cert, allowHalfOpen: true }).listen(0);
  await once(listener, 'listening');
  const accepted = once(listener, 'secureConnection');
  const { connect, accepted: acceptedEndpoint } = await backend();
  const socket = tls.connect({
    port: listener.address().port, rejectUnauthorized: false, allowHalfOpen: true,
  });
  track(socket);
  const done = socket.pipeToNative(connect());
  const { 0: peer } = await accepted;
  peer.end('x');
  const other = await acceptedEndpoint;
  assert.strictEqual(`${await once(other, 'data')}`, 'x');
  other.end();
  peer.resume();
  assert.strictEqual((await done).bytesIn, 1);
  listener.close();
});

// The peer ends, with default sockets on both sides, before a TLS endpoint is connected, which
// then cannot be.
run(async () => {
  const { client, server } = await tlsPair();
  client.on('error', () => {});
  const { 0: under, 1: other } = await socketPair();
  const endpoint = tls.connect({ socket: under, rejectUnauthorized: false });
  track(endpoint);
  const done = server.pipeToNative(endpoint);
  client.resume().end();
  await once(client, 'end');
  await turns();
  other.resetAndDestroy();
  await assert.rejects(done, { code: 'ECONNRESET', side: 'endpoint' });
});

// An end of the socket, even during the handshake, does not wait for a stream to connect.
run(async () => {
  const listener = tls.createServer({ key, cert, allowHalfOpen: true }).listen(0);
  await once(listener, 'listening');
  const accepted = once(listener, 'secureConnection');
  const socket = tls.connect({
    port: listener.address().port, rejectUnauthorized: false, allowHalfOpen: true,
  });
  track(socket);
  const { go, options } = slow();
  const { connect, accepted: acceptedEndpoint } = await backend(options);
  const done = socket.pipeToNative(connect());
  socket.end();
  const { 0: peer } = await accepted;
  track(peer);
  listener.close();
  await once(peer.resume(), 'end');
  go();
  const other = await acceptedEndpoint;
  peer.end('x');
  assert.strictEqual(`${await once(other, 'data')}`, 'x');
  other.end();
  assert.strictEqual((await done).bytesIn, 1);
});

// A stream that the splice destroys when it is connected does not emit 'connect'.
run(async () => {
  const { client, server } = await tlsPair();
  client.on('error', () => {});
  const { connect } = await backend();
  const stream = connect();
  const events = record(stream, ['connect', 'ready', 'close']);
  const done = server.pipeToNative(stream, { autoClose: true });
  stream.end();
  await assert.rejects(done, { code: 'ERR_INVALID_STATE' });
  assert.deepStrictEqual(events, ['close']);
});
