'use strict';

// A tunnel for IP packets over TLS, between two TUN devices. The packets do not
// pass through JavaScript.
//
//   tun-exec --offload node tun-tunnel.js [--worker] listen HOST PORT
//   tun-exec --offload node tun-tunnel.js [--worker] connect HOST PORT
//
// In the environment: TLS_PSK, the key that both sides share, hexadecimal, and
// TLS_CIPHERS, if you want others. TUN_FD and TUN_QUEUES are from tun-exec: each
// queue of a device gets a connection of its own. The addresses of the devices are
// yours to set (ip address). SIGUSR2 prints what each connection has moved.
//
// With --worker the tunnel runs in a Worker, TLS included: the packets do not wait
// while JavaScript computes in the main thread, which is left with the control.

const tls = require('node:tls');
const { once } = require('node:events');
const { parseArgs } = require('node:util');
const { Worker, isMainThread, parentPort } = require('node:worker_threads');

const { values: args, positionals: [role, host, port] } = parseArgs({ allowPositionals: true, options: {
  worker: { type: 'boolean', default: false },
} });
if (!['listen', 'connect'].includes(role) || !port || !process.env.TUN_QUEUES || !process.env.TLS_PSK) {
  console.error('usage: TLS_PSK=KEY tun-exec node tun-tunnel.js [--worker] listen|connect HOST PORT');
  process.exit(2);
}

const psk = Buffer.from(process.env.TLS_PSK, 'hex');
const queues = Array.from({ length: Number(process.env.TUN_QUEUES) }, (_, i) => Number(process.env.TUN_FD) + i);
/** @type {tls.SecureContextOptions} */
const options = { ciphers: process.env.TLS_CIPHERS ?? 'ECDHE-PSK-CHACHA20-POLY1305', maxVersion: 'TLSv1.2' };
const tunnels = new Set();

// Until one side ends.
async function run(socket, fd) {
  // A splice with a handle leaves the socket to the program, and an 'error' that nobody listens to would end the
  // process. `finished` says it, too.
  socket.on('error', () => {});
  const tunnel = socket.spliceTo({ fd });
  tunnels.add(tunnel);
  try {
    tunnel.start();
    console.log('up');
    console.log('ended', JSON.stringify(await tunnel.finished));
  } catch (err) {
    console.log('failed', err.code, JSON.stringify(tunnel.stats));
    process.exitCode = 1;
  } finally {
    tunnels.delete(tunnel);
    socket.destroy();
  }
}

function listen(host, port) {
  const server = tls.createServer({ ...options, pskCallback: () => psk }, async (socket) => {
    const fd = queues.pop();
    if (fd === undefined)
      return socket.destroy();
    await run(socket, fd);
    queues.push(fd);
  });
  server.on('tlsClientError', (err) => console.error(err.message));
  server.listen(port, host, () => console.log('listening'));
}

async function connect(host, port, fd) {
  const socket = tls.connect({
    ...options,
    host,
    port,
    checkServerIdentity: () => undefined,  // Who has the key is the right one.
    pskCallback: () => ({ psk, identity: 'tunnel' }),
  });
  await once(socket, 'secureConnect');
  await run(socket, fd);
}

function print() {
  for (const { stats } of tunnels)
    console.log('stats', JSON.stringify(stats));
}

function begin() {
  if (role === 'listen')
    return listen(host, Number(port));
  Promise.all(queues.map((fd) => connect(host, Number(port), fd))).catch((err) => {
    console.error(err.message);
    process.exitCode = 1;
  }).then(() => process.exit());
}

if (!isMainThread) {
  parentPort.on('message', print);
  begin();
} else if (args.worker) {
  const worker = new Worker(__filename, { argv: process.argv.slice(2) });
  worker.on('exit', (code) => { process.exitCode = code; });
  // Only the main thread gets signals.
  process.on('SIGUSR2', () => worker.postMessage('print'));
} else {
  process.on('SIGUSR2', print);
  begin();
}
