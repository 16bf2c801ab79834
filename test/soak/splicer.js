'use strict';

// The process of soak.js that splices, and does nothing else. Its parent says
// what, and knows every byte.
//
// With a number as its argument it has so many Workers that splice. The main thread
// accepts the connections, at a port for each Worker, and hands them over.

const assert = require('assert');
const { once } = require('events');
const fs = require('fs');
const net = require('net');
const path = require('path');
const { finished } = require('stream/promises');
const tls = require('tls');
const { inspect } = require('util');
const { Worker, isMainThread, parentPort } = require('worker_threads');
const { Receiver, payloadIn } = require('./payload');

// To the process that knows every byte, from a Worker by way of the main thread.
const report = isMainThread ? (message) => process.send(message) : (message) => parentPort.postMessage(message);

const keys = path.join(__dirname, '../../out/tree/test/fixtures/keys');

// By id: what waits for the TLSSocket.
const arrivals = new Map();

function arrival(id) {
  if (!arrivals.has(id))
    arrivals.set(id, Promise.withResolvers());
  return arrivals.get(id);
}

// By id: what is going on, for the case that nothing does any more.
const running = new Map();

function describe(id) {
  if (!running.has(id))
    return 'the splice is over, and all is closed';
  const { state, tlsSocket, endpoint, handle } = running.get(id);
  const { writableEnded, writableFinished, readableEnded, destroyed } = tlsSocket ?? {};
  return inspect({
    state, handle, writableEnded, writableFinished, readableEnded, destroyed,
    endpoint: endpoint?.socket?.destroyed ?? endpoint?.fd,
  });
}

// What is expected of an error is looked at elsewhere.
function ignore() {}

function closed(stream) {
  return stream.closed ? undefined : new Promise((resolve) => stream.once('close', resolve));
}

function countFds() {
  return fs.readdirSync('/proc/self/fd').length;
}

async function openEndpoint({ id, kind, version, direction, address }) {
  if (kind === 'fifo' || kind === 'file') {
    const { O_CREAT, O_NONBLOCK, O_RDONLY, O_WRONLY } = fs.constants;
    const flags = (direction === 'in' ? O_WRONLY : O_RDONLY) | (kind === 'fifo' ? O_NONBLOCK : O_CREAT);
    return { fd: fs.openSync(address, flags) };
  }
  const socket = kind === 'tls' ?
    tls.connect({ ...address, allowHalfOpen: true, rejectUnauthorized: false, maxVersion: version }) :
    net.connect({ ...address, allowHalfOpen: true });
  socket.on('error', ignore);
  // What it yields is for the splice.
  socket.pause();
  await once(socket, kind === 'tls' ? 'secureConnect' : 'connect');
  const header = Buffer.alloc(8);
  header.writeDoubleLE(id);
  await new Promise((resolve) => socket.write(header, resolve));
  return { socket };
}

// One splice, until it has ended or the plan ends it.
async function splice({ id, plan, byFd, autoClose, highWaterMark }, direction, tlsSocket, { fd, socket }) {
  const aborting = plan.name === 'abort' ? new AbortController() : undefined;
  const target = socket && !byFd ? { stream: socket } : { fd: fd ?? socket._handle.fd };
  const handle = tlsSocket.spliceTo({ ...target, direction, autoClose, highWaterMark, signal: aborting?.signal });
  let error;
  handle.on('error', (err) => { error = err; });
  const closing = new Promise((resolve) => handle.once('close', resolve));
  running.get(id).handle = handle;
  handle.start();
  const timer = setTimeout(() => {
    switch (plan.name) {
    case 'restart':
    case 'stop':
      handle.stop();
      break;
    case 'abort':
      aborting.abort();
      break;
    case 'destroy':
      tlsSocket.destroy();
      break;
    }
  }, plan.after);
  const stats = await closing;
  clearTimeout(timer);
  return { error, stats };
}

// JavaScript goes on where the splice has stopped.
async function forward({ kind, id, direction, sizeIn }, tlsSocket, endpoint, bytesIn) {
  const receiver = new Receiver(payloadIn(id), bytesIn);
  const { fd } = endpoint;
  let other = endpoint.socket;
  if (fd !== undefined) {
    // It is the stream's from here on.
    endpoint.fd = undefined;
    if (kind === 'fifo')
      other = new net.Socket({ fd, readable: direction === 'out', writable: direction === 'in' });
    else
      other = direction === 'in' ? fs.createWriteStream(null, { fd }) : fs.createReadStream(null, { fd });
  }
  const done = [];
  if (direction !== 'out' && !other.writableEnded) {
    tlsSocket.on('data', (chunk) => receiver.update(chunk));
    tlsSocket.pipe(other);
    done.push(finished(other, { readable: false }));
  }
  if (direction !== 'in' && !tlsSocket.writableEnded) {
    other.pipe(tlsSocket);
    done.push(finished(tlsSocket, { readable: false }));
  }
  await Promise.all(done);
  if (fd !== undefined) {
    // Without anything to forward, nobody has read or ended it.
    if (done.length === 0)
      other.destroy();
    await closed(other);
  }
  if (direction !== 'out')
    assert.strictEqual(receiver.bytes, sizeIn);
  return receiver.bytes - bytesIn;
}

// What an endpoint that is gone did not take is JavaScript's, to the end.
async function drain({ id, sizeIn }, tlsSocket, bytesIn) {
  const receiver = new Receiver(payloadIn(id), bytesIn);
  for await (const chunk of tlsSocket.iterator({ destroyOnReturn: false }))
    receiver.update(chunk);
  assert.strictEqual(receiver.bytes, sizeIn);
  return receiver.bytes - bytesIn;
}

async function closeAll({ direction, autoClose }, tlsSocket, { fd, socket }, isClean) {
  if (fd !== undefined && !autoClose)
    fs.closeSync(fd);
  for (const stream of [tlsSocket, socket]) {
    if (!stream)
      continue;
    // What a sink has got it keeps, unless there is something to read.
    if (isClean || (stream === socket && direction === 'in')) {
      if (!stream.writableEnded)
        stream.end();
      stream.resume();
    } else {
      stream.destroy();
    }
    await closed(stream);
  }
}

async function serve(spec) {
  const { id, plan } = spec;
  const now = { state: 'opening' };
  running.set(id, now);
  const endpoint = now.endpoint = await openEndpoint(spec);
  report({ id, ready: true });
  const tlsSocket = now.tlsSocket = await arrival(id).promise;
  now.state = 'splicing';
  arrivals.delete(id);
  tlsSocket.on('error', ignore);
  if (spec.direction === 'out')
    tlsSocket.resume();

  let bytesIn = 0;
  let bytesOut = 0;
  let splices = 0;
  let { direction } = spec;
  let outcome;
  do {
    outcome = await splice(spec, direction, tlsSocket, endpoint);
    bytesIn += outcome.stats.bytesIn;
    bytesOut += outcome.stats.bytesOut;
    splices++;
    // It may have been stopped when one direction, or both, had come to its end.
    // Of another TLSSocket JavaScript has seen that; nobody else passes it on.
    if (plan.name === 'restart' && direction !== 'in' && endpoint.socket?.encrypted && endpoint.socket.readableEnded)
      tlsSocket.end();
    if (direction !== 'in' && tlsSocket.writableEnded)
      direction = direction === 'out' ? undefined : 'in';
    if ((direction === 'in' || direction === 'duplex') &&
        (tlsSocket.readableEnded || endpoint.socket?.writableEnded))
      direction = direction === 'duplex' ? 'out' : undefined;
  } while (plan.name === 'restart' && outcome.stats.reason === 'stopped' && direction !== undefined);

  const { error, stats: { reason, closeNotify } } = outcome;
  let rest = 0;
  now.state = 'splice is over';
  if (reason === 'stopped' && plan.name === 'stop')
    rest = await forward(spec, tlsSocket, endpoint, bytesIn);
  else if (reason === 'error' && plan.name.startsWith('endpoint') && spec.direction !== 'out')
    rest = await drain(spec, tlsSocket, bytesIn);
  now.state = 'closing';
  await closeAll(spec, tlsSocket, endpoint, reason === 'end' || reason === 'stopped');
  running.delete(id);
  report({
    id,
    result: { bytesIn, bytesOut, rest, splices, reason, closeNotify, code: error?.code, syscall: error?.syscall },
  });
}

function holdings() {
  return { fds: countFds(), resources: process.getActiveResourcesInfo().sort().join(' ') };
}

function createServer() {
  const server = tls.createServer({
    key: fs.readFileSync(path.join(keys, 'ec-key.pem')),
    cert: fs.readFileSync(path.join(keys, 'ec-cert.pem')),
    allowHalfOpen: true,
  }, (socket) => arrival(Number(socket.servername.slice(1))).resolve(socket));
  server.on('tlsClientError', (err) => { throw err; });
  return server;
}

// What concerns one splice.
function handle({ spec, describe: id }) {
  if (spec)
    serve(spec).catch((err) => report({ id: spec.id, failure: err.stack }));
  else
    report({ id, description: describe(id) });
}

// Handles are gone a turn after 'close'.
async function settle() {
  for (let i = 0; i < 20; i++)
    await new Promise(setImmediate);
}

// In this thread. The functions answer what the parent asks for.
async function splicer() {
  const server = createServer();
  server.listen(0, '127.0.0.1');
  await once(server, 'listening');
  return {
    ports: [server.address().port],
    handle,
    collectGarbage: gc,
    async end() {
      await settle();
      const after = holdings();
      // That is all that keeps it alive.
      server.close();
      return after;
    },
  };
}

async function splicersInWorkers(count) {
  const workers = Array.from({ length: count }, () => new Worker(__filename));
  const servers = workers.map((worker) => {
    worker.on('message', (message) => {
      if (message.id !== undefined)
        report(message);
    });
    return net.createServer({ allowHalfOpen: true, pauseOnConnect: true }, (socket) => {
      worker.postMessage({ socket }, [socket]);
    }).listen(0, '127.0.0.1');
  });
  await Promise.all(servers.map((server) => once(server, 'listening')));
  return {
    ports: servers.map((server) => server.address().port),
    handle(message) {
      const id = message.spec?.id ?? message.describe;
      workers[id % count].postMessage(message);
    },
    async collectGarbage() {
      gc();
      await Promise.all(workers.map((worker) => new Promise((resolve) => {
        worker.on('message', function collected(message) {
          if (message !== 'collected')
            return;
          worker.off('message', collected);
          resolve();
        });
        worker.postMessage('collect');
      })));
    },
    async end() {
      // They end by themselves, since nothing keeps them alive.
      const exited = workers.map((worker) => once(worker, 'exit'));
      for (const worker of workers)
        worker.postMessage('finish');
      for (const code of await Promise.all(exited))
        assert.deepStrictEqual(code, [0]);
      for (const server of servers)
        server.close();
      await settle();
      return holdings();
    },
  };
}

function splicerOfMainThread() {
  const server = createServer();
  parentPort.on('message', (message) => {
    if (message.socket) {
      server.emit('connection', message.socket);
    } else if (message === 'collect') {
      gc();
      parentPort.postMessage('collected');
    } else if (message === 'finish') {
      parentPort.close();
    } else {
      handle(message);
    }
  });
}

async function main() {
  const workers = Number(process.argv[2] ?? 0);
  // stream.pipe() looks at them, and that opens them.
  for (const stream of [process.stdout, process.stderr])
    assert(stream.writable);
  let splicing;
  let before;
  let isMeasuring = false;
  process.on('message', async (message) => {
    if (message === 'measure') {
      // All threads collect garbage, which may take longer than until the next time.
      if (isMeasuring)
        return;
      isMeasuring = true;
      await splicing.collectGarbage();
      isMeasuring = false;
      process.send({ rss: process.memoryUsage.rss(), fds: countFds() });
    } else if (message === 'finish') {
      process.send({ before, after: await splicing.end() });
      process.disconnect();
    } else {
      splicing.handle(message);
    }
  });
  // Of Workers nothing is left at the end; the server of this thread is.
  if (workers) {
    before = holdings();
    splicing = await splicersInWorkers(workers);
  } else {
    splicing = await splicer();
    before = holdings();
  }
  process.send({ ports: splicing.ports });
}

if (isMainThread)
  main();
else
  splicerOfMainThread();
