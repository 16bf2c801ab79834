'use strict';

// A tunnel for IP packets over TLS, between two TUN devices. The packets do not
// pass through JavaScript.
//
//   tun-exec node tun-tunnel.js listen HOST PORT
//   tun-exec node tun-tunnel.js connect HOST PORT
//
// In the environment: TLS_PSK, the key that both sides share, hexadecimal, and
// TLS_CIPHERS, if you want others. TUN_FD and TUN_QUEUES are from tun-exec: each
// queue of a device gets a connection of its own. The addresses of the devices are
// yours to set (ip address). SIGUSR2 prints what each connection has moved.

const tls = require('node:tls');
const { once } = require('node:events');

const { 2: role, 3: host, 4: port } = process.argv;
if (!['listen', 'connect'].includes(role) || !port || !process.env.TUN_QUEUES || !process.env.TLS_PSK) {
  console.error('usage: TLS_PSK=KEY tun-exec node tun-tunnel.js listen|connect HOST PORT');
  process.exit(2);
}

const psk = Buffer.from(process.env.TLS_PSK, 'hex');
const queues = Array.from({ length: Number(process.env.TUN_QUEUES) }, (_, i) => Number(process.env.TUN_FD) + i);
/** @type {tls.SecureContextOptions} */
const options = { ciphers: process.env.TLS_CIPHERS ?? 'ECDHE-PSK-CHACHA20-POLY1305', maxVersion: 'TLSv1.2' };
const tunnels = new Set();

// Until one side ends.
async function run(socket, fd) {
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
    socket.on('error', () => {});  // The tunnel says it, too.
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
  socket.on('error', () => {});
  await once(socket, 'secureConnect');
  await run(socket, fd);
}

process.on('SIGUSR2', () => {
  for (const { stats } of tunnels)
    console.log('stats', JSON.stringify(stats));
});

if (role === 'listen') {
  listen(host, Number(port));
} else {
  Promise.all(queues.map((fd) => connect(host, Number(port), fd))).catch((err) => {
    console.error(err.message);
    process.exitCode = 1;
  }).then(() => process.exit());
}
