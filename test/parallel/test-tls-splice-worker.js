'use strict';

// In a Worker: it works there, and terminate() in the middle of a transfer
// closes what is the Worker's, and nothing else.

const common = require('../common');
if (!common.hasCrypto)
  common.skip('missing crypto');

const assert = require('assert');
const { once } = require('events');
const fs = require('fs');
const net = require('net');
const tls = require('tls');
const { Worker, isMainThread, parentPort, workerData } = require('worker_threads');
if (tls.TLSSplice === undefined)
  common.skip('built without TLSSplice');

const {
  MiB, cert, closing, key, receive, run, send, settled,
} = require('../common/tls-splice');

const kSize = 2 * MiB + 23;

// A server for TLS that splices each connection to one of the main thread's.
if (!isMainThread) {
  const server = tls.createServer({ key, cert, allowHalfOpen: true }, async (socket) => {
    const endpoint = net.connect({ port: workerData.port, allowHalfOpen: true });
    await once(endpoint, 'connect');
    socket.on('error', () => {});
    const splice = socket.spliceTo({ stream: endpoint, autoClose: true }).start();
    parentPort.postMessage(await splice.finished);
  });
  server.listen(0, () => parentPort.postMessage(server.address().port));
  return;
}

const openFiles = common.isLinux ?
  () => fs.readdirSync('/proc/self/fd').length : () => 0;

async function start() {
  const target = net.createServer({ allowHalfOpen: true }).listen(0);
  await once(target, 'listening');
  const worker = new Worker(__filename, {
    workerData: { port: target.address().port },
  });
  const { 0: port } = await once(worker, 'message');
  const connected = once(target, 'connection');
  const client = tls.connect({ port, rejectUnauthorized: false, allowHalfOpen: true });
  const { 0: other } = await connected;
  target.close();
  return { worker, client, other };
}

run(async () => {
  const { worker, client, other } = await start();
  const finished = once(worker, 'message');
  const inward = receive(other);
  const outward = receive(client);
  await Promise.all([
    send(client, kSize, { seed: 1 }), send(other, kSize, { seed: 2 }),
  ]);
  (await inward).check(kSize, 1);
  (await outward).check(kSize, 2);
  const { 0: stats } = await finished;
  assert.strictEqual(stats.bytesIn, kSize);
  assert.strictEqual(stats.bytesOut, kSize);
  await worker.terminate();
});

for (const stalled of [false, true]) {
  run(async () => {
    for (let i = 0; i < 5; i++) {
      const { worker, client, other } = await start();
      for (const socket of [client, other])
        socket.on('error', () => {});
      const closed = Promise.all([closing(client), closing(other)]);
      const receiving = receive(other);
      receiving.catch(() => {});
      if (stalled)
        other.pause();
      else
        client.resume();
      // They are cut off.
      send(client, 1024 * MiB).catch(() => {});
      send(other, 1024 * MiB).catch(() => {});
      if (stalled)
        await settled(() => client.bytesWritten);
      else
        await receiving.receiver.reached(3 * MiB);
      worker.on('message', common.mustNotCall());
      await worker.terminate();
      // Both ends see that it is gone.
      client.resume();
      other.resume();
      client.end();
      other.end();
      await closed;
    }
  });
}

run(async () => {
  const before = openFiles();
  const { worker, client, other } = await start();
  for (const socket of [client, other])
    socket.on('error', () => {});
  await worker.terminate();
  client.destroy();
  other.destroy();
  await settled(openFiles);
  assert(openFiles() <= before);
});
