'use strict';

// The other side of a tunnel (tun-tunnel.js listen) that has no device: sends what is in a file, in one piece.
// usage: TLS_PSK=KEY node send.js HOST PORT FILE

const fs = require('fs');
const tls = require('tls');

const { 2: host, 3: port, 4: file } = process.argv;
const psk = Buffer.from(process.env.TLS_PSK, 'hex');

const socket = tls.connect({
  host,
  port,
  ciphers: 'ECDHE-PSK-CHACHA20-POLY1305',
  maxVersion: 'TLSv1.2',
  checkServerIdentity: () => undefined,
  pskCallback: () => ({ psk, identity: 'tunnel' }),
}, () => socket.write(fs.readFileSync(file)));
socket.resume();
