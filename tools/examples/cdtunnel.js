'use strict';

// The tunnel to an iOS device (CoreDevice): TLS 1.2 with a client certificate or a
// pre-shared key, a handshake in JSON, and then IPv6 packets, which go between the
// TLS connection and a TUN device without passing through JavaScript.
//
//   tun-exec node cdtunnel.js HOST PORT
//
// In the environment: TLS_CERT and TLS_KEY, files with the client certificate and
// its key, or TLS_PSK, hexadecimal. TUN_FD and TUN_NAME are from tun-exec.

const tls = require('node:tls');
const { execFileSync } = require('node:child_process');
const { once } = require('node:events');
const { readFileSync } = require('node:fs');

const kMagic = 'CDTunnel';
const kHeader = kMagic.length + 2;
const kMTU = 16000;

function connect(host, port) {
  const { TLS_CERT, TLS_KEY, TLS_PSK } = process.env;
  const credentials = TLS_PSK ? {
    ciphers: 'PSK',
    pskCallback: () => ({ psk: Buffer.from(TLS_PSK, 'hex'), identity: '' }),
  } : {
    cert: readFileSync(TLS_CERT),
    key: readFileSync(TLS_KEY),
  };
  return tls.connect({
    host,
    port,
    maxVersion: 'TLSv1.2',
    // The device has made its certificate itself.
    rejectUnauthorized: false,
    checkServerIdentity: () => undefined,
    ...credentials,
  });
}

// "CDTunnel", the length of the body, and the body.
function frame(message) {
  const body = Buffer.from(JSON.stringify(message));
  const header = Buffer.alloc(kHeader);
  header.write(kMagic);
  header.writeUInt16BE(body.length, kMagic.length);
  return Buffer.concat([header, body]);
}

// The message, and what has come with it: the beginning of the packets.
async function readMessage(socket) {
  const ended = once(socket, 'end');
  let bytes = Buffer.alloc(0);
  let end = kHeader;
  while (bytes.length < end) {
    socket.resume();
    const { 0: chunk } = await Promise.race([once(socket, 'data'), ended]);
    if (chunk === undefined)
      throw new Error('The device has closed the connection');
    socket.pause();
    bytes = Buffer.concat([bytes, chunk]);
    if (bytes.length < kHeader)
      continue;
    if (bytes.toString('latin1', 0, kMagic.length) !== kMagic)
      throw new Error('The device does not speak CDTunnel');
    end = kHeader + bytes.readUInt16BE(kMagic.length);
  }
  return { message: JSON.parse(bytes.toString('utf8', kHeader, end)), head: bytes.subarray(end) };
}

function configure(device, { address, mtu }, peer) {
  const ip = (command) => execFileSync('ip', command.split(' '));
  ip(`link set ${device} mtu ${mtu} up`);
  ip(`-6 address replace ${address} peer ${peer} dev ${device} nodad`);
}

async function main(host, port) {
  const { TUN_FD, TUN_NAME } = process.env;
  const socket = connect(host, port);
  // Between what is awaited here, and beside a splice with a handle, the socket is the program's, and an 'error' that
  // nobody listens to would end the process. Whatever is awaited fails, too.
  socket.on('error', () => {});
  await once(socket, 'secureConnect');
  socket.write(frame({ type: 'clientHandshakeRequest', mtu: kMTU }));
  const { message: { clientParameters, serverAddress }, head } = await readMessage(socket);
  configure(TUN_NAME, clientParameters, serverAddress);

  // Whatever else the device sends is no packet, and ends the tunnel at once.
  const tunnel = socket.spliceTo({
    fd: Number(TUN_FD),
    framing: 'ipv6',
    maxPacketSize: clientParameters.mtu,
    head,
  }).start();
  process.once('SIGINT', () => tunnel.stop());
  process.once('SIGTERM', () => tunnel.stop());
  console.log(`${clientParameters.address} -> ${serverAddress}, MTU ${clientParameters.mtu}`);
  try {
    console.log(JSON.stringify(await tunnel.finished));
  } finally {
    socket.destroy();
  }
}

const { 2: host, 3: port } = process.argv;
const { TLS_CERT, TLS_KEY, TLS_PSK, TUN_FD } = process.env;
if (!port || !TUN_FD || !(TLS_PSK || (TLS_CERT && TLS_KEY))) {
  console.error('usage: TLS_CERT=FILE TLS_KEY=FILE tun-exec node cdtunnel.js HOST PORT (or with TLS_PSK=KEY)');
  process.exit(2);
}
main(host, Number(port)).catch((err) => {
  console.error(err.message);
  process.exit(1);
});
