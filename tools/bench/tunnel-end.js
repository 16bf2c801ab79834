'use strict';

// One end of a tunnel, on Node: a TLS 1.3 connection that is spliced to a TUN device.
//
// usage: TUN_FD=3 node tunnel-end.js listen HOST PORT CERT KEY
//        TUN_FD=3 node tunnel-end.js connect HOST PORT

const fs = require('node:fs');
const tls = require('node:tls');

const { 2: role, 3: host, 4: port, 5: cert, 6: key } = process.argv;
const options = { minVersion: 'TLSv1.3', ciphers: 'TLS_AES_256_GCM_SHA384', noDelay: true };

function run(socket) {
  socket.on('error', (err) => console.error(err.message));
  const splice = socket.spliceTo({ fd: Number(process.env.TUN_FD) });
  splice.on('error', (err) => console.error(err.message));
  splice.on('close', () => socket.destroy());
  splice.start();
  console.log('up');
}

if (role === 'listen') {
  const server = tls.createServer({ ...options, cert: fs.readFileSync(cert), key: fs.readFileSync(key) }, run);
  server.listen(Number(port), host, () => console.log('listening'));
} else {
  // It does not verify the certificate: this is about what comes after.
  const socket = tls.connect({ ...options, host, port: Number(port), rejectUnauthorized: false });
  socket.once('secureConnect', () => run(socket));
}
