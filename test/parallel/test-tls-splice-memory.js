// Flags: --expose-gc
'use strict';

// Ten thousand splices leave no memory behind: no object, and no more of the
// heap or of the process than a thousand do.

const common = require('../common');
if (!common.hasCrypto)
  common.skip('missing crypto');
if (!common.isLinux)
  common.skip('looks at /proc');

const assert = require('assert');
const fs = require('fs');
const tls = require('tls');
const v8 = require('v8');
if (tls.TLSSplice === undefined)
  common.skip('built without TLSSplice');

const { gcUntil } = require('../common/gc');
const {
  MiB, fifo, receive, run, socketPair, tlsPair,
} = require('../common/tls-splice');

const openFiles = () => fs.readdirSync('/proc/self/fd').length;

async function collected() {
  await gcUntil('splices', () => v8.queryObjects(tls.TLSSplice, { format: 'count' }) === 0);
  const { heapUsed, external, rss } = process.memoryUsage();
  return { heapUsed, external, rss, files: openFiles() };
}

// A warm-up, and then nine times as many. Returns how much the process grew.
async function flat(count, splice) {
  for (let i = 0; i < count / 10; i++)
    await splice(i);
  const before = await collected();
  for (let i = count / 10; i < count; i++)
    await splice(i);
  const after = await collected();
  const grown = (name) => after[name] - before[name];
  assert(grown('heapUsed') < 1 * MiB, `${grown('heapUsed')} bytes of the heap`);
  assert(grown('external') < 1 * MiB, `${grown('external')} bytes outside of it`);
  assert.strictEqual(grown('files'), 0);
  return grown('rss');
}

// On one socket, with bytes in both directions
run(async () => {
  const { client, server } = await tlsPair({ allowHalfOpen: true });
  const { 0: endpoint, 1: other } = await socketPair();
  const { reader, writer } = fifo();
  const file = fs.openSync(__filename, 'r');
  const targets = [
    { stream: endpoint }, { fd: writer, direction: 'in' }, { fd: reader, direction: 'out' },
    { fd: file, direction: 'out' }, { stream: endpoint, highWaterMark: 1000 },
  ];
  const { receiver: inward } = receive(other);
  const { receiver: outward } = receive(client);
  const byte = Buffer.alloc(1);
  let sent = 0;
  const grown = await flat(10000, async (i) => {
    const options = targets[i % targets.length];
    const splice = server.spliceTo(options).start();
    if (options.stream && i % 10 === 0) {
      client.write(byte);
      other.write(byte);
      const atClient = outward.bytes + 1;
      await Promise.all([inward.reached(++sent), outward.reached(atClient)]);
    }
    await splice.stop();
  });
  // AddressSanitizer keeps what has been freed for a while.
  assert(common.isASan || grown < 10000 * 1024, `${grown} bytes of memory`);
  for (const fd of [reader, writer, file])
    fs.closeSync(fd);
});

// On a socket each, to the end, or cut off. What a TLS connection itself leaves
// in the allocator is more than a splice does.
run(async () => {
  await flat(400, async (i) => {
    const { client, server } = await tlsPair({ allowHalfOpen: i % 2 === 0 });
    const { 0: endpoint, 1: other } = await socketPair();
    client.on('error', () => {}).resume();
    other.resume();
    const splice = server.spliceTo({ stream: endpoint, autoClose: true }).start();
    client.end('x');
    if (i % 4 === 3)
      server.destroy();
    other.end('x');
    await splice.finished;
    for (const socket of [client, server, other])
      socket.destroy();
  });
});
