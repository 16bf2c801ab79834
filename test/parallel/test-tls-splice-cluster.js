'use strict';

// In the workers of a cluster, which share a listening socket: transfers, a
// worker that is killed in the middle of one, and one that disconnects.

const common = require('../common');
if (!common.hasCrypto)
  common.skip('missing crypto');

const assert = require('assert');
const cluster = require('cluster');
const { once } = require('events');
const net = require('net');
const tls = require('tls');
if (tls.TLSSplice === undefined)
  common.skip('built without TLSSplice');

const {
  MiB, cert, closing, key, receive, run, send,
} = require('../common/tls-splice');

const kSize = 2 * MiB + 3;
const kWorkers = 2;

if (cluster.isWorker) {
  const { UPSTREAM } = process.env;
  const server = tls.createServer({ key, cert, allowHalfOpen: true }, async (socket) => {
    const endpoint = net.connect({ port: UPSTREAM, allowHalfOpen: true });
    await once(endpoint, 'connect');
    socket.on('error', () => {});
    const splice = socket.spliceTo({ stream: endpoint, autoClose: true });
    splice.on('error', () => {});
    const { bytesIn, bytesOut, reason } = await closing(splice.start());
    if (reason === 'end' && process.connected)
      process.send({ bytesIn, bytesOut });
  }).listen(0);
  server.on('listening', () => process.send({ port: server.address().port }));
  return;
}

async function connect(port) {
  const client = tls.connect({ port, rejectUnauthorized: false, allowHalfOpen: true });
  client.on('error', () => {});
  await once(client, 'secureConnect');
  return client;
}

run(async () => {
  const upstream = net.createServer({ allowHalfOpen: true }, (socket) => {
    socket.on('error', () => {});
    socket.pipe(socket);
  }).listen(0);
  await once(upstream, 'listening');
  const workers = [];
  const done = [];
  let port;
  for (let i = 0; i < kWorkers; i++) {
    const worker = cluster.fork({ UPSTREAM: upstream.address().port });
    ({ 0: { port } } = await once(worker, 'message'));
    worker.on('message', (stats) => done.push(stats));
    workers.push(worker);
  }

  const transfers = [];
  for (let i = 0; i < 3 * kWorkers; i++) {
    transfers.push((async () => {
      const client = await connect(port);
      const received = receive(client);
      await send(client, kSize, { seed: i });
      (await received).check(kSize, i);
    })());
  }
  await Promise.all(transfers);
  while (done.length < transfers.length)
    await Promise.race(workers.map((worker) => once(worker, 'message')));
  for (const stats of done)
    assert.deepStrictEqual(stats, { bytesIn: kSize, bytesOut: kSize });

  // One of them is killed in the middle. What it had open is closed.
  const { 0: victim } = workers;
  const clients = [];
  for (let i = 0; i < 2 * kWorkers; i++) {
    const client = await connect(port);
    const receiving = receive(client);
    // They are cut off.
    receiving.catch(() => {});
    send(client, 256 * MiB).catch(() => {});
    await receiving.receiver.reached(kSize);
    clients.push(client);
  }
  const closed = clients.map(closing);
  const exited = once(victim, 'exit');
  victim.process.kill('SIGKILL');
  assert.deepStrictEqual(await exited, [null, 'SIGKILL']);
  await Promise.race(closed);

  // The other one goes on, and goes when it is done.
  for (const client of clients)
    client.destroy();
  await Promise.all(closed);
  const last = await connect(port);
  const received = receive(last);
  workers[1].disconnect();
  await send(last, kSize);
  (await received).check(kSize);
  last.destroy();
  assert.deepStrictEqual(await once(workers[1], 'exit'), [0, null]);
  upstream.close();
});
