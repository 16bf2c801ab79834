'use strict';

// What a splice makes of system calls that come back short, interrupted, too
// early, or with an error. shim.c does that to the calls on the endpoint and on
// the TCP connection under TLS; here is where, and what must come of it. A fault
// that never struck is a failure, too.
//
// usage: test/fault/run [--seed NUMBER] [--only WORD]

// The shim is for this process, not for its children. In front of it there may be the library of
// AddressSanitizer.
const preloaded = process.env.LD_PRELOAD.split(':');
const shimPath = preloaded.at(-1);
const hasAddressSanitizer = preloaded.length > 1;
delete process.env.LD_PRELOAD;
const addon = { exports: {} };
process.dlopen(addon, shimPath);
const shim = addon.exports;

const assert = require('assert');
const dgram = require('dgram');
const { once } = require('events');
const fs = require('fs');
const net = require('net');
const os = require('os');
const path = require('path');
const { Duplex, Readable } = require('stream');
const tls = require('tls');
const { parseArgs } = require('util');
const { Worker } = require('worker_threads');

const common = path.join(__dirname, '../../out/tree/test/common');
const {
  MiB, Receiver, cert, closing, fifo, isOpen, key, payload, pipeSocket, receive, record, send, settled, socketPair,
  tlsOver, tlsPair, turns,
} = require(`${common}/tls-splice`);
const tmpdir = require(`${common}/tmpdir`);

const { values: { seed, only } } = parseArgs({
  options: {
    seed: { type: 'string', default: `${process.hrtime.bigint() % 1000000n}` },
    only: { type: 'string', default: '' },
  },
});
const kSize = 4 * MiB + 77;
const kSeedIn = 1;
const kSeedOut = 2;

// --- Faults --------------------------------------------------------------------

const kFunctions = [
  'read', 'readv', 'pread', 'recv', 'recvmsg', 'recvmmsg',
  'write', 'writev', 'pwrite', 'send', 'sendmsg', 'sendmmsg',
];
const kKinds = { short: 0, fail: 1, end: 2, more: 3, hold: 4 };

// How often each fault struck in each function, over all cases.
const injected = {};

class Fault {
  #id;

  // On what `fd` refers to. `name` is 'short', 'end', 'more', 'hold', or the error.
  constructor(fd, access, name, { rate = 1, after = 0, times = Number.MAX_SAFE_INTEGER } = {}) {
    const kind = kKinds[name] ?? kKinds.fail;
    const errno = kind === kKinds.fail ? os.constants.errno[name] : 0;
    assert(errno !== undefined, name);
    this.name = `${name} in ${access}`;
    this.kind = name;
    this.#id = shim.add(fd, access === 'write' ? 1 : 0, kind, errno, rate, after, times);
  }

  get state() {
    const { 0: bytes, 1: held, 2: onMainThread, ...counts } = shim.state(this.#id);
    const functions = {};
    for (const [i, count] of Object.entries(counts)) {
      if (count > 0)
        functions[kFunctions[i - 3]] = count;
    }
    return { bytes, held, onMainThread, functions };
  }

  release() {
    shim.release(this.#id);
  }

  check() {
    const { functions } = this.state;
    const all = injected[this.kind] ??= {};
    let sum = 0;
    for (const [name, count] of Object.entries(functions)) {
      all[name] = (all[name] ?? 0) + count;
      sum += count;
    }
    assert(sum > 0, `${this.name} was never injected`);
  }
}

// Those of the case that runs.
let faults = [];

function inject(...args) {
  const fault = new Fault(...args);
  faults.push(fault);
  return fault;
}

// What a caller that does it right does not notice.
function injectTransparent(fd, access, names) {
  for (const name of names) {
    if (name === 'storm')
      inject(fd, access, 'EAGAIN', { times: 1000 });
    else
      inject(fd, access, name, { rate: 0.4 });
  }
}

// --- Cases ---------------------------------------------------------------------

const cases = [];
let passed = 0;
let failed = 0;

function test(name, run) {
  if (name.includes(only))
    cases.push({ name, run });
}

// What the case that runs has opened.
const cleanup = [];

function defer(close) {
  cleanup.push(close);
}

// The cases that have ended, and those that passed, for watchdog.js.
const progress = new Int32Array(new SharedArrayBuffer(8));

async function runAll() {
  console.log(`seed ${seed}`);
  const names = cases.map(({ name }) => name);
  new Worker(path.join(__dirname, 'watchdog.js'), { workerData: { progress, names, seed } }).unref();
  shim.seed(Number(seed));
  tmpdir.refresh();
  for (const { name, run } of cases) {
    try {
      await run();
      faults.forEach((fault) => fault.check());
      passed++;
      console.log(`ok - ${name}`);
    } catch (err) {
      failed++;
      console.log(`not ok - ${name} (seed ${seed})`, err);
    }
    progress[0]++;
    progress[1] = passed;
    Atomics.notify(progress, 0);
    faults.forEach((fault) => fault.release());
    for (const close of cleanup.splice(0))
      close();
    await turns();
    faults = [];
    shim.clear();
  }
  // That the faults were where they were meant to be.
  if (only === '') {
    for (const name of ['short', 'EINTR', 'EAGAIN']) {
      for (const call of ['read', 'recv', 'write', 'writev', 'send']) {
        if (injected[name]?.[call] > 0)
          continue;
        failed++;
        console.log(`not ok - ${name} was never injected in ${call}()`);
      }
    }
  }
  for (const [name, functions] of Object.entries(injected)) {
    const text = Object.entries(functions).map(([call, n]) => `${call} ${n}`);
    console.log(`${name}: ${text.join(', ')}`);
  }
  console.log(`${passed} passed, ${failed} failed`);
  process.exit(failed === 0 ? 0 : 1);
}

async function openTLS(options) {
  const pair = await tlsPair({ allowHalfOpen: true, ...options });
  for (const socket of [pair.client, pair.server]) {
    defer(() => socket.destroy());
    // It is looked at where one is expected.
    socket.on('error', () => {});
  }
  return pair;
}

function closeFd(fd) {
  defer(() => { if (isOpen(fd)) fs.closeSync(fd); });
}

let files = 0;

// Endpoints for one direction, or for both.
//   target: what is given to spliceTo()
//   fd: whose calls the faults befall
//   other: what reads or writes the other side; a file has none
//   left(): a stream of what a source has left, or of what a sink could not be given
//   isOpen(): whether it is left to its owner
const endpoints = {
  fifo(direction) {
    const { reader, writer } = fifo();
    const isIn = direction === 'in';
    const fd = isIn ? writer : reader;
    const other = isIn ? pipeSocket(reader, { writable: false }) : pipeSocket(writer, { readable: false });
    closeFd(fd);
    defer(() => other.destroy());
    return {
      target: { fd },
      fd,
      other,
      isOpen: () => isOpen(fd),
      left: () => pipeSocket(fd, { writable: false }),
      end: () => fs.closeSync(fd),
    };
  },

  // A socket that blocks, and stays so.
  blocking() {
    const { 0: fd, 1: peer } = shim.socketPair();
    const other = new net.Socket({ fd: peer, allowHalfOpen: true });
    closeFd(fd);
    defer(() => other.destroy());
    return {
      target: { fd },
      fd,
      other,
      isOpen: () => isOpen(fd) && shim.isBlocking(fd) === 1,
      left: () => new net.Socket({ fd, allowHalfOpen: true }),
      end: () => fs.closeSync(fd),
    };
  },

  async unix(direction, kind = 'unix') {
    const { 0: stream, 1: other } = await socketPair(kind);
    defer(() => { stream.destroy(); other.destroy(); });
    return {
      target: { stream },
      fd: stream._handle.fd,
      other,
      isOpen: () => !stream.destroyed,
      left: () => stream,
      end: () => stream.end(),
    };
  },

  tcp: (direction) => endpoints.unix(direction, 'tcp'),

  // By its descriptor, which the pump reads and writes itself.
  async 'tcp fd'() {
    const { 0: other, 1: stream } = await socketPair('tcp', { pauseOnConnect: true });
    defer(() => { stream.destroy(); other.destroy(); });
    const { fd } = stream._handle;
    return {
      target: { fd },
      fd,
      other,
      isOpen: () => !stream.destroyed,
      left: () => stream,
      end: () => stream.end(),
    };
  },

  // Another TLSSocket. The faults befall the connection under it.
  async tls() {
    const { client: other, server: stream } = await openTLS();
    return {
      target: { stream },
      fd: stream._handle.fd,
      other,
      isOpen: () => !stream.destroyed,
      left: () => stream,
      end: () => stream.end(),
    };
  },

  file(direction) {
    const name = path.join(tmpdir.path, `file${++files}`);
    if (direction === 'out')
      fs.writeFileSync(name, Buffer.concat([...payload(kSize, kSeedOut)]));
    const fd = fs.openSync(name, direction === 'in' ? 'w+' : 'r');
    closeFd(fd);
    return {
      target: { fd },
      fd,
      name,
      isOpen: () => isOpen(fd),
      left: () => Readable.from([fs.readFileSync(fd)]),
      end() {},
    };
  },
};

// What a sink has got, once it has ended.
async function delivered(endpoint, received) {
  if (endpoint.other)
    return received;
  const receiver = new Receiver();
  receiver.update(fs.readFileSync(endpoint.name));
  return receiver;
}

function sourceOf(endpoint, size = kSize) {
  if (endpoint.other)
    return send(endpoint.other, size, { seed: kSeedOut });
}

// --- Faults that lose nothing ---------------------------------------------------

function directionsOf(direction) {
  return direction === 'duplex' ? ['in', 'out'] : [direction];
}

// A transfer in each of the directions, through one splice if the endpoint can
// do both.
async function transfer(kind, direction, inEndpoint, inTLS, options) {
  const { client, server } = await openTLS(options);
  const spliced = [];
  if (direction === 'duplex' && kind !== 'fifo' && kind !== 'file') {
    spliced.push({ direction, endpoint: await endpoints[kind](direction) });
  } else {
    for (const one of directionsOf(direction))
      spliced.push({ direction: one, endpoint: await endpoints[kind](one) });
  }
  const sinks = [];
  const pending = [];
  for (const each of spliced) {
    const { endpoint } = each;
    each.splice = server.spliceTo({ ...endpoint.target, direction: each.direction });
    for (const one of directionsOf(each.direction)) {
      injectTransparent(endpoint.fd, one === 'in' ? 'write' : 'read', inEndpoint);
      injectTransparent(server._handle.fd, one === 'in' ? 'read' : 'write', inTLS);
      if (one === 'in')
        sinks.push({ endpoint, received: endpoint.other && receive(endpoint.other) });
    }
  }
  for (const { splice } of spliced)
    splice.start();
  for (const each of spliced) {
    for (const one of directionsOf(each.direction))
      pending.push(one === 'in' ? send(client, kSize, { seed: kSeedIn }) : sourceOf(each.endpoint));
  }
  const fromServer = direction === 'in' ? undefined : receive(client);
  await Promise.all(pending);
  for (const { splice, endpoint, direction } of spliced) {
    const stats = await splice.finished;
    assert.strictEqual(stats.reason, 'end');
    assert.strictEqual(stats.bytesIn, direction === 'out' ? 0 : kSize);
    assert.strictEqual(stats.bytesOut, direction === 'in' ? 0 : kSize);
    assert.strictEqual(stats.closeNotify, direction !== 'out');
    if (!endpoint.target.stream)
      assert(endpoint.isOpen());
    if (direction === 'in')
      endpoint.end();
  }
  for (const { endpoint, received } of sinks)
    (await delivered(endpoint, received)).check(kSize, kSeedIn);
  (await fromServer)?.check(kSize, kSeedOut);
}

const kTransparent = ['short', 'EINTR', 'EAGAIN'];

for (const kind of Object.keys(endpoints)) {
  for (const direction of ['in', 'out', 'duplex']) {
    for (const name of [...kTransparent, 'storm']) {
      test(`${kind}, ${direction}: ${name} at the endpoint`,
           () => transfer(kind, direction, [name], []));
    }
    test(`${kind}, ${direction}: all of them at the endpoint and under TLS`,
         () => transfer(kind, direction, kTransparent, kTransparent));
  }
}
for (const version of ['TLSv1.2', 'TLSv1.3']) {
  for (const direction of ['in', 'out', 'duplex']) {
    for (const name of [...kTransparent, 'storm']) {
      test(`${version}, ${direction}: ${name} under TLS`,
           () => transfer('unix', direction, [], [name], { minVersion: version, maxVersion: version }));
    }
  }
  // libuv waits until the network interface has room.
  test(`${version}, out: ENOBUFS under TLS`,
       () => transfer('tcp', 'out', [], ['ENOBUFS'], { minVersion: version, maxVersion: version }));
}
for (const kind of ['unix', 'tcp', 'tls'])
  test(`${kind}, in: ENOBUFS at the endpoint`, () => transfer(kind, 'in', ['ENOBUFS'], []));

// Cut into pieces by stop(), each of which is delivered or handed back, while the
// calls are cut and delayed as well.
async function inPieces(kind, direction) {
  const { client, server } = await openTLS();
  const endpoint = await endpoints[kind](direction);
  const isIn = direction === 'in';
  const atSink = isIn && endpoint.other ? receive(endpoint.other) : undefined;
  injectTransparent(endpoint.fd, isIn ? 'write' : 'read', kTransparent);
  injectTransparent(server._handle.fd, isIn ? 'read' : 'write', kTransparent);
  const sending = isIn ? send(client, kSize, { seed: kSeedIn }) : sourceOf(endpoint);
  const fromServer = isIn ? undefined : receive(client);
  // stop() may come when one has ended, but not yet the other.
  for (let pieces = 0, reason;
    reason !== 'end' && !server.writableEnded && !endpoint.target.stream?.writableEnded; pieces++) {
    const splice = server.spliceTo({ ...endpoint.target, direction }).start();
    if (pieces < 20) {
      await turns(2);
      ({ reason } = await splice.stop());
    } else {
      ({ reason } = await splice.finished);
    }
  }
  await sending;
  if (isIn) {
    endpoint.end();
    (await delivered(endpoint, atSink)).check(kSize, kSeedIn);
  } else {
    (await fromServer).check(kSize, kSeedOut);
  }
}

for (const kind of Object.keys(endpoints)) {
  for (const direction of ['in', 'out'])
    test(`${kind}, ${direction}: all of them, and stop() again and again`, () => inPieces(kind, direction));
}

// --- The endpoint fails ----------------------------------------------------------

const kAfter = 300_001;

function outcomeOf(splice) {
  const events = record(splice, ['error', 'close']);
  const outcome = Promise.all([
    new Promise((resolve) => splice.once('error', resolve)), closing(splice),
  ]);
  return async (code, syscall, reason = 'error') => {
    const { 0: error, 1: stats } = await outcome;
    assert.strictEqual(error.code, code);
    assert.strictEqual(error.syscall, syscall);
    assert.strictEqual(error.errno, -os.constants.errno[code]);
    assert.match(error.message, new RegExp(`^${syscall} ${code}`));
    assert.deepStrictEqual(events, ['error', 'close']);
    assert.strictEqual(stats.reason, reason);
    assert.strictEqual(stats.closeNotify, false);
    await assert.rejects(splice.finished, error);
    return stats;
  };
}

// A stream is ended first, and so takes a few turns to close.
async function checkOpen(endpoint, expected) {
  const { stream } = endpoint.target;
  if (stream && !expected && !stream.closed)
    await closing(stream);
  assert.strictEqual(endpoint.isOpen(), expected);
}

// Both directions are JS's again.
async function talk(from, to) {
  const data = once(to, 'data');
  from.write('still there');
  assert.strictEqual(`${(await data)[0]}`, 'still there');
}

// A sink that takes `kAfter` bytes, and then fails.
async function sinkFails(kind, code, { autoClose, after = kAfter, direction = 'in', fault = code }) {
  const { client, server } = await openTLS();
  const endpoint = await endpoints[kind](direction);
  const atSink = endpoint.other && receive(endpoint.other);
  // libuv tells of an error behind a partial write to a file at the next one.
  inject(endpoint.fd, 'write', fault, { after });
  const splice = server.spliceTo({ ...endpoint.target, direction, autoClose });
  const outcome = outcomeOf(splice);
  splice.start();
  const sending = send(client, kSize, { seed: kSeedIn, end: false });
  const stats = await outcome(code, 'write');
  assert.strictEqual(stats.bytesIn, after);
  await checkOpen(endpoint, !autoClose);
  assert.strictEqual(server.destroyed, false);
  if (!autoClose)
    endpoint.end();
  const sink = await delivered(endpoint, atSink);
  sink.check(after, kSeedIn);

  // What it did not take is JS's, and so is all that comes later.
  const rest = receive(server, sink);
  await sending;
  await talk(server, client);
  client.end();
  (await rest).check(kSize, kSeedIn);
}

// A source that yields `after` bytes, and then fails, once.
async function sourceFails(kind, code, { autoClose, after = kAfter, direction = 'out' }) {
  const { client, server } = await openTLS();
  const endpoint = await endpoints[kind](direction);
  const fault = inject(endpoint.fd, 'read', code, { after, times: 1 });
  const { stream } = endpoint.target;
  const streamEvents = stream && record(stream, ['error', 'end']);
  const splice = server.spliceTo({ ...endpoint.target, direction, autoClose });
  const outcome = outcomeOf(splice);
  const received = receive(client).receiver;
  splice.start();
  const sending = sourceOf(endpoint);
  // It is not always all taken.
  sending?.catch(() => {});
  endpoint.other?.on('error', () => {});
  const stats = await outcome(code, 'read');
  assert.strictEqual(fault.state.bytes, after);
  assert.strictEqual(stats.bytesOut, after);
  // libuv does not read a stream that has failed. Why, the splice has said.
  const isLeft = !autoClose && !stream;
  await checkOpen(endpoint, isLeft);
  assert.deepStrictEqual(streamEvents ?? [], []);
  assert.strictEqual(server.destroyed, false);
  assert.strictEqual(server.writableEnded, false);
  await received.reached(after);
  received.check(after, kSeedOut);
  if (!isLeft) {
    // Not an end, and JS writes what comes next.
    await talk(server, client);
    assert.strictEqual(received.bytes, after + 'still there'.length);
  } else {
    // The rest is where it was.
    const left = endpoint.left();
    defer(() => left.destroy());
    left.pipe(server);
    await received.reached(kSize);
    received.check(kSize, kSeedOut);
  }
  // The other direction
  await talk(client, server);
}

// Fails in what waits for a sink that has stalled: the rest of what libuv has
// taken, of which it writes a part.
async function stalledSinkFails(kind, code) {
  const { client, server } = await openTLS();
  const endpoint = await endpoints[kind]('in');
  const splice = server.spliceTo({ ...endpoint.target, direction: 'in' });
  const outcome = outcomeOf(splice);
  splice.start();
  endpoint.other.pause();
  const sending = send(client, kSize, { seed: kSeedIn, end: false });
  await settled(() => server.bytesRead);
  inject(endpoint.fd, 'write', code, { after: 5000 });
  const atSink = receive(endpoint.other);
  const { bytesIn } = await outcome(code, 'write');
  assert.strictEqual(server.destroyed, false);
  endpoint.end();
  (await atSink).check(bytesIn, kSeedIn);
  const rest = receive(server, head(bytesIn, kSeedIn));
  await sending;
  client.end();
  (await rest).check(kSize, kSeedIn);
}

// pipeToNative() rejects, and destroys the socket.
async function pipeFails(kind, code, direction) {
  const { client, server } = await openTLS();
  const endpoint = await endpoints[kind](direction);
  const isIn = direction === 'in';
  inject(endpoint.fd, isIn ? 'write' : 'read', code, { after: kAfter });
  const { fd, stream } = endpoint.target;
  if (isIn)
    endpoint.other?.resume();
  else
    client.resume();
  const done = server.pipeToNative(fd ?? stream, { direction });
  const closed = closing(server);
  const sending = isIn ? send(client, kSize) : sourceOf(endpoint);
  sending?.catch(() => {});
  await assert.rejects(done, { code, syscall: isIn ? 'write' : 'read' });
  assert.strictEqual(server.destroyed, true);
  await closed;
  // A stream that fails to be read is destroyed, and a TLSSocket that fails at all.
  assert.strictEqual(endpoint.isOpen(), !stream || (isIn && !stream.encrypted));
}

// The connection of the other TLSSocket fails: that is destroyed, and this one
// is not.
async function otherFails(code, syscall, { direction, autoClose = false }) {
  const { client, server } = await openTLS();
  const endpoint = await endpoints.tls();
  const { target: { stream }, other } = endpoint;
  const isWrite = syscall === 'write';
  // Some of what was on its way is lost with it: it is half a record, and what the
  // kernel held.
  inject(endpoint.fd, syscall, code, { after: kAfter, times: 1 });
  const splice = server.spliceTo({ stream, direction, autoClose });
  const outcome = outcomeOf(splice);
  const failing = new Promise((resolve) => stream.once('error', resolve));
  const receiving = receive(other);
  receiving.catch(() => {});
  const atOther = receiving.receiver;
  const atClient = receive(client).receiver;
  const otherEnded = new Promise((resolve) => { other.on('end', resolve); other.on('close', resolve); });
  splice.start();
  const sending = isWrite || direction === 'duplex' ? send(client, kSize, { seed: kSeedIn, end: false }) : undefined;
  if (!isWrite || direction === 'duplex')
    sourceOf(endpoint).catch(() => {});
  const { bytesIn, bytesOut } = await outcome(code, syscall);
  assert.strictEqual((await failing).code, code);
  assert.strictEqual(stream.destroyed, true);
  assert.strictEqual(server.destroyed, false);
  assert.strictEqual(server.writableEnded, false);

  await otherEnded;
  const { bytes } = atOther;
  atOther.check(bytes, kSeedIn);
  assert(bytes <= bytesIn, `${bytes} > ${bytesIn}`);
  if (isWrite)
    assert(bytes > kAfter - 40_000 && bytes < kAfter, `${bytes}`);
  if (direction !== 'in') {
    // What had come whole has gone on, and JS writes what comes next.
    await atClient.reached(bytesOut);
    atClient.check(bytesOut, kSeedOut);
    assert(isWrite || (bytesOut > kAfter - 40_000 && bytesOut < kAfter), `${bytesOut}`);
  }
  await talk(server, client);
  // What was not passed on is JS's, and so is all that comes later.
  if (sending) {
    const rest = receive(server, head(bytesIn, kSeedIn));
    await sending;
    client.end();
    (await rest).check(kSize, kSeedIn);
  } else {
    await talk(client, server);
  }
}

// As if so many bytes had been received.
function head(bytes, seed) {
  const receiver = new Receiver();
  for (const chunk of payload(kSize, seed))
    receiver.update(chunk.subarray(0, bytes - receiver.bytes));
  return receiver;
}

// A file that was cut, or a peer that is gone without a word.
async function sourceEnds(kind) {
  const { client, server } = await openTLS();
  const endpoint = await endpoints[kind]('out');
  inject(endpoint.fd, 'read', 'end', { after: kAfter });
  const splice = server.spliceTo({ ...endpoint.target, direction: 'out' });
  const received = receive(client);
  sourceOf(endpoint)?.catch(() => {});
  const { reason, bytesOut } = await splice.start().finished;
  assert.strictEqual(reason, 'end');
  // Without the rest of the record that was cut.
  assert(kind === 'tls' ? bytesOut > kAfter - 20_000 && bytesOut < kAfter : bytesOut === kAfter, `${bytesOut}`);
  (await received).check(bytesOut, kSeedOut);
}

async function tlsEnds(kind) {
  const { client, server } = await openTLS();
  const endpoint = await endpoints[kind]('in');
  const atSink = endpoint.other && receive(endpoint.other);
  inject(server._handle.fd, 'read', 'end', { after: kAfter });
  const splice = server.spliceTo({ ...endpoint.target, direction: 'in' }).start();
  send(client, kSize, { seed: kSeedIn }).catch(() => {});
  const { reason, bytesIn, closeNotify } = await splice.finished;
  assert.strictEqual(reason, 'end');
  assert.strictEqual(closeNotify, false);
  assert(bytesIn > kAfter - 20_000 && bytesIn < kAfter, `${bytesIn}`);
  endpoint.end();
  (await delivered(endpoint, await atSink)).check(bytesIn, kSeedIn);
}

for (const kind of Object.keys(endpoints)) {
  test(`${kind}, out: an end that comes too early`, () => sourceEnds(kind));
  test(`${kind}, in: an end that comes too early under TLS`, () => tlsEnds(kind));
}

for (const code of ['EPIPE', 'ECONNRESET', 'ETIMEDOUT']) {
  for (const direction of ['in', 'duplex'])
    test(`tls, ${direction}: ${code} of the other, writing`, () => otherFails(code, 'write', { direction }));
}
for (const code of ['ECONNRESET', 'ETIMEDOUT', 'EIO']) {
  for (const direction of ['out', 'duplex'])
    test(`tls, ${direction}: ${code} of the other, reading`, () => otherFails(code, 'read', { direction }));
}
test('tls, in: EPIPE of the other, autoClose',
     () => otherFails('EPIPE', 'write', { direction: 'in', autoClose: true }));
for (const { 0: direction, 1: code } of [['in', 'EPIPE'], ['out', 'ECONNRESET']])
  test(`tls, ${direction}: ${code} of the other with pipeToNative()`, () => pipeFails('tls', code, direction));

const kErrors = {
  'fifo': { write: ['EPIPE', 'EIO'], read: ['EIO'] },
  'blocking': { write: ['EPIPE', 'ECONNRESET', 'ENOBUFS'], read: ['ECONNRESET', 'ENOBUFS'] },
  'unix': { write: ['EPIPE', 'ECONNRESET'], read: ['ECONNRESET', 'ENOBUFS'] },
  'tcp': { write: ['EPIPE', 'ECONNRESET', 'ETIMEDOUT'], read: ['ECONNRESET', 'ENOBUFS', 'ETIMEDOUT'] },
  'tcp fd': { write: ['EPIPE', 'ECONNRESET', 'ENOBUFS'], read: ['ECONNRESET', 'ENOBUFS'] },
  'file': { write: ['ENOSPC', 'EIO', 'EFBIG'], read: ['EIO'] },
};

for (const [kind, { write, read }] of Object.entries(kErrors)) {
  // A descriptor that has another owner is not given away.
  const autoCloses = kind === 'tcp fd' ? [false] : [false, true];
  for (const code of write) {
    for (const autoClose of autoCloses) {
      const title = autoClose ? ', autoClose' : '';
      test(`${kind}, in: ${code}${title}`, () => sinkFails(kind, code, { autoClose }));
    }
    test(`${kind}, in: ${code} at the first byte`, () => sinkFails(kind, code, { after: 0 }));
    test(`${kind}, in: ${code} with pipeToNative()`, () => pipeFails(kind, code, 'in'));
  }
  for (const code of read) {
    for (const autoClose of autoCloses) {
      const title = autoClose ? ', autoClose' : '';
      test(`${kind}, out: ${code}${title}`, () => sourceFails(kind, code, { autoClose }));
    }
    test(`${kind}, out: ${code} at the first byte`, () => sourceFails(kind, code, { after: 0 }));
    test(`${kind}, out: ${code} with pipeToNative()`, () => pipeFails(kind, code, 'out'));
  }
}
// What takes nothing takes nothing the next time either.
for (const kind of ['fifo', 'blocking', 'tcp fd', 'file']) {
  for (const after of [0, kAfter])
    test(`${kind}, in: a write of 0 after ${after} bytes`, () => sinkFails(kind, 'ENOSPC', { after, fault: 'end' }));
}
// TCP would take all of it.
for (const kind of ['fifo', 'blocking', 'unix'])
  test(`${kind}, in: EPIPE after a stall`, () => stalledSinkFails(kind, 'EPIPE'));
for (const kind of ['blocking', 'unix', 'tcp', 'tcp fd']) {
  // One of the directions fails: both are over.
  test(`${kind}, duplex: ECONNRESET at the sink`, () => sinkFails(kind, 'ECONNRESET', { direction: 'duplex' }));
  test(`${kind}, duplex: ECONNRESET at the source`, () => sourceFails(kind, 'ECONNRESET', { direction: 'duplex' }));
}

// --- The connection under TLS fails -----------------------------------------------

async function tlsReadFails(kind, code, direction) {
  const { client, server } = await openTLS();
  const endpoint = await endpoints[kind](direction);
  const isOut = direction === 'out';
  const atSink = !isOut && endpoint.other ? receive(endpoint.other) : undefined;
  inject(server._handle.fd, 'read', code, { after: kAfter, times: 1 });
  const splice = server.spliceTo({ ...endpoint.target, direction });
  const outcome = outcomeOf(splice);
  const failing = new Promise((resolve) => server.once('error', resolve));
  splice.start();
  if (isOut)
    server.resume();
  send(client, kSize, { seed: kSeedIn }).catch(() => {});
  const stats = await outcome(code, 'read');
  const error = await failing;
  assert.strictEqual(error.code, code);
  assert.strictEqual(error.syscall, 'read');
  assert.strictEqual(server.destroyed, true);
  assert(endpoint.isOpen());
  if (isOut)
    return;
  // Every byte of the records that had come whole.
  endpoint.end();
  const sink = await delivered(endpoint, atSink);
  sink.check(stats.bytesIn, kSeedIn);
  assert(stats.bytesIn > kAfter - 20_000 && stats.bytesIn < kAfter, `${stats.bytesIn}`);
}

async function tlsWriteFails(kind, code, direction) {
  const { client, server } = await openTLS();
  const endpoint = await endpoints[kind](direction);
  inject(server._handle.fd, 'write', code, { after: kAfter, times: 1 });
  const splice = server.spliceTo({ ...endpoint.target, direction });
  const outcome = outcomeOf(splice);
  const failing = new Promise((resolve) => server.once('error', resolve));
  const { receiver } = receive(client);
  const ended = new Promise((resolve) => { client.on('end', resolve); client.on('close', resolve); });
  splice.start();
  sourceOf(endpoint)?.catch(() => {});
  endpoint.other?.on('error', () => {});
  await outcome(code, 'write');
  assert.strictEqual((await failing).code, code);
  assert.strictEqual(server.destroyed, true);
  assert(endpoint.isOpen());
  // The peer has got what had gone out, and no more.
  await ended;
  const { bytes } = receiver;
  receiver.check(bytes, kSeedOut);
  assert(bytes > kAfter - 40_000 && bytes < kAfter, `${bytes}`);
}

for (const kind of Object.keys(endpoints)) {
  for (const code of ['ECONNRESET', 'ETIMEDOUT', 'EIO']) {
    test(`${kind}, in: ${code} under TLS, reading`, () => tlsReadFails(kind, code, 'in'));
    test(`${kind}, out: ${code} under TLS, reading`, () => tlsReadFails(kind, code, 'out'));
  }
  for (const code of ['ECONNRESET', 'EPIPE', 'ETIMEDOUT'])
    test(`${kind}, out: ${code} under TLS, writing`, () => tlsWriteFails(kind, code, 'out'));
}
for (const kind of ['blocking', 'unix', 'tcp', 'tls']) {
  test(`${kind}, duplex: ECONNRESET under TLS, reading`, () => tlsReadFails(kind, 'ECONNRESET', 'duplex'));
  test(`${kind}, duplex: EPIPE under TLS, writing`, () => tlsWriteFails(kind, 'EPIPE', 'duplex'));
}

// --- A sink that is full before the first turn --------------------------------------

// How many bytes that takes. Nobody reads them.
async function fill({ fd, other }) {
  const chunk = Buffer.alloc(MiB);
  let bytes = 0;
  other.pause();
  // What the kernel has taken may yet move on to make room.
  for (let full = 0; full < 3;) {
    try {
      bytes += fs.writeSync(fd, chunk);
      full = 0;
    } catch (err) {
      assert.strictEqual(err.code, 'EAGAIN');
      full++;
      await turns(1);
    }
  }
  return bytes;
}

// Of what comes behind those.
function receiveBehind(other, skipped) {
  const receiver = new Receiver();
  const ended = new Promise((resolve) => other.on('end', resolve));
  other.on('data', (chunk) => {
    const skip = Math.min(skipped, chunk.length);
    skipped -= skip;
    if (skip < chunk.length)
      receiver.update(chunk.subarray(skip));
  });
  other.resume();
  return { receiver, ended };
}

// It fails when it takes something at last.
async function fullSinkFails(kind, code, direction) {
  const { client, server } = await openTLS();
  const endpoint = await endpoints[kind](direction);
  await fill(endpoint);
  const splice = server.spliceTo({ ...endpoint.target, direction });
  const outcome = outcomeOf(splice);
  splice.start();
  const sending = send(client, kSize, { seed: kSeedIn, end: false });
  await settled(() => server.bytesRead);
  inject(endpoint.fd, 'write', code);
  endpoint.other.resume();
  const { bytesIn, peakBufferedIn } = await outcome(code, 'write');
  // Of a stream one byte is libuv's, and is lost if that cannot write it.
  assert.strictEqual(bytesIn, 0);
  assert(peakBufferedIn > 0);
  assert.strictEqual(server.destroyed, false);
  const rest = receive(server);
  await sending;
  client.end();
  (await rest).check(kSize, kSeedIn);
}

// The handles in the order in which they are started, or one for both.
const kHandles = { 'one handle': ['duplex'], "'in', then 'out'": ['in', 'out'], "'out', then 'in'": ['out', 'in'] };

// The connection under TLS fails while bytes are held: they come first, whoever
// has seen it.
async function failsWhileHeld(kind, code, access, directions) {
  const { client, server } = await openTLS();
  // A FIFO goes one way.
  const sink = await endpoints[kind]('in');
  const source = kind === 'fifo' ? endpoints.fifo('out') : sink;
  const filled = await fill(sink);
  const outcomes = [];
  for (const direction of directions) {
    const { target } = direction === 'out' ? source : sink;
    const splice = server.spliceTo({ ...target, direction });
    outcomes.push(outcomeOf(splice));
    splice.start();
  }
  const failing = new Promise((resolve) => server.once('error', resolve));
  // The whole of it is there.
  const size = 50_000;
  const { bytesRead } = server;
  send(client, size, { seed: kSeedIn, end: false });
  await settled(() => server.bytesRead);
  assert(server.bytesRead > bytesRead);
  inject(server._handle.fd, access, code, { times: 1 });
  // It is read on as soon as there is room again.
  if (access === 'read')
    client.write('more');
  else
    source.other.write('something to send');
  await turns();
  const { receiver } = receiveBehind(sink.other, filled);
  const { code: seen } = await failing;
  assert.strictEqual(seen, code);
  let bytesIn = 0;
  for (const outcome of outcomes)
    ({ bytesIn } = maxOf({ bytesIn }, await outcome(code, access)));
  assert.strictEqual(bytesIn, size);
  await receiver.reached(size);
  receiver.check(size, kSeedIn);
  assert.strictEqual(server.destroyed, true);
  assert(sink.isOpen());
}

function maxOf(one, other) {
  return one.bytesIn > other.bytesIn ? one : other;
}

for (const kind of ['fifo', 'unix', 'tcp', 'tcp fd']) {
  for (const code of ['EPIPE', 'EIO'])
    test(`${kind}, in: ${code} of a sink that was full in the first turn`, () => fullSinkFails(kind, code, 'in'));
  for (const [name, directions] of Object.entries(kHandles)) {
    if (kind === 'fifo' && directions[0] === 'duplex')
      continue;
    for (const [code, access] of [['EPIPE', 'write'], ['ECONNRESET', 'write'], ['ECONNRESET', 'read']]) {
      test(`${kind}, ${name}: ${code} under TLS, ${access}, while the sink is full`,
           () => failsWhileHeld(kind, code, access, directions));
    }
  }
}
for (const kind of ['unix', 'tcp', 'tcp fd'])
  test(`${kind}, duplex: EPIPE of a sink that was full in the first turn`, () => fullSinkFails(kind, 'EPIPE', 'duplex'));

// The connection fails between start() and the first turn: libuv reads on in a loop
// while JavaScript, which it has called with the first bytes, starts the splices. What
// has been read by then is held, with room in the sink, and comes before the error.
async function failsBeforeFirstTurn(kind, code, directions) {
  const { client, server } = await openTLS();
  const sink = await endpoints[kind]('in');
  const source = kind === 'fifo' ? endpoints.fifo('out') : sink;
  const receiver = new Receiver();
  const splices = directions.map((direction) => {
    const { target } = direction === 'out' ? source : sink;
    return server.spliceTo({ ...target, direction });
  });
  const outcomes = splices.map(outcomeOf);
  const failing = new Promise((resolve) => server.once('error', resolve));
  // What JavaScript itself gets is the first chunk.
  let atStart = 0;
  server.on('data', (chunk) => {
    receiver.update(chunk);
    if (atStart === 0) {
      inject(server._handle.fd, 'read', code, { times: 1 });
      splices.forEach((splice) => splice.start());
    }
    atStart += chunk.length;
  });
  sink.other.on('data', (chunk) => receiver.update(chunk));
  send(client, kSize, { seed: kSeedIn, end: false }).catch(() => {});
  const all = await Promise.all(outcomes.map((outcome) => outcome(code, 'read')));
  assert.strictEqual((await failing).code, code);
  const { bytesIn } = all.reduce(maxOf);
  assert(bytesIn > 0);
  // Every byte of the records that had come whole.
  await receiver.reached(atStart + bytesIn);
  await turns();
  receiver.check(atStart + bytesIn, kSeedIn);
  assert(sink.isOpen());
}

for (const kind of ['fifo', 'unix', 'tcp', 'tcp fd']) {
  for (const [name, directions] of Object.entries(kHandles)) {
    if (kind !== 'fifo' || directions[0] !== 'duplex') {
      test(`${kind}, ${name}: ECONNRESET under TLS, read, before the first turn`,
           () => failsBeforeFirstTurn(kind, 'ECONNRESET', directions));
    }
  }
}

// --- A hang-up ---------------------------------------------------------------------------

// All that can be read from a descriptor at once.
function drain(fd, onChunk) {
  const chunk = Buffer.alloc(64 * 1024);
  try {
    for (let count; (count = fs.readSync(fd, chunk)) > 0;)
      onChunk(Buffer.from(chunk.subarray(0, count)));
  } catch (err) {
    assert.strictEqual(err.code, 'EAGAIN');
  }
}

// A socket has ended, and the end of its peer waits behind bytes that the splice has not
// read, since its other side is full: epoll reports a hang-up, and no bytes, of a socket that
// nobody reads. When the other side has room again, and epoll reports that first, the splice
// reads the socket before libuv comes to the hang-up. `makeRoom` is called in the turn before.
async function hangsUp(socket, peer, makeRoom) {
  shim.reverseEvents();
  await settled(() => socket.bytesRead);
  socket.end(Buffer.alloc(8 * MiB));
  await settled(() => socket._handle.writeQueueSize);
  assert(socket._handle.writeQueueSize > 0);
  // This runs in the turn in which libuv shuts the socket down.
  const finished = new Promise((resolve) => {
    socket.once('finish', () => {
      makeRoom();
      resolve();
    });
  });
  peer.resume();
  await finished;
}

const kUnread = 48 * 1024;

// The connection under TLS hangs up.
async function tlsHangsUp() {
  const { client, server } = await openTLS();
  const { target, other } = await endpoints.fifo('in');
  const splice = server.spliceTo({ ...target, direction: 'in', highWaterMark: 64 * 1024 }).start();
  const atSink = new Receiver();
  // The FIFO, the splice and the kernel take this.
  const size = 64 * 1024 + 64 * 1024 + kUnread;
  await send(client, size, { seed: kSeedIn });
  await hangsUp(server, client, () => {
    assert(server.bytesRead < size);
    for (let chunk; (chunk = other.read()) !== null;)
      atSink.update(chunk);
    drain(other._handle.fd, (chunk) => atSink.update(chunk));
  });
  receive(other, atSink);
  const { reason, bytesIn, closeNotify } = await splice.finished;
  assert.strictEqual(reason, 'end');
  assert.strictEqual(closeNotify, true);
  assert.strictEqual(bytesIn, size);
  await atSink.reached(size);
  atSink.check(size, kSeedIn);
}

// As JavaScript has just begun to read, and gives the rest to a splice.
async function tlsHangsUpWhenRead() {
  const { client, server } = await openTLS();
  const { target: { stream }, other } = await endpoints.unix('in');
  const { 0: teller, 1: told } = await socketPair('unix');
  defer(() => { teller.destroy(); told.destroy(); });
  const atSink = new Receiver();
  const size = 64 * 1024 + kUnread;
  server.pause();
  await send(client, size, { seed: kSeedIn });
  const done = once(told, 'data').then(() => {
    atSink.update(server.read(5));
    return server.spliceTo({ stream, direction: 'in' }).start().finished;
  });
  await hangsUp(server, client, () => {
    assert(server.bytesRead < size);
    teller.write('now');
  });
  receive(other, atSink);
  const { reason, bytesIn, closeNotify } = await done;
  assert.strictEqual(reason, 'end');
  assert.strictEqual(closeNotify, true);
  assert.strictEqual(bytesIn, size - 5);
  await atSink.reached(size);
  atSink.check(size, kSeedIn);
}

// The endpoint hangs up.
async function endpointHangsUp(kind) {
  const { 0: a, 1: b } = await socketPair('tcp');
  // What the client gets passes through JavaScript, which can stop that.
  const under = new Duplex({
    read() {},
    write(chunk, encoding, callback) { a.write(chunk, callback); },
    final(callback) { a.end(callback); },
  });
  a.on('data', (chunk) => under.push(chunk));
  const { client, server } = tlsOver(under, b, { allowHalfOpen: true });
  await Promise.all([once(client, 'secureConnect'), once(server, 'secure')]);
  const { target: { stream }, other } = await endpoints[kind]('out');
  other.pause();
  a.pause();
  const splice = server.spliceTo({ stream, direction: 'out', highWaterMark: 64 * 1024 }).start();
  const received = receive(client);
  const chunks = payload(64 * MiB, kSeedOut);
  let size = 0;
  const write = (bytes) => {
    size += bytes.length;
    other.write(bytes);
  };
  // Until the peer of TLS and the splice are full. The kernel has room for what follows.
  do {
    write(chunks.next().value);
    await settled(() => stream.bytesRead);
  } while (splice.stats.stallsOut === 0);
  write(chunks.next().value.subarray(0, kUnread));
  other.end();
  await once(other, 'finish');
  await hangsUp(stream, other, () => {
    assert(stream.bytesRead < size);
    while (a.read() !== null);
    drain(a._handle.fd, (chunk) => under.push(chunk));
    a.resume();
  });
  const { reason, bytesOut } = await splice.finished;
  assert.strictEqual(reason, 'end');
  assert.strictEqual(bytesOut, size);
  (await received).check(size, kSeedOut);
}

test('fifo, in: a hang-up under TLS before it is read', tlsHangsUp);
test('unix, in: a hang-up under TLS that JavaScript has begun to read', tlsHangsUpWhenRead);
for (const kind of ['unix', 'tcp'])
  test(`${kind}, out: a hang-up of the endpoint before it is read`, () => endpointHangsUp(kind));

// --- The byte that libuv has ------------------------------------------------------------

// It has written that at once, in the first turn of the splice, and says so after
// what else there is to be read. There stop() with autoClose takes the stream away.
async function stopsAfterWrite(kind) {
  const { client, server } = await openTLS();
  const endpoint = await endpoints[kind]('in');
  const stream = endpoint.target.stream ?? pipeSocket(endpoint.fd, { readable: false });
  defer(() => stream.destroy());
  const atSink = [];
  const closed = closing(endpoint.other);
  endpoint.other.on('data', (chunk) => atSink.push(chunk));
  client.write('once');
  server.read(0);
  while (server.readableLength < 4)
    await turns(1);
  const { 0: reader, 1: writer } = await socketPair('unix');
  defer(() => { reader.destroy(); writer.destroy(); });
  const fault = inject(endpoint.fd, 'write', 'EAGAIN', { times: 1 });
  const splice = server.spliceTo({ stream, direction: 'in', autoClose: true });
  const stopping = once(reader, 'data').then(() => {
    assert.deepStrictEqual(fault.state.functions, { write: 1 });
    return splice.stop();
  });
  await turns(1);
  writer.write('now');
  splice.start();
  const { bytesIn } = await stopping;
  const atServer = [];
  server.on('data', (chunk) => atServer.push(chunk));
  endpoint.other.end?.();
  await closed;
  await turns();
  assert.strictEqual(`${Buffer.concat([...atSink, ...atServer])}`, 'once');
  assert.strictEqual(Buffer.concat(atSink).length, bytesIn);
}

for (const kind of ['fifo', 'unix', 'tcp'])
  test(`${kind}, in: stop() between a write and libuv's word of it, autoClose`, () => stopsAfterWrite(kind));

// --- Writes that JavaScript makes of nothing -------------------------------------------

// They go to the stream below, and fail with that, beside what the splice writes.
async function emptyWriteFails(kind, code, direction, { stalls }) {
  const { client, server } = await openTLS();
  const endpoint = await endpoints[kind](direction);
  const splice = server.spliceTo({ ...endpoint.target, direction });
  const outcome = outcomeOf(splice);
  const events = record(server, ['error', 'close']);
  const closed = closing(server);
  splice.start();
  // More than the buffers of both ends of the connection take.
  sourceOf(endpoint, stalls ? 32 * MiB : kSize)?.catch(() => {});
  endpoint.other?.on('error', () => {});
  if (stalls) {
    // The kernel takes no more, and the writes wait in libuv.
    client.pause();
    await settled(() => splice.stats.bytesOut);
  } else {
    client.resume();
  }
  let written = 0;
  const write = () => {
    if (server.destroyed)
      return;
    server.write('', () => { written++; });
    setImmediate(write);
  };
  write();
  await turns(3);
  inject(server._handle.fd, 'write', code, { times: 1 });
  client.resume();
  await outcome(code, 'write');
  await closed;
  assert.deepStrictEqual(events, ['error', 'close']);
  assert.strictEqual(server.errored.code, code);
  // They all call back.
  await turns();
  assert(written > 0);
  assert(endpoint.isOpen());
}

// The same before the splice has begun, which then finds an empty write that is under
// way. Its end destroys the socket from inside of the splice's own callback. The socket
// is a client of TLS 1.2, since that one has nothing more to send when it is secure:
// then an empty write is one to the stream below as well.
async function earlyEmptyWriteFails(kind, code, direction) {
  const endpoint = await endpoints[kind](direction);
  endpoint.other?.on('error', () => {});
  const listener = tls.createServer({ key, cert, maxVersion: 'TLSv1.2', allowHalfOpen: true });
  listener.on('secureConnection', (peer) => {
    defer(() => peer.destroy());
    peer.on('error', () => {});
    peer.resume();
  });
  listener.listen(0);
  await once(listener, 'listening');
  const { port } = listener.address();
  const socket = tls.connect({ port, rejectUnauthorized: false, allowHalfOpen: true });
  defer(() => { socket.destroy(); listener.close(); });
  const splice = socket.spliceTo({ ...endpoint.target, direction }).start();
  const outcome = outcomeOf(splice);
  const events = record(socket, ['error', 'close']);
  const closed = closing(socket);
  let seen = null;
  socket.once('secure', () => {
    // libuv tries to write at once, and then once more.
    inject(socket._handle.fd, 'write', 'EAGAIN', { times: 1 });
    inject(socket._handle.fd, 'write', code, { times: 1 });
    socket.write('', (err) => { seen = err; });
  });
  // JavaScript's own write has failed, and so it is JavaScript that destroys the socket.
  await outcome(code, 'write', 'destroyed');
  await closed;
  assert.deepStrictEqual(events, ['error', 'close']);
  assert.strictEqual(socket.errored.code, code);
  assert.strictEqual(seen, socket.errored);
  assert(endpoint.isOpen());
}

// renegotiate() writes nothing, twice, around what OpenSSL has to send.
async function renegotiationFails(kind, code, direction, ofServer) {
  const { client, server } = await openTLS({ minVersion: 'TLSv1.2', maxVersion: 'TLSv1.2' });
  const { 0: spliced, 1: other } = ofServer ? [server, client] : [client, server];
  const endpoint = await endpoints[kind](direction);
  const splice = spliced.spliceTo({ ...endpoint.target, direction });
  const outcome = outcomeOf(splice);
  other.resume();
  splice.start();
  await turns();
  inject(spliced._handle.fd, 'write', code, { times: 1 });
  const closed = closing(spliced);
  spliced.renegotiate({ rejectUnauthorized: false }, () => {});
  await outcome(code, 'write');
  await closed;
  assert.strictEqual(spliced.errored.code, code);
  assert(endpoint.isOpen());
}

for (const kind of Object.keys(endpoints)) {
  for (const direction of kind === 'fifo' || kind === 'file' ? ['out'] : ['out', 'duplex']) {
    for (const code of ['ECONNRESET', 'EPIPE']) {
      for (const stalls of kind === 'file' ? [false] : [false, true]) {
        test(`${kind}, ${direction}: ${code} beside empty writes${stalls ? ', after a stall' : ''}`,
             () => emptyWriteFails(kind, code, direction, { stalls }));
      }
    }
    test(`${kind}, ${direction}: ECONNRESET of an empty write from before the splice`,
         () => earlyEmptyWriteFails(kind, 'ECONNRESET', direction));
    for (const ofServer of [false, true]) {
      test(`${kind}, ${direction}: ECONNRESET in renegotiate() of the ${ofServer ? 'server' : 'client'}`,
           () => renegotiationFails(kind, 'ECONNRESET', direction, ofServer));
    }
  }
}

// --- A kernel that lies -------------------------------------------------------------

// More bytes than were asked for are what the core's own checks stop at. Of such a
// bug the splice and its socket end with an error, and nothing waits.
async function lies(kind, direction, access, { underTLS = false, autoClose = false } = {}) {
  const { client, server } = await openTLS();
  const endpoint = await endpoints[kind](direction);
  const fault = inject(underTLS ? server._handle.fd : endpoint.fd, access, 'more', { after: kAfter, times: 1 });
  const splice = server.spliceTo({ ...endpoint.target, direction, autoClose });
  const events = record(splice, ['error', 'close']);
  // Of two TLSSockets it is the other one's splice.
  const spliced = kind === 'tls' && !underTLS ? endpoint.target.stream : server;
  const outcome = Promise.all([
    new Promise((resolve) => spliced.once('error', resolve)), closing(spliced),
    new Promise((resolve) => splice.once('error', resolve)), closing(splice),
  ]);
  splice.start();
  if (direction !== 'out')
    send(client, kSize, { seed: kSeedIn }).catch(() => {});
  if (direction !== 'in')
    sourceOf(endpoint)?.catch(() => {});
  if (direction !== 'out' && endpoint.other)
    receive(endpoint.other).catch(() => {});
  endpoint.other?.on('error', () => {});
  client.resume();
  const { 0: socketError, 2: error, 3: stats } = await outcome;
  for (const { code, message } of [socketError, error]) {
    assert.strictEqual(code, 'ERR_INTERNAL_ASSERTION');
    assert.match(message, /The Rust core of the splice has panicked/);
  }
  assert.deepStrictEqual(events, ['error', 'close']);
  assert.strictEqual(stats.reason, 'error');
  assert.strictEqual(spliced.destroyed, true);
  // They are still what they were.
  const moved = access === 'read' && !underTLS ? stats.bytesOut : stats.bytesIn;
  assert(moved > kAfter - 300_000 && moved <= kAfter, `${moved}`);
  assert(fault.state.bytes > kAfter);
  if (spliced === server)
    await checkOpen(endpoint, !autoClose);
}

// Streams and files are not among these: libuv writes them and believes the kernel.
// If a write reports more bytes than libuv asked for, libuv walks past the end of its
// own buffers. test/abi has the case of a file. Nor can any of these run with
// AddressSanitizer, which looks at all the bytes that a call says it has moved.
function testLies(name, ...args) {
  if (!hasAddressSanitizer)
    test(name, () => lies(...args));
}

for (const kind of ['fifo', 'blocking', 'tcp fd']) {
  testLies(`${kind}, in: a panic`, kind, 'in', 'write');
  if (kind !== 'tcp fd')
    testLies(`${kind}, in: a panic, autoClose`, kind, 'in', 'write', { autoClose: true });
}
for (const kind of ['blocking', 'tcp fd'])
  testLies(`${kind}, duplex: a panic, writing`, kind, 'duplex', 'write');
for (const kind of Object.keys(endpoints)) {
  testLies(`${kind}, out: a panic`, kind, 'out', 'read');
  testLies(`${kind}, in: a panic under TLS`, kind, 'in', 'read', { underTLS: true });
}
for (const kind of ['blocking', 'unix', 'tcp', 'tcp fd', 'tls']) {
  testLies(`${kind}, duplex: a panic, reading`, kind, 'duplex', 'read');
  testLies(`${kind}, duplex: a panic under TLS`, kind, 'duplex', 'read', { underTLS: true });
}

// --- Files that take their time -----------------------------------------------------

// Resolves when the shim holds a call. Never on the thread of the loop, which
// turns meanwhile: that is what gets us there.
async function holding(fault) {
  while (fault.state.held === 0)
    await turns(1);
  // A connection that has nothing to do with it is served.
  const { client, server } = await openTLS();
  await talk(client, server);
  await turns(100);
  assert.strictEqual(fault.state.held, 1);
  assert.strictEqual(fault.state.onMainThread, 0);
}

test('file, in: a write that takes its time', async () => {
  const { client, server } = await openTLS();
  const endpoint = endpoints.file('in');
  const fault = inject(endpoint.fd, 'write', 'hold', { times: 3 });
  const splice = server.spliceTo({ ...endpoint.target, direction: 'in', highWaterMark: 65536 }).start();
  // More than the buffers of both ends of the connection take.
  const size = 32 * MiB;
  const sending = send(client, size);
  for (let i = 0; i < 3; i++) {
    await holding(fault);
    // Memory is bounded: the sender waits.
    await settled(() => client.bytesWritten - client.writableLength);
    assert(client.writableLength > 0);
    assert(splice.stats.peakBufferedIn <= 65536);
    fault.release();
  }
  await sending;
  await splice.finished;
  (await delivered(endpoint)).check(size);
  assert.strictEqual(fault.state.onMainThread, 0);
});

test('file, out: a read that takes its time', async () => {
  const { client, server } = await openTLS();
  const endpoint = endpoints.file('out');
  const fault = inject(endpoint.fd, 'read', 'hold', { times: 3 });
  const splice = server.spliceTo({ ...endpoint.target, direction: 'out' }).start();
  const received = receive(client);
  for (let i = 0; i < 3; i++) {
    await holding(fault);
    fault.release();
  }
  await splice.finished;
  (await received).check(kSize, kSeedOut);
  assert.strictEqual(fault.state.onMainThread, 0);
});

test('file, in: stop() during a write', async () => {
  const { client, server } = await openTLS();
  const endpoint = endpoints.file('in');
  const fault = inject(endpoint.fd, 'write', 'hold', { times: 1 });
  const splice = server.spliceTo({ ...endpoint.target, direction: 'in' }).start();
  send(client, kSize);
  await holding(fault);
  let isStopped = false;
  const stopping = splice.stop().then((stats) => {
    isStopped = true;
    return stats;
  });
  await turns(100);
  // How much was written is not known yet.
  assert.strictEqual(isStopped, false);
  fault.release();
  const stats = await stopping;
  assert.strictEqual(stats.reason, 'stopped');
  const sink = await delivered(endpoint);
  sink.check(stats.bytesIn);
  assert(sink.bytes > 0 && sink.bytes < kSize);
  (await receive(server, sink)).check(kSize);
});

test('file, out: stop() during a read', async () => {
  const { client, server } = await openTLS();
  const endpoint = endpoints.file('out');
  const fault = inject(endpoint.fd, 'read', 'hold', { times: 1 });
  const splice = server.spliceTo({ ...endpoint.target, direction: 'out' }).start();
  await holding(fault);
  const stopping = splice.stop();
  await turns(100);
  fault.release();
  const { bytesOut } = await stopping;
  // What was read is sent, and JS goes on behind it.
  assert.strictEqual(bytesOut, fault.state.bytes);
  endpoint.left().pipe(server);
  (await receive(client)).check(kSize, kSeedOut);
});

for (const [direction, access] of [['in', 'write'], ['out', 'read']]) {
  test(`file, ${direction}: destroy() during a ${access}`, async () => {
    const { client, server } = await openTLS();
    const endpoint = endpoints.file(direction);
    const fault = inject(endpoint.fd, access, 'hold', { times: 1 });
    const splice = server.spliceTo({ ...endpoint.target, direction, autoClose: true }).start();
    const closed = closing(splice);
    if (direction === 'in')
      send(client, kSize).catch(() => {});
    await holding(fault);
    server.destroy();
    await turns(100);
    // The thread still has it.
    assert.strictEqual(isOpen(endpoint.fd), true);
    fault.release();
    assert.strictEqual((await closed).reason, 'destroyed');
    assert.strictEqual(isOpen(endpoint.fd), false);
  });
}

// It comes back in time, but the loop is too busy to notice.
for (const [direction, access] of [['in', 'write'], ['out', 'read']]) {
  test(`file, ${direction}: stop() during a ${access}, by a busy loop`, async () => {
    const { client, server } = await openTLS();
    const endpoint = endpoints.file(direction);
    const fault = inject(endpoint.fd, access, 'hold', { times: 1 });
    const splice = server.spliceTo({ ...endpoint.target, direction }).start();
    if (direction === 'in')
      send(client, kSize);
    await holding(fault);
    const stopping = splice.stop();
    // The time has begun.
    await turns(1);
    fault.release();
    for (const until = Date.now() + 2500; Date.now() < until;);
    const { bytesIn, bytesOut, reason } = await stopping;
    assert.strictEqual(reason, 'stopped');
    assert.strictEqual(server.destroyed, false);
    assert(bytesIn + bytesOut > 0);
    if (direction === 'in') {
      (await receive(server, await delivered(endpoint))).check(kSize);
    } else {
      endpoint.left().pipe(server);
      (await receive(client)).check(kSize, kSeedOut);
    }
  });
}

// One that never comes back is not waited for for ever.
const positionOf = (fd) => Number(/pos:\s+(\d+)/.exec(fs.readFileSync(`/proc/self/fdinfo/${fd}`))[1]);

for (const autoClose of [false, true]) {
  for (const by of ['stop', 'abort']) {
    test(`file, out: ${by} during a read that is lost, autoClose: ${autoClose}`, async () => {
      const { client, server } = await openTLS();
      const endpoint = endpoints.file('out');
      const controller = new AbortController();
      const { signal } = controller;
      const splice = server.spliceTo({
        ...endpoint.target, direction: 'out', autoClose, signal, highWaterMark: 4096,
      }).start();
      // Not the first
      while (splice.stats.bytesOut === 0)
        await turns(1);
      const fault = inject(endpoint.fd, 'read', 'hold', { times: 1 });
      const received = receive(client);
      await holding(fault);
      const closed = closing(splice);
      if (by === 'stop')
        splice.stop();
      else
        controller.abort();
      const { bytesOut, reason } = await closed;
      assert.strictEqual(reason, by === 'stop' ? 'stopped' : 'aborted');
      assert(bytesOut > 0 && bytesOut < kSize);
      assert.strictEqual(fault.state.held, 1);
      assert.strictEqual(endpoint.isOpen(), !autoClose);
      // The socket is JS's, and alive.
      assert.strictEqual(server.destroyed, false);
      await received.receiver.reached(bytesOut);
      fault.release();
      if (autoClose) {
        const rest = fs.readFileSync(endpoint.name).subarray(bytesOut);
        server.end(rest);
      } else {
        // What it reads at last is put back.
        while (fault.state.bytes === 0 || positionOf(endpoint.fd) !== bytesOut)
          await turns(1);
        endpoint.left().pipe(server);
      }
      (await received).check(kSize, kSeedOut);
      assert.strictEqual(splice.stats.bytesOut, bytesOut);
    });
  }
}

for (const by of ['stop', 'abort']) {
  test(`file, in: ${by} during a write that is lost`, async () => {
    const { client, server } = await openTLS();
    const endpoint = endpoints.file('in');
    const fault = inject(endpoint.fd, 'write', 'hold', { times: 1 });
    const controller = new AbortController();
    const splice = server.spliceTo({
      ...endpoint.target, direction: 'in', signal: controller.signal,
    }).start();
    const socketFailed = once(server, 'error');
    send(client, kSize).catch(() => {});
    await holding(fault);
    const closed = closing(splice);
    if (by === 'stop')
      splice.stop();
    else
      controller.abort();
    const stats = await closed;
    assert.strictEqual(stats.reason, by === 'stop' ? 'stopped' : 'aborted');
    assert.strictEqual(fault.state.held, 1);
    assert.strictEqual(server.destroyed, true);
    const { 0: err } = await socketFailed;
    assert.strictEqual(err.code, 'ETIMEDOUT');
    assert.strictEqual(err.syscall, 'write');
    // It does not touch what is over.
    fault.release();
    while (fault.state.bytes === 0)
      await turns(1);
    await turns(10);
    assert.deepStrictEqual(splice.stats, stats);
  });
}

for (const [direction, access] of [['in', 'write'], ['out', 'read']]) {
  test(`file, ${direction}: destroy() during a ${access} that is lost`, async () => {
    const { client, server } = await openTLS();
    const endpoint = endpoints.file(direction);
    const fault = inject(endpoint.fd, access, 'hold', { times: 1 });
    const splice = server.spliceTo({ ...endpoint.target, direction, autoClose: true }).start();
    const closed = closing(splice);
    if (direction === 'in')
      send(client, kSize).catch(() => {});
    await holding(fault);
    server.destroy();
    assert.strictEqual((await closed).reason, 'destroyed');
    assert.strictEqual(fault.state.held, 1);
    assert.strictEqual(isOpen(endpoint.fd), false);
    fault.release();
    while (fault.state.bytes === 0)
      await turns(1);
    await turns(10);
  });
}

test('file, in: a slow write that fails', async () => {
  const { client, server } = await openTLS();
  const endpoint = endpoints.file('in');
  const hold = inject(endpoint.fd, 'write', 'hold', { times: 1 });
  inject(endpoint.fd, 'write', 'ENOSPC', { times: 1 });
  const splice = server.spliceTo({ ...endpoint.target, direction: 'in' });
  const outcome = outcomeOf(splice);
  splice.start();
  send(client, kSize);
  await holding(hold);
  hold.release();
  const { bytesIn } = await outcome('ENOSPC', 'write');
  assert.strictEqual(bytesIn, 0);
  (await receive(server)).check(kSize);
  assert.strictEqual(fs.statSync(endpoint.name).size, 0);
});

// --- Packets ------------------------------------------------------------------------

// So few that the receiver's buffer takes them all.
const kPackets = 150;

// Two UDP sockets that are connected to each other. The splice has the first.
async function udpPair() {
  const pair = [dgram.createSocket('udp4'), dgram.createSocket('udp4')];
  for (const socket of pair) {
    defer(() => socket.close());
    socket.bind(0, '127.0.0.1');
    await once(socket, 'listening');
  }
  for (const [i, socket] of pair.entries()) {
    socket.connect(pair[1 - i].address().port, '127.0.0.1');
    await once(socket, 'connect');
  }
  pair[0]._handle.recvStop();
  return { fd: pair[0]._handle.fd, far: pair[1] };
}

function packet(i) {
  return Buffer.from(`packet ${i} ${'.'.repeat(i)}`);
}

function framed(i) {
  const bytes = packet(i);
  return Buffer.concat([Buffer.from([bytes.length >> 8, bytes.length & 255]), bytes]);
}

// Sends all of them through TLS. What arrives must be in order, and whole.
async function sendPackets(client, far, splice) {
  const seen = [];
  far.on('message', (bytes) => {
    const i = Number(/^packet (\d+) /.exec(bytes)[1]);
    assert.deepStrictEqual(bytes, packet(i));
    assert(!(i <= seen.at(-1)), `${i} after ${seen.at(-1)}`);
    seen.push(i);
  });
  for (let i = 0; i < kPackets; i++)
    client.write(framed(i));
  client.end();
  const stats = await splice.finished;
  while (seen.length < stats.packetsIn)
    await once(far, 'message');
  assert.strictEqual(stats.packetsIn + stats.dropsIn, kPackets);
  return stats;
}

for (const code of ['EINVAL', 'EMSGSIZE', 'ECONNREFUSED', 'EIO', 'ENOBUFS']) {
  test(`udp, in: ${code} for some packets`, async () => {
    const { client, server } = await openTLS();
    const { fd, far } = await udpPair();
    inject(fd, 'write', code, { rate: 0.3 });
    const splice = server.spliceTo({ fd, direction: 'in' }).start();
    const stats = await sendPackets(client, far, splice);
    assert.strictEqual(stats.reason, 'end');
    assert(stats.dropsIn > 0 && stats.packetsIn > 0);
    assert.strictEqual(stats[`drops${code}`], stats.dropsIn);
  });
}

test('udp, in: a queue that is full is no loss', async () => {
  const { client, server } = await openTLS();
  const { fd, far } = await udpPair();
  inject(fd, 'write', 'EAGAIN', { rate: 0.5 });
  inject(fd, 'write', 'EINTR', { rate: 0.3 });
  const splice = server.spliceTo({ fd, direction: 'in' }).start();
  const { dropsIn, stallsIn } = await sendPackets(client, far, splice);
  assert.strictEqual(dropsIn, 0);
  assert(stallsIn > 0);
});

for (const code of ['ECONNREFUSED', 'EMSGSIZE']) {
  test(`udp, out: ${code} of a packet that was sent before`, async () => {
    const { client, server } = await openTLS();
    const { fd, far } = await udpPair();
    inject(fd, 'read', code, { rate: 0.3 });
    const splice = server.spliceTo({ fd, direction: 'out' }).start();
    const received = [];
    for (let i = 0; i < kPackets; i++) {
      far.send(packet(i));
      for (let missing = framed(i).length; missing > 0;) {
        const { 0: bytes } = await once(client, 'data');
        received.push(bytes);
        missing -= bytes.length;
      }
    }
    assert.deepStrictEqual(Buffer.concat(received), Buffer.concat(Array.from({ length: kPackets }, (_, i) => framed(i))));
    const stats = await splice.stop();
    assert.strictEqual(stats.packetsOut, kPackets);
    assert.strictEqual(stats[`drops${code}`], stats.dropsIn);
    assert(stats.dropsIn > 0);
  });
}

test('udp, out: an error that is not about a packet', async () => {
  const { server } = await openTLS();
  const { fd, far } = await udpPair();
  inject(fd, 'read', 'ENOMEM', { times: 1 });
  const splice = server.spliceTo({ fd, direction: 'out' });
  const outcome = outcomeOf(splice);
  splice.start();
  far.send(packet(0));
  await outcome('ENOMEM', 'read');
});

runAll();
