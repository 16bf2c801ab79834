'use strict';

// start() before the handshake is done takes effect after Node's own checks. A
// handshake that fails is an 'error', and the endpoint gets nothing.

const common = require('../common');
if (!common.hasCrypto)
  common.skip('missing crypto');

const assert = require('assert');
const { SSL_OP_NO_TICKET } = require('crypto').constants;
const { once } = require('events');
const net = require('net');
const tls = require('tls');
if (tls.TLSSplice === undefined)
  common.skip('built without TLSSplice');

const {
  MiB, cert, closing, key, receive, record, run, send, socketPair, tlsOver, tlsPair, turns,
} = require('../common/tls-splice');

const kSize = 1 * MiB + 3;

// Client and server both start before there is TLS.
for (const version of ['TLSv1.2', 'TLSv1.3']) {
  run(async () => {
    const { 0: clientEnd, 1: clientOther } = await socketPair();
    const { 0: serverEnd, 1: serverOther } = await socketPair();
    const { 0: a, 1: b } = await socketPair();
    const { client, server } = tlsOver(a, b, {
      minVersion: version, maxVersion: version, allowHalfOpen: true,
    });
    assert(client.secureConnecting);
    assert(server.secureConnecting);
    const splices = [
      client.spliceTo({ stream: clientEnd }), server.spliceTo({ stream: serverEnd }),
    ];
    const received = Promise.all([receive(clientOther), receive(serverOther)]);
    for (const splice of splices) {
      splice.start();
      assert.strictEqual(splice.state, 'running');
      assert.strictEqual(splice.stats.bytesIn, 0);
    }
    await Promise.all([
      send(clientOther, kSize, { seed: 1 }), send(serverOther, kSize, { seed: 2 }),
    ]);
    const { 0: atClient, 1: atServer } = await received;
    atClient.check(kSize, 2);
    atServer.check(kSize, 1);
    for (const splice of splices) {
      const stats = await splice.finished;
      assert.strictEqual(stats.bytesIn, kSize);
      assert.strictEqual(stats.bytesOut, kSize);
      assert.strictEqual(stats.reason, 'end');
    }
  });
}

// What is written before the handshake goes first.
run(async () => {
  const { 0: endpoint, 1: other } = await socketPair();
  const { 0: a, 1: b } = await socketPair();
  const { client, server } = tlsOver(a, b, { allowHalfOpen: true });
  client.write('first ');
  client.spliceTo({ stream: endpoint, direction: 'out' }).start();
  assert.throws(() => client.write('no'), { code: 'ERR_INVALID_STATE' });
  other.end('second');
  assert.strictEqual((await server.setEncoding('utf8').toArray()).join(''), 'first second');
});

// A certificate that is not accepted
run(async () => {
  const server = tls.createServer({ key, cert }, (socket) => {
    // With TLS 1.3 the server is done before the client has looked at it.
    socket.on('error', () => {});
    socket.end('not for the endpoint');
  });
  server.listen(0);
  await once(server, 'listening');
  const { 0: endpoint, 1: other } = await socketPair();
  const socket = tls.connect({ port: server.address().port });
  other.on('data', common.mustNotCall());
  other.write('not for the peer');
  const splice = socket.spliceTo({ stream: endpoint }).start();
  const events = record(splice, ['error', 'close']);
  const { 0: { 0: socketError }, 1: { 0: error } } = await Promise.all([
    once(socket, 'error'), once(splice, 'error'),
  ]);
  assert.strictEqual(socketError.code, 'UNABLE_TO_VERIFY_LEAF_SIGNATURE');
  assert.strictEqual(error, socketError);
  await assert.rejects(splice.finished, error);
  assert.deepStrictEqual(events, ['error', 'close']);
  assert.strictEqual(splice.stats.bytesIn, 0);
  assert.strictEqual(splice.stats.bytesOut, 0);
  assert.strictEqual(splice.stats.reason, 'error');
  assert.strictEqual(endpoint.destroyed, false);
  server.close();
  endpoint.end();
  await once(other.resume(), 'end');
});

// A listener of 'secureConnect' or 'secureConnection' that says no
run(async () => {
  const { 0: endpoint, 1: other } = await socketPair();
  const { 0: a, 1: b } = await socketPair();
  const { client, server } = tlsOver(a, b);
  other.on('data', common.mustNotCall());
  other.write('not for the peer');
  server.on('data', common.mustNotCall());
  server.write('not for the endpoint');
  server.on('error', () => {});
  const splice = client.spliceTo({ stream: endpoint }).start();
  client.on('secureConnect', common.mustCall(() => client.destroy()));
  const stats = await splice.finished;
  assert.strictEqual(stats.reason, 'destroyed');
  assert.strictEqual(stats.bytesIn, 0);
  assert.strictEqual(stats.bytesOut, 0);
});

// A peer that does not speak TLS, and one that hangs up
for (const answer of ['this is not TLS, and is not going to be', '']) {
  run(async () => {
    const peer = net.createServer((socket) => socket.end(answer));
    peer.listen(0);
    await once(peer, 'listening');
    const { 0: endpoint, 1: other } = await socketPair();
    const socket = tls.connect({ port: peer.address().port, rejectUnauthorized: false });
    other.on('data', common.mustNotCall());
    other.write('not for the peer');
    const done = socket.pipeToNative(endpoint);
    socket.on('error', common.mustCall());
    await assert.rejects(done, {
      code: answer ? /^ERR_SSL_/ : 'ECONNRESET',
    });
    assert.strictEqual(socket.destroyed, true);
    assert.strictEqual(endpoint.destroyed, false);
    peer.close();
  });
}

// stop() before there is TLS
run(async () => {
  const { 0: endpoint, 1: other } = await socketPair();
  const { 0: a, 1: b } = await socketPair();
  const { client, server } = tlsOver(a, b);
  const splice = client.spliceTo({ stream: endpoint }).start();
  const stats = await splice.stop();
  assert.strictEqual(stats.reason, 'stopped');
  other.write('for JS');
  server.end('for JS');
  server.resume();
  assert.strictEqual((await client.setEncoding('utf8').toArray()).join(''), 'for JS');
  endpoint.setEncoding('utf8').on('data', common.mustCall((data) => {
    assert.strictEqual(data, 'for JS');
  }));
});

// What start() would have thrown for
for (const { change, code } of [
  { change: ({ endpoint }) => endpoint.end(), code: 'ERR_INVALID_STATE' },
  { change: ({ endpoint }) => endpoint.setEncoding('utf8'), code: 'ERR_INVALID_STATE' },
  { change: ({ client }) => client.setEncoding('utf8'), code: 'ERR_INVALID_STATE' },
  { change: ({ endpoint }) => endpoint.destroy(), code: 'ERR_STREAM_PREMATURE_CLOSE' },
]) {
  run(async () => {
    const { 0: endpoint, 1: other } = await socketPair();
    const { 0: a, 1: b } = await socketPair();
    const { client, server } = tlsOver(a, b);
    const splice = client.spliceTo({ stream: endpoint }).start();
    change({ client, endpoint });
    await assert.rejects(splice.finished, { code });
    assert.strictEqual(splice.stats.bytesIn, 0);
    server.end('for JS');
    server.resume();
    assert.strictEqual((await client.setEncoding('utf8').toArray()).join(''), 'for JS');
    endpoint.destroy();
    other.destroy();
  });
}

// Right after it: in the listeners that Node itself calls, with what the peer
// has sent along already there.
for (const version of ['TLSv1.2', 'TLSv1.3']) {
  for (const event of ['secure', 'secureConnect', 'secureConnection']) {
    run(async () => {
      const listener = tls.createServer({
        key, cert, minVersion: version, maxVersion: version, allowHalfOpen: true,
      }).listen(0);
      await once(listener, 'listening');
      const accepted = once(listener, 'secureConnection');
      const { 0: endpoint, 1: other } = await socketPair();
      const client = tls.connect({
        port: listener.address().port, rejectUnauthorized: false, allowHalfOpen: true,
      });
      const received = receive(other);
      const done = Promise.withResolvers();
      const start = common.mustCall((socket) => {
        socket.on('data', common.mustNotCall());
        done.resolve(socket.pipeToNative(endpoint));
      });
      if (event === 'secureConnection') {
        listener.on(event, start);
        await Promise.all([send(client, kSize), accepted]);
        client.resume();
      } else {
        client.on(event, () => start(client));
        const { 0: server } = await accepted;
        await send(server, kSize);
        server.resume();
      }
      other.end();
      (await received).check(kSize);
      const stats = await done.promise;
      assert.strictEqual(stats.bytesIn, kSize);
      assert.strictEqual(stats.reason, 'end');
      listener.close();
    });
  }
}

// The TLS connection ends both ways before there is one, whoever is first: by end()
// of JavaScript, or by the FIN of the peer. That is no end of a transfer. Which of
// the two TLSSockets it is says the side, and the other one goes on.
for (const version of ['TLSv1.2', 'TLSv1.3']) {
  for (const isServer of [true, false]) {
    for (const isEndpoint of [false, true]) {
      for (const direction of ['in', 'out', 'duplex']) {
        for (const allowHalfOpen of [true, false]) {
          for (const order of ['end, FIN', 'FIN, end', 'FIN']) {
            for (const by of ['handle', 'pipeToNative']) {
              for (const isWritten of [false, true]) {
                const name = `${version}, ${isServer}, ${isEndpoint}, ${direction}, ${allowHalfOpen}, ${order}, ` +
                             `${by}, ${isWritten}`;
                run(() => cutOff({
                  version, isServer, isEndpoint, direction, allowHalfOpen, order, by, isWritten, name,
                }));
              }
            }
          }
        }
      }
    }
  }
}

async function cutOff({ version, isServer, isEndpoint, direction, allowHalfOpen, order, by, isWritten, name }) {
  const { 0: raw, 1: below } = await socketPair();
  raw.on('error', () => {});
  const bare = new tls.TLSSocket(below, {
    isServer, minVersion: version, maxVersion: version,
    secureContext: tls.createSecureContext({ key, cert, minVersion: version, maxVersion: version }),
  });
  bare.allowHalfOpen = allowHalfOpen;
  // A client says something first.
  if (!isServer)
    bare._start();
  // What is written before the handshake waits for it, and so does the end behind it. Without a
  // splice such a socket is open for ever.
  if (isWritten)
    bare.write('never sent');
  let other;
  let stream;
  let socket = bare;
  if (isEndpoint) {
    ({ server: socket } = await tlsPair({ allowHalfOpen: true }));
    stream = other = bare;
    other = socket;
  } else {
    ({ 0: stream } = await socketPair());
    other = stream;
  }
  other.on('error', common.mustNotCall());
  const closed = closing(bare);
  let failed;
  let splice;
  if (by === 'handle') {
    splice = socket.spliceTo({ stream, direction });
    const events = record(splice, ['error', 'close']);
    failed = new Promise((resolve) => splice.on('error', resolve));
    failed = Promise.all([failed, closing(splice)]).then(({ 0: err, 1: { reason } }) => {
      assert.strictEqual(reason, 'error', name);
      assert.deepStrictEqual(events, ['error', 'close'], name);
      assert.strictEqual(splice.errored, err, name);
      return err;
    });
    splice.start();
  } else {
    // It destroys the socket with its error.
    if (isEndpoint)
      socket.removeAllListeners('error').on('error', () => {});
    else
      socket.on('error', () => {});
    failed = socket.pipeToNative(stream, { direction }).then(common.mustNotCall(), (err) => err);
  }
  bare.resume();
  const ended = once(bare, 'end');
  let called = Promise.resolve();
  const end = () => called = new Promise((resolve) => bare.end(resolve));
  if (order === 'end, FIN') {
    end();
    await turns();
    raw.resume().end();
  } else {
    raw.resume().end();
    await ended;
    if (order === 'FIN, end')
      end();
  }
  const err = await failed;
  assert.strictEqual(err.code, 'ECONNRESET', name);
  assert.strictEqual(err.message, 'socket hang up', name);
  assert.strictEqual(err.side, isEndpoint ? 'endpoint' : 'tls', name);
  await Promise.all([closed, called]);
  if (by === 'handle')
    assert.strictEqual(other.destroyed, false, name);
}

// The peer ends during the handshake, and nobody listens to the socket any more; or the socket is
// at its end when the splice is started.
for (const isEnded of [false, true]) {
  run(async () => {
    const { 0: raw, 1: below } = await socketPair();
    const { 0: stream } = await socketPair();
    const socket = tls.connect({ socket: below, rejectUnauthorized: false, allowHalfOpen: true });
    const splice = socket.spliceTo({ stream });
    const failed = once(splice, 'error');
    if (isEnded) {
      const ended = new Promise((resolve) => socket.removeAllListeners().on('end', resolve));
      raw.resume().end();
      await ended;
      assert.strictEqual(socket.destroyed, false);
      splice.start();
    } else {
      splice.start();
      socket.removeAllListeners();
      raw.resume().end();
    }
    // Without a listener the error of the socket would end the process.
    socket.on('error', () => {});
    const { 0: err } = await failed;
    assert.strictEqual(err.code, 'ECONNRESET');
    assert.strictEqual(err.message, 'socket hang up');
    assert.strictEqual(socket.destroyed, true);
    assert.strictEqual(stream.destroyed, false);
  });
}

// The peer has sent its part of the handshake, and ends, while a 'newSession' listener holds the
// handshake. The handshake can be done, and so the peer gets what the splice has for it.
run(async () => {
  const version = 'TLSv1.2';
  const { 0: endpoint, 1: other } = await socketPair();
  const { 0: raw, 1: accepted } = await socketPair();
  const options = { key, cert, minVersion: version, maxVersion: version, secureOptions: SSL_OP_NO_TICKET };
  const server = tls.createServer(options);
  server.on('newSession', common.mustCall(async (id, session, done) => {
    raw.end();
    await once(socket, 'end');
    // The splice has heard of the end, too.
    await turns();
    assert.strictEqual(splice.state, 'running');
    done();
  }));
  const socket = new tls.TLSSocket(accepted, {
    isServer: true, server, secureContext: tls.createSecureContext(options),
  });
  socket.allowHalfOpen = true;
  const splice = socket.spliceTo({ stream: endpoint, direction: 'out' }).start();
  other.end('for the peer');
  const client = tls.connect({
    socket: raw, rejectUnauthorized: false, allowHalfOpen: true, maxVersion: version,
  });
  assert.strictEqual((await client.setEncoding('utf8').toArray()).join(''), 'for the peer');
  assert.strictEqual((await splice.finished).reason, 'end');
});
