'use strict';

// What the tests of tlsSocket.spliceTo() have in common: pairs of connected
// sockets, and payloads that are compared by their hash.

const common = require('./');
const fixtures = require('./fixtures');
const assert = require('assert');
const { spawnSync } = require('child_process');
const { createHash } = require('crypto');
const { once } = require('events');
const fs = require('fs');
const net = require('net');
const { Duplex } = require('stream');
const { finished } = require('stream/promises');
const tls = require('tls');

const key = fixtures.readKey('agent1-key.pem');
const cert = fixtures.readKey('agent1-cert.pem');

const MiB = 1024 * 1024;

// A chunk is 64 KiB of the numbers from its offset on: each has another
// content, and so has each part of it.
const kChunk = 64 * 1024;

function chunkAt(seed, offset, length) {
  const words = new Uint32Array(kChunk / 4);
  let state = (seed * 0x9e3779b1 + offset + 1) >>> 0;
  for (let i = 0; i < words.length; i++) {
    state ^= state << 13;
    state ^= state >>> 17;
    state ^= state << 5;
    words[i] = state;
  }
  return Buffer.from(words.buffer, 0, length);
}

// The chunks of a payload, made as they are asked for.
function* payload(size, seed = 1) {
  for (let offset = 0; offset < size; offset += kChunk)
    yield chunkAt(seed, offset, Math.min(kChunk, size - offset));
}

const digests = new Map();
function digestOf(size, seed = 1) {
  const name = `${size} ${seed}`;
  if (!digests.has(name)) {
    const hash = createHash('sha256');
    for (const chunk of payload(size, seed))
      hash.update(chunk);
    digests.set(name, hash.digest('hex'));
  }
  return digests.get(name);
}

// Writes a payload as fast as the stream takes it, and ends the stream.
async function send(stream, size, { seed = 1, end = true } = {}) {
  for (const chunk of payload(size, seed)) {
    if (!stream.write(chunk))
      await once(stream, 'drain');
  }
  if (end) {
    stream.end();
    await finished(stream, { readable: false });
  }
}

// Counts and hashes what has been received.
class Receiver {
  #hash = createHash('sha256');
  #waiting = [];
  bytes = 0;

  update(chunk) {
    this.#hash.update(chunk);
    this.bytes += chunk.length;
    this.#waiting = this.#waiting.filter(({ bytes, resolve }) => {
      if (this.bytes < bytes)
        return true;
      resolve();
      return false;
    });
  }

  // Resolves when so many bytes have come.
  reached(bytes) {
    if (this.bytes >= bytes)
      return Promise.resolve();
    return new Promise((resolve) => this.#waiting.push({ bytes, resolve }));
  }

  check(size, seed = 1) {
    assert.strictEqual(this.bytes, size);
    assert.strictEqual(this.#hash.copy().digest('hex'), digestOf(size, seed));
  }
}

// Reads a stream until it ends. The promise has the receiver at once, as
// `receiver`.
function receive(stream, receiver = new Receiver()) {
  const promise = new Promise((resolve, reject) => {
    stream.on('data', (chunk) => receiver.update(chunk));
    stream.resume();  // It may have been paused.
    stream.on('end', () => resolve(receiver));
    stream.on('error', reject);
  });
  promise.receiver = receiver;
  return promise;
}

// IP packets, with contents that say which one it is.
function ipv4(size, fill = 0) {
  const packet = Buffer.alloc(size, fill);
  packet[0] = 0x45;
  packet.writeUInt16BE(size, 2);
  return packet;
}

function ipv6(size, fill = 0) {
  const packet = Buffer.alloc(size, fill);
  packet[0] = 0x60;
  packet.writeUInt16BE(size - 40, 4);
  packet[6] = 17;  // UDP
  return packet;
}

let unixSockets = 0;

// Returns a stream of JavaScript over a socket. The stream closes itself when it has ended both ways.
function duplexOver(socket, options) {
  const stream = new Duplex({
    ...options,
    read() { socket.resume(); },
    write(chunk, encoding, callback) { socket.write(chunk, callback); },
    final(callback) { socket.end(callback); },
  });
  socket.on('data', (chunk) => {
    if (!stream.push(chunk))
      socket.pause();
  });
  socket.on('end', () => stream.push(null));
  return stream;
}

// Two connected net.Sockets. `kind` is 'tcp' or 'unix'.
async function socketPair(kind = 'tcp', options = {}) {
  const server = net.createServer({ allowHalfOpen: true, ...options });
  const accepted = once(server, 'connection');
  if (kind === 'unix') {
    const tmpdir = require('./tmpdir');
    if (unixSockets++ === 0)
      tmpdir.refresh();
    server.listen(`${tmpdir.path}/s${unixSockets}`);
  } else {
    server.listen(0);
  }
  await once(server, 'listening');
  const address = server.address();
  const connecting = net.connect({
    ...(kind === 'unix' ? { path: address } : { port: address.port }),
    allowHalfOpen: true,
    ...options,
  });
  const { 0: { 0: socket } } = await Promise.all([
    accepted, once(connecting, 'connect'),
  ]);
  server.close();
  track(connecting, socket);
  return [connecting, socket];
}

// TLS over two connected streams: the client's and the server's TLSSocket,
// without waiting for the handshake.
function tlsOver(a, b, { server = {}, client = {}, ...options } = {}) {
  const serverSide = new tls.TLSSocket(b, {
    isServer: true,
    secureContext: tls.createSecureContext({ key, cert, ...options, ...server }),
    ...options,
    ...server,
  });
  const clientSide = tls.connect({
    socket: a,
    rejectUnauthorized: false,
    ...options,
    ...client,
  });
  track(clientSide, serverSide);
  return { client: clientSide, server: serverSide };
}

// A socket of a tls.Server and the tls.connect() to it, both secure; with
// `raw`, also the net.Socket under the client.
async function tlsPair({ server = {}, client = {}, raw, ...options } = {}) {
  const listener = tls.createServer({ key, cert, ...options, ...server });
  const accepted = once(listener, 'secureConnection');
  listener.listen(0);
  await once(listener, 'listening');
  const { port } = listener.address();
  // A TLSSocket is as half-open as what is under it.
  const { allowHalfOpen } = { ...options, ...client };
  const under = raw ? net.connect({ port, allowHalfOpen }) : undefined;
  const socket = tls.connect({
    ...(raw ? { socket: under } : { port }),
    rejectUnauthorized: false,
    ...options,
    ...client,
  });
  track(socket);
  // A handshake may fail on purpose.
  const { 0: { 0: serverSide } } = await Promise.all([
    accepted, once(socket, 'secureConnect'),
  ]).finally(() => listener.close());
  track(serverSide);
  return { client: socket, server: serverSide, raw: under };
}

let fifos = 0;

// The path of a new FIFO, and two file descriptors of it.
function fifo() {
  const tmpdir = require('./tmpdir');
  if (fifos++ === 0)
    tmpdir.refresh();
  const path = `${tmpdir.path}/fifo${fifos}`;
  const { status, stderr } = spawnSync('mkfifo', [path]);
  assert.strictEqual(status, 0, `${stderr}`);
  // Opening one for reading alone would wait for a writer.
  const { O_RDONLY, O_WRONLY, O_NONBLOCK } = fs.constants;
  const reader = fs.openSync(path, O_RDONLY | O_NONBLOCK);
  const writer = fs.openSync(path, O_WRONLY | O_NONBLOCK);
  return { path, reader, writer };
}

// A net.Socket that reads or writes a pipe, and owns it.
function pipeSocket(fd, options) {
  return new net.Socket({ fd, ...options });
}

// Whether a file descriptor is still open.
function isOpen(fd) {
  try {
    fs.fstatSync(fd);
    return true;
  } catch (err) {
    assert.strictEqual(err.code, 'EBADF');
    return false;
  }
}

// Resolves once `count` turns of the event loop have passed, in each of which
// it has looked for events.
async function turns(count = 10) {
  for (let i = 0; i < count; i++)
    await new Promise(setImmediate);
}

// Resolves when `value()` has stayed the same over many turns of the loop.
async function settled(value) {
  for (let same = 0, last = value(); same < 200;) {
    await new Promise(setImmediate);
    const next = value();
    same = next === last ? same + 1 : 0;
    last = next;
  }
}

// The events of an emitter, in the order in which they come.
function record(emitter, names) {
  const events = [];
  for (const name of names)
    emitter.on(name, () => events.push(name));
  return events;
}

// What 'close' brings. Other than once(), does not listen to 'error'.
function closing(emitter) {
  return new Promise((resolve) => emitter.once('close', resolve));
}

// Runs async tests, one after the other. Of what they leave open, the sockets
// that were made here are destroyed.
let queue = Promise.resolve();
const sockets = new Set();

function run(test) {
  queue = queue.then(test).then(common.mustCall(() => {
    for (const socket of sockets)
      socket.destroy();
    sockets.clear();
  }));
}

function track(...pair) {
  for (const socket of pair) {
    sockets.add(socket);
    socket.once('close', () => sockets.delete(socket));
  }
}

module.exports = {
  MiB,
  Receiver,
  cert,
  closing,
  digestOf,
  duplexOver,
  fifo,
  ipv4,
  ipv6,
  isOpen,
  key,
  payload,
  pipeSocket,
  receive,
  record,
  run,
  send,
  settled,
  socketPair,
  tlsOver,
  tlsPair,
  track,
  turns,
};
