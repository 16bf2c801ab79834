'use strict';

// TLS in TLS: the ciphertext of the inner connection is not for a splice of the
// outer one to move, so neither is made over the other.

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
  MiB, cert, key, receive, run, send, socketPair, tlsOver, tlsPair, turns,
} = require('../common/tls-splice');

const kSize = 1 * MiB + 3;
const state = { code: 'ERR_INVALID_STATE', name: 'Error' };
const secureContext = tls.createSecureContext({ key, cert });

// The ways to make a TLS connection over `socket`
const above = {
  'tls.connect()': (socket) => tls.connect({ socket, rejectUnauthorized: false }),
  'a client': (socket) => new tls.TLSSocket(socket, { rejectUnauthorized: false }),
  'a server': (socket) => new tls.TLSSocket(socket, { isServer: true, secureContext }),
  'a tls.Server': (socket) => tls.createServer({ key, cert }).emit('connection', socket),
};

// Two sockets that are connected, and what TLS can be run over
const pairs = {
  'TLS': async () => {
    const { client, server } = await tlsPair({ allowHalfOpen: true });
    return [client, server];
  },
  'TLS the other way round': async () => {
    const { client, server } = await tlsPair({ allowHalfOpen: true });
    return [server, client];
  },
  'TCP': () => socketPair(),
  'a Unix socket': () => socketPair('unix'),
};

async function transfer(from, to) {
  const received = receive(to);
  await send(from, kSize, { end: false });
  await received.receiver.reached(kSize);
  received.receiver.check(kSize);
  to.removeAllListeners('data');
}

for (const [under, make] of Object.entries(pairs)) {
  const isTLS = under.startsWith('TLS');

  // What TLS runs over is refused, as the socket and as the endpoint, by
  // spliceTo() and, if it has come about since, by start(). The inner connection
  // does not notice.
  for (const early of [true, false]) {
    run(async () => {
      const { 0: outer, 1: other } = await make();
      const { server: another } = await tlsPair({ allowHalfOpen: true });
      const { 0: endpoint, 1: far } = await socketPair();
      const prepared = [another.spliceTo({ stream: outer })];
      if (isTLS)
        prepared.push(outer.spliceTo({ stream: endpoint }));
      const { client: inner, server } = tlsOver(outer, other, { allowHalfOpen: true });
      if (!early)
        await once(inner, 'secureConnect');
      const { _events: events } = outer;
      const before = { ...events };
      for (const direction of ['in', 'out', 'duplex']) {
        assert.throws(() => another.spliceTo({ stream: outer, direction }), state);
        await assert.rejects(another.pipeToNative(outer, { direction }), state);
        if (isTLS) {
          assert.throws(() => outer.spliceTo({ stream: endpoint, direction }), state);
          assert.throws(() => outer.spliceTo({ fd: endpoint._handle.fd, direction }), state);
          await assert.rejects(outer.pipeToNative(endpoint, { direction }), state);
        }
      }
      for (const splice of prepared) {
        assert.throws(() => splice.start(), state);
        assert.strictEqual(splice.state, 'idle');
        assert.strictEqual((await splice.stop()).reason, 'stopped');
      }
      assert.deepStrictEqual({ ...outer._events }, before);
      for (const socket of [outer, inner, another])
        assert.strictEqual(socket.destroyed, false);
      // Its own inner one is what it always was.
      assert.throws(() => inner.spliceTo({ stream: outer }), { code: 'ERR_INVALID_ARG_VALUE' });
      if (isTLS)
        assert.throws(() => outer.spliceTo({ stream: inner }), { code: 'ERR_INVALID_ARG_VALUE' });

      if (early)
        await once(inner, 'secureConnect');
      await transfer(inner, server);
      await transfer(server, inner);
      // That can be spliced.
      const splice = inner.spliceTo({ stream: endpoint }).start();
      await transfer(server, far);
      await transfer(far, server);
      await splice.stop();
    });
  }

  // No TLS connection is made over what is spliced, or is going to be when a
  // handshake is done. The splice does not notice.
  for (const [name, connect] of Object.entries(above)) {
    for (const direction of ['in', 'out', 'duplex']) {
      for (const as of isTLS ? ['socket', 'endpoint'] : ['endpoint']) {
        run(async () => {
          const { 0: socket, 1: far } = await make();
          const { client, server } = await tlsPair({ allowHalfOpen: true });
          const { 0: stream, 1: other } = await socketPair();
          const splice = as === 'socket' ?
            socket.spliceTo({ stream, direction }) :
            server.spliceTo({ stream: socket, direction });
          // It is not before start().
          splice.start();
          const before = { ...socket._events };
          for (let i = 0; i < 2; i++) {
            assert.throws(() => connect(socket), state, `${name} ${as}`);
            await turns();
          }
          assert.deepStrictEqual({ ...socket._events }, before);
          assert.strictEqual(splice.state, 'running');
          const { 0: near, 1: end } = as === 'socket' ? [far, other] : [client, far];
          if (direction !== 'out')
            await transfer(near, end);
          if (direction !== 'in')
            await transfer(end, near);
          await splice.stop();

          if (name === 'tls.connect()') {
            const inner = connect(socket);
            const peer = above['a server'](far);
            await once(inner, 'secureConnect');
            await transfer(inner, peer);
            inner.destroy();
            peer.destroy();
          }
        });
      }
    }
  }
}

// Between start() and the end of the handshake
run(async () => {
  const { 0: a, 1: b } = await socketPair();
  const { 0: endpoint, 1: other } = await socketPair();
  const { client, server } = tlsOver(a, b, { allowHalfOpen: true });
  const splice = client.spliceTo({ stream: endpoint }).start();
  for (const connect of Object.values(above)) {
    for (const socket of [client, endpoint])
      assert.throws(() => connect(socket), state);
  }
  await transfer(server, other);
  await transfer(other, server);
  await splice.stop();
});

// A socket that was not connected when TLS was made over it: it has no native
// handle then, and is read by JavaScript.
run(async () => {
  const { server: another } = await tlsPair({ allowHalfOpen: true });
  const { 0: endpoint } = await socketPair();
  const listener = tls.createServer({ key, cert, allowHalfOpen: true }).listen(0);
  await once(listener, 'listening');
  const outer = new net.Socket({ allowHalfOpen: true });
  const inner = tls.connect({ socket: outer, rejectUnauthorized: false });
  const accepted = once(listener, 'secureConnection');
  outer.connect(listener.address().port);
  await once(inner, 'secureConnect');
  const { 0: peer } = await accepted;
  for (const direction of ['in', 'out', 'duplex'])
    assert.throws(() => another.spliceTo({ stream: outer, direction }), state);
  assert.throws(() => inner.spliceTo({ stream: outer }), { code: /^ERR_INVALID_(STATE|ARG_VALUE)$/ });
  await transfer(inner, peer);
  const splice = inner.spliceTo({ stream: endpoint });
  await splice.stop();
  for (const socket of [inner, outer, peer])
    socket.destroy();
  listener.close();
});

// One whose TLS could not be made is as it was.
run(async () => {
  const { client, server } = await tlsPair({ allowHalfOpen: true });
  const { 0: endpoint, 1: other } = await socketPair();
  for (const socket of [server, endpoint]) {
    assert.throws(() => new tls.TLSSocket(socket, { isServer: true, secureContext: {} }),
                  { code: 'ERR_TLS_INVALID_CONTEXT' });
  }
  const splice = server.spliceTo({ stream: endpoint }).start();
  await transfer(client, other);
  await splice.stop();
});
