// Flags: --expose-gc --single-threaded --max-semi-space-size=1
'use strict';

// A TLSWrap has buffers for ciphertext, of which it keeps the largest for as long as it
// lives. A splice does without them, and gives them back. After stop() the TLSWrap has
// buffers again. All bytes arrive: of a trickle, and of a burst that fills the network.

const common = require('../common');
if (!common.hasCrypto)
  common.skip('missing crypto');
if (!common.isLinux || common.isASan ||
    process.report.getReport().header.glibcVersionRuntime === undefined) {
  common.skip('looks at /proc, and at what the allocator of glibc does');
}

const assert = require('assert');
const { spawnSync } = require('child_process');
const { once } = require('events');
const fs = require('fs');
const tls = require('tls');
if (tls.TLSSplice === undefined)
  common.skip('built without TLSSplice');

const {
  MiB, Receiver, receive, run, send, settled, socketPair, tlsPair,
} = require('../common/tls-splice');

const KiB = 1024;
const count = 40;
// TLSWrap allocates as much as libuv wants to read at once.
const readSize = 64 * KiB;
// What the process may need more of for other reasons, such as the buffers that all splices
// share.
const slack = 1024 * KiB;

// With these settings the process has a mapping for each buffer, and none without it.
const settings = ['mmap_threshold=60000', 'trim_threshold=0', 'top_pad=0'];

// The memory that the process has asked for, used or not, in bytes.
function allocated() {
  globalThis.gc();
  return Number(/^VmData:\s+(\d+) kB$/m.exec(fs.readFileSync('/proc/self/status', 'utf8'))[1]) * KiB;
}

async function connections() {
  const list = [];
  for (let i = 0; i < count; i++) {
    const { client, server } = await tlsPair({ allowHalfOpen: true });
    const { 0: endpoint, 1: other } = await socketPair();
    list.push({ client, server, endpoint, other });
  }
  return list;
}

// Moves one byte after the other on all connections, and compares them.
async function trickle(list, from, to) {
  for (let value = 0; value < 10; value++) {
    const received = list.map((one) => once(one[to], 'data'));
    for (const one of list)
      one[from].write(Buffer.from([value]));
    for (const { 0: data } of await Promise.all(received))
      assert.deepStrictEqual([...data], [value]);
  }
}

// Moves more than the network holds.
async function burst(from, to) {
  const size = 6 * MiB;
  const receiver = new Receiver();
  const onData = (chunk) => receiver.update(chunk);
  to.pause();
  const sent = send(from, size, { end: false });
  await settled(() => from.bytesWritten);
  to.on('data', onData);
  to.resume();
  await Promise.all([sent, receiver.reached(size)]);
  receiver.check(size);
  to.off('data', onData);
}

async function test() {
  const list = await connections();
  const start = () => list.map(({ server, endpoint }) => server.spliceTo({ stream: endpoint }).start());
  const stop = (splices) => Promise.all(splices.map((splice) => splice.stop()));

  // The first byte of a trickle makes buffers that all splices share.
  const before = allocated();
  let splices = start();
  await trickle(list, 'client', 'other');
  await trickle(list, 'other', 'client');
  const given = before - allocated();
  assert(given > count * readSize - slack, `${given} bytes are given back`);
  await stop(splices);
  await trickle(list, 'client', 'server');
  await trickle(list, 'server', 'client');
  await trickle(list, 'other', 'endpoint');
  const missing = before - allocated();
  assert(missing < slack, `${missing} bytes are missing after stop()`);

  splices = start();
  await Promise.all(list.slice(0, 4).flatMap(({ client, other }) => [
    burst(client, other), burst(other, client),
  ]));
  await trickle(list, 'client', 'other');
  await trickle(list, 'other', 'client');
  await stop(splices);
  await trickle(list, 'client', 'server');
  await trickle(list, 'server', 'client');

  start();
  const received = list.map(({ client, other }) => [receive(client), receive(other)]);
  for (const { client, other } of list) {
    send(client, 100 * KiB).then(common.mustCall());
    send(other, 200 * KiB, { seed: 2 }).then(common.mustCall());
  }
  for (const { 0: atClient, 1: atOther } of received) {
    (await atOther).check(100 * KiB);
    (await atClient).check(200 * KiB, 2);
  }
}

if (process.argv[2] === 'child') {
  run(test);
} else {
  const env = {
    ...process.env,
    GLIBC_TUNABLES: settings.map((setting) => `glibc.malloc.${setting}`).join(':'),
  };
  const args = [...process.execArgv, __filename, 'child'];
  const { status, signal } = spawnSync(process.execPath, args, { env, stdio: 'inherit' });
  assert.deepStrictEqual({ status, signal }, { status: 0, signal: null });
}
