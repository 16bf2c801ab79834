'use strict';

// tun-tunnel.js connect as it is written without splices: each packet is a Buffer
// that passes through JavaScript.
//
//   tun-exec node tun-tunnel-pipe.js connect HOST PORT

const fs = require('node:fs');
const tls = require('node:tls');
const { Writable } = require('node:stream');

const psk = Buffer.from(process.env.TLS_PSK, 'hex');
const fd = Number(process.env.TUN_FD);

// The bytes that the packet at the start of `bytes` has; more, if that is not known.
function packetLength(bytes) {
  if (bytes.length < 6)
    return Infinity;
  return bytes[0] >> 4 === 4 ? bytes.readUInt16BE(2) : 40 + bytes.readUInt16BE(4);
}

const socket = tls.connect({
  host: process.argv[3],
  port: Number(process.argv[4]),
  ciphers: process.env.TLS_CIPHERS ?? 'ECDHE-PSK-CHACHA20-POLY1305',
  maxVersion: 'TLSv1.2',
  checkServerIdentity: () => undefined,
  pskCallback: () => ({ psk, identity: 'tunnel' }),
});

// One packet with each write.
const sink = new Writable({
  write(packet, encoding, callback) {
    fs.write(fd, packet, callback);
  },
});

let rest = Buffer.alloc(0);
socket.on('data', (chunk) => {
  let bytes = rest.length === 0 ? chunk : Buffer.concat([rest, chunk]);
  for (let length; (length = packetLength(bytes)) <= bytes.length; bytes = bytes.subarray(length)) {
    if (!sink.write(bytes.subarray(0, length)))
      socket.pause();
  }
  rest = bytes;
});
sink.on('drain', () => socket.resume());

socket.on('secureConnect', () => {
  console.log('up');
  const buffer = Buffer.alloc(65536);
  (function next() {
    fs.read(fd, buffer, 0, buffer.length, null, (err, n) => {
      if (err)
        return socket.destroy(err);
      if (socket.write(Buffer.from(buffer.subarray(0, n))))
        next();
      else
        socket.once('drain', next);
    });
  })();
});
socket.on('close', () => process.exit());
socket.on('error', (err) => console.error(err.message));
