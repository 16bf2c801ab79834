'use strict';

// The tunnel to an iOS device (CoreDevice): TLS with a client certificate or a
// pre-shared key, a handshake in JSON, and then IPv6 packets, which go between
// the TLS connection and a TUN device without passing through JavaScript.
//
// usage: tun-exec --name NAME node cdtunnel.js HOST PORT   (as root, or with
//        CAP_NET_ADMIN; NAME is up to you)
//
// In the environment: TLS_CERT and TLS_KEY, files with the client certificate and
// its key, or TLS_PSK, hexadecimal. TUN_FD and TUN_NAME are from tun-exec.

const { execFileSync } = require('child_process');
const { once } = require('events');
const { readFileSync } = require('fs');
const tls = require('tls');

const kMagic = 'CDTunnel';
const kHeader = kMagic.length + 2;
const kMTU = 16000;

function frame(message) {
  const body = Buffer.from(JSON.stringify(message));
  const header = Buffer.alloc(kHeader);
  header.write(kMagic);
  header.writeUInt16BE(body.length, kMagic.length);
  return Buffer.concat([header, body]);
}

// Reads one message. What follows it stays in the socket: it is packets already.
async function readMessage(socket) {
  let bytes = Buffer.alloc(0);
  for (;;) {
    if (bytes.length >= kHeader) {
      if (bytes.toString('latin1', 0, kMagic.length) !== kMagic)
        throw new Error('The device does not speak CDTunnel');
      const end = kHeader + bytes.readUInt16BE(kMagic.length);
      if (bytes.length >= end) {
        if (bytes.length > end)
          socket.unshift(bytes.subarray(end));
        return JSON.parse(bytes.toString('utf8', kHeader, end));
      }
    }
    const chunk = socket.read();
    if (chunk !== null)
      bytes = Buffer.concat([bytes, chunk]);
    else if (socket.readableEnded || socket.destroyed)
      throw new Error('The device has closed the connection');
    else
      await Promise.race([once(socket, 'readable'), once(socket, 'end')]);
  }
}

function connect(host, port) {
  const { TLS_CERT, TLS_KEY, TLS_PSK } = process.env;
  return tls.connect({
    host,
    port,
    maxVersion: 'TLSv1.2',
    // The device has a certificate that it has made itself.
    rejectUnauthorized: false,
    checkServerIdentity() {},
    ...(TLS_PSK ? {
      ciphers: 'PSK',
      pskCallback: () => ({ psk: Buffer.from(TLS_PSK, 'hex'), identity: 'com.apple.CoreDevice.TunnelService.Identity' }),
    } : {
      cert: readFileSync(TLS_CERT),
      key: readFileSync(TLS_KEY),
    }),
  });
}

async function main([host, port]) {
  const socket = connect(host, Number(port));
  await once(socket, 'secureConnect');
  socket.write(frame({ type: 'clientHandshakeRequest', mtu: kMTU }));
  const { clientParameters, serverAddress } = await readMessage(socket);

  const { address, mtu } = clientParameters;
  const ip = (...args) => execFileSync('ip', args, { stdio: ['ignore', 'inherit', 'inherit'] });
  const device = process.env.TUN_NAME;
  ip('link', 'set', device, 'mtu', String(mtu), 'up');
  ip('-6', 'address', 'add', address, 'peer', serverAddress, 'dev', device, 'nodad');

  const tunnel = socket.spliceTo({ fd: Number(process.env.TUN_FD) });
  process.once('SIGINT', () => tunnel.stop());
  process.once('SIGTERM', () => tunnel.stop());
  tunnel.start();
  console.log(`${device}: ${address} -> ${serverAddress}, MTU ${mtu}`);
  const stats = await tunnel.finished;
  console.log(stats);
  socket.destroy();
}

main(process.argv.slice(2)).catch((err) => {
  console.error(err.message);
  process.exitCode = 1;
});
