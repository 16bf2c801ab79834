'use strict';

// Connections that the main thread has accepted are spliced in a Worker: with
// certificates by name (SNI), certificates of clients, and data that was there
// before the Worker got the connection. And what cannot be handed over, which
// stays usable where it is.

const common = require('../common');
if (!common.hasCrypto)
  common.skip('missing crypto');
if (common.isWindows)
  common.skip('no splices on Windows');

const assert = require('assert');
const { once } = require('events');
const fixtures = require('../common/fixtures');
const net = require('net');
const tls = require('tls');
const { Worker, isMainThread, parentPort, workerData } = require('worker_threads');
if (tls.TLSSplice === undefined)
  common.skip('built without TLSSplice');

const {
  MiB, closing, receive, run, send, settled, socketPair, tlsPair, track,
} = require('../common/tls-splice');

const kSize = 2 * MiB + 29;

// By the name that the client asks for: whose certificate it gets, and the port
// it is joined to.
function work({ routes }) {
  const contexts = {};
  for (const [name, { agent }] of Object.entries(routes)) {
    contexts[name] = tls.createSecureContext({
      key: fixtures.readKey(`${agent}-key.pem`),
      cert: fixtures.readKey(`${agent}-cert.pem`),
      ca: fixtures.readKey('ca1-cert.pem'),
    });
  }
  const server = tls.createServer({
    SNICallback: (name, callback) => callback(null, contexts[name]),
    ca: fixtures.readKey('ca1-cert.pem'),
    requestCert: true,
    rejectUnauthorized: false,
    allowHalfOpen: true,
  }, async (socket) => {
    socket.on('error', () => {});
    const { servername, authorized } = socket;
    const client = socket.getPeerCertificate().subject?.CN;
    const upstream = net.connect({ port: routes[servername].port, allowHalfOpen: true });
    await once(upstream, 'connect');
    const { bytesIn, bytesOut } = await socket.pipeToNative(upstream);
    parentPort.postMessage({ servername, authorized, bytesIn, bytesOut, client });
    socket.destroy();
    upstream.destroy();
  });
  parentPort.on('message', ({ socket, listener }) => {
    // A connection, or a server with all that it is going to accept.
    if (socket !== undefined)
      server.emit('connection', socket);
    else
      listener.on('connection', (socket) => server.emit('connection', socket));
  });
}

if (!isMainThread) {
  work(workerData);
  return;
}

// What each one gets goes back to where it came from.
async function echo() {
  const server = net.createServer({ allowHalfOpen: true }, (socket) => socket.pipe(socket));
  server.listen(0);
  await once(server, 'listening');
  return server;
}

async function start() {
  const upstreams = [await echo(), await echo()];
  const worker = new Worker(__filename, {
    workerData: {
      routes: {
        'a.example': { agent: 'agent1', port: upstreams[0].address().port },
        'b.example': { agent: 'agent3', port: upstreams[1].address().port },
      },
    },
  });
  return {
    worker,
    upstreams,
    async end() {
      await worker.terminate();
      for (const upstream of upstreams)
        upstream.close();
    },
  };
}

async function exchange(client, size) {
  const receiving = receive(client);
  await send(client, size);
  (await receiving).check(size);
}

function connect(port, servername, agent) {
  const client = tls.connect({
    port,
    servername,
    rejectUnauthorized: false,
    allowHalfOpen: true,
    ...agent && { key: fixtures.readKey(`${agent}-key.pem`), cert: fixtures.readKey(`${agent}-cert.pem`) },
  });
  track(client);
  return client;
}

// The server of the main thread: what it does with a connection is up to the test.
async function listen(options, onConnection) {
  const server = net.createServer({ allowHalfOpen: true, ...options }, onConnection);
  server.listen(0);
  await once(server, 'listening');
  return server;
}

// Certificates by name, and of clients.
run(async () => {
  const { worker, upstreams, end } = await start();
  const server = await listen({}, (socket) => worker.postMessage({ socket }, [socket]));
  for (const { servername, agent, expected, of } of [
    { servername: 'a.example', agent: 'agent1', expected: 'agent1', of: upstreams[0] },
    { servername: 'b.example', agent: undefined, expected: 'agent3', of: upstreams[1] },
  ]) {
    const joined = once(of, 'connection');
    const client = connect(server.address().port, servername, agent);
    await once(client, 'secureConnect');
    assert.strictEqual(client.getPeerCertificate().subject.CN, expected);
    const message = once(worker, 'message');
    await exchange(client, kSize);
    await joined;
    assert.deepStrictEqual(await message, [{
      servername, authorized: agent !== undefined, bytesIn: kSize, bytesOut: kSize, client: agent,
    }]);
  }
  // They are not of this thread any more.
  assert.strictEqual(await new Promise((resolve) => server.getConnections((err, count) => resolve(count))), 0);
  server.close();
  await end();
});

// The client has sent its first message before, and waits.
run(async () => {
  const { worker, end } = await start();
  const server = await listen({ pauseOnConnect: true });
  const accepted = once(server, 'connection');
  const client = connect(server.address().port, 'a.example');
  const { 0: socket } = await accepted;
  await once(client, 'connect');
  await settled(() => client._handle.bytesWritten);
  worker.postMessage({ socket }, [socket]);
  assert(socket.destroyed);
  await exchange(client, kSize);
  server.close();
  await end();
});

// The server, with a connection that nobody has accepted yet.
run(async () => {
  const { worker, end } = await start();
  const listener = await listen();
  const { port } = listener.address();
  worker.postMessage({ listener }, [listener]);
  await Promise.all([1, 2, 3].map(() => exchange(connect(port, 'a.example'), kSize)));
  await end();
});

// What has another handle than that of TCP, and what was read from or written
// to, is refused. Then it can still be spliced in this thread.
run(async () => {
  const { worker, end } = await start();
  const refused = (socket) => {
    assert.throws(() => worker.postMessage({ socket }, [socket]), {
      code: 'ERR_WORKER_HANDLE_NOT_TRANSFERABLE',
    });
  };
  const { client, server } = await tlsPair({ allowHalfOpen: true });
  refused(client);
  refused(server);

  const { 0: unix, 1: other } = await socketPair('unix');
  refused(unix);

  const { 0: tcp, 1: peer } = await socketPair();
  peer.write('x');
  await once(tcp, 'readable');
  refused(tcp);
  refused(peer);

  const received = receive(other);
  const splice = server.spliceTo({ stream: unix, direction: 'in', autoClose: true }).start();
  // It may close as soon as all bytes have arrived.
  const closed = closing(splice);
  await send(client, kSize);
  (await received).check(kSize);
  other.end();
  server.end();
  await closed;
  await end();
});
