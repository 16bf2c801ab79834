'use strict';

// What a splice must not be talked into: aborting the process, losing bytes,
// closing a file that is not its own, or sending in the clear what was
// encrypted.

const common = require('../common');
if (!common.hasCrypto)
  common.skip('missing crypto');

const assert = require('assert');
const fs = require('fs');
const net = require('net');
const tls = require('tls');
const { once } = require('events');
if (tls.TLSSplice === undefined)
  common.skip('built without TLSSplice');

const {
  cert, closing, isOpen, key, receive, run, send, socketPair, tlsPair,
} = require('../common/tls-splice');
const { recordPair } = require('../common/tls-records');

// Only spliceTo() makes one
assert.throws(() => new tls.TLSSplice(), { code: 'ERR_ILLEGAL_CONSTRUCTOR' });
assert.throws(() => new tls.TLSSplice(Symbol('kCreate'), {}, {}, {}),
              { code: 'ERR_ILLEGAL_CONSTRUCTOR' });

// The endpoint decodes, and has decoded, what it reads.
run(async () => {
  const { server } = await tlsPair();
  const { 0: endpoint, 1: other } = await socketPair();
  endpoint.setEncoding('utf8');
  other.write('text');
  await once(endpoint, 'readable');
  assert.throws(() => server.spliceTo({ stream: endpoint }).start(),
                { code: 'ERR_INVALID_STATE' });
});

// So does the socket, from the time between start() and the handshake on.
run(async () => {
  const { 0: endpoint } = await socketPair();
  const { 0: a, 1: b } = await socketPair();
  const socket = tls.connect({ socket: a, rejectUnauthorized: false });
  const splice = socket.spliceTo({ stream: endpoint }).start();
  socket.setEncoding('utf8');
  socket.unshift('text');
  const failed = once(splice, 'error');
  new tls.TLSSocket(b, {
    isServer: true, secureContext: tls.createSecureContext({ key, cert }),
  });
  assert.strictEqual((await failed)[0].code, 'ERR_INVALID_STATE');
  socket.destroy();
  b.destroy();
});

// The endpoint is destroyed while 'secure' is emitted.
run(async () => {
  const { 0: endpoint } = await socketPair();
  const listener = tls.createServer({ key, cert }).listen(0);
  await once(listener, 'listening');
  const socket = tls.connect({
    port: listener.address().port, rejectUnauthorized: false,
  });
  socket.once('secure', () => endpoint.destroy());
  const splice = socket.spliceTo({ stream: endpoint }).start();
  const { 0: error } = await once(splice, 'error');
  assert.strictEqual(error.code, 'ERR_STREAM_PREMATURE_CLOSE');
  socket.destroy();
  listener.close();
});

// A socket that cannot be given properties cannot be spliced; nothing about it has
// changed when that is noticed.
for (const prevent of [Object.preventExtensions, Object.seal]) {
  for (const connect of [socketPair, tlsPair]) {
    for (const victim of ['server', 'endpoint']) {
      run(async () => {
        const { client, server } = await tlsPair({ allowHalfOpen: true });
        const pair = await connect();
        const { 0: endpoint, 1: other } = Array.isArray(pair) ? pair : [pair.server, pair.client];
        other.on('error', () => {});
        const refused = { code: 'ERR_INVALID_STATE', message: /is not extensible/ };
        const before = server.spliceTo({ stream: endpoint });
        prevent({ server, endpoint }[victim]);
        assert.throws(() => before.start(), refused);
        assert.strictEqual(before.state, 'idle');
        assert.throws(() => server.spliceTo({ stream: endpoint }), refused);
        for (const autoClose of [false, true]) {
          await assert.rejects(server.pipeToNative(endpoint, { autoClose }), refused);
          assert.strictEqual(endpoint.destroyed, autoClose);
        }
        assert.strictEqual((await before.stop()).reason, 'stopped');
        // It is JS's, as ever.
        server.write('to the peer');
        client.write('to JS');
        assert.strictEqual(`${await once(client, 'data')}`, 'to the peer');
        assert.strictEqual(`${await once(server, 'data')}`, 'to JS');
      });
    }
  }
}

// What the TLS connection itself runs over.
run(async () => {
  const { client, raw } = await tlsPair({ raw: true });
  for (const options of [{ stream: raw }, { fd: raw._handle.fd }]) {
    assert.throws(() => client.spliceTo(options),
                  { code: 'ERR_INVALID_ARG_VALUE' });
  }
});

// A TLSSocket that was destroyed and connected again has no TLS any more.
run(async () => {
  const { client } = await tlsPair();
  const { 0: endpoint } = await socketPair();
  const before = client.spliceTo({ stream: endpoint });
  const plain = net.createServer((socket) => socket.resume()).listen(0);
  await once(plain, 'listening');
  client.destroy();
  await once(client, 'close');
  client.connect(plain.address().port);
  await once(client, 'connect');
  const state = { code: 'ERR_INVALID_STATE' };
  assert.throws(() => before.start(), state);
  assert.throws(() => client.spliceTo({ stream: endpoint }), state);
  await assert.rejects(client.pipeToNative(endpoint), state);
  assert.strictEqual(client.destroyed, false);
  client.destroy();
  plain.close();
});

// A pipeToNative() that cannot start closes what it was to close at once, not
// when the number has come to mean something else.
run(async () => {
  const { server } = await tlsPair();
  const { 0: endpoint } = await socketPair();
  const splice = server.spliceTo({ stream: endpoint, direction: 'out' }).start();
  const { 0: other } = await socketPair();
  other.pause();
  const fd = fs.openSync(`/proc/self/fd/${process.stdout.fd}`, 'w');
  await assert.rejects(server.pipeToNative(fd, { direction: 'duplex', autoClose: true }),
                       { code: /^ERR_INVALID_(STATE|ARG_VALUE)$/ });
  assert.strictEqual(isOpen(fd), false);
  await splice.stop();
});

// stop() does not wait for a peer that does not read, although JS had buffered
// more of the endpoint than may be held.
run(async () => {
  const size = 8 * 1024 * 1024;
  const { client, server } = await tlsPair({ allowHalfOpen: true });
  client.pause();
  const { 0: endpoint, 1: other } = await socketPair();
  const sent = send(other, size);
  const chunks = [];
  let bytes = 0;
  for await (const chunk of endpoint.iterator({ destroyOnReturn: false })) {
    chunks.push(chunk);
    bytes += chunk.length;
    if (bytes === size)
      break;
  }
  endpoint.unshift(Buffer.concat(chunks));
  await sent;
  const splice = server.spliceTo({
    stream: endpoint, direction: 'out', highWaterMark: 1000,
  }).start();
  await new Promise(setImmediate);
  await new Promise(setImmediate);
  assert.strictEqual((await splice.stop()).bytesOut, size);
  const received = receive(client);
  server.end();
  (await received).check(size);
});

// end() right after start(), with a write before, all before the handshake.
for (const direction of ['out', 'duplex']) {
  run(async () => {
    const { 0: endpoint } = await socketPair();
    const listener = tls.createServer({ key, cert, allowHalfOpen: true }).listen(0);
    await once(listener, 'listening');
    const accepted = once(listener, 'secureConnection');
    const socket = tls.connect({
      port: listener.address().port, rejectUnauthorized: false,
    });
    socket.write('hello');
    const splice = socket.spliceTo({ stream: endpoint, direction }).start();
    const closed = closing(splice);
    socket.end();
    const { 0: peer } = await accepted;
    const received = receive(peer);
    assert.strictEqual((await received).bytes, 5);
    peer.end();
    await closed;
    listener.close();
  });
}

// Two handles, started before the handshake, with the peer's data right behind
// its last message: neither takes the other's full buffer for a failure.
for (const version of ['TLSv1.2', 'TLSv1.3']) {
  for (const order of [['in', 'out'], ['out', 'in']]) {
    run(async () => {
      const size = 1024 * 1024;
      const { 0: endpoint, 1: other } = await socketPair();
      const listener = tls.createServer({
        key, cert, allowHalfOpen: true, maxVersion: version,
      }, (peer) => { send(peer, size); peers.push(receive(peer)); }).listen(0);
      const peers = [];
      await once(listener, 'listening');
      const socket = tls.connect({
        port: listener.address().port, rejectUnauthorized: false,
        allowHalfOpen: true,
      });
      const finished = order.map((direction) =>
        socket.spliceTo({ stream: endpoint, direction }).start().finished);
      const received = receive(other);
      await send(other, size);
      (await received).check(size);
      await Promise.all(finished);
      (await peers[0]).check(size);
      listener.close();
    });
  }
}

// An end() of the user's that does nothing, or throws: the splice ends all the same.
for (const { own, throws } of [
  { own() {} },
  { own() { throw new RangeError('not now'); }, throws: true },
]) {
  for (const isEndpoint of [false, true]) {
    run(async () => {
      const { client, server } = await tlsPair({ allowHalfOpen: true });
      const { 0: endpoint, 1: other } = await socketPair();
      const splice = server.spliceTo({ stream: endpoint }).start();
      (isEndpoint ? endpoint : server).end = own;
      const thrown = throws && once(process, 'uncaughtException');
      client.resume().end();
      other.resume().end();
      if (!isEndpoint)
        await once(client, 'end');
      assert.strictEqual((await splice.finished).reason, 'end');
      if (throws)
        assert((await thrown)[0] instanceof RangeError);
      for (const stream of [client, server, endpoint, other])
        stream.destroy();
    });
  }
}

// A destroy() of the user's that does nothing, or not yet, or throws: the splice fails with
// the error of TLS all the same.
const { prototype: { destroy } } = tls.TLSSocket;
for (const { own, throws } of [
  { own() {} },
  { own(err) { setImmediate(() => destroy.call(this, err)); } },
  { own() { throw new RangeError('not now'); }, throws: true },
]) {
  run(async () => {
    const { peer, socket, tap, raw } = await recordPair({ allowHalfOpen: true });
    for (const stream of [peer, socket, tap, raw])
      stream.on('error', () => {});
    peer.write('x');
    assert.strictEqual(`${(await once(socket, 'data'))[0]}`, 'x');
    const { 0: endpoint } = await socketPair();
    const splice = socket.spliceTo({ stream: endpoint }).start();
    socket.destroy = own;
    const thrown = throws && once(process, 'uncaughtException');
    tap.send(tap.garbage());
    const err = await splice.finished.catch((err) => err);
    assert.match(err.code, /^ERR_SSL_/);
    assert.strictEqual((await splice.stop()).reason, 'error');
    if (throws)
      assert((await thrown)[0] instanceof RangeError);
    delete socket.destroy;
    for (const stream of [peer, socket, raw, endpoint])
      stream.destroy();
  });
}
