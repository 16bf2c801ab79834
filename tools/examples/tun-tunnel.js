'use strict';

// A tunnel for IP packets over TLS, between two TUN devices.
//
// usage: tun-exec node tun-tunnel.js listen HOST PORT
//        tun-exec node tun-tunnel.js connect HOST PORT
//
// In the environment: TLS_PSK, the key that both sides share, hexadecimal. TUN_FD
// is from tun-exec. The addresses of the devices are yours to set (ip address).

const { once } = require('events');
const tls = require('tls');

const psk = Buffer.from(process.env.TLS_PSK, 'hex');
const options = { ciphers: 'PSK', maxVersion: 'TLSv1.2' };
const fd = Number(process.env.TUN_FD);

// Until one side ends. The packets do not pass through JavaScript.
async function tunnel(socket) {
  socket.on('error', (err) => console.error(err.message));
  try {
    console.log(await socket.pipeToNative(fd));
  } catch (err) {
    console.error(err.message);
  }
  socket.destroy();
}

async function main([role, host, port]) {
  if (role === 'listen') {
    const server = tls.createServer({ ...options, pskCallback: () => psk });
    server.on('secureConnection', tunnel);
    server.on('tlsClientError', (err) => console.error(err.message));
    server.listen(Number(port), host, () => console.log('ready'));
  } else {
    const socket = tls.connect({
      ...options,
      host,
      port: Number(port),
      checkServerIdentity() {},
      pskCallback: () => ({ psk, identity: 'tunnel' }),
    });
    await once(socket, 'secureConnect');
    console.log('ready');
    await tunnel(socket);
  }
}

main(process.argv.slice(2)).catch((err) => {
  console.error(err.message);
  process.exitCode = 1;
});
