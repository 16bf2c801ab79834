'use strict';

// A transfer into a sink that at first reads nothing and then drains: the
// process that splices keeps its memory, and every byte arrives. In both
// directions: with an endpoint that stalls, and with a TLS peer that does.
//
// usage: out/node test/stall/stall.js [--size BYTES] [--stall MILLISECONDS]
//
// The sender and the sink are processes of their own.

const assert = require('assert');
const { fork } = require('child_process');
const { createHash } = require('crypto');
const { once } = require('events');
const fs = require('fs');
const net = require('net');
const path = require('path');
const tls = require('tls');
const { parseArgs } = require('util');

const { values: { size, stall, role } } = parseArgs({
  options: {
    size: { type: 'string', default: `${256 * 1024 * 1024}` },
    stall: { type: 'string', default: '2000' },
    role: { type: 'string' },
  },
});
const kSize = Number(size);
const kStall = Number(stall);
const kMayGrow = 8 * 1024 * 1024;
const highWaterMark = 262144;
const secureConnect = { rejectUnauthorized: false };

// --- The other processes ------------------------------------------------------

async function send(port, secure) {
  const socket = (secure ? tls : net).connect({ port, ...secureConnect });
  await once(socket, secure ? 'secureConnect' : 'connect');
  const hash = createHash('sha256');
  const random = Buffer.alloc(256 * 1024);
  for (let i = 0; i < random.length; i += 4)
    random.writeUInt32LE(Math.imul(i + 1, 0x9e3779b1) >>> 0, i);
  for (let sent = 0; sent < kSize;) {
    // Each chunk starts at another place.
    const start = sent / 65536 % 4 * 4099 & ~3;
    const length = Math.min(random.length - start, kSize - sent);
    // What is waiting to be written must not change.
    const chunk = Buffer.from(random.subarray(start, start + length));
    if (chunk.length >= 8)
      chunk.writeDoubleLE(sent);
    hash.update(chunk);
    sent += length;
    if (!socket.write(chunk))
      await once(socket, 'drain');
  }
  socket.end();
  process.send({ digest: hash.digest('hex') });
  socket.resume();
  await once(socket, 'close');
}

async function drain(port, secure) {
  const socket = (secure ? tls : net).connect({ port, ...secureConnect });
  await once(socket, secure ? 'secureConnect' : 'connect');
  await new Promise((resolve) => setTimeout(resolve, kStall));
  process.send({ drains: true });
  const hash = createHash('sha256');
  let bytes = 0;
  for await (const chunk of socket) {
    hash.update(chunk);
    bytes += chunk.length;
  }
  process.send({ bytes, digest: hash.digest('hex') });
}

// --- The process that splices ---------------------------------------------------

function start(role, ...args) {
  const child = fork(__filename, [
    '--size', size, '--stall', stall, '--role', [role, ...args].join(' '),
  ]);
  const messages = {};
  child.on('message', (message) => Object.assign(messages, message));
  return {
    messages,
    exited: once(child, 'exit').then(({ 0: code }) => {
      assert.strictEqual(code, 0, `the ${role} has failed`);
      return messages;
    }),
  };
}

async function accept(server) {
  server.listen(0, '127.0.0.1');
  await once(server, 'listening');
  return server.address().port;
}

async function test(direction, options) {
  const secureServer = tls.createServer(options);
  const plainServer = net.createServer({ pauseOnConnect: true });
  const accepted = Promise.all([
    once(secureServer, 'secureConnection'), once(plainServer, 'connection'),
  ]);
  const securePort = await accept(secureServer);
  const plainPort = await accept(plainServer);
  const isIn = direction === 'in';
  const sender = start('send', isIn ? securePort : plainPort, isIn ? 'secure' : '');
  const sink = start('drain', isIn ? plainPort : securePort, isIn ? '' : 'secure');
  const { 0: { 0: socket }, 1: { 0: endpoint } } = await accepted;

  const splice = socket.spliceTo({ stream: endpoint, direction, highWaterMark });
  global.gc?.();
  const before = process.memoryUsage.rss();
  let most = before;
  let movedInStall = 0;
  const timer = setInterval(() => {
    most = Math.max(most, process.memoryUsage.rss());
    if (!sink.messages.drains)
      movedInStall = splice.stats.bytesIn + splice.stats.bytesOut;
  }, 20);
  splice.start();
  const stats = await splice.finished;
  clearInterval(timer);
  if (isIn)
    socket.end();
  else
    endpoint.end();
  const { 0: sent, 1: received } = await Promise.all([sender.exited, sink.exited]);
  secureServer.close();
  plainServer.close();

  const MiB = (bytes) => (bytes / 1024 / 1024).toFixed(1);
  console.log(`${direction}: ${MiB(kSize)} MiB, ${MiB(movedInStall)} MiB of it before the sink read; ` +
              `RSS ${MiB(before)} MiB, at most ${MiB(most - before)} MiB more`);
  assert.strictEqual(received.bytes, kSize);
  assert.strictEqual(received.digest, sent.digest);
  assert.strictEqual(isIn ? stats.bytesIn : stats.bytesOut, kSize);
  assert((isIn ? stats.stallsIn : stats.stallsOut) > 0);
  assert((isIn ? stats.peakBufferedIn : stats.peakBufferedOut) <= highWaterMark);
  // It has stalled: the rest was waiting in the sender, not here.
  assert(movedInStall < kSize / 2, `${movedInStall}`);
  assert(most - before <= kMayGrow, `grew by ${MiB(most - before)} MiB`);
}

async function main() {
  const keys = path.join(__dirname, '../../out/tree/test/fixtures/keys');
  const options = {
    key: fs.readFileSync(path.join(keys, 'agent1-key.pem')),
    cert: fs.readFileSync(path.join(keys, 'agent1-cert.pem')),
  };
  let failed = 0;
  for (const direction of ['in', 'out']) {
    try {
      await test(direction, options);
      console.log(`ok - ${direction}`);
    } catch (err) {
      console.log(`not ok - ${direction}`, err);
      failed++;
    }
  }
  console.log(`${2 - failed} passed, ${failed} failed`);
  process.exit(failed ? 1 : 0);
}

if (role === undefined) {
  main();
} else {
  const { 0: name, 1: port, 2: secure } = role.split(' ');
  (name === 'send' ? send : drain)(Number(port), secure === 'secure');
}
