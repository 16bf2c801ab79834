'use strict';

// A splice does not depend on listeners: whoever removes all of them, from the
// socket and from the endpoint, at any time, changes nothing about how it begins
// and ends. It adds none either.

const common = require('../common');
if (!common.hasCrypto)
  common.skip('missing crypto');

const assert = require('assert');
const { once } = require('events');
const tls = require('tls');
if (tls.TLSSplice === undefined)
  common.skip('built without TLSSplice');

const {
  cert, closing, key, record, run, settled, socketPair, tlsOver, tlsPair, turns,
} = require('../common/tls-splice');

const endpoints = {
  async stream() {
    const { 0: endpoint, 1: other } = await socketPair();
    return { options: { stream: endpoint }, endpoint, other };
  },
  async fd() {
    const { 0: other, 1: endpoint } =
      await socketPair('unix', { pauseOnConnect: true });
    return { options: { fd: endpoint._handle.fd }, other };
  },
  async tls() {
    const { client: other, server: endpoint } = await tlsPair({ allowHalfOpen: true });
    return { options: { stream: endpoint }, endpoint, other };
  },
};

const badRecord = Buffer.from('ff030300050000000000', 'hex');
const actions = {
  badRecord: ({ raw }) => raw.write(badRecord),
  reset: ({ raw }) => raw.resetAndDestroy(),
  end: ({ peer, other }) => { peer.end(); other.end(); },
  endpointDestroyed: ({ endpoint }) => endpoint.destroy(),
  endpointReset: ({ other }) => other.resetAndDestroy(),
  destroyed: ({ socket }) => socket.destroy(),
  stopped: ({ splice }) => splice.stop(),
  aborted: ({ controller }) => controller.abort(),
};

// The listeners of this test, which has to come after those it removes.
function listen(socket, errors) {
  socket.on('error', (err) => errors.push(err.code));
}

async function outcome(kind, action, stage, autoClose, remove) {
  let socket, peer, raw;
  if (stage === 'handshake') {
    // A client whose handshake has to wait for the server.
    const { 0: a, 1: b } = await socketPair();
    raw = b;
    socket = tls.connect({ socket: a, rejectUnauthorized: false, allowHalfOpen: true });
  } else {
    ({ client: peer, server: socket, raw } = await tlsPair({ raw: true, allowHalfOpen: true }));
  }
  const { options, endpoint, other } = await endpoints[kind]();
  const controller = new AbortController();
  const splice = socket.spliceTo({ ...options, autoClose, signal: controller.signal });
  const events = record(splice, ['error', 'close']);
  const errors = [];
  const silence = (...sockets) => {
    if (remove) {
      socket.removeAllListeners();
      endpoint?.removeAllListeners();
    }
    for (const each of sockets)
      listen(each, each === socket ? errors : []);
  };
  const closed = closing(splice);
  let error;
  splice.on('error', (err) => { error = err; });

  if (stage === 'start')
    silence(socket, raw, other, ...(endpoint ? [endpoint] : []));
  splice.start();
  if (stage === 'handshake') {
    silence(socket, raw, other, ...(endpoint ? [endpoint] : []));
    peer = new tls.TLSSocket(raw, {
      isServer: true, secureContext: tls.createSecureContext({ key, cert }), allowHalfOpen: true,
    });
  }
  peer.on('error', () => {});
  peer.resume();
  peer.write('in');
  assert.strictEqual(`${await once(other, 'data')}`, 'in');
  other.write('out');
  assert.strictEqual(`${await once(peer, 'data')}`, 'out');
  await settled(() => splice.stats.bytesOut);
  if (stage === 'running')
    silence(socket, peer, raw, other, ...(endpoint ? [endpoint] : []));
  other.resume();

  actions[action]({ socket, peer, raw, endpoint, other, splice, controller });
  const stats = await closed;
  if ((stats.reason === 'error' || stats.reason === 'destroyed') && socket.destroyed && !socket.closed)
    await turns();
  await turns();
  const { bytesIn, bytesOut, reason, closeNotify } = stats;
  const result = {
    events, bytesIn, bytesOut, reason, closeNotify,
    code: error?.code, destroyed: socket.destroyed, endpoint: endpoint?.destroyed,
    // Before Node has released the control of a socket it reports no error of TLS.
    errors: stage === 'handshake' ? undefined : errors,
  };
  for (const each of [socket, peer, raw, other, endpoint])
    each?.destroy();
  return result;
}

for (const kind of Object.keys(endpoints)) {
  for (const stage of ['start', 'handshake', 'running']) {
    for (const action of Object.keys(actions)) {
      if (kind === 'fd' && action.startsWith('endpoint'))
        continue;
      // The TLSSocket says itself how it was reset.
      if (kind === 'tls' && action === 'endpointReset')
        continue;
      for (const autoClose of kind === 'fd' ? [false] : [false, true]) {
        run(async () => {
          const expected = await outcome(kind, action, stage, autoClose, false);
          const result = await outcome(kind, action, stage, autoClose, true);
          assert.deepStrictEqual(result, expected, `${kind}, ${stage}, ${action}, ${autoClose}`);
        });
      }
    }
  }
}

// Nobody is told of listeners, since there are none.
for (const kind of Object.keys(endpoints)) {
  run(async () => {
    const { client, server } = await tlsPair({ allowHalfOpen: true });
    const { options, endpoint, other } = await endpoints[kind]();
    const changes = [];
    const onChange = (name) => changes.push(name);
    for (const emitter of endpoint ? [server, endpoint] : [server]) {
      emitter.on('newListener', onChange);
      emitter.on('removeListener', onChange);
    }
    changes.length = 0;
    const splice = server.spliceTo(options).start();
    client.write('x');
    await once(other, 'data');
    await splice.stop();
    assert.deepStrictEqual(changes, []);
  });
}

// Without the listener that looks at the certificate nobody has, and nothing is
// sent or passed on.
run(async () => {
  const listener = tls.createServer({ key, cert }, (socket) => {
    socket.on('error', () => {});
    socket.on('data', common.mustNotCall());
    socket.write('not for the endpoint');
  }).listen(0);
  await once(listener, 'listening');
  const { 0: endpoint, 1: other } = await socketPair();
  other.on('data', common.mustNotCall());
  other.write('not for the peer');
  const socket = tls.connect({ port: listener.address().port });
  await once(socket, 'connect');
  const done = socket.pipeToNative(endpoint);
  socket.removeAllListeners();
  await assert.rejects(done, { code: 'ERR_INVALID_STATE', message: /has not been verified/ });
  assert.strictEqual(socket.destroyed, true);
  listener.close();
});

// A listener that throws is not the end of it.
run(async () => {
  const { 0: endpoint, 1: other } = await socketPair();
  const { 0: a, 1: b } = await socketPair();
  const { client, server } = tlsOver(a, b, { allowHalfOpen: true });
  const error = new Error('on purpose');
  client.once('secure', () => { throw error; });
  process.once('uncaughtException', common.mustCall((err) => assert.strictEqual(err, error)));
  client.spliceTo({ stream: endpoint }).start();
  server.end('x');
  assert.strictEqual(`${await once(other, 'data')}`, 'x');
});
